//! Applies that are cut off, at every place where that can happen: the agent killed, nft failing, dying, hanging. Meanwhile
//! the flood goes on, on lanes whose verdict no policy of these tests changes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

use palisade::agent::enforcer::Enforcer;
use palisade::nft::listing::Listing;
use palisade::nft::transaction::Transaction;
use palisade::nft::{Kernel, KernelError, Mode, Nft};
use palisade::sandbox::{Expect, Outcome, Place, Probe, program};

use crate::faults::{POLICIES, lanes, proven};
use crate::flood::{Flood, Lane};
use crate::process::{Process, StandIn};
use crate::shop::CLUSTER;
use crate::world::{Family, Result, World, must, node, pod, tcp};

/// Between rounds of the flood: dense enough to meet every moment, and some time is left for the rest.
pub(crate) const PAUSE: Duration = Duration::from_micros(100);

/// Beside [`POLICIES`]: `web` reaches `api` on TCP 80, and a block makes every interval map anew.
pub(crate) const MORE: &str = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: more, namespace: shop}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [web, api]}]}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: 198.51.100.0/24}}]
    ports: [{port: 80}]
  egress:
  - to: [{podSelector: {matchLabels: {app: api}}}, {ipBlock: {cidr: 198.51.100.0/24}}]
    ports: [{port: 80}]
";

/// How often the agent has changed the kernel.
const APPLIES: &str = "palisade_applies_total{outcome=\"changed\"}";

/// The lanes that node `a` alone judges, since only its agent is at work here.
pub(crate) fn lanes_of_a() -> Vec<Lane> {
    let on_a = |place: &Place| [pod("web"), pod("api")].contains(place);
    let by_a = |lane: &Lane| on_a(&lane.from) || on_a(&lane.to);
    lanes().into_iter().filter(by_a).collect()
}

/// Which of the two contents the kernel of node `a` has, going by what passes: with [`MORE`] or without it. Anything
/// between the two is an error, unless it passes: a killed agent may leave an nft behind that is about to end.
pub(crate) fn with_more(world: &World) -> Result<bool> {
    let mut probes = Vec::new();
    for (from, to) in [("web", "api"), ("api", "web")] {
        for family in Family::BOTH {
            probes.push(Probe {
                from: pod(from),
                source: None,
                to: world.address(&pod(to), family)?,
                traffic: tcp(80),
                expect: Expect::Silence,
            });
        }
    }
    // No policy keeps a node from its pods: as long as they do not answer it, silence says nothing.
    for family in Family::BOTH {
        probes.push(Probe {
            from: node("a"),
            source: None,
            to: world.address(&pod("api"), family)?,
            traffic: tcp(80),
            expect: Expect::Answer,
        });
    }
    let (api, silent) = (Outcome::Answered("shop/api".to_owned()), Outcome::Silent);
    let more = [api.clone(), api.clone(), silent.clone(), silent.clone()];
    for last in [false, true] {
        let mut seen = world.sandbox.probe_all(&probes, |_| {})?;
        let own = seen.split_off(more.len());
        must(own == [api.clone(), api.clone()], format!("node a to api: {own:?}"))?;
        if seen == more || seen.iter().all(|outcome| *outcome == silent) {
            return Ok(seen == more);
        }
        must(!last, format!("half an apply: {seen:?}"))?;
        sleep(Duration::from_millis(500));
    }
    Err("two looks are enough".into())
}

/// nft, but after so many steps the agent is no more.
#[derive(Debug)]
struct Cut {
    nft: Nft,
    steps: AtomicUsize,
}

impl Kernel for Cut {
    fn apply(&self, transaction: &Transaction) -> Result<(), KernelError> {
        let mut begun = Transaction::default();
        let steps = self.steps.load(Ordering::Relaxed);
        for step in transaction.steps().take(steps) {
            begun.next_step();
            for operation in step {
                begun
                    .add(operation.clone())
                    .map_err(|e| KernelError::Answer(e.to_string()))?;
            }
        }
        self.nft.apply(&begun)?;
        match transaction.steps().count() > steps {
            true => Err(KernelError::TimedOut(Duration::ZERO)),
            false => Ok(()),
        }
    }

    fn check(&self, transaction: &Transaction) -> Result<(), KernelError> {
        self.nft.check(transaction)
    }

    fn read(&self) -> Result<Option<Listing>, KernelError> {
        self.nft.read()
    }

    fn delete(&self) -> Result<(), KernelError> {
        self.nft.delete()
    }
}

fn nft() -> Result<Nft> {
    Ok(Nft {
        program: program("nft")?.into(),
        ..Nft::default()
    })
}

/// The agent dies after each number of steps of a start-up, a replacement and a difference; the kernel then has what it had,
/// or what it was to have, and the next start leads there.
pub(crate) fn an_apply_may_end_after_any_step() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    proven(&mut world)?;
    world.policies(POLICIES)?;
    let (few, more) = (
        world.with_policies(POLICIES)?,
        world.with_policies(&format!("{POLICIES}{MORE}"))?,
    );
    let netns = world.sandbox.netns(&node("a"))?.clone();
    let enforcer = |steps: usize| -> Result<_> {
        let (nft, steps) = (nft()?, steps.into());
        Ok(Enforcer::new("a".into(), Mode::Enforce, Cut { nft, steps }))
    };
    let flood = Flood::start(&world, &lanes_of_a(), PAUSE)?;
    let mut cut_off = 0;
    for difference in [false, true] {
        for (from, to, after) in [(&few, &more, true), (&more, &few, false)] {
            for steps in 0.. {
                let mut agent = enforcer(usize::MAX)?;
                netns.run(|| agent.apply(from))??;
                must(
                    with_more(&world)? != after,
                    "the kernel does not have the first content",
                )?;
                if !difference {
                    // A start over what another one has left.
                    agent = enforcer(steps)?;
                }
                agent.kernel().steps.store(steps, Ordering::Relaxed);
                let result = netns.run(|| agent.apply(to))?;
                let now = with_more(&world)?;
                must(
                    steps > 0 || now != after,
                    "nothing was sent, and the kernel has changed",
                )?;
                must(
                    result.is_err() || now == after,
                    "applied, and the kernel has something else",
                )?;
                let mut next = enforcer(usize::MAX)?;
                netns.run(|| next.apply(to))??;
                must(
                    with_more(&world)? == after,
                    "the next start does not lead to what is wanted",
                )?;
                if result.is_ok() {
                    break;
                }
                cut_off += 1;
            }
        }
    }
    let tally = flood.stop(&world)?;
    println!(
        "{cut_off} applies cut off: {} datagrams, {} lost, {} leaked",
        tally.sent(),
        tally.lost(),
        tally.leaked()
    );
    // A replacement loses a few (see `replacing_the_table_leaks_nothing`).
    must(cut_off >= 6, format!("only {cut_off} applies were cut off"))?;
    must(
        tally.leaked() == 0 && tally.lost() * 200 < tally.sent(),
        format!("{} leaked, {} lost", tally.leaked(), tally.lost()),
    )
}

/// The real agent, killed before, in the middle of and after each document that it sends, at its start and at a change.
pub(crate) fn the_agent_may_be_killed_at_any_document() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    proven(&mut world)?;
    world.policies(POLICIES)?;
    let stand_in = StandIn::new()?;
    let mut agent = Process::new(&world, "a", Some(&stand_in))?;
    let flood = Flood::start(&world, &lanes_of_a(), PAUSE)?;
    let mut killed = 0;
    for at_start in [true, false] {
        for when in ["before", "half", "after"] {
            for document in 1.. {
                stand_in.plan("0 - -")?;
                agent.policies(POLICIES)?;
                agent.start_ready()?;
                must(!with_more(&world)?, "the kernel does not have the first content")?;
                if at_start {
                    agent.kill()?;
                }
                stand_in.plan(&format!("{document} {when} kill"))?;
                agent.policies(&format!("{POLICIES}{MORE}"))?;
                if at_start {
                    agent.start()?;
                }
                let wanted = if at_start { 1 } else { 2 };
                // It ends, or needs fewer documents than this.
                let mut survived = false;
                agent.until("the change is followed, or the agent ends", |agent| {
                    survived = agent.metric(APPLIES).is_ok_and(|n| n == wanted);
                    Ok(survived || agent.has_ended()?)
                })?;
                let now = with_more(&world)?;
                must(now || !survived, "followed, and the kernel has something else")?;
                must(
                    document > 1 || when == "after" || !now,
                    "nothing was sent, and the kernel has changed",
                )?;
                agent.kill()?;
                stand_in.plan("0 - -")?;
                agent.start_ready()?;
                must(with_more(&world)?, "the next start does not lead to what is wanted")?;
                agent.kill()?;
                if survived {
                    break;
                }
                killed += 1;
            }
        }
    }
    let tally = flood.stop(&world)?;
    println!(
        "{killed} agents killed: {} datagrams, {} lost, {} leaked",
        tally.sent(),
        tally.lost(),
        tally.leaked()
    );
    must(killed >= 6, format!("only {killed} agents were killed"))?;
    must(
        tally.leaked() == 0 && tally.lost() * 200 < tally.sent(),
        format!("{} leaked, {} lost", tally.leaked(), tally.lost()),
    )
}

/// nft complains, dies or hangs, before or after it has done what it was told: the agent's own process goes on, and so does
/// what the kernel has, until nft works again.
pub(crate) fn nft_may_fail_die_or_hang() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    proven(&mut world)?;
    world.policies(POLICIES)?;
    let (few, more) = (
        world.with_policies(POLICIES)?,
        world.with_policies(&format!("{POLICIES}{MORE}"))?,
    );
    let netns = world.sandbox.netns(&node("a"))?.clone();
    let stand_in = StandIn::new()?;
    let nft = |timeout| {
        let mut nft = Nft::default();
        (nft.program, nft.timeout) = (stand_in.program().into(), timeout);
        nft
    };
    // Long enough for the stand-in to come as far as the plan says, on a busy machine too.
    let (nft, patient) = (nft(Duration::from_secs(12)), nft(Duration::from_secs(30)));
    let flood = Flood::start(&world, &lanes_of_a(), PAUSE)?;
    for what in ["fail", "die", "hang"] {
        for when in ["before", "half", "after"] {
            stand_in.plan("0 - -")?;
            let mut agent = Enforcer::new("a".into(), Mode::Enforce, patient.clone());
            netns.run(|| agent.apply(&few))??;
            let kernel = if what == "hang" { nft.clone() } else { patient.clone() };
            let mut agent = Enforcer::new("a".into(), Mode::Enforce, kernel);
            stand_in.plan(&format!("1 {when} {what}"))?;
            let result = netns.run(|| agent.apply(&more))?;
            let error = result.map(|_| "").map_or_else(|e| e.to_string(), str::to_owned);
            let expected = match what {
                "fail" => "as the test says",
                "die" => "it gave no reason",
                _ => "did not finish within",
            };
            must(error.contains(expected), format!("{when} {what}: {error:?}"))?;
            must(!stand_in.hangs(), "what hung is still there")?;
            must(!agent.is_held(), "the enforcer believes that the kernel holds it")?;
            must(
                with_more(&world)? == (when == "after"),
                format!("{when} {what}: the kernel has something else"),
            )?;
            let mut agent = Enforcer::new("a".into(), Mode::Enforce, patient.clone());
            netns.run(|| agent.apply(&more))??;
            must(
                with_more(&world)?,
                format!("{when} {what}: the next apply does not lead to what is wanted"),
            )?;
        }
    }
    let tally = flood.stop(&world)?;
    must(
        tally.leaked() == 0 && tally.lost() * 200 < tally.sent(),
        format!("{} leaked, {} lost", tally.leaked(), tally.lost()),
    )
}

/// Killed at any moment while policies come and go, a dozen times; in the end the kernel has the last ones.
pub(crate) fn the_agent_may_be_killed_at_any_moment() -> Result {
    let mut world = World::of(CLUSTER, Mode::Enforce)?;
    proven(&mut world)?;
    world.policies(POLICIES)?;
    let mut agent = Process::new(&world, "a", None)?;
    agent.policies(POLICIES)?;
    agent.start_ready()?;
    let flood = Flood::start(&world, &lanes_of_a(), PAUSE)?;
    // Moments without a pattern, the same in every run.
    let mut moment: u64 = 12345;
    for kill in 0..12 {
        for change in 0..3 {
            moment = moment
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            agent.policies(&match (kill + change) % 2 {
                0 => format!("{POLICIES}{MORE}"),
                _ => POLICIES.to_owned(),
            })?;
            sleep(Duration::from_millis(20 + (moment >> 33) % 130));
        }
        agent.kill()?;
        with_more(&world)?;
        agent.start()?;
    }
    for (policies, expected) in [(POLICIES.to_owned(), false), (format!("{POLICIES}{MORE}"), true)] {
        agent.policies(&policies)?;
        agent.until("the last policies are in force", |_| Ok(with_more(&world)? == expected))?;
    }
    agent.kill()?;
    let tally = flood.stop(&world)?;
    println!(
        "12 agents killed: {} datagrams, {} lost, {} leaked",
        tally.sent(),
        tally.lost(),
        tally.leaked()
    );
    must(
        tally.leaked() == 0 && tally.lost() * 200 < tally.sent(),
        format!("{} leaked, {} lost", tally.leaked(), tally.lost()),
    )
}
