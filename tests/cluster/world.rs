//! Two nodes and their pods in network namespaces, an agent on each node, and an API server that tells of them what the test
//! wants it to tell.

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade::manifests;
use palisade::sandbox::{Expect, Netns, Options, Outcome, Place, Probe, Sandbox, assign_addresses};
use policy_compiler::cluster::{Cluster, PodName};
use policy_compiler::ports::{Protocol, Traffic};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::api::{Kind, but_for_the_hour};
use crate::environment::without_settings;
use crate::server::Server;

pub(crate) type Result<T = (), E = Box<dyn Error>> = std::result::Result<T, E>;

/// A machine under load gets plenty; nothing waits for so long when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

/// From when on an answer that is expected is waited for long: so far it may not be due, and then nothing comes.
const SLOW: Duration = Duration::from_secs(10);

/// In the namespace of its node, where nobody else listens.
const HTTP: &str = "127.0.0.1:9440";

pub(crate) const WEB: Traffic = Traffic::Port(Protocol::Tcp, 80);
pub(crate) const DNS: Traffic = Traffic::Port(Protocol::Udp, 53);

/// Who there is to send packets, whatever the API server says of them.
const STAGED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {nodeName: a, containers: [{name: main, image: i, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: shop}
spec: {nodeName: a, containers: [{name: main, image: i, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop}
spec: {nodeName: b, containers: [{name: main, image: i, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: spare, namespace: shop}
spec: {nodeName: b, containers: [{name: main, image: i, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: guest, namespace: other}
spec: {nodeName: b, containers: [{name: main, image: i, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]}
";

pub(crate) fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(2).enable_all().build()?)
}

pub(crate) struct World<'r, S> {
    runtime: &'r Runtime,
    server: S,
    staged: Cluster,
    sandbox: Sandbox,
    agents: Vec<Agent>,
}

impl<'r, S: Server> World<'r, S> {
    /// The nodes and the two namespaces are in the API server; pods and policies are not yet. The agents are ready.
    pub(crate) fn new(runtime: &'r Runtime, server: S) -> Result<Self> {
        let mut staged = manifests::parse("staged.yaml", STAGED)
            .map_err(|e| e.to_string())?
            .cluster;
        for name in ["a", "b"] {
            staged.add_node(policy_compiler::cluster::Node {
                name: name.into(),
                labels: Default::default(),
                addresses: Vec::new(),
                pod_cidrs: Vec::new(),
            });
        }
        assign_addresses(&mut staged)?;
        let sandbox = Sandbox::build(&staged, &Options::default())?;
        let mut world = World {
            runtime,
            server,
            staged,
            sandbox,
            agents: Vec::new(),
        };
        world.namespace("shop", "red");
        world.namespace("other", "blue");
        for name in ["a", "b"] {
            world.node(name);
        }
        let kubeconfig = world.server.kubeconfig();
        let parsed: Value = serde_json::from_str(&kubeconfig)?;
        let url = parsed["clusters"][0]["cluster"]["server"].as_str().unwrap_or_default();
        let address: SocketAddr = url.rsplit('/').next().unwrap_or_default().parse()?;
        for name in ["a", "b"] {
            let netns = world.sandbox.netns(&Place::Node(name.into()))?.clone();
            door(&netns, address, runtime)?;
            world.agents.push(Agent::start(netns, name, &kubeconfig)?);
        }
        for agent in &mut world.agents {
            agent.until_ready()?;
        }
        Ok(world)
    }

    pub(crate) fn namespace(&self, name: &str, team: &str) {
        let labels = json!({"kubernetes.io/metadata.name": name, "team": team});
        self.put(Kind::Namespace, json!({"metadata": {"name": name, "labels": labels}}));
    }

    fn node(&self, name: &str) {
        let node = &self.staged.nodes[name];
        let networks: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
        let addresses = node.addresses.iter();
        let addresses: Vec<Value> = addresses
            .map(|a| json!({"type": "InternalIP", "address": a.to_string()}))
            .collect();
        let node = json!({
            "metadata": {"name": name},
            "spec": {"podCIDR": networks[0], "podCIDRs": networks},
            "status": {"addresses": addresses},
        });
        self.put(Kind::Node, node);
    }

    /// Tells of a pod with the addresses, and on the node, of somebody in the sandbox.
    pub(crate) fn pod(&self, namespace: &str, name: &str, labels: Value, at: &Place) {
        let Place::Pod(place) = at else {
            panic!("{at} is no pod")
        };
        let pod = &self.staged.pods[place];
        let ips: Vec<Value> = pod.addresses.iter().map(|a| json!({"ip": a.to_string()})).collect();
        let pod = json!({
            "metadata": {"namespace": namespace, "name": name, "labels": labels},
            "spec": {"nodeName": pod.node.as_ref().unwrap().to_string(), "containers": [{"name": "main", "image": "i"}]},
            "status": {"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips, "startTime": "2026-01-02T03:04:05Z"},
        });
        self.put(Kind::Pod, pod);
    }

    pub(crate) fn policy(&self, name: &str, spec: Value) {
        self.policy_with(name, json!({}), spec);
    }

    pub(crate) fn policy_with(&self, name: &str, annotations: Value, spec: Value) {
        let metadata = json!({"namespace": "shop", "name": name, "annotations": annotations});
        self.put(Kind::NetworkPolicy, json!({"metadata": metadata, "spec": spec}));
    }

    /// What the Events on policies say that the API server holds, once there is one: reason and name.
    pub(crate) fn events(&self) -> Result<Vec<(String, String)>> {
        let start = Instant::now();
        loop {
            let events = but_for_the_hour(self.runtime.block_on(self.server.objects(Kind::Event)));
            let of_policies = events.iter().filter(|e| e["regarding"]["kind"] == "NetworkPolicy");
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let told: Vec<_> = of_policies
                .map(|e| (text(&e["reason"]), text(&e["regarding"]["name"])))
                .collect();
            if !told.is_empty() {
                return Ok(told);
            }
            if start.elapsed() > PATIENCE {
                let logs: Vec<String> = self.agents.iter().map(Agent::log).collect();
                return Err(format!("no Event on a policy\n{}", logs.join("\n")).into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn delete(&self, kind: Kind, name: &str) {
        self.runtime.block_on(self.server.delete(kind, "shop", name));
    }

    fn put(&self, kind: Kind, object: Value) {
        self.runtime.block_on(self.server.put(kind, object));
    }

    /// Packets of both families come to this, soon.
    #[track_caller]
    pub(crate) fn until(&self, from: &Place, to: &Place, traffic: Traffic, passes: bool) -> Result {
        let caller = std::panic::Location::caller();
        let expected = match passes {
            true => Outcome::Answered(to.to_string()),
            false => Outcome::Silent,
        };
        for address in self.sandbox.addresses(to)? {
            let start = Instant::now();
            loop {
                let expect = match passes && start.elapsed() > SLOW {
                    true => Expect::Answer,
                    false => Expect::Silence,
                };
                let (seen, alive) = self.probe(from, to, *address, traffic, expect)?;
                if seen == expected && alive {
                    break;
                }
                if start.elapsed() > PATIENCE {
                    let line = caller.line();
                    let logs: Vec<String> = self.agents.iter().map(Agent::log).collect();
                    let logs = logs.join("\n");
                    return Err(
                        format!("line {line}: {from} to {address}, {traffic}: {seen}, not {expected}\n{logs}").into(),
                    );
                }
            }
        }
        Ok(())
    }

    #[track_caller]
    pub(crate) fn passes(&self, from: &Place, to: &Place, traffic: Traffic) -> Result {
        self.until(from, to, traffic, true)
    }

    #[track_caller]
    pub(crate) fn dropped(&self, from: &Place, to: &Place, traffic: Traffic) -> Result {
        self.until(from, to, traffic, false)
    }

    /// What comes of it, and whether whoever has the address answers himself in the same round, as he does whatever the policies
    /// say: silence lasts until then, so that it is not that of a machine that stands still.
    fn probe(
        &self,
        from: &Place,
        holder: &Place,
        to: IpAddr,
        traffic: Traffic,
        expect: Expect,
    ) -> Result<(Outcome, bool)> {
        let probe = |from: &Place, expect| Probe {
            from: from.clone(),
            source: None,
            to,
            traffic,
            expect,
        };
        let round = [probe(from, expect), probe(holder, Expect::Answer)];
        let [seen, own] = <[Outcome; 2]>::try_from(self.sandbox.probe_all(&round, |_| {})?)
            .map_err(|outcomes| format!("{} outcomes of two probes", outcomes.len()))?;
        Ok((seen, own == Outcome::Answered(holder.to_string())))
    }

    /// Ends the agents in good order; their rules stay.
    pub(crate) fn stop(&mut self) -> Result {
        for agent in &mut self.agents {
            agent.until_ready()?;
        }
        self.agents.clear();
        Ok(())
    }
}

/// Somebody in the sandbox.
pub(crate) fn place(namespace: &str, name: &str) -> Place {
    Place::Pod(PodName {
        namespace: namespace.into(),
        name: name.into(),
    })
}

/// Has the API server answer on its own address within a node's namespace, which has no other way to it: what is accepted
/// there is handed on from here.
fn door(netns: &Netns, address: SocketAddr, runtime: &Runtime) -> Result {
    let listener = netns.run(|| TcpListener::bind(address))??;
    listener.set_nonblocking(true)?;
    let _inside = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    runtime.spawn(async move {
        while let Ok((mut agent, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Ok(mut server) = tokio::net::TcpStream::connect(address).await {
                    // Either end may go away whenever it likes.
                    let _ = tokio::io::copy_bidirectional(&mut agent, &mut server).await;
                }
            });
        }
    });
    Ok(())
}

/// The real agent in the namespace of its node, ended with the test.
struct Agent {
    netns: Arc<Netns>,
    child: Child,
    folder: tempfile::TempDir,
}

impl Agent {
    fn start(netns: Arc<Netns>, node: &str, kubeconfig: &str) -> Result<Agent> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("kubeconfig");
        fs::write(&file, kubeconfig)?;
        let log = fs::File::create(folder.path().join("log"))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
        // The way to the server is the door alone.
        without_settings(&mut command)
            .args(["agent", "--node-name", node, "--http-addr", HTTP, "--kubeconfig"])
            .arg(file)
            .stdin(Stdio::null())
            .stderr(log);
        let child = netns.run(|| command.spawn())??;
        Ok(Agent { netns, child, folder })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits until it is, and has nothing to complain about.
    fn until_ready(&mut self) -> Result {
        let start = Instant::now();
        loop {
            let answer = self.netns.run(ready)?.unwrap_or_else(|error| error.to_string());
            if answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nready\n") {
                return Ok(());
            }
            if self.child.try_wait()?.is_some() || start.elapsed() > PATIENCE {
                return Err(format!("not ready: {answer}\n{}", self.log()).into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn ready() -> std::io::Result<String> {
    let mut stream = TcpStream::connect(HTTP)?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
