//! `palisade diff`, in its forms and with its exit codes. The files stand in `tests/cli/diff/`.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::{palisade, refused, run, stdout};

const BOTH: [&str; 3] = ["diff", "diff/before.yaml", "diff/after.yaml"];

/// The answer of a diff, whatever is said beside it.
#[track_caller]
fn answer(args: &[&str], code: i32) -> String {
    let (found, stdout, stderr) = run(args);
    assert_eq!(found, Some(code), "{args:?}: {stderr}");
    stdout
}

#[test]
fn what_opens_and_what_closes_in_every_form() {
    let (code, text, notes) = run(&BOTH);
    assert_eq!(code, Some(1));
    insta::assert_snapshot!("text", text);
    // What is odd about the cluster after, and was not before.
    insta::assert_snapshot!("notes", notes);
    insta::assert_snapshot!("json", answer(&[&BOTH[..], &["-o", "json"]].concat(), 1));
    insta::assert_snapshot!("markdown", answer(&[&BOTH[..], &["-o", "markdown"]].concat(), 1));
}

#[test]
fn pods_with_addresses_nodes_and_regions() {
    insta::assert_snapshot!(
        "pods",
        stdout(&["diff", "shop", "diff/web-only.yaml", "--overlay", "--prune"], 1)
    );
}

#[test]
fn what_changed_over_one_family_only_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string("tests/cli/diff/families.yaml").unwrap();
    let only = |name: &str, block: &str| {
        let path = folder.path().join(name);
        assert!(text.contains(block));
        std::fs::write(&path, text.replace(block, "")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let six = only("six.yaml", "{ipBlock: {cidr: 10.244.1.2/32}}, ");
    let closed = answer(&["diff", "diff/families.yaml", &six], 1);
    assert!(closed.contains("- shop/api → shop/web  all over IPv4\n"), "{closed}");
    let four = only("four.yaml", ", {ipBlock: {cidr: \"fd00::2/128\"}}");
    let opened = answer(&["diff", &four, "diff/families.yaml", "-o", "markdown"], 1);
    assert!(
        opened.contains("| `shop/api` | `shop/web` | all over `IPv6` |"),
        "{opened}"
    );
    let other = answer(&["diff", &four, &six, "-o", "json"], 1);
    let other: Value = serde_json::from_str(&other).unwrap();
    assert_eq!(
        (&other["opened"][0]["family"], &other["closed"][0]["family"]),
        (&"IPv6".into(), &"IPv4".into())
    );
    // Both together are the pods, over any.
    let none = only(
        "none.yaml",
        "{ipBlock: {cidr: 10.244.1.2/32}}, {ipBlock: {cidr: \"fd00::2/128\"}}",
    );
    let none_at_all = std::fs::read_to_string(&none).unwrap().replace("[{from: []}]", "[]");
    std::fs::write(&none, none_at_all).unwrap();
    let closed = answer(&["diff", "diff/families.yaml", &none], 1);
    assert!(closed.contains("- shop/api → shop/web  all\n"), "{closed}");
}

/// A comment names what is to blame: the policies that changed, and where none did, those that decide.
#[test]
fn a_comment_says_which_policies_did_it() {
    let pods = ["api", "web", "db"].map(pod).join("---\n");
    let with = |policies: &[String]| [std::slice::from_ref(&pods), policies].concat().join("---\n");
    let comment = |old: &str, new: &str| compared([old, new], &["-o", "markdown"]).1;
    let idle = policy("idle", "db", "{from: [{podSelector: {matchLabels: {app: db}}}]}");
    let api = |port: u16| {
        let rule = format!("{{from: [{{podSelector: {{matchLabels: {{app: api}}}}}}], ports: [{{port: {port}}}]}}");
        policy("db", "db", &rule)
    };
    // A rule: of its policy, and of no other that isolates the pod.
    let (old, new) = (with(&[idle.clone(), api(1)]), with(&[idle.clone(), api(2)]));
    let said = comment(&old, &new);
    for (title, port) in [("Opened", 2), ("Closed", 1)] {
        let list = said.split(&format!("**{title}**: ")).nth(1).unwrap();
        let list = list.split("\n\n**").next().unwrap();
        let row = format!("| `shop/api` | `shop/db` | `{port}/TCP` | `shop/db` |");
        assert!(list.lines().any(|line| line == row), "{row}: {said}");
    }
    // Isolation, by the policy that came or went, where another stays.
    let said = comment(&with(&[]), &with(std::slice::from_ref(&idle)));
    assert!(said.contains("| `shop/db` | all | `shop/idle` |"), "{said}");
    let said = comment(&with(std::slice::from_ref(&idle)), &with(&[]));
    assert!(said.contains("| `shop/db` | all | `shop/idle` |"), "{said}");
    // A label: nobody touched the policy.
    let other = old.replace("name: api, labels: {app: api}", "name: api, labels: {app: other}");
    assert_ne!(old, other);
    let said = comment(&old, &other);
    assert!(
        said.contains("| `shop/api` | `shop/db` | `1/TCP` | `shop/db` (unchanged) |"),
        "{said}"
    );
}

/// Each side has its own reason, and a rule that changed on one does not hide the isolation that changed on the other.
#[test]
fn a_comment_names_the_policies_of_both_sides() {
    let pods = ["api", "db", "web"].map(pod).join("---\n");
    let out = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: out}\n\
               spec: {podSelector: {matchLabels: {app: api}}, policyTypes: [Egress]}\n";
    let into = |app: &str| {
        policy(
            "in",
            "db",
            &format!("{{from: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}]}}"),
        )
    };
    let closed = [&pods, out, &into("web")].join("---\n");
    let open = [pods, into("api")].join("---\n");
    for (title, [old, new]) in [("Opened", [&closed, &open]), ("Closed", [&open, &closed])] {
        let (_, said, notes) = compared([old, new], &["-o", "markdown"]);
        let list = said.split(&format!("**{title}**: ")).nth(1).expect(&notes);
        let list = list.split("\n\n**").next().unwrap();
        let row = list.lines().find(|line| line.starts_with("| `shop/api` | `shop/db`, "));
        assert!(
            row.is_some_and(|row| row.ends_with(" | all | `shop/in`, `shop/out` |")),
            "{title}: {said}"
        );
    }
    // Nobody touched the policy of the other side: a label changed what it admits.
    let other = closed.replace(
        "name: api, labels: {app: api}",
        "name: api, labels: {app: api, tier: web}",
    );
    assert_ne!(closed, other);
    let [old, new] = [closed, other].map(|text| {
        text.replace(
            "from: [{podSelector: {matchLabels: {app: web}}}]",
            "from: [{podSelector: {matchLabels: {tier: web}}}]",
        )
    });
    let (_, said, _) = compared([&old, &new.replace(out, "")], &["-o", "markdown"]);
    let row = said.lines().find(|line| line.starts_with("| `shop/api` | `shop/db`, "));
    assert!(row.is_some_and(|row| row.ends_with(" | all | `shop/out` |")), "{said}");
}

/// As annotations and SARIF name it, so that it is found from the page.
#[test]
fn a_comment_names_files_as_the_repository_does() {
    let folder = tempfile::tempdir().unwrap();
    let rules = ["{from: []}", "{from: [{podSelector: {matchLabels: {app: db}}}]}"];
    for (name, rule) in ["old", "new"].into_iter().zip(rules) {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("x.yaml"), pod("db") + "---\n" + &policy("db", "db", rule)).unwrap();
    }
    let mut command = palisade(&["diff", "../old", ".", "-o", "markdown"]);
    let said = command.current_dir(folder.path().join("new")).output().unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    assert!(
        said.contains("| NetworkPolicy `shop/db` | changed: ingress |  | `x.yaml:5:1` |"),
        "{said}"
    );
}

/// What GitHub finds in plain words: references to issues of other trackers, and the beginning of a commit's hash.
#[test]
fn a_comment_has_no_name_that_github_makes_a_link_of() {
    let namespaces = |label: &str| {
        let namespace = |name: &str| {
            format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{team: {label}}}}}\n")
        };
        [pod("db"), namespace("shop"), namespace("deadbeef")].join("---\n")
    };
    let (_, said, notes) = compared([&namespaces("GH-12"), &namespaces("JIRA-x")], &["-o", "markdown"]);
    for name in ["shop", "deadbeef"] {
        let row = format!("| Namespace `{name}` | changed: label team `GH-12` → `JIRA-x` |");
        assert!(said.contains(&row), "{said}{notes}");
    }
}

/// GitHub refuses a comment of more than 65,536 characters.
#[test]
fn a_long_comment_is_cut_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let pods = 250;
    let cluster = |of: u16| {
        let parts = (0..pods).map(|n| {
            let peer = format!(
                "{{from: [{{podSelector: {{matchLabels: {{app: pod-{}}}}}}}]",
                (n + 1) % pods
            );
            let rule = format!("{peer}, ports: [{{port: {}}}]}}", of + n);
            let name = format!("pod-{n}");
            pod(&name) + "---\n" + &policy(&name, &name, &rule)
        });
        parts.collect::<Vec<_>>().join("---\n")
    };
    let paths = [("old one.yaml", 1_000), ("new.yaml", 2_000)].map(|(name, of)| {
        let path = folder.path().join(name);
        std::fs::write(&path, cluster(of)).unwrap();
        path.display().to_string()
    });
    let said = answer(&["diff", &paths[0], &paths[1], "-o", "markdown"], 1);
    assert!(said.len() < 60_000, "{}", said.len());
    let (text, end) = said.trim_end().rsplit_once("\n\n").unwrap();
    let command = format!("`palisade diff '{}' {} -o json`", paths[0], paths[1]);
    assert!(
        end.starts_with("Left out here: ") && end.ends_with(&format!("{command}.")),
        "{end}"
    );
    // What is there and what is said to be left out is all there is.
    for title in ["Opened", "Closed", "Objects"] {
        let list = text.split(&format!("**{title}**")).nth(1).unwrap();
        let list = list.split("\n\n**").next().unwrap();
        let list = list.split("\n\n<details><summary>Examples").next().unwrap();
        let rows = list
            .lines()
            .filter(|line| line.starts_with("| ") && !line.contains("---"));
        let headings = list.lines().filter(|line| line.starts_with("| --- ")).count();
        let (seen, folded) = list.split_once("<details>").unwrap();
        assert_eq!(seen.lines().filter(|line| line.starts_with('|')).count(), 2 + 10);
        assert!(folded.contains("</details>"), "{title}");
        let rows = rows.count() - headings;
        let left_out = usize::from(pods) - rows;
        assert!(rows > 20 && left_out > 0, "{title}: {rows}");
        assert!(
            end.contains(&format!("{title} {left_out} of {pods}")),
            "{title} {rows}: {end}"
        );
    }
    assert!(end.contains("Examples ") && end.contains(" of 500."), "{end}");
    // Of each list, what is seen at once is explained.
    for title in ["Opened", "Closed"] {
        let examples = text.matches(&format!("\n- **{title}**: ")).count();
        assert!(examples >= 10, "{title}: {examples}");
    }
}

#[test]
fn two_addresses_of_one_pod_are_no_connection() {
    let pod = format!(
        "{}status: {{podIPs: [{{ip: 10.244.1.1}}, {{ip: 10.244.1.2}}]}}\n",
        pod("db")
    );
    let [old, new] = ["10.244.1.1/32", "10.244.1.2/32"].map(|cidr| {
        let rule = format!("{{from: [{{ipBlock: {{cidr: {cidr}}}}}]}}");
        format!("{pod}---\n{}", policy("db", "db", &rule))
    });
    let (code, said, notes) = compared([&old, &new], &[]);
    assert_eq!(code, Some(0), "{said}{notes}");
    assert!(
        said.starts_with("no connection differs; 1 policy changed, without effect\n"),
        "{said}"
    );
}

#[test]
fn a_change_is_put_over_a_cluster() {
    let args = ["diff", "shop", "diff/change.yaml", "--overlay"];
    insta::assert_snapshot!("overlay", stdout(&args, 1));
    let pruned = stdout(&[&args[..], &["--prune"]].concat(), 1);
    // The change does not have the policy of the back ends.
    assert!(pruned.contains("- shop/api  removed"), "{pruned}");
}

#[test]
fn the_way_back_opens_what_the_way_there_closes() {
    let json = |args: &[&str]| -> Value { serde_json::from_str(&answer(args, 1)).unwrap() };
    let there = json(&["diff", "diff/before.yaml", "diff/after.yaml", "-o", "json"]);
    let back = json(&["diff", "diff/after.yaml", "diff/before.yaml", "-o", "json"]);
    let pairs = |answer: &Value, list: &str| -> Vec<String> {
        let list = answer[list].as_array().unwrap().iter();
        list.map(|e| format!("{} {} {}", e["from"], e["to"], e["ports"]))
            .collect()
    };
    assert_eq!(pairs(&there, "opened"), pairs(&back, "closed"));
    assert_eq!(pairs(&there, "closed"), pairs(&back, "opened"));
    assert_eq!(there["addedPods"][0]["pods"], back["removedPods"][0]["pods"]);
    assert_eq!(
        there["isolation"].as_array().unwrap().len(),
        back["isolation"].as_array().unwrap().len()
    );
}

#[test]
fn equal_clusters_do_not_differ_in_whatever_order_they_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string("tests/cli/diff/before.yaml").unwrap();
    let mut documents: Vec<&str> = text.split("---\n").collect();
    documents.reverse();
    let reversed = folder.path().join("reversed.yaml");
    std::fs::write(&reversed, documents.join("\n---\n")).unwrap();
    let reversed = reversed.to_str().unwrap();
    let said = stdout(&["diff", "diff/before.yaml", reversed], 0);
    assert_eq!(said, "no connection differs\n");
    let json: Value = serde_json::from_str(&stdout(&["diff", reversed, "diff/before.yaml", "-o", "json"], 0)).unwrap();
    assert_eq!((&json["differs"], &json["kind"]), (&false.into(), &"Diff".into()));
    // And whatever differs is told alike.
    let there = |old| answer(&["diff", old, "diff/after.yaml"], 1);
    assert_eq!(there("diff/before.yaml"), there(reversed));
}

#[test]
fn a_change_without_effect_is_said_and_is_no_difference() {
    let said = stdout(&["diff", "shop", "diff/reordered.yaml", "--overlay"], 0);
    assert!(
        said.starts_with("no connection differs; 1 policy changed, without effect\n"),
        "{said}"
    );
    assert!(said.contains("~ shop/web  changed: ingress; no effect"), "{said}");
}

/// A policy of the pods of one app, as the only object.
fn policy(name: &str, app: &str, rule: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: shop, name: {name}}}\n\
         spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, ingress: [{rule}]}}\n"
    )
}

fn pod(name: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{namespace: shop, name: {name}, labels: {{app: {name}}}}}\n")
}

/// Manifests in files, to be compared.
fn compared(files: [&str; 2], flags: &[&str]) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["old.yaml", "new.yaml"].map(|name| folder.path().join(name).display().to_string());
    for (path, text) in paths.iter().zip(files) {
        std::fs::write(path, text).unwrap();
    }
    run(&[&["diff", &paths[0], &paths[1]], flags].concat())
}

#[test]
fn a_policy_that_selects_no_pod_is_not_said_to_have_no_effect() {
    let [old, new] = ["{from: [{podSelector: {}}]}", "{}"].map(|rule| policy("db", "db", rule));
    let (code, said, notes) = compared([&old, &new], &[]);
    assert_eq!(code, Some(0), "{notes}");
    let head = "nothing was compared: neither side has a pod; 1 policy changed, not compared\n";
    assert!(said.starts_with(head), "{said}");
    assert!(
        said.contains("~ shop/db  changed: ingress; selects no pod here: not compared"),
        "{said}"
    );
    assert!(
        notes.contains("warning: policy shop/db selects no pod here, so its change was not compared"),
        "{notes}"
    );
    let (_, json, _) = compared([&old, &new], &["-o", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["objects"]["policies"][0]["effect"], Value::Null);
    // Beside pods of others, too.
    let [old, new] = [&old, &new].map(|policy| format!("{}---\n{policy}", pod("api")));
    let (_, said, notes) = compared([&old, &new], &[]);
    assert!(
        said.starts_with("no connection differs; 1 policy changed, not compared\n"),
        "{said}"
    );
    assert!(notes.contains("warning: policy shop/db selects"), "{notes}");
}

#[test]
fn policies_of_new_pods_have_an_effect_and_those_of_pods_that_are_gone_are_not_compared() {
    let both = pod("api");
    let more = [
        both.clone(),
        pod("db"),
        policy("db", "db", "{from: [{podSelector: {}}]}"),
    ]
    .join("---\n");
    let (code, said, notes) = compared([&both, &more], &[]);
    assert_eq!(code, Some(1), "{notes}");
    assert!(
        said.starts_with("no connection differs; 1 pod added; 1 policy changed\n"),
        "{said}"
    );
    assert!(said.contains("+ shop/db  added  "), "{said}");
    assert!(!notes.contains("selects no pod here"), "{notes}");
    let (_, said, notes) = compared([&more, &both], &[]);
    assert!(
        said.contains("- shop/db  removed; selects no pod now: not compared"),
        "{said}"
    );
    assert!(!notes.contains("selects no pod here"), "{notes}");
    // A rule that admits nobody new is without effect to a new pod as to any other.
    let idle = format!("{more}---\n{}", policy("db-too", "db", "{from: [{podSelector: {}}]}"));
    let (_, said, _) = compared([&both, &idle], &[]);
    assert!(said.contains("2 policies changed, all without effect\n"), "{said}");
}

#[test]
fn a_change_that_is_compared_as_if_it_were_a_cluster_gets_a_hint() {
    let (code, said, notes) = run(&["diff", "shop", "diff/reordered.yaml"]);
    assert_eq!(code, Some(1), "{notes}");
    assert!(
        said.starts_with("nothing was compared: no pod is on both sides; "),
        "{said}"
    );
    assert!(
        notes.contains("NEW has none of OLD's pods") && notes.contains("--overlay"),
        "{notes}"
    );
    for args in [&["diff", "shop", "diff/reordered.yaml", "--overlay"][..], &BOTH] {
        assert!(!run(args).2.contains("--overlay"), "{args:?}");
    }
}

#[test]
fn a_change_that_says_nothing_is_no_silent_success() {
    for (text, flags) in [
        ("", &["--overlay"][..]),
        ("# later\n", &["--overlay"]),
        ("", &[]),
        ("kind: ConfigMap\napiVersion: v1\nmetadata: {name: x}\n", &["--overlay"]),
    ] {
        let (_, _, notes) = compared([&pod("api"), text], flags);
        assert!(
            notes.contains("new.yaml: no object") && notes.contains("[nothing-of-use]"),
            "{text:?}: {notes}"
        );
    }
    let (_, _, notes) = compared([&pod("api"), &pod("api")], &[]);
    assert_eq!(notes, "");
    // As it comes from a pipe.
    let output = palisade(&["diff", "shop", "-", "--overlay"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(notes.contains("<stdin>: no object is given"), "{notes}");
}

#[test]
fn either_side_may_be_standard_input() {
    for (old, new, code) in [
        ("-", "diff/before.yaml", 0),
        ("diff/before.yaml", "-", 0),
        ("-", "diff/after.yaml", 1),
    ] {
        let mut child = palisade(&["diff", old, new])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let text = std::fs::read("tests/cli/diff/before.yaml").unwrap();
        child.stdin.take().unwrap().write_all(&text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{old} {new}");
    }
}

#[test]
fn bad_input_is_refused() {
    refused(
        &["diff", "diff/before.yaml", "diff/nowhere.yaml"],
        &["diff/nowhere.yaml"],
    );
    refused(&["diff", "-", "-"], &["cannot both be standard input"]);
    refused(
        &["diff", "diff/before.yaml", "bad/malformed.yaml"],
        &["bad/malformed.yaml"],
    );
    refused(&["diff", "diff/before.yaml"], &["give two PATHs"]);
    refused(&["diff", "shop", "diff/change.yaml", "--prune"], &["--overlay"]);
    let both = ["diff", "shop", "diff/change.yaml", "--live", "--kubeconfig", "nowhere"];
    refused(&both, &["with --live", "give one PATH"]);
}
