//! Connections that are there and yet are not: handshakes that hang, streams that stop, resets.

use std::time::Duration;

use palisade::agent::source::{Resource, Timing};
use serde_json::json;
use tokio::time::Instant;

use crate::api::{Authority, Flow, Kind, Verb};
use crate::objects::pod;
use crate::tls::{behind, data};
use crate::world::{HASTY, TIMING, World};

async fn world(timing: Timing) -> World {
    let authority = Authority::new();
    let api = behind(&authority.server(&["127.0.0.1"])).await;
    let cluster = json!({"certificate-authority-data": data(authority.pem())});
    let kubeconfig = api.kubeconfig_of(cluster, json!({}));
    World::watch_as_in(api, &kubeconfig, timing)
}

async fn all_fail(world: &World, part: &str) {
    for resource in Resource::ALL {
        let told = |h: &palisade::agent::source::Health| {
            h.failing_since.is_some() && h.error.as_ref().is_some_and(|e| e.contains(part))
        };
        world.until(part, told, resource).await;
    }
}

#[tokio::test]
async fn a_handshake_that_hangs_is_given_up() {
    let mut world = world(HASTY).await;
    // Not a thread of the source has run yet.
    world.api.set_flow(Flow::Frozen);
    all_fail(&world, "no answer within 1500 ms").await;
    let accepted = world.api.seen().accepted;
    assert!(accepted >= 4 && world.api.calls().is_empty(), "{accepted} connections");
    world.api.set_flow(Flow::On);
    world.converge().await;
}

#[tokio::test]
async fn a_stream_that_stops_is_noticed_and_made_anew() {
    let mut world = world(HASTY).await;
    let start = Instant::now();
    world.converge().await;
    let before = world.cluster.clone();
    // Neither read nor written any more, and yet open.
    world.api.set_flow(Flow::Frozen);
    world.api.put(Kind::Pod, pod("shop", "web-2", "web", "10.1.0.3"));
    all_fail(&world, "the connection is taken for dead").await;
    assert!(start.elapsed() >= HASTY.idle, "{:?}", start.elapsed());
    world.quiet(Duration::from_millis(300)).await;
    assert_eq!(world.cluster, before);
    let lists = world.api.count(Kind::Pod, Verb::StreamingList);
    world.api.set_flow(Flow::On);
    world.converge().await;
    assert_eq!(
        world.api.count(Kind::Pod, Verb::StreamingList),
        lists,
        "it goes on where it was"
    );
}

#[tokio::test]
async fn connections_that_are_reset_are_made_anew() {
    let mut world = world(TIMING).await;
    world.converge().await;
    for at in 1..6 {
        world.api.reset();
        world
            .api
            .put(Kind::Pod, pod("shop", "web-2", "web", &format!("10.1.1.{at}")));
        world.converge().await;
    }
    assert_eq!(
        world.api.count(Kind::Pod, Verb::StreamingList),
        1,
        "it goes on where it was"
    );
    assert!(world.api.seen().accepted > 4);
}
