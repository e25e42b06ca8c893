//! The fuzz targets, each a function of bytes that panics when something is wrong. Two drivers call them: libFuzzer, from
//! `fuzz_targets/`, and proptest, from `tests/fuzz.rs` of the main package, where they run bounded with all other tests.

mod mutate;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use palisade::manifests::{self, Loaded};
use policy_compiler::cluster::{Cluster, Endpoint};
use policy_compiler::compile::{Compiler, Event, Subjects, compile as from_scratch};
use policy_compiler::evaluate::Evaluator;
use policy_compiler::lint::lint;
use policy_compiler::policy::Direction;
use policy_compiler::table::{AllowSet, Table};
use policy_compiler::testing::{self, Tiers};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use mutate::Script;

/// The pairs of ends that one run looks at.
const PAIRS: usize = 64;

/// The most random clusters that one is made of.
const SEEDS: usize = 12;

/// The manifests of the fixtures, sorted by their paths.
static FIXTURES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let folder = root
        .map(|r| r.join("policy-compiler/tests/fixtures"))
        .find(|f| f.is_dir());
    let mut files = Vec::new();
    find(&folder.expect("the fixtures of policy-compiler"), &mut files);
    files.sort();
    files
        .iter()
        .map(|f| fs::read_to_string(f).expect("a fixture"))
        .collect()
});

/// Any bytes as a manifest: it is loaded, compiled and diagnosed, or every error has a place.
pub fn manifests(data: &[u8]) {
    answer(&String::from_utf8_lossy(data));
}

/// A fixture that is changed as the bytes say, in its text or in its tree.
pub fn mutations(data: &[u8]) {
    let mut script = Script::new(data);
    let text = &FIXTURES[script.below(FIXTURES.len())];
    let changed = match script.below(2) {
        0 => mutate::text(text, &mut script),
        _ => mutate::tree(text, &mut script),
    };
    answer(&changed);
}

/// A cluster made of the bytes: the compiler must say what the reference evaluator says.
pub fn compile(data: &[u8]) {
    let (first, rest) = data.split_first().unwrap_or((&0, &[]));
    let Some(cluster) = cluster(rest) else { return };
    let table = from_scratch(&cluster, &Subjects::All);
    let evaluator = Evaluator::new(&cluster);
    let ends = testing::endpoints(&cluster, &table);
    for (from, to) in pairs(&ends, usize::from(*first)) {
        let (allowed, would) = (table.allowed(from, to), table.would_allow(from, to));
        for traffic in testing::traffics() {
            let decision = evaluator.decide(from, to, traffic);
            let audit = (would.contains(traffic), decision.would_be_allowed());
            assert_eq!(
                audit.0, audit.1,
                "audit of {from} -> {to} on {traffic}: {decision}\n{cluster:#?}"
            );
            assert_eq!(
                allowed.contains(traffic),
                decision.allowed,
                "{from} -> {to} on {traffic}: {decision}\n{cluster:#?}"
            );
        }
    }
}

/// Events made of the bytes: the table that follows them must be the one that is compiled from scratch.
pub fn events(data: &[u8]) {
    let (moves, rest) = data.split_at(data.len().min(60) / 2);
    let (one, other) = rest.split_at(rest.len() / 2);
    let (Some(mut now), Some(source)) = (cluster(one), cluster(other)) else {
        return;
    };
    let start = now.clone();
    let mut compiler = Compiler::new(&now, Subjects::All);
    let mut script = Script::new(moves);
    while !script.is_empty() {
        let Some(event) = event(&mut now, [&start, &source], &mut script) else {
            continue;
        };
        let said = format!("{event:?}");
        compiler.apply(event);
        let scratch = from_scratch(&now, &Subjects::All);
        assert_eq!(meaning(compiler.table()), meaning(&scratch), "{said}\n{now:#?}");
    }
}

/// Loads a text and does with it all that can be done without a kernel.
fn answer(text: &str) {
    const NAME: &str = "fuzz.yaml";
    match manifests::parse(NAME, text) {
        Ok(loaded) => use_all_of(&loaded),
        Err(errors) => {
            assert!(!errors.to_string().is_empty());
            let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count();
            for error in errors.errors() {
                let position = error.source.position.unwrap_or_else(|| panic!("no place: {error}"));
                let there = (1..=lines + 1).contains(&(position.line as usize)) && position.column >= 1;
                assert!(there, "no such place: {error}\n{text}");
                assert!(!error.message.is_empty(), "no message: {error:?}\n{text}");
            }
        }
    }
}

fn use_all_of(loaded: &Loaded) {
    let cluster = &loaded.cluster;
    let table = from_scratch(cluster, &Subjects::All);
    for diagnostic in lint(cluster, &table) {
        assert!(!diagnostic.to_string().is_empty());
    }
    let whole = meaning(&table);
    for node in cluster.nodes.keys().take(4) {
        let part = from_scratch(cluster, &Subjects::Node(node.clone()));
        let of_node = |t: &Table| -> Vec<[AllowSet; 2]> {
            let here = t.pods().filter(|(_, pod)| pod.node.as_ref() == Some(node));
            here.map(|(index, _)| Direction::BOTH.map(|d| t.allow_set(index, d)))
                .collect()
        };
        assert_eq!(of_node(&part), of_node(&table));
    }
    assert_eq!(whole.len(), table.pods().count());
    let evaluator = Evaluator::new(cluster);
    let book = table.addresses();
    let ends: Vec<Endpoint> = cluster.pods.values().flat_map(|p| book.endpoints(p)).collect();
    for (from, to) in pairs(&ends, 0).take(16) {
        let allowed = table.allowed(from, to);
        let traffic = allowed.example().or_else(|| allowed.complement().example());
        if let Some(traffic) = traffic {
            let decision = evaluator.decide(from, to, traffic);
            assert_eq!(
                allowed.contains(traffic),
                decision.allowed,
                "{from} -> {to} on {traffic}: {decision}"
            );
        }
    }
}

/// Every four bytes give one random cluster; the first is taken whole, of each other a pod and a policy. So a change of few
/// bytes changes few objects, which is what a fuzzer needs to find its way.
fn cluster(data: &[u8]) -> Option<Cluster> {
    let mut seeds = data.chunks(4).take(SEEDS);
    let mut out = random(seeds.next()?)?;
    for (at, other) in seeds.filter_map(random).enumerate() {
        if let Some(pod) = other.pods.values().nth(at % other.pods.len().max(1)) {
            out.pods.insert(pod.name.clone(), pod.clone());
        }
        if let Some((key, policy)) = other.policies.iter().next() {
            out.policies.insert(key.clone(), policy.clone());
        }
    }
    Some(out)
}

fn random(seed: &[u8]) -> Option<Cluster> {
    let mut bytes = [1; 16];
    bytes[..seed.len()].copy_from_slice(seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::XorShift, &bytes));
    let tree = testing::cluster(Tiers::All).new_tree(&mut runner).ok()?;
    Some(tree.current())
}

/// Up to [`PAIRS`] of all pairs of ends, evenly spread.
fn pairs(ends: &[Endpoint], offset: usize) -> impl Iterator<Item = (&Endpoint, &Endpoint)> {
    let all = ends.len() * ends.len();
    let step = (all / PAIRS).max(1);
    let chosen = (offset % step..all).step_by(step);
    chosen.map(move |at| (&ends[at / ends.len()], &ends[at % ends.len()]))
}

/// The allow sets of a pod in one direction: that in force, and that of the audited policies.
type Sets = (AllowSet, Option<AllowSet>);

/// The allow sets of every pod: what a table says, without the numbers that it gives to things.
fn meaning(table: &Table) -> Vec<(String, [Sets; 2])> {
    let sets = |index| Direction::BOTH.map(|d| (table.allow_set(index, d), table.audited_allow_set(index, d)));
    let mut out: Vec<_> = table
        .pods()
        .map(|(index, pod)| (pod.name.to_string(), sets(index)))
        .collect();
    out.sort_by(|a, b| a.0.cmp(&b.0));
    out
}

/// The next event of a script, done to the cluster too: an object of one of the sources comes, or one goes.
fn event(now: &mut Cluster, sources: [&Cluster; 2], script: &mut Script<'_>) -> Option<Event> {
    let (kind, comes, source) = (script.below(8), script.below(3) > 0, sources[script.below(2)]);
    let from = if comes { source } else { &*now };
    Some(match kind {
        0..=3 => {
            let pod = script.pick(from.pods.values())?.clone();
            if comes {
                now.pods.insert(pod.name.clone(), pod.clone());
                Event::Pod(pod)
            } else {
                now.pods.remove(&pod.name);
                Event::PodGone(pod.name.clone())
            }
        }
        4 => {
            let namespace = script.pick(from.namespaces.values())?.clone();
            if comes {
                now.namespaces.insert(namespace.name.clone(), namespace.clone());
                Event::Namespace(namespace)
            } else {
                now.namespaces.remove(&namespace.name);
                Event::NamespaceGone(namespace.name.clone())
            }
        }
        5 => {
            let node = script.pick(from.nodes.values())?.clone();
            if comes {
                now.nodes.insert(node.name.clone(), node.clone());
                Event::Node(node)
            } else {
                now.nodes.remove(&node.name);
                Event::NodeGone(node.name.clone())
            }
        }
        _ => {
            let policy = script.pick(from.policies.values())?.clone();
            let key = (policy.tier, policy.name.clone());
            if comes {
                now.policies.insert(key, policy.clone());
                Event::Policy(policy)
            } else {
                now.policies.remove(&key);
                Event::PolicyGone(key.0, key.1)
            }
        }
    })
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            find(&path, files);
        } else if path
            .extension()
            .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
        {
            files.push(path);
        }
    }
}
