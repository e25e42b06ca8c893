//! Findings as text for people, as JSON, and as GitHub's workflow commands.

use std::fmt::Write;

use policy_compiler::diagnostics::{Code, Severity};
use serde::Serialize;

use super::github::{Level, annotate};
use super::lint::{Finding, Findings};
use super::output::{self, API_VERSION, Style, count};
use crate::plain::line;

/// For people, by file.
pub(crate) fn text(findings: &Findings) -> String {
    let mut out = String::new();
    let file = |f: &Finding| f.source.as_ref().map(|s| s.file.clone());
    for same in findings.told.chunk_by(|a, b| file(a) == file(b)) {
        let heading = file(&same[0]);
        if let Some(heading) = &heading {
            let _ = writeln!(out, "{}", Style::Bold.paint(&line(heading)));
        }
        for finding in same {
            let position = finding.source.as_ref().and_then(|s| s.position);
            let position = position.map_or_else(String::new, |p| format!("{}:{} ", p.line, p.column));
            let indent = if heading.is_some() { "  " } else { "" };
            let _ = writeln!(
                out,
                "{indent}{}{} {} {}",
                Style::Dim.paint(&position),
                style(finding.severity).paint(finding.severity.word()),
                line(&finding.sentence()),
                Style::Dim.paint(&format!("[{}]", finding.code))
            );
        }
        out.push('\n');
    }
    let [warnings, notes] = [Severity::Warning, Severity::Note].map(|s| findings.count(s));
    let ignored = match findings.ignored {
        0 => String::new(),
        n => format!(", {n} ignored"),
    };
    let (summary, style) = match (warnings, notes) {
        (0, 0) => ("nothing found".to_owned(), Style::Good),
        (0, _) => (count(notes, "note"), Style::Good),
        _ => (
            format!("{}, {}", count(warnings, "warning"), count(notes, "note")),
            Style::Warn,
        ),
    };
    let _ = writeln!(out, "{}", style.paint(&(summary + &ignored)));
    out
}

fn style(severity: Severity) -> Style {
    match severity {
        Severity::Warning => Style::Warn,
        Severity::Note => Style::Dim,
    }
}

/// For programs.
pub(crate) fn json(findings: &Findings) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Summary {
        warnings: usize,
        notes: usize,
        ignored: usize,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Report<'a> {
        api_version: &'static str,
        kind: &'static str,
        summary: Summary,
        findings: Vec<One<'a>>,
    }
    #[derive(Serialize)]
    struct One<'a> {
        rule: Code,
        severity: Severity,
        object: Option<String>,
        field: Option<String>,
        message: &'a str,
        file: Option<&'a str>,
        line: Option<u32>,
        column: Option<u32>,
    }
    fn one(f: &Finding) -> One<'_> {
        let position = f.source.as_ref().and_then(|s| s.position);
        One {
            rule: f.code,
            severity: f.severity,
            object: f.object.as_ref().map(ToString::to_string),
            field: f.field.as_ref().map(ToString::to_string),
            message: &f.message,
            file: f.source.as_ref().map(|s| &*s.file),
            line: position.map(|p| p.line),
            column: position.map(|p| p.column),
        }
    }
    output::json(&Report {
        api_version: API_VERSION,
        kind: "LintReport",
        summary: Summary {
            warnings: findings.count(Severity::Warning),
            notes: findings.count(Severity::Note),
            ignored: findings.ignored,
        },
        findings: findings.told.iter().map(one).collect(),
    })
}

/// As annotations of the lines that they are about, for a workflow of GitHub.
pub(crate) fn github(findings: &Findings) -> String {
    let mut out = String::new();
    for finding in &findings.told {
        let level = match finding.severity {
            Severity::Warning => Level::Warning,
            Severity::Note => Level::Notice,
        };
        let place = finding.source.as_ref();
        annotate(&mut out, level, place, finding.code.id(), &line(&finding.sentence()));
    }
    out
}
