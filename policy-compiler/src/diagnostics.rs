//! What is odd about the input: said beside the result, never in its place.

use std::fmt;

use serde::Serialize;

use crate::cluster::Cluster;
use crate::compile::Subjects;
use crate::table::Table;

/// How much a diagnostic matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The answer may not be what its author meant.
    Warning,
    /// Worth knowing; nothing is wrong.
    Note,
}

/// One finding about one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Diagnostic {
    /// How much it matters.
    pub severity: Severity,
    /// A stable name for this sort of finding, such as `named-port-without-match`.
    pub code: &'static str,
    /// The object: `Pod shop/web-0`, `NetworkPolicy shop/db`.
    pub object: String,
    /// What is the matter, in a sentence.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        write!(f, "{severity}: {}: {} [{}]", self.object, self.message, self.code)
    }
}

/// Looks a cluster over, with its compiled table at hand.
pub(crate) fn diagnose(_cluster: &Cluster, _table: &Table, _subjects: &Subjects) -> Vec<Diagnostic> {
    Vec::new()
}
