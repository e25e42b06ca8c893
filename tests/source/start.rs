//! From nothing to the first snapshot.

use std::time::Duration;

use palisade::agent::source::Resource;
use policy_compiler::cluster::Cluster;

use crate::api::{Api, Fault, Kind, Verb};
use crate::objects::{node, pod};
use crate::server::Server;
use crate::world::{NEVER, World, small};

#[tokio::test]
async fn nothing_is_given_out_before_every_watch_is_complete() {
    for kind in Kind::ALL {
        let api = small().await;
        api.fault(kind, Verb::StreamingList, 1, Fault::Held);
        let mut world = World::watch(api);
        for resource in Resource::ALL.into_iter().filter(|r| r.to_string() != kind.plural()) {
            world.until("is complete", |h| h.synced, resource).await;
        }
        world.quiet(Duration::from_millis(300)).await;
        assert!(!world.watches.is_synced());
        world.api.let_go();
        let events = world.next().await;
        assert!(events.is_empty());
        assert_eq!(world.cluster, Some(world.api.cluster().await), "in one piece");
        assert!(world.watches.is_synced());
    }
}

#[tokio::test]
async fn a_failing_watch_keeps_the_others_from_being_told() {
    let api = small().await;
    api.fault(Kind::Node, Verb::StreamingList, 3, Fault::Status(500));
    api.fault(Kind::Node, Verb::List, 3, Fault::Status(403));
    let mut world = World::watch(api);
    world
        .until(
            "forbidden",
            |h| h.error.as_ref().is_some_and(|e| e.contains("answers 403")),
            Resource::Nodes,
        )
        .await;
    assert!(world.cluster.is_none() && !world.watches.is_synced());
    world.converge().await;
    let health = &world.watches.health()[&Resource::Nodes];
    assert_eq!((health.failing_since, health.objects), (None, 1), "{health:?}");
}

#[tokio::test]
async fn an_empty_cluster_is_a_cluster() {
    for streaming in [true, false] {
        let api = Api::start().await;
        api.set_streaming(streaming);
        let mut world = World::watch(api);
        world.next().await;
        assert_eq!(world.cluster, Some(Cluster::default()));
        world.api.put(Kind::Pod, pod("shop", "web", "web", "10.1.0.1"));
        world.converge().await;
    }
}

#[tokio::test]
async fn lists_come_in_pages_where_there_are_no_streaming_lists() {
    let api = small().await;
    api.set_streaming(false);
    for at in 0..1200 {
        api.put(
            Kind::Pod,
            pod(
                "shop",
                &format!("many-{at}"),
                "many",
                &format!("10.2.{}.{}", at / 200, at % 200),
            ),
        );
    }
    let mut world = World::watch(api);
    world.converge().await;
    assert_eq!(world.api.count(Kind::Pod, Verb::StreamingList), 1, "one try is enough");
    let calls = world.api.calls();
    let pages = calls.iter().filter(|c| (c.kind, c.verb) == (Kind::Pod, Verb::List));
    let pages: Vec<&str> = pages.map(|c| c.query.as_str()).collect();
    assert_eq!(pages.len(), 3, "{pages:?}");
    assert!(pages.iter().all(|q| q.contains("limit=500")), "{pages:?}");
    world.api.put(Kind::Pod, pod("shop", "more", "web", "10.3.0.1"));
    world.converge().await;
    // Nothing but lists and watches, as the cluster role allows.
    for call in world.api.calls() {
        assert!(
            matches!(call.verb, Verb::List | Verb::Watch | Verb::StreamingList),
            "{call:?}"
        );
    }
}

#[tokio::test]
async fn a_list_that_changes_while_it_is_read_ends_up_right() {
    let api = small().await;
    api.set_streaming(false);
    for at in 0..1200 {
        api.put(Kind::Pod, pod("shop", &format!("many-{at}"), "many", "10.2.0.1"));
    }
    // The first page comes at once, the second when much has happened.
    api.fault(Kind::Pod, Verb::List, 1, Fault::Slow(Duration::ZERO));
    api.fault(Kind::Pod, Verb::List, 1, Fault::Held);
    let mut world = World::watch(api);
    let start = tokio::time::Instant::now();
    while world.api.count(Kind::Pod, Verb::List) < 2 {
        assert!(start.elapsed() < crate::world::SOON);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.api.delete(Kind::Pod, "shop", "many-0");
    world.api.delete(Kind::Pod, "shop", "web-1");
    world.api.put(Kind::Pod, pod("shop", "many-1", "few", "10.2.0.9"));
    world.api.put(Kind::Pod, pod("shop", "aaa", "few", "10.2.0.10"));
    world.api.let_go();
    world.converge().await;
}

#[tokio::test]
async fn a_page_whose_successor_is_forgotten_starts_the_list_anew() {
    let api = small().await;
    api.set_streaming(false);
    for at in 0..700 {
        api.put(Kind::Pod, pod("shop", &format!("many-{at}"), "many", "10.2.0.1"));
    }
    api.fault(Kind::Pod, Verb::List, 1, Fault::Slow(Duration::ZERO));
    api.fault(Kind::Pod, Verb::List, 1, Fault::Status(410));
    let mut world = World::watch(api);
    world.converge().await;
    assert_eq!(world.api.count(Kind::Pod, Verb::List), 4);
}

#[tokio::test]
async fn an_agent_hears_of_its_own_node_and_of_no_other() {
    for streaming in [true, false] {
        let api = small().await;
        api.set_streaming(streaming);
        // They would count as events.
        api.set_bookmarks(NEVER);
        api.put(Kind::Node, node("n2", "192.0.2.2"));
        let mut world = World::watch_of(api, "n1");
        world.next().await;
        let nodes = |world: &World| {
            let cluster = world.cluster.as_ref().expect("a snapshot");
            cluster
                .nodes
                .values()
                .map(|node| format!("{} {:?}", node.name, node.addresses))
                .collect::<Vec<_>>()
        };
        assert_eq!(nodes(&world), ["n1 [192.0.2.1]"]);
        world.api.put(Kind::Node, node("n2", "192.0.2.22"));
        world.api.put(Kind::Node, node("n3", "192.0.2.3"));
        world.api.delete(Kind::Node, "", "n2");
        world.api.put(Kind::Node, node("n1", "192.0.2.11"));
        assert_eq!(world.next().await.len(), 1);
        assert_eq!(nodes(&world), ["n1 [192.0.2.11]"]);
        assert_eq!(
            world.watches.health()[&Resource::Nodes].events,
            1,
            "the others were not even sent"
        );
        // A watch that begins anew asks for the same.
        world.api.cut();
        world.api.compact();
        world.api.put(Kind::Node, node("n3", "192.0.2.33"));
        world.api.delete(Kind::Node, "", "n1");
        assert_eq!(world.next().await.len(), 1);
        assert_eq!(nodes(&world), Vec::<String>::new());
    }
}
