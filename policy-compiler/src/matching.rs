//! Finds which of many selections match a pod, through an index by namespace and by label: the work follows the
//! labels that a pod has, not the number of selectors there are.

use rustc_hash::FxHashMap;

use crate::labels::{Labels, Name, Operator, Selector};
use crate::policy::{NamespaceScope, PodSelection};

/// Selectors, indexed by one requirement of each.
#[derive(Default)]
pub(crate) struct SelectorIndex<'a> {
    by_pair: FxHashMap<(&'a str, &'a str), Vec<(&'a Selector, u32)>>,
    by_key: FxHashMap<&'a str, Vec<(&'a Selector, u32)>>,
    /// Selectors that ask for no label: everything, NotIn, DoesNotExist.
    rest: Vec<(&'a Selector, u32)>,
}

impl<'a> SelectorIndex<'a> {
    pub(crate) fn insert(&mut self, selector: &'a Selector, id: u32) {
        let requirements = selector.requirements();
        let pairs = requirements.iter().find_map(|r| match &r.operator {
            Operator::In(values) => Some((&r.key, values)),
            _ => None,
        });
        let exists = requirements.iter().find(|r| r.operator == Operator::Exists);
        if let Some((key, values)) = pairs {
            for value in values {
                self.by_pair.entry((key, value)).or_default().push((selector, id));
            }
        } else if let Some(requirement) = exists {
            self.by_key.entry(&requirement.key).or_default().push((selector, id));
        } else {
            self.rest.push((selector, id));
        }
    }

    /// Appends the ids of the selectors that match.
    pub(crate) fn matches(&self, labels: &Labels, out: &mut Vec<u32>) {
        let mut take = |candidates: &[(&Selector, u32)]| {
            out.extend(candidates.iter().filter(|(s, _)| s.matches(labels)).map(|(_, id)| *id));
        };
        take(&self.rest);
        for (key, value) in labels.iter() {
            if let Some(candidates) = self.by_pair.get(&(&**key, &**value)) {
                take(candidates);
            }
            if let Some(candidates) = self.by_key.get(&**key) {
                take(candidates);
            }
        }
    }
}

/// Pod selections, indexed by namespace first.
#[derive(Default)]
pub(crate) struct SelectionIndex<'a> {
    named: FxHashMap<&'a str, SelectorIndex<'a>>,
    scopes: SelectorIndex<'a>,
    scope_ids: FxHashMap<&'a Selector, u32>,
    matching: Vec<SelectorIndex<'a>>,
}

impl<'a> SelectionIndex<'a> {
    pub(crate) fn insert(&mut self, selection: &'a PodSelection, id: u32) {
        match &selection.namespaces {
            NamespaceScope::Named(name) => self.named.entry(name).or_default().insert(&selection.pods, id),
            NamespaceScope::Matching(scope) => {
                let at = *self.scope_ids.entry(scope).or_insert_with(|| {
                    let at = self.matching.len() as u32;
                    self.matching.push(SelectorIndex::default());
                    self.scopes.insert(scope, at);
                    at
                });
                self.matching[at as usize].insert(&selection.pods, id);
            }
        }
    }

    /// The namespace selectors that match these labels of a namespace; the same for all of its pods.
    pub(crate) fn scopes(&self, namespace: &Labels) -> Vec<u32> {
        let mut out = Vec::new();
        self.scopes.matches(namespace, &mut out);
        out
    }

    /// The ids of the selections that match a pod, sorted; `scopes` are those of its namespace.
    pub(crate) fn matches(&self, namespace: &Name, scopes: &[u32], labels: &Labels) -> Vec<u32> {
        let mut out = Vec::new();
        if let Some(index) = self.named.get(&**namespace) {
            index.matches(labels, &mut out);
        }
        for scope in scopes {
            self.matching[*scope as usize].matches(labels, &mut out);
        }
        out.sort_unstable();
        out
    }
}
