//! Faults, one by one and by name: afterwards the source holds what the API server holds.

use std::time::Duration;

use palisade::agent::source::{Resource, Timing};
use policy_compiler::compile::Event;
use tokio::time::{Instant, sleep, timeout};

use crate::api::{Fault, Kind, Verb};
use crate::objects::{namespace, node, pod, policy};
use crate::world::{HASTY, NEVER, SOON, TIMING, World, small};

/// A watch that is served late does not count as one that lived long and may be made anew at once.
const NONE_LIVES_LONG: Timing = Timing { long: NEVER, ..TIMING };

/// Changes of the API server that a watch must bring in.
fn change(world: &World, at: u16) {
    let address = format!("10.4.0.{at}");
    world
        .api
        .put(Kind::Pod, pod("shop", &format!("web-{at}"), "web", &address));
    world
        .api
        .put(Kind::Pod, pod("shop", "db-1", &format!("db{at}"), "10.1.0.2"));
    world.api.delete(Kind::Pod, "shop", "web-1");
    world
        .api
        .put(Kind::NetworkPolicy, policy("shop", "db", "db", 5000 + at));
}

/// A change of each kind, seen.
async fn move_on(world: &mut World) {
    world.api.put(Kind::Pod, pod("shop", "web-9", "web", "10.4.0.9"));
    world.api.put(Kind::NetworkPolicy, policy("shop", "db", "db", 5009));
    world.api.put(Kind::Namespace, namespace("moved", "blue"));
    world.api.put(Kind::Node, node("moved", "192.0.2.99"));
    world.converge().await;
}

/// A fault in a watch that goes on from a version, and one in a list that has become due.
async fn check(fault: Fault) {
    let timing = match fault {
        Fault::Silence | Fault::SilenceAfterHead => HASTY,
        _ => TIMING,
    };
    let mut world = World::synced_in(timing).await;
    // After some the watch goes on, or a list comes next: they are met once.
    let times = match fault {
        Fault::Status(410) | Fault::GoneEvent | Fault::Garbage | Fault::TooLongLine | Fault::Slow(_) => 1,
        _ => 2,
    };
    world.api.fault(Kind::Pod, Verb::Watch, times, fault.clone());
    world.api.cut();
    change(&world, 1);
    world.converge().await;
    met(&world).await;

    for streaming in [true, false] {
        world.api.set_streaming(streaming);
        world.api.cut();
        world.api.compact();
        let verb = if streaming { Verb::StreamingList } else { Verb::List };
        // What makes no sense in a page of a list is a fault of watches only.
        let fault = match fault {
            Fault::Garbage | Fault::TooLongLine | Fault::GoneEvent | Fault::CutWithinEvent | Fault::CloseAtOnce
                if !streaming =>
            {
                Fault::Status(500)
            }
            Fault::SilenceAfterHead if !streaming => Fault::Silence,
            ref fault => fault.clone(),
        };
        world.api.fault(Kind::Pod, verb, 1, fault);
        change(&world, 2 + u16::from(streaming));
        world.converge().await;
        met(&world).await;
    }
    // And all goes on as if nothing had been.
    world.api.put(Kind::Pod, pod("shop", "after", "web", "10.4.1.1"));
    let events = world.converge().await;
    assert!(matches!(&events[..], [Event::Pod(_)]), "{events:?}");
}

async fn met(world: &World) {
    let start = Instant::now();
    while world.api.faults_left() > 0 {
        assert!(
            start.elapsed() < SOON,
            "{} faults have not been met",
            world.api.faults_left()
        );
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn status_410() {
    check(Fault::Status(410)).await;
}

#[tokio::test]
async fn error_event_410() {
    check(Fault::GoneEvent).await;
}

#[tokio::test]
async fn status_500() {
    check(Fault::Status(500)).await;
}

#[tokio::test]
async fn status_503() {
    check(Fault::Status(503)).await;
}

#[tokio::test]
async fn status_403_for_a_while() {
    check(Fault::Status(403)).await;
}

#[tokio::test]
async fn cut_within_an_event() {
    check(Fault::CutWithinEvent).await;
}

#[tokio::test]
async fn closed_at_once() {
    check(Fault::CloseAtOnce).await;
}

#[tokio::test]
async fn accepted_and_never_answered() {
    check(Fault::Silence).await;
}

#[tokio::test]
async fn answered_and_then_silent() {
    check(Fault::SilenceAfterHead).await;
}

#[tokio::test]
async fn slow_answers() {
    check(Fault::Slow(Duration::from_millis(600))).await;
}

#[tokio::test]
async fn a_line_that_is_no_event() {
    check(Fault::Garbage).await;
}

#[tokio::test]
async fn a_line_that_is_too_long() {
    check(Fault::TooLongLine).await;
}

#[tokio::test]
async fn too_many_requests_are_not_followed_by_more() {
    let mut world = World::synced().await;
    world.api.fault(Kind::Pod, Verb::Watch, 1, Fault::TooManyRequests(3));
    let before = world.api.count(Kind::Pod, Verb::Watch);
    world.api.cut();
    change(&world, 1);
    let start = Instant::now();
    met(&world).await;
    sleep(Duration::from_millis(1500)).await;
    let asked = world.api.count(Kind::Pod, Verb::Watch) - before;
    // After a pause of the whole machine that time may be over.
    assert!(
        asked == 1 || start.elapsed() >= Duration::from_secs(3),
        "asked {asked} times, and not after as long as the API server asks for"
    );
    world.converge().await;
    assert!(start.elapsed() >= Duration::from_secs(3));
}

#[tokio::test]
async fn a_new_list_is_told_as_a_difference_and_only_when_it_is_complete() {
    for streaming in [true, false] {
        let mut world = World::synced().await;
        world.api.set_streaming(streaming);
        world.api.set_outage(true);
        world.api.delete(Kind::Pod, "shop", "web-1");
        world.api.put(Kind::Pod, pod("shop", "new", "web", "10.1.0.9"));
        world.api.compact();
        // The list breaks off after some of its objects: nothing of it may be told.
        let verb = if streaming { Verb::StreamingList } else { Verb::List };
        let fault = if streaming {
            Fault::CutWithinEvent
        } else {
            Fault::Status(500)
        };
        world.api.fault(Kind::Pod, verb, 1, fault);
        world.api.fault(Kind::Pod, verb, 1, Fault::Held);
        world.api.set_outage(false);
        met(&world).await;
        world.quiet(Duration::from_millis(400)).await;
        world.api.let_go();
        let events = world.converge().await;
        assert!(
            matches!(&events[..], [Event::PodGone(gone), Event::Pod(_)] | [Event::Pod(_), Event::PodGone(gone)]
            if &*gone.name == "web-1"),
            "{events:?}"
        );
    }
}

#[tokio::test]
async fn events_that_come_twice_are_told_once() {
    let mut world = World::synced().await;
    world.api.set_duplicates(true);
    world.api.put(Kind::Pod, pod("shop", "web-2", "web", "10.1.0.3"));
    world.api.delete(Kind::Pod, "shop", "db-1");
    world.converge().await;
    // And the same once more, after everything has been sent again from an older version.
    world.api.cut();
    world.quiet(Duration::from_millis(800)).await;
}

#[tokio::test]
async fn kinds_may_overtake_each_other() {
    let mut world = World::synced().await;
    world.api.hold(Kind::Pod, true);
    world.api.hold(Kind::Namespace, true);
    world.api.put(Kind::Namespace, namespace("late", "red"));
    world.api.put(Kind::Pod, pod("late", "web", "web", "10.1.0.9"));
    world.api.put(Kind::NetworkPolicy, policy("late", "web", "web", 80));
    let events = world.next().await;
    assert!(matches!(&events[..], [Event::Policy(_)]), "{events:?}");
    world.api.hold(Kind::Pod, false);
    let events = world.next().await;
    assert!(matches!(&events[..], [Event::Pod(_)]), "{events:?}");
    world.api.hold(Kind::Namespace, false);
    world.converge().await;
}

/// How many tries there can be in this time, the first three of which come sooner than the rest.
fn tries(within: Duration) -> usize {
    3 + (within.as_millis() / (TIMING.longest_delay / 2).as_millis()) as usize
}

/// So many more watches are asked for.
async fn asked_again(world: &World, kind: Kind, times: usize) {
    let (before, start) = (world.api.count(kind, Verb::Watch), Instant::now());
    while world.api.count(kind, Verb::Watch) < before + times {
        assert!(start.elapsed() < SOON, "{kind:?} is not asked for any more");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_outage_freezes_what_is_known_and_the_server_is_not_hammered() {
    let mut world = World::synced_in(NONE_LIVES_LONG).await;
    world.api.set_outage(true);
    change(&world, 1);
    let refused = |h: &palisade::agent::source::Health| {
        h.failing_since.is_some() && h.error.as_ref().is_some_and(|e| e.contains("answers 503"))
    };
    for resource in Resource::ALL {
        world.until("fails", refused, resource).await;
    }
    let (before, start) = (world.api.calls().len(), Instant::now());
    world.quiet(Duration::from_secs(2)).await;
    let calls = world.api.calls().len() - before;
    // Four watches, each with at most 0.4 s (and at least half of that) between two tries.
    let most = 4 * tries(start.elapsed());
    assert!(calls <= most, "{calls} calls in {:?}", start.elapsed());
    for kind in Kind::ALL {
        asked_again(&world, kind, 1).await;
    }
    let health = &world.watches.health()[&Resource::Pods];
    assert_eq!((health.synced, health.objects), (true, 2), "{health:?}");
    assert!(refused(health), "{health:?}");
    let lists = world.api.count(Kind::Pod, Verb::StreamingList);
    world.api.set_outage(false);
    world.converge().await;
    assert_eq!(
        world.api.count(Kind::Pod, Verb::StreamingList),
        lists,
        "the watches go on where they were"
    );
    for resource in Resource::ALL {
        world.until("recovers", |h| h.failing_since.is_none(), resource).await;
    }
}

#[tokio::test]
async fn a_server_that_closes_every_watch_at_once_is_not_hammered() {
    let mut world = World::synced_in(NONE_LIVES_LONG).await;
    world.api.fault(Kind::Pod, Verb::Watch, 1000, Fault::CloseAtOnce);
    world.api.cut();
    let (before, start) = (world.api.count(Kind::Pod, Verb::Watch), Instant::now());
    world.quiet(Duration::from_secs(2)).await;
    let calls = world.api.count(Kind::Pod, Verb::Watch) - before;
    let most = tries(start.elapsed());
    assert!(calls <= most, "{calls} calls in {:?}", start.elapsed());
    asked_again(&world, Kind::Pod, 2).await;
}

#[tokio::test]
async fn half_dead_connections_are_noticed() {
    let mut world = World::synced_in(HASTY).await;
    // Each watch has moved on, so it gets bookmarks.
    move_on(&mut world).await;
    world.api.set_silent(true);
    change(&world, 1);
    for resource in Resource::ALL {
        world.until("is noticed", |h| h.failing_since.is_some(), resource).await;
    }
    world.quiet(Duration::from_millis(100)).await;
    world.api.set_silent(false);
    world.converge().await;
}

#[tokio::test]
async fn a_watch_on_which_nothing_has_happened_is_asked_for_again_without_complaint() {
    // Only the silence of a watch is short: whoever asks again gets an answer in the end.
    let idle = HASTY.idle;
    let mut world = World::synced_in(Timing { idle, ..TIMING }).await;
    let count = |world: &World, verb| Kind::ALL.map(|kind| world.api.count(kind, verb));
    let [lists, before] = [Verb::StreamingList, Verb::Watch].map(|verb| count(&world, verb));
    let failures = |world: &World| Resource::ALL.map(|resource| world.watches.health()[&resource].failures);
    let failed = failures(&world);
    let start = Instant::now();
    let (mut asked, mut fewest) = (before, 0);
    while fewest < 2 {
        assert!(start.elapsed() < SOON, "{before:?}, {asked:?}");
        world.quiet(Duration::from_millis(100)).await;
        asked = count(&world, Verb::Watch);
        fewest = asked.iter().zip(before).map(|(now, then)| now - then).min().unwrap();
    }
    // What lasts so long is asked for once in that time, and once more by whoever was about to.
    let most = 1 + start.elapsed().div_duration_f64(idle) as usize;
    assert!(
        asked.iter().zip(before).all(|(now, then)| now - then <= most),
        "{before:?}, {asked:?}, {:?}",
        start.elapsed()
    );
    assert_eq!(failures(&world), failed);
    // And what happens then is followed.
    move_on(&mut world).await;
    assert_eq!(count(&world, Verb::StreamingList), lists);
}

#[tokio::test]
async fn bookmarks_move_a_quiet_watch_on() {
    let api = small().await;
    api.set_bookmarks(Duration::from_millis(200));
    let mut world = World::watch(api);
    world.converge().await;
    // All that happened is forgotten, but the bookmarks that follow say up to where nothing is missing.
    let events = world.watches.health()[&Resource::Nodes].events;
    for at in 0..20u16 {
        world
            .api
            .put(Kind::NetworkPolicy, policy("shop", "db", "db", 6000 + at));
    }
    world.api.compact();
    world.converge().await;
    // Nothing happens to nodes: what comes is a bookmark.
    world
        .until("gets a bookmark", |h| h.events > events, Resource::Nodes)
        .await;
    world.quiet(Duration::from_millis(300)).await;
    let lists = world.api.count(Kind::Node, Verb::StreamingList);
    world.api.cut();
    world.api.put(Kind::Node, node("n2", "192.0.2.2"));
    world.converge().await;
    assert_eq!(world.api.count(Kind::Node, Verb::StreamingList), lists);
}

#[tokio::test]
async fn a_token_that_has_expired_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "one").unwrap();
    let api = small().await;
    api.set_token(Some("one"));
    let mut world = World::watch_with(api, Some(file.clone()));
    world.converge().await;
    // The new token is there before the old one is refused, as in a pod; kube alone would go on with the old one for a minute.
    std::fs::write(&file, "two").unwrap();
    world.api.set_token(Some("two"));
    change(&world, 1);
    world.converge().await;
    // And when it comes late.
    world.api.set_token(Some("three"));
    world
        .until(
            "is refused",
            |h| h.error.as_ref().is_some_and(|e| e.contains("answers 401")),
            Resource::Pods,
        )
        .await;
    change(&world, 2);
    std::fs::write(&file, "three").unwrap();
    world.converge().await;
}

#[tokio::test]
async fn watches_end_with_their_owner() {
    let World { api, watches, .. } = World::synced().await;
    drop(watches);
    sleep(Duration::from_millis(200)).await;
    let before = api.calls().len();
    api.cut();
    sleep(Duration::from_millis(600)).await;
    assert_eq!(api.calls().len(), before);
}

#[tokio::test]
async fn a_server_that_comes_up_late_is_waited_for() {
    let api = small().await;
    api.set_silent(true);
    let mut world = World::watch_in(api, HASTY);
    assert!(
        timeout(Duration::from_millis(2000), world.watches.next())
            .await
            .is_err()
    );
    world.api.set_silent(false);
    world.converge().await;
}
