//! Objects that cannot be read: told, passed over, and never the end of a watch.

use std::collections::BTreeMap;
use std::time::Duration;

use palisade::agent::source::Resource;
use policy_compiler::cluster::PodName;
use policy_compiler::compile::Event;
use policy_compiler::policy::{PolicyName, Tier};
use serde_json::{Value, json};

use crate::api::{Kind, Verb};
use crate::objects::{pod, policy};
use crate::server::Server;
use crate::world::{World, small};

fn broken_pod(name: &str) -> Value {
    let mut object = pod("shop", name, "web", "10.1.0.66");
    object["metadata"]["labels"] = json!({"app": 1});
    object
}

fn name(namespace: &str, name: &str) -> (Tier, PolicyName) {
    let name = PolicyName {
        namespace: Some(namespace.into()),
        name: name.into(),
    };
    (Tier::NetworkPolicy, name)
}

#[tokio::test]
async fn one_object_is_left_out_and_the_rest_goes_on() {
    for streaming in [true, false] {
        let api = small().await;
        api.set_streaming(streaming);
        // Undecodable, refused by the conversion, without metadata, and of quite another shape.
        api.put(Kind::Pod, broken_pod("aaa"));
        let mut object = pod("shop", "bbb", "web", "10.1.0.66");
        object["status"]["podIPs"] = json!([{"ip": "nowhere"}]);
        api.put(Kind::Pod, object);
        api.put(Kind::Pod, json!({"metadata": {}, "spec": {}}));
        api.put(
            Kind::Pod,
            json!({"metadata": {"namespace": "shop", "name": "ccc"}, "spec": "none"}),
        );
        api.put(
            Kind::Namespace,
            json!({"metadata": {"name": "broken", "labels": ["team"]}}),
        );
        api.put(
            Kind::Node,
            json!({"metadata": {"name": "broken"}, "spec": {"podCIDR": "x"}}),
        );
        let mut world = World::watch(api);
        world.converge().await;
        let health = &world.watches.health()[&Resource::Pods];
        assert_eq!((health.objects, health.invalid), (2, 3), "{health:?}");
        assert!(
            health.complaints[0].starts_with("Pod shop/aaa: invalid type: integer `1`"),
            "{health:?}"
        );
        assert!(
            health.complaints[1].starts_with("Pod shop/bbb: status.podIPs[0].ip: \"nowhere\""),
            "{health:?}"
        );

        // While watching.
        world.api.put(Kind::Pod, broken_pod("ddd"));
        world.api.put(Kind::Pod, pod("shop", "good", "web", "10.1.0.4"));
        let events = world.converge().await;
        assert_eq!(events.len(), 1, "{events:?}");
        world.until("is told", |h| h.invalid == 4, Resource::Pods).await;

        // Mended, and removed.
        world.api.put(Kind::Pod, pod("shop", "aaa", "web", "10.1.0.5"));
        world.api.delete(Kind::Pod, "shop", "ccc");
        world.converge().await;
        world.until("is mended", |h| h.invalid == 2, Resource::Pods).await;
        let failures: u64 = world.watches.health().values().map(|h| h.failures).sum();
        assert_eq!(failures, 0, "{:#?}", world.watches.health());
    }
}

#[tokio::test]
async fn the_last_good_version_of_an_object_stays() {
    let mut world = World::synced().await;
    let pod_name = PodName {
        namespace: "shop".into(),
        name: "web-1".into(),
    };
    let before = world.cluster.clone().unwrap();
    world.api.put(Kind::Pod, broken_pod("web-1"));
    let mut object = policy("shop", "db", "db", 5432);
    object["spec"]["ingress"][0]["ports"][0]["port"] = json!("not a port name");
    world.api.put(Kind::NetworkPolicy, object);
    for resource in [Resource::Pods, Resource::NetworkPolicies] {
        world.until("is told", |h| h.invalid == 1, resource).await;
    }
    world.quiet(Duration::from_millis(300)).await;

    // A new list does not take it away either, for it is still there.
    world.api.cut();
    world.api.compact();
    world.until("lists again", |h| h.lists == 2, Resource::Pods).await;
    world
        .until("lists again", |h| h.lists == 2, Resource::NetworkPolicies)
        .await;
    world.quiet(Duration::from_millis(300)).await;
    assert_eq!(world.cluster, Some(before));

    // It goes when it goes.
    world.api.delete(Kind::Pod, "shop", "web-1");
    world.api.delete(Kind::NetworkPolicy, "shop", "db");
    let mut events = world.next().await;
    if events.len() < 2 {
        events.extend(world.next().await);
    }
    let gone = |event: &Event| matches!(event, Event::PodGone(name) if *name == pod_name);
    assert!(events.iter().any(gone), "{events:?}");
    assert_eq!(world.cluster, Some(world.api.cluster().await));
}

#[tokio::test]
async fn a_new_policy_that_cannot_be_read_isolates_its_pods_all_the_same() {
    for streaming in [true, false] {
        let mut world = World::synced().await;
        world.api.set_streaming(streaming);
        let mut object = policy("shop", "new", "web", 80);
        object["spec"]["ingress"]
            .as_array_mut()
            .unwrap()
            .push(json!({"from": [{"serviceSelector": {}}]}));
        world.api.put(Kind::NetworkPolicy, object.clone());
        // One that says nothing of its pods is left out.
        world.api.put(
            Kind::NetworkPolicy,
            json!({"metadata": {"namespace": "shop", "name": "lost"}, "spec": {"podSelector": 7}}),
        );
        world.next().await;
        let cluster = world.cluster.as_ref().unwrap();
        let salvaged = &cluster.policies[&name("shop", "new")];
        assert_eq!(
            salvaged.ingress.as_ref().map(Vec::len),
            Some(1),
            "the rule that can be read"
        );
        assert!(salvaged.egress.is_none());
        world
            .until("is told", |h| h.invalid == 2, Resource::NetworkPolicies)
            .await;
        assert!(
            !world
                .cluster
                .as_ref()
                .unwrap()
                .policies
                .contains_key(&name("shop", "lost"))
        );

        // A list brings the same.
        world.api.cut();
        world.api.compact();
        world
            .until("lists again", |h| h.lists == 2, Resource::NetworkPolicies)
            .await;
        world.quiet(Duration::from_millis(300)).await;

        // Still not readable, and yet something else; then mended.
        object["spec"]["podSelector"] = json!({"matchLabels": {"app": "db"}});
        world.api.put(Kind::NetworkPolicy, object);
        let events = world.next().await;
        assert!(
            matches!(&events[..], [Event::Policy(p)] if p.subject.pods.to_string() == "app=db"),
            "{events:?}"
        );
        world.api.put(Kind::NetworkPolicy, policy("shop", "new", "web", 80));
        world.api.delete(Kind::NetworkPolicy, "shop", "lost");
        world.converge().await;
        world
            .until("is mended", |h| h.invalid == 0, Resource::NetworkPolicies)
            .await;
    }
}

#[tokio::test]
async fn what_is_beyond_all_bounds_is_refused_by_name() {
    let mut world = World::synced().await;
    let mut many = pod("shop", "many", "web", "10.1.0.8");
    let labels: BTreeMap<String, String> = (0..2000).map(|at| (format!("l{at}"), "v".to_owned())).collect();
    many["metadata"]["labels"] = json!(labels);
    world.api.put(Kind::Pod, many);
    world
        .api
        .put(Kind::Pod, pod("shop", &"n".repeat(10_000), "web", "10.1.0.9"));
    world.api.put(Kind::Pod, pod("shop", "good", "web", "10.1.0.4"));
    let events = world.next().await;
    assert!(
        matches!(&events[..], [Event::Pod(pod)] if &*pod.name.name == "good"),
        "{events:?}"
    );
    world.until("is told", |h| h.invalid == 2, Resource::Pods).await;
    let complaints = &world.watches.health()[&Resource::Pods].complaints;
    assert_eq!(
        complaints[0],
        "Pod shop/many: metadata.labels: 2000 labels are too many: write at most 1000"
    );
    assert!(
        complaints[1].len() < 1000 && complaints[1].contains("too long"),
        "{complaints:?}"
    );
    assert_eq!(
        world.api.count(Kind::Pod, Verb::Watch),
        0,
        "on one connection all the way"
    );
}
