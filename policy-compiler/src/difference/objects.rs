//! Which policies and namespaces differ, in what, and whether a change makes any difference: two clusters in, changed objects out.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::discriminant;
use std::sync::Arc;

use super::{Comparison, End};
use crate::cluster::{Cluster, Endpoint, Namespace};
use crate::compile::{Compiler, Event, Subjects};
use crate::diagnostics;
use crate::labels::{Labels, Name};
use crate::policy::{Enforcement, Policy, PolicyName, Tier};
use crate::table::Table;

/// Something in which an object can differ.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aspect {
    /// The pods that a policy is about.
    Subject,
    /// The ingress rules, or whether there are any.
    Ingress,
    /// The egress rules, or whether there are any.
    Egress,
    /// The tier or the priority of a cluster-wide policy.
    Order,
    /// What the annotation [`MODE_ANNOTATION`](crate::policy::MODE_ANNOTATION) says, before and after.
    Mode(Option<Enforcement>, Option<Enforcement>),
    /// The labels of a namespace, before and after.
    Labels(Labels, Labels),
}

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It differs in these; never empty.
    Changed(Vec<Aspect>),
}

/// An object, before and after; of equal objects nothing is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object<T> {
    /// Before; none when it is new.
    pub before: Option<Arc<T>>,
    /// After; none when it is gone.
    pub after: Option<Arc<T>>,
    /// What became of it.
    pub change: Change,
}

/// A policy that differs.
pub type PolicyChange = Object<Policy>;

/// A namespace that differs.
pub type NamespaceChange = Object<Namespace>;

impl PolicyChange {
    /// Whether it selects a live pod in a cluster, as it was or as it is.
    pub fn selects_any(&self, table: &Table) -> bool {
        let mut versions = self.before.iter().chain(&self.after);
        versions.any(|policy| !diagnostics::subjects(table, policy).is_empty())
    }
}

impl NamespaceChange {
    /// Whether a live pod of a cluster is in it.
    pub fn holds_any(&self, table: &Table) -> bool {
        let either = self.after.as_ref().or(self.before.as_ref());
        either.is_some_and(|namespace| table.pods().any(|(_, pod)| pod.name.namespace == namespace.name))
    }
}

/// The policies that differ, sorted by name, cluster-wide ones first. One whose tier or priority is another is still the same policy; two
/// of one name in different tiers, as two kinds may have them, are not.
pub fn policies(before: &Cluster, after: &Cluster) -> Vec<PolicyChange> {
    type Versions = [Vec<Arc<Policy>>; 2];
    let mut by_name: BTreeMap<&PolicyName, Versions> = BTreeMap::new();
    for (version, cluster) in [before, after].into_iter().enumerate() {
        for policy in cluster.policies.values() {
            by_name.entry(&policy.name).or_default()[version].push(policy.clone());
        }
    }
    // Who is who: whatever is the same, then what only has another priority, then the rest.
    let alike: [fn(Tier, Tier) -> bool; 3] = [
        |old, new| old == new,
        |old, new| discriminant(&old) == discriminant(&new),
        |_, _| true,
    ];
    let mut changes = Vec::new();
    for [mut old, mut new] in by_name.into_values() {
        for alike in alike {
            old.retain(|policy| {
                let at = new.iter().position(|other| alike(policy.tier, other.tier));
                if let Some(at) = at {
                    changes.extend(object(Some(policy.clone()), Some(new.remove(at)), policy_aspects));
                }
                at.is_none()
            });
        }
        changes.extend(
            old.into_iter()
                .filter_map(|policy| object(Some(policy), None, policy_aspects)),
        );
        changes.extend(
            new.into_iter()
                .filter_map(|policy| object(None, Some(policy), policy_aspects)),
        );
    }
    changes
}

fn policy_aspects(old: &Policy, new: &Policy) -> Vec<Aspect> {
    let aspects = [
        (old.subject != new.subject).then_some(Aspect::Subject),
        (old.ingress != new.ingress).then_some(Aspect::Ingress),
        (old.egress != new.egress).then_some(Aspect::Egress),
        (old.tier != new.tier).then_some(Aspect::Order),
        (old.enforcement != new.enforcement).then_some(Aspect::Mode(old.enforcement, new.enforcement)),
    ];
    aspects.into_iter().flatten().collect()
}

/// The namespaces that differ, sorted by name.
pub fn namespaces(before: &Cluster, after: &Cluster) -> Vec<NamespaceChange> {
    let (before, after) = (&before.namespaces, &after.namespaces);
    let names: BTreeSet<&Name> = before.keys().chain(after.keys()).collect();
    let changes = names.into_iter().filter_map(|name| {
        object(before.get(name).cloned(), after.get(name).cloned(), |old, new| {
            let labels = || Aspect::Labels(old.labels.clone(), new.labels.clone());
            let aspects = [
                (old.labels != new.labels).then(labels),
                (old.enforcement != new.enforcement).then_some(Aspect::Mode(old.enforcement, new.enforcement)),
            ];
            aspects.into_iter().flatten().collect()
        })
    });
    changes.collect()
}

fn object<T: PartialEq>(
    before: Option<Arc<T>>,
    after: Option<Arc<T>>,
    aspects: impl Fn(&T, &T) -> Vec<Aspect>,
) -> Option<Object<T>> {
    let change = match (&before, &after) {
        (Some(old), Some(new)) if old == new => return None,
        (Some(old), Some(new)) => Change::Changed(aspects(old, new)),
        (None, _) => Change::Added,
        (_, None) => Change::Removed,
    };
    Some(Object { before, after, change })
}

/// What takes one change back, and makes it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revert {
    undo: Vec<Event>,
    redo: Vec<Event>,
}

impl From<&PolicyChange> for Revert {
    fn from(object: &PolicyChange) -> Self {
        let set = |policy: &Option<Arc<Policy>>| policy.clone().map(Event::Policy);
        let gone = |policy: &Option<Arc<Policy>>| policy.as_ref().map(|p| Event::PolicyGone(p.tier, p.name.clone()));
        Revert {
            undo: gone(&object.after).into_iter().chain(set(&object.before)).collect(),
            redo: gone(&object.before).into_iter().chain(set(&object.after)).collect(),
        }
    }
}

impl From<&NamespaceChange> for Revert {
    fn from(object: &NamespaceChange) -> Self {
        let set = |namespace: &Option<Arc<Namespace>>| namespace.clone().map(Event::Namespace);
        let gone =
            |namespace: &Option<Arc<Namespace>>| namespace.as_ref().map(|n| Event::NamespaceGone(n.name.clone()));
        Revert {
            undo: set(&object.before)
                .or_else(|| gone(&object.after))
                .into_iter()
                .collect(),
            redo: set(&object.after)
                .or_else(|| gone(&object.before))
                .into_iter()
                .collect(),
        }
    }
}

impl Revert {
    /// Of each change, whether it makes any difference beside the others: whether a connection, audit or isolation would be another in the
    /// cluster after without it. `table` is that cluster's. All of its pods are compared, new ones too, and the addresses among `ends`.
    pub fn effects(reverts: &[Revert], after: &Cluster, table: &Table, ends: &[End]) -> Vec<bool> {
        if reverts.is_empty() {
            return Vec::new();
        }
        let of_pods = table.pods().flat_map(|(_, pod)| table.addresses().endpoints(pod));
        let ends: BTreeSet<Endpoint> = ends.iter().map(|end| end.after.clone()).chain(of_pods).collect();
        let same = |end: Endpoint| End {
            before: end.clone(),
            after: end,
        };
        let ends: Vec<End> = ends.into_iter().map(same).collect();
        let mut compiler = Compiler::new(after, Subjects::All);
        let effects = reverts.iter().map(|revert| {
            revert
                .undo
                .iter()
                .cloned()
                .for_each(|event| drop(compiler.apply(event)));
            let comparison = Comparison {
                before: compiler.table(),
                after: table,
                ends: &ends,
            };
            let differs = comparison.differs();
            revert
                .redo
                .iter()
                .cloned()
                .for_each(|event| drop(compiler.apply(event)));
            differs
        });
        effects.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::Selector;
    use crate::policy::{NamespaceScope, PodSelection};

    const ADMIN: Tier = Tier::Admin { priority: 1 };
    const BASELINE: Tier = Tier::Baseline { priority: 1 };

    /// A cluster with a policy of one name in each of these tiers.
    fn cluster(tiers: &[Tier]) -> Cluster {
        let mut cluster = Cluster::default();
        for tier in tiers {
            cluster.add_policy(Policy {
                name: PolicyName {
                    namespace: None,
                    name: "shared".into(),
                },
                tier: *tier,
                enforcement: None,
                subject: PodSelection {
                    namespaces: NamespaceScope::Matching(Selector::default()),
                    pods: Selector::default(),
                },
                ingress: Some(Vec::new()),
                egress: None,
            });
        }
        cluster
    }

    #[track_caller]
    fn check(before: &[Tier], after: &[Tier], expected: &[(Option<Tier>, Option<Tier>)]) {
        let found = policies(&cluster(before), &cluster(after));
        let tier = |policy: &Option<Arc<Policy>>| policy.as_ref().map(|p| p.tier);
        let found: Vec<_> = found.iter().map(|o| (tier(&o.before), tier(&o.after))).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_policy_that_moved_is_the_same_and_its_namesake_is_not() {
        check(&[ADMIN], &[BASELINE], &[(Some(ADMIN), Some(BASELINE))]);
        check(&[ADMIN], &[ADMIN, BASELINE], &[(None, Some(BASELINE))]);
        check(&[ADMIN, BASELINE], &[BASELINE], &[(Some(ADMIN), None)]);
        check(&[ADMIN, BASELINE], &[ADMIN, BASELINE], &[]);
        let later = Tier::Admin { priority: 2 };
        check(&[ADMIN, BASELINE], &[later, BASELINE], &[(Some(ADMIN), Some(later))]);
        let last = Tier::Baseline { priority: 2 };
        check(
            &[ADMIN, BASELINE],
            &[last],
            &[(Some(BASELINE), Some(last)), (Some(ADMIN), None)],
        );
    }
}
