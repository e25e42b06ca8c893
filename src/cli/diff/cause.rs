//! To which policies a changed connection is owed: the decision before and after in, names out.

use std::collections::BTreeSet;

use policy_compiler::evaluate::{Decision, Side};
use policy_compiler::policy::PolicyName;

/// The policies that a change is owed to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cause {
    /// Sorted.
    pub(super) policies: Vec<PolicyName>,
    /// Whether these policies themselves changed, rather than labels, addresses or other policies' reach.
    pub(super) changed: bool,
}

/// What lets pass what was denied, or the other way round, given which policies changed: on each side that denies it, the policies
/// of the two rules that decide, and where none of these changed, those that isolate the pod.
pub(super) fn of_verdict(denied: &Decision, allowed: &Decision, changed: impl Fn(&PolicyName) -> bool) -> Cause {
    let sides = denied.sides().into_iter().zip(allowed.sides());
    let sides: Vec<(&Side, &Side)> = sides.filter(|(denied, _)| !denied.allowed).collect();
    let deciding: BTreeSet<&PolicyName> = sides
        .iter()
        .flat_map(|(denied, allowed)| [&denied.decided_by, &allowed.decided_by])
        .flatten()
        .map(|rule| &rule.policy)
        .collect();
    let isolating = sides.iter().filter(|(denied, _)| denied.decided_by.is_none());
    let isolating: BTreeSet<&PolicyName> = isolating.flat_map(|(denied, _)| &denied.isolated_by).collect();
    cause(&[deciding, isolating], changed)
}

/// What audit tells now, or no longer tells.
pub(super) fn of_audit(told: &Decision, changed: impl Fn(&PolicyName) -> bool) -> Cause {
    cause(&[told.would_be_denied_by().into_iter().collect()], changed)
}

/// The first of these that have changed; if none has, the first that there are.
fn cause(candidates: &[BTreeSet<&PolicyName>], changed: impl Fn(&PolicyName) -> bool) -> Cause {
    let did = |set: &BTreeSet<&PolicyName>| -> Vec<PolicyName> {
        let did = set.iter().filter(|name| changed(name));
        did.map(|name| (*name).clone()).collect()
    };
    let found = candidates.iter().map(did).find(|did| !did.is_empty());
    Cause {
        changed: found.is_some(),
        policies: found.unwrap_or_else(|| {
            let first = candidates.iter().find(|set| !set.is_empty());
            first.into_iter().flatten().map(|name| (*name).clone()).collect()
        }),
    }
}
