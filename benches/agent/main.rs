//! What the whole agent costs in a large cluster: its own binary as a process, in a network namespace of its own, against an API
//! server that holds 50,000 pods and 5,000 policies. Time to ready, the time from a change in the API server to the kernel (one
//! change at a time, under a rolling update, in a storm), CPU and memory.
//!
//! ```text
//! cargo bench --bench agent [-- --pods N] [--json PATH] [--quick]
//! ```
//!
//! prints two tables and writes `target/bench/agent.json`. It needs root, for the namespace. The API server and whoever measures keep
//! to the first core, the agent with its children to the second. Its own main, for it measures other processes.

#![allow(clippy::unwrap_used, reason = "a benchmark may panic on what it did not expect")]

#[path = "../../tests/support/api/mod.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod api;
mod kernel;
mod objects;
mod process;
mod report;
mod server;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use palisade::nft::{Kernel, Nft};

use kernel::{Heard, Monitor};
use process::{Agent, Done, Server, Told, Usage};
use report::{Delays, Phase, Report, Start};

/// Nothing takes so long when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long each phase is.
struct Plan {
    quiet: usize,
    single: usize,
    roll: usize,
    storm: usize,
}

const FULL: Plan = Plan {
    quiet: 60,
    single: 400,
    roll: 30,
    storm: 10,
};
const QUICK: Plan = Plan {
    quiet: 15,
    single: 100,
    roll: 10,
    storm: 5,
};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if args.first().is_some_and(|first| first == "serve") {
        return server::serve(args[1].parse().unwrap());
    }
    let option = |name: &str| {
        args.iter()
            .position(|a| a == name)
            .and_then(|at| args.get(at + 1).cloned())
    };
    let pods = option("--pods").map_or(50_000, |text| text.parse().unwrap());
    let json = PathBuf::from(option("--json").unwrap_or_else(|| "target/bench/agent.json".to_owned()));
    let plan = if args.iter().any(|a| a == "--quick") {
        QUICK
    } else {
        FULL
    };
    if unshare(CloneFlags::CLONE_NEWNET).is_err() {
        eprintln!("NOT RUN: agent: needs root, for a network namespace of its own");
        return;
    }
    run("ip", &["link", "set", "lo", "up"]);
    process::keep_to(0);
    std::fs::create_dir_all(json.parent().unwrap()).unwrap();
    let report = measure(pods, &plan, json.parent().unwrap());
    print!("{}", report.text());
    std::fs::write(&json, serde_json::to_string_pretty(&report.json()).unwrap()).unwrap();
    eprintln!("written to {}", json.display());
}

fn measure(pods: usize, plan: &Plan, folder: &Path) -> Report {
    let _ = std::fs::remove_file(folder.join("agent.log"));
    let (cluster, node) = server::cluster(&server::spec(pods));
    let local = |pod: &policy_compiler::cluster::Pod| pod.node.as_ref() == Some(&node.name);
    let mut peers: BTreeSet<IpAddr> = cluster
        .pods
        .values()
        .filter(|p| server::judged(p))
        .flat_map(|p| p.addresses.clone())
        .collect();
    let mut report = Report {
        pods,
        policies: cluster.policies.len(),
        namespaces: cluster.namespaces.len(),
        nodes: cluster.nodes.len(),
        local_pods: cluster.pods.values().filter(|pod| local(pod)).count(),
        peers: peers.len(),
        ..Report::default()
    };
    drop(cluster);
    eprintln!("the API server takes in {pods} pods");
    let mut server = Server::start(pods);
    report.sizes = server.sizes.clone();
    let agent = start(
        &mut server,
        folder,
        &node.name,
        "on",
        &mut report,
        "an empty kernel, streaming lists",
    );
    let monitor = Monitor::start();
    let mut stage = Stage {
        agent: &agent,
        monitor: &monitor,
        peers: &mut peers,
    };

    eprintln!("nothing happens for {} s", plan.quiet);
    server.begin(&format!("quiet {}", plan.quiet));
    report.phases.push(stage.phase("idle", &mut server, |_| {}));
    eprintln!("one change at a time");
    server.begin(&format!("single {} 53", plan.single));
    report
        .phases
        .push(stage.phase("one change at a time", &mut server, |_| {}));
    eprintln!("a rolling update for {} s", plan.roll);
    server.begin(&format!("roll 100 {}", plan.roll));
    report
        .phases
        .push(stage.phase("100 pods a second replaced", &mut server, |_| {}));
    eprintln!("a storm for {} s", plan.storm);
    server.begin(&format!("storm 1000 {}", plan.storm));
    report
        .phases
        .push(stage.phase("1,000 changes a second", &mut server, |_| {}));
    eprintln!("another program changes nftables");
    server.begin(&format!("single {} 53", plan.single));
    report.phases.push(stage.phase(
        "one at a time, another program changes nftables each second",
        &mut server,
        foreign,
    ));
    stage.compare();
    report.end = agent.memory();
    report.nft_peak = agent.children_peak();
    drop(monitor);
    agent.stop();
    let again = start(
        &mut server,
        folder,
        &node.name,
        "off",
        &mut report,
        "a table that stands, pages of 500",
    );
    again.stop();
    report
}

/// Starts an agent, and tells what that took.
fn start(
    server: &mut Server,
    folder: &Path,
    node: &str,
    streaming: &str,
    report: &mut Report,
    what: &'static str,
) -> Agent {
    server.ask(&format!("streaming {streaming}"));
    eprintln!("an agent starts: {what}");
    let wire = process::wire();
    let agent = Agent::start(folder, &server.url, node);
    let ready = agent.ready();
    let (usage, at_ready) = (agent.usage(), agent.memory());
    let received = usage.wire - wire;
    // It looks at its table for the first time.
    sleep(Duration::from_secs(5));
    report.starts.push(Start {
        what,
        ready,
        usage: Usage {
            wire: received,
            ..usage
        },
        at_ready,
        settled: agent.memory(),
        nft_peak: agent.children_peak(),
    });
    agent
}

/// Once a second, as kube-proxy in its mode nftables does in a busy cluster.
fn foreign(at: usize) {
    let what = if at % 2 == 0 { "add" } else { "delete" };
    run("nft", &[what, "table", "ip", "somebody-else"]);
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "{program} {}",
        arguments.join(" ")
    );
}

struct Stage<'a> {
    agent: &'a Agent,
    monitor: &'a Monitor,
    /// Addresses of pods, as the kernel should have them.
    peers: &'a mut BTreeSet<IpAddr>,
}

impl Stage<'_> {
    /// Waits until the API server has done what it was told, and the kernel knows it all. Meanwhile the agent is looked at as in a
    /// cluster, and `meanwhile` is called once a second.
    fn phase(&mut self, what: &'static str, server: &mut Server, mut meanwhile: impl FnMut(usize)) -> Phase {
        let (usage, metrics) = (self.agent.usage(), self.agent.metrics());
        self.monitor.take();
        let begin = Instant::now();
        let done = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| server.done());
            for second in 1.. {
                while begin.elapsed() < Duration::from_secs(second) && !waiting.is_finished() {
                    sleep(Duration::from_millis(2));
                }
                if waiting.is_finished() {
                    break;
                }
                meanwhile(second as usize);
                if second % 10 == 0 {
                    self.agent.probe();
                }
            }
            waiting.join().unwrap()
        });
        let after = self.agent.usage();
        let took = begin.elapsed();
        let heard = self.settle(&done);
        let (delays, superseded) = delays(&done.told, &heard);
        let last = heard.peers.iter().map(|(time, ..)| *time).max().unwrap_or(done.end);
        Phase {
            what,
            took,
            usage: Usage {
                own: after.own - usage.own,
                children: after.children - usage.children,
                wire: after.wire - usage.wire,
            },
            sent: done.sent,
            told: done.told.len(),
            superseded,
            here: Delays::of(&delays, true),
            all: Delays::of(&delays, false),
            transactions: heard
                .transactions
                .iter()
                .filter(|time| (done.begin..=done.end).contains(time))
                .count(),
            converged: Duration::from_nanos(last.saturating_sub(done.end)),
            metrics: report::difference(&metrics, &self.agent.metrics()),
            memory: self.agent.memory(),
        }
    }

    /// Waits until the kernel has all that it was told, and then a little longer for what the agent does after that.
    fn settle(&mut self, done: &Done) -> Heard {
        let last: HashMap<IpAddr, Told> = done.told.iter().map(|told| (told.address, *told)).collect();
        let begin = Instant::now();
        loop {
            let heard = self.monitor.look();
            let state: HashMap<IpAddr, char> = heard.peers.iter().map(|(_, sign, address)| (*address, *sign)).collect();
            let missing = last.values().find(|told| match state.get(&told.address) {
                Some(sign) => *sign != told.sign,
                // It went before the kernel knew of it.
                None => told.sign == '+' || self.peers.contains(&told.address),
            });
            let Some(missing) = missing else { break };
            assert!(begin.elapsed() < PATIENCE, "the kernel never came to know {missing:?}");
            sleep(Duration::from_millis(20));
        }
        for told in last.values() {
            match told.sign {
                '+' => self.peers.insert(told.address),
                _ => self.peers.remove(&told.address),
            };
        }
        sleep(Duration::from_secs(2));
        self.monitor.take()
    }

    /// The kernel holds the addresses of the pods that there are, no more and no less.
    fn compare(&self) {
        let listing = Nft::default().read().unwrap().expect("the agent's table");
        let elements = &listing.sets["in4_peers"];
        let held: BTreeSet<IpAddr> = elements
            .iter()
            .map(|line| line.split(' ').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(
            held.symmetric_difference(self.peers).collect::<Vec<_>>(),
            Vec::<&IpAddr>::new()
        );
    }
}

/// How long the kernel took to know each change, and whether it is of a pod of the agent's node; and how many it never knew because the
/// next one came first.
fn delays(told: &[Told], heard: &Heard) -> (Vec<(Duration, bool)>, usize) {
    let mut seen: HashMap<(IpAddr, char), VecDeque<u64>> = HashMap::new();
    for (time, sign, address) in &heard.peers {
        seen.entry((*address, *sign)).or_default().push_back(*time);
    }
    let mut superseded = 0;
    let mut delays = Vec::with_capacity(told.len());
    for told in told {
        let times = seen.entry((told.address, told.sign)).or_default();
        while times.front().is_some_and(|time| *time < told.time) {
            times.pop_front();
        }
        match times.pop_front() {
            Some(time) => delays.push((Duration::from_nanos(time - told.time), told.here)),
            None => superseded += 1,
        }
    }
    (delays, superseded)
}
