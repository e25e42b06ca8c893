//! Names mean what they stand for: every pattern of an answer, read back as docs/cli.md says, is the ends that changed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use policy_compiler::cluster::{Cluster, Exemption, Workload};
use policy_compiler::testing::{self, Tiers};
use proptest::prelude::*;
use serde_json::Value;

use super::*;

/// Gives some pods a workload, by their label.
fn with_workloads(mut cluster: Cluster) -> Cluster {
    for pod in cluster.pods.values_mut() {
        let workload = pod.labels.get("app").filter(|app| !app.is_empty()).map(|app| Workload {
            kind: "deployment".into(),
            name: app.clone(),
        });
        Arc::make_mut(pod).workload = workload;
    }
    cluster
}

fn version(cluster: Cluster) -> Version {
    let compiled = Compiled::new(cluster.clone());
    let loaded = Loaded {
        cluster,
        ..Loaded::default()
    };
    (loaded, compiled)
}

fn texts(party: &Value, field: &str) -> Vec<String> {
    let list = party[field].as_array().into_iter().flatten();
    list.map(|text| text.as_str().expect("a text").to_owned()).collect()
}

fn matches(pattern: &str, pod: &Pod) -> bool {
    let name = pod.name.to_string();
    pattern == "*" || pattern == name || pattern == title(pod) || pattern == format!("{}/*", pod.name.namespace)
}

/// Whether a party of the JSON form means an end.
fn means(party: &Value, end: &End, nodes: &BTreeMap<IpAddr, String>) -> bool {
    let any = |field: &str, pod: &Pod| texts(party, field).iter().any(|pattern| matches(pattern, pod));
    match &end.after {
        Endpoint::Pod(pod, _) if pod.host_network => {
            any("hostNetworkPods", pod) || texts(party, "podAddresses").contains(&words::address_name(end))
        }
        Endpoint::Pod(pod, _) => {
            let whole = any("pods", pod) && !any("exceptPods", pod);
            whole || texts(party, "podAddresses").contains(&words::address_name(end))
        }
        Endpoint::Address(address) => {
            let cidrs = texts(party, "cidrs");
            let cidrs = cidrs.iter().map(|cidr| cidr.parse::<IpNet>().expect("a CIDR"));
            let mut within = cidrs.filter(|cidr| cidr.contains(address));
            match nodes.get(address) {
                Some(node) => {
                    let names = texts(party, "nodes");
                    let single = within.any(|cidr| cidr.prefix_len() == cidr.max_prefix_len());
                    single || names.iter().any(|name| name == "*" || name == node)
                }
                None => within.next().is_some(),
            }
        }
    }
}

fn check(before: Cluster, after: Cluster) -> Result<(), TestCaseError> {
    let (before, after) = (version(with_workloads(before)), version(with_workloads(after)));
    let diff = Diff::new(&before, &after);
    let mut nodes = BTreeMap::new();
    for version in [&before, &after] {
        let book = version.1.table.addresses();
        nodes.extend(book.node_addresses().map(|(address, node)| (address, node.to_string())));
    }
    let json: Value = serde_json::from_str(&diff.json().expect("JSON")).expect("JSON");
    let lists = [
        (&diff.differences.opened, &json["opened"]),
        (&diff.differences.closed, &json["closed"]),
        (&diff.differences.told, &json["audit"]["told"]),
        (&diff.differences.untold, &json["audit"]["noLongerTold"]),
    ];
    let ends = diff.words.ends();
    for (blocks, entries) in lists {
        let entries = entries.as_array().expect("a list");
        prop_assert_eq!(blocks.len(), entries.len());
        for (block, entry) in blocks.iter().zip(entries) {
            for (of_block, others, party) in [
                (&block.from, &block.to, &entry["from"]),
                (&block.to, &block.from, &entry["to"]),
            ] {
                for (at, end) in ends.iter().enumerate() {
                    // An address that can talk with none of the others may be meant or not.
                    let possible = others.iter().any(|other| ends[*other].after.same_family(&end.after));
                    let expected = of_block.binary_search(&at).is_ok();
                    if possible || expected {
                        prop_assert_eq!(means(party, end, &nodes), expected, "{} of {}", end.after, party);
                    }
                }
            }
            prop_assert!(entry["example"].is_object());
        }
    }
    check_pairs(&diff, lists, &nodes)?;
    // The forms for people say something of every list that is not empty.
    let (text, markdown) = (diff.text(), diff.markdown("palisade diff"));
    for (list, heading) in [
        (&diff.differences.opened, "Opened"),
        (&diff.differences.closed, "Closed"),
    ] {
        prop_assert_eq!(text.contains(heading), !list.is_empty());
        let word = format!("**{heading}**: ");
        prop_assert_eq!(markdown.contains(&word), !list.is_empty());
    }
    Ok(())
}

/// Whether every pair of ends that the parties of an entry mean, over its family, changed as the two evaluators say, and no other.
fn check_pairs(
    diff: &Diff<'_>,
    lists: [(&Vec<Block>, &Value); 4],
    nodes: &BTreeMap<IpAddr, String>,
) -> Result<(), TestCaseError> {
    let ends = diff.words.ends();
    let meant = |party: &Value| -> Vec<bool> { ends.iter().map(|end| means(party, end, nodes)).collect() };
    let lists = lists.map(|(blocks, entries)| {
        let entries = blocks.iter().zip(entries.as_array().expect("a list"));
        let entries =
            entries.map(|(b, entry)| (b, meant(&entry["from"]), meant(&entry["to"]), entry["family"].as_str()));
        entries.collect::<Vec<_>>()
    });
    let family = |end: &End| end.after.address().map(|a| if a.is_ipv4() { "IPv4" } else { "IPv6" });
    for (at_from, from) in ends.iter().enumerate() {
        for (at_to, to) in ends.iter().enumerate() {
            for traffic in testing::traffics() {
                let [was, is] = [
                    diff.evaluators[0].decide(&from.before, &to.before, traffic),
                    diff.evaluators[1].decide(&from.after, &to.after, traffic),
                ];
                if was.no_common_family || is.no_common_family || was.exemption == Some(Exemption::Itself) {
                    break;
                }
                let own_node = was.exemption != is.exemption;
                if !own_node && was.exemption.is_some() {
                    break;
                }
                let told = [&was, &is].map(|d| d.allowed && !d.would_be_allowed());
                let expected = [
                    is.allowed && !was.allowed,
                    was.allowed && !is.allowed,
                    told[1] && !told[0],
                    told[0] && !told[1],
                ];
                for (entries, expected) in lists.iter().zip(expected) {
                    let speaks = entries.iter().filter(|(block, from_means, to_means, only)| {
                        let over = only.is_none_or(|only| [from, to].iter().all(|end| family(end) == Some(only)));
                        over && block.own_node == own_node
                            && block.ports.contains(traffic)
                            && from_means[at_from]
                            && to_means[at_to]
                    });
                    prop_assert_eq!(
                        speaks.count(),
                        usize::from(expected),
                        "{} -> {} on {}",
                        &from.after,
                        &to.after,
                        traffic
                    );
                }
            }
        }
    }
    Ok(())
}

/// Three pods, and policies of the first and the second that admit some of their addresses.
fn families(pods: [u8; 3], ingress: u8, egress: u8) -> Cluster {
    let address = |number: usize, v4: bool| {
        if v4 {
            format!("10.0.0.{number}")
        } else {
            format!("fd00::{number}")
        }
    };
    let mut text = String::new();
    for (number, has) in pods.into_iter().enumerate() {
        let own = [true, false].into_iter().filter(|v4| has & (1 << u8::from(*v4)) != 0);
        let own: Vec<String> = own.map(|v4| format!("{{ip: \"{}\"}}", address(number, v4))).collect();
        text += &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: x, name: p{number}, labels: {{app: p{number}}}}}\nstatus: {{podIPs: [{}]}}\n---\n",
            own.join(", ")
        );
    }
    for (name, direction, peer, mask) in [("p0", "ingress", "from", ingress), ("p1", "egress", "to", egress)] {
        let some = (0..6).filter(|bit| mask & (1 << bit) != 0);
        let some = some.map(|bit| (address(bit / 2, bit % 2 == 0), if bit % 2 == 0 { 32 } else { 128 }));
        let blocks: Vec<String> = some
            .map(|(a, length)| format!("{{ipBlock: {{cidr: \"{a}/{length}\"}}}}"))
            .collect();
        // Without any peer, a rule would admit all.
        let rules = if blocks.is_empty() {
            String::new()
        } else {
            format!("{{{peer}: [{}]}}", blocks.join(", "))
        };
        text += &format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: x, name: {name}}}\nspec: {{podSelector: {{matchLabels: {{app: {name}}}}}, policyTypes: [{}], {direction}: [{rules}]}}\n---\n",
            if name == "p0" { "Ingress" } else { "Egress" }
        );
    }
    crate::manifests::parse("test", &text).expect("sound manifests").cluster
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn names_mean_the_ends_that_changed(before in testing::cluster(Tiers::All), after in testing::cluster(Tiers::All)) {
        check(before, after)?;
    }

    #[test]
    fn names_mean_the_ends_that_a_history_changed((before, events) in testing::history(5)) {
        let mut after = before.clone();
        events.into_iter().for_each(|event| event.apply_to(&mut after));
        check(before, after)?;
    }

    /// Policies that tell the families of a pod apart.
    #[test]
    fn names_mean_the_families_that_changed(pods in prop::array::uniform3(1u8..4), before in (0u8..64, 0u8..64), after in (0u8..64, 0u8..64)) {
        check(families(pods, before.0, before.1), families(pods, after.0, after.1))?;
    }
}

/// A cluster of two thousand pods: few lines, and what they say is so.
#[test]
fn a_large_cluster_is_told_in_few_lines() {
    let before = policy_compiler::generate::cluster(&policy_compiler::generate::Spec::realistic(2_000));
    let mut after = before.clone();
    let gone: Vec<_> = after.policies.keys().step_by(50).cloned().collect();
    gone.iter().for_each(|key| drop(after.policies.remove(key)));
    let (before, after) = (version(before), version(after));
    let diff = Diff::new(&before, &after);
    assert!(!diff.differences.opened.is_empty());
    assert_eq!(diff.objects.policies.len(), gone.len());
    for block in diff.differences.opened.iter().chain(&diff.differences.closed) {
        let example = diff.example(block).expect("an example");
        let opened = diff.differences.opened.contains(block);
        let [was, is] = [&example.before, &example.after].map(|j| j.verdict == Verdict::Allow);
        assert_eq!((was, is), (!opened, opened), "{} -> {}", example.from, example.to);
    }
    // Four lines for an entry, and a bound on each list.
    assert!(diff.text().lines().count() < 300, "{}", diff.text());
    let comment = diff.markdown("palisade diff");
    assert!(comment.len() < 65_536, "{comment}");
}
