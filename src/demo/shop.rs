//! The manifests of `examples/shop/`, within the binary: the demo runs anywhere.

use crate::manifests::{LoadErrors, Loaded, parse};

const MANIFESTS: &str = concat!(
    include_str!("../../examples/shop/namespace.yaml"),
    "---\n",
    include_str!("../../examples/shop/nodes.yaml"),
    "---\n",
    include_str!("../../examples/shop/dns.yaml"),
    "---\n",
    include_str!("../../examples/shop/frontend.yaml"),
    "---\n",
    include_str!("../../examples/shop/backend.yaml"),
    "---\n",
    include_str!("../../examples/shop/database.yaml"),
    "---\n",
    include_str!("../../examples/shop/policies.yaml"),
);

/// The shop of the Kubernetes networking guides: front ends, back ends, a database, DNS, and their policies.
pub(super) fn load() -> Result<Loaded, LoadErrors> {
    parse("examples/shop", MANIFESTS)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    #[test]
    fn the_manifests_within_are_those_of_the_folder() {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/shop"));
        let outside = crate::manifests::load(&[folder]).expect("the folder is valid");
        let within = super::load().expect("the manifests are valid");
        assert_eq!(within.cluster, outside.cluster);
        assert_eq!(within.warnings, []);
        assert_eq!(within.derived, [].into());
    }
}
