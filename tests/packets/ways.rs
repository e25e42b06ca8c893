//! Ways that packets take, in both families, and what policy makes of them: without policy every way must be answered, so
//! that silence with a policy is the policy's work.

use std::net::{IpAddr, SocketAddr};

use palisade::nft::Mode;
use palisade::sandbox::{Expect, Options, Outcome, Place, Probe, Wiring};
use policy_compiler::ports::Traffic;

use crate::shop::{CLUSTER, SERVICES};
use crate::world::{Family, Result, World, marks, must, possible, with_marks};

/// Beside the shop: DNS and an ingress controller in namespaces of their own, and a host-network pod on each node.
const OTHERS: &str = "
---
apiVersion: v1
kind: Pod
metadata: {name: dns, namespace: kube-system, labels: {app: dns}}
spec:
  nodeName: b
  containers: [{name: main, image: i, ports: [{containerPort: 53}, {containerPort: 53, protocol: UDP}]}]
---
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: kube-system}
spec:
  selector: {app: dns}
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, 'fd00:10:96::10']
  ports: [{name: udp, port: 53, protocol: UDP}, {name: tcp, port: 53}]
---
apiVersion: v1
kind: Pod
metadata: {name: controller, namespace: ingress, labels: {app: controller}}
spec: {nodeName: b, containers: [{name: main, image: i, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host-a, namespace: shop, labels: {app: host}}
spec: {nodeName: a, hostNetwork: true, containers: [{name: main, image: i, ports: [{containerPort: 9100}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host-b, namespace: shop, labels: {app: host}}
spec: {nodeName: b, hostNetwork: true, containers: [{name: main, image: i, ports: [{containerPort: 9100}]}]}
";

/// A port that the client and the nodes listen on as well.
pub(crate) const EVERYWHERE: u16 = 9999;

/// The client's addresses: the first is its usual one.
pub(crate) const CLIENT: [[&str; 2]; 2] = [["192.0.2.10", "2001:db8:ffff::10"], ["192.0.2.20", "2001:db8:ffff::20"]];

/// One way: who sends what where, and who answers when policy lets it pass.
pub(crate) struct Way {
    pub(crate) from: Place,
    /// The sender's address, when it is not its first.
    pub(crate) source: Option<IpAddr>,
    pub(crate) to: IpAddr,
    pub(crate) traffic: Traffic,
    pub(crate) answerer: Place,
}

/// From a place to an address, answered by the holder of that address or whom it stands for.
pub(crate) fn way(from: &Place, to: IpAddr, traffic: Traffic, answerer: &Place) -> Way {
    Way {
        from: from.clone(),
        source: None,
        to,
        traffic,
        answerer: answerer.clone(),
    }
}

/// A stage: policies, and for each way of a family whether it is open (`+`) or not (`-`).
pub(crate) type Stage<'a> = (&'a str, &'a str);

/// Runs a test over routed links and, at the same time, over bridges and an overlay.
pub(crate) fn over_each(name: &str, test: impl Fn(World, Wiring) -> Result + Sync) -> Result {
    over_each_of(&format!("{CLUSTER}{SERVICES}{OTHERS}"), name, test)
}

/// The same with a cluster of the test's own.
pub(crate) fn over_each_of(cluster: &str, name: &str, test: impl Fn(World, Wiring) -> Result + Sync) -> Result {
    let play = |wiring| -> std::result::Result<(), String> {
        let run = || -> Result {
            let options = Options {
                client: CLIENT
                    .iter()
                    .flatten()
                    .map(|a| a.parse())
                    .collect::<std::result::Result<_, _>>()?,
                extra_ports: [(policy_compiler::ports::Protocol::Tcp, EVERYWHERE)].into(),
                wiring,
            };
            let world = World::wired(cluster, Mode::Enforce, &options)?;
            test(world, wiring)
        };
        run().map_err(|error| format!("over {wiring:?}: {error}"))
    };
    let wirings = [Wiring::Routed, Wiring::Overlay];
    // What a thread's worlds are built with, its threads do not know.
    let marks = marks();
    std::thread::scope(|scope| {
        let plays: Vec<_> = (wirings.into_iter())
            .filter(|wiring| possible(*wiring, &format!("{name} over {wiring:?}")))
            .map(|wiring| scope.spawn(move || with_marks(marks, || play(wiring))))
            .collect();
        let ended = plays
            .into_iter()
            .map(|play| play.join().unwrap_or_else(|_| Err("a panic".to_owned())));
        let failures: Vec<String> = ended.filter_map(std::result::Result::err).collect();
        must(failures.is_empty(), failures.join("\n"))
    })
}

/// Sends all ways without policy, when all must be answered, and then with the policies of each stage.
#[track_caller]
pub(crate) fn judge(
    world: &mut World,
    ways: impl Fn(&World, Family) -> Result<Vec<Way>>,
    stages: &[Stage<'_>],
) -> Result {
    let caller = std::panic::Location::caller();
    let mut all = Vec::new();
    for family in Family::BOTH {
        all.extend(ways(world, family)?);
    }
    let open = "+".repeat(all.len() / 2);
    for (at, (policies, verdicts)) in std::iter::once(&("", open.as_str())).chain(stages).enumerate() {
        must(
            verdicts.len() * 2 == all.len(),
            format!("{caller}: {verdicts} are not the verdicts of all ways"),
        )?;
        match *policies {
            "" => world.enforce(&Default::default()).map(|_| ())?,
            policies => world.policies(policies)?,
        }
        let expected: Vec<Outcome> = (all.iter().zip(verdicts.chars().cycle()))
            .map(|(way, verdict)| match verdict {
                '+' => Outcome::Answered(way.answerer.to_string()),
                _ => Outcome::Silent,
            })
            .collect();
        let probes: Vec<Probe> = (all.iter().zip(&expected))
            .map(|(way, expected)| Probe {
                from: way.from.clone(),
                source: way.source,
                to: way.to,
                traffic: way.traffic,
                expect: if *expected == Outcome::Silent {
                    Expect::Silence
                } else {
                    Expect::Answer
                },
            })
            .collect();
        let outcomes = world.sandbox.probe_all(&probes, |_| {})?;
        let differences: Vec<String> = (probes.iter().zip(&expected).zip(&outcomes))
            .filter(|((_, expected), outcome)| expected != outcome)
            .map(|((probe, expected), outcome)| {
                format!(
                    "  {} to {} on {}: expected {expected}, saw {outcome}",
                    probe.from, probe.to, probe.traffic
                )
            })
            .collect();
        let found = format!("{caller}: stage {at}:\n{}", differences.join("\n"));
        must(differences.is_empty(), found)?;
    }
    Ok(())
}

/// The ingress of the pods with that label admits these peers (written as a list's content) and nobody else.
pub(crate) fn ingress(app: &str, from: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: ingress-{app}, namespace: shop}}\n\
         spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [Ingress], ingress: [{{from: [{from}]}}]}}\n"
    )
}

/// The egress of the pods with that label goes to these peers and to nobody else.
pub(crate) fn egress(app: &str, to: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: egress-{app}, namespace: shop}}\n\
         spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [Egress], egress: [{{to: [{to}]}}]}}\n"
    )
}

/// Peers: just these addresses.
pub(crate) fn blocks<A: ToString>(addresses: &[A]) -> String {
    let block = |address: &A| {
        let address = address.to_string();
        let length = if address.contains(':') { 128 } else { 32 };
        format!("{{ipBlock: {{cidr: '{address}/{length}'}}}}")
    };
    addresses.iter().map(block).collect::<Vec<_>>().join(", ")
}

/// Has a node hand what comes to that address and port to a back end, as kube-proxy does; with `masquerade` it leaves
/// with an address of the node's own.
pub(crate) fn translate(
    world: &World,
    node: &Place,
    from: (SocketAddr, &str),
    to: SocketAddr,
    masquerade: bool,
) -> Result {
    let (from, protocol) = from;
    let family = if from.is_ipv4() { "ip" } else { "ip6" };
    let mark = if masquerade { "meta mark set 0x4000 " } else { "" };
    world.netns(node)?.nft(&format!(
        "table {family} translate_{port} {{\n\
         chain prerouting {{ type nat hook prerouting priority dstnat - 1;\n\
         {family} daddr {} {protocol} dport {port} {mark}dnat to {to}\n}}\n\
         chain postrouting {{ type nat hook postrouting priority srcnat - 1;\nmeta mark 0x4000 masquerade\n}}\n}}\n",
        from.ip(),
        port = from.port(),
    ))?;
    Ok(())
}
