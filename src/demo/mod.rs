//! `palisade demo`: a cluster in network namespaces on this machine, its policies enforced there by the agent's own
//! code, real packets between all of its members, and expected against observed.
//!
//! Manifests go in; a drawing, a matrix and a verdict come out, and nothing stays behind.

mod agents;
mod change;
mod plan;
mod report;
mod shop;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Instant;

use anstream::{eprintln, print, println};
use owo_colors::OwoColorize;
use policy_compiler::cluster::Cluster;

use crate::manifests;
use crate::progress::Progress;
use crate::sandbox::{self, Expect, Probe, Sandbox, Sctp, assign_addresses};
use agents::Agents;
use change::Event;
use plan::{Judgement, Planned};
use report::Made;

pub use report::Summary;

/// So many failures are shown one by one.
const COMPLAINTS: usize = 40;

/// How the outcome is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// For people; may change.
    #[default]
    Text,
    /// For programs; stable.
    Json,
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A file or folder of manifests; none for the shop that is built in.
    pub manifests: Option<PathBuf>,
    /// How to show it.
    pub output: Output,
}

/// Runs the demo. Call [`become_root_in_user_namespace`](crate::sandbox::become_root_in_user_namespace) before, first
/// thing in main.
///
/// # Errors
/// Invalid manifests, missing privileges or programs, more pods or probes than one machine takes.
pub fn run(options: &Options) -> anyhow::Result<Summary> {
    let start = Instant::now();
    let people = options.output == Output::Text;
    let loaded = match &options.manifests {
        Some(path) => manifests::load(std::slice::from_ref(path))?,
        None => shop::load()?,
    };
    // To standard error in either form: what is odd about the input is no part of the result.
    loaded
        .warnings
        .iter()
        .for_each(|warning| eprintln!("warning: {warning}"));
    let mut cluster = loaded.cluster;
    // A demo without probes would end well whatever the policies are.
    anyhow::ensure!(
        cluster.pods.values().any(|pod| !pod.ended),
        "the manifests hold no running pod, so there is nothing to probe: give pods, or workloads to derive them from"
    );
    assign_addresses(&mut cluster)?;

    let mut progress = Progress::new();
    progress.stage("building the sandbox");
    let ports = plan::ports(&cluster);
    let options = sandbox::Options {
        extra_ports: ports.clone(),
        ..sandbox::Options::default()
    };
    let sandbox = Sandbox::build(&cluster, &options)?;
    let planned = plan::plan(&cluster, sandbox.frontends(), &options.client, &ports)?;
    progress.clear();
    if people {
        introduce(&cluster, &sandbox, start);
    }

    progress.stage("probing without policy");
    let baseline: Vec<Probe> = (planned.iter())
        .map(|p| Probe {
            expect: Expect::Answer,
            ..p.probe.clone()
        })
        .collect();
    let before = sandbox.probe_all(&baseline, |done| progress.step(done, baseline.len()))?;
    progress.clear();
    if people {
        let answered = planned
            .iter()
            .zip(&before)
            .filter(|(p, o)| p.judge_baseline(o) == Judgement::AsExpected)
            .count();
        println!(
            "Without policy: {answered} of {} probes answered, so that silence means a denial.",
            planned.len()
        );
    }

    let mut agents = Agents::new(&sandbox, &cluster)?;
    let round = agents.apply(&cluster)?;
    if people {
        println!("{} policies enforced: {round}.\n", cluster.policies.len());
    }
    progress.stage("probing with the policies");
    let made = with_policies(&sandbox, planned, before, &mut progress)?;
    progress.clear();
    if people {
        println!("What passes, expected and observed (· is nothing):");
        print!("{}", coloured(&report::matrices(&cluster, &made)));
    }

    let planned: Vec<Planned> = made.iter().map(|m| m.planned.clone()).collect();
    let change = change::choose(&cluster, &planned);
    let mut checks = Vec::new();
    if let Some(change) = &change {
        if people {
            println!(
                "\nAn open connection from {} to {}, while {}:",
                change.from, change.to, change.what
            );
        }
        checks = change::carry_out(&sandbox, &mut agents, &cluster, change, |event| match event {
            _ if !people => {}
            Event::Applied(round) => println!("  {round}"),
            Event::Checked(check) => show_check(check),
        })?;
    } else if people {
        println!("\nNo TCP connection between two pods is allowed here, so none is stopped by a change of policy.");
    }

    let summary = Summary::of(&made, &checks);
    if people {
        conclude(&report::complaints(&made, &checks), summary, start);
    } else {
        println!(
            "{:#}",
            report::to_json(&made, &checks, change.as_ref().map(|c| c.what.as_str()))
        );
    }
    Ok(summary)
}

/// The same probes again; those that nobody answered without policy would prove nothing, and are not sent.
fn with_policies(
    sandbox: &Sandbox,
    planned: Vec<Planned>,
    before: Vec<sandbox::Outcome>,
    progress: &mut Progress,
) -> anyhow::Result<Vec<Made>> {
    let proven = |(p, o): &(&Planned, &sandbox::Outcome)| p.judge_baseline(o) == Judgement::AsExpected;
    let probes: Vec<Probe> = planned
        .iter()
        .zip(&before)
        .filter(proven)
        .map(|(p, _)| p.probe.clone())
        .collect();
    let mut outcomes = sandbox
        .probe_all(&probes, |done| progress.step(done, probes.len()))?
        .into_iter();
    let made = planned.into_iter().zip(before).map(|(planned, baseline)| {
        let judged = match planned.judge_baseline(&baseline) {
            Judgement::AsExpected => outcomes.next().map(|o| (planned.judge(&o), o)),
            _ => None,
        };
        let (judgement, observed) = judged.map_or((Judgement::Broken, None), |(j, o)| (j, Some(o)));
        Made {
            planned,
            baseline,
            observed,
            judgement,
        }
    });
    Ok(made.collect())
}

fn introduce(cluster: &Cluster, sandbox: &Sandbox, start: Instant) {
    println!(
        "A sandbox of network namespaces on this machine, one per node and per pod, built in {} ms:\n",
        start.elapsed().as_millis()
    );
    println!("{}", report::drawing(cluster, sandbox));
    let sctp = cluster
        .pods
        .values()
        .flat_map(|p| &p.ports)
        .any(|p| p.protocol == policy_compiler::ports::Protocol::Sctp);
    let host_network = cluster.pods.values().filter(|p| p.host_network && !p.ended).count();
    if host_network > 0 {
        println!("{host_network} host-network pods are their nodes, to policy and here.\n");
    }
    if sctp && sandbox.sctp() == Sctp::Raw {
        println!("This kernel speaks no SCTP: the sandbox opens associations itself, over raw sockets.\n");
    }
}

fn show_check(check: &change::Check) {
    match &check.instead {
        None => println!("  {} {}", "✓".green(), check.what),
        Some(instead) => println!("  {} {}: {instead}", "✗".red(), check.what),
    }
}

fn conclude(complaints: &[String], summary: Summary, start: Instant) {
    if !complaints.is_empty() {
        println!("\nNot as expected:");
        complaints
            .iter()
            .take(COMPLAINTS)
            .for_each(|line| println!("  {}", coloured(line)));
        if complaints.len() > COMPLAINTS {
            println!("  and {} more (-o json lists them all)", complaints.len() - COMPLAINTS);
        }
    }
    let line = format!(
        "{} probes, {} as expected, {} leaks",
        summary.probes, summary.as_expected, summary.leaks
    );
    println!("\nAll of it took {:.1} s.", start.elapsed().as_secs_f32());
    match summary.is_fine() {
        true => println!("{}", line.green().bold()),
        false => println!("{}", line.red().bold()),
    }
}

/// The words that say something is off, in red; the table is laid out by then.
fn coloured(text: &str) -> String {
    [report::LEAK, report::BLOCKED, report::BROKEN]
        .into_iter()
        .fold(text.to_owned(), |text, word| {
            text.replace(word, &word.red().bold().to_string())
        })
}
