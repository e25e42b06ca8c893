//! What is odd about the input: said beside the result, never in its place.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::cells;
use crate::cluster::{Cluster, Pod};
use crate::labels::NAMESPACE_NAME_LABEL;
use crate::policy::{
    Direction, Enforcement, IpBlock, NamespaceScope, Peer, Peers, Policy, PortMatch, Ports, Rule, Tier,
};
use crate::table::{Group, GroupId, PodIndex, Table};

/// How much a diagnostic matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The answer may not be what its author meant.
    Warning,
    /// Worth knowing; nothing is wrong.
    Note,
}

/// One finding about one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Diagnostic {
    /// How much it matters.
    pub severity: Severity,
    /// A stable name for this sort of finding, such as `named-port-without-match`.
    pub code: &'static str,
    /// The object: `Pod shop/web-0`, `NetworkPolicy shop/db`.
    pub object: String,
    /// What is the matter, in a sentence.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        write!(f, "{severity}: {}: {} [{}]", self.object, self.message, self.code)
    }
}

/// Looks over a cluster and its table, which must be that of all pods: one node does not see all the pods that a policy selects.
pub fn diagnose(cluster: &Cluster, table: &Table) -> Vec<Diagnostic> {
    let mut out = Vec::new();
    address_conflicts(table, &mut out);
    unknown_namespaces(cluster, &mut out);
    unaddressed_pods(cluster, table, &mut out);
    let subjects = subjects_of_policies(table);
    let host_network: Vec<&Arc<Pod>> = table.pods().map(|(_, p)| p).filter(|p| p.host_network).collect();
    for (id, policy) in table.policies.iter() {
        let groups = subjects.get(&(id as u32)).map_or(&[][..], Vec::as_slice);
        let subjects = match cluster.enforcement(policy) {
            Enforcement::Enforce => Subjects::Groups(groups),
            Enforcement::Audit => {
                let selected = |pod: &Pod| !pod.host_network && selects(cluster, policy, pod);
                let pods = table.pods().filter(|(_, pod)| selected(pod));
                Subjects::Pods(pods.map(|(index, _)| index).collect())
            }
        };
        about_subjects(cluster, &host_network, policy, &subjects, &mut out);
        about_blocks(policy, &mut out);
        about_port_names(table, policy, &subjects, &mut out);
        if let Subjects::Pods(pods) = &subjects {
            about_audit(table, policy, pods, &mut out);
        }
    }
    out.sort_unstable();
    out.dedup();
    out
}

/// For each policy, the groups that it judges.
fn subjects_of_policies(table: &Table) -> FxHashMap<u32, Vec<(Direction, &Group)>> {
    let mut out: FxHashMap<u32, Vec<(Direction, &Group)>> = FxHashMap::default();
    for direction in Direction::BOTH {
        for (_, group) in table.half(direction).groups() {
            for policy in &group.policies {
                out.entry(*policy).or_default().push((direction, group));
            }
        }
    }
    out
}

/// The pods that a policy selects.
enum Subjects<'t> {
    /// Of one in force: it judges them all.
    Groups(&'t [(Direction, &'t Group)]),
    /// Of an audited one, which is left out where others judge.
    Pods(Vec<PodIndex>),
}

impl Subjects<'_> {
    fn is_empty(&self) -> bool {
        match self {
            Subjects::Groups(groups) => groups.is_empty(),
            Subjects::Pods(pods) => pods.is_empty(),
        }
    }

    /// Those that it selects for a direction of which it speaks.
    fn of(&self, direction: Direction) -> Box<dyn Iterator<Item = PodIndex> + '_> {
        match self {
            Subjects::Groups(groups) => {
                let groups = groups.iter().filter(move |(d, _)| *d == direction);
                Box::new(groups.flat_map(|(_, g)| &g.members).copied())
            }
            Subjects::Pods(pods) => Box::new(pods.iter().copied()),
        }
    }
}

fn selects(cluster: &Cluster, policy: &Policy, pod: &Pod) -> bool {
    let namespace = &pod.name.namespace;
    let in_scope = match &policy.subject.namespaces {
        NamespaceScope::Named(name) => name == namespace,
        NamespaceScope::Matching(selector) => selector.matches(&cluster.namespace_labels(namespace)),
    };
    in_scope && policy.subject.pods.matches(&pod.labels)
}

fn kind(policy: &Policy) -> &'static str {
    if policy.tier == Tier::NetworkPolicy {
        "NetworkPolicy"
    } else {
        "ClusterNetworkPolicy"
    }
}

fn address_conflicts(table: &Table, out: &mut Vec<Diagnostic>) {
    for conflict in table.addresses().conflicts() {
        out.push(Diagnostic {
            severity: Severity::Warning,
            code: "address-conflict",
            object: format!("Pod {}", conflict.loser),
            message: format!(
                "pod {} started later and claims the address {} too: the address counts as its own",
                conflict.winner, conflict.address
            ),
        });
    }
}

fn unknown_namespaces(cluster: &Cluster, out: &mut Vec<Diagnostic>) {
    let of_policies = cluster.policies.values().filter_map(|p| p.name.namespace.as_ref());
    let of_pods = cluster.pods.keys().map(|p| &p.namespace);
    for name in of_policies
        .chain(of_pods)
        .filter(|n| !cluster.namespaces.contains_key(*n))
    {
        out.push(Diagnostic {
            severity: Severity::Note,
            code: "unknown-namespace",
            object: format!("Namespace {name}"),
            message: format!(
                "is referred to but not given: it is taken to have only the label {NAMESPACE_NAME_LABEL}={name}"
            ),
        });
    }
}

fn unaddressed_pods(cluster: &Cluster, table: &Table, out: &mut Vec<Diagnostic>) {
    let uses_blocks = cluster.policies.values().any(|p| blocks(p).next().is_some());
    let unaddressed: Vec<PodIndex> = table.half(Direction::Ingress).unaddressed().map(|(p, _)| p).collect();
    let count = unaddressed.len();
    if let Some(first) = unaddressed.first().filter(|_| uses_blocks) {
        let first = &table.pod(*first).name;
        out.push(Diagnostic {
            severity: Severity::Note,
            code: "pod-without-address",
            object: format!("Pod {first}"),
            message: match count {
                1 => "has no address: no ipBlock is taken to match it".to_owned(),
                _ => format!(
                    "has no address, like {} more here: no ipBlock is taken to match them",
                    count - 1
                ),
            },
        });
    }
}

fn about_subjects(
    cluster: &Cluster,
    host_network: &[&Arc<Pod>],
    policy: &Policy,
    subjects: &Subjects<'_>,
    out: &mut Vec<Diagnostic>,
) {
    for pod in host_network.iter().filter(|p| selects(cluster, policy, p)) {
        out.push(Diagnostic {
            severity: Severity::Warning,
            code: "host-network-pod",
            object: format!("{} {}", kind(policy), policy.name),
            message: format!(
                "selects pod {}, which uses its node's network: no policy isolates it",
                pod.name
            ),
        });
    }
    if subjects.is_empty() {
        out.push(Diagnostic {
            severity: Severity::Note,
            code: "selects-no-pod",
            object: format!("{} {}", kind(policy), policy.name),
            message: format!("selects no pod: there are no {}", policy.subject),
        });
    }
}

/// That a policy is audited, and where its audit can tell nothing.
fn about_audit(table: &Table, policy: &Policy, pods: &[PodIndex], out: &mut Vec<Diagnostic>) {
    let mut add = |severity, code, message| {
        out.push(Diagnostic {
            severity,
            code,
            object: format!("{} {}", kind(policy), policy.name),
            message,
        });
    };
    let whose = match policy.enforcement {
        Some(_) => "its annotation",
        None => "the annotation of its namespace",
    };
    let message = format!("is audited, as {whose} asks: it denies nothing, and what it would deny is recorded");
    add(Severity::Note, "audited-policy", message);
    for direction in Direction::BOTH.into_iter().filter(|d| policy.isolates(*d)) {
        let half = table.half(direction);
        let groups: BTreeSet<GroupId> = pods.iter().filter_map(|pod| half.group_of(*pod)).collect();
        let (audited, others): (Vec<&Group>, Vec<&Group>) =
            groups.iter().map(|id| half.group(*id)).partition(|g| g.audited);
        let by_tiers = others.iter().filter(|g| !g.isolated).count();
        if by_tiers > 0 {
            let message = format!(
                "{direction}: cluster-wide policies judge pods that it selects, and there it is left out of the audit"
            );
            add(Severity::Warning, "audit-beside-other-tier", message);
        } else if audited.is_empty() && !others.is_empty() {
            let message = format!(
                "{direction}: policies in force isolate every pod that it selects, so that it could only allow more: there is nothing to observe"
            );
            add(Severity::Warning, "nothing-to-audit", message);
        }
    }
}

fn blocks(policy: &Policy) -> impl Iterator<Item = (Direction, usize, &IpBlock)> {
    rules(policy).flat_map(|(direction, index, rule)| {
        let peers = match &rule.peers {
            Peers::Listed(peers) => &peers[..],
            Peers::All => &[],
        };
        peers.iter().filter_map(move |peer| match peer {
            Peer::Block(block) => Some((direction, index, block)),
            Peer::Pods(_) => None,
        })
    })
}

fn rules(policy: &Policy) -> impl Iterator<Item = (Direction, usize, &Rule)> {
    Direction::BOTH.into_iter().flat_map(|direction| {
        let rules = policy.rules(direction).unwrap_or_default();
        rules
            .iter()
            .enumerate()
            .map(move |(index, rule)| (direction, index, rule))
    })
}

fn about_blocks(policy: &Policy, out: &mut Vec<Diagnostic>) {
    for (direction, index, block) in blocks(policy).filter(|(_, _, b)| cells::block_ranges(b).is_empty()) {
        out.push(Diagnostic {
            severity: Severity::Warning,
            code: "empty-block",
            object: format!("{} {}", kind(policy), policy.name),
            message: format!("spec.{direction}[{index}]: {block} leaves no address: the peer matches nothing"),
        });
    }
}

fn about_port_names(table: &Table, policy: &Policy, subjects: &Subjects<'_>, out: &mut Vec<Diagnostic>) {
    for (direction, index, rule) in rules(policy) {
        let Ports::Listed(ports) = &rule.ports else { continue };
        for port in ports {
            let PortMatch::Named(protocol, name) = port else {
                continue;
            };
            let declares = |pod: &Arc<Pod>| !pod.named_port(*protocol, name).is_empty();
            let mut destinations: Box<dyn Iterator<Item = &Arc<Pod>>> = match direction {
                Direction::Egress => Box::new(table.pods().map(|(_, p)| p).filter(|p| !p.host_network)),
                Direction::Ingress => Box::new(subjects.of(direction).map(|p| table.pod(p))),
            };
            if !destinations.any(declares) {
                let whose = match direction {
                    Direction::Ingress => "no pod that the policy selects",
                    Direction::Egress => "no pod",
                };
                out.push(Diagnostic {
                    severity: Severity::Warning,
                    code: "named-port-without-match",
                    object: format!("{} {}", kind(policy), policy.name),
                    message: format!("spec.{direction}[{index}]: {whose} declares the port {port}: it matches nothing"),
                });
            }
        }
    }
}
