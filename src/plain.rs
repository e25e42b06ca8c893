//! Text from elsewhere (files, an API server) in; what is shown of it to people out, in one line that steers no terminal.

const KEPT: [char; 3] = ['"', '\'', '\\'];

/// The text as one line: what would steer a terminal, begin another line, or hide is written as an escape (`\n`, `\u{1b}`). A
/// line that begins with `::` is a command to a workflow of GitHub, whoever wrote it.
pub(crate) fn line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for part in text.split_inclusive(KEPT) {
        let plain = part.trim_end_matches(KEPT);
        line.extend(plain.escape_debug());
        line.push_str(&part[plain.len()..]);
    }
    line
}

/// A text of several lines of our own, each of them as [`line`] has it.
pub(crate) fn lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(line).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_begins_a_line_or_steers_a_terminal() {
        assert_eq!(line("\"it's\" a\\b ö → …"), "\"it's\" a\\b ö → …");
        assert_eq!(line("a\nb\r\tc\x1b[2J\u{9b}1m\0"), "a\\nb\\r\\tc\\u{1b}[2J\\u{9b}1m\\0");
        assert_eq!(line("\u{85}\u{2028}\u{2029}"), "\\u{85}\\u{2028}\\u{2029}");
        // What turns the direction of writing makes one name look like another.
        assert_eq!(line("\u{202e}bd\u{feff}"), "\\u{202e}bd\\u{feff}");
        assert_eq!(line("\n\n\"\n"), "\\n\\n\"\\n");
        // What belongs to the character before it does not hide.
        assert_eq!(line("o\u{308} \u{26a0}\u{fe0f}"), "o\u{308} \u{26a0}\u{fe0f}");
    }
}
