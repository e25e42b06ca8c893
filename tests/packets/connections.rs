//! What becomes of TCP connections when policy, or connection tracking, changes under them.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use palisade::nft::Mode;
use palisade::sandbox::{Flow, Outcome, Place};

use crate::shop::{CLUSTER, DB_INGRESS, DENY_ALL, NONE, ONLY_API, ONLY_DB, SERVICES, WEB_EGRESS};
use crate::world::{Family, Result, World, must, node, pod, tcp, udp};

/// How long a connection that must not work is listened to. An answer takes less than a millisecond.
const SHORT: Duration = Duration::from_millis(500);

/// How long a connection that must work is waited for. What could not be delivered is sent again after as long as it has waited
/// already (TCP doubles its pauses), so this is more than any test keeps a connection still, on a busy machine too.
const LONG: Duration = Duration::from_secs(90);

pub(crate) fn open(world: &World, from: &Place, to: SocketAddr) -> Result<Flow> {
    let flow = world.sandbox.open(from, to)?;
    flow.map_err(|outcome| format!("{from} cannot connect to {to}: {outcome}").into())
}

/// The connections from `web` that the tests watch: to the other node, to the same node, and through a Service.
pub(crate) fn flows(world: &World, to: &str, service: Option<[&str; 2]>) -> Result<Vec<(String, Flow)>> {
    let mut flows = Vec::new();
    for (at, family) in Family::BOTH.into_iter().enumerate() {
        let mut targets = vec![world.socket(&pod(to), family, 80)?];
        if let Some(service) = service {
            targets.push(SocketAddr::new(service[at].parse()?, 8000));
        }
        for target in targets {
            let flow = open(world, &pod("web"), target)?;
            must(flow.name() == format!("shop/{to}"), "the wrong one answers")?;
            flows.push((format!("web to {target}"), flow));
        }
    }
    Ok(flows)
}

#[track_caller]
pub(crate) fn go_on(flows: &mut [(String, Flow)]) -> Result {
    must_all(flows, "stands still", |flow| flow.exchange(LONG) && flow.push(LONG))
}

#[track_caller]
pub(crate) fn stand_still(flows: &mut [(String, Flow)]) -> Result {
    must_all(flows, "goes on", |flow| !flow.push(SHORT) && !flow.exchange(SHORT))
}

/// All at once, because silence takes its time.
#[track_caller]
fn must_all(flows: &mut [(String, Flow)], otherwise: &str, check: impl Fn(&mut Flow) -> bool + Sync) -> Result {
    let failed: Vec<String> = std::thread::scope(|scope| {
        let checks: Vec<_> = (flows.iter_mut())
            .map(|(name, flow)| (name, scope.spawn(|| check(flow))))
            .collect();
        let met = |check: std::thread::ScopedJoinHandle<'_, bool>| matches!(check.join(), Ok(true));
        let failed = checks
            .into_iter()
            .filter_map(|(name, check)| (!met(check)).then(|| name.clone()));
        failed.collect()
    });
    must(failed.is_empty(), format!("{} {otherwise}", failed.join(", ")))
}

const DB_SERVICE: [&str; 2] = ["10.96.0.5", "fd00:10:96::5"];

/// An allowed connection stops with the transaction that no longer allows it, and goes on with the one that does.
pub(crate) fn a_change_stops_an_open_connection() -> Result {
    let mut world = World::of(&format!("{CLUSTER}{SERVICES}"), Mode::Enforce)?;
    world.policies(ONLY_DB)?;
    let mut flows = flows(&world, "db", Some(DB_SERVICE))?;
    go_on(&mut flows)?;
    for _ in 0..2 {
        world.policies(DENY_ALL)?;
        stand_still(&mut flows)?;
        world.policies(ONLY_DB)?;
        go_on(&mut flows)?;
    }
    // One end is enough, whichever it is.
    for (policies, peer) in [
        (DB_INGRESS, "from: [{podSelector: {matchLabels: {app: web"),
        (WEB_EGRESS, "to: [{podSelector: {matchLabels: {app: db"),
    ] {
        world.policies(policies)?;
        go_on(&mut flows)?;
        world.policies(&policies.replace(peer, &format!("{peer}-2")))?;
        stand_still(&mut flows)?;
    }
    Ok(())
}

/// The same between two pods of one node, where one table judges both ends.
pub(crate) fn a_change_stops_a_connection_within_a_node() -> Result {
    let mut world = World::of(&format!("{CLUSTER}{SERVICES}"), Mode::Enforce)?;
    world.policies(ONLY_API)?;
    let mut flows = flows(&world, "api", None)?;
    go_on(&mut flows)?;
    world.policies(ONLY_DB)?;
    stand_still(&mut flows)?;
    world.policies(ONLY_API)?;
    go_on(&mut flows)
}

/// Opened before the agent's first transaction, on nodes that track connections already: judged like any other.
pub(crate) fn a_connection_older_than_the_agent_is_judged() -> Result {
    let mut world = World::of(&format!("{CLUSTER}{SERVICES}"), Mode::Enforce)?;
    let mut flows = flows(&world, "db", Some(DB_SERVICE))?;
    go_on(&mut flows)?;
    world.policies(DENY_ALL)?;
    stand_still(&mut flows)?;
    world.policies(ONLY_DB)?;
    go_on(&mut flows)
}

/// Opened before anything tracked connections on these nodes: nobody knows who opened it, so it ends, allowed or not.
pub(crate) fn a_connection_older_than_tracking_must_be_opened_anew() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    let mut old = flows(&world, "db", None)?;
    go_on(&mut old)?;
    world.policies(ONLY_DB)?;
    stand_still(&mut old)?;
    go_on(&mut flows(&world, "db", None)?)
}

/// What an allowed connection answers passes, though its server may open nothing to its client, nor the client be reached.
pub(crate) fn replies_pass_and_the_reverse_does_not() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    world.policies(ONLY_DB)?;
    let (web, db) = (pod("web"), pod("db"));
    for family in Family::BOTH {
        for traffic in [tcp(80), udp(53)] {
            world.passes(&web, &db, traffic, family)?;
            world.dropped(&db, &web, traffic, family)?;
        }
    }
    let mut flows = flows(&world, "db", None)?;
    go_on(&mut flows)
}

/// Only the control shows that an entry was lost: without policy, the kernel picks the connection up from the middle.
pub(crate) fn a_lost_connection_is_not_picked_up_midway() -> Result {
    const TIMEOUT: &str = "netfilter/nf_conntrack_tcp_timeout_established";
    let mut world = World::of(&format!("{CLUSTER}{SERVICES}"), Mode::Enforce)?;
    if let Err(error) = world.netns(&node("a"))?.sysctl(&[(TIMEOUT, "432000")]) {
        println!("NOT RUN: a_lost_connection_is_not_picked_up_midway: {error}");
        return Ok(());
    }
    for (policies, survives) in [(NONE, true), (ONLY_DB, false), (DB_INGRESS, false), (WEB_EGRESS, false)] {
        for client_first in [true, false] {
            world.policies(policies)?;
            let mut flows = flows(&world, "db", None)?;
            go_on(&mut flows)?;
            for name in ["a", "b"] {
                world.netns(&node(name))?.sysctl(&[(TIMEOUT, "2")])?;
            }
            // The next packets take the new time-out over. On a busy machine an answer may come later than that: it is lost with its
            // connection then, or comes before the wait for the end of all.
            must_all(&mut flows, "", |flow| {
                flow.exchange(Duration::from_secs(10));
                true
            })?;
            sleep(Duration::from_millis(3200));
            for name in ["a", "b"] {
                world.netns(&node(name))?.sysctl(&[(TIMEOUT, "432000")])?;
            }
            let within = if survives { LONG } else { SHORT };
            let first = if client_first { "the client" } else { "the server" };
            let otherwise = match survives {
                true => format!("is not picked up when {first} speaks first: the control fails"),
                false => format!("was lost, and goes on when {first} speaks first"),
            };
            must_all(&mut flows, &otherwise, |flow| {
                let alive = if client_first {
                    flow.exchange(within)
                } else {
                    flow.push(within)
                };
                alive == survives
            })?;
            if !survives {
                stand_still(&mut flows)?;
            }
        }
        world.passes(&pod("web"), &pod("db"), tcp(80), Family::V4)?;
        world.passes(&pod("web"), &pod("db"), tcp(80), Family::V6)?;
    }
    Ok(())
}

/// Through a Service whose only pod is the client itself, whatever the policies.
pub(crate) fn a_pod_reaches_itself_through_its_service() -> Result {
    let mut world = World::of(&format!("{CLUSTER}{SERVICES}"), Mode::Enforce)?;
    world.policies(DENY_ALL)?;
    let (web, answered) = (pod("web"), Outcome::Answered("shop/web".to_owned()));
    for address in ["10.96.0.6", "fd00:10:96::6"] {
        world.check(&web, (address.parse()?, tcp(8000)), &answered)?;
        let mut flow = open(&world, &web, SocketAddr::new(address.parse()?, 8000))?;
        must(
            flow.exchange(LONG) && flow.push(LONG),
            "the connection to itself stands still",
        )?;
        // Another pod does not get there.
        world.check(&pod("db"), (address.parse()?, tcp(8000)), &Outcome::Silent)?;
    }
    Ok(())
}
