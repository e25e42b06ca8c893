//! Peers that match nothing, or something else than they seem to.

use std::collections::BTreeSet;

use super::View;
use crate::diagnostics::{Code, Findings, ObjectName, Severity, blocks, item_field, listed, peers_field, rules};
use crate::labels::{NAMESPACE_NAME_LABEL, Name, Selector};
use crate::policy::{IpBlock, NamespaceScope, Peer, PodSelection, Policy};

pub(super) fn look(view: &View<'_>, out: &mut Findings) {
    let unknown = unknown_namespaces(view);
    for policy in view.cluster.policies.values() {
        let name = || ObjectName::of_policy(policy);
        for (direction, rule_at, rule) in rules(policy) {
            let field = |at, inner| item_field(direction, rule_at, peers_field(direction), at, inner);
            for (at, peer) in listed(rule).iter().enumerate() {
                let Peer::Pods(selection) = peer else { continue };
                if view.selected(selection).is_empty() {
                    let (severity, message) = matches_nothing(view, selection);
                    out.add_as(severity, Code::PeerMatchesNothing, name(), field(at, ""), message);
                }
                let labels = match &selection.namespaces {
                    NamespaceScope::Matching(selector) => other_labels(selector),
                    NamespaceScope::Named(_) => None,
                };
                if let Some(labels) = labels.filter(|_| !unknown.is_empty()) {
                    let message = format!(
                        "asks for labels of namespaces ({labels}) that only their objects tell, and these are not given: {}; give them too",
                        few(&unknown)
                    );
                    let field = field(at, "namespaceSelector");
                    out.add(Code::NamespaceLabelsUnknown, name(), field, message);
                }
            }
            for (at, pair) in listed(rule).windows(2).enumerate() {
                if let Some(message) = as_two_peers(pair) {
                    out.add(Code::SelectorsAsTwoPeers, name(), field(at + 1, ""), message);
                }
            }
        }
        about_blocks(view, policy, out);
    }
}

/// Where the selected namespaces have pods, the pod selector is at fault; else they may just not be given.
fn matches_nothing(view: &View<'_>, selection: &PodSelection) -> (Severity, String) {
    let PodSelection { namespaces, pods } = selection;
    let there = match namespaces {
        NamespaceScope::Named(name) => !view.table.population.in_namespace(name).is_empty(),
        NamespaceScope::Matching(selector) => {
            let mut with_pods = view.namespaces.iter();
            with_pods.any(|name| selector.matches(&view.cluster.namespace_labels(name)))
        }
    };
    match there {
        true => (
            Severity::Warning,
            format!("matches nothing: there are no {selection}; correct the labels {pods}, or remove the peer"),
        ),
        false => (
            Severity::Note,
            format!("matches nothing here: no pods are given in {}", scope(namespaces)),
        ),
    }
}

fn scope(namespaces: &NamespaceScope) -> String {
    match namespaces {
        NamespaceScope::Named(name) => format!("namespace {name}"),
        NamespaceScope::Matching(selector) if selector.is_everything() => "any namespace".to_owned(),
        NamespaceScope::Matching(selector) => format!("namespaces {selector}"),
    }
}

/// `from: [{namespaceSelector: …}, {podSelector: …}]`, one dash too many for "the pods of these namespaces".
fn as_two_peers(pair: &[Peer]) -> Option<String> {
    let [Peer::Pods(a), Peer::Pods(b)] = pair else {
        return None;
    };
    let whole_namespaces =
        |p: &PodSelection| matches!(p.namespaces, NamespaceScope::Matching(_)) && p.pods.is_everything();
    let own_pods = |p: &PodSelection| matches!(p.namespaces, NamespaceScope::Named(_)) && !p.pods.is_everything();
    ((whole_namespaces(a) && own_pods(b)) || (own_pods(a) && whole_namespaces(b))).then(|| {
        format!("either of two peers matches: {a}, or {b}; for both at once, write the two selectors in one item (without the second dash)")
    })
}

fn about_blocks(view: &View<'_>, policy: &Policy, out: &mut Findings) {
    for (field, block) in blocks(policy) {
        if let Some((address, pod)) = view.table.addresses().first_in(block) {
            let message = format!(
                "{block} holds the addresses of pods, such as {address} of {}: they are matched here, and by some CNIs they are not; for pods write \
                 podSelector or namespaceSelector, else put the pods' range into except",
                pod.name
            );
            out.add(
                Code::BlockCoversPods,
                ObjectName::of_policy(policy),
                field.clone(),
                message,
            );
        }
        if let Some(message) = overlapping(block) {
            out.add(Code::OverlappingExcept, ObjectName::of_policy(policy), field, message);
        }
    }
}

/// Exceptions are sorted, those that hold others first.
fn overlapping(block: &IpBlock) -> Option<String> {
    let mut outer = block.except.first()?;
    for inner in &block.except[1..] {
        if outer.contains(inner) {
            return Some(format!(
                "except: {inner} lies within {outer} and adds nothing: remove it"
            ));
        }
        outer = inner;
    }
    None
}

/// The requirements of a selector that the name of a namespace does not answer.
fn other_labels(selector: &Selector) -> Option<String> {
    let others = selector
        .requirements()
        .iter()
        .filter(|r| &*r.key != NAMESPACE_NAME_LABEL);
    let others: Vec<String> = others.map(ToString::to_string).collect();
    (!others.is_empty()).then(|| others.join(","))
}

/// Namespaces with pods that are not given.
fn unknown_namespaces<'a>(view: &View<'a>) -> BTreeSet<&'a Name> {
    let of_pods = view.cluster.pods.keys().map(|pod| &pod.namespace);
    of_pods
        .filter(|name| !view.cluster.namespaces.contains_key(*name))
        .collect()
}

fn few(names: &BTreeSet<&Name>) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(|name| &***name).collect();
    match names.len() {
        n if n > SHOWN => format!("{} and {} more", shown.join(", "), n - SHOWN),
        _ => shown.join(", "),
    }
}
