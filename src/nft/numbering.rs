//! Numbers for classes and range chains. Equal things keep their number from one rendering to the next, so that a change
//! touches only what changed; the previous ruleset is all the memory that this needs.

use std::collections::{BTreeMap, BTreeSet};

use nftables::stmt::Statement;
use policy_compiler::cells::AddressRange;
use policy_compiler::table::{ClassId, Half};

use super::names::{ChainName, Column, Family, SetName, Side};
use super::ruleset::{Elements, Key, Rule, Ruleset};
use super::text;

/// The number of each class of a side that adds anything to the default of its sort. A class takes the number that most of its peers had before, when no other class
/// has a better claim to it; a new class takes one that was not in use.
pub(super) fn number_classes(half: &Half, side: Side, previous: Option<&Ruleset>) -> BTreeMap<ClassId, u32> {
    let mut claims: Vec<_> = previous
        .map(|previous| claims(half, side, previous))
        .unwrap_or_default()
        .into_iter()
        .collect();
    // The most peers first; then an order that is the same on every run.
    claims.sort_by_key(|((class, number), peers)| (std::cmp::Reverse(*peers), *class, *number));
    let mut numbers = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for ((class, number), _) in claims {
        if !numbers.contains_key(&class) && taken.insert(number) {
            numbers.insert(class, number);
        }
    }
    taken.extend(previous.into_iter().flat_map(|p| used(p, side)));
    let mut free = (0..).filter(|n| !taken.contains(n));
    // In the order of their first address, so that the compiler's own numbers do not show. What adds nothing to the
    // default of its sort needs none.
    let peers = half.peers().map(|(address, class)| (Family::of(address), class));
    let cells = half.cells().into_iter();
    let met = peers.chain(cells.map(|cell| (Family::of(cell.range.first), cell.class)));
    for (_, class) in met.filter(|(family, _)| *family == side.family) {
        if half.column(class).next().is_some() && !numbers.contains_key(&class) {
            numbers.extend(free.next().map(|number| (class, number)));
        }
    }
    numbers
}

/// How many peers of each class had which number.
fn claims(half: &Half, side: Side, previous: &Ruleset) -> BTreeMap<(ClassId, u32), usize> {
    let mut claims = BTreeMap::new();
    let mut claim = |class: ClassId, chain: Option<ChainName>| {
        if let Some(ChainName::Column(_, Column::Class(number))) = chain
            && half.column(class).next().is_some()
        {
            *claims.entry((class, number)).or_insert(0) += 1;
        }
    };
    if let Some(peers) = previous.sets.get(&SetName::Peers(side)) {
        for (address, class) in half.peers().filter(|(a, _)| Family::of(*a) == side.family) {
            claim(class, peers.get(&Key::Address(address)).and_then(|e| e.goto));
        }
    }
    let cidrs = previous.cidrs(side).map(|(_, elements)| elements);
    let rest = previous.rest(side);
    for cell in half.cells().iter().filter(|c| Family::of(c.range.first) == side.family) {
        let before = match cidrs {
            Some(cidrs) => containing(cidrs, cell.range),
            None => rest,
        };
        claim(cell.class, before);
    }
    claims
}

/// Where the first address of a range went before.
fn containing(cidrs: &Elements, range: AddressRange) -> Option<ChainName> {
    let from_first = Key::Interval(AddressRange {
        first: range.first,
        last: AddressRange::V6.last,
    });
    match cidrs.range(..=from_first).next_back()? {
        (Key::Interval(before), element) if before.contains(range.first) => element.goto,
        _ => None,
    }
}

fn used(previous: &Ruleset, side: Side) -> impl Iterator<Item = u32> {
    previous.chains.keys().filter_map(move |chain| match chain {
        ChainName::Column(s, Column::Class(number)) if *s == side => Some(*number),
        _ => None,
    })
}

/// The generation of a side's CIDR map: the previous one when its elements are the same, else the other one of two.
pub(super) fn generation(side: Side, elements: &Elements, previous: Option<&Ruleset>) -> u32 {
    match previous.and_then(|p| p.cidrs(side)) {
        Some((generation, before)) if before == elements => generation,
        Some((generation, _)) => 1 - generation.min(1),
        None => 0,
    }
}

/// Numbers for chains of port ranges, of one side.
pub(super) struct RangeChains {
    side: Side,
    before: BTreeMap<String, u32>,
    taken: BTreeSet<u32>,
    now: BTreeMap<String, u32>,
}

impl RangeChains {
    /// Knows the chains of the previous rendering.
    pub(super) fn new(side: Side, previous: Option<&Ruleset>) -> Self {
        let chains = previous.into_iter().flat_map(|p| &p.chains);
        let before: BTreeMap<String, u32> = chains
            .filter_map(|(name, rules)| match name {
                ChainName::Ranges(s, number) if *s == side => Some((content(rules), *number)),
                _ => None,
            })
            .collect();
        RangeChains {
            side,
            taken: before.values().copied().collect(),
            before,
            now: BTreeMap::new(),
        }
    }

    /// The chain with these rules, and whether it is to be made.
    pub(super) fn chain(&mut self, rules: &[Rule]) -> (ChainName, bool) {
        let content = content(rules);
        let name = |number| ChainName::Ranges(self.side, number);
        if let Some(number) = self.now.get(&content) {
            return (name(*number), false);
        }
        let number = match self.before.get(&content) {
            Some(number) => *number,
            None => (0..).find(|n| !self.taken.contains(n)).unwrap_or(u32::MAX),
        };
        self.taken.insert(number);
        self.now.insert(content, number);
        (name(number), true)
    }
}

fn content(rules: &[Rule]) -> String {
    rules.iter().map(|rule| format!("{}\n", text::Line(rule))).collect()
}

impl Ruleset {
    /// The CIDR map of a side, when it has one, with its generation.
    pub(super) fn cidrs(&self, side: Side) -> Option<(u32, &Elements)> {
        self.sets.iter().find_map(|(name, elements)| match name {
            SetName::Cidrs(s, generation) if *s == side => Some((*generation, elements)),
            _ => None,
        })
    }

    /// Where every address goes that no map of a side names.
    fn rest(&self, side: Side) -> Option<ChainName> {
        let last = self.chains.get(&ChainName::Entry(side))?.last()?;
        match last.statements.as_slice() {
            [Statement::Goto(to)] => self.chains.keys().copied().find(|name| name.to_string() == to.target),
            _ => None,
        }
    }
}
