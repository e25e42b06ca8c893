//! `lint --live`: the findings of manifests of the same objects, without places; what only a live cluster has; and what objects rule out.

use serde_json::{Value, json};

use crate::world::World;

/// The findings of a report, without their places, in an order of their own.
fn findings(text: &str) -> Vec<Value> {
    let report: Value = serde_json::from_str(text).unwrap();
    let mut findings = report["findings"].as_array().unwrap().clone();
    for finding in &mut findings {
        for place in ["file", "line", "column"] {
            finding[place] = Value::Null;
        }
    }
    findings.sort_by_key(Value::to_string);
    findings
}

/// Live answers what manifests of the same objects answer; answers the rules that found something.
#[track_caller]
fn check(world: &World, code: i32) -> Vec<String> {
    let offline = world.run(&["lint", &world.manifests(), "-o", "json"]);
    let live = world.live(&["lint", "-o", "json"]);
    assert_eq!((offline.code, live.code), (code, code), "{}", live.stderr);
    let found = findings(&live.stdout);
    let raw: Value = serde_json::from_str(&live.stdout).unwrap();
    assert!(
        raw["findings"]
            .as_array()
            .unwrap()
            .iter()
            .all(|f| f["file"] == Value::Null)
    );
    assert_eq!(found, findings(&offline.stdout));
    found.iter().map(|f| f["rule"].as_str().unwrap().to_owned()).collect()
}

fn policy(name: &str, annotations: Value, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "shop", "annotations": annotations},
        "spec": spec,
    })
}

#[test]
fn a_live_cluster_is_found_to_have_what_its_manifests_have() {
    let world = World::shop();
    check(&world, 1);
    let nobody = json!({"podSelector": {"matchLabels": {"app": "nobody"}}, "policyTypes": ["Egress"], "ingress": [{}]});
    world.put(policy("idle", json!({}), nobody.clone()));
    let found = check(&world, 1);
    assert!(
        found.contains(&"selects-no-pod".to_owned()) && found.contains(&"rules-without-effect".to_owned()),
        "{found:?}"
    );
    let ignore = json!({"palisade.dev/lint-ignore": "selects-no-pod, rules-without-effect"});
    world.put(policy("idle", ignore, nobody));
    let found = check(&world, 1);
    assert!(
        !found.contains(&"selects-no-pod".to_owned()) && !found.contains(&"rules-without-effect".to_owned()),
        "{found:?}"
    );
}

#[test]
fn what_the_api_server_lets_pass_is_a_finding() {
    let world = World::shop();
    world.put(policy(
        "odd",
        json!({"palisade.dev/mode": "autid"}),
        json!({"podSelector": {}}),
    ));
    world.put(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "broken", "namespace": "shop"},
        "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 70000}]}]},
    }));
    let live = world.live(&["lint", "--only", "unknown-mode,unread-object", "-o", "json"]);
    assert_eq!(live.code, 1, "{}", live.stderr);
    let found: Vec<(String, String)> = findings(&live.stdout)
        .iter()
        .map(|f| {
            (
                f["rule"].as_str().unwrap().to_owned(),
                f["object"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    let expected = [
        ("unread-object", "Pod shop/broken"),
        ("unknown-mode", "NetworkPolicy shop/odd"),
    ];
    let expected: Vec<(String, String)> = expected.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(expected.iter().all(|one| found.contains(one)), "{found:?}");
    let text = world.live(&["lint"]).stdout;
    assert!(text.contains("warning Pod shop/broken: "), "{text}");
}
