//! `palisade lint` as a user runs it. What each rule finds, and what it does not, are the examples of `docs/lint.md`.

#![allow(clippy::unwrap_used, reason = "a test that cannot run the program fails")]

#[path = "support/environment.rs"]
mod environment;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use policy_compiler::diagnostics::Code;
use serde_json::Value;

/// Rules whose findings no manifest can bring about, and where they are tested.
const ELSEWHERE: [(Code, &str); 4] = [
    (Code::AuditBesideOtherTier, "policy-compiler/tests/audit.rs"),
    (Code::EmptyFolder, "here"),
    (Code::NothingOfUse, "here"),
    (Code::UnknownMode, "tests/live/lint.rs"),
];

/// Runs `palisade lint` at the root of the repository; answers its exit code, and what it says.
fn lint(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
    let command = environment::without_settings(&mut command)
        .arg("lint")
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let command = command.stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[track_caller]
fn check(args: &[&str], code: i32) -> String {
    let (found, stdout, stderr) = lint(args);
    assert_eq!((found, &*stderr), (code, ""), "{args:?}");
    stdout
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn manual() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/lint.md")).unwrap()
}

/// The manifests of an example: what has no kind is the spec of a policy.
fn manifests(example: &str) -> String {
    let mut names = ["example", "other"].into_iter();
    let documents = example.split("\n---\n").map(|document| {
        if document.starts_with("apiVersion: ") {
            return document.to_owned();
        }
        let spec: String = document.lines().map(|line| format!("  {line}\n")).collect();
        let name = names.next().unwrap();
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n{spec}"
        )
    });
    documents.collect::<Vec<_>>().join("\n---\n")
}

/// The findings of a rule in an example, a line each.
fn found(folder: &Path, code: Code, example: &str) -> String {
    let file = folder.join(format!("{code}.yaml"));
    std::fs::write(&file, manifests(example)).unwrap();
    let file = file.display().to_string();
    let (exit, stdout, stderr) = lint(&["tests/lint/cluster.yaml", &file, "--only", code.id(), "-o", "json"]);
    assert!(exit < 2, "{code}: {stderr}\n{}", manifests(example));
    let report = json(&stdout);
    let mut lines = String::new();
    for finding in report["findings"].as_array().unwrap() {
        let text = |field: &str| finding[field].as_str();
        let field = text("field").map_or_else(String::new, |field| format!("{field}: "));
        let (severity, object) = (text("severity").unwrap(), text("object").unwrap());
        writeln!(lines, "{severity}: {object}: {field}{}", text("message").unwrap()).unwrap();
        assert!(text("file").is_some() && finding["line"].is_u64(), "{finding}");
    }
    lines
}

#[test]
fn every_rule_finds_its_example_and_not_its_neighbour() {
    let folder = tempfile::tempdir().unwrap();
    let manual = manual();
    let mut sections: BTreeSet<&str> = BTreeSet::new();
    for section in manual.split("\n### ").skip(1) {
        let (id, text) = section.split_once('\n').unwrap();
        let code: Code = id.parse().unwrap_or_else(|()| panic!("there is no rule {id}"));
        sections.insert(code.id());
        if ELSEWHERE.iter().any(|(other, _)| *other == code) {
            continue;
        }
        // Blocks and what stands between them take turns.
        let blocks: Vec<&str> = text.split("```").skip(1).step_by(2).collect();
        let [finds, says, fine] = blocks[..] else {
            panic!("{id} has no example: {text}");
        };
        let example = |block: &'_ str| block.strip_prefix("yaml\n").unwrap().trim_end().to_owned();
        let found_there = found(folder.path(), code, &example(finds));
        assert!(!found_there.is_empty(), "{id} does not find its example");
        assert_eq!(found_there.trim_end(), says.trim(), "{id}");
        assert_eq!(found(folder.path(), code, &example(fine)), "", "{id}");
    }
    let all: BTreeSet<&str> = Code::all().map(Code::id).collect();
    assert_eq!(sections, all);
}

/// A pod that is derived from a workload may get an address in any block.
#[test]
fn a_block_may_hold_pods_without_an_address() {
    let folder = tempfile::tempdir().unwrap();
    let workload = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: new, namespace: shop}\n\
                    spec: {selector: {matchLabels: {app: new}}, template: {metadata: {labels: {app: new}}}}\n---\n";
    let sends = |ports: &str| {
        format!(
            "podSelector: {{matchLabels: {{app: api}}}}\npolicyTypes: [Egress]\n\
             egress: [{{to: [{{ipBlock: {{cidr: 192.0.2.0/24}}}}]{ports}}}]"
        )
    };
    let receives = "podSelector: {matchLabels: {app: new}}\n\
                    ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 5432}]}]\n---\n";
    let one_sided = |sends: String| {
        let all = [workload, receives, &sends].concat();
        found(folder.path(), Code::OneSidedAllow, &all)
    };
    assert_eq!(one_sided(sends("")), "");
    assert_eq!(one_sided(sends(", ports: [{port: 5000, endPort: 6000}]")), "");
    assert!(one_sided(sends(", ports: [{port: 80}]")).contains("no connection comes about"));

    let servers =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: new, namespace: kube-system, labels: {k8s-app: kube-dns}}\n---\n";
    let without_dns = |before: &str, ports| {
        found(
            folder.path(),
            Code::EgressWithoutDns,
            &(before.to_owned() + &sends(ports)),
        )
    };
    assert_eq!(without_dns(servers, ""), "");
    assert!(without_dns(servers, ", ports: [{port: 80}]").contains("not ask for names"));
    assert!(without_dns("", "").contains("not ask for names"));
}

/// What is redundant only for the pods that happen to be given is a note, and of two it is the narrower one that goes.
#[test]
fn only_selectors_make_a_warning_of_what_is_redundant() {
    let folder = tempfile::tempdir().unwrap();
    let policy = |name: &str, pods: &str, from: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{podSelector: {pods}, ingress: [{{from: [{from}]}}]}}\n---\n"
        )
    };
    let found = |code, policies: &[&str]| found(folder.path(), code, policies.concat().trim_end_matches("\n---\n"));
    let redundant = |policies: &[&str]| found(Code::RedundantPolicy, policies);
    let (all, some) = (
        "{}",
        "{matchExpressions: [{key: app, operator: In, values: [web, api, db]}]}",
    );
    let says = |narrow: &str, broad: &str| {
        format!(
            "warning: NetworkPolicy shop/{narrow}: changes nothing: shop/{broad} allows already what it allows; remove it\n"
        )
    };
    let peer = |pods: &str| format!("{{podSelector: {pods}}}");
    for (narrow, broad) in [("a", "z"), ("z", "a")] {
        let broad_one = policy(broad, all, &peer(all));
        for (pods, from) in [(some, all), (all, some), (some, some)] {
            let narrow_one = policy(narrow, pods, &peer(from));
            assert_eq!(redundant(&[&narrow_one, &broad_one]), says(narrow, broad));
        }
    }
    // Neither is wider by its text.
    let labelled = "{matchLabels: {app: web}}";
    let apart = [
        policy("a", labelled, &peer(some)),
        policy(
            "b",
            labelled,
            &peer("{matchExpressions: [{key: app, operator: Exists}, {key: old, operator: DoesNotExist}]}"),
        ),
    ];
    assert_eq!(
        redundant(&[&apart[0], &apart[1]]),
        "note: NetworkPolicy shop/b: changes nothing for the pods given here: shop/a allows already what it allows\n"
    );

    let everywhere = "{ipBlock: {cidr: 0.0.0.0/0}}";
    let parts = |first: &str, second: &str| {
        let rules = format!("podSelector: {labelled}\ningress: [{{from: [{first}]}}, {{from: [{second}]}}]");
        found(Code::RedundantRule, &[&rules])
    };
    assert_eq!(
        parts(everywhere, &peer("{matchLabels: {app: db}}")),
        "note: NetworkPolicy shop/example: spec.ingress[1]: changes nothing for the pods given here, if the CNI lets an ipBlock match pods, as it does here \
         and some do not: ingress[0] allows already what it allows\n"
    );
    assert!(parts(everywhere, "{ipBlock: {cidr: 192.0.2.0/24}}").starts_with("warning: "));
    assert!(parts(&peer(all), &peer("{matchLabels: {app: db}}")).starts_with("warning: "));
}

#[test]
fn the_manual_shows_real_output() {
    let manual = manual();
    let block = manual.split("```\n$ palisade lint examples/shop\n").nth(1).unwrap();
    let shown = block.split("\n```").next().unwrap();
    assert_eq!(check(&["examples/shop"], 0).trim_end(), shown);
}

/// What the repository's own manifests are found to have.
#[test]
fn examples_and_guides() {
    insta::assert_snapshot!("example_shop", check(&["examples/shop"], 0));
    insta::assert_snapshot!("cli_shop", check(&["tests/cli/shop"], 1));
    insta::assert_snapshot!("preflight_sample", lint(&["src/preflight/sample.yaml"]).1);
    let recipes = Path::new("policy-compiler/tests/fixtures/recipes");
    let mut folders: Vec<String> = std::fs::read_dir(recipes)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("policy.yaml").exists())
        .map(|path| path.join("policy.yaml").display().to_string())
        .collect();
    folders.sort();
    assert!(folders.len() > 10);
    let mut all = String::new();
    for policy in folders {
        let (code, stdout, stderr) = lint(&["policy-compiler/tests/fixtures/recipes/_cluster/cluster.yaml", &policy]);
        assert!(code < 2, "{stderr}");
        writeln!(all, "# {policy}\n{stdout}").unwrap();
    }
    insta::assert_snapshot!("recipes", all);
}

const FORMS: [&str; 2] = ["tests/lint/cluster.yaml", "tests/lint/forms"];

#[test]
fn forms() {
    let form = |form| check(&[&FORMS[..], &["-o", form]].concat(), 1);
    insta::assert_snapshot!("text", form("text"));
    insta::assert_snapshot!("json", form("json"));
    insta::assert_snapshot!("github", form("github"));
    insta::assert_snapshot!("sarif", form("sarif").replace(env!("CARGO_PKG_VERSION"), "VERSION"));
}

/// What GitHub code scanning asks of a file that it is to take in.
#[test]
fn sarif_is_what_code_scanning_takes_in() {
    let log = json(&check(&[&FORMS[..], &["-o", "sarif"]].concat(), 1));
    let findings = json(&check(&[&FORMS[..], &["-o", "json"]].concat(), 1));
    assert_eq!(log["version"], "2.1.0");
    assert!(log["$schema"].as_str().unwrap().ends_with("sarif-2.1.0.json"));
    let [run] = &log["runs"].as_array().unwrap()[..] else {
        panic!("{log}");
    };
    let driver = &run["tool"]["driver"];
    assert_eq!(driver["name"], "palisade");
    let rules = driver["rules"].as_array().unwrap();
    let ids: BTreeSet<&str> = rules.iter().map(|rule| rule["id"].as_str().unwrap()).collect();
    assert_eq!(ids, Code::all().map(Code::id).collect());
    let levels = ["warning", "note"];
    for rule in rules {
        assert!(!rule["shortDescription"]["text"].as_str().unwrap().is_empty());
        assert!(levels.contains(&rule["defaultConfiguration"]["level"].as_str().unwrap()));
    }
    let results = run["results"].as_array().unwrap();
    let findings = findings["findings"].as_array().unwrap();
    assert_eq!(results.len(), findings.len());
    for (result, finding) in results.iter().zip(findings) {
        assert_eq!(result["ruleId"], finding["rule"]);
        assert_eq!(
            rules[result["ruleIndex"].as_u64().unwrap() as usize]["id"],
            result["ruleId"]
        );
        assert_eq!(result["level"], finding["severity"]);
        let message = finding["message"].as_str().unwrap();
        assert!(result["message"]["text"].as_str().unwrap().ends_with(message));
        let place = &result["locations"][0]["physicalLocation"];
        let uri = place["artifactLocation"]["uri"].as_str().unwrap();
        assert!(!uri.contains([' ', ':', '\\']) && !uri.starts_with('/'), "{uri}");
        assert_eq!(place["region"]["startLine"], finding["line"]);
        assert_eq!(place["region"]["startColumn"], finding["column"]);
    }
}

#[test]
fn findings_are_chosen_and_decide_the_exit_code() {
    let rules = |args: &[&str], code: i32| -> Vec<String> {
        let report = json(&check(&[&FORMS[..], args, &["-o", "json"]].concat(), code));
        let findings = report["findings"].as_array().unwrap();
        findings
            .iter()
            .map(|f| f["rule"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(rules(&["--only", "overlapping-ports"], 0), ["overlapping-ports"]);
    assert_eq!(
        rules(&["--only", "overlapping-ports", "--strict"], 1),
        ["overlapping-ports"]
    );
    assert_eq!(
        rules(
            &["--only", "overlapping-ports", "--min-severity", "warning", "--strict"],
            0
        ),
        [""; 0]
    );
    assert_eq!(
        rules(
            &[
                "--min-severity",
                "warning",
                "--ignore",
                "cidr-spelling,unknown-lint-rule"
            ],
            1
        ),
        ["peer-matches-nothing"]
    );
    // What an annotation rules out is counted.
    let report = json(&check(
        &[&FORMS[..], &["--only", "selects-no-pod", "-o", "json"]].concat(),
        0,
    ));
    assert_eq!(report["summary"], json(r#"{"warnings": 0, "notes": 0, "ignored": 1}"#));
}

#[test]
fn bad_usage_and_bad_input_are_refused() {
    let refused = |args: &[&str], says: &str| {
        let (code, stdout, stderr) = lint(args);
        assert_eq!((code, &*stdout), (2, ""), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
    };
    refused(
        &["examples/shop", "--ignore", "select-no-pod"],
        "\"select-no-pod\" is not a rule: did you mean selects-no-pod?",
    );
    refused(
        &["examples/shop", "--only", "x"],
        "\"x\" is not a rule: `palisade lint --help` lists them",
    );
    refused(&["tests/cli/bad/policy.yaml"], "tests/cli/bad/policy.yaml:");
    refused(&[], "required");
    refused(&["-", "-"], "standard input is given twice");
}

#[test]
fn policies_are_not_to_blame_for_pods_that_are_not_given() {
    let text = check(&["examples/shop/policies.yaml"], 0);
    assert!(
        text.contains("selects no pod: there are no pods in namespace shop ["),
        "{text}"
    );
    assert!(
        text.contains("selects no pod: there are no pods app=frontend in namespace shop ["),
        "{text}"
    );
}

#[test]
fn input_without_anything_for_policy_is_a_finding() {
    let folder = tempfile::tempdir().unwrap();
    let object = |kind: &str, name: &str| format!("apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}}}\n---\n");
    let others = object("ConfigMap", "a") + &object("ConfigMap", "b") + &object("Secret", "a");
    let (other, empty) = (folder.path().join("other.yaml"), folder.path().join("empty.yaml"));
    std::fs::write(&other, &others).unwrap();
    std::fs::write(&empty, "# Nothing.\n").unwrap();
    let (other, empty) = (&*other.display().to_string(), &*empty.display().to_string());
    let finding = |args: &[&str]| {
        let report = json(&check(&[args, &["-o", "json"]].concat(), 1));
        assert_eq!(report["findings"].as_array().unwrap().len(), 1, "{report}");
        assert_eq!(report["findings"][0]["rule"], "nothing-of-use");
        let text = |field: &str| report["findings"][0][field].as_str().unwrap().to_owned();
        (text("file"), text("message"))
    };
    // Nobody writes to the standard input of a test.
    for (given, file) in [("-", "<stdin>"), (empty, empty)] {
        let (at, message) = finding(&[given]);
        assert_eq!(at, file);
        assert!(message.starts_with("no object is given: "), "{message}");
    }
    let (at, message) = finding(&[other, empty]);
    assert_eq!(at, other);
    assert!(message.contains("passed over: 2 ConfigMap, 1 Secret; "), "{message}");
    assert!(!message.contains("kustomize"), "{message}");
    let overlay = folder.path().join("kustomization.yaml");
    std::fs::write(
        &overlay,
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n",
    )
    .unwrap();
    let (_, message) = finding(&[&overlay.display().to_string()]);
    assert!(
        message.ends_with("(what `kubectl kustomize` makes of a folder with a kustomization.yaml)"),
        "{message}"
    );
    // Beside what is of use they are no matter.
    let all = check(
        &["tests/lint/cluster.yaml", other, empty, "--only", "nothing-of-use"],
        0,
    );
    assert!(!all.contains("nothing-of-use"), "{all}");
}

#[test]
fn an_empty_folder_is_a_finding() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().display().to_string();
    let report = json(&check(&[&folder, "-o", "json"], 1));
    assert_eq!(report["findings"][0]["rule"], "empty-folder");
    assert_eq!(report["findings"][0]["file"], *folder);
}
