//! `palisade diff --live`: what applying manifests would open and close in the cluster that runs.

use crate::api::Verb;
use crate::world::World;

/// The same as on manifests of the live cluster's objects.
#[track_caller]
fn check(world: &World, arguments: &[&str], code: i32) -> String {
    let manifests = world.manifests();
    let offline = world.run(&[&["diff", &manifests], arguments, &["--overlay"]].concat());
    let live = world.live(&[&["diff"], arguments].concat());
    assert_eq!(
        (live.code, offline.code),
        (code, code),
        "{}{}",
        live.stderr,
        offline.stderr
    );
    // What was removed stands in no file of the live cluster.
    assert_eq!(live.stdout, strip(&offline.stdout, &manifests));
    assert!(
        live.stderr.contains("3 policies and 2 namespaces read from"),
        "{}",
        live.stderr
    );
    live.stdout
}

/// The text without places in a file.
fn strip(text: &str, file: &str) -> String {
    let lines = text.lines().map(|line| match line.split_once(&format!("  {file}:")) {
        Some((line, _)) => line,
        None => line,
    });
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_change_is_compared_with_what_runs() {
    let world = World::shop();
    let said = check(&world, &["diff/change.yaml"], 1);
    assert!(
        said.contains("+ shop/api-9f8d5-c → shop/statefulset/db  5432/TCP"),
        "{said}"
    );
    let pruned = check(&world, &["diff/change.yaml", "--prune"], 1);
    assert!(pruned.contains("- shop/api  removed"), "{pruned}");
    // Nothing was changed there.
    let calls = world.api.calls();
    assert!(
        !calls.is_empty() && calls.iter().all(|call| call.verb == Verb::List),
        "{calls:?}"
    );
}

#[test]
fn what_runs_already_makes_no_difference() {
    let world = World::shop();
    let said = check(&world, &["shop/policies.yaml", "--prune"], 0);
    assert_eq!(said, "no connection differs\n");
}

#[test]
fn a_template_goes_onto_the_pods_that_run() {
    let world = World::shop();
    let said = check(&world, &["shop/cluster.yaml"], 1);
    // The replica that was rolled out by itself is to be as the others are.
    assert!(said.starts_with("1 opened\n"), "{said}");
    assert!(
        said.contains("+ shop/api-9f8d5-c → shop/statefulset/db  5432/TCP"),
        "{said}"
    );
    assert!(
        said.contains("~ shop/deployment/api (1 pod)  changed: label release canary removed"),
        "{said}"
    );
}

#[test]
fn a_cluster_that_cannot_be_read_is_bad_input() {
    let world = World::shop();
    let nowhere = world.folder.path().join("none").display().to_string();
    let ended = world.run(&["diff", "diff/change.yaml", "--live", "--kubeconfig", &nowhere]);
    assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{}", ended.stderr);
}
