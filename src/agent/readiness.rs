//! Whether the kernel holds the current policy, and if not, why. The loop writes it, the HTTP endpoint reads it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many lines one cause shows: a folder full of broken files must not make the answer grow without bound.
const LINES_PER_CAUSE: usize = 20;

/// What can keep the kernel from holding the current policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Nothing has been applied yet.
    Starting,
    /// The API server's objects are not all known yet.
    Watches,
    /// The manifests cannot be read; the kernel holds what they last said.
    Manifests,
    /// nft has failed.
    Kernel,
    /// Packets between pods on a bridge do not meet the rules.
    Bridge,
}

/// The readiness of the agent, shared. A new one is not ready.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    causes: BTreeMap<Cause, Vec<String>>,
    warnings: BTreeMap<Cause, Vec<String>>,
    remark: Option<String>,
}

impl Default for Readiness {
    fn default() -> Self {
        let starting = vec!["starting: the policy has not been applied yet".to_owned()];
        Readiness(Arc::new(Mutex::new(State {
            causes: BTreeMap::from([(Cause::Starting, starting)]),
            warnings: BTreeMap::new(),
            remark: None,
        })))
    }
}

impl Readiness {
    /// Takes readiness away, with the reasons, one a line; those that the cause had before are replaced.
    pub fn block(&self, cause: Cause, mut lines: Vec<String>) {
        bound(&mut lines);
        self.state().causes.insert(cause, lines);
    }

    /// The cause is gone.
    pub fn clear(&self, cause: Cause) {
        self.state().causes.remove(&cause);
    }

    /// Replaces what is worth telling beside being ready.
    pub fn warn(&self, warnings: Vec<String>) {
        self.warn_of(Cause::Kernel, warnings);
    }

    /// Replaces what is worth telling of one cause beside being ready.
    pub fn warn_of(&self, cause: Cause, mut warnings: Vec<String>) {
        bound(&mut warnings);
        self.state().warnings.insert(cause, warnings);
    }

    /// Replaces what is worth telling about how packets are judged.
    pub fn remark(&self, remark: Option<String>) {
        self.state().remark = remark;
    }

    /// Whether the kernel holds the current policy.
    pub fn is_ready(&self) -> bool {
        self.state().causes.is_empty()
    }

    /// `Ok` with the text for whoever asks, or `Err` with one reason a line.
    pub fn report(&self) -> Result<String, String> {
        let state = self.state();
        if state.causes.is_empty() {
            let warnings = state.warnings.values().flatten().chain(&state.remark);
            let warnings = warnings.map(|w| format!("warning: {w}\n"));
            return Ok(std::iter::once("ready\n".to_owned()).chain(warnings).collect());
        }
        Err(state
            .causes
            .values()
            .flatten()
            .map(|line| format!("{line}\n"))
            .collect())
    }

    /// What keeps it from being ready, and what is worth telling beside; one a line.
    pub fn lines(&self) -> (Vec<String>, Vec<String>) {
        let state = self.state();
        let all = |of: &BTreeMap<Cause, Vec<String>>| of.values().flatten().cloned().collect();
        (all(&state.causes), all(&state.warnings))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment, so the state is whole even after a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bound(lines: &mut Vec<String>) {
    if lines.len() > LINES_PER_CAUSE {
        let more = lines.len() - LINES_PER_CAUSE;
        lines.truncate(LINES_PER_CAUSE);
        lines.push(format!("... and {more} more"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_no_cause_is_left() {
        let readiness = Readiness::default();
        assert!(!readiness.is_ready());
        readiness.block(Cause::Kernel, vec!["nft: no".to_owned()]);
        readiness.clear(Cause::Starting);
        assert_eq!(readiness.report(), Err("nft: no\n".to_owned()));
        readiness.clear(Cause::Kernel);
        assert_eq!(readiness.report(), Ok("ready\n".to_owned()));
        readiness.warn(vec!["no such node".to_owned()]);
        assert_eq!(readiness.report(), Ok("ready\nwarning: no such node\n".to_owned()));
    }

    #[test]
    fn the_answer_is_bounded() {
        let readiness = Readiness::default();
        readiness.clear(Cause::Starting);
        readiness.block(Cause::Manifests, (0..1000).map(|i| format!("manifests: {i}")).collect());
        let text = readiness.report().expect_err("not ready");
        assert_eq!(text.lines().count(), LINES_PER_CAUSE + 1);
        assert!(text.ends_with("... and 980 more\n"), "{text}");
    }
}
