//! Verdicts kept in marks: they are used, they end with the policy that gave them, numbers that come round revive nothing, and
//! nobody else's bits are touched. That all other tests pass with marks too, `main` sees to.

use std::thread::sleep;
use std::time::{Duration, Instant};

use palisade::nft::{MarkMask, Mode};
use palisade::sandbox::Outcome;
use policy_compiler::cluster::Cluster;

use crate::connections::{flows, go_on, stand_still};
use crate::shop::{CLUSTER, DENY_ALL, ONLY_DB};
use crate::world::{Family, Result, World, loaded, must, node, pod, tcp, with_marks};

/// Three generations: 1, 2, 3, and 1 again.
const MASK: u32 = 0x0003_0000;

fn world() -> Result<World> {
    with_marks(Some(MarkMask::new(MASK)?), || World::of(CLUSTER, Mode::Enforce))
}

/// Denies everything on both nodes, each time in other rules.
fn denials(step: u8) -> Result<Cluster> {
    let nobody = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nobody, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress:
  - from: [{ipBlock: {cidr: 192.0.2.STEP/32}}]
";
    loaded(&format!("{DENY_ALL}{}", nobody.replace("STEP", &step.to_string())))
}

/// The marks of the connections to TCP port 80 that a node tracks; none where the kernel does not show them.
fn marks(world: &World, name: &str) -> Result<Option<Vec<u32>>> {
    let read = || std::fs::read_to_string("/proc/thread-self/net/nf_conntrack");
    let Ok(text) = world.netns(&node(name))?.run(read)? else {
        println!("NOT RUN: looking at the marks: this kernel has no /proc/net/nf_conntrack");
        return Ok(None);
    };
    let to_web_server = text.lines().filter(|line| line.contains("dport=80 "));
    let mark = |line: &str| {
        line.split_once(" mark=")
            .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
    };
    Ok(Some(to_web_server.map(|line| mark(line).unwrap_or(0)).collect()))
}

/// Waits until the marks of these connections are as they should be: a listing that others' connections disturb may lack some.
fn await_marks(world: &World, name: &str, what: &str, met: impl Fn(&[u32]) -> bool) -> Result {
    let start = Instant::now();
    while let Some(marks) = marks(world, name)? {
        if met(&marks) {
            break;
        }
        must(
            start.elapsed() < Duration::from_secs(20),
            format!("node {name}, {what}: marks {marks:x?}"),
        )?;
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// When every chain that judges drops everything, what was judged before still passes, and nothing else does.
pub(crate) fn judged_connections_pass_by_their_mark() -> Result {
    let mut world = world()?;
    world.policies(ONLY_DB)?;
    let mut flows = flows(&world, "db", None)?;
    go_on(&mut flows)?;
    for name in ["a", "b"] {
        for side in ["ingress4", "ingress6", "egress4", "egress6"] {
            world
                .netns(&node(name))?
                .nft(&format!("insert rule inet palisade {side} drop\n"))?;
        }
        // Repaired by nobody, for nobody looks.
        await_marks(&world, name, "judged", |marks| {
            marks.iter().filter(|mark| *mark & MASK != 0).count() >= flows.len()
        })?;
    }
    go_on(&mut flows)?;
    for family in Family::BOTH {
        world.dropped(&pod("web"), &pod("db"), tcp(80), family)?;
    }
    Ok(())
}

/// The transaction that changes policy is enough, either way; what follows it makes packets cheaper, and nothing else.
pub(crate) fn a_change_needs_nothing_after_its_transaction() -> Result {
    let mut world = world()?;
    world.policies(ONLY_DB)?;
    let mut flows = flows(&world, "db", None)?;
    go_on(&mut flows)?;
    for _ in 0..2 {
        world.apply(&loaded(DENY_ALL)?)?;
        stand_still(&mut flows)?;
        world.apply(&loaded(ONLY_DB)?)?;
        go_on(&mut flows)?;
        world.verify()?;
        go_on(&mut flows)?;
    }
    Ok(())
}

/// A connection is allowed once, and then denied while all numbers are used again and again: also when its own comes round.
pub(crate) fn a_number_that_comes_round_revives_nothing() -> Result {
    let mut world = world()?;
    world.policies(ONLY_DB)?;
    let mut flows = flows(&world, "db", None)?;
    go_on(&mut flows)?;
    for step in 1..=7 {
        world.enforce(&denials(step)?)?;
        stand_still(&mut flows)?;
    }
    world.policies(ONLY_DB)?;
    go_on(&mut flows)
}

/// The same when an agent starts where another has marked connections.
pub(crate) fn a_new_agent_trusts_no_mark() -> Result {
    let mut world = world()?;
    world.policies(ONLY_DB)?;
    let mut flows = flows(&world, "db", None)?;
    go_on(&mut flows)?;
    world.restart();
    world.apply(&loaded(DENY_ALL)?)?;
    stand_still(&mut flows)?;
    world.verify()?;
    stand_still(&mut flows)?;
    world.restart();
    world.policies(ONLY_DB)?;
    go_on(&mut flows)
}

/// Another program's bits of the mark stay through marking and clearing, on every connection; ours leave idle connections.
pub(crate) fn other_bits_are_left_alone() -> Result {
    let mut world = world()?;
    let other = "table inet other { chain prerouting { type filter hook prerouting priority mangle;\n\
                 ct state new ct mark set ct mark | 0x8000a005\n}\n}\n";
    for name in ["a", "b"] {
        world.netns(&node(name))?.nft(other)?;
    }
    world.policies(ONLY_DB)?;
    let mut flows = flows(&world, "db", None)?;
    go_on(&mut flows)?;
    // The first clearing comes before step 3, and what is idle then stays unmarked.
    for step in 1..=3 {
        world.enforce(&denials(step)?)?;
    }
    for name in ["a", "b"] {
        await_marks(&world, name, "idle", |marks| {
            marks.len() >= flows.len() && marks.iter().all(|mark| *mark == 0x8000_a005)
        })?;
    }
    world.policies(ONLY_DB)?;
    go_on(&mut flows)?;
    for name in ["a", "b"] {
        await_marks(&world, name, "in use", |marks| {
            let ours = marks.iter().filter(|mark| *mark & MASK != 0).count();
            ours >= flows.len() && marks.iter().all(|mark| mark & !MASK == 0x8000_a005)
        })?;
    }
    Ok(())
}

/// A connection that another leads to expect inherits its mark, and is judged for itself all the same.
pub(crate) fn an_expected_connection_is_judged() -> Result {
    let mut world = world()?;
    let expect = "table inet expecting {\n\
                  ct expectation back { protocol tcp; dport 80; timeout 1m; size 12; l3proto ip; }\n\
                  chain forward { type filter hook forward priority filter;\n\
                  ct state new tcp dport 80 ct expectation set \"back\"\n\
                  ct state related tcp dport 80 counter\n}\n}\n";
    let (web, db) = (pod("web"), pod("db"));
    let back = (world.address(&web, Family::V4)?, tcp(80));
    for (policies, expected) in [
        ("", Outcome::Answered("shop/web".to_owned())),
        (ONLY_DB, Outcome::Silent),
    ] {
        world.enforce(&loaded(policies)?)?;
        for name in ["a", "b"] {
            world.netns(&node(name))?.nft(expect)?;
        }
        let to_db = world.socket(&db, Family::V4, 80)?;
        let mut flow = world
            .sandbox
            .open(&web, to_db)?
            .map_err(|outcome| format!("no connection: {outcome}"))?;
        must(flow.exchange(Duration::from_secs(10)), "the connection stands still")?;
        world.check(&db, back, &expected)?;
        let counted = world.nft(&node("b"), &["list", "chain", "inet", "expecting", "forward"])?;
        must(
            counted.contains("counter packets") && !counted.contains("counter packets 0"),
            format!("nothing was expected: {counted}"),
        )?;
        for name in ["a", "b"] {
            world.netns(&node(name))?.nft("delete table inet expecting\n")?;
        }
    }
    Ok(())
}
