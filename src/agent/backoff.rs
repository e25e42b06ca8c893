//! How long to wait after a failure: longer each time, and never the same on every node.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// Counts the failures since the last success.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
    random: RandomState,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff::new(FIRST, LONGEST)
    }
}

impl Backoff {
    /// Between half and all of `first`, twice as long each time, at most `longest`.
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Backoff {
            first,
            longest,
            failures: 0,
            random: RandomState::new(),
        }
    }

    /// One more failure: how long to wait now; by default between half and all of 1, 2, 4, ... 60 seconds.
    pub(super) fn delay(&mut self) -> Duration {
        let full = self.first.saturating_mul(1 << self.failures.min(16)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        // The standard library's only source of randomness: keys of its own for every hasher state.
        let jitter = self.random.hash_one(self.failures) % 512;
        full.mul_f64(0.5 + jitter as f64 / 1024.0)
    }

    /// It worked.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.first, self.longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_to_a_bound_and_starts_over() {
        let mut backoff = Backoff::default();
        for full in [1, 2, 4, 8, 16, 32, 60, 60, 60].map(Duration::from_secs) {
            let delay = backoff.delay();
            assert!(delay >= full / 2 && delay < full, "{delay:?} of {full:?}");
        }
        for _ in 0..100 {
            assert!(backoff.delay() < LONGEST);
        }
        backoff.reset();
        assert!(backoff.delay() < FIRST);
    }

    #[test]
    fn two_nodes_do_not_wait_alike() {
        let delays: std::collections::BTreeSet<Duration> = (0..20).map(|_| Backoff::default().delay()).collect();
        assert!(delays.len() > 1);
    }
}
