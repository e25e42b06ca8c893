//! Policies and rules without which every allow set would be what it is.

use std::collections::BTreeSet;

use super::View;
use crate::convert::FieldPath;
use crate::diagnostics::{Code, Findings, ObjectName, Severity, listed, rule_field, rules};
use crate::half::coverage::{Cover, Coverage};
use crate::policy::{Direction, Enforcement, Peer, Policy, Rule, Tier};

/// All that is found may go at once. Policies go before rules, and of two that hold the same the later by name goes.
pub(super) fn look(view: &View<'_>, out: &mut Findings) {
    let nowhere = view.table.pods().any(|(_, p)| p.host_network && p.addresses.is_empty());
    let mut halves = Direction::BOTH.map(|direction| Coverage::new(view.table.half(direction), nowhere));
    // An audited policy takes nothing away and gives nothing: that is not what it is there for.
    let in_force = |policy: &Policy| {
        policy.tier == Tier::NetworkPolicy && view.cluster.enforcement(policy) == Enforcement::Enforce
    };
    let policies = view.table.policies.iter().map(|(id, policy)| (id as u32, &**policy));
    let mut policies: Vec<(u32, &Policy)> = policies.filter(|(_, policy)| in_force(policy)).collect();
    policies.retain(|(id, _)| halves.iter().any(|half| half.judges(*id)));
    policies.sort_by_key(|(_, policy)| &policy.name);
    let mut staying = Vec::new();
    for (id, policy) in policies.into_iter().rev() {
        let covers: Vec<Cover> = halves.iter().map_while(|half| half.policy(id)).collect();
        if covers.len() < halves.len() {
            staying.push((id, policy));
            continue;
        }
        halves.iter_mut().for_each(|half| half.remove_policy(id));
        about_policy(view, policy, &covers, out);
    }
    for (id, policy) in staying {
        for (direction, half) in Direction::BOTH.into_iter().zip(&mut halves) {
            for at in (0..policy.rules(direction).unwrap_or_default().len()).rev() {
                let Some(cover) = half.rule((id, at)) else { continue };
                half.remove_rule((id, at));
                // A rule that matches nothing is covered by nothing; what it wants is told elsewhere.
                if cover.is_empty() {
                    continue;
                }
                let names = cover.iter().map(|(other, at)| match *other == id {
                    true => format!("{direction}[{at}]"),
                    false => format!("{} {direction}[{at}]", view.table.policy(*other).name),
                });
                let message = format!(
                    "changes nothing: {} already what it allows; remove it",
                    allow(names.collect())
                );
                let (name, field) = (ObjectName::of_policy(policy), rule_field(direction, at));
                let rule = &policy.rules(direction).unwrap_or_default()[at];
                out.add_as(severity(view, [rule]), Code::RedundantRule, name, field, message);
            }
        }
    }
}

/// A peer that matches nothing may match what is not given.
fn severity<'a>(view: &View<'_>, rules: impl IntoIterator<Item = &'a Rule>) -> Severity {
    let peers = rules.into_iter().flat_map(listed);
    let mut selections = peers.filter_map(|peer| match peer {
        Peer::Pods(selection) => Some(selection),
        Peer::Block(_) => None,
    });
    match selections.any(|selection| view.selected(selection).is_empty()) {
        true => Severity::Note,
        false => Severity::Warning,
    }
}

fn about_policy(view: &View<'_>, policy: &Policy, covers: &[Cover], out: &mut Findings) {
    let names = |ids: BTreeSet<u32>| -> BTreeSet<String> {
        let names = ids.into_iter().map(|id| view.table.policy(id).name.to_string());
        names.collect()
    };
    let isolating = names(covers.iter().flat_map(|c| &c.isolating).copied().collect());
    let holding = names(covers.iter().flat_map(|c| &c.rules).map(|(id, _)| *id).collect());
    let has_rules = Direction::BOTH
        .iter()
        .any(|d| policy.rules(*d).is_some_and(|r| !r.is_empty()));
    let (severity, message) = if covers.iter().any(|c| c.opens) {
        let message =
            "changes nothing: it lets the pods that it selects do all that they could do without it; remove it";
        (Severity::Warning, message.to_owned())
    } else if !holding.is_empty() {
        let message = format!(
            "changes nothing: {} already what it allows; remove it",
            allow(holding.into_iter().collect())
        );
        (severity(view, rules(policy).map(|(_, _, rule)| rule)), message)
    } else {
        let verb = if isolating.len() == 1 { "isolates" } else { "isolate" };
        let (what, whom) = match has_rules {
            true => ("its rules match nothing, and ", "what matches them"),
            false => ("", "pods"),
        };
        let message = format!(
            "changes nothing as yet: {what}{} {verb} already every pod that it selects; it is for {whom} to come",
            few(isolating.into_iter().collect())
        );
        (Severity::Note, message)
    };
    let name = ObjectName::of_policy(policy);
    out.add_as(severity, Code::RedundantPolicy, name, FieldPath::default(), message);
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
