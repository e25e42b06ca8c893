//! `palisade compile -o text`: who may reach every pod, and whom it may reach, on which ports, in selectors and workloads.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use policy_compiler::cluster::{Pod, PodName};
use policy_compiler::labels::{NAMESPACE_NAME_LABEL, Operator};
use policy_compiler::policy::{
    Action, Direction, NamespaceScope, Peer, Peers, PodSelection, Policy, PortMatch, Ports, Rule,
};
use policy_compiler::table::{GroupId, PodIndex};

use super::describe::{Describer, join, title};
use super::ends::Compiled;
use super::output::{Style, columns, count};

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
        let audited = group.is_some_and(|g| g.audited);
        let (isolating, judging): (Vec<_>, Vec<_>) = policies.iter().partition(|p| p.isolates(direction));
        let names = |policies: &[&Arc<Policy>]| policies.iter().map(|p| p.name.to_string()).collect::<Vec<_>>();
        if isolating.is_empty() {
            let _ = writeln!(out, "  {heading}  not isolated");
        } else if audited {
            let everything = Style::Good.paint("everything");
            let names = names(&isolating).join(", ");
            let _ = writeln!(
                out,
                "  {heading}  not isolated: {everything}; audited by {names}, which would allow"
            );
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
                (ports.join(", "), if audited { Style::Warn } else { Style::Good }),
                (now, Style::Dim),
            ]);
        }
        if rows.is_empty() && !isolating.is_empty() {
            let style = if audited { Style::Warn } else { Style::Bad };
            rows.push(vec![(format!("{word} nowhere"), style)]);
        }
        out.push_str(&columns(4, &rows));
        out
    }
}

/// What rules admit, by peer (none: anywhere), in the order in which the rules first name it.
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
        // All ports come first, and say everything.
        ports.sort();
        ports.dedup();
        if ports.first() == Some(&PortWords::All) {
            ports.truncate(1);
        }
    }
    out
}

/// One entry of a rule's ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PortWords {
    /// There are none, so it is every port.
    All,
    /// A range or a name.
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
