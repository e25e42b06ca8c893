//! When connections may be verified by their marks, and with which generation: a state machine beside the enforcer's
//! transactions. What was applied goes in; what to apply next comes out. `nft::marks` says why this is right.

use std::time::{Duration, Instant};

use crate::nft::{ClearError, Clearing, KernelError, MarkMask, Marks, Settings};

/// After so long it is tried again.
pub const RETRY: Duration = Duration::from_secs(60);

/// The marks of one node.
#[derive(Debug, Default)]
pub struct Verified {
    /// None when the option is off, or of no use because nothing is enforced.
    mask: Option<MarkMask>,
    /// What the base chain in the kernel does, if the table is what it should be.
    marks: Marks,
    /// The last generation that any connection may carry; none when none carries any.
    used: Option<u32>,
    /// Whether all connections were without the bits when the first generation began.
    cleared: bool,
    clearing: Option<Clearing>,
    retry_at: Option<Instant>,
    trouble: Option<String>,
}

/// What is to be done now.
#[derive(Debug)]
pub enum Step {
    /// Nothing, or nothing yet.
    Nothing,
    /// Bring the base chain to this, in a transaction that changes nothing else, and tell how it went by
    /// [`Verified::applied`] or [`Verified::refused`].
    Apply(Marks),
    /// Begin to clear this mask, and hand the work to [`Verified::clearing`].
    Clear(MarkMask),
}

impl Verified {
    /// As the operator wants it.
    pub fn new(settings: Settings) -> Self {
        Verified {
            mask: settings.marks(),
            ..Verified::default()
        }
    }

    /// What the base chain does now.
    pub fn marks(&self) -> Marks {
        self.marks
    }

    /// Before a transaction that changes what the table holds: from this transaction on every packet must be judged. What
    /// the base chain is to do from then on.
    pub fn judge(&mut self) -> Marks {
        self.marks = self.marks.judging();
        self.marks
    }

    /// Before the whole table is put in the place of nobody knows what: nothing is known about marks any more either.
    pub fn forget(&mut self) -> Marks {
        *self = Verified {
            mask: self.mask,
            trouble: self.trouble.take(),
            ..Verified::default()
        };
        self.marks
    }

    /// What to do next, as the kernel holds the table that it should.
    pub fn next(&mut self, now: Instant) -> Step {
        let Some(mask) = self.mask else { return Step::Nothing };
        if let Some(result) = self.clearing.as_ref().and_then(Clearing::result) {
            self.ended(result, now);
        }
        if self.clearing.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return Step::Nothing;
        }
        match self.marks {
            Marks::None => Step::Apply(Marks::Judging(mask)),
            Marks::Verified(..) => Step::Nothing,
            Marks::Judging(_) => match mask.next(self.used).filter(|_| self.cleared) {
                Some(generation) => Step::Apply(Marks::Verified(mask, generation)),
                None => {
                    self.cleared = false;
                    Step::Clear(mask)
                }
            },
        }
    }

    /// The kernel holds these rules now.
    pub fn applied(&mut self, marks: Marks) {
        self.marks = marks;
        if let Marks::Verified(_, generation) = marks {
            self.used = Some(generation);
            self.retry_at = None;
            self.trouble = None;
        }
    }

    /// nft has refused a step, and the base chain is what it was: the kernel has no marks, perhaps.
    pub fn refused(&mut self, error: &KernelError, now: Instant) {
        self.fail(error.to_string(), now);
    }

    /// Connections are being cleared.
    pub fn clearing(&mut self, clearing: Clearing) {
        self.clearing = Some(clearing);
    }

    /// Waits for the clearing that is under way, if any; for tests, and for whoever has nothing else to do.
    pub fn wait(&mut self, at_most: Duration) {
        if let Some(result) = self.clearing.as_ref().and_then(|clearing| clearing.wait(at_most)) {
            self.ended(result, Instant::now());
        }
    }

    /// Whether packets of judged connections pass by their mark.
    pub fn is_on(&self) -> bool {
        matches!(self.marks, Marks::Verified(..))
    }

    /// Why not, when something is in the way.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    fn ended(&mut self, result: Result<usize, ClearError>, now: Instant) {
        self.clearing = None;
        match result {
            Ok(_) => {
                self.cleared = true;
                self.used = None;
            }
            Err(error) => self.fail(error.to_string(), now),
        }
    }

    fn fail(&mut self, trouble: String, now: Instant) {
        self.trouble = Some(trouble);
        self.retry_at = Some(now + RETRY);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::nft::Mode;

    fn verified(bits: u32) -> Verified {
        Verified::new(Settings {
            verified: Some(MarkMask::new(bits).unwrap()),
            ..Settings::default()
        })
    }

    /// Does all steps that are due; every clearing ends as told. Returns the rules that were applied, and the clearings.
    fn settle(verified: &mut Verified, end: impl Fn() -> Result<usize, ClearError>) -> (Vec<Marks>, usize) {
        let (mut applied, mut clearings) = (Vec::new(), 0);
        loop {
            match verified.next(Instant::now()) {
                Step::Nothing => return (applied, clearings),
                Step::Apply(marks) => {
                    applied.push(marks);
                    verified.applied(marks);
                }
                Step::Clear(_) => {
                    clearings += 1;
                    verified.clearing(Clearing::ended(end()));
                }
            }
        }
    }

    #[test]
    fn it_begins_with_judging_then_clears_and_only_then_accepts() {
        let mask = MarkMask::new(3).unwrap();
        let mut verified = verified(3);
        assert_eq!(verified.marks(), Marks::None);
        let (applied, clearings) = settle(&mut verified, || Ok(7));
        assert_eq!(applied, [Marks::Judging(mask), Marks::Verified(mask, 1)]);
        assert_eq!(clearings, 1);
        assert!(verified.is_on() && verified.trouble().is_none());
    }

    #[test]
    fn a_change_judges_and_then_raises_and_the_last_number_is_followed_by_a_clearing() {
        let mask = MarkMask::new(3).unwrap();
        let mut verified = verified(3);
        settle(&mut verified, || Ok(0));
        for (generation, cleared) in [(2, 0), (3, 0), (1, 1), (2, 0), (3, 0), (1, 1)] {
            assert_eq!(verified.judge(), Marks::Judging(mask));
            // A second change before there was time for the next step costs no number.
            assert_eq!(verified.judge(), Marks::Judging(mask));
            let (applied, clearings) = settle(&mut verified, || Ok(0));
            assert_eq!(applied, [Marks::Verified(mask, generation)]);
            assert_eq!(clearings, cleared);
        }
    }

    #[test]
    fn while_connections_are_cleared_nothing_is_accepted() {
        let mut verified = verified(3);
        let Step::Apply(marks) = verified.next(Instant::now()) else {
            panic!("no step")
        };
        verified.applied(marks);
        assert!(matches!(verified.next(Instant::now()), Step::Clear(_)));
        verified.clearing(Clearing::never());
        for _ in 0..3 {
            assert!(matches!(verified.next(Instant::now()), Step::Nothing));
            verified.judge();
        }
        assert!(!verified.is_on());
    }

    #[test]
    fn what_cannot_be_cleared_is_told_and_tried_again_later() {
        let mut verified = verified(3);
        let (_, clearings) = settle(&mut verified, || Err(ClearError::Left(2)));
        assert_eq!(clearings, 1);
        assert!(!verified.is_on());
        assert!(verified.trouble().unwrap().contains("2 connections"));
        let later = Instant::now() + RETRY;
        assert!(matches!(verified.next(later), Step::Clear(_)));
        verified.clearing(Clearing::ended(Ok(0)));
        assert!(matches!(verified.next(later), Step::Apply(Marks::Verified(_, 1))));
    }

    #[test]
    fn a_kernel_without_marks_is_left_alone() {
        let mut verified = verified(3);
        assert!(matches!(verified.next(Instant::now()), Step::Apply(Marks::Judging(_))));
        verified.refused(
            &KernelError::Refused("Operation not supported".to_owned()),
            Instant::now(),
        );
        assert_eq!(verified.marks(), Marks::None);
        assert!(matches!(verified.next(Instant::now()), Step::Nothing));
        assert!(verified.trouble().unwrap().contains("not supported"));
    }

    #[test]
    fn a_table_put_in_anew_starts_over() {
        let mut verified = verified(0xff00);
        settle(&mut verified, || Ok(0));
        assert_eq!(verified.forget(), Marks::None);
        let (applied, clearings) = settle(&mut verified, || Ok(0));
        assert_eq!((applied.len(), clearings), (2, 1));
        // A clearing that began before does not count either.
        verified.forget();
        let Step::Apply(marks) = verified.next(Instant::now()) else {
            panic!("no step")
        };
        verified.applied(marks);
        assert!(matches!(verified.next(Instant::now()), Step::Clear(_)));
        verified.clearing(Clearing::ended(Ok(0)));
        verified.forget();
        assert_eq!(settle(&mut verified, || Ok(0)).1, 1);
    }

    #[test]
    fn nothing_is_done_without_a_mask_or_in_audit_mode() {
        let mut off = Verified::new(Settings::default());
        assert!(matches!(off.next(Instant::now()), Step::Nothing));
        let mut audit = Verified::new(Settings {
            mode: Mode::Audit,
            verified: Some(MarkMask::new(3).unwrap()),
            ..Settings::default()
        });
        assert!(matches!(audit.next(Instant::now()), Step::Nothing));
        assert_eq!(audit.judge(), Marks::None);
    }
}
