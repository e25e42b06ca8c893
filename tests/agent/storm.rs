//! A storm of events: the agent gathers them, and none of them waits until it is over.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::api::{Api, Kind};
use super::cluster::runtime;
use super::held::{agent, difference, value};
use super::objects::{namespace, node, pod, policy};
use super::{in_a_namespace, table, until};

/// How long it lasts at least, and how many events a second it has where the machine can make as many.
const LASTS: Duration = Duration::from_secs(4);
const PER_SECOND: u64 = 1000;

/// How many transactions may come before a change is in the kernel: one or two when all is well. Not how many events: after a stall
/// of the machine thousands of them come at once.
const SOON: u64 = 200;

/// How many events a transaction brings at least, on the average.
const GATHERED: u64 = 5;

const APPLIES: &str = "palisade_applies_total{outcome=\"changed\"}";

#[test]
fn a_storm_neither_starves_nor_thrashes() {
    in_a_namespace("storm::a_storm_neither_starves_nor_thrashes", || {
        let runtime = runtime();
        let api = runtime.block_on(Api::start());
        api.put(Kind::Namespace, namespace("shop", "red"));
        api.put(Kind::Node, node("n1", "192.0.2.1"));
        api.put(Kind::Pod, pod("shop", "web", "web", "10.1.0.1"));
        api.put(Kind::NetworkPolicy, policy("shop", "web", "web", 8080));
        let folder = tempfile::tempdir().expect("directory");
        let agent = agent(&api, "n1", &folder);
        agent.until_ready();
        let before = value(&agent, APPLIES);

        let (over, events) = (AtomicBool::new(false), AtomicU64::new(0));
        let began = Instant::now();
        thread::scope(|scope| {
            // However this ends, the storm does.
            let _calm = Calm(&over);
            scope.spawn(|| storm(&api, &over, &events));
            until("it storms", || events.load(Ordering::Relaxed) > PER_SECOND);
            assert!(rules().contains("8080") && !rules().contains("9090"));
            let changed = value(&agent, APPLIES);
            api.put(Kind::NetworkPolicy, policy("shop", "web", "web", 9090));
            until("a change is in the kernel while it storms", || {
                rules().contains("9090") && !rules().contains("8080")
            });
            let since = value(&agent, APPLIES) - changed;
            assert!(since <= SOON, "{since} transactions have overtaken it");
            until("and an address of the storm itself", || rules().contains("10.7."));
            thread::sleep(LASTS.saturating_sub(began.elapsed()));
        });
        let (events, took) = (events.into_inner(), began.elapsed());
        until("it has converged", || difference(&runtime, &api, "n1").is_none());
        let applies = value(&agent, APPLIES) - before;
        println!("{events} events in {took:.1?}, {applies} transactions");
        // Events are gathered for fifteen milliseconds and for as long as nft works, so one for fifteen events where that is no time
        // at all, and for fifty where it is slow; a machine that is busy elsewhere makes pauses, and each of them may give one more.
        assert!(
            applies >= 2 && applies * GATHERED <= events,
            "{applies} transactions for {events} events"
        );
        assert_eq!(value(&agent, "palisade_applies_total{outcome=\"failed\"}"), 0);
        until("all events are told to have been seen", || {
            value(&agent, "palisade_watch_events_total{resource=\"pods\"}") >= events
        });
        assert!(agent.stop().success());
    });
}

fn rules() -> String {
    table().unwrap_or_default()
}

/// Ends the storm when it goes out of scope.
struct Calm<'a>(&'a AtomicBool);

impl Drop for Calm<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Twenty pods change their labels and addresses by turns.
fn storm(api: &Api, over: &AtomicBool, events: &AtomicU64) {
    let began = Instant::now();
    for at in 0.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let address = format!("10.7.{}.{}", at / 250 % 250, at % 250);
        let mut pod = pod("shop", &format!("p{}", at % 20), "any", &address);
        pod["metadata"]["labels"]["app"] = json!(if at % 40 < 20 { "web" } else { "other" });
        pod["spec"]["nodeName"] = json!(if at % 2 == 0 { "n1" } else { "n2" });
        api.put(Kind::Pod, pod);
        events.store(at, Ordering::Relaxed);
        let due = Duration::from_millis(at * 1000 / PER_SECOND);
        thread::sleep(due.saturating_sub(began.elapsed()));
    }
}
