//! The pods of a cluster, sorted by what selectors can see of them: pods of one namespace with equal labels are one identity.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use slab::Slab;

use crate::cluster::{Pod, PodName};
use crate::labels::{Labels, NAMESPACE_NAME_LABEL, Name, Operator};
use crate::policy::{NamespaceScope, PodSelection};
use crate::rules::PortName;
use crate::table::PodIndex;

/// Pods of one namespace with equal labels: no selector can tell them apart. Host-network pods have no identity.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) namespace: Name,
    pub(crate) labels: Labels,
    pub(crate) pods: BTreeSet<PodIndex>,
    /// The port names of the pod that came last: mostly those of the next one too.
    declared: Declared,
}

/// The ports that a pod declares by name, with their numbers; sorted.
pub(crate) type Declared = Arc<[(PortName, u16)]>;

/// Live pods, and their identities.
#[derive(Clone, Debug, Default)]
pub(crate) struct Population {
    pub(crate) pods: Slab<Arc<Pod>>,
    by_name: FxHashMap<PodName, PodIndex>,
    /// By pod.
    identity_of: Vec<Option<u32>>,
    /// By pod.
    declared: Vec<Declared>,
    none_declared: Declared,
    pub(crate) identities: Slab<Identity>,
    identity_ids: FxHashMap<Name, FxHashMap<Labels, u32>>,
    by_pair: FxHashMap<Name, FxHashMap<Name, FxHashSet<u32>>>,
    /// Labels of the namespaces that are known.
    namespaces: FxHashMap<Name, Labels>,
}

impl Population {
    pub(crate) fn index(&self, name: &PodName) -> Option<PodIndex> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn pod(&self, index: PodIndex) -> &Arc<Pod> {
        &self.pods[index.0 as usize]
    }

    pub(crate) fn identity_of(&self, pod: PodIndex) -> Option<u32> {
        self.identity_of[pod.0 as usize]
    }

    /// The ports that a pod declares by name.
    pub(crate) fn declared(&self, pod: PodIndex) -> &Declared {
        &self.declared[pod.0 as usize]
    }

    pub(crate) fn identity(&self, id: u32) -> &Identity {
        &self.identities[id as usize]
    }

    /// Adds a pod that is not there yet.
    pub(crate) fn insert(&mut self, pod: Arc<Pod>) -> PodIndex {
        let index = PodIndex(self.pods.insert(pod.clone()) as u32);
        self.by_name.insert(pod.name.clone(), index);
        let identity = (!pod.host_network).then(|| self.identity_for(&pod));
        let declared = match identity {
            Some(identity) if pod.ports.iter().any(|p| p.name.is_some()) => {
                let identity = &mut self.identities[identity as usize];
                let declared = declared(&pod);
                if *identity.declared != *declared {
                    identity.declared = declared.into();
                }
                identity.declared.clone()
            }
            _ => self.none_declared.clone(),
        };
        if let Some(identity) = identity {
            self.identities[identity as usize].pods.insert(index);
        }
        let at = index.0 as usize;
        if self.identity_of.len() <= at {
            self.identity_of.resize(at + 1, None);
            self.declared.resize(at + 1, self.none_declared.clone());
        }
        self.identity_of[at] = identity;
        self.declared[at] = declared;
        index
    }

    /// Removes a pod; answers with its identity if that is gone too.
    pub(crate) fn remove(&mut self, index: PodIndex) -> Option<u32> {
        let pod = self.pods.remove(index.0 as usize);
        self.declared[index.0 as usize] = self.none_declared.clone();
        self.by_name.remove(&pod.name);
        let id = self.identity_of[index.0 as usize].take()?;
        let identity = &mut self.identities[id as usize];
        identity.pods.remove(&index);
        if !identity.pods.is_empty() {
            return None;
        }
        let Identity { namespace, labels, .. } = self.identities.remove(id as usize);
        for (key, value) in labels.iter() {
            if let Some(by_value) = self.by_pair.get_mut(key)
                && let Some(ids) = by_value.get_mut(value)
            {
                ids.remove(&id);
                if ids.is_empty() {
                    by_value.remove(value);
                }
                if by_value.is_empty() {
                    self.by_pair.remove(key);
                }
            }
        }
        if let Some(ids) = self.identity_ids.get_mut(&namespace) {
            ids.remove(&labels);
            if ids.is_empty() {
                self.identity_ids.remove(&namespace);
            }
        }
        Some(id)
    }

    fn identity_for(&mut self, pod: &Pod) -> u32 {
        let namespace = &pod.name.namespace;
        let of_namespace = self.identity_ids.entry(namespace.clone()).or_default();
        if let Some(id) = of_namespace.get(&pod.labels) {
            return *id;
        }
        let identity = Identity {
            namespace: namespace.clone(),
            labels: pod.labels.clone(),
            pods: BTreeSet::new(),
            declared: self.none_declared.clone(),
        };
        let id = self.identities.insert(identity) as u32;
        of_namespace.insert(pod.labels.clone(), id);
        for (key, value) in pod.labels.iter() {
            self.by_pair
                .entry(key.clone())
                .or_default()
                .entry(value.clone())
                .or_default()
                .insert(id);
        }
        id
    }

    /// Sets what is known of a namespace's labels; whether that changed them.
    pub(crate) fn set_namespace(&mut self, name: &Name, labels: Option<&Labels>) -> bool {
        let before = self.namespace_labels(name).into_owned();
        match labels {
            Some(labels) => self.namespaces.insert(name.clone(), labels.clone()),
            None => self.namespaces.remove(name),
        };
        before != *self.namespace_labels(name)
    }

    /// The namespaces that are known, in no order.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = (&Name, &Labels)> {
        self.namespaces.iter()
    }

    /// The labels of a namespace; of one that is not known, just its name label.
    pub(crate) fn namespace_labels(&self, name: &Name) -> Cow<'_, Labels> {
        match self.namespaces.get(name) {
            Some(labels) => Cow::Borrowed(labels),
            None => Cow::Owned(Labels::default().with(NAMESPACE_NAME_LABEL, name)),
        }
    }

    /// The identities of a namespace.
    pub(crate) fn in_namespace(&self, namespace: &Name) -> Vec<u32> {
        self.identity_ids
            .get(namespace)
            .map(|ids| ids.values().copied().collect())
            .unwrap_or_default()
    }

    /// The identities that a selection matches.
    pub(crate) fn matching(&self, selection: &PodSelection) -> Vec<u32> {
        let mut out: Vec<u32> = match &selection.namespaces {
            NamespaceScope::Named(name) => self.in_namespace(name),
            NamespaceScope::Matching(scope) => {
                let pairs = selection.pods.requirements().iter().find_map(|r| match &r.operator {
                    Operator::In(values) => Some((&r.key, values)),
                    _ => None,
                });
                let mut matched: FxHashMap<&Name, bool> = FxHashMap::default();
                let mut in_scope = |id: &u32| {
                    let namespace = &self.identity(*id).namespace;
                    *matched
                        .entry(namespace)
                        .or_insert_with(|| scope.matches(&self.namespace_labels(namespace)))
                };
                match pairs {
                    Some((key, values)) => {
                        let by_value = self.by_pair.get(key);
                        let sets = values.iter().filter_map(|v| by_value?.get(v));
                        sets.flatten().copied().filter(|id| in_scope(id)).collect()
                    }
                    None => self
                        .identity_ids
                        .values()
                        .flat_map(|ids| ids.values())
                        .copied()
                        .filter(|id| in_scope(id))
                        .collect(),
                }
            }
        };
        out.retain(|id| selection.pods.matches(&self.identity(*id).labels));
        out
    }
}

fn declared(pod: &Pod) -> Vec<(PortName, u16)> {
    let named = pod
        .ports
        .iter()
        .filter_map(|p| Some(((p.protocol, p.name.clone()?), p.number)));
    let mut out: Vec<(PortName, u16)> = named.collect();
    out.sort_unstable();
    out.dedup();
    out
}
