//! The invariants of ARCHITECTURE.md that a program can check, and the licences of every dependency.

#![allow(clippy::unwrap_used, reason = "a test may panic on what it cannot read")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{Metadata, MetadataCommand, PackageId};

/// Licences that a dependency may have.
const LICENCES: [&str; 11] = [
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    // For data: the list of certificate authorities that other systems than Linux fall back to; never part of our program.
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// What the pure crate may depend on; nothing here reads a file, a clock or a socket.
const COMPILER_DEPENDENCIES: [&str; 7] = [
    "ipnet",
    "k8s-openapi",
    "proptest",
    "rand_pcg",
    "rustc-hash",
    "serde",
    "slab",
];

fn metadata() -> Metadata {
    MetadataCommand::new()
        .other_options(["--locked".to_owned()])
        .exec()
        .unwrap()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            out.push((path, text));
        }
    }
    out
}

#[test]
fn every_dependency_has_an_accepted_licence() {
    let mut bad = BTreeMap::new();
    for package in metadata().packages {
        let licence = package.license.clone().unwrap_or_default();
        // Older crates write `MIT/Apache-2.0`; cargo reads the slash as OR.
        let accepted = spdx::Expression::parse_mode(&licence, spdx::ParseMode::LAX).is_ok_and(|expression| {
            expression.evaluate(|wanted| {
                wanted
                    .license
                    .id()
                    .is_some_and(|id| LICENCES.contains(&id.name) || id.is_osi_approved() && id.name == "0BSD")
            })
        });
        if !accepted {
            bad.insert(package.name.to_string(), licence);
        }
    }
    assert!(bad.is_empty(), "not accepted (see LICENCES): {bad:#?}");
}

#[test]
fn the_compiler_depends_on_nothing_that_does_io() {
    let metadata = metadata();
    let compiler = metadata.packages.iter().find(|p| *p.name == "policy-compiler").unwrap();
    let direct: BTreeSet<&str> = compiler
        .dependencies
        .iter()
        .filter(|d| d.kind == cargo_metadata::DependencyKind::Normal)
        .map(|d| d.name.as_str())
        .collect();
    assert_eq!(direct, COMPILER_DEPENDENCIES.into());

    // And nothing that these bring along is a runtime or a client.
    let resolve = metadata.resolve.as_ref().unwrap();
    let nodes: BTreeMap<&PackageId, _> = resolve.nodes.iter().map(|n| (&n.id, n)).collect();
    let names: BTreeMap<&PackageId, &str> = metadata.packages.iter().map(|p| (&p.id, p.name.as_str())).collect();
    let (mut seen, mut open) = (BTreeSet::new(), vec![&compiler.id]);
    while let Some(id) = open.pop() {
        if seen.insert(names[id]) {
            let normal = |d: &&cargo_metadata::NodeDep| {
                d.dep_kinds
                    .iter()
                    .any(|k| k.kind == cargo_metadata::DependencyKind::Normal)
            };
            open.extend(nodes[id].deps.iter().filter(normal).map(|d| &d.pkg));
        }
    }
    for forbidden in [
        "tokio",
        "kube",
        "kube-client",
        "hyper",
        "reqwest",
        "nftables",
        "notify",
        "mio",
        "async-std",
    ] {
        assert!(!seen.contains(forbidden), "policy-compiler depends on {forbidden}");
    }
}

#[test]
fn the_compiler_touches_no_file_clock_or_socket() {
    for (path, text) in sources(&root().join("policy-compiler/src")) {
        for forbidden in [
            "std::fs",
            "std::process",
            "std::env",
            "std::thread",
            "std::io",
            "SystemTime",
            "Instant",
            "TcpStream",
            "UdpSocket",
            "println!",
            "eprintln!",
            "async fn",
        ] {
            assert!(!text.contains(forbidden), "{}: {forbidden}", path.display());
        }
    }
}

#[test]
fn kubernetes_types_stop_at_the_conversion_module() {
    for (path, text) in sources(&root().join("policy-compiler/src")) {
        let converts = path
            .components()
            .any(|c| c.as_os_str().to_string_lossy().starts_with("convert"));
        // The crate's documentation shows where such objects come in.
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let named = code.into_iter().any(|line| line.contains("k8s_openapi::"));
        assert!(converts || !named, "{}", path.display());
    }
}

#[test]
fn every_dependency_is_used_and_says_why() {
    for manifest in ["Cargo.toml", "policy-compiler/Cargo.toml"] {
        let text = std::fs::read_to_string(root().join(manifest)).unwrap();
        let mut reasoned = false;
        let mut section = "";
        for line in text.lines() {
            if line.starts_with('[') {
                section = line;
            }
            let is_dependency = section.contains("dependencies]") && line.contains(" = ");
            let elsewhere = line.contains("workspace = true") || line.contains("path = ");
            assert!(
                !is_dependency || elsewhere || reasoned,
                "{manifest}: {line}: the line above must say what it is for"
            );
            reasoned = line.starts_with('#') || (reasoned && is_dependency && !elsewhere);
        }
    }
    let code: String = [
        "src",
        "tests",
        "benches",
        "policy-compiler/src",
        "policy-compiler/tests",
        "policy-compiler/benches",
    ]
    .iter()
    .flat_map(|folder| sources(&root().join(folder)))
    .map(|(_, text)| text)
    .collect();
    for package in metadata().workspace_packages() {
        for dependency in &package.dependencies {
            let name = dependency.name.replace('-', "_");
            assert!(
                code.contains(&format!("{name}::")),
                "{}: {} is used nowhere",
                package.name,
                dependency.name
            );
        }
    }
}

#[test]
fn every_path_of_a_packet_names_its_tests() {
    let text = std::fs::read_to_string(root().join("docs/semantics.md")).unwrap();
    let (_, section) = text.split_once("## What policy sees on each path").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let main = std::fs::read_to_string(root().join("tests/packets/main.rs")).unwrap();
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| ")).skip(2).collect();
    assert!(rows.len() > 20, "the table of paths is not where it was");
    for row in rows {
        let named: Vec<&str> = row.rsplit('|').nth(1).unwrap().split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test: {row}");
        for name in named {
            assert!(main.contains(&format!("(\"{name}\",")), "no such test: {name}");
        }
    }
}

/// The anchor that a page gives a heading.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    let text: String = heading.trim().to_lowercase().chars().filter(kept).collect();
    text.replace(' ', "-")
}

/// The lines of a page that are no examples.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n```").step_by(2).flat_map(str::lines)
}

#[test]
fn every_link_of_the_manual_leads_somewhere() {
    let mut pages: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "deploy/README.md", "fuzz/README.md"]
        .map(|page| root().join(page))
        .into();
    pages.extend(
        std::fs::read_dir(root().join("docs"))
            .unwrap()
            .map(|e| e.unwrap().path()),
    );
    pages.retain(|page| page.extension().is_some_and(|e| e == "md"));
    let (mut links, mut broken) = (0, Vec::new());
    for page in &pages {
        let text = std::fs::read_to_string(page).unwrap();
        for target in prose(&text).flat_map(|line| line.split("](").skip(1)) {
            let target = target.split([')', ' ']).next().unwrap();
            if target.starts_with("https://") {
                continue;
            }
            links += 1;
            let (file, wanted) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() {
                page.clone()
            } else {
                page.parent().unwrap().join(file)
            };
            let found = match wanted {
                "" => file.exists(),
                _ => std::fs::read_to_string(&file).is_ok_and(|text| {
                    let mut headings = prose(&text).filter_map(|line| line.strip_prefix('#'));
                    headings.any(|heading| anchor(heading.trim_start_matches('#')) == wanted)
                }),
            };
            if !found {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(links > 10, "the links are not written as they were");
    assert!(broken.is_empty(), "links that lead nowhere: {broken:#?}");
}
