//! `--unknown-pods drop`: an address of this node's pod ranges that no known pod has passes nothing. The ranges of the compiled table
//! come in; the first rules of the base chain, their chain and their sets go out.
//!
//! Packets are told by their headers: at the forward hook these are the real ends of the connection, for Services are translated
//! before and masqueraded after it; and so an ICMP error from such an address, which belongs to somebody else's connection,
//! does not pass either, nor does a packet without a connection. The addresses stand in hash sets, and the ranges, of
//! which a node has one or two, in the rules: no set of intervals, which would be empty for a moment when it is new.
//!
//! A packet looks whether its ends are known before it looks whether they are judged, and while a step is applied it may see what
//! was before and then what is after. So a pod becomes known in a step after the one that isolates it, and unknown in a step before the
//! one that takes its isolation away (`draft.rs`): none finds the pod known and not judged. (Seen, in one step: one datagram of some
//! four million passed.)

use std::collections::BTreeSet;

use ipnet::IpNet;
use nftables::expr::Expression;
use policy_compiler::cells::AddressRange;
use policy_compiler::table::Table;

use super::draft::Draft;
use super::expressions::{back, counter, drop, header, is_not_in, is_of, jump, neighbour_discovery};
use super::names::{ChainName, Family, SetName};
use super::ruleset::{Element, Elements, Key, Rule};
use super::settings::{Mode, Settings, UnknownPods};

/// The ranges in which every address must be known; none with `--unknown-pods allow`.
pub(super) fn ranges(table: &Table, settings: Settings) -> BTreeSet<IpNet> {
    match settings.unknown_pods {
        UnknownPods::Allow => BTreeSet::new(),
        UnknownPods::Drop => table.pod_ranges(),
    }
}

/// The rules of the base chain. Each compares with the range before it looks anything up.
pub(super) fn rules(ranges: &BTreeSet<IpNet>) -> Vec<Rule> {
    let mut rules = Vec::new();
    for range in ranges {
        for field in ["saddr", "daddr"] {
            let (family, address) = end(range, field);
            rules.push(Rule::new([
                is_of(address.clone(), *range),
                is_not_in(address, SetName::Known(family)),
                jump(ChainName::Unknown),
            ]));
        }
    }
    if let Some(first) = rules.first_mut() {
        *first = first.clone().commented("a pod of this node that nobody knows yet");
    }
    rules
}

/// Brings the sets and the chain to what a table asks for; without ranges there are none.
pub(super) fn write(ranges: &BTreeSet<IpNet>, table: &Table, settings: Settings, draft: &mut Draft<'_>) {
    let book = table.addresses();
    let mut known = Family::BOTH.map(|_| Elements::new());
    for range in ranges {
        let within = AddressRange::of(range);
        let family = Family::of(within.first);
        // What the node itself has in the range is no pod, and need not become one.
        let nodes = book.nodes_in(within).map(|(address, _)| address);
        let pods = book.pods_in(within).map(|(address, _)| address);
        // Without a comment: an address that changes hands stays known.
        known[family as usize].extend(
            nodes
                .chain(pods)
                .map(|address| (Key::Address(address), Element::default())),
        );
    }
    for (family, known) in Family::BOTH.into_iter().zip(known) {
        match ranges.iter().any(|range| Family::of(range.addr()) == family) {
            true => draft.set(SetName::Known(family), known),
            false => draft.set_or_none(SetName::Known(family), Elements::new()),
        }
    }
    let chain = if ranges.is_empty() {
        Vec::new()
    } else {
        ends(settings.mode)
    };
    draft.chain(ChainName::Unknown, chain);
}

/// What becomes of such packets. Nobody is answered, whatever `--deny-action` says: who hears nothing tries again, and by
/// then the pod is known.
fn ends(mode: Mode) -> Vec<Rule> {
    let last = match mode {
        Mode::Enforce => Rule::new([counter(), drop()]),
        Mode::Audit => Rule::new([counter(), back()]).commented("audit mode: counted, not dropped"),
    };
    let [from_the_link, neighbour_discovery] = neighbour_discovery();
    vec![
        Rule::new([from_the_link, neighbour_discovery, back()]).commented("neighbour discovery is never dropped"),
        Rule::new([jump(ChainName::Record)]),
        last,
    ]
}

fn end(range: &IpNet, field: &'static str) -> (Family, Expression<'static>) {
    match range {
        IpNet::V4(_) => (Family::V4, header("ip", field)),
        IpNet::V6(_) => (Family::V6, header("ip6", field)),
    }
}
