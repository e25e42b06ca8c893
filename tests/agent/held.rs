//! Whether the kernel holds what the API server's objects ask for: no less, and nothing that is left over.

use std::fs;
use std::path::PathBuf;

use palisade::nft::listing::Listing;
use palisade::nft::{Kernel, Nft, Settings, render, replace};
use palisade::sandbox::Netns;
use policy_compiler::cluster::Cluster;
use policy_compiler::compile::{Subjects, compile};
use tokio::runtime::Runtime;

use super::Agent;
use super::api::Api;
use super::canonical::canonical;
use super::cluster::arguments;
use super::server::Server;

/// An agent of a node that watches this API server; its files go into the folder.
pub(crate) fn agent(api: &Api, node: &str, folder: &tempfile::TempDir) -> Agent {
    let arguments = arguments(node, folder.path(), &api.kubeconfig(None), &[]);
    Agent::with(&arguments, folder.path().join("log"))
}

/// In which respect the kernel of this namespace does not hold what the objects ask for on a node: compared with another kernel's
/// table that has just been made from the objects, in the words of nft, but for the numbers of classes.
pub(crate) fn difference(runtime: &Runtime, api: &Api, node: &str) -> Option<String> {
    let cluster = runtime.block_on(api.cluster());
    let kernel = Nft::default();
    let Some(found) = kernel.read().ok().flatten() else {
        return Some("there is no table".to_owned());
    };
    let fresh = Netns::new("a fresh kernel").expect("a namespace");
    let wanted = fresh.run(|| made(&kernel, &cluster, node)).expect("a thread");
    let sizes = |l: &Listing| (l.chains.len(), l.sets.len());
    if sizes(&found) != sizes(&wanted) {
        return Some(format!(
            "{:?} chains and sets instead of {:?}",
            sizes(&found),
            sizes(&wanted)
        ));
    }
    let (found, wanted) = (canonical(&found), canonical(&wanted));
    let chains = wanted
        .chains
        .iter()
        .find(|(name, rules)| found.chains.get(*name) != Some(rules));
    let sets = wanted
        .sets
        .iter()
        .find(|(name, elements)| found.sets.get(*name) != Some(elements));
    match (chains, sets) {
        (Some((name, rules)), _) => Some(format!(
            "chain {name}: {:#?} instead of {rules:#?}",
            found.chains.get(name)
        )),
        (_, Some((name, elements))) => Some(format!(
            "set {name}: {:#?} instead of {elements:#?}",
            found.sets.get(name)
        )),
        // As many names, and all of them alike.
        (None, None) => None,
    }
}

fn made(kernel: &Nft, cluster: &Cluster, node: &str) -> Listing {
    let ruleset = render(&compile(cluster, &Subjects::Node(node.into())), Settings::default());
    kernel
        .apply(&replace(&ruleset).expect("a transaction"))
        .expect("applied");
    kernel.read().expect("read").expect("a table")
}

/// What a process has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Footprint {
    /// Resident memory of its own, in KiB: not the pages of the program, which come when they are first used.
    pub(crate) memory: usize,
    /// Open file descriptors.
    pub(crate) files: usize,
    /// Children, those that have ended and wait to be asked for included.
    pub(crate) children: usize,
    pub(crate) threads: usize,
}

impl Footprint {
    pub(crate) fn of(agent: &Agent) -> Footprint {
        let process = PathBuf::from(format!("/proc/{}", agent.child.id()));
        let status = fs::read_to_string(process.join("status")).expect("a process");
        let field = |name: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .expect("a field");
            line.split_whitespace()
                .next()
                .expect("a value")
                .parse()
                .expect("a number")
        };
        let tasks = fs::read_dir(process.join("task")).expect("threads").flatten();
        let children = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
        Footprint {
            memory: field("RssAnon:"),
            threads: field("Threads:"),
            files: fs::read_dir(process.join("fd")).expect("files").count(),
            children: children.map(|list| list.split_whitespace().count()).sum(),
        }
    }
}

/// The value of a metric without a fraction.
pub(crate) fn value(agent: &Agent, name: &str) -> u64 {
    let text = agent.get("/metrics").1;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no metric {name}:\n{text}"))
        .parse()
        .expect("a number")
}
