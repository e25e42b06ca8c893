//! Why decoding an object ended, and what its rounds have found: what `decode` and serde's derived code say to each other.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

use policy_compiler::convert::{FieldPath, Path};
use serde::de;

use super::DecodeError;
use crate::manifests::yaml::Position;

/// What the rounds of decoding one object have found.
#[derive(Default)]
pub(super) struct Notes {
    /// Fields that the types do not know.
    pub(super) unknown: RefCell<Vec<DecodeError>>,
    /// Values that have been found wrong.
    left_out: RefCell<BTreeSet<FieldPath>>,
}

impl Notes {
    /// Leaves a value out of the next round; false when that is the whole object, or has no effect.
    pub(super) fn leave_out(&self, path: &FieldPath) -> bool {
        !path.segments().is_empty() && self.left_out.borrow_mut().insert(path.clone())
    }

    pub(super) fn is_left_out(&self, path: &Path<'_>) -> bool {
        let left_out = self.left_out.borrow();
        !left_out.is_empty() && left_out.contains(&path.to_field_path())
    }

    /// Whether a field of this value is left out.
    pub(super) fn left_out_of(&self, path: &FieldPath) -> bool {
        let within = |field: &FieldPath| {
            field
                .segments()
                .split_last()
                .is_some_and(|(_, up)| up == path.segments())
        };
        self.left_out.borrow().iter().any(within)
    }
}

/// Why decoding stopped; the innermost decoder that sees it adds the place.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) place: Option<(Position, FieldPath)>,
    pub(super) message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl de::Error for Failure {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Failure {
            place: None,
            message: message.to_string(),
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Failure::custom(format_args!("the field {field} is missing: write it"))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Failure::custom(format_args!(
            "\"{variant:.80}\" is not known here: write {}",
            one_of(expected)
        ))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Failure::custom(unknown_field(field, expected))
    }
}

pub(super) fn unknown_field(field: &str, known: &[&str]) -> String {
    match nearest(field, known.iter().copied()) {
        Some(near) => format!("\"{field:.80}\" is not a field here: did you mean {near}?"),
        None => format!("\"{field:.80}\" is not a field here: remove it"),
    }
}

/// The known word that a mistyped one was meant to be, when one is close enough to be evident.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_ascii_lowercase();
    let distance = |k: &str| strsim::damerau_levenshtein(&lower, &k.to_ascii_lowercase());
    let limit = (word.chars().count() / 4).clamp(1, 3);
    // It takes at least as many changes as the lengths differ by; and a word can be very long.
    let length = lower.chars().count();
    let known = known.filter(|k| k.chars().count().abs_diff(length) <= limit);
    let (distance, near) = known.map(|k| (distance(k), k)).min()?;
    (distance <= limit).then_some(near)
}

pub(super) fn one_of(words: &[&str]) -> String {
    match words {
        [] => "nothing".to_owned(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

pub(super) fn shortened(text: &str) -> String {
    if text.chars().count() <= 60 {
        return text.to_owned();
    }
    text.chars().take(57).chain("...".chars()).collect()
}
