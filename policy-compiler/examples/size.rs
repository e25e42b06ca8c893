//! What a cluster of your size costs an agent: `make size PODS=50000`.
//!
//! Arguments: pods, and if wanted namespaces, policies and nodes.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Instant;

use policy_compiler::cluster::{Cluster, Endpoint};
use policy_compiler::compile::{Compiler, Subjects, compile};
use policy_compiler::difference::{self, End, Pods};
use policy_compiler::generate::{self, Spec};
use policy_compiler::lint::lint;
use policy_compiler::policy::Direction;
use policy_compiler::table::Table;

fn main() -> ExitCode {
    let numbers: Result<Vec<usize>, _> = std::env::args().skip(1).map(|a| a.parse()).collect();
    let Ok([pods, rest @ ..]) = numbers.as_deref() else {
        eprintln!("usage: size PODS [NAMESPACES [POLICIES [NODES]]]");
        return ExitCode::from(2);
    };
    let mut spec = Spec::realistic(*pods);
    for (field, number) in [&mut spec.namespaces, &mut spec.policies, &mut spec.nodes]
        .into_iter()
        .zip(rest)
    {
        *field = *number;
    }
    let cluster = generate::cluster(&spec);
    println!(
        "{} pods, {} namespaces, {} policies, {} nodes (generated, seed {})",
        cluster.pods.len(),
        cluster.namespaces.len(),
        cluster.policies.len(),
        cluster.nodes.len(),
        spec.seed
    );
    let snapshot = resident();

    let Some(node) = cluster.nodes.keys().next().cloned() else {
        return ExitCode::FAILURE;
    };
    let start = Instant::now();
    let mut compiler = Compiler::new(&cluster, Subjects::Node(node));
    println!(
        "one node's first compile       {:>10.1?}   {}",
        start.elapsed(),
        size(compiler.table())
    );
    println!(
        "memory, snapshot and table     {:>8} MB   (snapshot alone {snapshot} MB)",
        resident()
    );

    let mut times: Vec<_> = generate::events(&spec)
        .take(2_000)
        .map(|event| {
            let start = Instant::now();
            compiler.apply(event);
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!(
        "a pod event, median            {:>10.1?}   99 of 100 within {:.1?}",
        times[1_000], times[1_980]
    );

    let start = Instant::now();
    let table = compile(&cluster, &Subjects::All);
    println!(
        "the whole cluster              {:>10.1?}   {}",
        start.elapsed(),
        size(&table)
    );

    let start = Instant::now();
    let findings = lint(&cluster, &table);
    println!(
        "the whole cluster, linted      {:>10.1?}   {} findings",
        start.elapsed(),
        findings.len()
    );
    for gone in [1, cluster.policies.len() / 20, cluster.policies.len()] {
        compare(&cluster, gone);
    }
    ExitCode::SUCCESS
}

/// Compares the cluster with itself less some of its policies.
fn compare(before: &Cluster, gone: usize) {
    let mut after = before.clone();
    let step = (before.policies.len() / gone.max(1)).max(1);
    for key in before.policies.keys().step_by(step).take(gone) {
        after.policies.remove(key);
    }
    let start = Instant::now();
    let [old, new] = [before, &after].map(|cluster| compile(cluster, &Subjects::All));
    let pods = Pods::new(before, &after);
    let mut ends: Vec<End> = pods
        .both
        .iter()
        .flat_map(|pair| difference::ends(&old, &new, pair))
        .collect();
    // An example of each range of addresses that either table tells apart.
    let tables = [&old, &new].into_iter();
    let cells = tables.flat_map(|table| Direction::BOTH.into_iter().flat_map(|d| table.half(d).cells()));
    let outside: BTreeSet<_> = cells.map(|cell| Endpoint::Address(cell.range.first)).collect();
    ends.extend(outside.into_iter().map(|end| End {
        before: end.clone(),
        after: end,
    }));
    let found = difference::differences(&old, &new, &ends);
    println!(
        "a comparison, {gone:>5} policies gone {:>7.1?}   {} blocks opened, {} closed",
        start.elapsed(),
        found.opened.len(),
        found.closed.len()
    );
}

fn size(table: &Table) -> String {
    let half = |direction| {
        let half = table.half(direction);
        format!(
            "{direction} {} groups x {} classes",
            half.groups().count(),
            half.classes().count()
        )
    };
    Direction::BOTH.map(half).join(", ")
}

/// The memory that this process has now, in MB (proc(5), `VmRSS`).
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kilobytes: u64 = line
        .and_then(|l| l.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or_default();
    kilobytes / 1024
}
