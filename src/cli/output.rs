//! Standard output and standard error: text with colours that vanish where they are not wanted, JSON, and columns that line up.

use std::io::{self, Write};

use anyhow::Context;
use owo_colors::OwoColorize;
use policy_compiler::diagnostics::Diagnostic;
use serde::Serialize;

use crate::manifests::{Problem, STDIN, Source};
use crate::plain::{line, lines};

/// The version of every JSON form.
pub(crate) const API_VERSION: &str = "palisade.dev/v1alpha1";

/// Writes text to standard output, and says whether anybody reads on: a reader that has gone away (`| head`) is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<bool> {
    let mut out = anstream::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true).context("cannot write to standard output"),
    }
}

/// Says beside an answer what is odd about the cluster, so that nothing is guessed silently.
pub(crate) fn doubt(diagnostics: &[Diagnostic]) {
    let mut stderr = anstream::stderr();
    for diagnostic in diagnostics {
        let _ = writeln!(stderr, "{}", Style::Warn.paint(&line(&diagnostic.to_string())));
    }
}

/// Says what is odd about what was read.
pub(crate) fn warn(warnings: &[Problem]) {
    warnings.iter().for_each(|warning| caution(&warning.to_string()));
}

/// Warnings go to standard error, so that they never mix with an answer for programs.
pub(crate) fn caution(text: &str) {
    // A lost warning changes no answer.
    let _ = writeln!(anstream::stderr(), "{} {}", Style::Warn.paint("warning:"), line(text));
}

/// Says beside an answer how to get a better one.
pub(crate) fn note(text: &str) {
    // A lost note changes no answer.
    let _ = writeln!(anstream::stderr(), "{}", Style::Dim.paint(&lines(text)));
}

/// A value as indented JSON with a final newline.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<String> {
    let mut text = serde_json::to_string_pretty(value).context("cannot write the answer as JSON")?;
    text.push('\n');
    Ok(text)
}

/// `1 pod`, `2 pods`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    match (number, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {noun}s"),
    }
}

/// The file of a place as a repository names it, when the command runs at its root; none of standard input.
pub(crate) fn path_in_repository(source: &Source) -> Option<&str> {
    let path = &*source.file;
    (path != STDIN).then(|| path.strip_prefix("./").unwrap_or(path))
}

/// `shop/policies.yaml:12:5`, of such a file.
pub(crate) fn place_in_repository(source: &Source) -> Option<String> {
    let file = path_in_repository(source)?.into();
    let position = source.position;
    Some(Source { file, position }.to_string())
}

/// How a piece of text looks on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// As it is.
    Plain,
    /// A heading or a name.
    Bold,
    /// Beside the point.
    Dim,
    /// Allowed, passed.
    Good,
    /// Denied, failed.
    Bad,
    /// In between, or odd.
    Warn,
}

impl Style {
    /// The text with the colours of the style; [`print`] takes them out again where they are not wanted.
    pub(crate) fn paint(self, text: &str) -> String {
        match self {
            Style::Plain => text.to_owned(),
            Style::Bold => text.bold().to_string(),
            Style::Dim => text.dimmed().to_string(),
            Style::Good => text.green().to_string(),
            Style::Bad => text.red().to_string(),
            Style::Warn => text.yellow().to_string(),
        }
    }
}

/// Rows of styled cells as lines whose columns line up, two spaces apart, after an indent.
pub(crate) fn columns(indent: usize, rows: &[Vec<(String, Style)>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (at, (text, _)) in row.iter().enumerate() {
            let width = text.chars().count();
            match widths.get_mut(at) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = " ".repeat(indent);
        let last = row.iter().rposition(|(text, _)| !text.is_empty()).unwrap_or(0);
        for (at, (text, style)) in row.iter().enumerate().take(last + 1) {
            line.push_str(&style.paint(text));
            if at < last {
                line.push_str(&" ".repeat(widths[at] - text.chars().count() + 2));
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_end_without_spaces() {
        let cell = |text: &str| (text.to_owned(), Style::Plain);
        let rows = vec![
            vec![cell("a"), cell("b"), cell("")],
            vec![cell("ccc"), cell("✓"), cell("d")],
        ];
        assert_eq!(columns(1, &rows), " a    b\n ccc  ✓  d\n");
    }

    #[test]
    fn nouns_are_counted() {
        assert_eq!(count(1, "policy"), "1 policy");
        assert_eq!(count(0, "policy"), "0 policies");
        assert_eq!(count(2, "pod"), "2 pods");
    }
}
