//! What one side allows and the other denies: connections that cannot come about, and names that cannot be asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::View;
use crate::cluster::{Endpoint, Pod};
use crate::convert::Path;
use crate::diagnostics::{self, Code, Findings, ObjectName, item_field, listed, peers_field, rules};
use crate::policy::{Direction, Enforcement, Peer, PodSelection, Policy, PortMatch, Ports, Rule, Tier};
use crate::ports::{PortRange, PortSet, Protocol, Traffic};
use crate::table::{ClassId, Group, GroupId, PodIndex};

pub(super) fn look(view: &View<'_>, out: &mut Findings) {
    for policy in view.cluster.policies.values() {
        // An audited policy denies nothing, and a rule of another tier may not be one that allows.
        if policy.tier == Tier::NetworkPolicy && view.cluster.enforcement(policy) == Enforcement::Enforce {
            one_sided(view, policy, out);
        }
    }
    without_dns(view, out);
}

/// The ends of a rule at the pods that its policy selects: their class for the other half, the ports meant there, and whether their address is known.
type Near = (ClassId, PortSet, bool);

fn one_sided(view: &View<'_>, policy: &Policy, out: &mut Findings) {
    let subjects = diagnostics::subjects(view.table, policy);
    if subjects.is_empty() {
        return;
    }
    for (direction, rule_at, rule) in rules(policy) {
        let mut near: Option<BTreeSet<Near>> = None;
        for (at, peer) in listed(rule).iter().enumerate() {
            let Peer::Pods(selection) = peer else { continue };
            if comes_about(view, direction, rule, selection, &subjects, &mut near) {
                continue;
            }
            let (from, to, other) = match direction {
                Direction::Ingress => ("them", "the pods selected here", "egress"),
                Direction::Egress => ("the pods selected here", "them", "ingress"),
            };
            let message = format!(
                "is allowed here, and yet no connection comes about: the {other} policies of {selection} allow none of these ports \
                 ({}) from {from} to {to}; allow it there too, or remove the peer",
                rule.ports
            );
            let field = item_field(direction, rule_at, peers_field(direction), at, "");
            out.add(Code::OneSidedAllow, ObjectName::of_policy(policy), field, message);
        }
    }
}

/// Whether the policies of some selected peer let some port of the rule pass. Where nothing is selected, or no port is meant, there is nothing to
/// say. It looks at each pair of group and class once, and stops at the first that passes.
fn comes_about(
    view: &View<'_>,
    direction: Direction,
    rule: &Rule,
    selection: &PodSelection,
    subjects: &[PodIndex],
    near: &mut Option<BTreeSet<Near>>,
) -> bool {
    let table = view.table;
    let far = match direction {
        Direction::Ingress => table.half(Direction::Egress),
        Direction::Egress => table.half(Direction::Ingress),
    };
    let identities = view.selected(selection);
    let pods = identities.iter().flat_map(|id| &table.population.identity(*id).pods);
    // A port by name is that of the destination.
    let at_destination = |pod: PodIndex, is_destination: bool| match is_destination {
        true => ports_on(rule, table.pod(pod)),
        false => PortSet::all(),
    };
    let mut seen: FxHashSet<(GroupId, PortSet)> = FxHashSet::default();
    let mut said = false;
    for pod in pods.filter(|pod| subjects != [**pod]) {
        let Some(group) = far.group_in_force(*pod) else {
            return true;
        };
        let wanted = at_destination(*pod, direction == Direction::Egress);
        if !seen.insert((group, wanted.clone())) {
            continue;
        }
        let near = near.get_or_insert_with(|| {
            let ends = subjects.iter().flat_map(|pod| {
                let ports = at_destination(*pod, direction == Direction::Ingress);
                let ends = table.addresses().endpoints(table.pod(*pod)).into_iter();
                ends.map(move |end| (table.class_of(far.direction(), &end), ports.clone(), is_placed(&end)))
            });
            ends.collect()
        });
        for (class, ports, placed) in near.iter() {
            let ports = ports.intersection(&wanted);
            if !ports.intersection(far.ports(group, *class)).is_empty() {
                return true;
            }
            let policies = far.group(group).policies.iter().map(|policy| table.policy(*policy));
            let mut rules = policies.flat_map(|policy| policy.rules(far.direction()).unwrap_or_default());
            if !placed && rules.any(|rule| holds_block(rule) && may_hold(&rule.ports, &ports)) {
                return true;
            }
            said |= !ports.is_empty();
        }
    }
    !said
}

/// Whether it is known where an end is. Which blocks hold the pods that are derived from a workload, nobody knows yet.
fn is_placed(end: &Endpoint) -> bool {
    !matches!(end, Endpoint::Pod(_, None))
}

fn holds_block(rule: &Rule) -> bool {
    listed(rule).iter().any(|peer| matches!(peer, Peer::Block(_)))
}

/// Whether ports hold one of a set; those by name may.
fn may_hold(ports: &Ports, set: &PortSet) -> bool {
    match ports {
        Ports::All => !set.is_empty(),
        Ports::Listed(list) => list.iter().any(|port| match port {
            PortMatch::Range(protocol, range) => !PortSet::of(*protocol, *range).intersection(set).is_empty(),
            PortMatch::Named(protocol, _) => !set.ranges(*protocol).is_empty(),
        }),
    }
}

/// The ports of a rule on a pod as the destination.
fn ports_on(rule: &Rule, pod: &Pod) -> PortSet {
    match &rule.ports {
        Ports::All => PortSet::all(),
        Ports::Listed(list) => list.iter().fold(PortSet::none(), |set, port| match port {
            PortMatch::Range(protocol, range) => set.union(&PortSet::of(*protocol, *range)),
            PortMatch::Named(protocol, name) => set.union(&pod.named_port(*protocol, name)),
        }),
    }
}

const DNS: [Traffic; 2] = [Traffic::Port(Protocol::Udp, 53), Traffic::Port(Protocol::Tcp, 53)];

/// The label of the cluster's name servers, whatever program they run.
const DNS_LABEL: (&str, &str) = ("k8s-app", "kube-dns");

/// Said once for each group of pods, of the first policy that lets them send.
fn without_dns(view: &View<'_>, out: &mut Findings) {
    let table = view.table;
    let is_server = |pod: &Arc<Pod>| pod.labels.get(DNS_LABEL.0).is_some_and(|v| &**v == DNS_LABEL.1);
    let servers: Vec<PodIndex> = table.pods().filter(|(_, p)| is_server(p)).map(|(at, _)| at).collect();
    let half = table.half(Direction::Egress);
    let ends = servers
        .iter()
        .flat_map(|pod| table.addresses().endpoints(table.pod(*pod)));
    let ends: Vec<Endpoint> = ends.collect();
    let classes: BTreeSet<ClassId> = ends.iter().map(|end| table.class_of(Direction::Egress, end)).collect();
    let placed = ends.iter().all(is_placed);
    let mut found: BTreeMap<u32, Vec<PodIndex>> = BTreeMap::new();
    for (id, group) in half.groups().filter(|(_, g)| g.isolated) {
        let rules = |policy: &u32| table.policy(*policy).egress.as_deref().unwrap_or_default();
        let Some(sends) = group.policies.iter().find(|p| !rules(p).is_empty()) else {
            continue;
        };
        let mut all_rules = group.policies.iter().flat_map(rules);
        let asks = match classes.is_empty() {
            true => all_rules.any(holds_dns),
            false => {
                let reaches = |class: &ClassId| DNS.iter().any(|dns| half.ports(id, *class).contains(*dns));
                let names = |rule: &Rule| names_dns(rule) || !placed && holds_block(rule) && holds_dns(rule);
                all_rules.any(names) || classes.iter().any(reaches)
            }
        };
        if !asks && !is_of_servers(group, &servers) {
            found.entry(*sends).or_default().extend(&group.members);
        }
    }
    for (policy, pods) in found {
        let Some(first) = pods.iter().map(|pod| &table.pod(*pod).name).min() else {
            continue;
        };
        let like = match pods.len() {
            1 => String::new(),
            2 => ", like 1 more pod,".to_owned(),
            n => format!(", like {} more pods,", n - 1),
        };
        let message = format!(
            "{first}{like} may send, but not ask for names: no policy allows it 53/UDP or 53/TCP to the name servers; add an egress rule to pods \
             {}={} in namespace kube-system on port 53",
            DNS_LABEL.0, DNS_LABEL.1
        );
        let field = Path::Root.field("spec").field("egress").to_field_path();
        let name = ObjectName::of_policy(table.policy(policy));
        out.add(Code::EgressWithoutDns, name, field, message);
    }
}

fn is_of_servers(group: &Group, servers: &[PodIndex]) -> bool {
    group.members.iter().all(|pod| servers.contains(pod))
}

/// Whether a rule allows port 53, to whomever.
fn holds_dns(rule: &Rule) -> bool {
    match &rule.ports {
        Ports::All => true,
        Ports::Listed(list) => list.iter().any(|port| match port {
            PortMatch::Range(Protocol::Tcp | Protocol::Udp, range) => range.contains(53),
            PortMatch::Range(Protocol::Sctp, _) => false,
            PortMatch::Named(_, name) => name.starts_with("dns"),
        }),
    }
}

/// Whether a rule speaks of port 53 itself: its author has thought of names, be it of a server that is no pod.
fn names_dns(rule: &Rule) -> bool {
    let Ports::Listed(list) = &rule.ports else {
        return false;
    };
    list.iter().any(
        |port| matches!(port, PortMatch::Range(Protocol::Tcp | Protocol::Udp, range) if *range == PortRange::one(53)),
    )
}
