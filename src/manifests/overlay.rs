//! Manifests put over a cluster, as `kubectl apply` would put them: two loaded sets of objects in, the cluster to be out.
//!
//! An object of the same kind, namespace and name is replaced. What an API server or a controller fills in is in no
//! repository, so it is kept: addresses and nodes of pods, addresses of nodes, and the labels that a controller puts on
//! its pods; a namespace keeps the labels that others set on it. A workload's template goes onto the pods that the workload has now: a roll-out will replace them by as
//! many, and until it has, their addresses are the best guess. How many replicas there are is left to the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use policy_compiler::cluster::{Cluster, Namespace, Node, Pod, PodName, Workload};
use policy_compiler::labels::{Labels, Name};
use policy_compiler::policy::PolicyName;

use super::Loaded;

/// Labels that controllers put on pods beside those of the template.
const OF_CONTROLLERS: [&str; 9] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "controller-uid",
    "job-name",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
];

impl Loaded {
    /// This cluster with other manifests put over it. With `prune`, a NetworkPolicy that they do not have goes away in every
    /// namespace for which they have any.
    #[must_use]
    pub fn overlay(&self, over: &Loaded, prune: bool) -> Loaded {
        let mut out = self.clone();
        let cluster = &mut out.cluster;
        for namespace in over.cluster.namespaces.values() {
            let namespace = with_others(namespace, cluster.namespaces.get(&namespace.name));
            cluster.namespaces.insert(namespace.name.clone(), Arc::new(namespace));
        }
        cluster.services.extend(over.cluster.services.clone());
        for node in over.cluster.nodes.values() {
            let node = with_status(node, cluster.nodes.get(&node.name));
            cluster.nodes.insert(node.name.clone(), Arc::new(node));
        }
        policies(cluster, &over.cluster, prune);
        pods(&mut out, over);
        for (kind, number) in &over.skipped {
            *out.skipped.entry(kind.clone()).or_default() += number;
        }
        out.warnings.extend(over.warnings.iter().cloned());
        out.warnings.sort();
        out.warnings.dedup();
        out.sources.extend(over.sources.clone());
        out.empty.extend(over.empty.iter().cloned());
        out
    }
}

/// A namespace with what others set on it: applying a manifest leaves the labels and the annotations alone that it does not speak of.
fn with_others(namespace: &Namespace, known: Option<&Arc<Namespace>>) -> Namespace {
    let Some(known) = known else { return namespace.clone() };
    // Of two values of a key the later holds.
    let labels = known.labels.iter().chain(namespace.labels.iter());
    Namespace {
        labels: labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
        enforcement: namespace.enforcement.or(known.enforcement),
        ..namespace.clone()
    }
}

fn with_status(node: &Node, known: Option<&Arc<Node>>) -> Node {
    let mut node = node.clone();
    if let Some(known) = known {
        if node.addresses.is_empty() {
            node.addresses.clone_from(&known.addresses);
        }
        if node.pod_cidrs.is_empty() {
            node.pod_cidrs.clone_from(&known.pod_cidrs);
        }
    }
    node
}

fn policies(cluster: &mut Cluster, over: &Cluster, prune: bool) {
    let names: BTreeSet<&PolicyName> = over.policies.keys().map(|(_, name)| name).collect();
    let namespaces: BTreeSet<&Name> = names.iter().filter_map(|name| name.namespace.as_ref()).collect();
    let pruned = |name: &PolicyName| prune && name.namespace.as_ref().is_some_and(|n| namespaces.contains(n));
    // A cluster-wide policy may have another tier or priority now, and is the same.
    cluster
        .policies
        .retain(|(_, name), _| !names.contains(name) && !pruned(name));
    cluster.policies.extend(over.policies.clone());
}

fn pods(out: &mut Loaded, over: &Loaded) {
    let mut templates: BTreeMap<(Name, Workload), Vec<&Arc<Pod>>> = BTreeMap::new();
    for (name, pod) in &over.cluster.pods {
        match pod.workload.as_ref().filter(|_| over.derived.contains(name)) {
            Some(workload) => {
                let key = (name.namespace.clone(), workload.clone());
                templates.entry(key).or_default().push(pod);
            }
            None => {
                let known = out.cluster.pods.get(name).cloned();
                out.cluster.add_pod(standing_in(pod, known.as_deref()));
                out.derived.remove(name);
            }
        }
    }
    for ((namespace, workload), made) in templates {
        let lasts = matches!(&*workload.kind, "job" | "cronjob");
        let of_it = |pod: &Pod| {
            pod.name.namespace == namespace && pod.workload.as_ref() == Some(&workload) && (lasts || !pod.ended)
        };
        let derived = std::mem::take(&mut out.derived);
        // What was itself derived from a template is derived anew.
        out.cluster
            .pods
            .retain(|name, pod| !(of_it(pod) && derived.contains(name)));
        out.derived = derived
            .into_iter()
            .filter(|name| out.cluster.pods.contains_key(name))
            .collect();
        let mut standing = out.cluster.pods.values_mut().filter(|pod| of_it(pod)).peekable();
        if standing.peek().is_none() {
            for pod in made {
                let pod = free_name(&out.cluster, pod);
                out.derived.insert(pod.name.clone());
                out.cluster.add_pod(pod);
            }
            continue;
        }
        for pod in standing {
            let Some(template) = made.first() else { continue };
            let changed = from_template(pod, template);
            *pod = Arc::new(changed);
        }
    }
}

/// A pod as a manifest has it, with what the cluster knows of its namesake.
fn standing_in(pod: &Pod, known: Option<&Pod>) -> Pod {
    let mut pod = pod.clone();
    let Some(known) = known else { return pod };
    if pod.addresses.is_empty() && pod.host_network == known.host_network {
        pod.addresses.clone_from(&known.addresses);
    }
    pod.node = pod.node.or_else(|| known.node.clone());
    pod.started = pod.started.or(known.started);
    pod.workload = pod.workload.or_else(|| known.workload.clone());
    pod
}

/// A pod as the next roll-out will make it.
fn from_template(pod: &Pod, template: &Pod) -> Pod {
    let of_controllers = pod.labels.iter().filter(|(key, _)| OF_CONTROLLERS.contains(&&***key));
    let labels: Labels = of_controllers
        .chain(template.labels.iter())
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let mut pod = pod.clone();
    if pod.host_network != template.host_network {
        // The address was the node's, or will be.
        pod.addresses.clear();
    }
    Pod {
        labels,
        ports: template.ports.clone(),
        host_network: template.host_network,
        ..pod
    }
}

/// A derived pod under a name that no other pod has.
fn free_name(cluster: &Cluster, pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    let first = pod.name.name.clone();
    let mut next = 0;
    while cluster.pods.contains_key(&pod.name) {
        pod.name = PodName {
            namespace: pod.name.namespace,
            name: format!("{first}-{next}").into(),
        };
        next += 1;
    }
    pod
}

#[cfg(test)]
mod tests {
    use policy_compiler::policy::Enforcement;

    use super::*;

    const LIVE: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: red}}
---
apiVersion: v1
kind: Pod
metadata:
  namespace: shop
  name: api-5d4f8-a
  labels: {app: api, pod-template-hash: 5d4f8}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: api-5d4f8, uid: u, controller: true}]
spec: {nodeName: worker-1, containers: [{name: c, image: i}]}
status: {phase: Running, podIPs: [{ip: 10.244.1.2}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: lone, labels: {app: lone}}
spec: {nodeName: worker-1, containers: [{name: c, image: i}]}
status: {phase: Running, podIPs: [{ip: 10.244.1.3}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: by-hand}
spec: {podSelector: {}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: api}
spec: {podSelector: {matchLabels: {app: api}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: other, name: other}
spec: {podSelector: {}}
"#;

    const OVER: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {namespace: shop, name: api}
spec:
  replicas: 3
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api, version: v2}}
    spec: {containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {namespace: shop, name: cache}
spec:
  replicas: 1
  selector: {matchLabels: {app: cache}}
  template:
    metadata: {labels: {app: cache}}
    spec: {containers: [{name: c, image: i}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: api}
spec: {podSelector: {matchLabels: {app: api}}, policyTypes: [Egress]}
"#;

    fn load(text: &str) -> Loaded {
        super::super::parse("test", text).expect("sound manifests")
    }

    fn pod<'c>(cluster: &'c Cluster, name: &str) -> &'c Pod {
        let pods = cluster.pods.values();
        pods.into_iter().find(|p| &*p.name.name == name).expect("the pod")
    }

    fn policies(cluster: &Cluster) -> Vec<String> {
        cluster.policies.keys().map(|(_, name)| name.to_string()).collect()
    }

    #[test]
    fn a_template_goes_onto_the_pods_that_stand() {
        let merged = load(LIVE).overlay(&load(OVER), false);
        let api = pod(&merged.cluster, "api-5d4f8-a");
        assert_eq!(api.labels.to_string(), "app=api,pod-template-hash=5d4f8,version=v2");
        assert_eq!((api.addresses.len(), api.ports.len()), (1, 1));
        // Three replicas are asked for, and one stands: how many there are is the cluster's matter. The cache has none yet.
        let names: Vec<&str> = merged.cluster.pods.keys().map(|n| &*n.name).collect();
        assert_eq!(names, ["api-5d4f8-a", "cache-0", "lone"]);
        assert!(merged.derived.iter().map(|n| &*n.name).eq(["cache-0"]));
    }

    #[test]
    fn a_namesake_is_replaced_and_the_rest_stays() {
        let merged = load(LIVE).overlay(&load(OVER), false);
        assert_eq!(policies(&merged.cluster), ["other/other", "shop/api", "shop/by-hand"]);
        let (_, api) = merged
            .cluster
            .policies
            .iter()
            .find(|((_, n), _)| &*n.name == "api")
            .expect("it");
        assert!(api.ingress.is_none() && api.egress.is_some());
        assert_eq!(merged.cluster.namespaces.len(), 1);
    }

    #[test]
    fn pruning_keeps_to_namespaces_that_the_manifests_speak_of() {
        let merged = load(LIVE).overlay(&load(OVER), true);
        assert_eq!(policies(&merged.cluster), ["other/other", "shop/api"]);
        // Manifests without any policy prune nothing.
        let merged = load(LIVE).overlay(&Loaded::default(), true);
        assert_eq!(policies(&merged.cluster), ["other/other", "shop/api", "shop/by-hand"]);
    }

    #[test]
    fn a_pod_of_a_manifest_keeps_what_the_cluster_gave_it() {
        let over = "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: lone, labels: {app: other}}\nspec: {containers: [{name: c, image: i}]}\n";
        let merged = load(LIVE).overlay(&load(over), false);
        let lone = pod(&merged.cluster, "lone");
        assert_eq!(lone.labels.to_string(), "app=other");
        assert_eq!((lone.addresses.len(), lone.node.as_deref()), (1, Some("worker-1")));
    }

    #[test]
    fn a_namespace_keeps_what_a_manifest_does_not_speak_of() {
        let live = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: red, stage: live}, annotations: {palisade.dev/mode: audit}}\n";
        let over = |metadata: &str| {
            let over = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, {metadata}}}\n");
            let merged = load(live).overlay(&load(&over), true);
            let shop = &merged.cluster.namespaces["shop"];
            (shop.labels.to_string(), shop.enforcement)
        };
        let name = "kubernetes.io/metadata.name=shop";
        assert_eq!(
            over("labels: {team: blue, tier: web}"),
            (
                format!("{name},stage=live,team=blue,tier=web"),
                Some(Enforcement::Audit)
            )
        );
        let (labels, enforcement) = over("annotations: {palisade.dev/mode: enforce}");
        assert_eq!(labels, format!("{name},stage=live,team=red"));
        assert_eq!(enforcement, Some(Enforcement::Enforce));
    }

    #[test]
    fn nothing_and_the_same_again_change_nothing() {
        for text in [LIVE, OVER] {
            let loaded = load(text);
            assert_eq!(loaded.overlay(&Loaded::default(), true), loaded);
            assert_eq!(loaded.overlay(&loaded, true).cluster, loaded.cluster);
        }
    }

    #[test]
    fn templates_over_templates_are_derived_anew() {
        let more = OVER.replace("replicas: 1", "replicas: 2");
        let merged = load(OVER).overlay(&load(&more), false);
        assert_eq!(merged.cluster, load(&more).cluster);
        assert_eq!(merged.derived, load(&more).derived);
    }
}
