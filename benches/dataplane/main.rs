//! What a packet costs on its way through a node, whatever the number of policies and peers, beside the two common encodings.
//!
//! `make bench-dataplane` (as root) runs it, prints tables, and writes `target/bench/dataplane.json` and `docs/dataplane.svg`. Arguments:
//! `--quick` measures less and leaves the picture alone; `--check` makes a missed budget an error; `--json PATH` and
//! `--svg PATH` write elsewhere; `--cpu N` is the core that it keeps to; `--dump FOLDER` writes the tables of the last point as nft
//! text, and `--table FILE` (as often as wanted) compares such a file as well, which makes the table of its own name.
//!
//! It has its own main because no benchmark framework swaps the kernel's rules between rounds or counts packets.

mod cluster;
mod measure;
mod memory;
mod plot;
mod probes;
mod report;
mod rivals;
mod traffic;
mod variants;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;

use cluster::{Isolated, Point};
use measure::Metric;
use report::{Report, Row};
use traffic::Traffic;
use variants::Loaded;
use world::World;

/// The numbers of policies and of peers.
const POLICIES: [usize; 4] = [1, 10, 100, 1_000];
const PEERS: [usize; 3] = [10, 1_000, 50_000];
/// Where everything is measured and not only packets: policies and peers.
const DETAILED: [(usize, usize); 3] = [(1, 10), (100, 1_000), (1_000, 50_000)];
/// What is measured there beside packets, in fewer rounds.
const MORE: [Metric; 4] = [Metric::LargePacket, Metric::NewFlow, Metric::Connection, Metric::Bulk];

/// The data plane's benchmark.
#[derive(Parser)]
struct Args {
    /// Fewer points and rounds, a minute in all; writes no picture
    #[arg(long)]
    quick: bool,
    /// Exit with 1 when a budget is missed
    #[arg(long)]
    check: bool,
    /// Where the numbers go
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench/dataplane.json"))]
    json: PathBuf,
    /// Where the picture goes
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/dataplane.svg"))]
    svg: PathBuf,
    /// The core that all runs on; the last one unless given
    #[arg(long)]
    cpu: Option<usize>,
    /// Write the tables of the last point there, as nft text
    #[arg(long)]
    dump: Option<PathBuf>,
    /// Compare this nft file as well; it makes the table of its own name
    #[arg(long)]
    table: Vec<PathBuf>,
    /// Only this many policies
    #[arg(long)]
    policies: Option<usize>,
    /// Only this many peers
    #[arg(long)]
    peers: Option<usize>,
    /// Only packets of established connections
    #[arg(long)]
    packets: bool,
    /// Only with this isolated
    #[arg(long)]
    isolated: Option<Isolated>,
    /// How many times each variant has its turn
    #[arg(long)]
    rounds: Option<usize>,
    /// What cargo passes on
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if !nix::unistd::geteuid().is_root() {
        // Not even in a user namespace: large tables need a socket buffer beyond the limit.
        eprintln!("NOT RUN: network namespaces and large nftables tables need root (sudo make bench-dataplane)");
        return Ok(exit_code(!args.check));
    }
    let world = World::build().context("the network namespaces")?;
    let cores = std::thread::available_parallelism()?.get();
    traffic::pin(args.cpu.unwrap_or(cores - 1)).context("cannot keep to one core")?;
    // Sockets are made in the client's namespace.
    let report = world.client.run(|| run(&args, &world))??;
    print!("{}", report.markdown());
    if let Some(folder) = args.json.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&args.json, format!("{:#}\n", report.json()))?;
    if !args.quick {
        plot::write(&report, &args.svg)?;
    }
    let met = report.budgets().iter().all(report::Budget::met);
    Ok(exit_code(met || !args.check))
}

fn exit_code(fine: bool) -> ExitCode {
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(args: &Args, world: &World) -> anyhow::Result<Report> {
    let begin = Instant::now();
    let progress = |what: &str| eprintln!("{:>4} s  {what}", begin.elapsed().as_secs());
    let rounds = args.rounds.unwrap_or(if args.quick { 15 } else { 61 });
    let mut traffic = Traffic::new(world).context("the sockets")?;
    progress("nothing, and connection tracking alone");
    let mut rows = without_policies(world, &mut traffic, rounds / 3)?;
    for point in points(args) {
        let Point {
            policies,
            peers,
            isolated,
        } = point;
        progress(&format!(
            "{policies} policies, {peers} peers, isolated: {}",
            isolated.name()
        ));
        let cluster = point.cluster();
        let mut loaded = Loaded::new(world, &cluster, variants::all(&args.table), args.dump.as_deref())?;
        probes::check(&cluster, &mut loaded, &mut traffic)?;
        let count = loaded.variants.len();
        let mut measured = measure::rounds(rounds, count, &mut traffic, &[Metric::Packet], |index| {
            loaded.wake(index)
        })?;
        if DETAILED.contains(&(policies, peers)) && !args.packets {
            let more = measure::rounds(rounds / 3, count, &mut traffic, &MORE, |index| loaded.wake(index))?;
            measured.iter_mut().zip(more).for_each(|(all, more)| all.extend(more));
        }
        let baseline = measured[0].clone();
        for ((variant, load), metrics) in loaded.variants.iter().zip(&loaded.load_time).zip(measured) {
            rows.push(Row {
                point: Some(point),
                variant: variant.name.clone(),
                metrics,
                baseline: baseline.clone(),
                load: load.as_secs_f64(),
            });
        }
    }
    if !args.packets {
        progress("kernel memory");
    }
    let memory = match args.packets {
        true => Vec::new(),
        false => memory::measure(world, if args.quick { 3 } else { 9 })?,
    };
    progress("done");
    Ok(Report { rounds, rows, memory })
}

fn points(args: &Args) -> Vec<Point> {
    let wanted = |choice: Option<usize>, number: usize| choice.is_none_or(|c| c == number);
    let mut points = Vec::new();
    for isolated in [Isolated::One, Isolated::Both] {
        if args.isolated.is_some_and(|only| only != isolated) {
            continue;
        }
        for policies in POLICIES {
            for peers in PEERS {
                let quick = [(1, 10), (1_000, 10), (1_000, 50_000)].contains(&(policies, peers));
                if (quick || !args.quick) && wanted(args.policies, policies) && wanted(args.peers, peers) {
                    points.push(Point {
                        isolated,
                        policies,
                        peers,
                    });
                }
            }
        }
    }
    points
}

/// A node without any table, where not even connections are tracked, in turns with connection tracking alone.
fn without_policies(world: &World, traffic: &mut Traffic<'_>, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let tables = [("conntrack only", variants::TRACKED), ("no table", "")];
    let metrics = [&[Metric::Packet], &MORE[..]].concat();
    let measured = measure::rounds(rounds, tables.len(), traffic, &metrics, |index| {
        Ok(world.node.nft(&format!("flush ruleset\n{}", tables[index].1))?)
    })?;
    let baseline = measured[0].clone();
    let rows = tables.iter().zip(measured).map(|((name, _), metrics)| Row {
        point: None,
        variant: (*name).to_owned(),
        metrics,
        baseline: baseline.clone(),
        load: 0.0,
    });
    Ok(rows.collect())
}
