//! Policies and rules without which every allow set would be what it is.

use std::collections::BTreeSet;

use super::{View, wider};
use crate::convert::FieldPath;
use crate::diagnostics::{Code, Findings, ObjectName, Severity, listed, rule_field, rules};
use crate::half::coverage::{Cover, Coverage, RuleId};
use crate::policy::{Direction, Enforcement, Peer, Peers, PodSelection, Policy, Ports, Rule, Tier};

/// The policies in force, and what is left of their rules in both directions.
struct Left<'a> {
    view: &'a View<'a>,
    /// Those that stay, sorted by name.
    policies: Vec<(u32, &'a Policy)>,
    halves: [Coverage<'a>; 2],
}

/// All that is found may go at once. Policies go before rules; what goes whatever pods there are before what goes for the pods that are given,
/// so that of two the narrower one does; and of two that hold the same the later by name.
pub(super) fn look(view: &View<'_>, out: &mut Findings) {
    let nowhere = view.table.pods().any(|(_, p)| p.host_network && p.addresses.is_empty());
    let halves = Direction::BOTH.map(|direction| Coverage::new(view.table.half(direction), nowhere));
    // An audited policy takes nothing away and gives nothing: that is not what it is there for.
    let in_force = |policy: &Policy| {
        policy.tier == Tier::NetworkPolicy && view.cluster.enforcement(policy) == Enforcement::Enforce
    };
    let policies = view.table.policies.iter().map(|(id, policy)| (id as u32, &**policy));
    let mut policies: Vec<(u32, &Policy)> = policies.filter(|(_, policy)| in_force(policy)).collect();
    policies.retain(|(id, _)| halves.iter().any(|half| half.judges(*id)));
    policies.sort_by_key(|(_, policy)| &policy.name);
    let mut left = Left { view, policies, halves };
    left.without_policies(out);
    left.without_rules(out);
}

impl<'a> Left<'a> {
    fn without_policies(&mut self, out: &mut Findings) {
        let mut here = Vec::new();
        for (id, policy) in self.policies.clone().into_iter().rev() {
            let Some(covers) = self.policy(id) else { continue };
            match self.policy_by_text(id, policy) {
                Some(holding) if covers.iter().any(|c| !c.opens && !c.rules.is_empty()) => {
                    self.remove_policy(id);
                    let names = names(self.view, holding);
                    let message = format!("changes nothing: {} already what it allows; remove it", allow(names));
                    add_policy(policy, Severity::Warning, message, out);
                }
                _ => here.push((id, policy)),
            }
        }
        for (id, policy) in here {
            let Some(covers) = self.policy(id) else { continue };
            self.remove_policy(id);
            let (severity, message) = about_policy(self.view, policy, &covers);
            add_policy(policy, severity, message, out);
        }
    }

    fn without_rules(&mut self, out: &mut Findings) {
        for (half, direction) in Direction::BOTH.into_iter().enumerate() {
            let mut here = Vec::new();
            for (id, policy) in self.policies.clone().into_iter().rev() {
                for (at, rule) in policy.rules(direction).unwrap_or_default().iter().enumerate().rev() {
                    // A rule that matches nothing is covered by nothing; what it wants is told elsewhere.
                    let Some(cover) = self.halves[half].rule((id, at)) else {
                        continue;
                    };
                    match self.rule_by_text((id, at), policy, half) {
                        Some(holding) if !cover.is_empty() => {
                            self.halves[half].remove_rule((id, at));
                            let names = self.rule_names(id, direction, holding);
                            let message =
                                format!("changes nothing: {} already what it allows; remove it", allow(names));
                            add_rule(policy, direction, at, Severity::Warning, message, out);
                        }
                        _ => here.push((id, policy, at, rule)),
                    }
                }
            }
            for (id, policy, at, rule) in here {
                let Some(cover) = self.halves[half].rule((id, at)) else {
                    continue;
                };
                self.halves[half].remove_rule((id, at));
                if cover.is_empty() {
                    continue;
                }
                let rule_of =
                    |(other, at): &RuleId| &self.view.table.policy(*other).rules(direction).unwrap_or_default()[*at];
                let open = by_block(self.view, [rule], &cover.iter().map(rule_of).collect::<Vec<_>>());
                let names = self.rule_names(id, direction, cover);
                add_rule(policy, direction, at, Severity::Note, here_only(names, open), out);
            }
        }
    }

    /// What makes up for a policy in both directions.
    fn policy(&self, id: u32) -> Option<Vec<Cover>> {
        self.halves.iter().map(|half| half.policy(id)).collect()
    }

    fn remove_policy(&mut self, id: u32) {
        self.halves.iter_mut().for_each(|half| half.remove_policy(id));
        self.policies.retain(|(other, _)| *other != id);
    }

    /// Other policies that isolate and allow what a policy does, whatever pods there are; none when that does not follow from their text.
    fn policy_by_text(&self, id: u32, policy: &Policy) -> Option<BTreeSet<u32>> {
        let others: Vec<(u32, &Policy)> = self.as_wide(policy).filter(|(other, _)| *other != id).collect();
        let mut holding = BTreeSet::new();
        for direction in Direction::BOTH.into_iter().filter(|d| policy.isolates(*d)) {
            if !others.iter().any(|(_, other)| other.isolates(direction)) {
                return None;
            }
            let rules = others
                .iter()
                .flat_map(|(other, policy)| numbered(*other, policy, direction));
            let rules: Vec<(RuleId, &Rule)> = rules.collect();
            for rule in policy.rules(direction).unwrap_or_default() {
                holding.extend(held(rule, &rules)?.into_iter().map(|(other, _)| other));
            }
        }
        Some(holding)
    }

    /// Other rules that allow what a rule does, whatever pods there are; none when that does not follow from their text.
    fn rule_by_text(&self, id: RuleId, policy: &Policy, half: usize) -> Option<BTreeSet<RuleId>> {
        let direction = Direction::BOTH[half];
        let rules = self
            .as_wide(policy)
            .flat_map(|(other, policy)| numbered(other, policy, direction));
        let others = rules.filter(|(other, _)| *other != id && self.halves[half].stays(*other));
        held(&policy.rules(direction)?[id.1], &others.collect::<Vec<_>>())
    }

    /// The policies that select all that a policy selects, itself among them.
    fn as_wide(&self, policy: &Policy) -> impl Iterator<Item = (u32, &'a Policy)> {
        let all = self.policies.iter().copied();
        all.filter(|(_, other)| wider::selection(&other.subject, &policy.subject))
    }

    /// The names of rules for somebody who looks at a policy.
    fn rule_names(&self, policy: u32, direction: Direction, rules: BTreeSet<RuleId>) -> Vec<String> {
        let names = rules.into_iter().map(|(other, at)| match other == policy {
            true => format!("{direction}[{at}]"),
            false => format!("{} {direction}[{at}]", self.view.table.policy(other).name),
        });
        names.collect()
    }
}

fn numbered(id: u32, policy: &Policy, direction: Direction) -> impl Iterator<Item = (RuleId, &Rule)> {
    let rules = policy.rules(direction).unwrap_or_default().iter().enumerate();
    rules.map(move |(at, rule)| ((id, at), rule))
}

/// The rules among others that hold each peer of a rule with each of its ports: one, if there is one that holds all.
fn held(rule: &Rule, others: &[(RuleId, &Rule)]) -> Option<BTreeSet<RuleId>> {
    let peers: Vec<Option<&Peer>> = match &rule.peers {
        Peers::All => vec![None],
        Peers::Listed(list) => list.iter().map(Some).collect(),
    };
    let ports: Vec<_> = match &rule.ports {
        Ports::All => vec![None],
        Ports::Listed(list) => list.iter().map(Some).collect(),
    };
    let holds_all = |other: &Rule| {
        ports.iter().all(|port| wider::port(other, *port)) && peers.iter().all(|peer| wider::peer(other, *peer))
    };
    if let Some((id, _)) = others.iter().find(|(_, other)| holds_all(other)) {
        return Some([*id].into());
    }
    let mut holding = BTreeSet::new();
    for peer in peers {
        let matching: Vec<_> = others.iter().filter(|(_, other)| wider::peer(other, peer)).collect();
        for port in &ports {
            let (id, _) = matching.iter().find(|(_, other)| wider::port(other, *port))?;
            holding.insert(*id);
        }
    }
    Some(holding)
}

/// Whether pods that rules match are matched by others only through their addresses.
fn by_block<'r>(view: &View<'_>, rules: impl IntoIterator<Item = &'r Rule>, others: &[&Rule]) -> bool {
    if others.iter().any(|other| other.peers == Peers::All) {
        return false;
    }
    let pods = |rule: &'r Rule| listed(rule).iter().filter_map(selection);
    let matched: BTreeSet<u32> = (others.iter())
        .flat_map(|other| listed(other).iter().filter_map(selection))
        .flat_map(|selection| view.selected(selection))
        .copied()
        .collect();
    let mut wanted = rules
        .into_iter()
        .flat_map(pods)
        .flat_map(|selection| view.selected(selection));
    wanted.any(|identity| !matched.contains(identity))
}

fn selection(peer: &Peer) -> Option<&PodSelection> {
    match peer {
        Peer::Pods(selection) => Some(selection),
        Peer::Block(_) => None,
    }
}

fn names(view: &View<'_>, ids: BTreeSet<u32>) -> Vec<String> {
    let names: BTreeSet<String> = ids
        .into_iter()
        .map(|id| view.table.policy(id).name.to_string())
        .collect();
    names.into_iter().collect()
}

fn about_policy(view: &View<'_>, policy: &Policy, covers: &[Cover]) -> (Severity, String) {
    let isolating = names(view, covers.iter().flat_map(|c| &c.isolating).copied().collect());
    let holding = names(view, covers.iter().flat_map(|c| &c.rules).map(|(id, _)| *id).collect());
    let has_rules = Direction::BOTH
        .iter()
        .any(|d| policy.rules(*d).is_some_and(|r| !r.is_empty()));
    if covers.iter().any(|c| c.opens) {
        let what = "it lets the pods that it selects do all that they could do without it";
        match opens_by_text(view, policy) {
            true => (Severity::Warning, format!("changes nothing: {what}; remove it")),
            false => (
                Severity::Note,
                format!("changes nothing for the pods given here: {what}"),
            ),
        }
    } else if !holding.is_empty() {
        let others = Direction::BOTH.into_iter().zip(covers).flat_map(|(direction, cover)| {
            let rules = cover.rules.iter();
            rules.map(move |(id, at)| &view.table.policy(*id).rules(direction).unwrap_or_default()[*at])
        });
        let open = by_block(
            view,
            rules(policy).map(|(_, _, rule)| rule),
            &others.collect::<Vec<_>>(),
        );
        (Severity::Note, here_only(holding, open))
    } else {
        let verb = if isolating.len() == 1 { "isolates" } else { "isolate" };
        let (what, whom) = match has_rules {
            true => ("its rules match nothing, and ", "what matches them"),
            false => ("", "pods"),
        };
        let message = format!(
            "changes nothing as yet: {what}{} {verb} already every pod that it selects; it is for {whom} to come",
            few(isolating)
        );
        (Severity::Note, message)
    }
}

/// Whether a policy allows everything, and no other can isolate a pod that it selects.
fn opens_by_text(view: &View<'_>, policy: &Policy) -> bool {
    let is_all = |rule: &Rule| rule.peers == Peers::All && rule.ports == Ports::All;
    let mut others = view.cluster.policies.values().filter(|other| other.name != policy.name);
    let mut isolated = Direction::BOTH.into_iter().filter(|d| policy.isolates(*d));
    isolated.all(|d| policy.rules(d).unwrap_or_default().iter().any(is_all))
        && !others.any(|o| o.tier == policy.tier && o.name.namespace == policy.name.namespace)
}

/// Of what changes nothing for the pods that are given; `open` tells whether even that is so only where an ipBlock matches pods.
fn here_only(names: Vec<String>, open: bool) -> String {
    let cni = match open {
        true => ", if the CNI lets an ipBlock match pods, as it does here and some do not",
        false => "",
    };
    format!(
        "changes nothing for the pods given here{cni}: {} already what it allows",
        allow(names)
    )
}

fn add_policy(policy: &Policy, severity: Severity, message: String, out: &mut Findings) {
    let name = ObjectName::of_policy(policy);
    out.add_as(severity, Code::RedundantPolicy, name, FieldPath::default(), message);
}

fn add_rule(policy: &Policy, direction: Direction, at: usize, severity: Severity, message: String, out: &mut Findings) {
    let (name, field) = (ObjectName::of_policy(policy), rule_field(direction, at));
    out.add_as(severity, Code::RedundantRule, name, field, message);
}

fn allow(names: Vec<String>) -> String {
    let verb = if names.len() == 1 { "allows" } else { "allow" };
    format!("{} {verb}", few(names))
}

/// A few names, and how many more there are.
fn few(names: Vec<String>) -> String {
    const SHOWN: usize = 3;
    match names.len() {
        0 => "nothing".to_owned(),
        n if n > SHOWN => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
        1 => names.concat(),
        n => format!("{} and {}", names[..n - 1].join(", "), names[n - 1]),
    }
}
