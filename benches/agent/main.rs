//! What the whole agent costs in a large cluster: its own binary as a process, in a network namespace of its own, against an API
//! server that holds 50,000 pods and 5,000 policies. Time to ready, the time from a change in the API server to the kernel (one
//! change at a time, under a rolling update, in a storm), CPU and memory.
//!
//! ```text
//! cargo bench --bench agent [-- --pods N] [--json PATH] [--agent PROGRAM] [--quick]
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
use std::path::PathBuf;
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
    let json = PathBuf::from(option("--json").unwrap_or_else(|| "target/bench/agent.json".to_owned()));
    let quick = args.iter().any(|a| a == "--quick");
    let run_of = Run {
        pods: option("--pods").map_or(50_000, |text| text.parse().unwrap()),
        phases: if quick {
            phases(15, 100, 10, 5)
        } else {
            phases(60, 400, 30, 10)
        },
        program: option("--agent").unwrap_or_else(|| env!("CARGO_BIN_EXE_palisade").to_owned()),
        folder: json.parent().unwrap().to_owned(),
    };
    if unshare(CloneFlags::CLONE_NEWNET).is_err() {
        eprintln!("NOT RUN: agent: needs root, for a network namespace of its own");
        return;
    }
    run("ip", &["link", "set", "lo", "up"]);
    process::keep_to(0);
    std::fs::create_dir_all(&run_of.folder).unwrap();
    let report = run_of.measure();
    print!("{}", report.text());
    std::fs::write(&json, serde_json::to_string_pretty(&report.json()).unwrap()).unwrap();
    eprintln!("written to {}", json.display());
}

/// What a phase is called, what the API server is told, and what happens once a second meanwhile.
type Script = (&'static str, String, fn(usize));

/// So many seconds without changes, changes one by one, and seconds of the rolling update and of the storm.
fn phases(quiet: usize, single: usize, roll: usize, storm: usize) -> Vec<Script> {
    let nothing = |_| {};
    vec![
        ("idle", format!("quiet {quiet}"), nothing),
        ("one change at a time", format!("single {single} 53"), nothing),
        ("100 pods a second replaced", format!("roll 100 {roll}"), nothing),
        ("1,000 changes a second", format!("storm 1000 {storm}"), nothing),
        (
            "one change at a time, nftables of others changes each second",
            format!("single {single} 53"),
            foreign,
        ),
        (
            "idle, nftables of others changes each second",
            format!("quiet {}", quiet / 2),
            foreign,
        ),
    ]
}

/// What is measured.
struct Run {
    pods: usize,
    phases: Vec<Script>,
    /// The agent's.
    program: String,
    /// Where the agent's log goes.
    folder: PathBuf,
}

impl Run {
    fn measure(&self) -> Report {
        let _ = std::fs::remove_file(self.folder.join("agent.log"));
        let (cluster, node) = server::cluster(&server::spec(self.pods));
        let pods = || cluster.pods.values();
        let mut peers: BTreeSet<IpAddr> = pods()
            .filter(|pod| server::judged(pod))
            .flat_map(|pod| pod.addresses.clone())
            .collect();
        let mut report = Report {
            pods: cluster.pods.len(),
            policies: cluster.policies.len(),
            namespaces: cluster.namespaces.len(),
            nodes: cluster.nodes.len(),
            local_pods: pods().filter(|pod| pod.node.as_ref() == Some(&node.name)).count(),
            peers: peers.len(),
            ..Report::default()
        };
        drop(cluster);
        eprintln!("the API server takes in {} pods", self.pods);
        let mut server = Server::start(self.pods);
        report.sizes = server.sizes.clone();

        let agent = self.start(
            &mut server,
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
        for (what, order, meanwhile) in &self.phases {
            eprintln!("{what} ({order})");
            server.begin(order);
            report.phases.push(stage.phase(what, &mut server, meanwhile));
        }
        stage.compare();
        report.end = agent.memory();
        report.nft_peak = agent.children_peak();
        drop(monitor);
        agent.stop();
        self.start(
            &mut server,
            &node.name,
            "off",
            &mut report,
            "a table that stands, pages of 500",
        )
        .stop();
        report
    }

    /// Starts an agent, and tells what that took.
    fn start(
        &self,
        server: &mut Server,
        node: &str,
        streaming: &str,
        report: &mut Report,
        what: &'static str,
    ) -> Agent {
        server.ask(&format!("streaming {streaming}"));
        eprintln!("an agent starts over {what}");
        let wire = process::wire();
        let agent = Agent::start(&self.program, &self.folder, &server.url, node);
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
}

/// Once a second, as kube-proxy in its mode nftables does in a busy cluster.
fn foreign(at: usize) {
    let what = if at % 2 == 1 { "add" } else { "delete" };
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
    fn phase(&mut self, what: &'static str, server: &mut Server, meanwhile: &fn(usize)) -> Phase {
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
