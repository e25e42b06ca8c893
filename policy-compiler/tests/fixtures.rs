//! The fixture folders `fixtures/<group>/<scenario>/` go in, one snapshot each of the compiled allow sets comes out.
//! What connections a scenario is to allow stands in its test.yaml, a test file that `palisade test` runs.

#![allow(clippy::unwrap_used, reason = "a fixture that cannot be read fails its test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::serde::de::DeserializeOwned;
use policy_compiler::cells::AddressRange;
use policy_compiler::cluster::{Cluster, PodName};
use policy_compiler::compile::{Subjects, compile};
use policy_compiler::convert::{self, FieldError};
use policy_compiler::diagnostics::diagnose;
use policy_compiler::policy::Direction;
use policy_compiler::ports::PortSet;
use policy_compiler::table::{AllowSet, PodIndex, Table};
use serde_json::Value;

#[test]
fn allow_sets() {
    insta::glob!("fixtures/*/*/test.yaml", |path| {
        let (group, scenario) = names(path.parent().unwrap());
        let cluster = load(path);
        let table = compile(&cluster, &Subjects::All);
        insta::with_settings!({
            snapshot_path => format!("snapshots/{group}"),
            snapshot_suffix => "",
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, {
            insta::assert_snapshot!(scenario, render(&cluster, &table));
        });
    });
}

#[test]
fn every_scenario_is_whole_and_every_file_is_used() {
    let root = fixtures();
    let files: BTreeSet<PathBuf> = files(&root).into_iter().collect();
    let mut used = BTreeSet::new();
    for test in files.iter().filter(|f| f.ends_with("test.yaml")) {
        let folder = test.parent().unwrap();
        let (group, scenario) = names(folder);
        // Where `allow_sets` looks.
        assert_eq!(folder, root.join(group).join(&scenario));
        let document = &documents(test)[0];
        assert_eq!(document["metadata"]["name"], scenario.as_str(), "{}", test.display());
        assert!(!document["cases"].as_array().unwrap().is_empty(), "{}", test.display());
        let resources = resources(test);
        assert!(resources.contains(&folder.join("policy.yaml")), "{}", test.display());
        assert!(
            resources.iter().any(|r| r.ends_with("cluster.yaml")),
            "{}",
            test.display()
        );
        used.insert(test.clone());
        used.extend(resources);
    }
    let unused: Vec<_> = files.difference(&used).collect();
    assert!(unused.is_empty(), "named by no test.yaml: {unused:#?}");
    let missing: Vec<_> = used.difference(&files).collect();
    assert!(missing.is_empty(), "named by a test.yaml: {missing:#?}");
}

#[test]
fn every_snapshot_has_its_scenario() {
    let snapshots = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
    for snapshot in files(&snapshots)
        .iter()
        .filter(|f| f.extension() == Some("snap".as_ref()))
    {
        let scenario = snapshot.strip_prefix(&snapshots).unwrap().with_extension("");
        assert!(
            fixtures().join(&scenario).is_dir(),
            "nothing makes {}",
            snapshot.display()
        );
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The group and the scenario that a folder stands for.
fn names(folder: &Path) -> (String, String) {
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    (name(folder.parent().unwrap()), name(folder))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(files(&path));
        } else {
            out.push(path);
        }
    }
    out.sort();
    out
}

fn documents(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap();
    serde_saphyr::from_multiple(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// The files that a test.yaml names, with `..` resolved.
fn resources(test: &Path) -> Vec<PathBuf> {
    let folder = test.parent().unwrap();
    let document = documents(test).remove(0);
    let named = document["resources"].as_array().unwrap().iter();
    named
        .map(|r| match r.as_str().unwrap().strip_prefix("../") {
            Some(shared) => folder.parent().unwrap().join(shared),
            None => folder.join(r.as_str().unwrap()),
        })
        .collect()
}

fn load(test: &Path) -> Cluster {
    let mut cluster = Cluster::default();
    for file in resources(test) {
        for document in documents(&file) {
            add(&mut cluster, document, &file);
        }
    }
    cluster
}

fn add(cluster: &mut Cluster, object: Value, file: &Path) {
    let kind = object["kind"].as_str().unwrap().to_owned();
    match kind.as_str() {
        "Namespace" => cluster.add_namespace(read(object, file, convert::namespace)),
        "Node" => cluster.add_node(read(object, file, convert::node)),
        "Pod" => cluster.add_pod(read(object, file, convert::pod)),
        "NetworkPolicy" => {
            let (policy, _warnings) = read(object, file, convert::network_policy);
            cluster.add_policy(policy);
        }
        // The one scenario without a policy says so with an empty list.
        "NetworkPolicyList" => assert_eq!(object["items"], Value::Array(Vec::new()), "{}", file.display()),
        kind => panic!("{}: a {kind} is not expected here", file.display()),
    }
}

fn read<K: DeserializeOwned, T>(object: Value, file: &Path, convert: fn(&K) -> Result<T, Vec<FieldError>>) -> T {
    let name = format!("{}: {} {}", file.display(), object["kind"], object["metadata"]["name"]);
    let object = serde_json::from_value(object).unwrap_or_else(|e| panic!("{name}: {e}"));
    convert(&object).unwrap_or_else(|e| panic!("{name}: {e:#?}"))
}

/// The allow sets of both directions, once for pods that have them in common, and the diagnostics.
fn render(cluster: &Cluster, table: &Table) -> String {
    let mut blocks: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut host_network = Vec::new();
    for (index, pod) in table.pods() {
        if pod.host_network {
            host_network.push(pod.name.to_string());
        } else {
            let text = Direction::BOTH.map(|d| side(table, index, d)).concat();
            blocks.entry(text).or_default().push(pod.name.to_string());
        }
    }
    let mut blocks: Vec<(Vec<String>, String)> = blocks.into_iter().map(|(text, pods)| (pods, text)).collect();
    blocks.sort();
    let mut out = String::new();
    for (pods, text) in blocks {
        writeln!(out, "{}\n{text}", pods.join(", ")).unwrap();
    }
    if !host_network.is_empty() {
        writeln!(out, "{}\n  on the host network\n", host_network.join(", ")).unwrap();
    }
    for diagnostic in diagnose(cluster, table) {
        writeln!(out, "{diagnostic}").unwrap();
    }
    out
}

/// What a pod may talk to in one direction: ports first, then the peers that have them.
fn side(table: &Table, pod: PodIndex, direction: Direction) -> String {
    let half = table.half(direction);
    let Some(group) = half.group_of(pod).map(|id| half.group(id)) else {
        return format!("  {direction}: not isolated\n");
    };
    let policies: Vec<String> = table.policy_names(group).map(ToString::to_string).collect();
    let (word, set) = match table.audited_allow_set(pod, direction) {
        Some(would_allow) => ("not isolated; would allow, audited by", would_allow),
        None => ("isolated by", table.allow_set(pod, direction)),
    };
    let mut out = format!("  {direction}: {word} {}\n", policies.join(", "));
    let peers = peers(table, &set);
    if peers.is_empty() {
        out.push_str("    nothing\n");
    }
    for (ports, peers) in peers {
        writeln!(out, "    {ports}: {}", peers.join(", ")).unwrap();
    }
    out
}

/// The peers of an allow set by their ports: pods by name where all their addresses have them, then other addresses.
fn peers(table: &Table, set: &AllowSet) -> BTreeMap<String, Vec<String>> {
    let mut by_pod: BTreeMap<&PodName, Vec<(Option<IpAddr>, &PortSet)>> = BTreeMap::new();
    for ((name, address), ports) in &set.pods {
        by_pod.entry(name).or_default().push((*address, ports));
    }
    let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, ends) in by_pod {
        let pod = table.pod(table.pod_index(name).unwrap());
        let whole = ends.len() == table.addresses().endpoints(pod).len() && ends.iter().all(|e| e.1 == ends[0].1);
        for (address, ports) in &ends[..if whole { 1 } else { ends.len() }] {
            let peer = match address {
                Some(address) if !whole => format!("{name} ({address})"),
                _ => name.to_string(),
            };
            out.entry(ports.to_string()).or_default().push(peer);
        }
    }
    let all: Vec<String> = table
        .pods()
        .filter(|(_, p)| !p.host_network)
        .map(|(_, p)| p.name.to_string())
        .collect();
    for peers in out.values_mut().filter(|peers| **peers == all) {
        *peers = vec!["every pod".to_owned()];
    }
    for (range, ports) in &set.addresses {
        out.entry(ports.to_string()).or_default().push(addresses(range));
    }
    out
}

fn addresses(range: &AddressRange) -> String {
    match &range.cidrs()[..] {
        _ if range.first == range.last => range.first.to_string(),
        [one] => one.to_string(),
        _ => format!("{}-{}", range.first, range.last),
    }
}
