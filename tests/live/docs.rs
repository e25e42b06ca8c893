//! What the reference says of `--live`: its output is what the commands print, and its rights are those that they use.

use std::collections::BTreeSet;

use palisade::manifests;
use serde_json::Value;

use crate::api::Verb;
use crate::world::{World, json};

fn reference() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md")).unwrap()
}

/// A shop that kubectl's own kubeconfig leads to.
fn world() -> World {
    let world = World::shop();
    std::fs::create_dir(world.folder.path().join(".kube")).unwrap();
    std::fs::copy(&world.kubeconfig, world.folder.path().join(".kube/config")).unwrap();
    world
}

#[test]
fn the_reference_shows_real_output() {
    let (world, reference) = (world(), reference());
    let blocks = reference.split("```\n$ palisade ").skip(1);
    let blocks = blocks.filter(|block| block.lines().next().unwrap().contains("--live"));
    let mut shown = 0;
    for block in blocks {
        let (command, expected) = block.split("\n```").next().unwrap().split_once('\n').unwrap();
        let (origin, expected) = expected.split_once('\n').unwrap();
        let ended = world.run(&command.split(' ').collect::<Vec<_>>());
        assert_eq!(ended.stdout.trim_end(), expected, "palisade {command}");
        // Server and time are of another day.
        let read = |line: &str| line.split(" read from ").next().unwrap().to_owned();
        assert_eq!(read(&ended.stderr), read(origin), "palisade {command}");
        shown += 1;
    }
    assert!(shown > 0);
}

#[test]
fn the_cluster_role_of_the_reference_permits_every_call_and_no_other() {
    let (world, reference) = (world(), reference());
    let role = reference
        .split("```yaml\n")
        .find(|block| block.contains("\nkind: ClusterRole\n"));
    let role = manifests::documents(role.unwrap().split("```").next().unwrap());
    let role = json(&role.documents[0]);
    let texts = |list: &Value| -> Vec<String> {
        let items = list.as_array().unwrap().iter();
        items.map(|item| item.as_str().unwrap().to_owned()).collect()
    };
    let mut permitted = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        assert_eq!(texts(&rule["verbs"]), ["list"]);
        for group in texts(&rule["apiGroups"]) {
            permitted.extend(
                texts(&rule["resources"])
                    .into_iter()
                    .map(|resource| (group.clone(), resource)),
            );
        }
    }
    let ended = world.run(&["matrix", "--port", "80", "--live"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let calls = world.api.calls();
    assert!(calls.iter().all(|call| call.verb == Verb::List), "{calls:?}");
    let used = calls
        .iter()
        .map(|call| (call.kind.group().to_owned(), call.kind.plural().to_owned()));
    assert_eq!(used.collect::<BTreeSet<_>>(), permitted);
}
