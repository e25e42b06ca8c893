//! What is odd about the input: said beside the result, never in its place.

mod code;

use std::collections::BTreeSet;
use std::fmt;

use serde::{Serialize, Serializer};

pub use self::code::Code;
use crate::cells;
use crate::cluster::{Cluster, Pod, PodName};
use crate::convert::{FieldPath, Path};
use crate::labels::{NAMESPACE_NAME_LABEL, Name};
use crate::policy::{
    Direction, Enforcement, IpBlock, NamespaceScope, Peer, Peers, Policy, PortMatch, Ports, Rule, Tier,
};
use crate::table::{Group, GroupId, PodIndex, Table};

/// How much a diagnostic matters. What is worse than a warning is refused when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The answer may not be what its author meant.
    Warning,
    /// Worth knowing; nothing is wrong.
    Note,
}

impl Severity {
    /// `warning`, `note`.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

/// The kind and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The kind as manifests write it: `NetworkPolicy`.
    pub kind: Name,
    /// Its namespace; none for a cluster-wide object.
    pub namespace: Option<Name>,
    /// Its name; empty when it has none.
    pub name: Name,
}

impl ObjectName {
    /// The name of a policy, with its kind.
    pub fn of_policy(policy: &Policy) -> Self {
        let kind = match policy.tier {
            Tier::NetworkPolicy => "NetworkPolicy",
            Tier::Admin { .. } | Tier::Baseline { .. } => "ClusterNetworkPolicy",
        };
        ObjectName {
            kind: kind.into(),
            namespace: policy.name.namespace.clone(),
            name: policy.name.name.clone(),
        }
    }

    pub(crate) fn of_pod(pod: &PodName) -> Self {
        ObjectName {
            kind: "Pod".into(),
            namespace: Some(pod.namespace.clone()),
            name: pod.name.clone(),
        }
    }

    pub(crate) fn of_namespace(name: &Name) -> Self {
        ObjectName {
            kind: "Namespace".into(),
            namespace: None,
            name: name.clone(),
        }
    }
}

impl fmt::Display for ObjectName {
    /// `NetworkPolicy shop/deny-all`, `Node worker-1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        match (&self.namespace, &*self.name) {
            (_, "") => Ok(()),
            (Some(namespace), name) => write!(f, " {namespace:.253}/{name:.253}"),
            (None, name) => write!(f, " {name:.253}"),
        }
    }
}

impl Serialize for ObjectName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One finding about one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Diagnostic {
    /// How much it matters.
    pub severity: Severity,
    /// What sort of finding it is.
    pub code: Code,
    /// The object: `Pod shop/web-0`, `NetworkPolicy shop/db`.
    pub object: ObjectName,
    /// The field; without a step when the object as a whole is meant.
    #[serde(skip_serializing_if = "FieldPath::is_root", serialize_with = "as_text")]
    pub field: FieldPath,
    /// What is the matter and, where something is wrong, what to write instead: a lower-case sentence without a full stop.
    pub message: String,
}

fn as_text<S: Serializer>(field: &FieldPath, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(field)
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: ", self.severity.word(), self.object)?;
        if !self.field.is_root() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{} [{}]", self.message, self.code)
    }
}

/// Findings as they are made.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Diagnostic>);

impl Findings {
    /// A finding of the usual severity.
    pub(crate) fn add(&mut self, code: Code, object: ObjectName, field: FieldPath, message: impl Into<String>) {
        self.add_as(code.severity(), code, object, field, message);
    }

    /// A finding of a severity of its own.
    pub(crate) fn add_as(
        &mut self,
        severity: Severity,
        code: Code,
        object: ObjectName,
        field: FieldPath,
        message: impl Into<String>,
    ) {
        self.0.push(Diagnostic {
            severity,
            code,
            object,
            field,
            message: message.into(),
        });
    }

    /// All of them, sorted, each once.
    pub(crate) fn finish(mut self) -> Vec<Diagnostic> {
        self.0.sort_unstable();
        self.0.dedup();
        self.0
    }
}

/// Looks over a cluster and its table, which must be that of all pods: one node does not see all the pods that a policy selects. Answers with
/// what makes one doubt an answer about this cluster; [`crate::lint::lint`] finds more.
pub fn diagnose(cluster: &Cluster, table: &Table) -> Vec<Diagnostic> {
    let mut out = Findings::default();
    doubt(cluster, table, &mut out);
    out.finish()
}

pub(crate) fn doubt(cluster: &Cluster, table: &Table, out: &mut Findings) {
    address_conflicts(table, out);
    unknown_namespaces(cluster, out);
    unaddressed_pods(cluster, table, out);
    for policy in cluster.policies.values() {
        let pods = subjects(table, policy);
        about_subjects(cluster, table, policy, &pods, out);
        about_blocks(policy, out);
        about_port_names(table, policy, &pods, out);
        if cluster.enforcement(policy) == Enforcement::Audit {
            about_audit(table, policy, &pods, out);
        }
    }
}

/// The live pods that a policy selects.
pub(crate) fn subjects(table: &Table, policy: &Policy) -> Vec<PodIndex> {
    pods_of(table, &table.population.matching(&policy.subject))
}

/// The pods of identities.
pub(crate) fn pods_of(table: &Table, identities: &[u32]) -> Vec<PodIndex> {
    let pods = identities.iter().map(|id| &table.population.identity(*id).pods);
    pods.flatten().copied().collect()
}

/// All pods of the namespaces that a policy is about, ended ones and those on the host network included.
fn in_scope<'a>(cluster: &'a Cluster, policy: &'a Policy) -> Box<dyn Iterator<Item = &'a Pod> + 'a> {
    match &policy.subject.namespaces {
        NamespaceScope::Named(namespace) => {
            let first = PodName {
                namespace: namespace.clone(),
                name: Name::default(),
            };
            let pods = cluster.pods.range(first..).map(|(_, pod)| &**pod);
            Box::new(pods.take_while(move |pod| pod.name.namespace == *namespace))
        }
        NamespaceScope::Matching(selector) => {
            let pods = cluster.pods.values().map(|pod| &**pod);
            Box::new(pods.filter(|pod| selector.matches(&cluster.namespace_labels(&pod.name.namespace))))
        }
    }
}

fn address_conflicts(table: &Table, out: &mut Findings) {
    for conflict in table.addresses().conflicts() {
        let message = format!(
            "pod {} started later and claims the address {} too: the address counts as its own",
            conflict.winner, conflict.address
        );
        let pod = ObjectName::of_pod(&conflict.loser);
        out.add(Code::AddressConflict, pod, FieldPath::default(), message);
    }
}

fn unknown_namespaces(cluster: &Cluster, out: &mut Findings) {
    let of_policies = cluster.policies.values().filter_map(|p| p.name.namespace.as_ref());
    let of_pods = cluster.pods.keys().map(|p| &p.namespace);
    let referred: BTreeSet<&Name> = of_policies.chain(of_pods).collect();
    for name in referred.into_iter().filter(|n| !cluster.namespaces.contains_key(*n)) {
        let message =
            format!("is referred to but not given: it is taken to have only the label {NAMESPACE_NAME_LABEL}={name}");
        let namespace = ObjectName::of_namespace(name);
        out.add(Code::UnknownNamespace, namespace, FieldPath::default(), message);
    }
}

fn unaddressed_pods(cluster: &Cluster, table: &Table, out: &mut Findings) {
    let uses_blocks = cluster.policies.values().any(|p| blocks(p).next().is_some());
    let unaddressed: Vec<PodIndex> = table.half(Direction::Ingress).unaddressed().map(|(p, _)| p).collect();
    if let Some(first) = unaddressed.first().filter(|_| uses_blocks) {
        let message = match unaddressed.len() {
            1 => "has no address: no ipBlock is taken to match it".to_owned(),
            count => format!(
                "has no address, like {} more here: no ipBlock is taken to match them",
                count - 1
            ),
        };
        let pod = ObjectName::of_pod(&table.pod(*first).name);
        out.add(Code::PodWithoutAddress, pod, FieldPath::default(), message);
    }
}

fn about_subjects(cluster: &Cluster, table: &Table, policy: &Policy, subjects: &[PodIndex], out: &mut Findings) {
    let name = || ObjectName::of_policy(policy);
    let selected = || in_scope(cluster, policy).filter(|pod| policy.subject.pods.matches(&pod.labels));
    let mut on_host = selected().filter(|pod| pod.host_network && !pod.ended);
    if let Some(pod) = on_host.next() {
        let message = match on_host.count() {
            0 => format!(
                "selects pod {}, which uses its node's network: no policy isolates it",
                pod.name
            ),
            more => format!(
                "selects pod {} and {more} more that use their node's network: no policy isolates them",
                pod.name
            ),
        };
        out.add(Code::HostNetworkPod, name(), FieldPath::default(), message);
    }
    if !subjects.is_empty() {
        return;
    }
    let message = match (selected().any(|pod| pod.ended), policy.subject.pods.is_everything()) {
        (false, false) => format!("selects no pod: there are no {}", policy.subject),
        (false, true) => format!("selects no pod: there are no pods {}", policy.subject.namespaces),
        (true, _) => format!("selects no pod: {} have ended, all of them", policy.subject),
    };
    // Where the manifests hold no pods at all, the policy is not to blame.
    let known = match &policy.subject.namespaces {
        NamespaceScope::Named(name) => !table.population.in_namespace(name).is_empty(),
        NamespaceScope::Matching(_) => table.pod_count() > 0,
    };
    let severity = if known { Severity::Warning } else { Severity::Note };
    let subject = Path::Root.field("spec").field("podSelector").to_field_path();
    out.add_as(severity, Code::SelectsNoPod, name(), subject, message);
}

/// That a policy is audited, and where its audit can tell nothing.
fn about_audit(table: &Table, policy: &Policy, pods: &[PodIndex], out: &mut Findings) {
    let mut add = |code, message| out.add(code, ObjectName::of_policy(policy), FieldPath::default(), message);
    let whose = match policy.enforcement {
        Some(_) => "its annotation",
        None => "the annotation of its namespace",
    };
    add(
        Code::AuditedPolicy,
        format!("is audited, as {whose} asks: it denies nothing, and what it would deny is recorded"),
    );
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
            add(Code::AuditBesideOtherTier, message);
        } else if audited.is_empty() && !others.is_empty() {
            let message = format!(
                "{direction}: policies in force isolate every pod that it selects, so that it could only allow more: there is nothing to observe"
            );
            add(Code::NothingToAudit, message);
        }
    }
}

/// `spec.ingress[0]`.
pub(crate) fn rule_field(direction: Direction, rule: usize) -> FieldPath {
    let name = direction.to_string();
    Path::Root.field("spec").field(&name).index(rule).to_field_path()
}

/// `spec.egress[0].ports[2].port`; without an inner field, `spec.ingress[0].from[1]`.
pub(crate) fn item_field(direction: Direction, rule: usize, list: &str, item: usize, inner: &str) -> FieldPath {
    let name = direction.to_string();
    let rules = Path::Root.field("spec");
    let rules = rules.field(&name);
    let rule = rules.index(rule);
    let items = rule.field(list);
    let item = items.index(item);
    match inner {
        "" => item.to_field_path(),
        inner => item.field(inner).to_field_path(),
    }
}

/// `from` or `to`.
pub(crate) fn peers_field(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    }
}

/// Every rule with its direction and its number there.
pub(crate) fn rules(policy: &Policy) -> impl Iterator<Item = (Direction, usize, &Rule)> {
    Direction::BOTH.into_iter().flat_map(|direction| {
        let rules = policy.rules(direction).unwrap_or_default();
        rules
            .iter()
            .enumerate()
            .map(move |(index, rule)| (direction, index, rule))
    })
}

/// The peers that a rule lists; none of one that matches all.
pub(crate) fn listed(rule: &Rule) -> &[Peer] {
    match &rule.peers {
        Peers::Listed(peers) => peers,
        Peers::All => &[],
    }
}

/// Every block of a policy with the field that it stands in.
pub(crate) fn blocks(policy: &Policy) -> impl Iterator<Item = (FieldPath, &IpBlock)> {
    rules(policy).flat_map(|(direction, rule_at, rule)| {
        let peers = listed(rule).iter().enumerate();
        peers.filter_map(move |(at, peer)| match peer {
            Peer::Block(block) => {
                let field = item_field(direction, rule_at, peers_field(direction), at, "ipBlock");
                Some((field, block))
            }
            Peer::Pods(_) => None,
        })
    })
}

fn about_blocks(policy: &Policy, out: &mut Findings) {
    for (field, block) in blocks(policy).filter(|(_, b)| cells::block_ranges(b).is_empty()) {
        let message = format!("{block} leaves no address: the peer matches nothing");
        out.add(Code::EmptyBlock, ObjectName::of_policy(policy), field, message);
    }
}

/// The pods on which the named ports of a rule are looked up.
pub(crate) fn destinations(
    table: &Table,
    direction: Direction,
    rule: &Rule,
    subjects: &[PodIndex],
) -> BTreeSet<PodIndex> {
    if direction == Direction::Ingress {
        return subjects.iter().copied().collect();
    }
    let Peers::Listed(peers) = &rule.peers else {
        let pods = table.pods().filter(|(_, pod)| !pod.host_network);
        return pods.map(|(index, _)| index).collect();
    };
    let matched = |peer: &Peer| match peer {
        Peer::Pods(selection) => pods_of(table, &table.population.matching(selection)),
        Peer::Block(block) => pods_in(table, block),
    };
    peers.iter().flat_map(matched).collect()
}

/// The pods that have an address in a block.
pub(crate) fn pods_in(table: &Table, block: &IpBlock) -> Vec<PodIndex> {
    let within = table.addresses().pod_addresses().filter(|(a, _)| block.contains(*a));
    within.filter_map(|(_, pod)| table.pod_index(&pod.name)).collect()
}

fn about_port_names(table: &Table, policy: &Policy, subjects: &[PodIndex], out: &mut Findings) {
    for (direction, index, rule) in rules(policy) {
        let Ports::Listed(ports) = &rule.ports else { continue };
        for (at, port) in ports.iter().enumerate() {
            let PortMatch::Named(protocol, name) = port else {
                continue;
            };
            let destinations = destinations(table, direction, rule, subjects);
            let declares = |pod: &PodIndex| !table.pod(*pod).named_port(*protocol, name).is_empty();
            // Where there are no pods to ask, it is said of the policy, or of the peer, that it finds none.
            if !destinations.is_empty() && !destinations.iter().any(declares) {
                let whose = match direction {
                    Direction::Ingress => "no pod that the policy selects",
                    Direction::Egress => "no pod that the rule speaks of",
                };
                let message = format!("{whose} declares the port {port}: it matches nothing");
                let field = item_field(direction, index, "ports", at, "port");
                out.add(
                    Code::NamedPortWithoutMatch,
                    ObjectName::of_policy(policy),
                    field,
                    message,
                );
            }
        }
    }
}
