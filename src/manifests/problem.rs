//! What is wrong with manifests, and where: one line each.

use std::fmt;
use std::sync::Arc;

use policy_compiler::convert::FieldPath;
use policy_compiler::diagnostics::Code;
pub use policy_compiler::diagnostics::ObjectName;

use super::yaml::Position;
use crate::plain::line;

/// A place in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// The file as it was named or found; `<stdin>` for standard input.
    pub file: Arc<str>,
    /// The place in it; none when the file as a whole is meant.
    pub position: Option<Position>,
}

impl fmt::Display for Source {
    /// `shop/policies.yaml:12:5`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        match self.position {
            Some(at) => write!(f, ":{}:{}", at.line, at.column),
            None => Ok(()),
        }
    }
}

/// An error in a manifest, or a warning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub source: Source,
    /// The object, as far as it is known.
    pub object: Option<ObjectName>,
    /// The field; none when the object, or the file, as a whole is meant.
    pub path: Option<FieldPath>,
    /// What is wrong and what to write instead, in a lower-case sentence without a full stop.
    pub message: String,
    /// Of a warning, what sort of finding it is.
    pub code: Option<Code>,
}

impl fmt::Display for Problem {
    /// `file:line:column: Kind namespace/name: field.path: message`, and of a warning ` [code]`; one line, whatever the names hold.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code.map_or_else(String::new, |code| format!(" [{code}]"));
        f.write_str(&line(&format!("{}: {}{code}", self.source, self.sentence())))
    }
}

impl Problem {
    /// The problem as a warning of a sort.
    pub(super) fn of(self, code: Code) -> Self {
        let code = Some(code);
        Problem { code, ..self }
    }

    /// What is said of it, wherever it is: `NetworkPolicy shop/db: spec.egress[0]: …`. It may hold any character.
    pub(crate) fn sentence(&self) -> String {
        let object = self.object.iter().map(|o| format!("{o}: "));
        let path = self.path.iter().filter(|p| !p.is_root()).map(|p| format!("{p}: "));
        let mut text: String = object.chain(path).collect();
        text.push_str(&self.message);
        text
    }
}

/// Everything that is wrong with the manifests of one run, sorted by file and place; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadErrors(Vec<Problem>);

impl LoadErrors {
    /// The errors, sorted; none when there are none.
    pub fn new(mut errors: Vec<Problem>) -> Option<Self> {
        errors.sort();
        errors.dedup();
        (!errors.is_empty()).then_some(LoadErrors(errors))
    }

    /// The errors, sorted by file and place.
    pub fn errors(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for LoadErrors {
    /// A line for each, and their number at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.0 {
            writeln!(f, "{error}")?;
        }
        match self.0.len() {
            1 => f.write_str("1 error"),
            n => write!(f, "{n} errors"),
        }
    }
}

impl std::error::Error for LoadErrors {}
