//! Random changes and random faults for a while; at the end the source holds what the API server holds.
//!
//! `PALISADE_SOAK_EVENTS` makes it longer, `PALISADE_SOAK_SEED` repeats one.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::api::{Api, Kind};
use crate::chaos::{Random, calm, change, number, trouble};
use crate::objects::{namespace, node, pod, policy};
use crate::world::{HASTY, World, small};

const EVENTS: u64 = 3000;

/// A change of each kind that undoes none of those before it.
fn last(api: &Api) {
    api.put(Kind::Namespace, namespace("last", "red"));
    api.put(Kind::Node, node("last", "192.0.2.99"));
    api.put(Kind::NetworkPolicy, policy("last", "last", "web", 80));
    api.put(Kind::Pod, pod("last", "last", "web", "10.1.9.9"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_the_end_is_right() {
    let seed = number("PALISADE_SOAK_SEED", u64::from(std::process::id()));
    println!("PALISADE_SOAK_SEED={seed}");
    let mut random = Random::new(seed);
    let mut world = World::watch_in(small().await, HASTY);
    world.strict = false;
    world.api.set_bookmarks(Duration::from_millis(200));
    for _ in 0..number("PALISADE_SOAK_EVENTS", EVENTS) {
        change(&world.api, &mut random);
        if random.one_in(40) {
            trouble(&world.api, &mut random, true);
        }
        if random.one_in(20) {
            // Also the end of an outage, a silence, a hold.
            calm(&world.api);
        }
        if random.one_in(10) {
            let patience = Duration::from_millis(u64::from(random.below(20)));
            let update = timeout(patience, world.watches.next()).await;
            update.into_iter().for_each(|update| drop(world.take(update)));
        }
        if random.one_in(10) {
            sleep(Duration::from_millis(u64::from(random.below(10)))).await;
        }
    }
    calm(&world.api);
    // What is known may be right while changes that undo each other are still to come. Of each kind this comes after them.
    last(&world.api);
    world.converge().await;
    world.quiet(Duration::from_millis(300)).await;
    let calls = world.api.calls().len();
    println!("{calls} calls, {} faults unmet", world.api.faults_left());
}
