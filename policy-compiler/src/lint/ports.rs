//! Ports that are listed twice, and names of ports that only some pods know.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::View;
use crate::diagnostics::{self, Code, Findings, ObjectName, item_field, rules};
use crate::policy::{Direction, Peers, PortMatch, Ports};
use crate::ports::{PortRange, PortSet, Protocol};
use crate::table::PodIndex;

pub(super) fn look(view: &View<'_>, out: &mut Findings) {
    for policy in view.cluster.policies.values() {
        let subjects = diagnostics::subjects(view.table, policy);
        for (direction, rule_at, rule) in rules(policy) {
            let Ports::Listed(ports) = &rule.ports else { continue };
            for (at, message) in overlapping(ports) {
                let field = item_field(direction, rule_at, "ports", at, "");
                out.add(Code::OverlappingPorts, ObjectName::of_policy(policy), field, message);
            }
            // Towards everybody a name is for those who have it.
            if direction == Direction::Egress && rule.peers == Peers::All {
                continue;
            }
            let named = ports.iter().enumerate().filter_map(|(at, port)| match port {
                PortMatch::Named(protocol, name) => Some((at, port, *protocol, &**name)),
                PortMatch::Range(..) => None,
            });
            let mut named = named.peekable();
            if named.peek().is_none() {
                continue;
            }
            let destinations = diagnostics::destinations(view.table, direction, rule, &subjects);
            for (at, port, protocol, name) in named {
                let declares = |pod: &PodIndex| !view.table.pod(*pod).named_port(protocol, name).is_empty();
                let without: Vec<&PodIndex> = destinations.iter().filter(|pod| !declares(pod)).collect();
                let with = destinations.len() - without.len();
                if let Some(first) = without.first().filter(|_| with > 0) {
                    let message = format!(
                        "{with} of {} destination pods declare the port {port}, and {} does not: the rule gives nothing there",
                        destinations.len(),
                        view.table.pod(**first).name
                    );
                    let field = item_field(direction, rule_at, "ports", at, "port");
                    out.add(Code::NamedPortPartial, ObjectName::of_policy(policy), field, message);
                }
            }
        }
    }
}

/// The entries that are in others, whole or in part.
fn overlapping(ports: &[PortMatch]) -> Vec<(usize, String)> {
    let mut out = Vec::new();
    let mut ranges: Vec<(Protocol, PortRange, usize)> = Vec::new();
    let mut names = BTreeSet::new();
    for (at, port) in ports.iter().enumerate() {
        match port {
            PortMatch::Range(protocol, range) => ranges.push((*protocol, *range, at)),
            PortMatch::Named(protocol, name) if !names.insert((protocol, name)) => {
                out.push((at, format!("{port} is listed already: remove it")));
            }
            PortMatch::Named(..) => {}
        }
    }
    // Those that begin first go first, the longest of them before the others.
    ranges.sort_by_key(|(protocol, range, at)| (*protocol, range.first, Reverse(range.last), *at));
    let mut widest: Option<(Protocol, PortRange)> = None;
    for (protocol, range, at) in ranges {
        let words = |range| PortSet::of(protocol, range).to_string();
        let Some((_, wide)) = widest.filter(|(p, wide)| *p == protocol && range.first <= wide.last) else {
            widest = Some((protocol, range));
            continue;
        };
        if range.last <= wide.last {
            let message = match range == wide {
                true => format!("{} is listed already: remove it", words(range)),
                false => format!("{} lies within {}: remove it", words(range), words(wide)),
            };
            out.push((at, message));
        } else {
            let both = PortRange {
                first: wide.first,
                last: range.last,
            };
            let message = format!("{} overlaps with {}: write {}", words(range), words(wide), words(both));
            out.push((at, message));
            widest = Some((protocol, range));
        }
    }
    out
}
