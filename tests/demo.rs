//! `palisade demo`, with real packets: the shop that is built in, and manifests of the user's own.

mod support;

use std::error::Error;
use std::process::ExitCode;

use libtest_mimic::Failed;
use palisade::demo::{Options, Output, Summary, run};

fn main() -> ExitCode {
    support::run(
        "the demo",
        vec![
            ("the_shop_is_as_expected", the_shop_is_as_expected),
            (
                "manifests_without_nodes_or_addresses",
                manifests_without_nodes_or_addresses,
            ),
            ("too_many_probes_are_refused", too_many_probes_are_refused),
            ("bad_manifests_are_refused", bad_manifests_are_refused),
            ("manifests_without_pods_are_refused", manifests_without_pods_are_refused),
        ],
    )
}

fn demo(manifests: Option<&str>) -> Result<Summary, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    if let Some(text) = manifests {
        std::fs::write(folder.path().join("all.yaml"), text)?;
    }
    Ok(run(&Options {
        manifests: manifests.map(|_| folder.path().to_owned()),
        output: Output::Json,
    })?)
}

fn failed(error: Box<dyn Error>) -> Failed {
    Failed::from(error.to_string())
}

/// Every pair on seven ports in two families, the Services, and the open connection.
fn the_shop_is_as_expected() -> Result<(), Failed> {
    let summary = demo(None).map_err(failed)?;
    // Six pods, four nodes and the client to six pods; the pods also to the client; seven ports; both families. Ten
    // insiders to four Service ports. Eight looks at the open connection of each family.
    let pairs = 11 * 6 - 6 + 6;
    let probes = 2 * (pairs * 7 + 10 * 4 + 8);
    assert_eq!(
        (summary.probes, summary.as_expected, summary.leaks),
        (probes, probes, 0)
    );
    Ok(())
}

const BARE: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: site}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: web
        ports: [{name: http, containerPort: 8080}, {containerPort: 9000, protocol: SCTP}]
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: site, labels: {app: db}}
spec:
  containers:
  - name: db
    image: db
    ports: [{containerPort: 3306}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: site}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 3306}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: site}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - ports: [{port: 9000, protocol: SCTP}, {port: 8000, endPort: 8080}]
";

/// Nodes and addresses are invented; SCTP and a range of ports are among what is probed.
fn manifests_without_nodes_or_addresses() -> Result<(), Failed> {
    let summary = demo(Some(BARE)).map_err(failed)?;
    assert_eq!((summary.as_expected, summary.leaks), (summary.probes, 0));
    assert!(summary.probes > 200, "{summary:?}");
    Ok(())
}

fn too_many_probes_are_refused() -> Result<(), Failed> {
    let many: String = (0..100)
        .map(|n| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{n}, namespace: x}}\n\
                 spec: {{containers: [{{name: c, image: i, ports: [{{containerPort: 80}}]}}]}}\n---\n"
            )
        })
        .collect();
    let error = demo(Some(&many)).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(
        error.starts_with("these manifests ask for more than 20000 probes (100 pods"),
        "{error}"
    );
    Ok(())
}

fn bad_manifests_are_refused() -> Result<(), Failed> {
    let error = demo(Some("kind: Pod\napiVersion: v1\nmetadata: {nom: x}\n")).err();
    let error = error.map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("all.yaml:3") && error.contains("nom"), "{error}");
    Ok(())
}

/// Nothing would be probed, and nothing could be off.
fn manifests_without_pods_are_refused() -> Result<(), Failed> {
    let error = demo(Some("kind: Namespace\napiVersion: v1\nmetadata: {name: x}\n")).err();
    let error = error.map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("no running pod"), "{error}");
    Ok(())
}
