//! `palisade compile -o json`: the allow sets of pods as data.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use policy_compiler::cluster::PodName;
use policy_compiler::diagnostics::Diagnostic;
use policy_compiler::policy::{Direction, PolicyName};
use policy_compiler::ports::PortSet;
use policy_compiler::table::{AllowSet, PodIndex, Table};
use serde::Serialize;

use super::ends::{Compiled, workload_name};
use super::output::{self, API_VERSION};

/// What `compile -o json` answers.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AllowSets<'a> {
    api_version: &'static str,
    kind: &'static str,
    pods: Vec<PodSets<'a>>,
    diagnostics: &'a [Diagnostic],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodSets<'a> {
    namespace: &'a str,
    name: &'a str,
    workload: Option<String>,
    node: Option<&'a str>,
    host_network: bool,
    addresses: &'a [IpAddr],
    ingress: &'a SideSets<'a>,
    egress: &'a SideSets<'a>,
}

#[derive(Serialize)]
struct SideSets<'a> {
    isolated: bool,
    policies: Vec<&'a PolicyName>,
    allow: Vec<Allow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit: Option<AuditSets<'a>>,
}

/// What audited policies would allow, where only they judge.
#[derive(Serialize)]
struct AuditSets<'a> {
    policies: Vec<&'a PolicyName>,
    allow: Vec<Allow>,
}

#[derive(Serialize)]
struct Allow {
    peers: PeerList,
    ports: PortSet,
}

#[derive(Default, Serialize)]
struct PeerList {
    pods: Vec<String>,
    cidrs: Vec<String>,
}

/// The allow sets of pods as JSON.
pub(crate) fn json(compiled: &Compiled, pods: &[PodIndex]) -> anyhow::Result<String> {
    let table = &compiled.table;
    let key = |pod: PodIndex, direction| (direction, table.half(direction).group_of(pod));
    let numbers = Numbers {
        ends: table
            .pods()
            .map(|(at, pod)| (at, compiled.pod_ends(pod).count()))
            .collect(),
        selectable: compiled.selectable_pods().count(),
    };
    let mut sides = BTreeMap::new();
    for pod in pods {
        for direction in Direction::BOTH {
            sides
                .entry(key(*pod, direction))
                .or_insert_with(|| side_sets(table, &numbers, *pod, direction));
        }
    }
    let pods = pods.iter().map(|index| {
        let pod = table.pod(*index);
        PodSets {
            namespace: &pod.name.namespace,
            name: &pod.name.name,
            workload: workload_name(pod),
            node: pod.node.as_deref(),
            host_network: pod.host_network,
            addresses: &pod.addresses,
            ingress: &sides[&key(*index, Direction::Ingress)],
            egress: &sides[&key(*index, Direction::Egress)],
        }
    });
    output::json(&AllowSets {
        api_version: API_VERSION,
        kind: "AllowSets",
        pods: pods.collect(),
        diagnostics: &compiled.diagnostics(),
    })
}

/// What allow sets are abbreviated by.
struct Numbers {
    /// How many ends every pod has.
    ends: BTreeMap<PodIndex, usize>,
    /// How many pods there are that a selector can match.
    selectable: usize,
}

/// The allow set of a pod; the same for every pod of its group.
fn side_sets<'a>(table: &'a Table, numbers: &Numbers, pod: PodIndex, direction: Direction) -> SideSets<'a> {
    let half = table.half(direction);
    let group = half.group_of(pod).map(|id| half.group(id));
    let names = |audited: bool| {
        let group = group.filter(|g| g.audited == audited);
        group.iter().flat_map(|g| table.policy_names(g)).collect()
    };
    let audit = table.audited_allow_set(pod, direction).map(|set| AuditSets {
        policies: names(true),
        allow: allow(table, numbers, set),
    });
    SideSets {
        isolated: group.is_some_and(|g| g.isolated),
        policies: names(false),
        allow: allow(table, numbers, table.allow_set(pod, direction)),
        audit,
    }
}

/// An allow set by ports: of each, the peers.
fn allow(table: &Table, numbers: &Numbers, set: AllowSet) -> Vec<Allow> {
    type Peers = (BTreeMap<PodName, Vec<Option<IpAddr>>>, Vec<IpNet>);
    let mut by_ports: BTreeMap<PortSet, Peers> = BTreeMap::new();
    for ((name, address), ports) in set.pods {
        by_ports
            .entry(ports)
            .or_default()
            .0
            .entry(name)
            .or_default()
            .push(address);
    }
    for (range, ports) in set.addresses {
        // A pod's address that is a cell of its own says nothing here: `pods` speaks of it.
        let is_pod =
            |cidr: &IpNet| cidr.prefix_len() == cidr.max_prefix_len() && table.addresses().pod(cidr.addr()).is_some();
        let cidrs = range.cidrs().into_iter().filter(|cidr| !is_pod(cidr));
        by_ports.entry(ports).or_default().1.extend(cidrs);
    }
    let by_ports = by_ports.into_iter().map(|(ports, (pods, mut cidrs))| {
        let mut names = Vec::new();
        for (name, addresses) in pods {
            let all = table.pod_index(&name).and_then(|at| numbers.ends.get(&at));
            if Some(&addresses.len()) == all {
                names.push(name.to_string());
            } else {
                // Only some of the pod's addresses: an address of a pod means that pod, through that address.
                cidrs.extend(addresses.into_iter().flatten().map(IpNet::from));
            }
        }
        if names.len() == numbers.selectable && !names.is_empty() {
            names = vec!["*".to_owned()];
        }
        cidrs.sort();
        let peers = PeerList {
            pods: names,
            cidrs: cidrs.iter().map(ToString::to_string).collect(),
        };
        Allow { peers, ports }
    });
    by_ports.collect()
}

#[cfg(test)]
mod tests {
    use policy_compiler::cluster::Endpoint;
    use policy_compiler::ports::{PortRange, Protocol};
    use policy_compiler::testing::{self, Tiers};
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// The ports that a direction of the JSON form allows with a peer, read as docs/cli.md says.
    fn ports(side: &Value, peer: &Endpoint, selectable: bool, known: bool) -> PortSet {
        let mut out = PortSet::none();
        for allow in side["allow"].as_array().expect("a list") {
            let texts = |value: &Value| -> Vec<String> {
                let list = value.as_array().expect("a list").iter();
                list.map(|v| v.as_str().expect("a string").to_owned()).collect()
            };
            let (pods, cidrs) = (texts(&allow["peers"]["pods"]), texts(&allow["peers"]["cidrs"]));
            let by_name =
                peer.pod().is_some_and(|p| pods.contains(&p.name.to_string())) || (selectable && pods == ["*"]);
            let by_address = cidrs.iter().map(|c| c.parse::<IpNet>().expect("a CIDR")).any(|cidr| {
                let single = cidr.prefix_len() == cidr.max_prefix_len();
                peer.address().is_some_and(|a| cidr.contains(&a)) && (single || !known)
            });
            if by_name || by_address {
                let ports = texts(&allow["ports"]);
                out = ports.iter().fold(out, |set, text| set.union(&read(text)));
            }
        }
        out
    }

    fn read(text: &str) -> PortSet {
        let protocol = |text: &str| text.parse::<Protocol>().expect("a protocol");
        match (text, text.split_once('/')) {
            ("all", _) => PortSet::all(),
            ("other", _) => PortSet::other(),
            (name, None) => PortSet::of(protocol(name), PortRange::ALL),
            (_, Some((range, name))) => {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                let [first, last] = [first, last].map(|n| n.parse().expect("a number"));
                PortSet::of(protocol(name), PortRange { first, last })
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        /// Read back by its documentation, the JSON form says of every pod and every peer what the table says.
        #[test]
        fn the_json_form_says_what_the_table_says(cluster in testing::cluster(Tiers::All)) {
            let compiled = Compiled::new(cluster);
            let table = &compiled.table;
            let all: Vec<PodIndex> = table.pods().map(|(at, _)| at).collect();
            let json: Value = serde_json::from_str(&json(&compiled, &all).expect("JSON")).expect("JSON");
            let peers = testing::endpoints(&compiled.cluster, table);
            for (pod, found) in compiled.pods().zip(json["pods"].as_array().expect("a list")) {
                prop_assert_eq!(&found["name"], &*pod.name.name);
                for direction in Direction::BOTH {
                    let audit = &found[direction.to_string()]["audit"];
                    let index = table.pod_index(&pod.name).expect("a live pod");
                    let audited = table.half(direction).group_of(index).filter(|id| table.half(direction).group(*id).audited);
                    prop_assert_eq!(audit.is_object(), audited.is_some(), "{} {}", pod.name, direction);
                    for peer in &peers {
                        if peer.address().is_none() && peer.pod().is_none() {
                            continue;
                        }
                        let known = peer.pod().is_some();
                        let found = ports(&found[direction.to_string()], peer, known, known);
                        let expected = table.side(direction, &Endpoint::Pod(pod.clone(), None), peer);
                        prop_assert_eq!(found, expected, "{} {} {}", pod.name, direction, peer);
                        if let Some(group) = audited {
                            let would = table.half(direction).ports(group, table.class_of(direction, peer));
                            prop_assert_eq!(&ports(audit, peer, known, known), would, "audit of {} {} {}", pod.name, direction, peer);
                        }
                    }
                }
            }
        }
    }
}
