//! Cluster snapshot in, [`Table`] out; and the same table kept up to date, event by event.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use slab::Slab;

use crate::addresses::AddressBook;
use crate::changes::Changes;
use crate::cluster::{Cluster, Namespace, Node, Pod, PodName};
pub use crate::event::Event;
use crate::half::Half;
use crate::labels::{Labels, Name};
use crate::matching::SelectionIndex;
use crate::policy::{Direction, Enforcement, Policy, PolicyName, Tier};
use crate::population::{Identity, Population};
use crate::table::{PodIndex, Table};

/// Whose allow sets are compiled. Peers are always those of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subjects {
    /// All pods.
    All,
    /// The pods of one node (`spec.nodeName`).
    Node(Name),
}

impl Subjects {
    fn include(&self, pod: &Pod) -> bool {
        let here = match self {
            Subjects::All => true,
            Subjects::Node(node) => pod.node.as_ref() == Some(node),
        };
        here && !pod.host_network
    }

    fn include_node(&self, node: &Name) -> bool {
        match self {
            Subjects::All => true,
            Subjects::Node(name) => name == node,
        }
    }
}

/// Compiles the policies of a cluster. It cannot fail; for what is odd about the input see [`crate::diagnostics::diagnose`].
///
/// ```
/// use policy_compiler::cluster::{Cluster, Namespace, Pod, PodName};
/// use policy_compiler::compile::{Subjects, compile};
/// use policy_compiler::labels::{Labels, Selector};
/// use policy_compiler::policy::{Direction, NamespaceScope, PodSelection, Policy, PolicyName, Tier};
///
/// let mut cluster = Cluster::default();
/// let db = PodName { namespace: "shop".into(), name: "db-0".into() };
/// cluster.add_pod(Pod {
///     name: db.clone(),
///     labels: [("app", "db")].into_iter().collect(),
///     addresses: vec!["10.244.3.2".parse().unwrap()],
///     ..Pod::default()
/// });
/// cluster.add_policy(Policy {
///     name: PolicyName { namespace: Some("shop".into()), name: "deny-all".into() },
///     tier: Tier::NetworkPolicy,
///     enforcement: None,
///     subject: PodSelection { namespaces: NamespaceScope::Named("shop".into()), pods: Selector::everything() },
///     ingress: Some(Vec::new()),
///     egress: None,
/// });
/// let table = compile(&cluster, &Subjects::All);
/// let db = table.pod_index(&db).unwrap();
/// assert!(table.allow_set(db, Direction::Ingress).addresses.is_empty());
/// assert_eq!(table.allow_set(db, Direction::Egress).addresses.len(), 2); // both families, whole
/// ```
pub fn compile(cluster: &Cluster, subjects: &Subjects) -> Table {
    Compiler::new(cluster, subjects.clone()).table
}

/// A table that follows its cluster. Equal to a table compiled from scratch at every moment, but for the numbers of things.
#[derive(Debug)]
pub struct Compiler {
    subjects: Subjects,
    /// What every policy selects, by the policy's number.
    selected: SelectionIndex,
    policy_ids: FxHashMap<(Tier, PolicyName), u32>,
    nodes: FxHashMap<Name, Arc<Node>>,
    /// What the namespaces that ask for something ask for.
    enforcement: FxHashMap<Name, Enforcement>,
    table: Table,
}

impl Compiler {
    /// Compiles a cluster from scratch.
    pub fn new(cluster: &Cluster, subjects: Subjects) -> Self {
        let pods: Vec<&Arc<Pod>> = cluster.pods.values().filter(|p| !p.ended).collect();
        let (addresses, holders) = AddressBook::assign(cluster, &pods);
        let table = Table {
            population: Population::default(),
            policies: Slab::new(),
            addresses,
            pod_ranges: BTreeMap::new(),
            ingress: Half::new(Direction::Ingress),
            egress: Half::new(Direction::Egress),
        };
        let nodes = cluster
            .nodes
            .iter()
            .map(|(name, node)| (name.clone(), node.clone()))
            .collect();
        let (selected, policy_ids) = Default::default();
        let namespaces = cluster.namespaces.values();
        let mut compiler = Compiler {
            subjects,
            selected,
            policy_ids,
            nodes,
            enforcement: namespaces
                .filter_map(|n| Some((n.name.clone(), n.enforcement?)))
                .collect(),
            table,
        };
        for node in cluster.nodes.values() {
            compiler.set_pod_ranges(&node.name, Some(node));
        }
        for namespace in cluster.namespaces.values() {
            compiler
                .table
                .population
                .set_namespace(&namespace.name, Some(&namespace.labels));
        }
        for policy in cluster.policies.values() {
            compiler.insert_policy(policy);
        }
        let indices: Vec<PodIndex> = pods
            .into_iter()
            .map(|pod| compiler.table.population.insert(pod.clone()))
            .collect();
        // Subjects first: then every term is known when the first peer is sorted.
        let identities: Vec<u32> = compiler
            .table
            .population
            .identities
            .iter()
            .map(|(id, _)| id as u32)
            .collect();
        identities.into_iter().for_each(|identity| compiler.group(identity));
        let addressed: Vec<(IpAddr, PodIndex)> = holders
            .into_iter()
            .map(|(address, at)| (address, indices[at]))
            .collect();
        let nobody = Population::default();
        let Table {
            population,
            ingress,
            egress,
            ..
        } = &mut compiler.table;
        for half in [ingress, egress] {
            half.settle(&nobody);
            half.fill(&addressed, population);
            half.settle(population);
        }
        compiler
    }

    /// The table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Takes one event in; the work is proportional to what it changes. Answers with what is different in the table.
    pub fn apply(&mut self, event: Event) -> Changes {
        match event {
            Event::Pod(pod) => self.replace_pod(&pod.name, Some(&pod)),
            Event::PodGone(name) => self.replace_pod(&name, None),
            Event::Namespace(namespace) => self.replace_namespace(&namespace.name, Some(&namespace)),
            Event::NamespaceGone(name) => self.replace_namespace(&name, None),
            Event::Node(node) => self.replace_node(&node.name, Some(&node)),
            Event::NodeGone(name) => self.replace_node(&name, None),
            Event::Policy(policy) => self.replace_policy((policy.tier, policy.name.clone()), Some(&policy)),
            Event::PolicyGone(tier, name) => self.replace_policy((tier, name), None),
        }
        self.settle()
    }

    /// The events that lead from the cluster as it is known here to a snapshot; what goes comes first.
    pub fn events_to(&self, cluster: &Cluster) -> Vec<Event> {
        let Table {
            population, policies, ..
        } = &self.table;
        let live = |name: &PodName| cluster.pods.get(name).is_some_and(|pod| !pod.ended);
        let mut events: Vec<Event> = Vec::new();
        let gone = self.table.pods().map(|(_, pod)| &pod.name).filter(|name| !live(name));
        events.extend(gone.cloned().map(Event::PodGone));
        let gone = policies.iter().map(|(_, policy)| (policy.tier, &policy.name));
        let gone = gone.map(|(tier, name)| (tier, name.clone()));
        let gone = gone.filter(|key| !cluster.policies.contains_key(key));
        events.extend(gone.map(|(tier, name)| Event::PolicyGone(tier, name)));
        let gone = population
            .namespaces()
            .filter(|(name, _)| !cluster.namespaces.contains_key(*name));
        events.extend(gone.map(|(name, _)| Event::NamespaceGone(name.clone())));
        let gone = self.nodes.keys().filter(|name| !cluster.nodes.contains_key(*name));
        events.extend(gone.cloned().map(Event::NodeGone));

        let nodes = cluster
            .nodes
            .values()
            .filter(|node| self.nodes.get(&node.name) != Some(node));
        events.extend(nodes.cloned().map(Event::Node));
        let known: FxHashMap<&Name, &Labels> = population.namespaces().collect();
        let namespaces = cluster.namespaces.values();
        let namespaces = namespaces.filter(|n| {
            let other_mode = self.enforcement.get(&n.name).copied() != n.enforcement;
            other_mode || known.get(&n.name).is_none_or(|labels| **labels != n.labels)
        });
        events.extend(namespaces.cloned().map(Event::Namespace));
        let new = |pod: &&Arc<Pod>| !pod.ended && population.index(&pod.name).is_none_or(|i| population.pod(i) != *pod);
        events.extend(cluster.pods.values().filter(new).cloned().map(Event::Pod));
        let new = |(key, policy): &(&(Tier, PolicyName), &Arc<Policy>)| {
            let known = self.policy_ids.get(key);
            known.is_none_or(|id| self.table.policy(*id) != *policy)
        };
        let policies = cluster.policies.iter().filter(new);
        events.extend(policies.map(|(_, policy)| Event::Policy(policy.clone())));
        events
    }

    fn settle(&mut self) -> Changes {
        let Table {
            population,
            ingress,
            egress,
            ..
        } = &mut self.table;
        Changes {
            ingress: ingress.settle(population),
            egress: egress.settle(population),
        }
    }

    fn replace_pod(&mut self, name: &PodName, pod: Option<&Arc<Pod>>) {
        let pod = pod.filter(|p| !p.ended);
        let before = self.table.population.index(name);
        if let (Some(index), Some(pod)) = (before, pod)
            && self.table.population.pod(index) == pod
        {
            return;
        }
        // Whoever claims an address of this pod, or of its former self, may lose it or win it.
        let former = before.map(|index| self.table.pod(index).clone());
        let mut rivals: Vec<PodIndex> = former
            .iter()
            .chain(pod)
            .flat_map(|p| self.table.addresses.rivals(p))
            .filter(|rival| rival != name)
            .filter_map(|rival| self.table.population.index(&rival))
            .collect();
        rivals.sort_unstable();
        rivals.dedup();
        for index in rivals.iter().copied().chain(before) {
            self.remove_peer(index);
        }
        if let (Some(index), Some(former)) = (before, former) {
            self.remove_subject(index);
            self.table.addresses.remove_pod(&former);
            self.table.population.remove(index);
        }
        if let Some(pod) = pod {
            self.table.addresses.add_pod(pod);
            let index = self.table.population.insert(pod.clone());
            if let Some(identity) = self.table.population.identity_of(index) {
                let Table {
                    population,
                    ingress,
                    egress,
                    ..
                } = &mut self.table;
                if population.identity(identity).pods.len() == 1 {
                    ingress.add_identity(identity, population);
                    egress.add_identity(identity, population);
                }
                if self.subjects.include(pod) {
                    self.add_subjects(identity, &[index]);
                }
            }
            self.add_peer(index);
        }
        for index in rivals {
            self.add_peer(index);
        }
    }

    fn replace_namespace(&mut self, name: &Name, namespace: Option<&Arc<Namespace>>) {
        let labels = namespace.map(|n| &n.labels);
        let relabelled = self.table.population.set_namespace(name, labels);
        let before = match namespace.and_then(|n| n.enforcement) {
            Some(enforcement) => self.enforcement.insert(name.clone(), enforcement),
            None => self.enforcement.remove(name),
        };
        let other_mode = before.unwrap_or_default() != self.enforcement.get(name).copied().unwrap_or_default();
        if !relabelled && !other_mode {
            return;
        }
        for identity in self.table.population.in_namespace(name) {
            if relabelled || self.follows_its_namespace(identity) {
                self.ungroup(identity);
                self.group(identity);
            }
            if !relabelled {
                continue;
            }
            let Table {
                population,
                ingress,
                egress,
                ..
            } = &mut self.table;
            ingress.resort_identity(identity, population);
            egress.resort_identity(identity, population);
        }
    }

    fn replace_node(&mut self, name: &Name, node: Option<&Arc<Node>>) {
        let before = match node {
            Some(node) => self.nodes.insert(name.clone(), node.clone()),
            None => self.nodes.remove(name),
        };
        if let Some(before) = before {
            self.table.addresses.remove_node(&before);
        }
        if let Some(node) = node {
            self.table.addresses.add_node(node);
        }
        self.set_pod_ranges(name, node);
    }

    fn set_pod_ranges(&mut self, name: &Name, node: Option<&Arc<Node>>) {
        let ranges = node.filter(|node| self.subjects.include_node(name) && !node.pod_cidrs.is_empty());
        match ranges {
            Some(node) => self.table.pod_ranges.insert(name.clone(), node.pod_cidrs.clone()),
            None => self.table.pod_ranges.remove(name),
        };
    }

    fn replace_policy(&mut self, key: (Tier, PolicyName), policy: Option<&Arc<Policy>>) {
        let before = self.policy_ids.get(&key).copied();
        if let (Some(id), Some(policy)) = (before, policy)
            && self.table.policy(id) == policy
        {
            return;
        }
        let mut affected = Vec::new();
        if let Some(id) = before {
            let former = self.table.policy(id).clone();
            affected.extend(self.table.population.matching(&former.subject));
            self.selected.remove(&former.subject, id);
        }
        if let Some(policy) = policy {
            affected.extend(self.table.population.matching(&policy.subject));
        }
        affected.sort_unstable();
        affected.dedup();
        for identity in &affected {
            self.ungroup(*identity);
        }
        // Groups that the former policy judged are gone before its number can be given to another.
        if let Some(id) = before {
            self.table.ingress.drop_empty_groups();
            self.table.egress.drop_empty_groups();
            self.table.policies.remove(id as usize);
            self.policy_ids.remove(&key);
        }
        if let Some(policy) = policy {
            self.insert_policy(policy);
        }
        for identity in affected {
            self.group(identity);
        }
    }

    fn insert_policy(&mut self, policy: &Arc<Policy>) {
        let id = self.table.policies.insert(policy.clone()) as u32;
        self.policy_ids.insert((policy.tier, policy.name.clone()), id);
        self.selected.insert(&policy.subject, id);
    }

    fn ungroup(&mut self, identity: u32) {
        let pods: Vec<PodIndex> = self.table.population.identity(identity).pods.iter().copied().collect();
        pods.into_iter().for_each(|index| self.remove_subject(index));
    }

    /// Makes the pods of an identity subjects, as far as they are to be.
    fn group(&mut self, identity: u32) {
        let population = &self.table.population;
        let pods = population.identity(identity).pods.iter().copied();
        let pods: Vec<PodIndex> = pods
            .filter(|index| self.subjects.include(population.pod(*index)))
            .collect();
        self.add_subjects(identity, &pods);
    }

    /// The policies that select the pods of an identity, in no order.
    fn selecting(&self, identity: u32) -> Vec<u32> {
        let population = &self.table.population;
        let Identity { namespace, labels, .. } = population.identity(identity);
        self.selected
            .matches(namespace, &population.namespace_labels(namespace), labels)
    }

    /// Whether the mode of its namespace is that of a policy which selects an identity.
    fn follows_its_namespace(&self, identity: u32) -> bool {
        self.selecting(identity).into_iter().any(|id| {
            let policy = self.table.policy(id);
            policy.enforcement_in(Some(Enforcement::Audit)) != policy.enforcement_in(None)
        })
    }

    /// Makes pods of one identity subjects.
    fn add_subjects(&mut self, identity: u32, pods: &[PodIndex]) {
        if pods.is_empty() {
            return;
        }
        let mut selecting = self.selecting(identity);
        let Table {
            population,
            policies,
            ingress,
            egress,
            ..
        } = &mut self.table;
        selecting.sort_by_key(|id| {
            let policy = &policies[*id as usize];
            (policy.tier, &policy.name)
        });
        let Identity { namespace, .. } = population.identity(identity);
        let asked = self.enforcement.get(namespace).copied();
        let audited = |id: &u32| policies[*id as usize].enforcement_in(asked) == Enforcement::Audit;
        for half in [ingress, egress] {
            let speaks = |id: &u32| policies[*id as usize].rules(half.direction()).is_some();
            let speaking = selecting.iter().copied().filter(speaks);
            let (audited, in_force): (Vec<u32>, Vec<u32>) = speaking.partition(audited);
            // Beside a policy in force an audited one has nothing to tell: the one denies already what the other would.
            let (judging, only_audited) = match in_force.is_empty() {
                true => (audited, true),
                false => (in_force, false),
            };
            if !judging.is_empty() {
                half.add_subjects(pods, population, &judging, only_audited, policies);
            }
        }
    }

    fn remove_subject(&mut self, index: PodIndex) {
        self.table.ingress.remove_subject(index);
        self.table.egress.remove_subject(index);
    }

    fn add_peer(&mut self, index: PodIndex) {
        let table = &mut self.table;
        let owned = table.addresses.owned(table.population.pod(index));
        table.ingress.add_peer(index, &table.population, &owned);
        table.egress.add_peer(index, &table.population, &owned);
    }

    fn remove_peer(&mut self, index: PodIndex) {
        let table = &mut self.table;
        let owned = table.addresses.owned(table.population.pod(index));
        table.ingress.remove_peer(index, &owned);
        table.egress.remove_peer(index, &owned);
    }
}
