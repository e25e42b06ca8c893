//! Random changes and random faults for a while; at the end the source holds what the API server holds.
//!
//! `PALISADE_SOAK_EVENTS` makes it longer, `PALISADE_SOAK_SEED` repeats one.

use std::time::Duration;

use rand_pcg::Pcg32;
use rand_pcg::rand_core::Rng;
use tokio::time::{sleep, timeout};

use crate::api::{Fault, Kind, Verb};
use crate::objects::{namespace, node, pod, policy};
use crate::world::{World, small};

const EVENTS: u64 = 3000;

struct Random(Pcg32);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0.next_u32() % bound
    }

    fn one_in(&mut self, many: u32) -> bool {
        self.below(many) == 0
    }

    fn of<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u32) as usize].clone()
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_the_end_is_right() {
    let seed = number("PALISADE_SOAK_SEED", u64::from(std::process::id()));
    println!("PALISADE_SOAK_SEED={seed}");
    let mut random = Random(Pcg32::new(seed, 1));
    let mut world = World::watch(small().await);
    world.strict = false;
    world.api.set_bookmarks(Duration::from_millis(200));
    for _ in 0..number("PALISADE_SOAK_EVENTS", EVENTS) {
        change(&world, &mut random);
        if random.one_in(40) {
            trouble(&world, &mut random);
        }
        if random.one_in(20) {
            // Also the end of an outage, a silence, a hold.
            calm(&world);
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
    calm(&world);
    world.converge().await;
    world.quiet(Duration::from_millis(300)).await;
    let calls = world.api.calls().len();
    println!("{calls} calls, {} faults unmet", world.api.faults_left());
}

fn change(world: &World, random: &mut Random) {
    let space = random.of(&["shop", "other", "third"]);
    let at = random.below(30);
    match random.below(20) {
        0 => world
            .api
            .put(Kind::Namespace, namespace(space, random.of(&["red", "blue"]))),
        1 => drop(world.api.delete(Kind::Namespace, "", space)),
        2 => world
            .api
            .put(Kind::Node, node(&format!("n{}", at % 3), &format!("192.0.2.{at}"))),
        3 => drop(world.api.delete(Kind::Node, "", &format!("n{}", at % 3))),
        4..=6 => {
            let name = format!("p{}", at % 10);
            world.api.put(
                Kind::NetworkPolicy,
                policy(space, &name, random.of(&["web", "db"]), at as u16 + 1),
            );
        }
        7 => drop(world.api.delete(Kind::NetworkPolicy, space, &format!("p{}", at % 10))),
        8..=11 => drop(world.api.delete(Kind::Pod, space, &format!("w{at}"))),
        _ => {
            let address = format!("10.1.{}.{}", random.below(4), at);
            world.api.put(
                Kind::Pod,
                pod(space, &format!("w{at}"), random.of(&["web", "db", "api"]), &address),
            );
        }
    }
}

fn trouble(world: &World, random: &mut Random) {
    let kind = random.of(&Kind::ALL);
    match random.below(10) {
        0 | 1 => world.api.cut(),
        2 | 3 => {
            world.api.compact();
            world.api.cut();
        }
        4 => world.api.set_outage(true),
        5 => world.api.set_duplicates(random.one_in(2)),
        6 => world.api.hold(kind, true),
        7 => world.api.set_streaming(random.one_in(2)),
        _ => {
            let verb = random.of(&[Verb::List, Verb::Watch, Verb::StreamingList]);
            let mut faults = vec![
                Fault::Status(410),
                Fault::Status(429),
                Fault::Status(500),
                Fault::Slow(Duration::from_millis(50)),
            ];
            if verb != Verb::List {
                faults.extend([
                    Fault::GoneEvent,
                    Fault::CutWithinEvent,
                    Fault::CloseAtOnce,
                    Fault::Garbage,
                ]);
            }
            if random.one_in(5) {
                faults = vec![Fault::Silence];
            }
            world.api.fault(kind, verb, 1, random.of(&faults));
            world.api.cut();
        }
    }
}

fn calm(world: &World) {
    world.api.set_outage(false);
    world.api.set_duplicates(false);
    for kind in Kind::ALL {
        world.api.hold(kind, false);
    }
}
