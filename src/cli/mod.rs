//! The command line: arguments in; text on standard output, one message on standard error, and an exit code out.
//! `args` holds every flag; each command has a file of its own that turns loaded manifests into text.

mod allow_sets;
mod args;
mod cluster;
mod compile;
mod denied;
mod describe;
mod diff;
mod endpoint;
mod ends;
mod explain;
mod github;
mod lint;
mod lint_report;
mod markdown;
mod matrix;
mod outcomes;
mod output;
mod pairs;
mod ports;
mod preflight;
mod sarif;
mod service;
mod status;
mod tap;
mod test;
mod test_file;
mod test_report;
mod verdict;

use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use policy_compiler::compile::Subjects;
use policy_compiler::diagnostics::Severity;
use policy_compiler::labels::Name;
use policy_compiler::table::PodIndex;

use args::{
    AgentArgs, BridgeNetfilter, CleanupArgs, Cli, Command, CompileArgs, CompileOutput, DemoArgs, DenyAction, DiffArgs,
    DiffOutput, ExplainArgs, LintArgs, LintOutput, LintSeverity, Manifests, MatrixArgs, MatrixOutput, Mode,
    PreflightArgs, StatusArgs, TestArgs, TestOutput, TextOrJson, UnknownPods,
};
use diff::Diff;
use ends::Compiled;
use explain::Question;
use matrix::Matrix;
use output::{Style, caution, count, doubt, note, print, warn};
use ports::PortSpec;

use crate::manifests::Loaded;
use crate::plain::{line, lines};
use crate::preflight::Verdict;
use crate::{agent, demo, nft, sandbox};

/// How a command ended, when it could do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing to object to: exit code 0.
    Fine,
    /// A failed assertion, a difference, a finding: exit code 1.
    Findings,
}

/// Runs the program with the arguments of this process.
pub fn main() -> ExitCode {
    // Bad usage ends here, with exit code 2.
    let cli = Cli::parse();
    match run(&cli.command) {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Findings) => ExitCode::from(1),
        Err(error) => {
            let mut stderr = anstream::stderr();
            // When even standard error is gone, the exit code has to do.
            let _ = writeln!(
                stderr,
                "{} {}",
                Style::Bad.paint("error:"),
                lines(&format!("{error:#}"))
            );
            ExitCode::from(2)
        }
    }
}

fn run(command: &Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Compile(args) => run_compile(args),
        Command::Explain(args) => run_explain(args),
        Command::Matrix(args) => run_matrix(args),
        Command::Lint(args) => run_lint(args),
        Command::Test(args) => run_test(args),
        Command::Diff(args) => run_diff(args),
        Command::Agent(args) => run_agent(args),
        Command::Denied(args) => denied::run(args),
        Command::Preflight(args) => run_preflight(args),
        Command::Status(args) => run_status(args),
        Command::Cleanup(args) => run_cleanup(args),
        Command::Demo(args) => run_demo(args),
    }
}

fn run_compile(args: &CompileArgs) -> anyhow::Result<Outcome> {
    let (loaded, compiled) = load(&args.manifests)?;
    let node = args
        .node
        .as_deref()
        .map(|name| known_node(&compiled, name))
        .transpose()?;
    let on_node = |at: &PodIndex| node.is_none() || compiled.table.pod(*at).node == node;
    let pods: Vec<PodIndex> = compiled.table.pods().map(|(at, _)| at).filter(on_node).collect();
    let text = match args.output {
        CompileOutput::Json => allow_sets::json(&compiled, &pods)?,
        CompileOutput::Text => {
            let mut text = compile::text(&compiled, &pods);
            text.push_str(&summary(&loaded, &compiled));
            text
        }
        CompileOutput::Nft => rules(&compiled, node)?,
    };
    if args.output != CompileOutput::Text {
        warn(&loaded.warnings);
    }
    print(&text)?;
    Ok(Outcome::Fine)
}

fn run_explain(args: &ExplainArgs) -> anyhow::Result<Outcome> {
    let (loaded, compiled) = load(&args.manifests)?;
    let question = Question {
        from: &args.from,
        to: &args.to,
        port: &args.port,
    };
    let explanation = explain::explain(&compiled, question)?;
    warn(&loaded.warnings);
    doubt(&compiled.diagnostics());
    print(&match args.output {
        TextOrJson::Text => explanation.text(&compiled, &loaded),
        TextOrJson::Json => explanation.json(&compiled, &loaded)?,
    })?;
    Ok(Outcome::Fine)
}

fn run_matrix(args: &MatrixArgs) -> anyhow::Result<Outcome> {
    let (loaded, compiled) = load(&args.manifests)?;
    let port = args.port.as_ref().unwrap_or(&PortSpec::All);
    let matrix = Matrix::new(&compiled, port, args.all_ports)?;
    warn(&loaded.warnings);
    doubt(&compiled.diagnostics());
    print(&match args.output {
        MatrixOutput::Text => matrix.text(),
        MatrixOutput::Json => matrix.json()?,
        MatrixOutput::Csv => matrix.csv(),
        MatrixOutput::Markdown => matrix.markdown(),
    })?;
    Ok(Outcome::Fine)
}

fn run_lint(args: &LintArgs) -> anyhow::Result<Outcome> {
    let loaded = load(&args.manifests);
    let (loaded, compiled) = match args.output {
        LintOutput::Github => github::annotated(loaded)?,
        _ => loaded?,
    };
    let filter = lint::Filter {
        only: args.only.clone(),
        ignore: args.ignore.clone(),
        least: match args.min_severity {
            LintSeverity::Warning => Severity::Warning,
            LintSeverity::Note => Severity::Note,
        },
    };
    let findings = lint::findings(&loaded, &compiled, &filter);
    print(&match args.output {
        LintOutput::Text => lint_report::text(&findings),
        LintOutput::Json => lint_report::json(&findings)?,
        LintOutput::Sarif => sarif::sarif(&findings)?,
        LintOutput::Github => lint_report::github(&findings),
    })?;
    let fails = findings.count(Severity::Warning) > 0 || args.strict && !findings.told.is_empty();
    Ok(if fails { Outcome::Findings } else { Outcome::Fine })
}

fn run_test(args: &TestArgs) -> anyhow::Result<Outcome> {
    let report = test::run(&args.paths, args.live.target().as_ref());
    let test::Report {
        results,
        warnings,
        diagnostics,
    } = match args.output {
        TestOutput::Github => github::annotated(report)?,
        _ => report?,
    };
    warn(&warnings);
    doubt(&diagnostics);
    print(&match args.output {
        TestOutput::Text => test_report::text(&results),
        TestOutput::Json => test_report::json(&results)?,
        TestOutput::Junit => test_report::junit(&results)?,
        TestOutput::Tap => tap::tap(&results)?,
        TestOutput::Github => test_report::github(&results),
    })?;
    let passed = results.iter().all(|r| r.passed);
    Ok(if passed { Outcome::Fine } else { Outcome::Findings })
}

fn run_diff(args: &DiffArgs) -> anyhow::Result<Outcome> {
    let (before, after) = cluster::versions(args)?;
    warn(&before.0.warnings);
    // What was odd before is no news.
    warn(&diff::news(&before.0.warnings, &after.0.warnings));
    doubt(&diff::news(&before.1.diagnostics(), &after.1.diagnostics()));
    let diff = Diff::new(&before, &after);
    diff.doubts().iter().for_each(|doubt| caution(doubt));
    if !args.overlay && diff.has_nothing_in_common() {
        note("NEW has none of OLD's pods: if it is only the change, to be put over OLD, give --overlay");
    }
    print(&match args.output {
        DiffOutput::Text => diff.text(),
        DiffOutput::Json => diff.json()?,
        DiffOutput::Markdown => diff.markdown(&diff::command(args)),
    })?;
    Ok(if diff.is_empty() {
        Outcome::Fine
    } else {
        Outcome::Findings
    })
}

fn run_agent(args: &AgentArgs) -> anyhow::Result<Outcome> {
    let source = match (&args.manifests, &args.kubeconfig) {
        (Some(folder), _) => agent::Source::Folder(folder.clone()),
        (None, Some(file)) => agent::Source::Cluster(agent::source::Target::Kubeconfig {
            file: Some(file.clone()),
            context: args.context.clone(),
        }),
        (None, None) => agent::Source::Cluster(agent::source::Target::ServiceAccount),
    };
    agent::run(agent::Options {
        source,
        node: args.node_name.as_str().into(),
        http_addr: args.http_addr,
        settings: nft::Settings {
            mode: match args.mode {
                Mode::Enforce => nft::Mode::Enforce,
                Mode::Audit => nft::Mode::Audit,
            },
            deny_action: match args.deny_action {
                DenyAction::Drop => nft::DenyAction::Drop,
                DenyAction::Reject => nft::DenyAction::Reject,
            },
            verified: args.verified_mark,
            unknown_pods: match args.unknown_pods {
                UnknownPods::Allow => nft::UnknownPods::Allow,
                UnknownPods::Drop => nft::UnknownPods::Drop,
            },
        },
        bridges: match args.bridge_netfilter {
            BridgeNetfilter::Auto => agent::bridge::Mode::Auto,
            BridgeNetfilter::Require => agent::bridge::Mode::Require,
            BridgeNetfilter::Ignore => agent::bridge::Mode::Ignore,
        },
    })?;
    Ok(Outcome::Fine)
}

fn run_preflight(args: &PreflightArgs) -> anyhow::Result<Outcome> {
    // Without its files every look at them would find nothing to object to.
    if !args.root.is_dir() {
        anyhow::bail!(
            "--root {}: there is no such folder: name the one where the node's file system is mounted",
            args.root.display()
        );
    }
    let in_a_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let cluster = match &args.kubeconfig {
        Some(file) => Some(agent::source::Target::Kubeconfig {
            file: Some(file.clone()),
            context: args.context.clone(),
        }),
        None => in_a_pod.then_some(agent::source::Target::ServiceAccount),
    };
    let findings = crate::preflight::run(&crate::preflight::Options {
        root: args.root.clone(),
        nft: nft::Nft::default(),
        cluster,
    });
    print(&match args.output {
        TextOrJson::Text => preflight::text(&findings),
        TextOrJson::Json => preflight::json(&findings)?,
    })?;
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Failed);
    Ok(if failed { Outcome::Findings } else { Outcome::Fine })
}

fn run_status(args: &StatusArgs) -> anyhow::Result<Outcome> {
    let status = status::ask(args.http_addr)?;
    print(&match args.output {
        TextOrJson::Text => status::text(&status),
        TextOrJson::Json => output::json(&status)?,
    })?;
    Ok(if status.ready { Outcome::Fine } else { Outcome::Findings })
}

fn run_cleanup(args: &CleanupArgs) -> anyhow::Result<Outcome> {
    let agent::Cleaned { table, connections } = agent::cleanup(args.verified_mark)?;
    if table && status::ask(agent::HTTP_ADDRESS).is_ok() {
        caution(&format!(
            "an agent runs here ({}): it puts the table back within a second; stop it, and clean up again",
            agent::HTTP_ADDRESS
        ));
    }
    print(match table {
        true => "removed the table inet palisade\n",
        false => "there is no table inet palisade: nothing to remove\n",
    })?;
    if let Some(connections) = connections {
        print(&format!("cleared the marks of {}\n", count(connections, "connection")))?;
    }
    Ok(Outcome::Fine)
}

fn run_demo(args: &DemoArgs) -> anyhow::Result<Outcome> {
    // While this process has a single thread.
    sandbox::become_root_in_user_namespace()?;
    let summary = demo::run(&demo::Options {
        manifests: args.manifests.clone(),
        output: match args.output {
            TextOrJson::Text => demo::Output::Text,
            TextOrJson::Json => demo::Output::Json,
        },
    })?;
    Ok(if summary.is_fine() {
        Outcome::Fine
    } else {
        Outcome::Findings
    })
}

/// The rules of one node as nft text.
fn rules(compiled: &Compiled, node: Option<Name>) -> anyhow::Result<String> {
    let node = match node {
        Some(node) => node,
        None => only_node(compiled)?,
    };
    let table = policy_compiler::compile::compile(&compiled.cluster, &Subjects::Node(node));
    Ok(nft::render(&table, nft::Settings::default()).to_string())
}

fn load(manifests: &Manifests) -> anyhow::Result<(Loaded, Compiled)> {
    let loaded = cluster::load(manifests)?;
    let compiled = Compiled::new(loaded.cluster.clone());
    Ok((loaded, compiled))
}

/// The nodes that are given, or that pods are on.
fn nodes(compiled: &Compiled) -> BTreeSet<Name> {
    let of_pods = compiled.pods().filter_map(|p| p.node.clone());
    compiled.cluster.nodes.keys().cloned().chain(of_pods).collect()
}

fn known_node(compiled: &Compiled, name: &str) -> anyhow::Result<Name> {
    let nodes = nodes(compiled);
    if let Some(node) = nodes.get(name) {
        return Ok(node.clone());
    }
    let known: Vec<String> = nodes.iter().map(|name| line(name)).collect();
    match known.is_empty() {
        true => anyhow::bail!("there is no node {name}: there are no nodes, and no pod is on one"),
        false => anyhow::bail!("there is no node {name}: the nodes are {}", known.join(", ")),
    }
}

fn only_node(compiled: &Compiled) -> anyhow::Result<Name> {
    let nodes = nodes(compiled);
    let known: Vec<String> = nodes.iter().map(|name| line(name)).collect();
    match (nodes.first(), nodes.len()) {
        (Some(node), 1) => Ok(node.clone()),
        (None, _) => {
            anyhow::bail!("-o nft prints the rules of a node, and no pod is on one (spec.nodeName)")
        }
        _ => anyhow::bail!(
            "-o nft prints the rules of one node: say which with --node ({})",
            known.join(", ")
        ),
    }
}

/// What was read, what is odd about it, and what was passed over.
fn summary(loaded: &Loaded, compiled: &Compiled) -> String {
    let namespaces: BTreeSet<&Name> = compiled.pods().map(|p| &p.name.namespace).collect();
    let mut out = format!(
        "{} in {}, {}",
        count(compiled.pods().count(), "pod"),
        count(namespaces.len(), "namespace"),
        count(compiled.cluster.policies.len(), "policy")
    );
    if !loaded.derived.is_empty() {
        out.push_str(&format!(
            "; {} derived from workloads",
            count(loaded.derived.len(), "pod")
        ));
    }
    if !loaded.skipped.is_empty() {
        let kinds = loaded.skipped.iter().map(|(kind, n)| format!("{n} {}", line(kind)));
        let kinds: Vec<String> = kinds.collect();
        out.push_str(&format!("; passed over: {}", kinds.join(", ")));
    }
    out.push('\n');
    for warning in &loaded.warnings {
        out.push_str(&Style::Warn.paint(&format!("warning: {warning}\n")));
    }
    for diagnostic in compiled.diagnostics() {
        out.push_str(&Style::Warn.paint(&format!("{}\n", line(&diagnostic.to_string()))));
    }
    out
}

/// Checks how a text of the command line is read: what it is printed as, or a part of the error.
#[cfg(test)]
#[track_caller]
fn check_syntax<T>(text: &str, expected: Result<&str, &str>)
where
    T: std::str::FromStr<Err: std::fmt::Display> + std::fmt::Display,
{
    let found = text.parse::<T>().map(|t| t.to_string()).map_err(|e| e.to_string());
    match (found, expected) {
        (Ok(found), Ok(expected)) => assert_eq!(found, expected),
        (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
        (found, _) => panic!("{text}: {found:?}"),
    }
}
