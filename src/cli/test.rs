//! `palisade test`: test files in, a result for every case out. A case is proven over all pairs and ports that it speaks
//! of; a failing one comes with a counterexample and the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use policy_compiler::cluster::Endpoint;
use policy_compiler::diagnostics::Diagnostic;
use policy_compiler::evaluate::Evaluator;
use policy_compiler::ports::{PortSet, Traffic};
use serde::Serialize;

use super::cluster;
use super::endpoint::EndpointSpec;
use super::ends::{Compiled, End};
use super::outcomes::usual;
use super::pairs::{self, first_pair, itself};
use super::service;
use super::test_file::{Case, Expect, Pods, Selection, TestFile};
use super::verdict::Verdict;
use crate::agent::source::{Target, Wanted};
use crate::manifests::{self, LoadErrors, Loaded, Node, Position, Problem, Value};

/// The result of one case.
#[derive(Debug, Serialize)]
pub(crate) struct CaseResult {
    /// The file that it is in.
    pub(crate) file: String,
    /// Where in it.
    #[serde(skip)]
    pub(crate) position: Position,
    /// `metadata.name` of the test.
    pub(crate) test: String,
    /// Its name.
    pub(crate) name: String,
    /// What it expects.
    pub(crate) expect: Expect,
    /// Whether that is so.
    pub(crate) passed: bool,
    /// A connection that is not as expected.
    pub(crate) counterexample: Option<Counterexample>,
}

/// A connection that is not as a case expects.
#[derive(Debug, Serialize)]
pub(crate) struct Counterexample {
    /// The source.
    pub(crate) from: String,
    /// The destination.
    pub(crate) to: String,
    /// The port.
    pub(crate) port: String,
    /// What becomes of it.
    pub(crate) verdict: Verdict,
    /// Why.
    pub(crate) reason: String,
}

/// What the tests came to.
pub(crate) struct Report {
    /// The cases, in the order of the files.
    pub(crate) results: Vec<CaseResult>,
    /// What is odd about the manifests, or about the objects of a live cluster.
    pub(crate) warnings: Vec<Problem>,
    /// What is odd about the clusters that they describe.
    pub(crate) diagnostics: Vec<Diagnostic>,
}

/// Runs all tests of files and folders, in their order: on the manifests that they name, or all on a live cluster. What is odd
/// about these comes beside the results.
///
/// # Errors
/// Everything that is wrong with any test file, with the manifests of any, or with any case; or that the live cluster cannot be
/// read.
pub(crate) fn run(paths: &[PathBuf], live: Option<&Target>) -> anyhow::Result<Report> {
    let (documents, mut problems) = manifests::read(paths);
    let mut tests = Vec::new();
    for test in documents.into_iter().filter_map(TestFile::read) {
        match test {
            Ok(test) => tests.push(test),
            Err(errors) => problems.extend(errors),
        }
    }
    if tests.is_empty() && problems.is_empty() {
        let paths: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
        anyhow::bail!(
            "no test in {}: write a document of kind ConnectivityTest",
            paths.join(", ")
        );
    }
    let mut clusters: BTreeMap<&[PathBuf], Option<Rc<Compiled>>> = BTreeMap::new();
    let (mut results, mut warnings, mut diagnostics) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let mut compile = |loaded: Loaded| {
        warnings.extend(loaded.warnings);
        let compiled = Compiled::new(loaded.cluster);
        diagnostics.extend(compiled.diagnostics());
        Some(Rc::new(compiled))
    };
    // Test files that are wrong need no cluster to be told so.
    if live.is_some()
        && let Some(errors) = LoadErrors::new(std::mem::take(&mut problems))
    {
        return Err(errors.into());
    }
    let live = live.map(|target| cluster::live(target, Wanted::Services)).transpose()?;
    let live = live.and_then(&mut compile);
    for test in &tests {
        let compiled = live.clone().or_else(|| {
            let loaded = clusters.entry(&test.resources);
            let loaded = loaded.or_insert_with(|| match manifests::load(&test.resources) {
                Ok(loaded) => compile(loaded),
                Err(errors) => {
                    problems.extend(errors.errors().iter().cloned());
                    None
                }
            });
            loaded.clone()
        });
        let Some(compiled) = compiled else { continue };
        for (at, case) in test.cases.iter().enumerate() {
            match judge(&compiled, test, at, case) {
                Ok(counterexample) => results.push(CaseResult {
                    file: test.file.to_string(),
                    position: test.position(at),
                    test: test.name.clone(),
                    name: case.name.clone(),
                    expect: case.expect,
                    passed: counterexample.is_none(),
                    counterexample,
                }),
                Err(errors) => problems.extend(errors),
            }
        }
    }
    match LoadErrors::new(problems) {
        Some(errors) => Err(errors.into()),
        None => Ok(Report {
            results,
            warnings: warnings.into_iter().collect(),
            diagnostics: diagnostics.into_iter().collect(),
        }),
    }
}

/// Proves a case, or finds the first connection, by name, that speaks against it.
fn judge(compiled: &Compiled, test: &TestFile, at: usize, case: &Case) -> Result<Option<Counterexample>, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut side = |selection: &Selection, name: &str| {
        let mut resolver = Resolver {
            compiled,
            problem: &mut |node: &Node, message: String| problems.push(test.problem(at, node, message)),
        };
        let ends = resolver.ends(selection, test.field(at, name));
        ends.into_iter().collect::<Vec<End>>()
    };
    let (from, to) = (side(&case.from, "from"), side(&case.to, "to"));
    if !problems.is_empty() {
        return Err(problems);
    }
    for port in &case.ports.0 {
        if to.iter().all(|end| port.on(&end.endpoint()).is_empty()) {
            let message =
                format!("no destination has a port {port}: write a number, or a name that a container's ports list");
            problems.push(test.problem(at, test.field(at, "ports"), message));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let asked = |to: &Endpoint| {
        let ports = case.ports.0.iter().map(|port| port.on(to));
        ports.fold(PortSet::none(), |all, one| all.union(&one))
    };
    let proof = prove(compiled, &from, &to, asked, case);
    match proof {
        Proof::NoPair => {
            let message = "there is no pair to test (source and destination are one pod, have no address family in common, or the \
                           destinations that are left have no such port): name other ends";
            Err(vec![test.problem(at, test.field(at, "from"), message)])
        }
        Proof::Holds => Ok(None),
        Proof::Fails(pair) => {
            let (from, to, ports) = *pair;
            Ok(counterexample(compiled, &from, &to, &ports))
        }
    }
}

/// What comes of a case.
enum Proof {
    /// It speaks of no pair.
    NoPair,
    /// Every pair is as expected.
    Holds,
    /// This pair is not, on these ports.
    Fails(Box<(End, End, PortSet)>),
}

fn prove(compiled: &Compiled, from: &[End], to: &[End], asked: impl Fn(&Endpoint) -> PortSet, case: &Case) -> Proof {
    let against = |asked: &PortSet, allowed: &PortSet| match case.expect {
        Expect::Allow => asked.minus(allowed),
        Expect::Deny => asked.intersection(allowed),
    };
    let mut tested = false;
    let mut worst: Option<(End, End, PortSet)> = None;
    let mut see = |from: &End, to: &End, against: PortSet| {
        tested = true;
        let sooner = worst.as_ref().is_none_or(|(f, t, _)| (from, to) < (f, t));
        if !against.is_empty() && sooner {
            worst = Some((from.clone(), to.clone(), against));
        }
    };
    if names_one_pod(&case.from) && names_one_pod(&case.to) && from.iter().all(|f| to.iter().all(|t| itself(f, t))) {
        for from in from {
            for to in to {
                let (source, destination) = (from.endpoint(), to.endpoint());
                let asked = asked(&destination);
                if source.same_family(&destination) && !asked.is_empty() {
                    see(
                        from,
                        to,
                        against(&asked, &compiled.table.allowed(&source, &destination)),
                    );
                }
            }
        }
    } else {
        pairs::visit(compiled, from, to, asked, |block| {
            if let Some((from, to)) = first_pair(block.from, block.to) {
                see(from, to, against(block.asked, block.allowed));
            }
        });
    }
    match (tested, worst) {
        (false, _) => Proof::NoPair,
        (true, None) => Proof::Holds,
        (true, Some(pair)) => Proof::Fails(Box::new(pair)),
    }
}

/// Whether a selection is one pod by its name or by an address of it.
fn names_one_pod(selection: &Selection) -> bool {
    matches!(
        selection,
        Selection::Endpoint(EndpointSpec::Pod(_) | EndpointSpec::Address(_))
    )
}

fn counterexample(compiled: &Compiled, from: &End, to: &End, ports: &PortSet) -> Option<Counterexample> {
    let (source, destination) = (from.endpoint(), to.endpoint());
    let traffic = usual(&destination, ports)?;
    let decision = Evaluator::new(&compiled.cluster).decide(&source, &destination, traffic);
    let name = |end: &Endpoint| match end {
        Endpoint::Pod(pod, _) => pod.name.to_string(),
        Endpoint::Address(address) => address.to_string(),
    };
    Some(Counterexample {
        from: name(&source),
        to: name(&destination),
        port: match traffic {
            Traffic::Port(..) => traffic.to_string(),
            Traffic::Other => "other protocols, such as ICMP".to_owned(),
        },
        verdict: Verdict::one(decision.allowed),
        reason: decision.to_string(),
    })
}

/// Finds the ends of selections, and reports each that selects nothing.
struct Resolver<'c, 'p> {
    compiled: &'c Compiled,
    problem: &'p mut dyn FnMut(&Node, String),
}

impl Resolver<'_, '_> {
    fn ends(&mut self, selection: &Selection, node: &Node) -> BTreeSet<End> {
        match selection {
            Selection::Endpoint(endpoint) => self.endpoint(endpoint, node),
            Selection::Pods(pods) => self.pods(pods, node),
            Selection::Any(list) => {
                let nodes: &[Node] = match &node.value {
                    Value::List(nodes) => nodes,
                    _ => &[],
                };
                let at = |index: usize| nodes.get(index).unwrap_or(node);
                let each = list.iter().enumerate().map(|(index, one)| self.ends(one, at(index)));
                each.flatten().collect()
            }
        }
    }

    fn endpoint(&mut self, endpoint: &EndpointSpec, node: &Node) -> BTreeSet<End> {
        if let EndpointSpec::Address(address) = endpoint
            && let Some(service) = service::of_address(&self.compiled.cluster, *address)
        {
            let name = &service.name;
            let message =
                format!("{address} is the address of Service {name}, which policy never sees: name the pods behind it");
            (self.problem)(node, message);
            return BTreeSet::new();
        }
        match self.compiled.ends(endpoint) {
            Ok(ends) => ends.into_iter().collect(),
            Err(error) => {
                (self.problem)(node, error.to_string());
                BTreeSet::new()
            }
        }
    }

    fn pods(&mut self, pods: &Pods, node: &Node) -> BTreeSet<End> {
        let mut known = true;
        let mut not = BTreeSet::new();
        if let Some(selection) = &pods.not {
            let node = node.get("not").unwrap_or(node);
            let ends = self.ends(selection, node);
            known = !ends.is_empty();
            not = ends.iter().filter_map(End::pod).map(|pod| pod.name.clone()).collect();
            if known && not.is_empty() {
                (self.problem)(
                    node,
                    "not takes away no pod: name pods, or addresses of pods".to_owned(),
                );
                known = false;
            }
        }
        let cluster = &self.compiled.cluster;
        let matches = |pod: &&Arc<policy_compiler::cluster::Pod>| {
            let namespace = &pod.name.namespace;
            pods.namespace.as_ref().is_none_or(|n| **n == **namespace)
                && pods.pod_selector.as_ref().is_none_or(|s| s.0.matches(&pod.labels))
                && pods
                    .namespace_selector
                    .as_ref()
                    .is_none_or(|s| s.0.matches(&cluster.namespace_labels(namespace)))
                && !not.contains(&pod.name)
        };
        let compiled = self.compiled;
        let ends: BTreeSet<End> = compiled
            .selectable_pods()
            .filter(matches)
            .flat_map(|pod| compiled.pod_ends(pod))
            .collect();
        if ends.is_empty() && known {
            let message = format!("{} selects no pod: {}", words(pods), self.hint(pods));
            (self.problem)(node, message);
        }
        ends
    }

    fn hint(&self, pods: &Pods) -> String {
        let namespaces: BTreeSet<&str> = self.compiled.selectable_pods().map(|p| &*p.name.namespace).collect();
        match &pods.namespace {
            Some(name) if !namespaces.contains(&**name) => {
                let all: Vec<&str> = namespaces.into_iter().collect();
                format!("the namespaces with pods are {}", all.join(", "))
            }
            _ => "change it to match pods that there are (pods on the host network are never selected)".to_owned(),
        }
    }
}

fn words(pods: &Pods) -> String {
    let namespace = pods.namespace.as_ref().map(|n| format!("namespace {n}"));
    let namespaces = pods
        .namespace_selector
        .as_ref()
        .map(|s| format!("namespaceSelector {}", s.0));
    let selector = pods.pod_selector.as_ref().map(|s| format!("podSelector {}", s.0));
    let not = pods.not.as_ref().map(|_| "not [...]".to_owned());
    let parts: Vec<String> = [namespace, namespaces, selector, not].into_iter().flatten().collect();
    parts.join(" with ")
}
