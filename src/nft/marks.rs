//! `--verified-mark MASK`: a connection that has been judged carries the number of the judgement, its generation, in bits of
//! its mark (`ct mark`) that the operator gives away, and its packets pass by one comparison while that number is current.
//! This file holds the rules; `agent::verified` says when which of them are in force.
//!
//! # Why no packet passes that the current policy denies
//!
//! The kernel reads the rules once for each packet, as of one transaction; elements of sets it reads when it comes to them,
//! as of then or later, and those of interval sets change a moment after the rules of the same transaction do. So a packet
//! may be judged by a mixture of old and new, and a mark that such a packet leaves would outlast the moment. Therefore:
//!
//! 1. The transaction that changes policy also takes the rules that accept and set marks out ([`Marks::Judging`]): from then
//!    on every packet is judged, as it is without this option. A change is in force with its own transaction, and if the
//!    agent dies here, or nothing after it works, packets cost more and verdicts are right.
//! 2. A later transaction, which changes nothing else, puts them back with the next number ([`Marks::Verified`]). A packet
//!    that meets these rules began after the first transaction was over, so everything that it looks up is of that one or a later one:
//!    a mark with the new number is never from an older policy. A packet still under way with older rules can only
//!    leave an older number, which nobody accepts any more.
//!
//! # Why no number comes back
//!
//! Numbers only rise. Before one is used for a second time (all have been used, or an agent starts and does not know what was)
//! every packet is judged, and then: first, packets under way with older rules are waited for (an RCU grace period);
//! second, every entry of connection tracking that has any of the bits gets them cleared; third, that is repeated until a whole look finds none
//! (`nft::conntrack`). Only then is the first number used again. For this to be exact, no mark may hide where that look does not reach:
//!
//! - A connection is marked only once it is confirmed, that is, in the table that is looked through. A first packet may lie in somebody's
//!   queue (NFQUEUE) for as long as they like.
//! - An expected connection (FTP's data, for example) inherits its master's mark before anybody has judged it. Marks of
//!   unconfirmed connections are cleared by a rule, and not accepted.
//! - An entry that is being deleted is out of the table while packets still hold it. Its mark is not accepted.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use policy_compiler::policy::Direction;
use thiserror::Error;

use super::expressions::{
    accept, back, is_confirmed, is_in, is_unconfirmed, mark_is, mark_is_not, set_mark, state, subject,
};
use super::names::{Family, SetName, Side};
use super::render_base;
use super::ruleset::Rule;
use super::transaction::{Operation, OperationError};

/// Bits of the connection mark that are the agent's own: one run of at least two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkMask(u32);

/// Why a number is no mask.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MaskError {
    /// Not a hexadecimal number of 32 bits.
    #[error("{0:?} is not a mask: write it in hexadecimal, for example 0xffff0000")]
    NotANumber(String),
    /// Nothing to count with.
    #[error(
        "{0:#010x} has no two neighbouring bits: write one run of bits that nobody else uses, for example 0xffff0000"
    )]
    TooFew(u32),
    /// Bits with a gap between them.
    #[error("{0:#010x} has gaps: write one run of bits that nobody else uses, for example 0xffff0000")]
    Gaps(u32),
}

impl MarkMask {
    /// A mask of these bits.
    pub fn new(bits: u32) -> Result<Self, MaskError> {
        if bits.count_ones() < 2 {
            return Err(MaskError::TooFew(bits));
        }
        let run = bits >> bits.trailing_zeros();
        match run & run.wrapping_add(1) {
            0 => Ok(MarkMask(bits)),
            _ => Err(MaskError::Gaps(bits)),
        }
    }

    /// The bits.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// The generation after this one; the first after none. None when all have been used. No bit set is no generation.
    pub fn next(self, generation: Option<u32>) -> Option<u32> {
        let last = self.0 >> self.0.trailing_zeros();
        let next = generation.unwrap_or(0).checked_add(1)?;
        (next <= last).then_some(next)
    }

    /// A generation in its place within the mark.
    pub fn place(self, generation: u32) -> u32 {
        (generation << self.0.trailing_zeros()) & self.0
    }
}

impl fmt::Display for MarkMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl FromStr for MarkMask {
    type Err = MaskError;

    fn from_str(text: &str) -> Result<Self, MaskError> {
        let wrong = || MaskError::NotANumber(text.to_owned());
        let digits = text.strip_prefix("0x").filter(|digits| !digits.starts_with('+'));
        let bits = u32::from_str_radix(digits.ok_or_else(wrong)?, 16).map_err(|_| wrong())?;
        MarkMask::new(bits)
    }
}

/// What the base chain does about marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Marks {
    /// Nothing; it does not even speak of them, as not every kernel knows them. Every packet is judged.
    #[default]
    None,
    /// Every packet is judged, and no unconfirmed connection keeps a mark that it inherited.
    Judging(MarkMask),
    /// Connections of this generation pass, and those that are judged and pass become of this generation.
    Verified(MarkMask, u32),
}

impl Marks {
    /// The same without what accepts and sets marks.
    #[must_use]
    pub fn judging(self) -> Self {
        match self {
            Marks::Verified(mask, _) => Marks::Judging(mask),
            marks => marks,
        }
    }

    /// The rules before all others. Packets without a connection have no mark, and go on.
    ///
    /// `accept` ends this base chain only: chains of other tables see the packet as ever.
    ///
    /// An ICMP error has the mark of the connection that it is about, and may come from anywhere: where unknown pods are to pass
    /// nothing, it is judged itself.
    pub(super) fn first(self, errors_judged: bool) -> Vec<Rule> {
        let inherited = |mask: MarkMask| {
            Rule::new([is_unconfirmed(), mark_is_not(mask.bits(), 0), set_mark(mask.bits(), 0)])
                .commented("a new connection has a mark only by inheritance")
        };
        match self {
            Marks::None => Vec::new(),
            Marks::Judging(mask) => vec![inherited(mask)],
            Marks::Verified(mask, generation) => {
                let mut judged = vec![mark_is(mask.bits(), mask.place(generation)), is_confirmed()];
                judged.extend(errors_judged.then(|| state(&["new", "established"])));
                judged.push(accept());
                vec![
                    Rule::new(judged).commented("judged since the last change, and allowed"),
                    inherited(mask),
                ]
            }
        }
    }

    /// The rules after all others of a family: whatever comes here has been judged at both ends, and passes.
    ///
    /// A packet that passes though it is denied would not be counted again if it were marked: connections of ends that only
    /// audited policies judge are never marked, and where nothing is enforced there is [`Marks::None`].
    pub(super) fn last(self, family: Family) -> Vec<Rule> {
        match self {
            Marks::None | Marks::Judging(_) => Vec::new(),
            Marks::Verified(mask, generation) => {
                let audited = |direction| {
                    let end = subject(direction, family);
                    Rule::new([is_in(end, SetName::Audited(Side { direction, family })), back()])
                };
                let mut rules: Vec<Rule> = Direction::BOTH.map(audited).into();
                rules[0] = rules[0]
                    .clone()
                    .commented("each packet that would be denied is counted");
                rules.push(
                    Rule::new([is_confirmed(), set_mark(mask.bits(), mask.place(generation))])
                        .commented("its next packets pass by the first rule"),
                );
                rules
            }
        }
    }

    /// What brings the base chain, and that of IPv6 to which it leads, to these rules. To be put into a transaction. In the
    /// ranges given, unknown pods pass nothing.
    pub fn operations(self, ranges: &BTreeSet<IpNet>) -> Vec<Operation> {
        let operations = |(chain, rules): (_, Vec<Rule>)| {
            let rules = rules.into_iter().map(move |rule| Operation::AddRule(chain, rule));
            std::iter::once(Operation::FlushChain(chain)).chain(rules)
        };
        render_base::forward(self, ranges)
            .into_iter()
            .flat_map(operations)
            .collect()
    }

    /// A transaction of [`operations`](Self::operations) alone.
    pub fn transaction(self, ranges: &BTreeSet<IpNet>) -> Result<super::Transaction, OperationError> {
        let mut transaction = super::Transaction::default();
        self.operations(ranges)
            .into_iter()
            .try_for_each(|operation| transaction.add(operation))?;
        Ok(transaction)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_one_run_of_at_least_two_bits() {
        for (text, bits) in [
            ("0xffff0000", 0xffff_0000),
            ("0x3", 3),
            ("0xFFFFFFFF", u32::MAX),
            ("0xC0000000", 3 << 30),
        ] {
            assert_eq!(text.parse::<MarkMask>().unwrap().bits(), bits);
        }
        for (text, says) in [
            ("", "hexadecimal"),
            ("16", "hexadecimal"),
            ("ffff0000", "hexadecimal"),
            ("0x", "hexadecimal"),
            ("0x+3", "hexadecimal"),
            ("0x1ffff0000", "hexadecimal"),
            ("0x0", "neighbouring"),
            ("0x80", "neighbouring"),
            ("0x5", "gaps"),
            ("0xff0ff000", "gaps"),
        ] {
            let error = text.parse::<MarkMask>().unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("0xffff0000"), "{text}: {error}");
        }
    }

    #[test]
    fn generations_fill_the_mask_and_end() {
        for (bits, count) in [(0x3, 3), (0xc000_0000, 3), (0x0000_ff00, 255), (0xffff_0000, 65535)] {
            let mask = MarkMask::new(bits).unwrap();
            let mut generation = None;
            let mut seen = std::collections::BTreeSet::new();
            while let Some(next) = mask.next(generation) {
                let place = mask.place(next);
                assert!(place != 0 && place & !bits == 0 && seen.insert(place), "{mask}: {next}");
                generation = Some(next);
            }
            assert_eq!(seen.len(), count);
        }
        assert_eq!(MarkMask::new(u32::MAX).unwrap().next(Some(u32::MAX)), None);
    }

    #[test]
    fn the_rules_as_text() {
        let mask = MarkMask::new(0x00ff_0000).unwrap();
        let text = Marks::Verified(mask, 3)
            .transaction(&BTreeSet::new())
            .unwrap()
            .to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "flush chain inet palisade forward");
        assert_eq!(
            lines[1],
            "add rule inet palisade forward ct mark & 0x00ff0000 == 0x00030000 ct status & (confirmed|dying) == confirmed \
             accept comment \"judged since the last change, and allowed\""
        );
        assert_eq!(
            lines[2],
            "add rule inet palisade forward ct status & confirmed == 0x00000000 ct mark & 0x00ff0000 != 0x00000000 \
             ct mark set ct mark & 0xff00ffff comment \"a new connection has a mark only by inheritance\""
        );
        assert_eq!(
            *lines.last().unwrap(),
            "add rule inet palisade six ct status & (confirmed|dying) == confirmed ct mark set ct mark & 0xff00ffff | \
             0x00030000 comment \"its next packets pass by the first rule\""
        );
        let none = Marks::None.transaction(&BTreeSet::new()).unwrap().to_string();
        assert!(!none.contains("mark"), "{none}");
    }
}
