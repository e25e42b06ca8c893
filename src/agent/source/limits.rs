//! Bounds on what the API server sends. It has bounds of its own, mostly narrower; these hold whatever it does.

use std::borrow::Cow;

use policy_compiler::convert::FieldError;

use super::partial::Meta;
use crate::plain;

/// The longest line of a watch, in bytes: etcd keeps no object of more than 1.5 MB, unless it is told to.
pub(super) const LINE: usize = 8 << 20;

/// The largest page of a list, in bytes; when it is more, a smaller page is asked for.
pub(super) const PAGE: usize = 64 << 20;

/// The largest answer that only says what is wrong, in bytes.
pub(super) const STATUS: usize = 64 << 10;

/// The most labels of one object.
const LABELS: usize = 1000;

/// The most errors of one object that are told.
const ERRORS: usize = 3;

/// The most characters of a text from elsewhere that are told.
const TEXT: usize = 300;

/// A text from elsewhere as one line for logs, `/readyz` and terminals, as [`plain::line`] writes it, of which no more than a few
/// hundred characters are left.
pub(super) fn line(text: &str) -> String {
    let start: String = text.trim().chars().take(TEXT).collect();
    plain::line(&start)
}

/// What is too large about an object, if anything.
pub(super) fn check(meta: &Meta) -> Result<(), String> {
    let labels = meta.labels.as_ref().map_or(0, std::collections::BTreeMap::len);
    if labels > LABELS {
        return Err(format!(
            "metadata.labels: {labels} labels are too many: write at most {LABELS}"
        ));
    }
    Ok(())
}

/// The errors of one object as one line.
pub(super) fn sentence(errors: &[FieldError]) -> String {
    let mut parts: Vec<String> = errors.iter().take(ERRORS).map(|e| line(&e.to_string())).collect();
    if errors.len() > ERRORS {
        parts.push(format!("and {} more", errors.len() - ERRORS));
    }
    parts.join("; ")
}

/// JSON with what is not UTF-8 in it replaced, as the API server itself reads it: one such byte must cost its object at most.
pub(super) fn utf8(json: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_from_elsewhere_is_one_short_line_that_steers_no_terminal() {
        assert_eq!(line(" \"it's\" a\\b ö\n"), "\"it's\" a\\b ö");
        assert_eq!(line("a\nready\x1b[2J"), "a\\nready\\u{1b}[2J");
        assert_eq!(line(&"ö".repeat(1 << 20)).chars().count(), TEXT);
    }
}
