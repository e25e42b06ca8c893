//! Files of somebody who wants the log of a workflow to say what this program does not: no name of theirs begins a line, or
//! steers a terminal.

use std::path::Path;

use crate::run;

/// What a name must not bring about, as YAML writes it.
const NAME: &str = r#""x\n::set-output name=a::b\r::error::c\e[2J\N\L\P::d""#;

/// What a line of the output shows of it.
const SHOWN: &str = r"x\n::set-output name=a::b\r::error::c\u{1b}[2J\u{85}\u{2028}\u{2029}::d";

const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: web}, status: {podIPs: [{ip: 10.0.0.1}]}}\n";

fn write(folder: &Path, name: &str, text: &str) -> String {
    let file = folder.join(name);
    std::fs::write(&file, text.replace("NAME", NAME)).unwrap();
    file.display().to_string()
}

/// The command says the name in a line of its own making, and ends with this code.
#[track_caller]
fn harmless(args: &[&str], code: i32) {
    let (found, stdout, stderr) = run(args);
    let said = stdout + &stderr;
    assert_eq!(found, Some(code), "{args:?}: {said}");
    assert!(said.contains(SHOWN), "{args:?} does not show the name: {said:?}");
    let steers = |c: char| c != '\n' && c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    assert!(!said.contains(steers), "{args:?}: {said:?}");
    assert!(
        !said.lines().any(|line| line.trim_start().starts_with("::")),
        "{args:?}: {said:?}"
    );
}

fn test(cases: &str, name: &str) -> String {
    format!(
        "apiVersion: palisade.dev/v1alpha1\nkind: ConnectivityTest\nmetadata: {{name: {name}}}\nresources: [pod.yaml]\ncases:\n- {cases}\n"
    )
}

#[test]
fn names_in_test_files() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| write(folder.path(), name, text);
    write("pod.yaml", POD);
    for (cases, name) in [
        (
            "{name: NAME, from: default/web, to: {namespace: nowhere}, ports: 80, expect: deny}",
            "t",
        ),
        (
            "{name: c, from: default/web, to: {namespace: NAME}, ports: 80, expect: deny}",
            "t",
        ),
        (
            "{name: c, from: default/web, to: NAME, ports: 80, expect: deny}",
            "NAME",
        ),
        ("{name: c, from: NAME, to: 10.9.9.9, ports: 80, expect: deny}", "t"),
        (
            "{name: c, from: default/web, to: 10.9.9.9, ports: NAME, expect: deny}",
            "t",
        ),
        (
            "{name: c, from: default/web, to: 10.9.9.9, ports: 80, expect: NAME}",
            "t",
        ),
        (
            "{name: c, from: default/web, to: 10.9.9.9, ports: 80, expect: deny, NAME: 1}",
            "t",
        ),
    ] {
        let file = write("test.yaml", &test(cases, name));
        harmless(&["test", &file], 2);
    }
    let file = write(
        "test.yaml",
        &test("{name: c, from: 10.9.9.9, to: 10.9.9.8, ports: 80, expect: deny}", "t").replace("pod.yaml", "NAME"),
    );
    harmless(&["test", &file], 2);
}

#[test]
fn names_in_the_results_of_tests() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "pod.yaml", POD);
    let case = "{name: NAME, from: default/web, to: 10.9.9.9, ports: 80, expect: EXPECT}";
    for (expect, code) in [("allow", 0), ("deny", 1)] {
        let text = test(&case.replace("EXPECT", expect), "NAME");
        let file = write(folder.path(), "test.yaml", &text);
        harmless(&["test", &file], code);
        for form in ["json", "junit", "tap", "github"] {
            let (found, stdout, _) = run(&["test", &file, "-o", form]);
            assert_eq!(found, Some(code), "{form}");
            assert!(form == "github" || stdout.contains("set-output"), "{form}: {stdout}");
            let forged = |line: &str| line.trim_start().starts_with("::") && !line.starts_with("::error file=");
            assert!(!stdout.split(['\n', '\r']).any(forged), "{form}: {stdout:?}");
            assert!(!stdout.contains('\u{1b}'), "{form}: {stdout:?}");
        }
    }
}

#[test]
fn names_in_manifests() {
    let folder = tempfile::tempdir().unwrap();
    for (text, code) in [
        ("{apiVersion: v1, kind: Pod, metadata: {name: NAME}}", 2),
        ("{apiVersion: v1, kind: Pod, metadata: {name: web}, NAME: 1}", 2),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: web, labels: {app: NAME}}}",
            2,
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: web, annotations: {NAME: 1}}}",
            2,
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {hostNetwork: NAME}}",
            2,
        ),
        ("{apiVersion: NAME, kind: Pod}", 2),
        ("{apiVersion: v1, kind: NAME}", 0),
        (
            "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: NAME}}",
            0,
        ),
        (
            "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, annotations: {palisade.dev/mode: NAME}}}",
            2,
        ),
    ] {
        let file = write(folder.path(), "manifest.yaml", text);
        harmless(&["compile", &file], code);
    }
    let file = write(
        folder.path(),
        "pod.yaml",
        "{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {nodeName: NAME}}",
    );
    harmless(&["compile", &file, "--node", "other"], 2);
    let policy = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, annotations: {palisade.dev/lint-ignore: NAME}}}";
    harmless(&["lint", &write(folder.path(), "policy.yaml", policy)], 1);
}

#[test]
fn names_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let name = "x\n::set-output name=a::b\r::error::c\x1b[2J\u{85}\u{2028}\u{2029}::d";
    let root = folder.path().join(name);
    std::fs::create_dir(&root).unwrap();
    let path = root.display().to_string();
    harmless(&["lint", &path], 1);
    let policy =
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {}}}";
    write(&root, "policy.yaml", &format!("{POD}---\n{policy}"));
    let ends = ["--from", "10.9.9.9", "--to", "default/web", "--port", "80"];
    harmless(&["lint", &path], 0);
    harmless(&[&["explain", &path], &ends[..]].concat(), 0);
    let before = write(folder.path(), "before.yaml", POD);
    harmless(&["diff", &before, &path], 1);
}

/// An error of the input is shown beside its line as well, when annotations are asked for.
#[test]
fn github_shows_what_is_wrong_with_files() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| write(folder.path(), name, text);
    write("pod.yaml", POD);
    let cases = "{name: NAME, from: default/web, to: default/no, ports: 80, expect: deny}";
    let test = write("test.yaml", &test(cases, "t"));
    let pod = write(
        "bad.yaml",
        "{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {NAME: 1}}",
    );
    for (args, begins) in [
        (["test", &*test], format!("::error file={test},line=6,col=")),
        (["lint", &*pod], format!("::error file={pod},line=1,col=")),
    ] {
        let (code, stdout, stderr) = run(&[&args[..], &["-o", "github"]].concat());
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stdout.starts_with(&begins), "{stdout}");
        assert!(
            stdout.contains("title=bad input::") && stdout.contains(":set-output name=a::b"),
            "{stdout}"
        );
        // One command, on one line, in whichever way lines are told apart.
        assert_eq!(stdout.lines().count(), 1, "{stdout}");
        assert!(!stdout.trim_end().contains(char::is_control), "{stdout:?}");
        assert!(stderr.starts_with("error: ") && stderr.contains(SHOWN), "{stderr}");
        let (_, stdout, _) = run(&args);
        assert_eq!(stdout, "");
    }
    // What is wrong with the command is about no file.
    let (code, stdout, _) = run(&["test", "pod.yaml/none", "-o", "github"]);
    assert_eq!(code, Some(2));
    assert!(
        stdout.starts_with("::error ") && stdout.lines().count() == 1,
        "{stdout}"
    );
}
