//! The results of tests as text, JSON, JUnit, and annotations of a GitHub workflow.

use std::fmt::Write;

use anyhow::Context;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde::Serialize;

use super::github::{Level, annotate};
use super::output::{self, API_VERSION, Style, count};
use super::test::{CaseResult, Counterexample};
use super::test_file::Expect;
use crate::manifests::Source;
use crate::plain::line;

/// For people.
pub(crate) fn text(results: &[CaseResult]) -> String {
    let mut out = String::new();
    for (test, cases) in by_test(results) {
        let _ = writeln!(out, "{}", Style::Bold.paint(&line(&test)));
        for case in cases {
            match &case.counterexample {
                None => {
                    let _ = writeln!(out, "  {} {}", Style::Good.paint("✓"), line(&case.name));
                }
                Some(counterexample) => {
                    let _ = writeln!(out, "  {} {}", Style::Bad.paint("✗"), line(&case.name));
                    let _ = writeln!(out, "      {}", sentence(case.expect, counterexample));
                    let _ = writeln!(out, "      {}", Style::Dim.paint(&counterexample.reason));
                }
            }
        }
        out.push('\n');
    }
    let (_, failed) = tally(results);
    let style = if failed == 0 { Style::Good } else { Style::Bad };
    let _ = writeln!(out, "{}", style.paint(&summary(results)));
    out
}

/// For programs.
pub(crate) fn json(results: &[CaseResult]) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Summary {
        total: usize,
        passed: usize,
        failed: usize,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Json<'a> {
        api_version: &'static str,
        summary: Summary,
        cases: &'a [CaseResult],
    }
    let (passed, failed) = tally(results);
    output::json(&Json {
        api_version: API_VERSION,
        summary: Summary {
            total: results.len(),
            passed,
            failed,
        },
        cases: results,
    })
}

/// For CI systems. Names are as in the text: XML reads a line break in an attribute as a space, and a log as the end of a line.
pub(crate) fn junit(results: &[CaseResult]) -> anyhow::Result<String> {
    let mut report = Report::new("palisade");
    for (test, cases) in by_test(results) {
        let mut suite = TestSuite::new(line(&test));
        for case in cases {
            let status = match &case.counterexample {
                None => TestCaseStatus::success(),
                Some(counterexample) => {
                    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                    status.set_type("counterexample");
                    status.set_message(sentence(case.expect, counterexample));
                    status.set_description(&counterexample.reason);
                    status
                }
            };
            let mut junit = TestCase::new(line(&case.name), status);
            junit.set_classname(line(&case.test));
            suite.add_test_case(junit);
        }
        report.add_test_suite(suite);
    }
    let mut text = report.to_string().context("cannot write the results as JUnit")?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// As annotations of the cases that fail, for a workflow of GitHub; and for its log, the summary.
pub(crate) fn github(results: &[CaseResult]) -> String {
    let mut out = String::new();
    for result in results {
        let Some(counterexample) = &result.counterexample else {
            continue;
        };
        let place = Source {
            file: result.file.as_str().into(),
            position: Some(result.position),
        };
        let sentence = sentence(result.expect, counterexample);
        let message = format!("{sentence}\n{}", counterexample.reason);
        annotate(&mut out, Level::Error, Some(&place), &result.name, &message);
    }
    let _ = writeln!(out, "{}", summary(results));
    out
}

/// `expected deny, but shop/web-0 → shop/db-0 on 5432/TCP is allowed`.
pub(crate) fn sentence(expect: Expect, counterexample: &Counterexample) -> String {
    let (expected, found) = match expect {
        Expect::Allow => ("allow", "denied"),
        Expect::Deny => ("deny", "allowed"),
    };
    let Counterexample { from, to, port, .. } = counterexample;
    format!("expected {expected}, but {from} → {to} on {port} is {found}")
}

/// Cases of one test stand together, as they came.
fn by_test(results: &[CaseResult]) -> impl Iterator<Item = (String, &[CaseResult])> {
    results
        .chunk_by(|a, b| a.file == b.file && a.test == b.test)
        .map(|cases| (format!("{} ({})", cases[0].test, cases[0].file), cases))
}

fn summary(results: &[CaseResult]) -> String {
    let (passed, failed) = tally(results);
    format!("{}, {passed} passed, {failed} failed", count(results.len(), "case"))
}

fn tally(results: &[CaseResult]) -> (usize, usize) {
    let passed = results.iter().filter(|r| r.passed).count();
    (passed, results.len() - passed)
}
