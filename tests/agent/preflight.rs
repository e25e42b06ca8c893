//! `palisade preflight` on a network namespace of its own, with the real nft.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{in_a_namespace, nft, palisade, table};

/// The verdicts and the exit code. The files are those of an empty root: the machine's own are nobody's business here.
fn verdicts(root: &str) -> (i32, BTreeMap<String, String>) {
    let output = palisade(&["preflight", "--root", root, "-o", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["kind"], "Preflight");
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let checks = report["checks"].as_array().expect("a list");
    let verdicts = checks.iter().map(|c| (text(&c["check"]), text(&c["verdict"])));
    (output.status.code().expect("ended by itself"), verdicts.collect())
}

#[test]
fn a_node_is_fit_until_somebody_else_enforces() {
    in_a_namespace("preflight::a_node_is_fit_until_somebody_else_enforces", || {
        let root = tempfile::tempdir().expect("directory");
        let root = root.path().display().to_string();
        let (code, fit) = verdicts(&root);
        assert_eq!(code, 0, "{fit:?}");
        for check in ["nft", "permission", "kernel", "enforcers", "flowtables", "conntrack"] {
            assert_eq!(fit[check], "ok", "{check}: {fit:?}");
        }
        assert_eq!(fit["rbac"], "skipped");
        assert_eq!(table(), None, "a dry run leaves nothing");

        nft("add table ip filter");
        assert_eq!(verdicts(&root), (0, fit.clone()), "a table of anybody is no enforcer");
        nft("add chain ip filter cali-FORWARD");
        let (code, unfit) = verdicts(&root);
        assert_eq!((code, unfit["enforcers"].as_str()), (1, "failed"));
        nft("delete table ip filter");
        nft("add table inet kube-network-policies");
        let (code, unfit) = verdicts(&root);
        assert_eq!((code, unfit["enforcers"].as_str()), (1, "failed"));
    });
}
