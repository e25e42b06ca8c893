//! What is wrong with the objects of a list, told when the list is complete, and not without end.

use tracing::warn;

use super::store::Complaint;

/// How many objects that cannot be read are told at a time.
const TOLD_AT_ONCE: usize = 20;

/// What is wrong with the objects of a list.
#[derive(Default)]
pub(super) struct Complaints {
    told: Vec<Complaint>,
    more: usize,
    /// Objects without a name.
    pub(super) nameless: usize,
}

impl Complaints {
    /// Adds what is wrong with one object, if anything.
    pub(super) fn extend(&mut self, complaint: Option<Complaint>) {
        match complaint {
            Some(complaint) if self.told.len() < TOLD_AT_ONCE => self.told.push(complaint),
            Some(_) => self.more += 1,
            None => {}
        }
    }

    /// Logs them.
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

/// Logs what is wrong with one object.
pub(super) fn tell(kind: &str, complaint: &Complaint) {
    let Complaint { key, wrong } = complaint;
    warn!("{kind} {key}: {}; {}", wrong.message, wrong.remedy);
}
