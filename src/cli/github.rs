//! Annotations of a GitHub workflow: what is to be said of a place in, a workflow command (a line of the log) out.
//! The commands: <https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands>.

use std::fmt::Write;

use super::output::{path_in_repository, print};
use crate::manifests::{LoadErrors, Source};
use crate::plain::{line, lines};

/// How an annotation looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Red.
    Error,
    /// Yellow.
    Warning,
    /// Grey.
    Notice,
}

impl Level {
    fn command(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Notice => "notice",
        }
    }
}

/// Writes the command that shows a message beside the line that it is about. Line breaks in the message are meant.
pub(crate) fn annotate(out: &mut String, level: Level, place: Option<&Source>, title: &str, message: &str) {
    let _ = write!(out, "::{} ", level.command());
    if let Some((source, path)) = place.and_then(|source| Some((source, path_in_repository(source)?))) {
        let _ = write!(out, "file={},", property(&without_detours(path)));
        if let Some(at) = source.position {
            let _ = write!(out, "line={},col={},", at.line, at.column);
        }
    }
    let _ = writeln!(out, "title={}::{}", property(&line(title)), data(message));
}

/// A path without `..` behind a folder, as a test file has it of its manifests: GitHub knows a file by one name.
fn without_detours(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match (name, names.last()) {
            ("..", Some(last)) if !matches!(*last, "" | "..") => {
                names.pop();
            }
            _ => names.push(name),
        }
    }
    names.join("/")
}

/// Prints, of what failed, the annotations of what is wrong with files; other errors are about no place.
pub(crate) fn annotated<T>(result: anyhow::Result<T>) -> anyhow::Result<T> {
    if let Err(error) = &result
        && let Some(errors) = error.downcast_ref::<LoadErrors>()
    {
        let mut out = String::new();
        for error in errors.errors() {
            let message = line(&error.sentence());
            annotate(&mut out, Level::Error, Some(&error.source), "bad input", &message);
        }
        print(&out)?;
    }
    result
}

/// What a workflow command takes for its end is escaped in its text; nothing else in it steers the terminal of whoever reads the log …
fn data(text: &str) -> String {
    lines(text).replace('%', "%25").replace('\n', "%0A")
}

/// … and what ends a property, in that.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests::{Position, STDIN};

    #[track_caller]
    fn check(file: &str, title: &str, message: &str, expected: &str) {
        let source = Source {
            file: file.into(),
            position: Some(Position { line: 3, column: 5 }),
        };
        let mut out = String::new();
        annotate(&mut out, Level::Error, Some(&source), title, message);
        assert_eq!(out, expected);
    }

    #[test]
    fn a_command_is_one_line_whatever_it_says() {
        check("a.yaml", "t", "m", "::error file=a.yaml,line=3,col=5,title=t::m\n");
        check(
            "./a, b: 5%.yaml",
            "1,2::warning",
            "x::\r\n::stop-commands::%0A",
            "::error file=a%2C b%3A 5%25.yaml,line=3,col=5,title=1%2C2%3A%3Awarning::x::\\r%0A::stop-commands::%250A\n",
        );
    }

    #[test]
    fn files_have_one_name() {
        for (given, file) in [
            ("tests/../shop/a.yaml", "shop/a.yaml"),
            ("./a/b/../../c.yaml", "c.yaml"),
            ("../../c.yaml", "../../c.yaml"),
            ("/../c.yaml", "/../c.yaml"),
        ] {
            check(
                given,
                "t",
                "m",
                &format!("::error file={file},line=3,col=5,title=t::m\n"),
            );
        }
    }

    #[test]
    fn standard_input_is_no_file_of_the_repository() {
        check(STDIN, "t", "m", "::error title=t::m\n");
    }
}
