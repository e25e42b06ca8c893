//! The content of the table `inet palisade`, as plain ordered data: what rendering makes, what a transaction is the
//! way to, and what the tracer walks through.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use nftables::stmt::Statement;
use policy_compiler::cells::AddressRange;
use policy_compiler::ports::Protocol;

use super::names::{ChainName, Family, KeyType, SetName, Side};

/// The longest comment on a rule or an element; nft takes 128 bytes, its own terminator included.
pub const COMMENT_LIMIT: usize = 127;

/// One element of a set or map, without its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `10.0.0.1`
    Address(IpAddr),
    /// `10.0.0.0-10.0.0.255`
    Interval(AddressRange),
    /// `10.0.0.1 . 10.0.0.2`
    Pair(IpAddr, IpAddr),
    /// `10.0.0.1 . tcp . 80`
    Port(IpAddr, Protocol, u16),
}

impl Key {
    /// Whether a set of this name can hold the key.
    pub fn fits(&self, set: &SetName) -> bool {
        let ours = |address: &IpAddr| Family::of(*address) == set.family();
        match (self, set.key_type()) {
            (Key::Address(a), KeyType::Address) => ours(a),
            (Key::Interval(r), KeyType::Interval) => ours(&r.first) && ours(&r.last) && r.first <= r.last,
            (Key::Pair(a, b), KeyType::Pair) => ours(a) && ours(b),
            (Key::Port(a, ..), KeyType::Port) => ours(a),
            _ => false,
        }
    }
}

/// What an element carries beside its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    /// In a map: the chain to go to.
    pub goto: Option<ChainName>,
    /// Who this is, for people.
    pub comment: Option<Arc<str>>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it matches and does, in order.
    pub statements: Vec<Statement<'static>>,
    /// What it is about, for people.
    pub comment: Option<String>,
}

impl Rule {
    /// A rule without a comment.
    pub fn new(statements: impl IntoIterator<Item = Statement<'static>>) -> Self {
        Rule {
            statements: statements.into_iter().collect(),
            comment: None,
        }
    }

    /// The rule with a comment, made fit for nft.
    #[must_use]
    pub fn commented(mut self, text: &str) -> Self {
        self.comment = Some(comment(text));
        self
    }
}

/// The elements of a set or map.
pub type Elements = BTreeMap<Key, Element>;

/// The whole table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Chains with their rules.
    pub chains: BTreeMap<ChainName, Vec<Rule>>,
    /// Sets and maps with their elements.
    pub sets: BTreeMap<SetName, Elements>,
}

impl Ruleset {
    /// The CIDR map of a side, when it has one, with its generation.
    pub(super) fn cidrs(&self, side: Side) -> Option<(u32, &Elements)> {
        [0, 1]
            .into_iter()
            .find_map(|generation| Some((generation, self.sets.get(&SetName::Cidrs(side, generation))?)))
    }
}

/// A text made fit for a comment: nft's own listing does not escape quotes, and counts bytes.
pub fn comment(text: &str) -> String {
    let safe: String = text
        .chars()
        .map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' })
        .map(|c| if matches!(c, '"' | '\\') { '\'' } else { c })
        .collect();
    if safe.len() <= COMMENT_LIMIT {
        return safe;
    }
    format!("{}...", &safe[..COMMENT_LIMIT - 3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_never_breaks_the_listing() {
        assert_eq!(comment("pods \"a\" \\ \n ö"), "pods 'a' ' ? ?");
        assert_eq!(comment(&"x".repeat(127)).len(), 127);
        let long = comment(&"ö".repeat(500));
        assert_eq!(long.len(), 127);
        assert!(long.ends_with("..."));
    }
}
