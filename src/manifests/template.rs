//! Templates, as of Helm, that were not rendered: what is wrong with one as YAML helps nobody, so an error beside a template
//! says what to do about it. It may be none, so this is a condition.

use super::yaml::SyntaxError;

/// What begins what a template fills in.
const OPENING: &str = "{{";
const HINT: &str = "; if this is a template, render it first";

/// Adds the hint to the errors in lines of a text that look like those of a template. The grammar may stumble a line too late.
pub(super) fn hint_by_line(text: &str, errors: &mut [SyntaxError]) {
    if errors.is_empty() || !text.contains(OPENING) {
        return;
    }
    // Once, for there may be as many errors as lines.
    let lines: Vec<bool> = text.lines().map(|line| line.contains(OPENING)).collect();
    for error in errors {
        let after = error.position.line as usize;
        let near = &lines[after.saturating_sub(2).min(lines.len())..after.min(lines.len())];
        if near.contains(&true) {
            error.message.push_str(HINT);
        }
    }
}

/// The message with the hint, if it shows something of a template: the value that it is about.
pub(super) fn hinted(mut message: String) -> String {
    if message.contains(OPENING) && !message.ends_with(HINT) {
        message.push_str(HINT);
    }
    message
}
