//! Policies of kinds that are not read in, warnings out.

use policy_compiler::diagnostics::Code;

use super::loaded;
use crate::manifests::Loaded;
use crate::manifests::unread::NAMED;

fn warnings(loaded: &Loaded) -> Vec<String> {
    assert!(loaded.warnings.iter().all(|w| w.code == Some(Code::UnreadObject)));
    loaded.warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn policies_that_are_not_read_are_each_warned_of() {
    let loaded = loaded(
        "apiVersion: v1\nkind: ConfigMap\n---\n\
         apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: no-db}\n---\n\
         apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: web, namespace: shop}\n---\n\
         apiVersion: v1\nkind: List\nitems:\n- {apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: l7}}\n---\n\
         apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicyList\nitems: []\n",
    );
    let end = "which is not read: every answer is as if it were not there [unread-object]";
    assert_eq!(
        warnings(&loaded),
        [
            format!("f.yaml:4:1: ClusterNetworkPolicy no-db: a policy of policy.networking.k8s.io/v1alpha2, {end}"),
            format!("f.yaml:8:1: NetworkPolicy.projectcalico.org shop/web: a policy of projectcalico.org/v3, {end}"),
            format!("f.yaml:15:3: CiliumNetworkPolicy l7: a policy of cilium.io/v2, {end}"),
            format!("f.yaml:17:1: CiliumNetworkPolicyList: a policy of cilium.io/v2, {end}"),
        ]
    );
    // They are counted, and none of them is taken for one of ours.
    assert_eq!(loaded.skipped.values().sum::<usize>(), 5);
    assert!(loaded.cluster.policies.is_empty() && loaded.sources.is_empty());
}

#[test]
fn a_crowd_of_them_is_counted() {
    let some = |kind: &str, count: usize| {
        let one = |at| format!("apiVersion: cilium.io/v2\nkind: {kind}\nmetadata: {{name: n{at}}}\n---\n");
        (0..count).map(one).collect::<String>()
    };
    let exactly = loaded(&some("CiliumNetworkPolicy", NAMED));
    assert_eq!(warnings(&exactly).len(), NAMED);
    let many = loaded(
        &[
            some("CiliumNetworkPolicy", 5000),
            some("GlobalNetworkPolicy", NAMED + 1),
        ]
        .concat(),
    );
    let said = warnings(&many);
    assert_eq!(said.len(), 2 * (NAMED + 1));
    assert_eq!(
        [&said[NAMED], &said[2 * NAMED + 1]],
        [
            "f.yaml:81:1: 4980 more of kind CiliumNetworkPolicy from here on, not read either: every answer is as if they were not there [unread-object]",
            "f.yaml:20081:1: 1 more of kind GlobalNetworkPolicy from here on, not read either: every answer is as if they were not there [unread-object]",
        ]
    );
}

#[test]
fn names_are_cut_that_nobody_would_read() {
    let (kind, version) = ("x".repeat(5000) + "NetworkPolicy", "v".repeat(5000));
    let loaded = loaded(&format!(
        "apiVersion: a.b/{version}\nkind: {kind}\nmetadata: {{name: {kind}, namespace: {kind}}}\n"
    ));
    assert!(warnings(&loaded)[0].len() < 1500);
}
