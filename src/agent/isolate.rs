//! When the kernel refuses the rules: finds the policies that it refuses, by dry runs, and puts in place of each a form that
//! allows nothing, so that everybody else's policy is enforced. No clock, no log: whoever asks tells.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use policy_compiler::cluster::Cluster;
use policy_compiler::policy::{Action, Peers, Policy, PolicyName, Ports, Rule, Tier};

use super::enforcer::ApplyError;
use crate::nft::KernelError;

/// More refused policies than this are not told apart: whatever was not cleared by then is closed as well, in their namespaces,
/// and if that does not help, everywhere.
const MOST: usize = 4;

/// What a cluster calls a policy.
type Key = (Tier, PolicyName);

/// The policies of a cluster.
pub type Policies = BTreeMap<(Tier, PolicyName), Arc<Policy>>;

/// The policies that the kernel refuses, as they were when it did.
#[derive(Clone, Debug, Default)]
pub struct Isolation {
    refused: Policies,
}

impl Isolation {
    /// The cluster with the refused policies closed; none when there are none. A policy that has changed since, or is
    /// gone, gets its chance.
    pub fn close(&mut self, cluster: &Cluster) -> Option<Cluster> {
        self.refused
            .retain(|key, refused| cluster.policies.get(key).is_some_and(|now| now == refused));
        (!self.refused.is_empty()).then(|| with_closed(cluster, &self.refused.keys().cloned().collect()))
    }

    /// Finds the policies for which the kernel refuses this cluster: among those that are not what they were in `before`,
    /// and if it is none of these, among all. `check` is a dry run. Says whether there are any that were not known; if
    /// not, the policies are not to blame.
    ///
    /// It takes two dry runs, and for each refused policy as many as the policies can be halved and one more.
    pub fn seek(
        &mut self,
        cluster: &Cluster,
        before: &Policies,
        mut check: impl FnMut(&Cluster) -> Result<(), ApplyError>,
    ) -> Result<bool, ApplyError> {
        let known: BTreeSet<Key> = self.refused.keys().cloned().collect();
        let all: Vec<&Key> = cluster.policies.keys().filter(|key| !known.contains(*key)).collect();
        let same = |key: &Key| before.get(key) == cluster.policies.get(key);
        let changed: Vec<&Key> = all.iter().copied().filter(|key| !same(key)).collect();
        let mut refused = |closed: BTreeSet<Key>| {
            let closed = with_closed(cluster, &closed.union(&known).cloned().collect());
            match check(&closed) {
                Ok(()) => Ok(false),
                Err(ApplyError::Kernel(KernelError::Refused(_))) => Ok(true),
                // Nothing is learned from a dry run that failed for another reason.
                Err(error) => Err(error),
            }
        };
        if !refused(BTreeSet::new())? {
            return Ok(false);
        }
        let suspects = if changed.len() < all.len() {
            vec![changed, all]
        } else {
            vec![all]
        };
        for suspects in suspects {
            if let Some(guilty) = search(&suspects, &mut refused)? {
                let policies = guilty.into_iter().filter_map(|key| {
                    let policy = cluster.policies.get(&key)?.clone();
                    Some((key, policy))
                });
                self.refused.extend(policies);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How many policies are closed.
    pub fn count(&self) -> usize {
        self.refused.len()
    }

    /// The closed policies that are NetworkPolicies.
    pub fn network_policies(&self) -> Vec<PolicyName> {
        let keys = self.refused.keys();
        keys.filter(|(tier, _)| *tier == Tier::NetworkPolicy)
            .map(|(_, name)| name.clone())
            .collect()
    }

    /// One line for each closed policy, for people.
    pub fn lines(&self) -> Vec<String> {
        let line = |(tier, name): &Key| {
            let kind = match tier {
                Tier::NetworkPolicy => "NetworkPolicy",
                Tier::Admin { .. } | Tier::Baseline { .. } => "ClusterNetworkPolicy",
            };
            format!("the kernel refuses the rules of {kind} {name}: what only it allows is denied until it changes")
        };
        self.refused.keys().map(line).collect()
    }
}

/// The fewest suspects that must be closed so that the others are accepted, which is known not to be so when none is; none
/// when closing all of them does not help.
fn search<E>(
    suspects: &[&Key],
    refused: &mut impl FnMut(BTreeSet<Key>) -> Result<bool, E>,
) -> Result<Option<BTreeSet<Key>>, E> {
    let after = |first: usize| suspects[first..].iter().copied().cloned();
    if suspects.is_empty() || refused(after(0).collect())? {
        return Ok(None);
    }
    let mut guilty: BTreeSet<Key> = BTreeSet::new();
    // Accepted: with the guilty closed, so many of the first open.
    let mut good = 0;
    loop {
        let mut bad = suspects.len();
        while bad - good > 1 {
            let middle = usize::midpoint(good, bad);
            match refused(guilty.iter().cloned().chain(after(middle)).collect())? {
                true => bad = middle,
                false => good = middle,
            }
        }
        guilty.insert(suspects[bad - 1].clone());
        good = bad;
        if good == suspects.len() || !refused(guilty.clone())? {
            return Ok(Some(guilty));
        }
        if guilty.len() == MOST {
            // First those of the same namespaces: a tenant's many refused policies shall not close the others'.
            let owners: BTreeSet<_> = guilty.iter().map(|(_, name)| name.namespace.clone()).collect();
            let theirs = after(good).filter(|(_, name)| owners.contains(&name.namespace));
            let theirs: BTreeSet<Key> = theirs.chain(guilty.iter().cloned()).collect();
            if !refused(theirs.clone())? {
                return Ok(Some(theirs));
            }
            guilty.extend(after(good));
            return Ok(Some(guilty));
        }
    }
}

fn with_closed(cluster: &Cluster, keys: &BTreeSet<Key>) -> Cluster {
    let mut cluster = cluster.clone();
    for key in keys {
        if let Some(policy) = cluster.policies.get(key) {
            cluster.add_policy(closed(policy));
        }
    }
    cluster
}

/// A policy of the same pods and directions that allows nothing.
fn closed(policy: &Policy) -> Policy {
    let isolates = policy.tier == Tier::NetworkPolicy;
    let rules = |rules: &Vec<Rule>| {
        let only_accepts = rules.iter().all(|rule| rule.action == Action::Accept);
        // In the other tiers, silence hands on to the next one: so it may not take the place of a denial, nor of a rule
        // that leads past one.
        match isolates || only_accepts {
            true => Vec::new(),
            false => vec![Rule {
                action: Action::Deny,
                peers: Peers::All,
                ports: Ports::All,
            }],
        }
    };
    Policy {
        ingress: policy.ingress.as_ref().map(rules),
        egress: policy.egress.as_ref().map(rules),
        ..policy.clone()
    }
}

#[cfg(test)]
mod tests;
