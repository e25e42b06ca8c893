//! Whether a selection, a rule or a policy is as wide as another by its text alone: whatever pods there are, and are to come.

use crate::labels::{Labels, NAMESPACE_NAME_LABEL, Operator, Requirement, Selector};
use crate::policy::{IpBlock, NamespaceScope, Peer, Peers, PodSelection, PortMatch, Ports, Rule};
use crate::ports::PortRange;

/// Whether all pods of one selection are in another.
pub(super) fn selection(wide: &PodSelection, narrow: &PodSelection) -> bool {
    namespaces(&wide.namespaces, &narrow.namespaces) && selector(&wide.pods, &narrow.pods)
}

/// Whether a rule matches a peer of another rule; none stands for all peers.
pub(super) fn peer(wide: &Rule, narrow: Option<&Peer>) -> bool {
    match (&wide.peers, narrow) {
        (Peers::All, _) => true,
        (Peers::Listed(_), None) => false,
        (Peers::Listed(list), Some(narrow)) => list.iter().any(|wide| match (wide, narrow) {
            (Peer::Pods(wide), Peer::Pods(narrow)) => selection(wide, narrow),
            (Peer::Block(wide), Peer::Block(narrow)) => block(wide, narrow),
            // Whether a block matches pods is left open by the API.
            (Peer::Pods(_), Peer::Block(_)) | (Peer::Block(_), Peer::Pods(_)) => false,
        }),
    }
}

/// Whether a rule holds a port of another rule; none stands for all ports.
pub(super) fn port(wide: &Rule, narrow: Option<&PortMatch>) -> bool {
    match (&wide.ports, narrow) {
        (Ports::All, _) => true,
        (Ports::Listed(_), None) => false,
        (Ports::Listed(list), Some(narrow)) => list.iter().any(|wide| match (wide, narrow) {
            (PortMatch::Range(p, wide), PortMatch::Range(q, range)) => {
                p == q && wide.first <= range.first && range.last <= wide.last
            }
            (PortMatch::Range(p, wide), PortMatch::Named(q, _)) => p == q && *wide == PortRange::ALL,
            (PortMatch::Named(..), _) => wide == narrow,
        }),
    }
}

fn block(wide: &IpBlock, narrow: &IpBlock) -> bool {
    let is_left_out = |hole| narrow.except.iter().any(|except| except.contains(hole));
    wide.cidr.contains(&narrow.cidr)
        && (wide.except.iter()).all(|hole| {
            let is_apart = !hole.contains(&narrow.cidr) && !narrow.cidr.contains(hole);
            is_apart || is_left_out(hole)
        })
}

fn namespaces(wide: &NamespaceScope, narrow: &NamespaceScope) -> bool {
    match (wide, narrow) {
        (NamespaceScope::Named(wide), NamespaceScope::Named(narrow)) => wide == narrow,
        (NamespaceScope::Matching(wide), NamespaceScope::Matching(narrow)) => selector(wide, narrow),
        (NamespaceScope::Matching(wide), NamespaceScope::Named(name)) => {
            // Of a namespace's labels only this one is known from its name.
            let label = Labels::default().with(NAMESPACE_NAME_LABEL, name);
            let mut asked = wide.requirements().iter();
            asked.all(|asked| *asked.key == *NAMESPACE_NAME_LABEL && asked.matches(&label))
        }
        (NamespaceScope::Named(name), NamespaceScope::Matching(narrow)) => {
            selector(&Selector::labels([(NAMESPACE_NAME_LABEL, name.clone())]), narrow)
        }
    }
}

/// Whether labels that fulfil one selector fulfil the other.
fn selector(wide: &Selector, narrow: &Selector) -> bool {
    let mut asked = wide.requirements().iter();
    asked.all(|asked| narrow.requirements().iter().any(|given| follows(asked, given)))
}

/// Whether labels that fulfil one requirement, the given one, fulfil the other.
fn follows(asked: &Requirement, given: &Requirement) -> bool {
    let operators = match (&asked.operator, &given.operator) {
        (Operator::In(wide), Operator::In(narrow)) => narrow.iter().all(|value| wide.contains(value)),
        (Operator::NotIn(few), Operator::NotIn(many)) => few.iter().all(|value| many.contains(value)),
        (Operator::NotIn(others), Operator::In(values)) => values.iter().all(|value| !others.contains(value)),
        (Operator::Exists, Operator::In(_)) | (Operator::NotIn(_), Operator::DoesNotExist) => true,
        (asked, given) => asked == given,
    };
    asked.key == given.key && operators
}
