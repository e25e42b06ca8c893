//! The results of tests as TAP, version 14 (<https://testanything.org/tap-version-14-specification.html>): results in, a test
//! point for each case out, and of a failed one the counterexample in a block of YAML.

use std::fmt::Write;

use super::test::{CaseResult, Counterexample};
use super::test_report::sentence;

/// For what consumes the Test Anything Protocol.
pub(crate) fn tap(results: &[CaseResult]) -> anyhow::Result<String> {
    let mut out = format!("TAP version 14\n1..{}\n", results.len());
    for (at, result) in results.iter().enumerate() {
        let not = if result.passed { "" } else { "not " };
        let name = format!("{}: {}", result.test, result.name);
        let _ = writeln!(out, "{not}ok {} - {}", at + 1, description(&name));
        if let Some(counterexample) = &result.counterexample {
            diagnostic(&mut out, result, counterexample)?;
        }
    }
    Ok(out)
}

/// On one line, and without what would begin a directive: a case called `# SKIP` is none that was skipped.
fn description(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for character in name.trim_end().chars() {
        match character {
            '\\' | '#' => out.extend(['\\', character]),
            _ if is_unprintable(character) => out.push(' '),
            _ => out.push(character),
        }
    }
    out
}

/// The block that belongs to the test point before it.
fn diagnostic(out: &mut String, result: &CaseResult, counterexample: &Counterexample) -> anyhow::Result<()> {
    let Counterexample {
        from,
        to,
        port,
        verdict,
        reason,
    } = counterexample;
    let _ = writeln!(out, "  ---");
    for (key, text) in [
        ("message", &*sentence(result.expect, counterexample)),
        ("severity", "fail"),
        ("from", from),
        ("to", to),
        ("port", port),
        ("verdict", verdict.word().0),
        ("reason", reason),
    ] {
        let _ = writeln!(out, "  {key}: {}", scalar(text)?);
    }
    let _ = writeln!(out, "  at:");
    let _ = writeln!(out, "    file: {}", scalar(&result.file)?);
    let _ = writeln!(out, "    line: {}", result.position.line);
    let _ = writeln!(out, "    column: {}", result.position.column);
    let _ = writeln!(out, "  ...");
    Ok(())
}

/// A text as YAML: as JSON writes it, which is YAML too once what YAML does not print is escaped.
fn scalar(text: &str) -> anyhow::Result<String> {
    let mut out = String::new();
    for character in serde_json::to_string(text)?.chars() {
        match is_unprintable(character) {
            true => {
                let _ = write!(out, "\\u{:04x}", u32::from(character));
            }
            false => out.push(character),
        }
    }
    Ok(out)
}

/// What breaks a line somewhere, or may not stand in YAML; all of it within four hexadecimal digits.
fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
        )
}
