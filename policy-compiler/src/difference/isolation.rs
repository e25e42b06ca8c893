//! Who became isolated, and who no longer is: two tables and their pods in, groups of pods out.

use std::collections::BTreeMap;

use super::Pods;
use crate::cluster::PodName;
use crate::policy::{Direction, PolicyName, Tier};
use crate::table::Table;

/// Pods that are isolated in one of the clusters only, for one direction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isolation {
    /// The direction.
    pub direction: Direction,
    /// Whether they are isolated after.
    pub isolated: bool,
    /// The policies that isolate them: after, or before if they no longer are.
    pub policies: Vec<PolicyName>,
    /// The numbers of the pods among the pairs, sorted.
    pub pods: Vec<usize>,
}

/// Who became isolated, and who no longer is.
pub fn isolation(before: &Table, after: &Table, pods: &Pods) -> Vec<Isolation> {
    let isolating = |table: &Table, pod: &PodName, direction| {
        let half = table.half(direction);
        let group = table.pod_index(pod).and_then(|pod| half.group_in_force(pod));
        let group = group.map(|id| half.group(id)).filter(|group| group.isolated)?;
        let policies = group.policies.iter().map(|at| table.policy(*at));
        let policies = policies.filter(|p| p.tier == Tier::NetworkPolicy);
        Some(policies.map(|p| p.name.clone()).collect::<Vec<_>>())
    };
    let mut found: BTreeMap<(Direction, bool, Vec<PolicyName>), Vec<usize>> = BTreeMap::new();
    for (at, (old, new)) in pods.both.iter().enumerate() {
        for direction in Direction::BOTH {
            let was = isolating(before, &old.name, direction);
            let is = isolating(after, &new.name, direction);
            let (isolated, policies) = match (was, is) {
                (None, Some(policies)) => (true, policies),
                (Some(policies), None) => (false, policies),
                _ => continue,
            };
            found.entry((direction, isolated, policies)).or_default().push(at);
        }
    }
    let found = found
        .into_iter()
        .map(|((direction, isolated, policies), pods)| Isolation {
            direction,
            isolated,
            policies,
            pods,
        });
    found.collect()
}
