//! The program as a user runs it: what it prints, and with which exit code it ends. The files stand in `tests/cli/`.

#![allow(clippy::unwrap_used, reason = "a test that cannot run the program fails")]

#[path = "cli/diff.rs"]
mod diff;
#[path = "support/environment.rs"]
mod environment;
#[path = "cli/forms.rs"]
mod forms;
#[path = "cli/hostile.rs"]
mod hostile;
#[path = "cli/unread.rs"]
mod unread;

use std::io::Read;
use std::process::{Command, Output, Stdio};

fn palisade(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
    environment::without_settings(&mut command)
        .args(args)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli"));
    command
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = palisade(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// Standard output of a command that ends with an exit code and says nothing on standard error.
#[track_caller]
fn stdout(args: &[&str], code: i32) -> String {
    let (found, stdout, stderr) = run(args);
    assert_eq!((found, &*stderr), (Some(code), ""), "{args:?}");
    stdout
}

/// The command ends with exit code 2, prints nothing, and says all of these on standard error.
#[track_caller]
fn refused(args: &[&str], says: &[&str]) {
    let (code, stdout, stderr) = run(args);
    assert_eq!((code, &*stdout), (Some(2), ""), "{args:?}: {stderr}");
    assert!(stderr.starts_with("error:"), "{args:?}: {stderr}");
    for part in says {
        assert!(stderr.contains(part), "{args:?} does not say {part:?}: {stderr}");
    }
}

#[test]
fn compile_speaks_of_selectors_and_workloads() {
    insta::assert_snapshot!(stdout(&["compile", "shop"], 0));
}

#[test]
fn compile_lists_allow_sets_as_json() {
    insta::assert_snapshot!(stdout(&["compile", "shop", "--node", "worker-1", "-o", "json"], 0));
}

#[test]
fn compile_prints_the_rules_of_a_node() {
    let rules = stdout(&["compile", "shop", "--node", "worker-2", "-o", "nft"], 0);
    assert!(rules.starts_with("table inet palisade {"), "{rules}");
    // What stands in the table is the renderer's matter; that it is this node's pods is this command's.
    assert!(
        rules.contains("\"shop/db-0\"") && !rules.contains("\"shop/web-5d4f8-a\""),
        "{rules}"
    );
}

#[test]
fn explain_names_rules_and_nearest_misses() {
    let explain = |from, to, port| stdout(&["explain", "shop", "--from", from, "--to", to, "--port", port], 0);
    insta::assert_snapshot!("explain_workload", explain("shop/deployment/api", "shop/sts/db", "all"));
    insta::assert_snapshot!(
        "explain_allowed",
        explain("shop/web-5d4f8-a", "shop/api-9f8d5-c", "http")
    );
    insta::assert_snapshot!(
        "explain_outside",
        explain("203.0.113.0/24", "shop/deployment/web", "8000-8001/TCP")
    );
    insta::assert_snapshot!("explain_service", explain("monitoring/scraper", "10.96.0.5", "80"));
    insta::assert_snapshot!("explain_own_node", explain("172.18.0.3", "shop/db-0", "5432"));
    insta::assert_snapshot!("explain_itself", explain("shop/db-0", "shop/db-0", "5432"));
}

#[test]
fn explain_as_json() {
    let args = [
        "explain",
        "shop",
        "--from",
        "shop/api-9f8d5-c",
        "--to",
        "shop/db-0",
        "--port",
        "5432/TCP",
        "-o",
        "json",
    ];
    insta::assert_snapshot!(stdout(&args, 0));
}

#[test]
fn matrix_in_its_forms() {
    let matrix = |port, output| stdout(&["matrix", "shop", "--port", port, "-o", output], 0);
    insta::assert_snapshot!("matrix_text", matrix("8080/TCP", "text"));
    insta::assert_snapshot!("matrix_split_replicas", matrix("5432/TCP", "text"));
    insta::assert_snapshot!("matrix_partial", matrix("all", "text"));
    insta::assert_snapshot!("matrix_json", matrix("http/TCP", "json"));
    insta::assert_snapshot!("matrix_csv", matrix("http/TCP", "csv"));
    insta::assert_snapshot!("matrix_markdown", matrix("http/TCP", "markdown"));
}

#[test]
fn tests_in_their_forms() {
    let test = |output| stdout(&["test", "shop.yaml", "-o", output], 1);
    insta::assert_snapshot!("test_text", test("text"));
    insta::assert_snapshot!("test_json", test("json"));
    insta::assert_snapshot!("test_junit", test("junit"));
    insta::assert_snapshot!("test_tap", test("tap"));
    insta::assert_snapshot!("test_github", test("github"));
}

/// Audited policies beside those of the shop: verdicts are what is in force, and what audit would tell stands beside them.
#[test]
fn policies_on_trial() {
    let answer = |args: &[&str], code: i32| {
        let (found, stdout, stderr) = run(args);
        assert_eq!(found, Some(code), "{args:?}: {stderr}");
        (stdout, stderr)
    };
    let text = answer(&["compile", "shop", "trial"], 0).0;
    insta::assert_snapshot!("trial_compile", text);
    let compile = ["compile", "shop", "trial", "--node", "worker-1", "-o", "json"];
    insta::assert_snapshot!("trial_compile_json", answer(&compile, 0).0);
    let explain = |from, to, port, output| {
        let ends = ["--from", from, "--to", to, "--port", port, "-o", output];
        answer(&[&["explain", "shop", "trial"][..], &ends].concat(), 0)
    };
    let (denied, notes) = explain("shop/deployment/web", "203.0.113.7", "443", "text");
    insta::assert_snapshot!("trial_explain", denied);
    insta::assert_snapshot!("trial_notes", notes);
    let some = explain("monitoring/scraper", "shop/deployment/web", "all", "text").0;
    insta::assert_snapshot!("trial_explain_some", some);
    let json = explain("monitoring/scraper", "shop/deployment/web", "8081", "json").0;
    insta::assert_snapshot!("trial_explain_json", json);
    // The matrix of the policies in force is that without the audited ones.
    let matrix = |paths: &[&str]| answer(&[&["matrix"], paths, &["--all-ports", "-o", "json"]].concat(), 0).0;
    assert_eq!(matrix(&["shop", "trial"]), matrix(&["shop"]));
    insta::assert_snapshot!("trial_test", answer(&["test", "trial.yaml"], 1).0);
}

#[test]
fn tests_that_all_pass_end_with_0() {
    let text = stdout(&["test", "passing"], 0);
    assert!(text.ends_with("2 cases, 2 passed, 0 failed\n"), "{text}");
}

#[test]
fn manifests_come_from_standard_input_too() {
    let mut child = palisade(&["matrix", "-", "--port", "80", "-o", "csv"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let manifests = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/shop/pods.yaml")).unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), manifests.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("shop/statefulset/db,")
    );
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    // More than a pipe holds, so that the program is still writing when the reader is gone.
    let pods: String = (0..3000)
        .map(|n| format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{n}}}\nspec: {{containers: []}}\n"))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("pods.yaml"), pods).unwrap();
    let path = folder.path().to_str().unwrap();
    let mut child = palisade(&["compile", path])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), String::from_utf8(output.stderr).unwrap()),
        (Some(0), String::new())
    );
}

#[test]
fn bad_usage_is_refused() {
    refused(&["compile"], &["<PATH|--live>"]);
    let both = ["cannot be used with"];
    refused(&["compile", "shop", "--live"], &both);
    refused(&["compile", "shop", "--context", "prod"], &both);
    refused(&["denied", "--manifests", "shop", "--live"], &both);
    refused(&["test", "shop.yaml", "--kubeconfig", "config"], &["--live"]);
    refused(&["denied", "--namespace", "shop"], &["--manifests <PATH>...|--live"]);
    refused(
        &["denied", "--live", "--pod", "web-0"],
        &["write the pod's namespace and its name, such as shop/web-0"],
    );
    refused(&["compile", "shop", "-o", "xml"], &["xml", "text, json, nft"]);
    refused(
        &["test", "shop.yaml", "-o", "xml"],
        &["xml", "text, json, junit, tap, github"],
    );
    refused(&["agent", "--node-name", "n"], &["--manifests DIR", "API server"]);
    refused(&["agent", "--manifests", "shop"], &["--node-name"]);
    refused(&["agent", "--manifests", "shop", "--node-name", ""], &["--node-name"]);
    // The folder is none, so that nothing is enforced here even if the flags pass.
    let agent = ["agent", "--node-name", "n", "--manifests", "nowhere"];
    refused(&[&agent[..], &["--context", "prod"]].concat(), &both);
    for address in ["9440", "localhost:9440", ":9440"] {
        let says = ["write an IP address and a port, such as 127.0.0.1:9440"];
        refused(&[&agent[..], &["--http-addr", address]].concat(), &says);
        refused(&["status", "--http-addr", address], &says);
    }
    refused(
        &["preflight", "--root", "nowhere"],
        &["--root nowhere: there is no such folder"],
    );
    refused(
        &["lint", "shop", "--only", "xyz"],
        &["xyz", "`palisade lint --help` lists them"],
    );
    refused(&["frobnicate"], &["frobnicate"]);
}

#[test]
fn a_port_that_is_none_is_refused() {
    let port = |port, says: &[&str]| {
        refused(&["matrix", "shop", "--port", port], says);
        refused(
            &[
                "explain",
                "shop",
                "--from",
                "shop/db-0",
                "--to",
                "shop/db-0",
                "--port",
                port,
            ],
            says,
        );
    };
    port("0/TCP", &["0 is not a port number", "1 to 65535"]);
    port("70000/TCP", &["70000 is not a port number"]);
    port("80-70/TCP", &["empty range", "lower port first"]);
    port("80/tcp", &["write TCP, UDP or SCTP"]);
    port("HTTP!", &["8080/TCP", "http/TCP"]);
    port("ftp/TCP", &["a port ftp/TCP: write a number"]);
    let ends = [
        "explain",
        "shop",
        "--from",
        "shop/db-0",
        "--to",
        "shop/deployment/web",
        "--port",
        "ftp",
    ];
    refused(
        &ends,
        &["nothing at shop/deployment/web has a port ftp/TCP: write a number, or http/TCP"],
    );
}

#[test]
fn an_unknown_endpoint_is_refused() {
    let from = |from, says: &[&str]| {
        refused(
            &["explain", "shop", "--from", from, "--to", "shop/db-0", "--port", "80"],
            says,
        );
    };
    from("shop", &["namespace/pod", "shop/deployment/api"]);
    from(
        "shop/api-7c9b6-z",
        &["no pod shop/api-7c9b6-z", "did you mean shop/api-7c9b6-"],
    );
    from("shop/api", &["no pod shop/api", "shop/deployment/api"]);
    from(
        "shop/statefulset/api",
        &["no shop/statefulset/api", "did you mean shop/deployment/api"],
    );
    from(
        "shop/service/web",
        &["no end of a connection", "name the pods behind it"],
    );
    from("shop/ingress/web", &["not a kind of workload"]);
    from("10.0.0.300", &["not an address"]);
    from("10.0.0.0/64", &["not an address"]);
    from("shop/migrate-x", &["shop/migrate-x has ended", "name a running pod"]);
    from("shop/job/migrate", &["every pod of shop/job/migrate has ended"]);
    from("10.96.0.5", &["Service shop/web", "name the pods"]);
    from("fd00::1", &["no address family in common"]);
}

#[test]
fn an_unknown_node_is_refused() {
    refused(
        &["compile", "shop", "--node", "worker-9"],
        &["no node worker-9", "worker-1, worker-2"],
    );
    refused(&["compile", "shop", "-o", "nft"], &["--node", "worker-1, worker-2"]);
    refused(&["compile", "bad/no-node.yaml", "-o", "nft"], &["no pod is on one"]);
}

#[test]
fn a_service_without_that_port_is_refused() {
    let args = [
        "explain",
        "shop",
        "--from",
        "shop/db-0",
        "--to",
        "10.96.0.5",
        "--port",
        "81",
    ];
    refused(&args, &["Service shop/web has no port 81/TCP", "80/TCP"]);
}

#[test]
fn bad_manifests_are_refused_with_file_line_and_field() {
    for command in ["compile", "matrix", "explain"] {
        let mut args = vec![command, "bad/policy.yaml"];
        if command != "compile" {
            args.extend(["--port", "80"]);
        }
        if command == "explain" {
            args.extend(["--from", "10.0.0.1", "--to", "10.0.0.2"]);
        }
        let place = "bad/policy.yaml:6";
        refused(
            &args,
            &[
                place,
                "NetworkPolicy shop/web",
                "spec.ingress[0].ports[0].port",
                "bad/policy.yaml:9",
                "2 errors",
            ],
        );
    }
    refused(&["compile", "nowhere"], &["nowhere: there is no such file or folder"]);
    refused(
        &["compile", "bad/malformed.yaml"],
        &["bad/malformed.yaml:4:1: malformed YAML"],
    );
}

#[test]
fn bad_test_files_are_refused_all_at_once() {
    let (code, stdout, stderr) = run(&["test", "bad/tests"]);
    assert_eq!((code, &*stdout), (Some(2), ""));
    insta::assert_snapshot!(stderr);
}

#[test]
fn tests_without_a_test_are_refused() {
    refused(&["test", "shop"], &["no test in shop", "ConnectivityTest"]);
    refused(&["test", "nowhere"], &["nowhere: there is no such file or folder"]);
}

/// Whoever has the program and not the manual finds the names of rules, and the form of a test file.
#[test]
fn the_settings_of_a_terminal_change_no_answer() {
    let args = ["test", "--help"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
    command.args(args).env("CLICOLOR_FORCE", "1").env("COLUMNS", "40");
    let coloured = command.output().unwrap().stdout;
    let plain = environment::without_settings(&mut command).output().unwrap().stdout;
    assert_ne!(coloured, plain);
    assert_eq!(String::from_utf8(plain).unwrap(), stdout(&args, 0));
}

#[test]
fn help_tells_what_to_write() {
    let help = stdout(&["lint", "--help"], 0);
    assert!(
        help.contains("selects-no-pod") && help.contains("redundant-policy"),
        "{help}"
    );
    // On the narrowest terminal that is usual, too, its lines are not folded.
    let help = palisade(&["test", "--help"]).env("COLUMNS", "80").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let file = help
        .split("A test file:")
        .nth(1)
        .unwrap()
        .split("Exit codes")
        .next()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.yaml");
    std::fs::write(&path, file.replace("\n  ", "\n")).unwrap();
    // Of the form, nothing is wrong; the manifests that it names are not there.
    let (code, _, stderr) = run(&["test", path.to_str().unwrap()]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(
        stderr.contains("manifests/: there is no such file or folder") && stderr.contains("1 error"),
        "{stderr}"
    );
}

#[test]
fn the_version_is_told() {
    assert_eq!(
        stdout(&["--version"], 0),
        concat!("palisade ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn the_shop_of_the_examples_is_as_its_tests_say() {
    let text = stdout(&["test", "../../examples/shop.test.yaml"], 0);
    assert!(text.ends_with("7 cases, 7 passed, 0 failed\n"), "{text}");
}

/// What docs/cli.md shows is what the commands print.
#[test]
fn the_reference_shows_real_output() {
    let root = env!("CARGO_MANIFEST_DIR");
    let reference = std::fs::read_to_string(format!("{root}/docs/cli.md")).unwrap();
    let shown: Vec<&str> = reference.split("```\n$ palisade ").skip(1).collect();
    assert!(shown.len() >= 5, "{}", shown.len());
    for block in shown {
        let (command, rest) = block.split_once('\n').unwrap();
        if command.contains("--live") {
            // tests/live/ has a cluster for it.
            continue;
        }
        let expected = rest.split("\n```").next().unwrap();
        let (command, lines) = match command.split_once(" | head -") {
            Some((command, lines)) => (command, lines.parse().unwrap()),
            None => (command, usize::MAX),
        };
        let args: Vec<&str> = command.split(' ').collect();
        let output = palisade(&args).current_dir(root).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let found: Vec<&str> = text.trim_end().lines().take(lines).collect();
        assert_eq!(found.join("\n"), expected, "palisade {command}");
    }
}
