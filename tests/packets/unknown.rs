//! `--unknown-pods`: what a pod can do between its start and its policy, and that nothing of it is left with `drop`.

use std::thread::sleep;
use std::time::{Duration, Instant};

use palisade::manifests;
use palisade::nft::{Kernel, Mode, Settings, UnknownPods};
use palisade::sandbox::{Options, Place, Wiring, assign_addresses};
use policy_compiler::cluster::{Cluster, PodName};
use policy_compiler::ports::Traffic;

use crate::connections::{go_on, open, stand_still};
use crate::faults::POLICIES;
use crate::flood::{Flood, Lane};
use crate::shop::{CLUSTER, NONE};
use crate::world::{Family, Result, World, loaded, must, node, pod, possible, tcp, udp};

fn dropping(mode: Mode) -> Settings {
    Settings {
        unknown_pods: UnknownPods::Drop,
        ..Settings::from(mode)
    }
}

/// The shop as it is, under these policies, and as it was before anybody knew of `web`.
struct Shop {
    world: World,
    with: Cluster,
    without: Cluster,
}

impl Shop {
    /// Built with all of its pods; the enforcers know of `web` only when they are told.
    fn new(settings: Settings, wiring: Wiring, policies: &str) -> Result<Shop> {
        let mut with = manifests::parse("cluster.yaml", CLUSTER)
            .map_err(|e| e.to_string())?
            .cluster;
        assign_addresses(&mut with)?;
        let options = Options {
            wiring,
            ..Options::default()
        };
        let staged = with.clone();
        with.policies = loaded(policies)?.policies;
        let mut without = with.clone();
        without.pods.remove(&PodName {
            namespace: "shop".into(),
            name: "web".into(),
        });
        let mut world = World::stage(&staged, without.clone(), &options, settings)?;
        world.follow(without.clone())?;
        Ok(Shop { world, with, without })
    }

    fn know(&mut self) -> Result {
        self.world.follow(self.with.clone())
    }

    fn forget(&mut self) -> Result {
        self.world.follow(self.without.clone())
    }

    /// What node `a` has counted as of nobody.
    fn counted(&self) -> Result<Option<u64>> {
        self.world.kernel("a", Kernel::unknown)
    }
}

fn lane(from: Place, to: Place, port: u16, passes: bool) -> Lane {
    Lane { from, to, port, passes }
}

/// Nothing of these is allowed by the policies of `web`.
fn denied(passes: bool) -> Vec<Lane> {
    vec![
        lane(pod("web"), Place::Client, 5001, passes),
        lane(Place::Client, pod("web"), 5000, passes),
        lane(pod("api"), pod("web"), 5000, passes),
    ]
}

/// By default a pod that nobody knows yet does what it likes, and from the transaction on that makes it known what policy allows.
pub(crate) fn an_unknown_pod_is_let_pass_by_default() -> Result {
    let mut shop = Shop::new(Settings::default(), Wiring::Routed, POLICIES)?;
    // The egress of `api` is isolated.
    let lanes = |passes| denied(passes)[..2].to_vec();
    let flood = Flood::start(&shop.world, &lanes(true), Duration::from_millis(1))?;
    sleep(Duration::from_millis(300));
    flood.stop(&shop.world)?.flawless()?;
    must(shop.counted()?.is_none(), "there are rules for unknown pods")?;
    shop.know()?;
    let flood = Flood::start(&shop.world, &lanes(false), Duration::from_millis(1))?;
    sleep(Duration::from_millis(300));
    flood.stop(&shop.world)?.flawless()
}

/// With `drop` nothing passes, to or from, until the pod is known; and then only what policy allows, also at the very moment:
/// over fifty times of becoming known and unknown again, under a flood.
pub(crate) fn an_unknown_pod_passes_nothing() -> Result {
    for wiring in [Wiring::Routed, Wiring::Bridge] {
        if !possible(wiring, "an_unknown_pod_passes_nothing over a bridge") {
            continue;
        }
        let mut shop = Shop::new(dropping(Mode::Enforce), wiring, POLICIES)?;
        let allowed = lane(pod("web"), Place::Client, 5000, true);
        let within = lane(pod("web"), pod("api"), 5000, true);

        let mut nothing = denied(false);
        nothing.extend([&allowed, &within].map(|lane| Lane {
            passes: false,
            ..lane.clone()
        }));
        let flood = Flood::start(&shop.world, &nothing, Duration::from_millis(1))?;
        sleep(Duration::from_millis(300));
        let tally = flood.stop(&shop.world)?;
        tally.flawless()?;
        // Node `a` counts each of them, whichever end it is; those of `api` are dropped as well, but to `web`, before its own policy.
        let start = Instant::now();
        let mut counted = 0;
        while counted < tally.sent() && start.elapsed() < Duration::from_secs(30) {
            counted = shop.counted()?.ok_or("no rules for unknown pods")?;
        }
        must(
            counted == tally.sent(),
            format!("{counted} of {} packets were counted", tally.sent()),
        )?;

        let mut lanes = denied(false);
        lanes.extend([allowed.clone(), within.clone()]);
        let flood = Flood::start(&shop.world, &lanes, Duration::ZERO)?;
        for _ in 0..50 {
            shop.know()?;
            shop.forget()?;
        }
        shop.know()?;
        flood.round()?;
        let tally = flood.stop(&shop.world)?;
        println!(
            "{wiring:?}: known and unknown 50 times: {} datagrams, {} leaked",
            tally.sent(),
            tally.leaked()
        );
        let wrong = tally
            .counts
            .iter()
            .filter(|count| count.lane().passes == (count.arrived == 0));
        let wrong: Vec<String> = wrong.map(ToString::to_string).collect();
        must(wrong.is_empty(), wrong.join("\n"))?;
        must(tally.leaked() == 0, "packets leaked")?;

        // Known for good, nothing that is allowed is lost.
        let flood = Flood::start(&shop.world, &lanes, Duration::from_millis(1))?;
        sleep(Duration::from_millis(300));
        flood.stop(&shop.world)?.flawless()?;
    }
    Ok(())
}

/// A running connection stops with the transaction in which nobody knows the pod any more, in both directions, and goes on when it is
/// known again. Its own node reaches the pod all the while, and is reached.
pub(crate) fn a_pod_that_is_gone_stops_at_once() -> Result {
    let mut shop = Shop::new(dropping(Mode::Enforce), Wiring::Routed, NONE)?;
    shop.know()?;
    let mut flows = Vec::new();
    for family in Family::BOTH {
        for (from, to) in [("web", "db"), ("db", "web"), ("api", "web")] {
            let to = shop.world.socket(&pod(to), family, 80)?;
            flows.push((format!("{from} to {to}"), open(&shop.world, &pod(from), to)?));
        }
    }
    go_on(&mut flows)?;
    for _ in 0..2 {
        shop.forget()?;
        stand_still(&mut flows)?;
        for family in Family::BOTH {
            let world = &shop.world;
            for traffic in [tcp(80), udp(53), Traffic::Other] {
                world.dropped(&pod("api"), &pod("web"), traffic, family)?;
                world.dropped(&pod("web"), &pod("api"), traffic, family)?;
                world.passes(&node("a"), &pod("web"), traffic, family)?;
            }
            world.dropped(&Place::Client, &pod("web"), tcp(80), family)?;
            world.passes(&pod("web"), &node("a"), Traffic::Other, family)?;
            // Other pods are known.
            world.passes(&pod("api"), &pod("db"), tcp(80), family)?;
        }
        shop.know()?;
        go_on(&mut flows)?;
    }
    Ok(())
}

/// In audit mode it is counted and recorded, and passes.
pub(crate) fn audit_lets_unknown_pods_pass_and_tells() -> Result {
    let shop = Shop::new(dropping(Mode::Audit), Wiring::Routed, NONE)?;
    let world = &shop.world;
    for family in Family::BOTH {
        world.passes(&pod("web"), &pod("db"), tcp(80), family)?;
        let (web, db) = (world.address(&pod("web"), family)?, world.address(&pod("db"), family)?);
        let recorded = world.kernel("a", Kernel::denials)?.unwrap_or_default();
        let found = recorded
            .iter()
            .any(|denial| denial.from == web && denial.to == db && denial.port == Some(80));
        must(found, format!("{recorded:?}"))?;
    }
    let counted = shop.counted()?;
    must(counted >= Some(2), format!("{counted:?} packets were counted"))
}

/// An agent whose node is not known, or has no ranges, drops nothing of it; as soon as it has, it does.
pub(crate) fn without_a_range_nothing_is_dropped() -> Result {
    let mut shop = Shop::new(dropping(Mode::Enforce), Wiring::Routed, NONE)?;
    let ranges = shop.without.nodes.clone();
    shop.world.dropped(&pod("web"), &pod("api"), tcp(80), Family::V4)?;
    shop.without.nodes.clear();
    shop.forget()?;
    shop.world.passes(&pod("web"), &pod("api"), tcp(80), Family::V4)?;
    shop.without.nodes = ranges;
    shop.forget()?;
    shop.world.dropped(&pod("web"), &pod("api"), tcp(80), Family::V4)
}
