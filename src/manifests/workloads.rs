//! The pods of workloads: which workload each pod belongs to, and pods for the workloads that have none.
//!
//! Manifests in a repository hold Deployments, not pods, and policy is about pods. So a workload that no Pod object
//! stands for gets pods made from its template, named `<workload>-<ordinal>`, without addresses or node.
//!
//! It gets two, so that the traffic between its replicas is judged and not taken for a pod that reaches itself, or one
//! when it says `replicas: 1` (a job: `parallelism: 1`). A workload scaled to zero gets two as well: it may be scaled
//! up, and policy holds then. A DaemonSet gets one on each given node that its node selector admits, or two when no
//! nodes are given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use policy_compiler::cluster::{Cluster, Pod, PodName, Workload};
use policy_compiler::convert::WorkloadObject;
use policy_compiler::labels::Name;

/// The workload that pods are said to belong to, with its namespace.
type Key = (Name, Workload);

/// Settles the workload of every pod and adds pods for the workloads that have none; answers their names.
pub(super) fn derive(cluster: &mut Cluster, objects: Vec<WorkloadObject>) -> BTreeSet<PodName> {
    let mut known: BTreeMap<Key, WorkloadObject> = BTreeMap::new();
    for object in objects {
        known.insert((object.namespace.clone(), object.workload.clone()), object);
    }
    let standing = settle(cluster, &known);
    let mut derived = BTreeSet::new();
    // A StatefulSet's pods bear these very names in the cluster, so it has the first choice.
    let (first, then): (Vec<_>, Vec<_>) = known.iter().partition(|((_, w), _)| &*w.kind == "statefulset");
    let mut done: BTreeSet<Key> = standing;
    for (key, object) in first.into_iter().chain(then) {
        let owner = top(&known, key);
        // What a Deployment or a CronJob controls is derived from that, when it is there.
        if (owner == *key || !known.contains_key(&owner)) && done.insert(owner.clone()) {
            make(cluster, object, &owner.1, &mut derived);
        }
    }
    derived
}

/// Gives every pod its topmost known workload; answers the workloads that pods stand for.
fn settle(cluster: &mut Cluster, known: &BTreeMap<Key, WorkloadObject>) -> BTreeSet<Key> {
    let mut selectors: BTreeMap<&Name, Vec<&WorkloadObject>> = BTreeMap::new();
    for object in known.values().filter(|o| o.selector.is_some()) {
        selectors.entry(&object.namespace).or_default().push(object);
    }
    let mut standing = BTreeSet::new();
    for pod in cluster.pods.values_mut() {
        let namespace = pod.name.namespace.clone();
        let own = pod.workload.clone().or_else(|| {
            let candidates = selectors.get(&namespace).into_iter().flatten();
            let mut matching = candidates.filter(|o| o.selector.as_ref().is_some_and(|s| s.matches(&pod.labels)));
            matching.next().map(|o| o.workload.clone())
        });
        let Some(own) = own else {
            continue;
        };
        let (namespace, workload) = top(known, &(namespace, own));
        if pod.workload.as_ref() != Some(&workload) {
            Arc::make_mut(pod).workload = Some(workload.clone());
        }
        // Ended pods are what jobs leave behind; of other workloads they say nothing about the pods to come.
        if !pod.ended || matches!(&*workload.kind, "job" | "cronjob") {
            standing.insert((namespace, workload));
        }
    }
    standing
}

/// The workload at the top of the chain of owners, as far as the manifests tell.
fn top(known: &BTreeMap<Key, WorkloadObject>, key: &Key) -> Key {
    let mut at = key.clone();
    // A chain of owners is short; a longer one is a circle.
    for _ in 0..4 {
        let owner = known
            .get(&at)
            .and_then(|o| o.owner.clone())
            .or_else(|| cron_job(known, &at));
        match owner {
            Some(owner) => at.1 = owner,
            None => break,
        }
    }
    at
}

/// The CronJob of a job that is not given itself: a given one whose name the job's continues by a time stamp.
fn cron_job(known: &BTreeMap<Key, WorkloadObject>, (namespace, job): &Key) -> Option<Workload> {
    if &*job.kind != "job" {
        return None;
    }
    let (name, stamp) = job.name.rsplit_once('-')?;
    let stamped = !stamp.is_empty() && stamp.bytes().all(|b| b.is_ascii_digit());
    let workload = Workload {
        kind: "cronjob".into(),
        name: name.into(),
    };
    (stamped && known.contains_key(&(namespace.clone(), workload.clone()))).then_some(workload)
}

fn make(cluster: &mut Cluster, object: &WorkloadObject, workload: &Workload, derived: &mut BTreeSet<PodName>) {
    let nodes: Vec<Option<Name>> = if &*workload.kind == "daemonset" && !cluster.nodes.is_empty() {
        let admitted = cluster
            .nodes
            .values()
            .filter(|n| object.template.node_selector.matches(&n.labels));
        admitted.map(|n| Some(n.name.clone())).collect()
    } else if object.replicas == Some(1) {
        vec![None]
    } else {
        vec![None, None]
    };
    let mut ordinal = 0;
    for node in nodes {
        let name = loop {
            let name = PodName {
                namespace: object.namespace.clone(),
                name: format!("{}-{ordinal}", workload.name).into(),
            };
            ordinal += 1;
            // Another object may have the name: a Deployment and a StatefulSet can be called the same.
            if !cluster.pods.contains_key(&name) {
                break name;
            }
        };
        derived.insert(name.clone());
        cluster.add_pod(Pod {
            name,
            labels: object.template.labels.clone(),
            addresses: Vec::new(),
            node,
            host_network: object.template.host_network,
            ended: false,
            started: None,
            ports: object.template.ports.clone(),
            workload: Some(workload.clone()),
        });
    }
}
