//! Finds which of many selections match a pod, through an index by namespace and by label: the work follows the
//! labels that a pod has, not the number of selectors there are.

use std::hash::Hash;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::labels::{Labels, Name, Operator, Selector};
use crate::policy::{NamespaceScope, PodSelection};

/// Where a selector stands in an index: under one requirement of its own.
enum Place<'a> {
    Pairs(&'a Name, &'a [Name]),
    Key(&'a Name),
    /// It asks for no label: everything, NotIn, DoesNotExist.
    Rest,
}

fn place(selector: &Selector) -> Place<'_> {
    let requirements = selector.requirements();
    let pairs = requirements.iter().find_map(|r| match &r.operator {
        Operator::In(values) => Some(Place::Pairs(&r.key, values)),
        _ => None,
    });
    let exists = || {
        requirements
            .iter()
            .find(|r| r.operator == Operator::Exists)
            .map(|r| Place::Key(&r.key))
    };
    pairs.or_else(exists).unwrap_or(Place::Rest)
}

/// Selectors under one place.
type Entries<T> = Vec<(Arc<Selector>, T)>;

/// Selectors by number, indexed by one requirement of each.
#[derive(Clone, Debug)]
struct SelectorIndex<T> {
    by_pair: FxHashMap<Name, FxHashMap<Name, Entries<T>>>,
    by_key: FxHashMap<Name, Entries<T>>,
    rest: Entries<T>,
}

impl<T> Default for SelectorIndex<T> {
    fn default() -> Self {
        SelectorIndex {
            by_pair: FxHashMap::default(),
            by_key: FxHashMap::default(),
            rest: Vec::new(),
        }
    }
}

impl<T: Copy + PartialEq> SelectorIndex<T> {
    fn insert(&mut self, selector: &Selector, id: T) {
        // One copy for all of its values: there may be thousands.
        let shared = Arc::new(selector.clone());
        match place(selector) {
            Place::Pairs(key, values) => {
                let by_value = self.by_pair.entry(key.clone()).or_default();
                for value in values {
                    by_value.entry(value.clone()).or_default().push((shared.clone(), id));
                }
            }
            Place::Key(key) => self.by_key.entry(key.clone()).or_default().push((shared.clone(), id)),
            Place::Rest => self.rest.push((shared.clone(), id)),
        }
    }

    fn remove(&mut self, selector: &Selector, id: T) {
        match place(selector) {
            Place::Pairs(key, values) => {
                if let Some(by_value) = self.by_pair.get_mut(key) {
                    values.iter().for_each(|value| remove_from(by_value, value, id));
                    if by_value.is_empty() {
                        self.by_pair.remove(key);
                    }
                }
            }
            Place::Key(key) => remove_from(&mut self.by_key, key, id),
            Place::Rest => self.rest.retain(|(_, i)| *i != id),
        }
    }

    /// Calls back with each selector that matches.
    fn matches(&self, labels: &Labels, mut found: impl FnMut(T)) {
        let mut take = |candidates: &[(Arc<Selector>, T)]| {
            candidates
                .iter()
                .filter(|(s, _)| s.matches(labels))
                .for_each(|(_, id)| found(*id));
        };
        take(&self.rest);
        for (key, value) in labels.iter() {
            if let Some(candidates) = self.by_pair.get(key).and_then(|by_value| by_value.get(value)) {
                take(candidates);
            }
            if let Some(candidates) = self.by_key.get(key) {
                take(candidates);
            }
        }
    }
}

fn remove_from<K: Hash + Eq, T: PartialEq>(map: &mut FxHashMap<K, Entries<T>>, key: &K, id: T) {
    if let Some(list) = map.get_mut(key) {
        list.retain(|(_, i)| *i != id);
        if list.is_empty() {
            map.remove(key);
        }
    }
}

/// Pod selections by number, indexed by namespace first.
#[derive(Clone, Debug, Default)]
pub(crate) struct SelectionIndex {
    named: FxHashMap<Name, SelectorIndex<u32>>,
    /// Namespace selectors in use, each with the pod selectors used with it.
    scopes: SelectorIndex<usize>,
    scope_ids: FxHashMap<Selector, usize>,
    matching: slab::Slab<(usize, SelectorIndex<u32>)>,
}

impl SelectionIndex {
    pub(crate) fn insert(&mut self, selection: &PodSelection, id: u32) {
        match &selection.namespaces {
            NamespaceScope::Named(name) => {
                self.named.entry(name.clone()).or_default().insert(&selection.pods, id);
            }
            NamespaceScope::Matching(scope) => {
                let at = *self.scope_ids.entry(scope.clone()).or_insert_with(|| {
                    let at = self.matching.insert((0, SelectorIndex::default()));
                    self.scopes.insert(scope, at);
                    at
                });
                self.matching[at].0 += 1;
                self.matching[at].1.insert(&selection.pods, id);
            }
        }
    }

    pub(crate) fn remove(&mut self, selection: &PodSelection, id: u32) {
        match &selection.namespaces {
            NamespaceScope::Named(name) => {
                if let Some(index) = self.named.get_mut(name) {
                    index.remove(&selection.pods, id);
                    if index.rest.is_empty() && index.by_key.is_empty() && index.by_pair.is_empty() {
                        self.named.remove(name);
                    }
                }
            }
            NamespaceScope::Matching(scope) => {
                let Some(at) = self.scope_ids.get(scope).copied() else {
                    return;
                };
                self.matching[at].1.remove(&selection.pods, id);
                self.matching[at].0 -= 1;
                if self.matching[at].0 == 0 {
                    self.matching.remove(at);
                    self.scope_ids.remove(scope);
                    self.scopes.remove(scope, at);
                }
            }
        }
    }

    /// The numbers of the selections that match a pod, sorted.
    pub(crate) fn matches(&self, namespace: &Name, namespace_labels: &Labels, labels: &Labels) -> Vec<u32> {
        let mut out = Vec::new();
        if let Some(index) = self.named.get(namespace) {
            index.matches(labels, |id| out.push(id));
        }
        self.scopes.matches(namespace_labels, |at| {
            self.matching[at].1.matches(labels, |id| out.push(id))
        });
        out.sort_unstable();
        out
    }
}
