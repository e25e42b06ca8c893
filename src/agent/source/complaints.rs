//! What is wrong with the objects of a list goes in, a few lines in the log come out.

use tracing::warn;

use super::store::Complaint;

/// How many objects that cannot be read are told at a time.
const TOLD_AT_ONCE: usize = 20;

/// What is wrong with the objects of a list.
#[derive(Default)]
pub(super) struct Complaints {
    told: Vec<Complaint>,
    more: usize,
    /// Those without a name.
    pub(super) nameless: usize,
}

impl Complaints {
    /// Takes in one more, if it is one.
    pub(super) fn extend(&mut self, complaint: Option<Complaint>) {
        match complaint {
            Some(complaint) if self.told.len() < TOLD_AT_ONCE => self.told.push(complaint),
            Some(_) => self.more += 1,
            None => {}
        }
    }

    /// Logs them: the first by name, and how many more there are.
    pub(super) fn tell(&self, kind: &str) {
        self.told.iter().for_each(|complaint| tell(kind, complaint));
        let more = self.more + self.nameless;
        if more > 0 {
            warn!(
                "{more} more objects of kind {kind} cannot be read, {} of them without a name",
                self.nameless
            );
        }
    }
}

/// One of them.
pub(super) fn tell(kind: &str, complaint: &Complaint) {
    let Complaint { key, message, remedy } = complaint;
    warn!("{kind} {key}: {message}; {remedy}");
}
