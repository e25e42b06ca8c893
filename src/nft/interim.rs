//! The same verdicts without interval maps: what the first step of a whole replacement puts into force, because an interval
//! map that is created and used in one transaction is seen empty for a moment.

use super::expressions::{goto, peer, peer_in, verdict_of};
use super::names::{ChainName, SetName, Side};
use super::ruleset::{Elements, Key, Rule, Ruleset};

/// A side with more cells keeps its map: so many comparisons for each packet would be worse than a moment of denial.
const CELLS: usize = 1000;

/// The ruleset with the look-ups in interval maps written out as comparisons; the maps are there, filled, and not in use.
/// None when there is nothing to write out.
pub(super) fn interim(ruleset: &Ruleset) -> Option<Ruleset> {
    let mut interim = None;
    for side in Side::all() {
        let cells = ruleset.cidrs(side).filter(|(_, cells)| cells.len() <= CELLS);
        let Some((generation, cells)) = cells else { continue };
        let look_up = verdict_of(peer(side.direction, side.family), SetName::Cidrs(side, generation));
        let interim = interim.get_or_insert_with(|| ruleset.clone());
        if let Some(rules) = interim.chains.get_mut(&ChainName::Entry(side)) {
            let written_out = |rule: Rule| match rule.statements.as_slice() {
                [only] if *only == look_up => comparisons(side, cells),
                _ => vec![rule],
            };
            *rules = rules.drain(..).flat_map(written_out).collect();
        }
    }
    interim
}

fn comparisons(side: Side, cells: &Elements) -> Vec<Rule> {
    let cells = cells.iter().filter_map(|(key, element)| match key {
        Key::Interval(range) => Some((range, element.goto?)),
        _ => None,
    });
    let peer = || peer(side.direction, side.family);
    cells
        .map(|(range, to)| Rule::new([peer_in(peer(), *range), goto(to)]))
        .collect()
}
