//! Allowed, denied, or in between.

use policy_compiler::ports::PortSet;
use serde::Serialize;

use super::output::Style;

/// The answer about two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// Every port passes.
    Allow,
    /// No port passes.
    Deny,
    /// Some ports pass, or some pairs.
    Partial,
}

impl Verdict {
    /// The verdict on the ports asked for.
    pub(crate) fn of(asked: &PortSet, allowed: &PortSet) -> Self {
        if allowed.contains_all(asked) {
            Verdict::Allow
        } else if asked.intersection(allowed).is_empty() {
            Verdict::Deny
        } else {
            Verdict::Partial
        }
    }

    /// The verdict on one connection.
    pub(crate) fn one(allowed: bool) -> Self {
        if allowed { Verdict::Allow } else { Verdict::Deny }
    }

    /// The verdict on both of two.
    pub(crate) fn and(self, other: Verdict) -> Self {
        if self == other { self } else { Verdict::Partial }
    }

    /// Its word and its style.
    pub(crate) fn word(self) -> (&'static str, Style) {
        match self {
            Verdict::Allow => ("allow", Style::Good),
            Verdict::Deny => ("deny", Style::Bad),
            Verdict::Partial => ("partial", Style::Warn),
        }
    }

    /// Its sign in a table, and its style.
    pub(crate) fn mark(self) -> (String, Style) {
        let (word, style) = self.word();
        let mark = match self {
            Verdict::Allow => "✓",
            Verdict::Deny => "✗",
            Verdict::Partial => word,
        };
        (mark.to_owned(), style)
    }
}
