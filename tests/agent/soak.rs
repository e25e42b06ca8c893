//! Random events, faults, outages, foreign hands and killed agents for a while; at the end the kernel holds what the API
//! server's objects ask for, and nothing is left over anywhere.
//!
//! `PALISADE_SOAK_SECONDS` makes it longer, `PALISADE_SOAK_SEED` repeats one (as far as the clock lets it).

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::api::Api;
use super::chaos::{Random, calm, change, number, trouble};
use super::cluster::runtime;
use super::held::{Footprint, agent, difference, value};
use super::{Agent, in_a_namespace};

/// In CI. A third of it each: agents that are killed; one that lives, until it has met everything once; the same one once more.
const SECONDS: u64 = 60;

/// The agent waits for up to half a minute after many failures in a row, and the machine may be slow.
const PATIENCE: Duration = Duration::from_secs(180);

/// By how much memory may grow between the end of the second part and that of the third, in KiB: names and addresses come again, so
/// what is kept does not grow, but the allocator keeps what the largest burst so far took, and a larger one may come late.
const GROWTH: usize = 3 << 10;

/// How many more connections there may be: what a list came by stays open for a while, for a next one of any of the four kinds.
const POOLED: usize = 4;

#[test]
fn whatever_happens_the_kernel_is_right_and_nothing_is_left_over() {
    in_a_namespace(
        "soak::whatever_happens_the_kernel_is_right_and_nothing_is_left_over",
        || {
            let seed = number("PALISADE_SOAK_SEED", u64::from(std::process::id()));
            println!("PALISADE_SOAK_SEED={seed}");
            let part = Duration::from_secs(number("PALISADE_SOAK_SECONDS", SECONDS)) / 3;
            let mut world = World::new(seed);

            world.part(part, true);
            world.part(part, false);
            let before = world.footprint(|now| now.children == 0);
            world.part(part, false);
            // What is left over stays; what is under way does not.
            let resting = |now: &Footprint| {
                now.children == 0
                    && now.threads <= before.threads
                    && now.files <= before.files + POOLED
                    && now.memory <= before.memory + GROWTH
            };
            let after = world.footprint(resting);
            println!(
                "{} changes, {} troubles, {} edits, {} kills, {} repairs; {before:?}, then {after:?}",
                world.changes,
                world.troubles,
                world.edits,
                world.kills,
                value(&world.agent, "palisade_drift_repairs_total"),
            );
            assert!(resting(&after), "left over: {before:?}, then {after:?}");
            assert!(world.agent.stop().success());
        },
    );
}

struct World {
    runtime: Runtime,
    api: Api,
    folder: tempfile::TempDir,
    agent: Agent,
    random: Random,
    changes: usize,
    troubles: usize,
    edits: usize,
    kills: usize,
}

impl World {
    fn new(seed: u64) -> World {
        let (runtime, folder) = (runtime(), tempfile::tempdir().expect("directory"));
        let api = runtime.block_on(Api::start());
        let mut random = Random::new(seed);
        (0..100).for_each(|_| change(&api, &mut random));
        let agent = agent(&api, "n1", &folder);
        World {
            runtime,
            api,
            folder,
            agent,
            random,
            changes: 0,
            troubles: 0,
            edits: 0,
            kills: 0,
        }
    }

    /// Changes and trouble for a while, perhaps with agents that are killed every few seconds; in the end all is well.
    fn part(&mut self, lasts: Duration, kills: bool) {
        let end = Instant::now() + lasts;
        let mut kill_at = Instant::now();
        while Instant::now() < end {
            self.step();
            if kills && Instant::now() >= kill_at {
                self.kill();
                kill_at = Instant::now() + Duration::from_millis(u64::from(self.random.below(5000)));
            }
        }
        self.settle();
    }

    /// A change, and now and then worse.
    fn step(&mut self) {
        change(&self.api, &mut self.random);
        self.changes += 1;
        if self.random.one_in(100) {
            trouble(&self.api, &mut self.random, false);
            self.troubles += 1;
        }
        if self.random.one_in(50) {
            calm(&self.api);
        }
        if self.random.one_in(250) {
            self.edit();
        }
        if self.random.one_in(2) {
            sleep(Duration::from_millis(u64::from(self.random.below(30))));
        }
    }

    /// Somebody else's hand. What it wants to change may not be there.
    fn edit(&mut self) {
        let command = self.random.of(&[
            "delete table inet palisade",
            "flush table inet palisade",
            "flush set inet palisade in4_isolated",
            "flush chain inet palisade ingress4",
            "insert rule inet palisade forward accept",
            "add chain inet palisade foreign",
            "add set inet palisade foreign { type ipv4_addr; elements = { 192.0.2.1 }; }",
        ]);
        let output = Command::new("nft").arg(command).output().expect("nft");
        self.edits += usize::from(output.status.success());
    }

    fn kill(&mut self) {
        self.agent.child.kill().expect("killed");
        self.agent.child.wait().expect("ended");
        self.agent = agent(&self.api, "n1", &self.folder);
        self.kills += 1;
    }

    /// Waits until the kernel is as it should be, and the agent says so.
    fn settle(&mut self) {
        calm(&self.api);
        let start = Instant::now();
        while let Some(difference) = difference(&self.runtime, &self.api, "n1") {
            assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {difference}");
            sleep(Duration::from_millis(200));
        }
        while self.agent.get("/readyz").0 != 200 {
            assert!(start.elapsed() < PATIENCE, "not ready: {:?}", self.agent.get("/readyz"));
            sleep(Duration::from_millis(200));
        }
    }

    /// What the agent has, as soon as that is what is awaited, and in the end in any case.
    fn footprint(&self, awaited: impl Fn(&Footprint) -> bool) -> Footprint {
        let start = Instant::now();
        loop {
            // Connections that were replaced have been closed by then, and programs have ended.
            sleep(Duration::from_secs(3));
            let now = Footprint::of(&self.agent);
            if awaited(&now) || start.elapsed() > PATIENCE {
                return now;
            }
        }
    }
}
