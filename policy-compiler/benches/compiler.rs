//! The compiler's rows of the budget table, beside a naive rival in the same run.
//!
//! `cargo bench -p policy-compiler` prints a table and writes `target/bench/compiler.json`; `-- --only NAME` runs the rows
//! whose names begin so, `--json PATH` writes elsewhere. `--once NAME` compiles one cluster once and
//! applies a thousand events to it: for a profiler, and for `scripts/instructions`.
//!
//! It has its own main because neither criterion nor divan times two rivals in turn, reports peak memory, or compares
//! with a budget; each also runs a benchmark of seconds for minutes.

mod measure;
mod naive;
mod reach;

use std::process::Command;

use measure::{Memory, Row, Times, Unit};
use naive::Care;
use policy_compiler::cluster::Cluster;
use policy_compiler::compile::{Compiler, Subjects, compile};
use policy_compiler::generate::{self, Spec};
use policy_compiler::policy::Direction;
use policy_compiler::table::Table;

/// Clusters of 100,000 pods, 25,000 namespaces and 75,000 policies.
const LARGE: [&str; 2] = ["antrea", "realistic"];

/// The node whose first compile is timed.
const NODE: &str = "node-000042";

/// How many events are timed, and how many go before them.
const EVENTS: usize = 5_000;

/// Some rows of the report.
type Section = (&'static str, fn() -> Vec<Row>);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let option = |name: &str| {
        let at = args.iter().position(|a| a == name)?;
        args.get(at + 1).map(String::as_str)
    };
    if let Some(name) = option("--memory") {
        return memory_of_this_process(name);
    }
    if let Some(name) = option("--once") {
        return once(name);
    }
    let only = option("--only").unwrap_or("");
    let sections: [Section; 7] = [
        ("whole", whole),
        ("memory", memory),
        ("reach", reachability),
        ("node", node),
        ("event", event),
        ("rival", rival),
        ("growth", growth),
    ];
    let mut rows = Vec::new();
    for (name, section) in sections.iter().filter(|(name, _)| name.starts_with(only)) {
        eprintln!("{name} ...");
        rows.extend(section());
    }
    print!("{}", measure::table(&rows));
    let path = option("--json").map_or_else(
        || concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench/compiler.json").into(),
        std::path::PathBuf::from,
    );
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).expect("the folder of the JSON file");
    }
    std::fs::write(&path, format!("{:#}\n", measure::json(&rows))).expect("the JSON file");
}

fn size(cluster: &Cluster) -> String {
    let [pods, namespaces, policies] =
        [cluster.pods.len(), cluster.namespaces.len(), cluster.policies.len()].map(thousands);
    format!("{pods} pods, {namespaces} namespaces, {policies} policies")
}

fn thousands(number: usize) -> String {
    match number {
        0..1_000 => number.to_string(),
        _ => format!("{},{:03}", thousands(number / 1_000), number % 1_000),
    }
}

fn shape(table: &Table) -> String {
    let of = |direction| {
        let half = table.half(direction);
        format!(
            "{} x {}",
            thousands(half.groups().count()),
            thousands(half.classes().count())
        )
    };
    let [ingress, egress] = Direction::BOTH.map(of);
    format!("groups x classes: ingress {ingress}, egress {egress}")
}

/// A whole cluster, by time.
fn whole() -> Vec<Row> {
    let names = LARGE.into_iter().chain(["antrea-large-namespaces"]);
    names
        .map(|name| {
            let cluster = generate::cluster(&spec(name));
            let what = format!("whole cluster, {name}: {}", size(&cluster));
            let budget = LARGE.contains(&name).then_some(1.0);
            let mut row = Row::seconds(
                "whole",
                what,
                &measure::time(|| compile(&cluster, &Subjects::All)),
                budget,
            );
            row.note = format!("{}; {}", row.note, shape(&compile(&cluster, &Subjects::All)));
            row
        })
        .collect()
}

/// A whole cluster, by memory: each in a process of its own.
fn memory() -> Vec<Row> {
    let this = std::env::current_exe().expect("the path of this program");
    LARGE
        .iter()
        .map(|name| {
            let output = Command::new(&this)
                .args(["--memory", name])
                .output()
                .expect("this program runs");
            let text = String::from_utf8_lossy(&output.stdout);
            let numbers: Vec<f64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
            let [before, peak, after] = numbers[..] else {
                panic!("three numbers from the process that measures memory, not `{text}`");
            };
            let show = |bytes: f64| format!("{:.0} MB", bytes / 1e6);
            Row {
                name: "memory",
                what: format!("peak memory of the process, {name}, snapshot included"),
                value: peak,
                unit: Unit::Bytes,
                budget: Some(500e6),
                note: format!("snapshot {}, with the table {}", show(before), show(after)),
            }
        })
        .collect()
}

fn memory_of_this_process(name: &str) {
    let cluster = generate::cluster(&spec(name));
    Memory::forget_peak();
    let before = Memory::read().now;
    let table = compile(&cluster, &Subjects::All);
    let after = Memory::read();
    println!("{before} {} {}", after.peak, after.now);
    drop((cluster, table));
}

/// All pairs of 10,000 pods, from the manifests' values to the number of pairs.
fn reachability() -> Vec<Row> {
    for pods in [60, 300, 1_000] {
        let table = compile(&generate::cluster(&Spec::realistic(pods)), &Subjects::All);
        assert_eq!(reach::count(&table), reach::count_pair_by_pair(&table), "{pods} pods");
    }
    let cluster = generate::cluster(&Spec::realistic(10_000));
    let both = measure::time(|| reach::count(&compile(&cluster, &Subjects::All)));
    let table = compile(&cluster, &Subjects::All);
    let count = measure::time(|| reach::count(&table));
    let what = format!("reachability of all pairs: {}", size(&cluster));
    let mut row = Row::seconds("reach", what, &both, Some(1.0));
    row.note = format!(
        "{}; counting alone {:.1} ms; {} pairs",
        row.note,
        count.median().as_secs_f64() * 1e3,
        thousands(reach::count(&table) as usize)
    );
    vec![row]
}

/// The first compile of a node's agent.
fn node() -> Vec<Row> {
    let cluster = generate::cluster(&Spec::realistic(50_000));
    let subjects = Subjects::Node(NODE.into());
    let local = cluster
        .pods
        .values()
        .filter(|p| p.node.as_deref() == Some(NODE))
        .count();
    assert!(local > 0, "{NODE} has pods");
    let what = format!("one node's first compile ({local} pods of it): {}", size(&cluster));
    let mut row = Row::seconds("node", what, &measure::time(|| compile(&cluster, &subjects)), Some(0.1));
    row.note = format!("{}; {}", row.note, shape(&compile(&cluster, &subjects)));
    vec![row]
}

/// One pod event after another, in the compiler of a node's agent and in that of a whole cluster; then the same on smaller
/// and larger clusters.
fn event() -> Vec<Row> {
    let measure = |what: &str, pods: usize, subjects: Subjects, budget: Option<f64>| {
        let spec = Spec::realistic(pods);
        let cluster = generate::cluster(&spec);
        let mut compiler = Compiler::new(&cluster, subjects);
        let mut events = generate::events(&spec);
        // The first ones meet a cluster in which nothing has been renamed or relabelled yet.
        events
            .by_ref()
            .take(EVENTS)
            .for_each(|event| drop(compiler.apply(event)));
        let times = measure::each(events.take(EVENTS), |event| compiler.apply(event));
        let what = format!("one pod event, {what}: {}", size(&cluster));
        let mut row = Row::seconds("event", what, &times, budget);
        row.note = format!(
            "{}; 99 of 100 within {:.1} µs",
            row.note,
            times.percentile(99).as_secs_f64() * 1e6
        );
        row
    };
    let node = || Subjects::Node(NODE.into());
    vec![
        measure("a node's compiler", 50_000, node(), Some(100e-6)),
        measure("a whole cluster's compiler", 50_000, Subjects::All, None),
        measure("a node's compiler", 5_000, node(), None),
        measure("a whole cluster's compiler", 5_000, Subjects::All, None),
    ]
}

/// The naive compiler, in turn with this one.
fn rival() -> Vec<Row> {
    for (pods, care) in [(60, Care::None), (300, Care::PoliciesOnce)] {
        check_rival(&generate::cluster(&Spec::realistic(pods)), care);
    }
    let cluster = |pods| generate::cluster(&Spec::realistic(pods));
    let (small, large) = (cluster(2_000), cluster(8_000));
    let ours = |cluster| move || compile(cluster, &Subjects::All);
    let theirs = |cluster, care| move || naive::compile(cluster, care);
    let row = |cluster, what: &str, [ours, theirs]: [Times; 2], budget| Row {
        name: "rival",
        what: format!("faster than {what}: {}", size(cluster)),
        value: theirs.median().as_secs_f64() / ours.median().as_secs_f64(),
        unit: Unit::TimesFaster,
        budget,
        note: format!(
            "{:.1} ms against {:.0} ms, medians of {}",
            ours.median().as_secs_f64() * 1e3,
            theirs.median().as_secs_f64() * 1e3,
            ours.rounds()
        ),
    };
    let naive = measure::alternate(ours(&small), theirs(&small, Care::None));
    let careful = measure::alternate(ours(&small), theirs(&small, Care::PoliciesOnce));
    let careful_at_large = measure::alternate(ours(&large), theirs(&large, Care::PoliciesOnce));
    let pairs = measure::alternate(
        || reach::count(&ours(&small)()),
        || naive::compile(&small, Care::PoliciesOnce).reachable(),
    );
    vec![
        row(&small, "each pod, each peer, each policy", naive, Some(100.0)),
        row(
            &small,
            "a careful rival that finds each pod's policies once",
            careful,
            None,
        ),
        row(&large, "the careful rival", careful_at_large, None),
        row(
            &small,
            "the careful rival, all reachable pairs counted by both",
            pairs,
            None,
        ),
    ]
}

/// The rival's answer is the compiler's, pair by pair and port by port.
fn check_rival(cluster: &Cluster, care: Care) {
    let table = compile(cluster, &Subjects::All);
    let naive = naive::compile(cluster, care);
    let ends: Vec<_> = naive
        .pods
        .iter()
        .map(|p| table.addresses().endpoints(p).swap_remove(0))
        .collect();
    for direction in Direction::BOTH {
        for (i, subject) in ends.iter().enumerate() {
            for (j, peer) in ends.iter().enumerate() {
                let ours = table.side(direction, subject, peer);
                assert_eq!(
                    *naive.side(direction, i, j),
                    ours,
                    "{direction} of {subject} with {peer}"
                );
            }
        }
    }
    assert_eq!(naive.reachable(), reach::count(&table));
}

/// From 1,000 pods to 100,000.
fn growth() -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut first = None;
    for pods in [1_000, 3_000, 10_000, 30_000, 100_000] {
        let cluster = generate::cluster(&Spec::realistic(pods));
        let times = measure::time(|| compile(&cluster, &Subjects::All));
        let each = times.median().as_secs_f64() / pods as f64;
        let first = *first.get_or_insert(each);
        let mut row = Row::seconds("growth", format!("whole cluster: {}", size(&cluster)), &times, None);
        row.note = format!(
            "{:.2} µs a pod, {:.2}x the first; {}",
            each * 1e6,
            each / first,
            row.note
        );
        rows.push(row);
    }
    rows
}

/// One compile and nothing else after the cluster is made, then a thousand events.
fn once(name: &str) {
    let spec = spec(name);
    let cluster = generate::cluster(&spec);
    let subjects = match name {
        "node" => Subjects::Node(NODE.into()),
        _ => Subjects::All,
    };
    let mut compiler = Compiler::new(&cluster, subjects);
    println!("{name}: {}", shape(compiler.table()));
    generate::events(&spec)
        .take(1_000)
        .for_each(|event| drop(compiler.apply(event)));
}

fn spec(name: &str) -> Spec {
    match (name, name.parse()) {
        ("antrea", _) => Spec::antrea(),
        ("antrea-large-namespaces", _) => Spec::antrea_large_namespaces(),
        ("realistic", _) => Spec {
            nodes: 1_000,
            namespaces: 25_000,
            policies: 75_000,
            ..Spec::realistic(100_000)
        },
        ("node", _) => Spec::realistic(50_000),
        (_, Ok(pods)) => Spec::realistic(pods),
        _ => panic!("no cluster is called {name}: there are antrea, realistic, node, and any number of pods"),
    }
}
