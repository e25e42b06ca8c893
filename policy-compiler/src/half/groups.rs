//! Subjects sorted into groups, and what the rules of a group add for the peers that they match.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustc_hash::FxHashSet;
use slab::Slab;

use super::{Contribution, Contributions, GroupKey, Half, Signature, SignatureId, Term, Usage};
use crate::policy::{Direction, Peer, Policy, Tier};
use crate::population::Population;
use crate::rules::{PortName, Prepared, resolve};
use crate::table::{Group, GroupId, PodIndex};

impl Half {
    /// Makes pods subjects, judged by these policies (all speak of this direction; in their order of evaluation; all in force, or all audited).
    pub(crate) fn add_subjects(
        &mut self,
        pods: &[PodIndex],
        population: &Population,
        policies: &[u32],
        audited: bool,
        all: &Slab<Arc<Policy>>,
    ) {
        for policy in policies {
            self.use_policy(*policy, all);
        }
        let mut rules = policies.iter().flat_map(|p| self.usages[p].rules.iter());
        let names_ports = self.direction == Direction::Ingress && rules.any(|r| !r.names.is_empty());
        let mut last: Option<GroupId> = None;
        for index in pods {
            let group = match last {
                Some(group) if !names_ports => group,
                _ => {
                    let named = |name: &PortName| {
                        let mut rules = policies.iter().flat_map(|p| self.usages[p].rules.iter());
                        rules.any(|r| r.names.contains(name))
                    };
                    let names = match names_ports {
                        true => resolve(population.declared(*index), named, &mut self.sets),
                        false => self.no_names.clone(),
                    };
                    let policies = policies.to_vec();
                    let key = GroupKey {
                        policies,
                        names,
                        audited,
                    };
                    match self.group_ids.get(&key) {
                        Some(group) => *group,
                        None => self.add_group(key, all),
                    }
                }
            };
            last = Some(group);
            self.groups[group.0 as usize].members.insert(*index);
            if self.group_of.len() <= index.0 as usize {
                self.group_of.resize(index.0 as usize + 1, None);
            }
            self.group_of[index.0 as usize] = Some(group);
            self.pending.changes.subjects.insert(*index);
        }
        for policy in policies {
            self.release_policy(*policy);
        }
    }

    /// Makes a pod no longer a subject.
    pub(crate) fn remove_subject(&mut self, index: PodIndex) {
        let Some(group) = self.group_of.get_mut(index.0 as usize).and_then(Option::take) else {
            return;
        };
        let members = &mut self.groups[group.0 as usize].members;
        members.remove(&index);
        if members.is_empty() {
            self.pending.groups.push(group);
        }
        self.pending.changes.subjects.insert(index);
    }

    pub(super) fn use_policy(&mut self, id: u32, all: &Slab<Arc<Policy>>) {
        if let Some(usage) = self.usages.get_mut(&id) {
            usage.groups += 1;
            return;
        }
        let policy = &all[id as usize];
        let rules = policy.rules(self.direction).unwrap_or_default();
        let (terms, term_ids, pending) = (&mut self.terms, &mut self.term_ids, &mut self.pending.terms);
        let mut term = |peer: &Peer| match term_ids.get(peer) {
            Some(id) => {
                terms[*id as usize].uses += 1;
                *id
            }
            None => {
                let id = terms.insert(Term {
                    peer: peer.clone(),
                    uses: 1,
                    applied: false,
                    contributions: Contributions::default(),
                    signatures: FxHashSet::default(),
                }) as u32;
                term_ids.insert(peer.clone(), id);
                pending.push(id);
                id
            }
        };
        let sets = &mut self.sets;
        let rules = rules.iter().map(|rule| Prepared::new(rule, sets, &mut term)).collect();
        let tiered = (policy.tier != Tier::NetworkPolicy).then_some(policy.tier);
        self.usages.insert(
            id,
            Usage {
                rules,
                groups: 1,
                tiered,
            },
        );
    }

    pub(super) fn release_policy(&mut self, id: u32) {
        let Some(usage) = self.usages.get_mut(&id) else { return };
        usage.groups -= 1;
        if usage.groups > 0 {
            return;
        }
        let Some(usage) = self.usages.remove(&id) else { return };
        for term in usage.rules.iter().flat_map(|r| &r.terms) {
            self.terms[*term as usize].uses -= 1;
            if self.terms[*term as usize].uses == 0 {
                self.pending.terms.push(*term);
            }
        }
    }

    pub(super) fn add_group(&mut self, key: GroupKey, all: &Slab<Arc<Policy>>) -> GroupId {
        for policy in &key.policies {
            self.use_policy(*policy, all);
        }
        let isolated = !key.audited && key.policies.iter().any(|p| all[*p as usize].isolates(self.direction));
        let defaults = [self.none; 6];
        let policies = key.policies.clone();
        let group = Group {
            policies,
            isolated,
            audited: key.audited,
            members: BTreeSet::new(),
            defaults,
            names: key.names.clone(),
        };
        let id = GroupId(self.groups.insert(group) as u32);
        self.group_ids.insert(key, id);
        self.pending.changes.groups.insert(id);
        self.contribute(id);
        let affected = self.affected(id);
        self.recolour(id, affected);
        id
    }

    /// Drops the groups that have lost their last member.
    pub(crate) fn drop_empty_groups(&mut self) {
        for group in std::mem::take(&mut self.pending.groups) {
            let emptied = self.groups.get(group.0 as usize).is_some_and(|g| g.members.is_empty());
            if emptied {
                self.remove_group(group);
            }
        }
    }

    pub(super) fn remove_group(&mut self, id: GroupId) {
        let affected = self.affected(id);
        let group = self.groups.remove(id.0 as usize);
        self.group_ids.remove(&GroupKey {
            policies: group.policies.clone(),
            names: group.names.clone(),
            audited: group.audited,
        });
        self.tiered.remove(&id);
        for kind in &mut self.by_kind {
            kind.remove(&id);
        }
        for policy in &group.policies {
            let rules = self.usages[policy].rules.clone();
            for term in rules.iter().flat_map(|r| &r.terms) {
                self.terms[*term as usize].contributions.remove(&id);
            }
        }
        self.recolour(id, affected);
        for policy in &group.policies {
            self.release_policy(*policy);
        }
        self.pending.changes.groups.insert(id);
    }

    /// Works out a new group's defaults, and what each term adds to it.
    pub(super) fn contribute(&mut self, id: GroupId) {
        let group = &self.groups[id.0 as usize];
        if group.policies.iter().any(|p| self.usages[p].tiered.is_some()) {
            // A rule of another tier can take away: such a group's cells are worked out one by one.
            self.tiered.insert(id);
            return;
        }
        let mut defaults = [const { Vec::new() }; 6];
        let rules: Vec<Arc<[Prepared]>> = group.policies.iter().map(|p| self.usages[p].rules.clone()).collect();
        let names = group.names.clone();
        for rule in rules.iter().flat_map(|r| r.iter()) {
            let contribution = match self.direction {
                // A name is the same number for every peer: that of the group's own pods.
                Direction::Ingress => {
                    let resolved = names.iter().filter(|(name, _)| rule.names.contains(name));
                    let fixed = resolved.fold(rule.fixed, |set, (_, ports)| self.sets.union(set, *ports));
                    Contribution {
                        fixed,
                        names: Arc::new([]),
                    }
                }
                Direction::Egress => Contribution {
                    fixed: rule.fixed,
                    names: rule.names.clone(),
                },
            };
            for (kind, default) in defaults.iter_mut().enumerate().filter(|(kind, _)| rule.kinds[*kind]) {
                default.push(contribution.fixed);
                if !contribution.names.is_empty() {
                    self.by_kind[kind].entry(id).or_default().push(contribution.clone());
                }
            }
            for term in &rule.terms {
                self.terms[*term as usize]
                    .contributions
                    .entry(id)
                    .or_default()
                    .push(contribution.clone());
            }
        }
        self.groups[id.0 as usize].defaults = defaults.map(|sets| match sets.is_empty() {
            true => self.none,
            false => self.sets.union_of(&sets),
        });
    }

    /// The signatures whose cell of this group may differ from its default.
    pub(super) fn affected(&self, id: GroupId) -> Vec<SignatureId> {
        if self.tiered.contains(&id) {
            return self.signatures.iter().map(|(id, _)| id as u32).collect();
        }
        let group = self.group(id);
        let rules = group.policies.iter().flat_map(|p| self.usages[p].rules.iter());
        let mut out: FxHashSet<SignatureId> = FxHashSet::default();
        for term in rules.flat_map(|r| &r.terms) {
            out.extend(&self.terms[*term as usize].signatures);
        }
        for (kind, contributions) in self.by_kind.iter().enumerate() {
            if contributions.contains_key(&id) {
                let named = |s: &Signature| s.key.kind as usize == kind && !s.key.names.is_empty();
                out.extend(
                    self.signatures
                        .iter()
                        .filter(|(_, s)| named(s))
                        .map(|(id, _)| id as u32),
                );
            }
        }
        let mut out: Vec<SignatureId> = out.into_iter().collect();
        out.sort_unstable();
        out
    }
}
