//! The real agent on a node whose pods are on a bridge: it has the bridge hand its packets to the rules, or is not ready.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use palisade::nft::Mode;
use palisade::sandbox::{Netns, Options, Place, Wiring};

use crate::environment::without_settings;
use crate::packets::ip;
use crate::shop::{DENY_ALL, NONE};
use crate::world::{Family, Result, World, must, node, pod, possible, tcp};

const PROGRAM: &str = env!("CARGO_BIN_EXE_palisade");

/// Everything with its address, because the agent reads it from files: nothing is invented for it.
const CLUSTER: &str = "
apiVersion: v1
kind: Node
metadata: {name: a}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}
status: {addresses: [{type: InternalIP, address: 172.18.0.2}, {type: InternalIP, address: 'fd00:172:18::2'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: a, containers: [{name: main, image: i, ports: [{containerPort: 80}]}]}
status: {phase: Running, podIP: 10.244.1.2, podIPs: [{ip: 10.244.1.2}, {ip: 'fd00:10:244:1::2'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, labels: {app: api}}
spec: {nodeName: a, containers: [{name: main, image: i, ports: [{containerPort: 80}]}]}
status: {phase: Running, podIP: 10.244.1.3, podIPs: [{ip: 10.244.1.3}, {ip: 'fd00:10:244:1::3'}]}
---
";

const SYSCTLS: [&str; 2] = ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"];

/// Makes `/proc/sys` what it is in most containers.
const READ_ONLY: &str = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys /proc/sys";

/// Hides the sysctls of bridges, as where the module is not loaded.
const NO_MODULE: &str = "mount -t tmpfs none /proc/sys/net/bridge";

/// Where the next agent serves HTTP.
static NEXT_PORT: AtomicU16 = AtomicU16::new(9440);

/// An agent in the namespace of a node, ended with the test.
struct Agent<'a> {
    child: Child,
    http: SocketAddr,
    netns: &'a Netns,
    folder: tempfile::TempDir,
}

impl<'a> Agent<'a> {
    /// With a flag or two, after a shell command in a mount namespace of its own.
    fn start(netns: &'a Netns, policies: &str, before: &str, flags: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::create_dir(folder.path().join("manifests"))?;
        fs::write(folder.path().join("manifests/all.yaml"), format!("{CLUSTER}{policies}"))?;
        let log = fs::File::create(folder.path().join("log"))?;
        // A port of its own: what an agent that was killed had just begun to start as nft has its sockets until it is nft.
        let http = SocketAddr::from((Ipv4Addr::LOCALHOST, NEXT_PORT.fetch_add(1, Ordering::Relaxed)));
        let spawn = || {
            without_settings(&mut Command::new("unshare"))
                .args([
                    "--mount",
                    "sh",
                    "-c",
                    &format!("{before} && exec \"$@\""),
                    "sh",
                    PROGRAM,
                ])
                .args([
                    "agent",
                    "--node-name",
                    "a",
                    "--http-addr",
                    &http.to_string(),
                    "--manifests",
                ])
                .arg(folder.path().join("manifests"))
                .args(flags)
                .stdin(Stdio::null())
                .stderr(log)
                .spawn()
        };
        let child = netns.run(spawn)??;
        Ok(Agent {
            child,
            http,
            netns,
            folder,
        })
    }

    /// What `/readyz` says; nothing while nobody answers.
    fn ready(&self) -> Result<Option<(u16, String)>> {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(self.http)?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let Ok(answer) = self.netns.run(ask)? else {
            return Ok(None);
        };
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer of HTTP")?;
        let status = head.split(' ').nth(1).ok_or("no status")?.parse()?;
        Ok(Some((status, body.to_owned())))
    }

    /// Waits until `/readyz` answers so, with a text that holds these words.
    #[track_caller]
    fn until(&self, status: u16, words: &[&str]) -> Result {
        let caller = std::panic::Location::caller();
        let start = Instant::now();
        loop {
            let said = self.ready()?;
            if let Some((found, text)) = &said
                && *found == status
                && words.iter().all(|word| text.contains(word))
            {
                return Ok(());
            }
            let log = fs::read_to_string(self.folder.path().join("log"))?;
            let patient = start.elapsed() < Duration::from_secs(90);
            must(
                patient,
                format!("{caller}: {status} {words:?} was awaited, it says {said:?}\n{log}"),
            )?;
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A node whose bridge keeps its packets to itself.
fn world(wiring: Wiring, policies: &str) -> Result<World> {
    let options = Options {
        wiring,
        ..Options::default()
    };
    let mut world = World::wired(CLUSTER, Mode::Enforce, &options)?;
    world.netns(&node("a"))?.sysctl(&SYSCTLS.map(|sysctl| (sysctl, "0")))?;
    world.policies(policies)?;
    Ok(world)
}

#[track_caller]
fn escapes(world: &World) -> Result {
    for family in Family::BOTH {
        world.passes(&pod("web"), &pod("api"), tcp(80), family)?;
        // What is routed does not.
        world.dropped(&Place::Client, &pod("api"), tcp(80), family)?;
    }
    Ok(())
}

#[track_caller]
fn is_held(world: &World) -> Result {
    for family in Family::BOTH {
        world.dropped(&pod("web"), &pod("api"), tcp(80), family)?;
        world.dropped(&Place::Client, &pod("api"), tcp(80), family)?;
    }
    Ok(())
}

/// The options of the bridge that are 1.
fn options(netns: &Netns) -> Result<String> {
    let shown = ip(netns, &["-d", "link", "show", "cni0"])?;
    let words: Vec<&str> = shown.split_whitespace().collect();
    let calls = words
        .windows(2)
        .filter(|pair| pair[0].starts_with("nf_call_ip") && pair[1] == "1");
    Ok(calls.map(|pair| pair[0]).collect::<Vec<_>>().join(" "))
}

/// By default the agent switches the pods' bridge on, with `/proc/sys` read-only too, and does so again when somebody
/// switches it off. It sets no sysctl.
pub(crate) fn the_agent_has_bridges_meet_the_rules() -> Result {
    if !possible(Wiring::Bridge, "the_agent_has_bridges_meet_the_rules") {
        return Ok(());
    }
    let mut world = world(Wiring::Bridge, NONE)?;
    for family in Family::BOTH {
        world.passes(&Place::Client, &pod("api"), tcp(80), family)?;
    }
    // The rules alone are of no use here, and that is why the agent looks.
    world.policies(DENY_ALL)?;
    escapes(&world)?;
    let netns = world.netns(&node("a"))?;
    for before in ["true", READ_ONLY] {
        let agent = Agent::start(netns, DENY_ALL, before, &[])?;
        agent.until(200, &["ready"])?;
        is_held(&world)?;
        must(options(netns)? == "nf_call_iptables nf_call_ip6tables", options(netns)?)?;
        netns.ip("link set cni0 type bridge nf_call_ip6tables 0 nf_call_iptables 0\n")?;
        let start = Instant::now();
        while options(netns)? != "nf_call_iptables nf_call_ip6tables" {
            must(start.elapsed() < Duration::from_secs(90), "switched off, and left so")?;
            std::thread::sleep(Duration::from_millis(50));
        }
        is_held(&world)?;
        let sysctls = netns.run(|| SYSCTLS.map(|sysctl| fs::read_to_string(format!("/proc/sys/net/{sysctl}"))))?;
        for value in sysctls {
            must(value?.trim() == "0", "a sysctl was set")?;
        }
        drop(agent);
        netns.ip("link set cni0 type bridge nf_call_ip6tables 0 nf_call_iptables 0\n")?;
        escapes(&world)?;
    }
    Ok(())
}

/// Told to change nothing, the agent is not ready until somebody has set the sysctls, and says which. Without the module it
/// can do nothing else in any mode. Told not to look, it is ready.
pub(crate) fn an_agent_on_a_bridge_that_escapes_is_not_ready() -> Result {
    if !possible(Wiring::Bridge, "an_agent_on_a_bridge_that_escapes_is_not_ready") {
        return Ok(());
    }
    let world = world(Wiring::Bridge, DENY_ALL)?;
    let netns = world.netns(&node("a"))?;
    let advice = [
        "on the bridge cni0 meets no rule",
        "modprobe br_netfilter",
        "sysctl -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1",
    ];
    let agent = Agent::start(netns, DENY_ALL, READ_ONLY, &["--bridge-netfilter", "require"])?;
    agent.until(503, &advice)?;
    escapes(&world)?;
    for (at, value) in [(0, "1"), (1, "1"), (1, "0")] {
        netns.sysctl(&[(SYSCTLS[at], value)])?;
        match netns.run(|| {
            SYSCTLS
                .iter()
                .all(|s| fs::read_to_string(format!("/proc/sys/net/{s}")).is_ok_and(|v| v.trim() == "1"))
        })? {
            true => {
                agent.until(200, &["ready"])?;
                is_held(&world)?;
            }
            false => agent.until(503, &advice)?,
        }
    }
    netns.sysctl(&SYSCTLS.map(|sysctl| (sysctl, "0")))?;
    drop(agent);

    let agent = Agent::start(netns, DENY_ALL, NO_MODULE, &[])?;
    agent.until(503, &["br_netfilter is not loaded", advice[1]])?;
    must(options(netns)?.is_empty(), "switched on for nothing")?;
    drop(agent);
    let agent = Agent::start(netns, DENY_ALL, NO_MODULE, &["--bridge-netfilter", "ignore"])?;
    agent.until(200, &["ready"])?;
    escapes(&world)
}

/// A bridge of somebody else's, beside pods that are routed, is nobody's business.
pub(crate) fn a_bridge_without_pods_is_left_alone() -> Result {
    if !possible(Wiring::Bridge, "a_bridge_without_pods_is_left_alone") {
        return Ok(());
    }
    let world = world(Wiring::Routed, DENY_ALL)?;
    let netns = world.netns(&node("a"))?;
    netns.ip(
        "link add cni0 type bridge\nlink set cni0 up\naddr add 172.17.0.1/16 dev cni0\n\
              link add port type veth peer name peer\nlink set port master cni0\nlink set port up\nlink set peer up\n",
    )?;
    for flag in ["auto", "require"] {
        let agent = Agent::start(netns, DENY_ALL, NO_MODULE, &["--bridge-netfilter", flag])?;
        agent.until(200, &["ready"])?;
        is_held(&world)?;
        must(options(netns)?.is_empty(), "somebody else's bridge was changed")?;
    }
    Ok(())
}
