//! The window between a pod's address in the API and its policy in the kernel, with real packets: the agent as users run it, an API server in
//! the namespace of its node, and a pod that sends all the while.
//!
//! ```text
//! cargo bench --bench window [-- ROUNDS [PODS]]
//! ```
//!
//! In each round the pod is in the API without an address, as while its sandbox is made, then its address appears, then it is gone. With
//! `--unknown-pods allow` it is measured how long datagrams pass that its policy denies; with `drop`, how long those wait that its policy
//! allows, and that of the others none ever passes.

#![allow(clippy::unwrap_used, reason = "a benchmark may panic on what it did not expect")]

#[path = "../tests/support/api/mod.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod api;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade::manifests;
use palisade::sandbox::{Netns, Options, Place, Sandbox, assign_addresses, become_root_in_user_namespace};
use policy_compiler::cluster::PodName;
use serde_json::{Value, json};

use api::{Api, Kind};

const ROUNDS: usize = 100;
const PODS: usize = 1_000;

/// Nothing waits for so long when all is well.
const PATIENCE: Duration = Duration::from_secs(30);
/// After so long without a datagram, none is on its way.
const SILENCE: Duration = Duration::from_millis(100);
/// Between two datagrams of a lane.
const PAUSE: Duration = Duration::from_micros(100);

/// The policy of the pod lets it send to this port, and to no other.
const ALLOWED: u16 = 5000;
const DENIED: u16 = 5001;

const CLUSTER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: a, containers: [{name: main, image: i}]}
";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |at: usize, default| arguments.get(at).map_or(default, |n| n.parse().unwrap());
    let (rounds, pods) = (number(0, ROUNDS), number(1, PODS));
    if let Err(error) = become_root_in_user_namespace() {
        eprintln!("NOT RUN: window: {error}");
        return;
    }
    let world = World::new(pods);
    for unknown_pods in ["allow", "drop"] {
        let _agent = world.agent(unknown_pods);
        let lanes = Lanes::start(&world);
        let mut took: Vec<Duration> = Vec::new();
        let mut leaked: Vec<usize> = Vec::new();
        for _ in 0..rounds {
            let (window, packets) = world.round(&lanes, unknown_pods);
            took.push(window);
            leaked.push(packets);
        }
        took.sort();
        leaked.sort_unstable();
        let at = |part: usize| took[(rounds * part / 100).min(rounds - 1)];
        let what = match unknown_pods {
            "allow" => "denied datagrams passed for",
            _ => "allowed datagrams waited for",
        };
        println!(
            "--unknown-pods {unknown_pods}: after its address was in the API, {what} {:.1} ms (median of {rounds} rounds), {:.1} ms \
             (99th percentile), {:.1} ms (worst); denied and passed all the same: {} in a round (median), {} (worst), of {:.0} sent a second",
            millis(at(50)),
            millis(at(99)),
            millis(at(100)),
            leaked[rounds / 2],
            leaked[rounds - 1],
            lanes.rate(),
        );
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

struct World {
    sandbox: Sandbox,
    api: Api,
    /// The pod's, in the order in which the API shows them.
    addresses: Vec<IpAddr>,
    folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl World {
    fn new(pods: usize) -> World {
        let mut cluster = manifests::parse("cluster.yaml", CLUSTER).unwrap().cluster;
        assign_addresses(&mut cluster).unwrap();
        let sandbox = Sandbox::build(&cluster, &Options::default()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let node = sandbox.netns(&Place::Node("a".into())).unwrap();
        let api = node.run(|| runtime.block_on(Api::start())).unwrap();
        api.put(Kind::Namespace, json!({"metadata": {"name": "shop"}}));
        let ranges: Vec<String> = cluster.nodes["a"].pod_cidrs.iter().map(ToString::to_string).collect();
        api.put(
            Kind::Node,
            json!({"metadata": {"name": "a"}, "spec": {"podCIDRs": ranges}}),
        );
        api.put(
            Kind::NetworkPolicy,
            json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": {
                "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"],
                "egress": [{"ports": [{"port": ALLOWED, "protocol": "UDP"}]}]}}),
        );
        for at in 0..pods {
            let address = IpAddr::from([10, 99, (at / 200) as u8, (at % 200 + 1) as u8]);
            api.put(Kind::Pod, pod(&format!("other-{at}"), "elsewhere", &[address]));
        }
        // A replica of the pod has been here for long: the first one of its sort on a node brings more with it.
        let range = cluster.nodes["a"].pod_cidrs[0];
        let mut replica = pod("web-0", "a", &range.hosts().nth(200).into_iter().collect::<Vec<_>>());
        replica["metadata"]["labels"]["app"] = json!("web");
        api.put(Kind::Pod, replica);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kubeconfig"), api.kubeconfig(None)).unwrap();
        let addresses = sandbox.addresses(&web()).unwrap().to_vec();
        World {
            sandbox,
            api,
            addresses,
            folder,
            _runtime: runtime,
        }
    }

    fn netns(&self, place: &Place) -> &Netns {
        self.sandbox.netns(place).unwrap()
    }

    /// An agent that is ready.
    fn agent(&self, unknown_pods: &str) -> Agent {
        let node = self.netns(&Place::Node("a".into()));
        let http = "127.0.0.1:9440";
        let child = node.run(|| {
            let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
            Command::new(env!("CARGO_BIN_EXE_palisade"))
                .args([
                    "agent",
                    "--node-name",
                    "a",
                    "--http-addr",
                    http,
                    "--unknown-pods",
                    unknown_pods,
                ])
                .args([Path::new("--kubeconfig"), &self.folder.path().join("kubeconfig")])
                .stdin(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap()
        });
        let agent = Agent(child.unwrap());
        let ready = || {
            let mut stream = TcpStream::connect(http).ok()?;
            write!(stream, "GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer.starts_with("HTTP/1.1 200"))
        };
        until("the agent is ready", || node.run(ready).unwrap() == Some(true));
        agent
    }

    /// Returns how long the datagrams of a lane passed, or waited, from the moment the address was in the API, and how many passed that
    /// are denied.
    fn round(&self, lanes: &Lanes, unknown_pods: &str) -> (Duration, usize) {
        self.api.put(Kind::Pod, pod("web", "a", &[]));
        // The agent has heard of it; there is nothing to do about a pod without an address.
        sleep(Duration::from_millis(50));
        let (denied, allowed) = (lanes.of(DENIED), lanes.of(ALLOWED));
        if unknown_pods == "drop" {
            assert!(allowed.is_silent(), "something passes that nobody knows");
        }
        let before = denied.arrived();
        let shown = lanes.now();
        self.api.put(Kind::Pod, pod("web", "a", &self.addresses));
        until("the policy is in force", || {
            denied.is_silent() && allowed.since(shown) > 0
        });
        let (window, leaked) = match unknown_pods {
            "allow" => (denied.last(), denied.since(shown)),
            _ => (allowed.first_since(shown), denied.arrived() - before),
        };
        self.api.delete(Kind::Pod, "shop", "web");
        until("the pod is gone", || match unknown_pods {
            "allow" => !denied.is_silent(),
            _ => allowed.is_silent(),
        });
        (window.unwrap_or_default().saturating_sub(shown), leaked)
    }
}

fn web() -> Place {
    Place::Pod(PodName {
        namespace: "shop".into(),
        name: "web".into(),
    })
}

/// As the API shows it.
fn pod(name: &str, node: &str, addresses: &[IpAddr]) -> Value {
    let ips: Vec<Value> = addresses.iter().map(|a| json!({"ip": a})).collect();
    json!({
        "metadata": {"namespace": "shop", "name": name, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": if ips.is_empty() { "Pending" } else { "Running" }, "podIPs": ips},
    })
}

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// When the datagrams were sent that arrived, in that order.
#[derive(Clone, Default)]
struct Arrivals(Arc<Mutex<Vec<Duration>>>, Arc<Mutex<Option<Instant>>>);

impl Arrivals {
    fn arrived(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn last(&self) -> Option<Duration> {
        self.0.lock().unwrap().last().copied()
    }

    fn first_since(&self, moment: Duration) -> Option<Duration> {
        let arrived = self.0.lock().unwrap();
        arrived.get(arrived.partition_point(|sent| *sent < moment)).copied()
    }

    fn since(&self, moment: Duration) -> usize {
        let arrived = self.0.lock().unwrap();
        arrived.len() - arrived.partition_point(|sent| *sent < moment)
    }

    /// Whether nothing has arrived for long enough.
    fn is_silent(&self) -> bool {
        self.1.lock().unwrap().is_none_or(|at| at.elapsed() > SILENCE)
    }
}

/// The datagrams of the pod to the client outside, on both ports, all the time.
struct Lanes {
    began: Instant,
    sent: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    arrivals: [(u16, Arrivals); 2],
}

impl Lanes {
    fn start(world: &World) -> Lanes {
        let lanes = Lanes {
            began: Instant::now(),
            sent: Arc::default(),
            ended: Arc::default(),
            arrivals: [DENIED, ALLOWED].map(|port| (port, Arrivals::default())),
        };
        let client = world.sandbox.addresses(&Place::Client).unwrap()[0];
        for (port, arrivals) in &lanes.arrivals {
            let to = SocketAddr::new(client, *port);
            let receiver = world
                .netns(&Place::Client)
                .run(|| UdpSocket::bind(to))
                .unwrap()
                .unwrap();
            receiver.set_read_timeout(Some(SILENCE)).unwrap();
            let (arrivals, ended) = (arrivals.clone(), lanes.ended.clone());
            std::thread::spawn(move || {
                let mut bytes = [0; 16];
                while !ended.load(Ordering::Relaxed) {
                    if receiver.recv(&mut bytes).is_ok() {
                        let nanos = u64::from_be_bytes(bytes[..8].try_into().unwrap());
                        arrivals.0.lock().unwrap().push(Duration::from_nanos(nanos));
                        *arrivals.1.lock().unwrap() = Some(Instant::now());
                    }
                }
            });
        }
        let bind = SocketAddr::new(world.addresses[0], 0);
        let sender = world.netns(&web()).run(|| UdpSocket::bind(bind)).unwrap().unwrap();
        let (began, sent, ended) = (lanes.began, lanes.sent.clone(), lanes.ended.clone());
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                for port in [DENIED, ALLOWED] {
                    let nanos = began.elapsed().as_nanos() as u64;
                    let _ = sender.send_to(&nanos.to_be_bytes(), SocketAddr::new(client, port));
                }
                sent.fetch_add(1, Ordering::Relaxed);
                sleep(PAUSE);
            }
        });
        lanes
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn of(&self, port: u16) -> &Arrivals {
        let lane = self.arrivals.iter().find(|(p, _)| *p == port);
        &lane.unwrap().1
    }

    /// Datagrams that a lane sent in a second.
    fn rate(&self) -> f64 {
        self.sent.load(Ordering::Relaxed) as f64 / self.began.elapsed().as_secs_f64()
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

#[track_caller]
fn until(what: &str, mut met: impl FnMut() -> bool) {
    let start = Instant::now();
    while !met() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(1));
    }
}
