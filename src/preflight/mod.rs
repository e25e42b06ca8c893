//! Whether a node is fit for the agent: the kernel, the nft program, files under a root and (on request) an API server are
//! asked; findings come out, each with a verdict and the remedy. Nothing is changed.

mod files;
mod kernel;
mod rights;

use std::path::PathBuf;

use serde::Serialize;

use crate::agent::source::Target;
use crate::nft::Nft;

/// What a check comes to, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It could not be looked at.
    Skipped,
    /// It may be in the way; somebody should look.
    Warning,
    /// The agent cannot enforce policy like this.
    Failed,
}

/// The outcome of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check; stable.
    pub check: &'static str,
    /// What it comes to.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it; none where there is nothing to do.
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Finding {
            check,
            verdict: Verdict::Ok,
            found: found.into(),
            remedy: None,
        }
    }

    fn of(check: &'static str, verdict: Verdict, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Finding {
            check,
            verdict,
            found: found.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// What to look at.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where `proc` and `etc` are; `/` but in tests, or where a node's are mounted elsewhere.
    pub root: PathBuf,
    /// The nft program, in the network namespace of this process.
    pub nft: Nft,
    /// Whose rights to look at; none to pass that over.
    pub cluster: Option<Target>,
}

/// All checks, in a fixed order.
pub fn run(options: &Options) -> Vec<Finding> {
    let mut findings = kernel::check(&options.nft);
    findings.extend(files::check(&options.root));
    findings.push(rights::check(options.cluster.as_ref()));
    findings
}
