//! GitHub's markdown: text in; what shows it as it is out, in a sentence as in a cell of a table.
//!
//! Names are written as code, for GitHub finds more in a text than markdown does: mentions, references to issues (of other trackers
//! too, `JIRA-12`), hashes of commits, links, and pictures (`fd00:ab::1` would show a blood group). A backslash keeps none of these away.

/// A sentence with names in it: whatever is more than a word becomes code.
pub(crate) fn prose(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        let bare = word.trim_start_matches('(');
        let name = bare.trim_end_matches([')', ',', ';', ':', '.', '…']);
        out.push_str(&word[..word.len() - bare.len()]);
        match is_plain(name) {
            true => out.push_str(name),
            false => out.push_str(&code(name)),
        }
        out.push_str(&bare[name.len()..]);
    }
    out
}

/// Whether a word means nothing to markdown, and nothing to GitHub.
fn is_plain(word: &str) -> bool {
    let means_nothing = |c: char| c.is_alphabetic() || matches!(c, '→' | '·' | '✓' | '✗');
    let is_number = word.chars().all(|c| c.is_ascii_digit());
    let is_hash = word.len() >= SHORTEST_HASH && word.chars().all(|c| c.is_ascii_hexdigit());
    (is_number || word.chars().all(means_nothing)) && !is_hash
}

/// From how many hexadecimal digits on GitHub takes a word for the beginning of a commit's hash.
const SHORTEST_HASH: usize = 7;

/// A name, a path or a command.
pub(crate) fn code(text: &str) -> String {
    let shown = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    // What ends code, or a cell, can stand in no code of markdown's own.
    if !text.contains(['`', '|']) && text.trim() == text && !text.is_empty() {
        return format!("`{}`", shown.collect::<String>());
    }
    let mut out = String::from("<code>");
    for character in shown {
        match character.is_ascii_punctuation() || character == ' ' {
            true => out.push_str(&format!("&#{};", u32::from(character))),
            false => out.push(character),
        }
    }
    out.push_str("</code>");
    out
}

/// A line of a table. The cells are markdown.
pub(crate) fn row<T: AsRef<str>>(cells: &[T]) -> String {
    let mut out = String::from("|");
    for cell in cells {
        out.push(' ');
        out.push_str(cell.as_ref());
        out.push_str(" |");
    }
    out.push('\n');
    out
}

/// The first two lines of a table.
pub(crate) fn heading<T: AsRef<str>>(cells: &[T]) -> String {
    row(cells) + &row(&vec!["---"; cells.len()])
}

/// The beginning of a text that is longer than so many characters.
pub(crate) fn clipped(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

    use super::*;

    /// The cells of the only row of a table, read by somebody else; an error names what is no text and no code.
    fn cells(markdown: &str) -> Result<Vec<String>, String> {
        let mut cells = Vec::new();
        let mut cell: Option<String> = None;
        for event in Parser::new_ext(markdown, Options::ENABLE_GFM | Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::TableCell) => cell = Some(String::new()),
                Event::End(TagEnd::TableCell) => cells.extend(cell.take()),
                Event::Text(text) | Event::Code(text) if cell.is_some() => {
                    cell.iter_mut().for_each(|c| c.push_str(&text))
                }
                Event::InlineHtml(tag) if matches!(&*tag, "<code>" | "</code>") => {}
                Event::Start(Tag::Table(_) | Tag::TableHead | Tag::TableRow) => {}
                Event::End(TagEnd::Table | TagEnd::TableHead | TagEnd::TableRow) => {}
                other => return Err(format!("{other:?} in {markdown}")),
            }
        }
        Ok(cells)
    }

    fn table(cell: &str) -> String {
        heading(&["a", "b"]) + &row(&[cell, "last"])
    }

    #[test]
    fn names_are_code_and_words_are_words() {
        let sentence = "every pod except shop/web (10.0.0.1), fd00:ab::1 and 2 more → x; nearest: a ingress[0]";
        assert_eq!(
            prose(sentence),
            "every pod except `shop/web` (`10.0.0.1`), `fd00:ab::1` and 2 more → x; nearest: a `ingress[0]`"
        );
        assert_eq!(
            prose("GH-12, JIRA-x deadbeef (defaced… 1234567 123456 decade IPv4 → x2"),
            "`GH-12`, `JIRA-x` `deadbeef` (`defaced`… `1234567` 123456 decade `IPv4` → `x2`"
        );
        assert_eq!(prose("ask @team about #12\nor *x*"), "ask `@team` about `#12` or `*x*`");
        assert_eq!(
            code("a `b`|c\n.yaml"),
            "<code>a&#32;&#96;b&#96;&#124;c\u{fffd}&#46;yaml</code>"
        );
    }

    #[test]
    fn a_long_text_is_clipped_between_characters() {
        assert_eq!(clipped("→→→", 3), "→→→");
        assert_eq!(clipped("→→→→", 3), "→→→…");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        /// Whatever is written is read again, and is nothing else.
        #[test]
        fn what_is_written_is_what_is_read(text in "([-a-z0-9|\\\\`*_<>&#@:;.,()\\[\\]!~$ \t\n→é]|&amp;|https://|www\\.|<b>|\\PC){0,40}") {
            let words: Vec<&str> = text.split_whitespace().collect();
            let read = cells(&table(&prose(&text))).map_err(TestCaseError::fail)?;
            prop_assert_eq!(read, ["a", "b", &words.join(" "), "last"]);
            if !text.is_empty() && !text.contains(char::is_control) {
                let read = cells(&table(&code(&text))).map_err(TestCaseError::fail)?;
                prop_assert_eq!(read, ["a", "b", &text, "last"]);
                // Outside of a table too.
                let line = format!("x {}", code(&text));
                let line = Parser::new_ext(&line, Options::ENABLE_GFM).filter_map(|event| match event {
                    Event::Text(text) | Event::Code(text) => Some(text.to_string()),
                    _ => None,
                });
                prop_assert_eq!(line.collect::<String>(), format!("x {text}"));
            }
        }
    }
}
