//! Manifests that nobody would write in good faith: each is answered, or refused with an error that says where and why.
//! What is quadratic takes minutes or gigabytes at these sizes, so that the answer itself is the test.

use palisade::manifests::{self, LoadErrors, MAX_ERRORS};
use policy_compiler::cluster::PodName;
use policy_compiler::compile::{Subjects, compile};
use policy_compiler::lint::lint;
use policy_compiler::policy::Direction;
use policy_compiler::ports::{PortSet, Protocol, Traffic};
use policy_compiler::table::Table;

const POD: &str =
    "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}}\nstatus: {podIPs: [{ip: 10.0.0.1}]}\n---\n";

/// A pod, and a policy that selects it.
fn policy(spec: &str) -> String {
    format!(
        "{POD}apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec: {{podSelector: {{}}, {spec}}}\n"
    )
}

fn list(count: usize, item: impl Fn(usize) -> String) -> String {
    (0..count).map(item).collect::<Vec<_>>().join(", ")
}

/// The table of a text, and how large its ingress half is: no more classes or cells than this.
#[track_caller]
fn answered(text: &str, classes: usize, cells: usize) -> Table {
    let loaded = manifests::parse("hostile.yaml", text).unwrap_or_else(|e| panic!("{e}"));
    let table = compile(&loaded.cluster, &Subjects::All);
    lint(&loaded.cluster, &table);
    let half = table.half(Direction::Ingress);
    let found = (half.classes().count(), half.cells().len());
    assert!(found.0 <= classes && found.1 <= cells, "classes and cells: {found:?}");
    table
}

/// What may reach the pod of [`POD`] from an address.
fn ports(table: &Table, from: &str) -> PortSet {
    let name = PodName {
        namespace: "default".into(),
        name: "web".into(),
    };
    let pod = table.pod_index(&name).expect("the pod");
    let half = table.half(Direction::Ingress);
    let group = half.group_of(pod).expect("a policy judges it");
    half.ports(group, half.class_of_address(from.parse().expect("an address")))
        .clone()
}

fn tcp(port: u16) -> Traffic {
    Traffic::Port(Protocol::Tcp, port)
}

/// The errors of a text, all with a place, as lines of a bearable length.
#[track_caller]
fn refused(text: &str, expected: &str) -> LoadErrors {
    let errors = manifests::parse("hostile.yaml", text).expect_err("it is refused");
    for error in errors.errors() {
        assert!(error.source.position.is_some_and(|p| p.line > 0), "no place: {error}");
        assert!(error.to_string().len() < 1500, "{} bytes long", error.to_string().len());
    }
    let said = errors.to_string();
    assert!(said.contains(expected), "{said:.2000}");
    errors
}

#[test]
fn ten_thousand_rules_of_one_peer() {
    let rule = |i| {
        format!(
            "{{ports: [{{port: {}}}], from: [{{podSelector: {{matchLabels: {{app: web}}}}}}]}}",
            2 * i + 1
        )
    };
    let table = answered(&policy(&format!("ingress: [{}]", list(10_000, rule))), 8, 2);
    let ports = ports(&table, "10.0.0.1");
    assert_eq!(ports.ranges(Protocol::Tcp).len(), 10_000);
    assert!(ports.contains(tcp(19_999)) && !ports.contains(tcp(2)));
}

#[test]
fn ten_thousand_rules_of_as_many_peers() {
    let rule = |i| {
        format!(
            "{{ports: [{{port: {}}}], from: [{{podSelector: {{matchLabels: {{app: w{i}}}}}}}]}}",
            i + 1
        )
    };
    let table = answered(&policy(&format!("ingress: [{}]", list(10_000, rule))), 8, 2);
    assert!(ports(&table, "10.0.0.1").is_empty());
}

#[test]
fn ten_thousand_overlapping_blocks() {
    let block = |i| format!("{{ipBlock: {{cidr: 10.{}.{}.0/{}}}}}", i / 256, i % 256, 8 + i % 17);
    let text = format!("ingress: [{{from: [{}], ports: [{{port: 80}}]}}]", list(10_000, block))
        .replace("10.0.0.0/8", "11.0.0.0/24");
    let table = answered(&policy(&text), 8, 40_000);
    assert!(ports(&table, "11.0.0.1").contains(tcp(80)));
    assert!(ports(&table, "12.0.0.1").is_empty());
}

/// Every address is in all blocks but one: a list of blocks for each cell would hold a hundred million.
#[test]
fn ten_thousand_blocks_of_one_cidr_with_an_exception_each() {
    let block = |i| {
        format!(
            "{{ipBlock: {{cidr: 0.0.0.0/0, except: [10.0.0.0/16, 10.{}.{}.0/24]}}}}",
            1 + i / 256,
            i % 256
        )
    };
    let table = answered(
        &policy(&format!("ingress: [{{from: [{}]}}]", list(10_000, block))),
        8,
        4,
    );
    assert!(ports(&table, "10.0.0.9").is_empty());
    assert!(ports(&table, "10.1.0.9").is_all() && ports(&table, "192.0.2.1").is_all());
}

#[test]
fn ten_thousand_exceptions() {
    let except = |i| format!("10.{}.{}.0/25", i / 256, i % 256);
    let text = format!(
        "ingress: [{{from: [{{ipBlock: {{cidr: 0.0.0.0/0, except: [{}]}}}}]}}]",
        list(10_000, except)
    );
    let table = answered(&policy(&text), 8, 20_010);
    assert!(ports(&table, "10.1.1.1").is_empty() && ports(&table, "10.1.1.128").is_all());
}

#[test]
fn twenty_thousand_values_of_a_selector() {
    let values = list(20_000, |i| format!("v{i}"));
    let peer = |operator| {
        format!("{{podSelector: {{matchExpressions: [{{key: app, operator: {operator}, values: [{values}]}}]}}}}")
    };
    let table = answered(&policy(&format!("ingress: [{{from: [{}]}}]", peer("In"))), 8, 2);
    assert!(ports(&table, "10.0.0.1").is_empty());
    let table = answered(&policy(&format!("ingress: [{{from: [{}]}}]", peer("NotIn"))), 8, 2);
    assert!(ports(&table, "10.0.0.1").is_all());
}

#[test]
fn thirty_thousand_ports_that_do_not_touch() {
    let ports_of = list(32_000, |i| format!("{{port: {}}}", 2 * i + 1));
    let table = answered(
        &policy(&format!(
            "ingress: [{{ports: [{ports_of}]}}], egress: [{{ports: [{ports_of}]}}]"
        )),
        8,
        2,
    );
    let ports = ports(&table, "192.0.2.1");
    assert_eq!(ports.intersection(&ports).ranges(Protocol::Tcp).len(), 32_000);
    assert_eq!(ports.intersection(&ports.complement()), PortSet::none());
}

#[test]
fn long_names_and_values() {
    let long = "x".repeat(10_000);
    let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {long}, labels: {{a: {long}, {long}: b}}}}\n");
    refused(&text, "is too long: write at most 253 characters");
    refused(&text, "is too long for a label value: write at most 63 characters");
    refused(&text, "is too long for a label key: write at most 63 characters");
    refused(
        &format!("apiVersion: v1\nkind: Pod\nspec: {{{long}: 1}}"),
        "is not a field here: remove it",
    );
}

#[test]
fn errors_without_end() {
    let labels = list(20_000, |i| format!("k{i}: /"));
    let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a, labels: {{{labels}}}}}");
    let errors = refused(&text, "19000 more errors are in this object: correct the first 1000");
    assert_eq!(errors.errors().len(), MAX_ERRORS + 1);
    let fields = list(20_000, |i| format!("k{i}: 1"));
    refused(
        &format!("apiVersion: v1\nkind: Pod\nspec: {{{fields}}}"),
        "is not a field here: remove it",
    );
}

#[test]
fn nesting_without_end() {
    for open in ["[", "{a: ", "- ", "? ", "{\"a\":"] {
        refused(&open.repeat(20_000), "1 error");
    }
    refused(&format!("{}1", "- ".repeat(1000)), "nested more than 128 levels deep");
}

#[test]
fn aliases_of_aliases() {
    let level = |i: usize| format!("a{}: &a{} [{}]\n", i + 1, i + 1, list(10, |_| format!("*a{i}")));
    let bomb = |levels| {
        format!(
            "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n{}",
            (0..levels).map(level).collect::<String>()
        )
    };
    refused(&bomb(9), "the aliases of this file repeat more than 1000000 values");
    // Small ones, one after the other, are no better.
    refused(
        &format!("---\n{}", bomb(3)).repeat(60),
        "the aliases of this file repeat more than 1000000 values",
    );
}

#[test]
fn a_list_of_a_hundred_thousand_items() {
    let items = list(100_000, |i| {
        format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"c{i}"}}}}"#)
    });
    let text = format!(r#"{{"apiVersion":"v1","kind":"List","items":[{items}]}}"#);
    let loaded = manifests::parse("hostile.json", &text).expect("it is read");
    assert_eq!(loaded.skipped["ConfigMap"], 100_000);
}

#[test]
fn odd_characters() {
    let pod =
        |name: &str| format!("{{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {{\"name\": \"{name}\"}}}}");
    for half in ["\\ud800", "\\udc00", "\\udc00\\ud800", "\\u0000"] {
        refused(&pod(half), "is not a DNS subdomain");
    }
    refused("apiVersion: v1\nkind: \0", "hostile.yaml:2:");
    refused("\0", "hostile.yaml:1:1: malformed YAML");
    // A mark at the beginning, and the line ends of another system, change nothing.
    let plain = manifests::parse("f", POD).expect("a pod").cluster;
    assert_eq!(
        manifests::parse("f", &format!("\u{feff}{POD}")).expect("a pod").cluster,
        plain
    );
    assert_eq!(
        manifests::parse("f", &POD.replace('\n', "\r\n"))
            .expect("a pod")
            .cluster,
        plain
    );
}

#[test]
fn files_that_are_no_text_or_too_large() {
    let folder = tempfile::tempdir().expect("a folder");
    let load = |name: &str| {
        let errors = manifests::load(&[folder.path().join(name)]).expect_err("it is refused");
        errors.to_string()
    };
    std::fs::write(folder.path().join("latin.yaml"), b"kind: Pod\nname: caf\xe9\n").expect("a file");
    assert!(load("latin.yaml").contains("not UTF-8 text in line 2"));
    let large = std::fs::File::create(folder.path().join("large.yaml")).expect("a file");
    large.set_len(manifests::MAX_FILE_SIZE + 1).expect("a file with a hole");
    assert!(load("large.yaml").contains("larger than 256 MiB: split it into several files"));
}
