//! Ranges of the nodes' pods, and which addresses in them nobody knows.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use palisade::nft::{Settings, UnknownPods};
use policy_compiler::cluster::{Cluster, Node};
use policy_compiler::compile::Subjects;
use proptest::prelude::*;
use proptest::sample::subsequence;

/// Whether an address lies in a range in which every pod must be known, and is no pod's or node's; worked out pod by pod.
pub(crate) fn unknown(cluster: &Cluster, subjects: &Subjects, settings: Settings, address: IpAddr) -> bool {
    let ours = |node: &&Arc<Node>| *subjects == Subjects::All || *subjects == Subjects::Node(node.name.clone());
    let mut ranges = cluster.nodes.values().filter(ours).flat_map(|node| &node.pod_cidrs);
    let of_pod = cluster
        .pods
        .values()
        .any(|pod| !pod.ended && (!pod.host_network || pod.node.is_some()) && pod.addresses.contains(&address));
    let of_node = cluster.nodes.values().any(|node| node.addresses.contains(&address));
    let within = ranges.any(|range| range.contains(&address));
    settings.unknown_pods == UnknownPods::Drop && within && !of_pod && !of_node
}

/// Ranges of two nodes; none half of the time.
pub(crate) fn ranges() -> impl Strategy<Value = [Vec<IpNet>; 2]> {
    let all: Vec<IpNet> = [
        "10.0.0.0/30",
        "10.0.0.0/8",
        "10.0.0.3/32",
        "10.0.1.7/24",
        "172.18.0.0/31",
        "0.0.0.0/0",
        "fd00::/126",
        "fd00::2/127",
        "fd00:1::1/128",
        "::/0",
    ]
    .map(|text| text.parse().unwrap())
    .to_vec();
    let of_one = move || prop_oneof![Just(Vec::new()), subsequence(all.clone(), 1..=3)];
    [of_one(), of_one()]
}

pub(crate) fn ranged(node: &Arc<Node>, ranges: &[Vec<IpNet>; 2]) -> Arc<Node> {
    let pod_cidrs = ranges[usize::from(&*node.name != "node-1")].clone();
    Arc::new(Node {
        pod_cidrs,
        ..(**node).clone()
    })
}

/// A cluster whose nodes have these ranges.
pub(crate) fn with_ranges(mut cluster: Cluster, ranges: &[Vec<IpNet>; 2]) -> Cluster {
    cluster.nodes.values_mut().for_each(|node| *node = ranged(node, ranges));
    cluster
}

pub(crate) fn unknown_pods(drops: bool) -> UnknownPods {
    match drops {
        true => UnknownPods::Drop,
        false => UnknownPods::Allow,
    }
}
