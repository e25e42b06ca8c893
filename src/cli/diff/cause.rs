//! To which policies a changed connection is owed: the decision before and after in, names out.

use std::collections::BTreeSet;

use policy_compiler::evaluate::Decision;
use policy_compiler::policy::PolicyName;

/// The policies that a change is owed to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cause {
    /// Sorted.
    pub(super) policies: Vec<PolicyName>,
    /// Whether these policies themselves changed, rather than labels, addresses or other policies' reach.
    pub(super) changed: bool,
}

/// What lets pass what was denied, or the other way round, given which policies changed: of each side that denies it, the policies
/// of the two rules that decide, and where none of these changed, those that isolate the pod.
pub(super) fn of_verdict(denied: &Decision, allowed: &Decision, changed: impl Fn(&PolicyName) -> bool) -> Cause {
    let sides = denied.sides().into_iter().zip(allowed.sides());
    let causes = sides.filter(|(denied, _)| !denied.allowed).map(|(denied, allowed)| {
        let deciding = [&denied.decided_by, &allowed.decided_by].into_iter().flatten();
        let isolating = denied.isolated_by.iter().filter(|_| denied.decided_by.is_none());
        cause(
            &[deciding.map(|rule| &rule.policy).collect(), isolating.collect()],
            &changed,
        )
    });
    united(causes.collect())
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

/// What both sides are owed to: where a policy of either has changed, those that have.
fn united(causes: Vec<Cause>) -> Cause {
    let changed = causes.iter().any(|cause| cause.changed);
    let causes = causes.into_iter().filter(|cause| cause.changed == changed);
    let policies: BTreeSet<PolicyName> = causes.flat_map(|cause| cause.policies).collect();
    Cause {
        policies: policies.into_iter().collect(),
        changed,
    }
}
