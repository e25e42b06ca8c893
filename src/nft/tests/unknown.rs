//! `--unknown-pods drop`, by example.

use std::sync::Arc;

use super::*;
use crate::nft::{Mode, UnknownPods};

/// The shop, on a node whose pods have addresses of these ranges.
fn ranged_shop() -> Cluster {
    let mut cluster = shop();
    cluster.add_node(Node {
        name: "node-1".into(),
        labels: Labels::default(),
        // One in the range, as where the node is the pods' gateway.
        addresses: vec!["192.168.0.1".parse().unwrap(), "10.0.0.1".parse().unwrap()],
        pod_cidrs: vec!["10.0.0.1/29".parse().unwrap(), "fd00:0:0:1::/64".parse().unwrap()],
    });
    cluster.add_pod(pod("db", 1, "10.0.0.4"));
    cluster
}

fn dropping(mode: Mode) -> Settings {
    Settings {
        unknown_pods: UnknownPods::Drop,
        ..Settings::from(mode)
    }
}

fn lines(ruleset: &Ruleset, chain: ChainName) -> Vec<String> {
    let rules = ruleset.chains.get(&chain).map(Vec::as_slice).unwrap_or_default();
    rules
        .iter()
        .map(|rule| crate::nft::text::Line(rule).to_string())
        .collect()
}

#[test]
fn unknown_pods_are_told_by_range_and_address() {
    let table = compile(&ranged_shop(), &Subjects::Node("node-1".into()));
    let ruleset = render(&table, dropping(Mode::Enforce));
    let forward = lines(&ruleset, ChainName::Forward);
    assert_eq!(
        forward[..4],
        [
            "ip saddr 10.0.0.0/29 ip saddr != @known4 jump unknown comment \"a pod of this node that nobody knows yet\"",
            "ip daddr 10.0.0.0/29 ip daddr != @known4 jump unknown",
            "ip6 saddr fd00:0:0:1::/64 ip6 saddr != @known6 jump unknown",
            "ip6 daddr fd00:0:0:1::/64 ip6 daddr != @known6 jump unknown",
        ]
    );
    let known: Vec<String> = (ruleset.sets[&SetName::Known(Family::V4)].iter())
        .map(|(key, element)| crate::nft::text::element(key, element))
        .collect();
    assert_eq!(
        known,
        [
            "10.0.0.1", // the node
            "10.0.0.2", "10.0.0.3", "10.0.0.4",
        ]
    );
    let discovery = "ip6 hoplimit 255 icmpv6 type 133-137 return comment \"neighbour discovery is never dropped\"";
    assert_eq!(
        lines(&ruleset, ChainName::Unknown),
        [discovery, "jump record", "counter drop"]
    );
    let audited = render(&table, dropping(Mode::Audit));
    let counted = "counter return comment \"audit mode: counted, not dropped\"";
    assert_eq!(lines(&audited, ChainName::Unknown), [discovery, "jump record", counted]);

    // Off, or of a node that says nothing of its ranges, it costs nothing.
    let off = render(&table, Settings::default());
    let without = render(&compile(&shop(), &Subjects::All), dropping(Mode::Enforce));
    for ruleset in [off, without] {
        assert!(!ruleset.chains.contains_key(&ChainName::Unknown));
        assert!(!ruleset.sets.keys().any(|set| matches!(set, SetName::Known(_))));
        assert_eq!(lines(&ruleset, ChainName::Forward), forward[4..]);
    }
}

#[test]
fn a_pod_becomes_known_with_its_policy_and_a_range_with_its_node() {
    let mut cluster = ranged_shop();
    let mut world = World::with(&cluster, dropping(Mode::Enforce));
    cluster.add_pod(pod("db", 2, "10.0.0.5"));
    let transaction = world.follow(&cluster);
    let text = transaction.to_string();
    let isolated = "add element inet palisade in4_isolated { 10.0.0.5 comment \"shop/db-2\" }";
    let steps: Vec<&str> = text.split("\n\n").collect();
    let [judged, known] = steps.as_slice() else {
        panic!("{text}")
    };
    assert!(judged.contains(isolated) && !judged.contains("known4"), "{text}");
    assert_eq!(known.trim(), "add element inet palisade known4 { 10.0.0.5 }");
    cluster.pods.remove(&pod("db", 2, "10.0.0.5").name);
    let text = world.follow(&cluster).to_string();
    let steps: Vec<&str> = text.split("\n\n").collect();
    let [unknown, rest] = steps.as_slice() else {
        panic!("{text}")
    };
    assert_eq!(unknown.trim(), "delete element inet palisade known4 { 10.0.0.5 }");
    assert!(
        rest.contains("delete element inet palisade in4_isolated { 10.0.0.5 }"),
        "{text}"
    );

    let ended = cluster
        .pods
        .values_mut()
        .find(|pod| &*pod.name.name == "web-1")
        .unwrap();
    Arc::make_mut(ended).ended = true;
    let text = world.follow(&cluster).to_string();
    assert_eq!(text.trim(), "delete element inet palisade known4 { 10.0.0.3 }");

    let node = cluster.nodes.values_mut().next().unwrap();
    Arc::make_mut(node).pod_cidrs = vec!["10.0.0.0/30".parse().unwrap()];
    let text = world.follow(&cluster).to_string();
    assert!(
        text.contains("ip daddr 10.0.0.0/30 ip daddr != @known4 jump unknown"),
        "{text}"
    );
    assert!(text.contains("delete set inet palisade known6"), "{text}");

    cluster.nodes.clear();
    let text = world.follow(&cluster).to_string();
    assert!(text.contains("delete chain inet palisade unknown"), "{text}");
}
