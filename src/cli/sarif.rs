//! Findings as SARIF 2.1.0: what GitHub code scanning and its like take in. Only the part of the format that is used is written down here.

use policy_compiler::diagnostics::Code;
use serde::Serialize;

use super::lint::{Finding, Findings};
use super::output;

#[derive(Serialize)]
struct Log<'a> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    version: &'static str,
    runs: [Run<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Run<'a> {
    tool: Tool,
    /// Columns are counted in characters.
    column_kind: &'static str,
    results: Vec<Outcome<'a>>,
}

#[derive(Serialize)]
struct Tool {
    driver: Driver,
}

#[derive(Serialize)]
struct Driver {
    name: &'static str,
    version: &'static str,
    rules: Vec<Rule>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    id: &'static str,
    short_description: Text<'static>,
    default_configuration: Configuration,
}

#[derive(Serialize)]
struct Configuration {
    level: &'static str,
}

#[derive(Serialize)]
struct Text<'a> {
    text: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome<'a> {
    rule_id: &'static str,
    rule_index: usize,
    level: &'static str,
    message: Message,
    locations: Vec<Location<'a>>,
}

#[derive(Serialize)]
struct Message {
    text: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Location<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    physical_location: Option<Physical>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logical_locations: Vec<Logical<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Physical {
    artifact_location: Artifact,
    #[serde(skip_serializing_if = "Option::is_none")]
    region: Option<Region>,
}

#[derive(Serialize)]
struct Artifact {
    uri: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Region {
    start_line: u32,
    start_column: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Logical<'a> {
    name: &'a str,
    fully_qualified_name: String,
}

/// The findings as one run. All rules are described, found or not.
pub(crate) fn sarif(findings: &Findings) -> anyhow::Result<String> {
    let rules = Code::all().map(|code| Rule {
        id: code.id(),
        short_description: Text { text: code.summary() },
        default_configuration: Configuration {
            level: code.severity().word(),
        },
    });
    let driver = Driver {
        name: "palisade",
        version: env!("CARGO_PKG_VERSION"),
        rules: rules.collect(),
    };
    output::json(&Log {
        schema: "https://json.schemastore.org/sarif-2.1.0.json",
        version: "2.1.0",
        runs: [Run {
            tool: Tool { driver },
            column_kind: "unicodeCodePoints",
            results: findings.told.iter().map(result).collect(),
        }],
    })
}

fn result(finding: &Finding) -> Outcome<'_> {
    let physical_location = finding.source.as_ref().and_then(|source| {
        Some(Physical {
            artifact_location: Artifact {
                uri: uri(output::path_in_repository(source)?),
            },
            region: source.position.map(|at| Region {
                start_line: at.line,
                start_column: at.column,
            }),
        })
    });
    let logical = finding.object.iter().map(|object| Logical {
        name: &object.name,
        fully_qualified_name: object.to_string(),
    });
    Outcome {
        rule_id: finding.code.id(),
        rule_index: finding.code as usize,
        level: finding.severity.word(),
        message: Message {
            text: finding.sentence(),
        },
        locations: vec![Location {
            physical_location,
            logical_locations: logical.collect(),
        }],
    }
}

/// A path as a reference (RFC 3986): relative to where the command ran, as it was given.
fn uri(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    if path.starts_with('/') {
        out.push_str("file://");
    }
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}
