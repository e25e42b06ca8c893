//! What can go wrong with a request, by name.

use std::time::Duration;

use super::state::Kind;

/// What a request asks for, as RBAC names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Verb {
    Get,
    List,
    /// A watch from a version on.
    Watch,
    /// A watch with all objects first; for RBAC it is a watch.
    StreamingList,
    Create,
    Update,
    Patch,
    Delete,
}

/// A fault, met once.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// A refusal with this status code.
    Status(u16),
    /// Status 429 with `Retry-After`, in seconds.
    TooManyRequests(u64),
    /// A watch that begins with an error event of code 410.
    GoneEvent,
    /// A watch that is cut within its first event (or, for a streaming list, within its second).
    CutWithinEvent,
    /// A watch that is closed in good order at once.
    CloseAtOnce,
    /// Accepted, and never answered.
    Silence,
    /// The head of the answer comes, and then nothing.
    SilenceAfterHead,
    /// The answer comes so late.
    Slow(Duration),
    /// The answer comes when the test lets it go.
    Held,
    /// A line that is not JSON; of a list, a page that is none.
    Garbage,
    /// A line that is longer than any object.
    TooLongLine,
}

/// Faults that wait for their requests.
#[derive(Default)]
pub(super) struct Faults(Vec<(Kind, Verb, usize, Fault)>);

impl Faults {
    pub(super) fn add(&mut self, kind: Kind, verb: Verb, times: usize, fault: Fault) {
        self.0.push((kind, verb, times, fault));
    }

    pub(super) fn left(&self) -> usize {
        self.0.iter().map(|(_, _, times, _)| times).sum()
    }

    /// The fault of this request; faults of one kind and verb are met in the order in which they were added.
    pub(super) fn meet(&mut self, kind: Kind, verb: Verb) -> Option<Fault> {
        let at = self.0.iter().position(|(k, v, ..)| (*k, *v) == (kind, verb))?;
        let (_, _, times, fault) = &mut self.0[at];
        *times -= 1;
        let (done, fault) = (*times == 0, fault.clone());
        if done {
            self.0.remove(at);
        }
        Some(fault)
    }
}
