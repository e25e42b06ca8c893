//! Pairs of numbers as few rectangles: equal rows, or equal columns, are one.

use std::collections::BTreeMap;

/// Sources and destinations: every one of the first with every one of the second. Both sorted.
pub(super) type Rectangle = (Vec<usize>, Vec<usize>);

/// Covers pairs of a source and a destination by rectangles, each pair once. `open` says of which numbers the pair with itself does not matter, so
/// that a rectangle may hold it.
pub(super) fn rectangles(pairs: &[(usize, usize)], open: impl Fn(usize) -> bool) -> Vec<Rectangle> {
    let by_destination = lines(pairs.iter().map(|(from, to)| (*to, *from)), &open);
    let by_source = lines(pairs.iter().copied(), &open);
    // The fewer the better; of as many, those by destination, as most policies are written.
    let mut out: Vec<Rectangle> = match by_source.len() < by_destination.len() {
        true => by_source.into_iter().map(|(to, from)| (from, to)).collect(),
        false => by_destination.into_iter().collect(),
    };
    out.sort();
    out
}

/// Keys with equal values together: values, then the keys that have them.
fn lines(
    pairs: impl Iterator<Item = (usize, usize)>,
    open: impl Fn(usize) -> bool,
) -> BTreeMap<Vec<usize>, Vec<usize>> {
    let mut by_key: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (key, value) in pairs {
        by_key.entry(key).or_default().push(value);
    }
    for values in by_key.values_mut() {
        values.sort_unstable();
        values.dedup();
    }
    // A key whose pair with itself does not matter has two forms, one with itself. The one that more keys can take is taken.
    let with_itself = |key: usize, values: &[usize]| {
        let at = values.binary_search(&key).err().filter(|_| open(key))?;
        let mut with = values.to_vec();
        with.insert(at, key);
        Some(with)
    };
    let mut votes: BTreeMap<Vec<usize>, usize> = BTreeMap::new();
    for (key, values) in &by_key {
        let other = with_itself(*key, values);
        for form in other.into_iter().chain([values.clone()]) {
            *votes.entry(form).or_default() += 1;
        }
    }
    let mut out: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
    for (key, values) in by_key {
        let form = match with_itself(key, &values) {
            Some(with) if votes.get(&with) > votes.get(&values) => with,
            _ => values,
        };
        out.entry(form).or_default().push(key);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pairs: &[(usize, usize)], open: bool, expected: &[(&[usize], &[usize])]) {
        let found = rectangles(pairs, |_| open);
        let found: Vec<(&[usize], &[usize])> = found.iter().map(|(f, t)| (f.as_slice(), t.as_slice())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn equal_lines_are_one_rectangle() {
        check(&[(1, 3), (2, 3), (1, 4), (2, 4)], false, &[(&[1, 2], &[3, 4])]);
        // By source there are fewer lines.
        check(
            &[(1, 2), (1, 3), (4, 3), (4, 5)],
            false,
            &[(&[1], &[2, 3]), (&[4], &[3, 5])],
        );
    }

    #[test]
    fn a_pair_that_does_not_matter_joins_what_it_fits() {
        let all_but_itself = [(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)];
        check(&all_but_itself, true, &[(&[1, 2, 3], &[1, 2, 3])]);
        check(
            &all_but_itself,
            false,
            &[(&[1, 2], &[3]), (&[1, 3], &[2]), (&[2, 3], &[1])],
        );
        // Nothing to join: it is left out.
        check(&[(1, 2)], true, &[(&[1], &[2])]);
    }
}
