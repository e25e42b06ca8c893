//! Random choices that are the same in every version and on every machine: a stream of numbers that is part of its
//! crate's contract, and no more arithmetic on it than stands here.

use rand_pcg::Pcg64;
use rand_pcg::rand_core::Rng;

/// The stream constant is arbitrary but fixed: changing it changes every generated cluster.
const STREAM: u128 = 0x5a11_5ade;

/// A source of choices.
pub(super) struct Random(Pcg64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Random(Pcg64::new(u128::from(seed), STREAM))
    }

    /// A number below `end`; 0 when there is none.
    pub(super) fn below(&mut self, end: usize) -> usize {
        let wide = u128::from(self.0.next_u64()) * end as u128;
        (wide >> 64) as usize
    }

    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Letters as the API server appends to generated names: no vowels, no digits that look like letters.
    pub(super) fn letters(&mut self, count: usize) -> String {
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        (0..count).map(|_| char::from(*self.pick(LETTERS))).collect()
    }

    /// Splits `total` into parts that follow a heavy-tailed weight each: a few large ones, many small ones.
    pub(super) fn uneven_shares(&mut self, total: usize, parts: usize) -> Vec<usize> {
        let weights: Vec<usize> = (0..parts).map(|_| self.below(30).pow(2) + 100).collect();
        shares(total, &weights)
    }
}

/// Splits `total` in proportion to weights, exactly: each part is rounded so that all parts before it add up.
fn shares(total: usize, weights: &[usize]) -> Vec<usize> {
    let all: usize = weights.iter().sum();
    let (mut weight, mut given) = (0, 0);
    weights
        .iter()
        .map(|w| {
            weight += w;
            let due = total * weight / all;
            let part = due - given;
            given = due;
            part
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_never_changes() {
        let mut random = Random::new(1);
        let numbers: Vec<usize> = (0..8).map(|_| random.below(1000)).collect();
        assert_eq!(numbers, [957, 461, 998, 420, 525, 482, 168, 914]);
        assert_eq!(random.letters(8), "9rjbdv8j");
    }

    #[test]
    fn shares_add_up() {
        let mut random = Random::new(1);
        for (total, parts) in [(0, 3), (1, 3), (10, 3), (1000, 7), (3, 10)] {
            let shares = random.uneven_shares(total, parts);
            assert_eq!((shares.len(), shares.iter().sum()), (parts, total));
        }
        assert_eq!(shares(10, &[1, 3, 1]), [2, 6, 2]);
    }
}
