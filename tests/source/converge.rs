//! Changes, made through the API as any client makes them: the same on the scripted API server, always, and on a real one where
//! `KUBEBUILDER_ASSETS` names one.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, Patch, PatchParams, PostParams};
use palisade::agent::source::Resource;
use policy_compiler::compile::Event;
use serde_json::{Value, json};

use crate::api::{Api as Scripted, Kind};
use crate::objects::{namespace, node, pod, policy};
use crate::real::Real;
use crate::server::Server;
use crate::world::World;

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[tokio::test]
async fn the_same_holds_on_every_api_server() {
    async fn all<S: Server>(server: impl AsyncFn() -> S) {
        changes_of_every_kind_are_followed(&mut World::synced_on(server().await).await).await;
        what_changes_nothing_is_not_told(&mut World::synced_on(server().await).await).await;
        a_storm_on_one_object_is_told_once_and_no_watch_waits_for_the_loop(&mut World::synced_on(server().await).await)
            .await;
        a_call_that_is_dropped_loses_nothing(&mut World::synced_on(server().await).await).await;
    }
    all(Scripted::start).await;
    if let Some(real) = Real::named().await {
        println!("on a real one:");
        all(async || &real).await;
    }
}

async fn changes_of_every_kind_are_followed(world: &mut World<impl Server>) {
    let client = world.api.client();
    let post = PostParams::default();
    let patch = PatchParams::default();

    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.create(&post, &typed(namespace("new", "red"))).await.unwrap();
    world.converge().await;
    let labels = json!({"metadata": {"labels": {"team": "green"}}});
    namespaces.patch("new", &patch, &Patch::Merge(labels)).await.unwrap();
    world.converge().await;

    // A pod as it comes about: made, bound to a node, then with an address.
    let pods: Api<Pod> = Api::namespaced(client.clone(), "new");
    let mut object = pod("new", "web", "web", "10.1.0.7");
    let status = object.as_object_mut().unwrap().remove("status").unwrap();
    object["metadata"].as_object_mut().unwrap().remove("managedFields");
    pods.create(&post, &typed(object)).await.unwrap();
    world.converge().await;
    pods.patch_status("web", &patch, &Patch::Merge(json!({ "status": status })))
        .await
        .unwrap();
    let events = world.converge().await;
    assert!(
        matches!(&events[..], [Event::Pod(pod)] if !pod.addresses.is_empty()),
        "{events:?}"
    );
    let labels = json!({"metadata": {"labels": {"app": "api"}}});
    pods.patch("web", &patch, &Patch::Merge(labels)).await.unwrap();
    world.converge().await;

    let nodes: Api<Node> = Api::all(client.clone());
    nodes.create(&post, &typed(node("n2", "192.0.2.2"))).await.unwrap();
    world.converge().await;

    let policies: Api<NetworkPolicy> = Api::namespaced(client, "new");
    policies
        .create(&post, &typed(policy("new", "web", "web", 80)))
        .await
        .unwrap();
    world.converge().await;
    let spec = json!({"spec": {"podSelector": {"matchLabels": {"app": "api"}}}});
    policies.patch("web", &patch, &Patch::Merge(spec)).await.unwrap();
    world.converge().await;

    world.api.delete(Kind::NetworkPolicy, "new", "web").await;
    world.converge().await;
    world.api.delete(Kind::Pod, "new", "web").await;
    let events = world.converge().await;
    assert!(matches!(&events[..], [Event::PodGone(_)]), "{events:?}");
    world.api.delete(Kind::Node, "", "n2").await;
    world.converge().await;
    world.api.delete(Kind::Namespace, "", "new").await;
    world.converge().await;
}

async fn what_changes_nothing_is_not_told(world: &mut World<impl Server>) {
    let mut same = pod("shop", "web-1", "web", "10.1.0.1");
    same["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}]);
    same["metadata"]["annotations"] = json!({"a": "b"});
    world.api.put(Kind::Pod, same).await;
    let mut same = node("n1", "192.0.2.1");
    same["status"]["images"] = json!([]);
    world.api.put(Kind::Node, same).await;
    // What does change comes after it.
    world.api.put(Kind::Pod, pod("shop", "after", "web", "10.1.0.99")).await;
    world.api.put(Kind::Node, node("after", "192.0.2.99")).await;
    let events = world.converge().await;
    let after = |event: &Event| match event {
        Event::Pod(pod) => &*pod.name.name == "after",
        Event::Node(node) => &*node.name == "after",
        _ => false,
    };
    // A pod of a real API server is made first, and has its address then.
    assert!(events.iter().all(after), "{events:?}");
    world.quiet(Duration::from_millis(300)).await;
}

async fn a_storm_on_one_object_is_told_once_and_no_watch_waits_for_the_loop(world: &mut World<impl Server>) {
    for at in 0..1000u32 {
        let address = format!("10.7.{}.{}", at / 250, at % 250);
        world.api.put(Kind::Pod, pod("shop", "web-1", "web", &address)).await;
    }
    world
        .api
        .put(Kind::NetworkPolicy, policy("shop", "last", "web", 1))
        .await;
    // The loop is away, and the watches go on.
    world.until("all is seen", |h| h.events >= 1000, Resource::Pods).await;
    let events = world.next().await;
    assert!(events.len() <= 2, "{} events", events.len());
    world.converge().await;
}

async fn a_call_that_is_dropped_loses_nothing(world: &mut World<impl Server>) {
    for at in 0..50u16 {
        let policy = policy("shop", &format!("p{at}"), "web", at + 1);
        world.api.put(Kind::NetworkPolicy, policy).await;
        for _ in 0..3 {
            let mut next = Box::pin(world.watches.next());
            let polled = std::future::poll_fn(|context| std::task::Poll::Ready(next.as_mut().poll(context))).await;
            drop(next);
            if let std::task::Poll::Ready(update) = polled {
                world.take(update);
            }
            tokio::task::yield_now().await;
        }
    }
    world.converge().await;
}
