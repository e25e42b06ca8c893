//! Whether a rule, or a whole policy, could go without any cell of the table changing: a half in; what holds all the same out.
//!
//! It looks at groups and signatures, never at pods: a rule may go when in each group that its policy judges, for each signature that it
//! matches, the other rules together hold its ports. What has been found to go is taken away, so that of two that hold the same one stays.

use std::borrow::Cow;
use std::collections::BTreeSet;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{Half, PeerKey, Signature, SignatureId};
use crate::cells::{self, AddressRange};
use crate::policy::Direction;
use crate::ports::{PortSet, Traffic};
use crate::rules::Prepared;
use crate::table::{Group, GroupId};

/// Beside how many other rules for one peer a rule is looked at: each is compared with all of them.
const MOST: usize = 1000;

/// A rule: the number of its policy, and its own among the policy's rules of the direction.
pub(crate) type RuleId = (u32, usize);

/// What stays when something goes, and makes up for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cover {
    /// Rules that hold what it holds.
    pub(crate) rules: BTreeSet<RuleId>,
    /// Policies that isolate what it isolates.
    pub(crate) isolating: BTreeSet<u32>,
    /// Whether pods are then isolated by no policy, and it let them do everything.
    pub(crate) opens: bool,
}

/// A half, and what is gone of it.
pub(crate) struct Coverage<'h> {
    half: &'h Half,
    groups: FxHashMap<u32, Vec<GroupId>>,
    /// The rules that have a term.
    by_term: FxHashMap<u32, Vec<RuleId>>,
    /// By policy: its rules that match a whole kind.
    whole: FxHashMap<u32, Vec<RuleId>>,
    /// The signatures that some peer has, by kind.
    by_kind: [Vec<SignatureId>; 6],
    live: FxHashSet<SignatureId>,
    gone_policies: FxHashSet<u32>,
    gone_rules: FxHashSet<RuleId>,
}

impl<'h> Coverage<'h> {
    /// Of a half; `nowhere` tells whether there are host-network pods whose address is not known.
    pub(crate) fn new(half: &'h Half, nowhere: bool) -> Self {
        let mut coverage = Coverage {
            half,
            groups: FxHashMap::default(),
            by_term: FxHashMap::default(),
            whole: FxHashMap::default(),
            by_kind: Default::default(),
            live: FxHashSet::default(),
            gone_policies: FxHashSet::default(),
            gone_rules: FxHashSet::default(),
        };
        for (id, group) in half.groups().filter(|(_, group)| !group.audited) {
            for policy in &group.policies {
                coverage.groups.entry(*policy).or_default().push(id);
            }
        }
        // What a rule of another tier says holds nothing: it may not allow, and what it allows is decided before.
        for (policy, usage) in half.usages.iter().filter(|(_, usage)| usage.tiered.is_none()) {
            for (at, rule) in usage.rules.iter().enumerate() {
                for term in &rule.terms {
                    coverage.by_term.entry(*term).or_default().push((*policy, at));
                }
                if rule.kinds.contains(&true) {
                    coverage.whole.entry(*policy).or_default().push((*policy, at));
                }
            }
        }
        // In the order of evaluation of a policy's rules; that of policies is their numbers', which a fresh table has sorted.
        coverage.by_term.values_mut().for_each(|rules| rules.sort_unstable());
        for (id, signature) in half.signatures.iter() {
            if coverage.is_live(signature, nowhere) {
                coverage.live.insert(id as SignatureId);
                coverage.by_kind[signature.key.kind as usize].push(id as SignatureId);
            }
        }
        coverage
    }

    /// Whether a policy judges any pod.
    pub(crate) fn judges(&self, policy: u32) -> bool {
        self.groups.contains_key(&policy)
    }

    /// What makes up for a policy that goes; none when some cell would change.
    pub(crate) fn policy(&self, policy: u32) -> Option<Cover> {
        let mut cover = Cover::default();
        for id in self.groups.get(&policy).into_iter().flatten() {
            let group = self.half.group(*id);
            let staying = |p: &u32| *p != policy && !self.gone_policies.contains(p);
            let isolating = |p: &u32| staying(p) && self.half.usages[p].tiered.is_none();
            let known = group.policies.iter().find(|p| cover.isolating.contains(*p));
            match known.or_else(|| group.policies.iter().find(|p| isolating(p))) {
                Some(other) => drop(cover.isolating.insert(*other)),
                None if self.changes_nothing_by_itself(*id, policy) => {
                    cover.opens = true;
                    continue;
                }
                None => return None,
            }
            for at in 0..self.half.usages[&policy].rules.len() {
                self.cover_in(*id, (policy, at), |(p, _)| staying(&p), &mut cover.rules)?;
            }
        }
        Some(cover)
    }

    /// The rules that make up for one that goes; none when some cell would change.
    pub(crate) fn rule(&self, rule: RuleId) -> Option<BTreeSet<RuleId>> {
        let mut cover = BTreeSet::new();
        for group in self.groups.get(&rule.0).into_iter().flatten() {
            self.cover_in(*group, rule, |other| other != rule, &mut cover)?;
        }
        Some(cover)
    }

    /// Whether a rule has not been taken away, alone or with its policy.
    pub(crate) fn stays(&self, rule: RuleId) -> bool {
        !self.gone_policies.contains(&rule.0) && !self.gone_rules.contains(&rule)
    }

    /// Takes a policy away.
    pub(crate) fn remove_policy(&mut self, policy: u32) {
        self.gone_policies.insert(policy);
    }

    /// Takes a rule away.
    pub(crate) fn remove_rule(&mut self, rule: RuleId) {
        self.gone_rules.insert(rule);
    }

    /// Whether in one group the rules that stay hold what a rule holds; they are added to the cover.
    fn cover_in(
        &self,
        id: GroupId,
        rule: RuleId,
        stays: impl Fn(RuleId) -> bool,
        cover: &mut BTreeSet<RuleId>,
    ) -> Option<()> {
        let group = self.half.group(id);
        let prepared = self.prepared(rule);
        let whole = group.policies.iter().filter_map(|policy| self.whole.get(policy));
        let whole: Vec<RuleId> = whole.flatten().copied().collect();
        for signature in self.matched(prepared) {
            let signature = &self.half.signatures[signature as usize];
            let mut needed = self.ports(prepared, group, signature).into_owned();
            if needed.is_empty() {
                continue;
            }
            let others = self.matching(group, &whole, signature).filter(|r| stays(*r));
            let mut others: Vec<RuleId> = others.take(MOST + 1).collect();
            if others.len() > MOST {
                return None;
            }
            // What serves elsewhere already goes first: the fewer names, the better the answer.
            others.sort_by_key(|other| !cover.contains(other));
            let held = |other: &&RuleId| {
                self.ports(self.prepared(**other), group, signature)
                    .contains_all(&needed)
            };
            if let Some(other) = others.iter().find(held) {
                cover.insert(*other);
                continue;
            }
            for other in others {
                let rest = needed.minus(&self.ports(self.prepared(other), group, signature));
                if rest != needed {
                    cover.insert(other);
                    needed = rest;
                }
            }
            if !needed.is_empty() {
                return None;
            }
        }
        Some(())
    }

    /// Whether a policy, of which all others of a group are gone, lets its pods do everything, as they could without any policy; and as they
    /// could beside those others, or it is this one that allows what they do not.
    fn changes_nothing_by_itself(&self, id: GroupId, policy: u32) -> bool {
        let all = self.half.group(id).policies.iter().copied();
        let others: Vec<u32> = all.filter(|other| *other != policy).collect();
        let tiered = others.iter().any(|other| self.half.usages[other].tiered.is_some());
        let beside = |others: &[u32]| others.is_empty() || self.let_do_everything(id, others);
        !tiered && self.let_do_everything(id, &[policy]) && beside(&others)
    }

    /// Whether some policies of a group alone let its pods do everything.
    fn let_do_everything(&self, id: GroupId, policies: &[u32]) -> bool {
        let group = self.half.group(id);
        let rules = || policies.iter().flat_map(|policy| self.half.usages[policy].rules.iter());
        self.live.iter().all(|signature| {
            let signature = &self.half.signatures[*signature as usize];
            let matching = rules().filter(|rule| matches(rule, signature));
            let sets: Vec<Cow<'_, PortSet>> = matching.map(|rule| self.ports(rule, group, signature)).collect();
            PortSet::union_of(sets.iter().map(|set| &**set)).is_all()
        })
    }

    fn prepared(&self, (policy, at): RuleId) -> &'h Prepared {
        &self.half.usages[&policy].rules[at]
    }

    /// The signatures that a rule matches.
    fn matched(&self, rule: &Prepared) -> FxHashSet<SignatureId> {
        let terms = rule.terms.iter().map(|t| &self.half.terms[*t as usize].signatures);
        let by_term = terms.flatten().copied().filter(|s| self.live.contains(s));
        let kinds = self.by_kind.iter().zip(&rule.kinds);
        let by_kind = kinds.filter(|(_, whole)| **whole).flat_map(|(live, _)| live).copied();
        by_term.chain(by_kind).collect()
    }

    /// The rules of a group that match a signature and are not gone; `whole` are those that match whole kinds.
    fn matching<'s>(
        &'s self,
        group: &'s Group,
        whole: &'s [RuleId],
        signature: &'s Signature,
    ) -> impl Iterator<Item = RuleId> + 's {
        let terms = signature.key.pods.iter().chain(signature.key.blocks.iter());
        let by_term = terms.filter_map(|term| self.by_term.get(term));
        let by_term = by_term.flat_map(|rules| group.policies.iter().flat_map(|policy| of_policy(rules, *policy)));
        let kind = signature.key.kind as usize;
        let whole = whole.iter().filter(move |rule| self.prepared(**rule).kinds[kind]);
        by_term.chain(whole).copied().filter(|rule| self.stays(*rule))
    }

    /// The ports of a rule in a cell.
    fn ports(&self, rule: &Prepared, group: &Group, signature: &Signature) -> Cow<'h, PortSet> {
        let fixed = self.half.sets.get(rule.fixed);
        if rule.names.is_empty() {
            return Cow::Borrowed(fixed);
        }
        let mut all = fixed.clone();
        match self.half.direction {
            Direction::Ingress => {
                for (_, set) in group.names.iter().filter(|(name, _)| rule.names.contains(name)) {
                    all = all.union(self.half.sets.get(*set));
                }
            }
            Direction::Egress => {
                let declared = signature.key.names.iter();
                for ((protocol, _), number) in declared.filter(|(name, _)| rule.names.contains(name)) {
                    all = all.union(&PortSet::single(Traffic::Port(*protocol, *number)));
                }
            }
        }
        Cow::Owned(all)
    }

    /// Whether any peer has a signature: a cell of the address space may be full of known pods.
    fn is_live(&self, signature: &Signature, nowhere: bool) -> bool {
        signature.members.iter().any(|member| match member {
            PeerKey::Address(_) | PeerKey::Unaddressed(_) => true,
            PeerKey::Nowhere => nowhere,
            PeerKey::Cell(first) => {
                let range = self.half.cut[cells::position(&self.half.cut, *first)].range;
                let pods = self.half.peers.range(range.first..=range.last).count();
                size(&range).is_none_or(|size| size > pods as u128)
            }
        })
    }
}

/// The rules of a policy among many, which are sorted.
fn of_policy(rules: &[RuleId], policy: u32) -> &[RuleId] {
    let rest = &rules[rules.partition_point(|rule| rule.0 < policy)..];
    &rest[..rest.partition_point(|rule| rule.0 == policy)]
}

fn matches(rule: &Prepared, signature: &Signature) -> bool {
    let has =
        |term: &u32| signature.key.pods.binary_search(term).is_ok() || signature.key.blocks.binary_search(term).is_ok();
    rule.kinds[signature.key.kind as usize] || rule.terms.iter().any(has)
}

/// How many addresses there are; none for the whole of IPv6, which has one too many to count.
fn size(range: &AddressRange) -> Option<u128> {
    use std::net::IpAddr;
    let bits = |address: IpAddr| match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    };
    (bits(range.last) - bits(range.first)).checked_add(1)
}
