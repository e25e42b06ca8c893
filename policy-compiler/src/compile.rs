//! Cluster snapshot in, [`Table`] out. It works on identities (pods with equal labels), never on pods times pods.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::cluster::{AddressBook, Cluster, Pod};
use crate::diagnostics;
use crate::half::{self, Subject};
use crate::labels::{Labels, Name};
use crate::matching::SelectionIndex;
use crate::policy::{Direction, Policy};
use crate::table::{PodIndex, Table};

/// Whose allow sets are compiled. Peers are always those of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subjects {
    /// All pods.
    All,
    /// The pods of one node (`spec.nodeName`).
    Node(Name),
}

/// Pods of one namespace with equal labels: no selector can tell them apart.
pub(crate) struct Identity<'a> {
    pub(crate) namespace: &'a Name,
    pub(crate) labels: &'a Labels,
}

/// The pods of a cluster, sorted by what selectors can see of them.
pub(crate) struct Population<'a> {
    pub(crate) pods: &'a [Arc<Pod>],
    pub(crate) identities: Vec<Identity<'a>>,
    /// By pod; none for a host-network pod, which no selector matches.
    pub(crate) identity_of: Vec<Option<u32>>,
    namespace_labels: FxHashMap<&'a str, Labels>,
}

impl<'a> Population<'a> {
    fn new(cluster: &Cluster, pods: &'a [Arc<Pod>]) -> Self {
        let mut ids: FxHashMap<(&Name, &Labels), u32> = FxHashMap::default();
        let mut identities = Vec::new();
        let mut namespace_labels: FxHashMap<&str, Labels> = FxHashMap::default();
        let identity_of = pods
            .iter()
            .map(|pod| {
                let namespace = &pod.name.namespace;
                (!pod.host_network).then(|| {
                    *ids.entry((namespace, &pod.labels)).or_insert_with(|| {
                        namespace_labels
                            .entry(namespace)
                            .or_insert_with(|| cluster.namespace_labels(namespace));
                        identities.push(Identity {
                            namespace,
                            labels: &pod.labels,
                        });
                        identities.len() as u32 - 1
                    })
                })
            })
            .collect();
        Population {
            pods,
            identities,
            identity_of,
            namespace_labels,
        }
    }

    /// For each identity, the selections of an index that match it, sorted; only those asked for.
    pub(crate) fn matches(&self, index: &SelectionIndex<'_>, wanted: impl Fn(u32) -> bool) -> Vec<Vec<u32>> {
        let mut scopes: FxHashMap<&str, Vec<u32>> = FxHashMap::default();
        (0..)
            .zip(&self.identities)
            .map(|(id, identity)| {
                if !wanted(id) {
                    return Vec::new();
                }
                let namespace: &str = identity.namespace;
                let scopes = scopes
                    .entry(namespace)
                    .or_insert_with(|| index.scopes(&self.namespace_labels[namespace]));
                index.matches(identity.namespace, scopes, identity.labels)
            })
            .collect()
    }
}

/// Compiles the policies of a cluster. It cannot fail; what is odd about the input stands in [`Table::diagnostics`].
///
/// ```
/// use policy_compiler::cluster::Cluster;
/// use policy_compiler::compile::{Subjects, compile};
/// let table = compile(&Cluster::default(), &Subjects::All);
/// assert!(table.pods().is_empty());
/// ```
pub fn compile(cluster: &Cluster, subjects: &Subjects) -> Table {
    let addresses = AddressBook::new(cluster);
    let pods: Vec<Arc<Pod>> = cluster.pods.values().filter(|p| !p.ended).cloned().collect();
    let policies: Vec<Arc<Policy>> = cluster.policies.values().cloned().collect();
    let population = Population::new(cluster, &pods);

    let is_subject = |pod: &Pod| match subjects {
        Subjects::All => true,
        Subjects::Node(node) => pod.node.as_ref() == Some(node),
    };
    let mut with_subjects = vec![false; population.identities.len()];
    for (pod, identity) in pods.iter().zip(&population.identity_of) {
        if let Some(identity) = identity
            && is_subject(pod)
        {
            with_subjects[*identity as usize] = true;
        }
    }
    let mut index = SelectionIndex::default();
    for (id, policy) in (0..).zip(&policies) {
        index.insert(&policy.subject, id);
    }
    let selected_by = population.matches(&index, |identity| with_subjects[identity as usize]);

    let half = |direction: Direction| {
        let subjects: Vec<Subject> = (0..)
            .zip(&pods)
            .zip(&population.identity_of)
            .filter(|((_, pod), _)| is_subject(pod))
            .filter_map(|((index, _), identity)| {
                let policies = selected_by[identity.as_ref().copied()? as usize]
                    .iter()
                    .copied()
                    .filter(|p| policies[*p as usize].rules(direction).is_some())
                    .collect::<Vec<u32>>();
                (!policies.is_empty()).then_some(Subject {
                    pod: PodIndex(index),
                    policies,
                })
            })
            .collect();
        half::build(direction, &population, &policies, &addresses, subjects)
    };
    let (ingress, egress) = (half(Direction::Ingress), half(Direction::Egress));
    drop(population);
    let mut table = Table {
        pods,
        policies,
        addresses,
        ingress,
        egress,
        diagnostics: Vec::new(),
    };
    table.diagnostics = diagnostics::diagnose(cluster, &table, subjects);
    table
}
