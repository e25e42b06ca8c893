//! `palisade preflight`: findings go in, text or JSON comes out.

use serde::Serialize;

use super::output::{self, API_VERSION, Style, columns, count};
use crate::preflight::{Finding, Verdict};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    api_version: &'static str,
    kind: &'static str,
    summary: Summary,
    checks: &'a [Finding],
}

#[derive(Serialize)]
struct Summary {
    ok: usize,
    skipped: usize,
    warning: usize,
    failed: usize,
}

impl Summary {
    fn of(findings: &[Finding]) -> Self {
        let count = |verdict| findings.iter().filter(|f| f.verdict == verdict).count();
        Summary {
            ok: count(Verdict::Ok),
            skipped: count(Verdict::Skipped),
            warning: count(Verdict::Warning),
            failed: count(Verdict::Failed),
        }
    }
}

/// For programs.
pub(crate) fn json(findings: &[Finding]) -> anyhow::Result<String> {
    output::json(&Report {
        api_version: API_VERSION,
        kind: "Preflight",
        summary: Summary::of(findings),
        checks: findings,
    })
}

/// For people: a line a check, with the remedy below it.
pub(crate) fn text(findings: &[Finding]) -> String {
    let mut rows = Vec::new();
    for finding in findings {
        let (word, style) = match finding.verdict {
            Verdict::Ok => ("ok", Style::Good),
            Verdict::Skipped => ("skipped", Style::Dim),
            Verdict::Warning => ("warning", Style::Warn),
            Verdict::Failed => ("failed", Style::Bad),
        };
        let cell = |text: &str, style| (text.to_owned(), style);
        rows.push(vec![
            cell(finding.check, Style::Bold),
            cell(word, style),
            cell(&finding.found, Style::Plain),
        ]);
        if let Some(remedy) = &finding.remedy {
            rows.push(vec![
                cell("", Style::Plain),
                cell("", Style::Plain),
                cell(&format!("→ {remedy}"), Style::Dim),
            ]);
        }
    }
    let summary = Summary::of(findings);
    columns(0, &rows)
        + &format!(
            "{}: {} ok, {} skipped, {} to look at, {} failed\n",
            count(findings.len(), "check"),
            summary.ok,
            summary.skipped,
            summary.warning,
            summary.failed
        )
}
