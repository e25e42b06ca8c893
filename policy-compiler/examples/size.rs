//! What a cluster of your size costs an agent: `make size PODS=50000`.
//!
//! Arguments: pods, and if wanted namespaces, policies and nodes.

use std::process::ExitCode;
use std::time::Instant;

use policy_compiler::compile::{Compiler, Subjects, compile};
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
    ExitCode::SUCCESS
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
