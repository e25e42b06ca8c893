//! `palisade test` over every fixture folder: the recipes, the scenarios of the upstream end-to-end suite, and the traps.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("policy-compiler/tests/fixtures")
}

fn test_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(test_files(&path));
        } else if path.file_name().is_some_and(|name| name == "test.yaml") {
            found.push(path);
        }
    }
    found
}

#[test]
fn every_case_of_every_fixture_holds() {
    let output = Command::new(env!("CARGO_BIN_EXE_palisade"))
        .args(["test", "-o", "json"])
        .arg(fixtures())
        .output()
        .expect("palisade runs");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
    });
    let cases = answer["cases"].as_array().expect("cases");
    let failed: Vec<&Value> = cases.iter().filter(|case| case["passed"] != true).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(output.status.code(), Some(0));

    // None was passed over: every file has its cases in the answer.
    for file in test_files(&fixtures()) {
        let seen = cases.iter().any(|case| {
            case["file"]
                .as_str()
                .is_some_and(|f| file.ends_with(f) || Path::new(f) == file)
        });
        assert!(seen, "{} is not in the answer", file.display());
    }
}
