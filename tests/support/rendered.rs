//! What `kubectl apply -k FOLDER` would send.

use std::path::Path;
use std::process::Command;

use palisade::manifests::{Node, documents};

/// One object each.
pub(crate) fn rendered(folder: &str) -> Vec<Node> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kubectl = root.join("target/tools/kubectl");
    assert!(kubectl.exists(), "{} is missing: run scripts/setup", kubectl.display());
    let output = Command::new(kubectl)
        .args(["kustomize", folder])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let documents = documents(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(documents.errors, []);
    documents.documents
}
