//! `palisade compile`: who may reach every pod, and whom it may reach, on which ports. Text speaks in selectors and
//! workloads; JSON lists the allow sets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use policy_compiler::cluster::{Pod, PodName};
use policy_compiler::diagnostics::{Diagnostic, diagnose};
use policy_compiler::labels::{NAMESPACE_NAME_LABEL, Operator};
use policy_compiler::policy::{
    Action, Direction, NamespaceScope, Peer, Peers, PodSelection, Policy, PolicyName, PortMatch, Ports, Rule,
};
use policy_compiler::ports::PortSet;
use policy_compiler::table::{GroupId, PodIndex, Table};
use serde::Serialize;

use super::describe::{Describer, join, title};
use super::ends::{Compiled, workload_name};
use super::output::{self, API_VERSION, Style, columns, count};

/// The allow sets of pods in words.
pub(crate) fn text(compiled: &Compiled, pods: &[PodIndex]) -> String {
    let table = &compiled.table;
    let describer = Describer::new(compiled);
    // Replicas of a workload stand together where the same policies judge them.
    type Groups = [Option<GroupId>; 2];
    let mut units: BTreeMap<(String, Groups), Vec<PodIndex>> = BTreeMap::new();
    let mut host_network = Vec::new();
    for index in pods {
        let pod = table.pod(*index);
        if pod.host_network {
            host_network.push(pod);
            continue;
        }
        let groups = Direction::BOTH.map(|d| table.half(d).group_of(*index));
        units.entry((title(pod), groups)).or_default().push(*index);
    }
    let mut sides = Sides {
        compiled,
        describer: &describer,
        known: BTreeMap::new(),
    };
    let mut out = String::new();
    let mut open: Vec<&Arc<Pod>> = Vec::new();
    for ((_, groups), members) in &units {
        let members: Vec<&Arc<Pod>> = members.iter().map(|m| table.pod(*m)).collect();
        if groups == &[None, None] {
            open.extend(members);
            continue;
        }
        let names = describer.pods(members.iter().copied());
        let _ = writeln!(out, "{}", Style::Bold.paint(&names.join(", ")));
        for (direction, group) in Direction::BOTH.into_iter().zip(groups) {
            out.push_str(&sides.side(direction, *group, members[0]));
        }
        out.push('\n');
    }
    if !open.is_empty() {
        let _ = writeln!(
            out,
            "{}",
            Style::Bold.paint("Selected by no policy, so everything is allowed both ways")
        );
        for name in describer.pods(open) {
            let _ = writeln!(out, "  {name}");
        }
        out.push('\n');
    }
    if !host_network.is_empty() {
        let heading = "On the host network, where policy never applies";
        let _ = writeln!(out, "{}", Style::Bold.paint(heading));
        for name in describer.pods(host_network) {
            let _ = writeln!(out, "  {name}");
        }
        out.push('\n');
    }
    out
}

/// Puts one direction after the other into words.
struct Sides<'c> {
    compiled: &'c Compiled,
    describer: &'c Describer<'c>,
    /// Few peers stand in many policies, and finding out whom each stands for takes a look at every pod.
    known: BTreeMap<Option<Peer>, PeerWords>,
}

impl Sides<'_> {
    /// One direction of pods that the same policies judge.
    fn side(&mut self, direction: Direction, group: Option<GroupId>, subject: &Arc<Pod>) -> String {
        let table = &self.compiled.table;
        let group = group.map(|id| table.half(direction).group(id));
        let policies: Vec<&Arc<Policy>> = group
            .iter()
            .flat_map(|g| &g.policies)
            .map(|at| table.policy(*at))
            .collect();
        let heading = format!("{:7}", direction.to_string());
        if policies.is_empty() {
            return format!("  {heading}  not isolated: {}\n", Style::Good.paint("everything"));
        }
        let mut out = String::new();
        let (isolating, judging): (Vec<_>, Vec<_>) = policies.iter().partition(|p| p.isolates(direction));
        let names = |policies: &[&Arc<Policy>]| policies.iter().map(|p| p.name.to_string()).collect::<Vec<_>>();
        if isolating.is_empty() {
            let _ = writeln!(out, "  {heading}  not isolated");
        } else {
            let _ = writeln!(out, "  {heading}  isolated by {}", names(&isolating).join(", "));
        }
        if !judging.is_empty() {
            let _ = writeln!(out, "           also judged by {}", names(&judging).join(", "));
        }
        let word = match direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        let mut rows = Vec::new();
        for (peer, ports) in admitted(&isolating, direction) {
            let ports: Vec<String> = ports.iter().map(|p| port_words(p, direction, subject)).collect();
            let (compiled, describer) = (self.compiled, self.describer);
            let words = |peer: &Option<Peer>| peer_words(compiled, describer, peer.as_ref());
            let known = self.known.entry(peer).or_insert_with_key(words);
            let (words, now) = known.clone();
            rows.push(vec![
                (format!("{word} {words}"), Style::Plain),
                (ports.join(", "), Style::Good),
                (now, Style::Dim),
            ]);
        }
        if rows.is_empty() && !isolating.is_empty() {
            rows.push(vec![(format!("{word} nowhere"), Style::Bad)]);
        }
        out.push_str(&columns(4, &rows));
        out
    }
}

/// What rules admit, by peer (none: anywhere), in the order in which the rules first name it. All ports are one empty list.
fn admitted(policies: &[&Arc<Policy>], direction: Direction) -> Vec<(Option<Peer>, Vec<PortWords>)> {
    let mut out: Vec<(Option<Peer>, Vec<PortWords>)> = Vec::new();
    let mut add = |peer: Option<Peer>, rule: &Rule| {
        let ports = match &rule.ports {
            Ports::All => vec![PortWords::All],
            Ports::Listed(list) => list.iter().cloned().map(PortWords::One).collect(),
        };
        match out.iter_mut().find(|(known, _)| *known == peer) {
            Some((_, known)) => known.extend(ports),
            None => out.push((peer, ports)),
        }
    };
    let rules = policies.iter().filter_map(|p| p.rules(direction)).flatten();
    for rule in rules.filter(|r| r.action == Action::Accept) {
        match &rule.peers {
            Peers::All => add(None, rule),
            Peers::Listed(peers) => peers.iter().for_each(|peer| add(Some(peer.clone()), rule)),
        }
    }
    for (_, ports) in &mut out {
        ports.sort();
        ports.dedup();
        if ports.first() == Some(&PortWords::All) {
            ports.truncate(1);
        }
    }
    out
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PortWords {
    All,
    One(PortMatch),
}

fn port_words(port: &PortWords, direction: Direction, subject: &Pod) -> String {
    match port {
        PortWords::All => "all ports".to_owned(),
        PortWords::One(PortMatch::Named(protocol, name)) if direction == Direction::Ingress => {
            let numbers = subject.named_port(*protocol, name);
            if numbers.is_empty() {
                format!("{name}/{protocol} (no such port here)")
            } else {
                format!("{name}/{protocol} ({numbers})")
            }
        }
        PortWords::One(PortMatch::Named(protocol, name)) => format!("{name}/{protocol} (of each destination)"),
        PortWords::One(range) => range.to_string(),
    }
}

/// A peer in words, and whom it stands for now.
type PeerWords = (String, String);

fn peer_words(compiled: &Compiled, describer: &Describer<'_>, peer: Option<&Peer>) -> PeerWords {
    match peer {
        None => ("anywhere".to_owned(), String::new()),
        Some(Peer::Pods(selection)) => {
            let matches = |pod: &&Arc<Pod>| compiled.selects(selection, pod);
            let names = describer.pods(compiled.selectable_pods().filter(matches));
            let now = if names.is_empty() {
                "nobody".to_owned()
            } else {
                join(&names)
            };
            (selection_words(selection), format!("now: {now}"))
        }
        Some(Peer::Block(block)) => {
            let book = compiled.table.addresses();
            let inside: BTreeSet<&PodName> = book
                .pod_addresses()
                .filter(|(address, _)| block.contains(*address))
                .map(|(_, pod)| &pod.name)
                .collect();
            let now = match inside.len() {
                0 => String::new(),
                pods => format!("now: {} in it", count(pods, "pod")),
            };
            (block.to_string(), now)
        }
    }
}

/// A selection in words; a namespace that is selected by its own name counts as named.
fn selection_words(selection: &PodSelection) -> String {
    if let NamespaceScope::Matching(scope) = &selection.namespaces
        && let [requirement] = scope.requirements()
        && *requirement.key == *NAMESPACE_NAME_LABEL
        && let Operator::In(names) = &requirement.operator
        && let [name] = names.as_slice()
    {
        let named = PodSelection {
            namespaces: NamespaceScope::Named(name.clone()),
            pods: selection.pods.clone(),
        };
        return named.to_string();
    }
    selection.to_string()
}

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
        diagnostics: &diagnose(&compiled.cluster, table),
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
    let set = table.allow_set(pod, direction);
    let mut by_ports: BTreeMap<PortSet, (BTreeMap<PodName, Vec<Option<IpAddr>>>, Vec<IpNet>)> = BTreeMap::new();
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
    let allow = by_ports.into_iter().map(|(ports, (pods, mut cidrs))| {
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
    SideSets {
        isolated: group.is_some_and(|g| g.isolated),
        policies: group.iter().flat_map(|g| table.policy_names(g)).collect(),
        allow: allow.collect(),
    }
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
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

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
                    for peer in &peers {
                        if peer.address().is_none() && peer.pod().is_none() {
                            continue;
                        }
                        let known = peer.pod().is_some();
                        let found = ports(&found[direction.to_string()], peer, known, known);
                        let expected = table.side(direction, &Endpoint::Pod(pod.clone(), None), peer);
                        prop_assert_eq!(found, expected, "{} {} {}", pod.name, direction, peer);
                    }
                }
            }
        }
    }
}
