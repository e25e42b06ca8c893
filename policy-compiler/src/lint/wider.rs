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

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::labels::Name;

    /// Every selector of up to two requirements over two keys and two values, and one value that none names.
    fn selectors() -> Vec<Selector> {
        let values = || -> Vec<Vec<Name>> { vec![vec!["x".into()], vec!["y".into()], vec!["x".into(), "y".into()]] };
        let operators = values()
            .into_iter()
            .flat_map(|v| [Operator::In(v.clone()), Operator::NotIn(v)]);
        let operators: Vec<Operator> = operators.chain([Operator::Exists, Operator::DoesNotExist]).collect();
        let of_key = |key: &str| {
            operators
                .iter()
                .map(|o| Requirement {
                    key: key.into(),
                    operator: o.clone(),
                })
                .collect::<Vec<_>>()
        };
        let all = [of_key("a"), of_key("b")].concat();
        let pairs = all
            .iter()
            .flat_map(|one| all.iter().map(|two| Selector::new([one.clone(), two.clone()])));
        pairs.chain([Selector::everything()]).collect()
    }

    #[test]
    fn labels_that_fulfil_a_selector_fulfil_a_wider_one() {
        let values = [None, Some("x"), Some("y"), Some("z")];
        let labels = values
            .iter()
            .flat_map(|a| values.iter().map(move |b| [("a", *a), ("b", *b)]));
        let labels: Vec<Labels> = labels
            .map(|pairs| pairs.iter().filter_map(|(k, v)| Some((*k, (*v)?))).collect())
            .collect();
        let selectors = selectors();
        let mut wider = 0;
        for wide in &selectors {
            for narrow in &selectors {
                if selector(wide, narrow) {
                    wider += 1;
                    assert!(
                        labels.iter().all(|l| !narrow.matches(l) || wide.matches(l)),
                        "{wide} is not as wide as {narrow}"
                    );
                }
            }
            assert!(
                selector(wide, wide) && selector(&Selector::everything(), wide),
                "{wide}"
            );
        }
        assert!(wider > 2 * selectors.len());
    }

    #[test]
    fn addresses_in_a_block_are_in_a_wider_one() {
        let nets: Vec<ipnet::IpNet> = (28..=31)
            .flat_map(|length| (0..16_u32).step_by(1 << (32 - length)).map(move |host| (length, host)))
            .map(|(length, host)| format!("192.0.2.{host}/{length}").parse().unwrap())
            .collect();
        let excepts = nets
            .iter()
            .map(|net| vec![*net])
            .chain([vec![], vec![nets[3], nets[8]]]);
        let excepts: Vec<Vec<ipnet::IpNet>> = excepts.collect();
        let blocks = nets
            .iter()
            .flat_map(|net| excepts.iter().map(|except| IpBlock::new(*net, except.iter().copied())));
        let blocks: Vec<IpBlock> = blocks.collect();
        let addresses: Vec<IpAddr> = (0..16).map(|host| IpAddr::from([192, 0, 2, host])).collect();
        let mut wider = 0;
        for wide in &blocks {
            for narrow in blocks.iter().filter(|narrow| block(wide, narrow)) {
                wider += 1;
                let mut within = addresses.iter().filter(|a| narrow.contains(**a));
                assert!(within.all(|a| wide.contains(*a)), "{wide} is not as wide as {narrow}");
            }
            assert!(block(wide, wide), "{wide}");
        }
        assert!(wider > 2 * blocks.len());
    }
}
