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

/// The answer about many pairs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// In one word.
    pub(crate) verdict: Verdict,
    /// Port by port, where that is asked for.
    pub(crate) ports: Option<Passing>,
}

/// The ports that pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Passing {
    /// Between all pairs.
    pub(crate) every: PortSet,
    /// Between at least one pair.
    pub(crate) some: PortSet,
}

impl Answer {
    /// The answer about one pair.
    pub(crate) fn of(asked: &PortSet, allowed: &PortSet, by_port: bool) -> Self {
        let passing = || {
            let every = asked.intersection(allowed);
            let some = every.clone();
            Passing { every, some }
        };
        Answer {
            verdict: Verdict::of(asked, allowed),
            ports: by_port.then(passing),
        }
    }

    /// The answer about both of two.
    pub(crate) fn and(self, other: &Answer) -> Self {
        let both = |a: Passing, b: &Passing| Passing {
            every: a.every.intersection(&b.every),
            some: a.some.union(&b.some),
        };
        Answer {
            verdict: self.verdict.and(other.verdict),
            ports: self.ports.zip(other.ports.as_ref()).map(|(a, b)| both(a, b)),
        }
    }

    /// Its text in a table, and its style: a sign, or the ports.
    pub(crate) fn mark(&self) -> (String, Style) {
        match &self.ports {
            Some(Passing { every, some }) if every == some && self.verdict == Verdict::Partial => {
                (every.to_string(), Style::Warn)
            }
            Some(Passing { every, some }) if self.verdict == Verdict::Partial => {
                (format!("{every} (some pairs: {some})"), Style::Warn)
            }
            _ => self.verdict.mark(),
        }
    }
}
