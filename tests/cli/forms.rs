//! The forms of `palisade test` on cases with names that no form may take for its own: `tests/cli/names/`. What a form says is
//! read again, by its grammar, and is what the JSON form says.

use palisade::manifests::{Node, Value, documents};
use serde_json::Value as Json;

use crate::{run, stdout};

fn report(form: &str) -> String {
    stdout(&["test", "names", "-o", form], 1)
}

fn cases() -> Vec<Json> {
    let report: Json = serde_json::from_str(&report("json")).unwrap();
    report["cases"].as_array().unwrap().clone()
}

/// The line of each case in the file.
fn lines() -> Vec<i64> {
    let text = std::fs::read_to_string("tests/cli/names/100% of #1, a|b.yaml").unwrap();
    let lines = text.lines().zip(1..);
    let names = lines.filter(|(line, _)| line.starts_with("- name: ") || line.starts_with("  name: "));
    names.map(|(_, line)| line).collect()
}

#[test]
fn every_form_of_odd_names() {
    for form in ["text", "json", "junit", "tap", "github"] {
        insta::assert_snapshot!(form, report(form));
    }
}

/// One test point of a TAP stream.
struct Point {
    ok: bool,
    description: String,
    diagnostic: Option<Node>,
}

/// Reads a stream of TAP 14, as far as its grammar is used.
#[track_caller]
fn tap(text: &str) -> Vec<Point> {
    let mut lines = text.strip_suffix('\n').unwrap().split('\n').peekable();
    assert_eq!(lines.next(), Some("TAP version 14"));
    let plan = lines.next().and_then(|line| line.strip_prefix("1..")).unwrap();
    let mut points = Vec::new();
    while let Some(line) = lines.next() {
        let (ok, rest) = match line.strip_prefix("not ") {
            Some(rest) => (false, rest),
            None => (true, line),
        };
        let number = format!("ok {} - ", points.len() + 1);
        let rest = rest.strip_prefix(&*number);
        let rest = rest.unwrap_or_else(|| panic!("no test point: {line:?}"));
        let mut diagnostic = None;
        if lines.next_if_eq(&"  ---").is_some() {
            let block = lines.by_ref().take_while(|line| *line != "  ...");
            let block: Vec<&str> = block.map(|line| line.strip_prefix("  ").unwrap()).collect();
            let mut read = documents(&block.join("\n"));
            assert!(read.errors.is_empty(), "{:?}", read.errors);
            diagnostic = read.documents.pop();
            assert!(diagnostic.is_some() && read.documents.is_empty());
        }
        points.push(Point {
            ok,
            description: description(rest),
            diagnostic,
        });
    }
    assert_eq!(plan, points.len().to_string());
    points
}

/// Takes the backslashes out again; what is not escaped begins a directive, and there is none here.
#[track_caller]
fn description(text: &str) -> String {
    let mut out = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        assert!(character != '#' && !character.is_control(), "{text}");
        match character {
            '\\' => out.extend(characters.next().filter(|escaped| matches!(escaped, '#' | '\\'))),
            _ => out.push(character),
        }
    }
    out
}

/// On one line, as far as it can be read.
fn flat(name: &str) -> String {
    let flat = name.replace(|c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'), " ");
    flat.trim_end().to_owned()
}

#[test]
fn tap_is_read_as_it_was_meant() {
    let (points, cases, lines) = (tap(&report("tap")), cases(), lines());
    assert_eq!((points.len(), lines.len()), (cases.len(), cases.len()));
    assert!(points.iter().any(|point| !point.ok) && points.iter().any(|point| point.ok));
    for ((point, case), line) in points.iter().zip(&cases).zip(lines) {
        let name = format!("{}: {}", case["test"].as_str().unwrap(), case["name"].as_str().unwrap());
        assert_eq!((point.ok, &point.description), (case["passed"] == true, &flat(&name)));
        let found = &case["counterexample"];
        assert_eq!(point.diagnostic.is_some(), found.is_object());
        let Some(diagnostic) = &point.diagnostic else { continue };
        for key in ["from", "to", "port", "verdict", "reason"] {
            assert_eq!(diagnostic.get(key).and_then(Node::as_str), found[key].as_str(), "{key}");
        }
        let at = diagnostic.get("at").unwrap();
        assert_eq!(at.get("file").and_then(Node::as_str), case["file"].as_str());
        assert_eq!(at.get("line").map(|line| &line.value), Some(&Value::Integer(line)));
    }
}

/// On one line, as people are shown it.
fn shown(name: &str) -> String {
    let mut shown = String::new();
    for c in name.chars() {
        match c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            true => shown.extend(c.escape_debug()),
            false => shown.push(c),
        }
    }
    shown
}

#[test]
fn annotations_are_read_as_they_were_meant() {
    let unescape = |text: &str| {
        let text = text.replace("%3A", ":").replace("%2C", ",");
        text.replace("%0D", "\r").replace("%0A", "\n").replace("%25", "%")
    };
    let (report, cases, lines) = (report("github"), cases(), lines());
    let mut said = report.strip_suffix('\n').unwrap().split('\n');
    for (case, at) in cases.iter().zip(lines) {
        let Some(found) = case["counterexample"].as_object() else {
            continue;
        };
        let line = said.next().unwrap();
        let (properties, message) = line.strip_prefix("::error ").unwrap().split_once("::").unwrap();
        let properties: Vec<(&str, String)> = properties
            .split(',')
            .map(|property| property.split_once('=').unwrap())
            .map(|(key, value)| (key, unescape(value)))
            .collect();
        let property = |key: &str| {
            properties
                .iter()
                .find(|(k, _)| *k == key)
                .map(|(_, value)| value.as_str())
        };
        assert_eq!(property("file"), case["file"].as_str());
        assert_eq!(property("line"), Some(at.to_string().as_str()));
        assert_eq!(property("title"), Some(&*shown(case["name"].as_str().unwrap())));
        let (sentence, reason) = message.split_once("%0A").unwrap();
        assert_eq!(Some(unescape(reason).as_str()), found["reason"].as_str());
        for key in ["from", "to", "port"] {
            assert!(sentence.contains(found[key].as_str().unwrap()), "{sentence}");
        }
    }
    // For whoever reads the log.
    let summary = format!("{} cases, 3 passed, {} failed", cases.len(), cases.len() - 3);
    assert_eq!(said.collect::<Vec<_>>(), [summary]);
}

/// The form changes nothing about how the command ends.
#[test]
fn exit_codes_are_those_of_every_form() {
    for form in ["text", "json", "junit", "tap", "github"] {
        let code = |path: &str| run(&["test", path, "-o", form]);
        assert_eq!(code("passing").0, Some(0), "{form}");
        assert_eq!(code("shop.yaml").0, Some(1), "{form}");
        // Not even the first line of a stream that somebody might take for a whole one; annotations are each for themselves.
        let (bad, printed, said) = code("bad/tests");
        assert_eq!(bad, Some(2), "{form}");
        let errors = said.lines().count() - 1;
        let expected = if form == "github" { errors } else { 0 };
        assert_eq!(printed.lines().count(), expected, "{form}: {printed}");
        assert!(
            printed.lines().all(|line| line.starts_with("::error file=bad/")),
            "{printed}"
        );
        assert!(!printed.contains("/.."), "{printed}");
    }
    assert_eq!(
        stdout(&["test", "passing", "-o", "github"], 0),
        "2 cases, 2 passed, 0 failed\n"
    );
    assert!(
        tap(&stdout(&["test", "passing", "-o", "tap"], 0))
            .iter()
            .all(|point| point.ok)
    );
}
