//! Which pod of one cluster stands for which of the other: two clusters in, pairs of live pods out, and those that are left over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::End;
use crate::cluster::{Cluster, Endpoint, Pod, PodName, Workload};
use crate::labels::Name;
use crate::table::Table;

/// The live pods of two clusters, each at most once, sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// A pod before, and the one that stands for it after.
    pub both: Vec<(Arc<Pod>, Arc<Pod>)>,
    /// Pods that nothing stands for after.
    pub removed: Vec<Arc<Pod>>,
    /// Pods that stand for nothing before.
    pub added: Vec<Arc<Pod>>,
}

impl Pods {
    /// Pairs the pods of two clusters: by name; then, within a workload, those of equal labels, and at last the rest in order. So a
    /// roll-out that renames every replica is no reason to compare nothing.
    pub fn new(before: &Cluster, after: &Cluster) -> Self {
        let mut pods = Pods::default();
        let live = |cluster: &Cluster, name: &PodName| cluster.pods.get(name).filter(|p| !p.ended).cloned();
        let mut left: [Vec<Arc<Pod>>; 2] = Default::default();
        let names: BTreeSet<&PodName> = before.pods.keys().chain(after.pods.keys()).collect();
        for name in names {
            match (live(before, name), live(after, name)) {
                (Some(old), Some(new)) => pods.both.push((old, new)),
                (Some(old), None) => left[0].push(old),
                (None, Some(new)) => left[1].push(new),
                (None, None) => {}
            }
        }
        type ByWorkload = BTreeMap<(Name, Workload), Vec<Arc<Pod>>>;
        let by_workload = |pods: Vec<Arc<Pod>>, alone: &mut Vec<Arc<Pod>>| {
            let mut by_workload = ByWorkload::new();
            for pod in pods {
                match &pod.workload {
                    Some(workload) => {
                        let key = (pod.name.namespace.clone(), workload.clone());
                        by_workload.entry(key).or_default().push(pod);
                    }
                    None => alone.push(pod),
                }
            }
            by_workload
        };
        let [old, new] = left;
        let old = by_workload(old, &mut pods.removed);
        let mut new = by_workload(new, &mut pods.added);
        for (key, old) in old {
            let mut new = new.remove(&key).unwrap_or_default();
            let mut unlike = Vec::new();
            for pod in old {
                match new.iter().position(|other| other.labels == pod.labels) {
                    Some(at) => pods.both.push((pod, new.remove(at))),
                    None => unlike.push(pod),
                }
            }
            let rest = unlike.split_off(unlike.len().min(new.len()));
            let more = new.split_off(unlike.len());
            pods.both.extend(unlike.into_iter().zip(new));
            pods.removed.extend(rest);
            pods.added.extend(more);
        }
        pods.added.extend(new.into_values().flatten());
        pods.both
            .sort_by(|a, b| (&a.1.name, &a.0.name).cmp(&(&b.1.name, &b.0.name)));
        pods.removed.sort_by(|a, b| a.name.cmp(&b.name));
        pods.added.sort_by(|a, b| a.name.cmp(&b.name));
        pods
    }
}

/// The ends of a pod before with those after. An address that is still there is compared with itself, any other with the first one of its
/// family, or with the pod without an address; one that has no such counterpart is left out.
pub fn ends(before: &Table, after: &Table, (old, new): &(Arc<Pod>, Arc<Pod>)) -> Vec<End> {
    let old = before.addresses().endpoints(old);
    let new = after.addresses().endpoints(new);
    let counterpart = |end: &Endpoint, among: &[Endpoint]| {
        let same = among.iter().find(|other| other.address() == end.address());
        same.or_else(|| among.iter().find(|other| other.same_family(end)))
            .cloned()
    };
    let forth = old
        .iter()
        .filter_map(|end| Some((end.clone(), counterpart(end, &new)?)));
    let back = new
        .iter()
        .filter_map(|end| Some((counterpart(end, &old)?, end.clone())));
    let pairs: BTreeSet<(Endpoint, Endpoint)> = forth.chain(back).collect();
    pairs.into_iter().map(|(before, after)| End { before, after }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, workload: Option<&str>, app: &str) -> Pod {
        Pod {
            name: PodName {
                namespace: "shop".into(),
                name: name.into(),
            },
            labels: [("app", app)].into_iter().collect(),
            workload: workload.map(|name| Workload {
                kind: "deployment".into(),
                name: name.into(),
            }),
            ..Pod::default()
        }
    }

    #[track_caller]
    fn check(before: &[Pod], after: &[Pod], both: &[(&str, &str)], removed: &[&str], added: &[&str]) {
        let cluster = |pods: &[Pod]| {
            let mut cluster = Cluster::default();
            pods.iter().cloned().for_each(|p| cluster.add_pod(p));
            cluster
        };
        let found = Pods::new(&cluster(before), &cluster(after));
        let pairs: Vec<(&str, &str)> = found.both.iter().map(|(a, b)| (&*a.name.name, &*b.name.name)).collect();
        let names = |pods: &[Arc<Pod>]| pods.iter().map(|p| p.name.name.to_string()).collect::<Vec<_>>();
        assert_eq!(pairs, both);
        assert_eq!(names(&found.removed), removed);
        assert_eq!(names(&found.added), added);
    }

    #[test]
    fn a_name_goes_before_a_workload() {
        let old = [pod("a", Some("api"), "api"), pod("b", Some("api"), "api")];
        let new = [pod("b", Some("api"), "api"), pod("c", Some("api"), "api")];
        check(&old, &new, &[("b", "b"), ("a", "c")], &[], &[]);
    }

    #[test]
    fn replicas_of_equal_labels_stand_for_each_other_first() {
        let old = [pod("a", Some("api"), "old"), pod("b", Some("api"), "new")];
        let new = [pod("c", Some("api"), "new"), pod("d", Some("api"), "third")];
        check(&old, &new, &[("b", "c"), ("a", "d")], &[], &[]);
    }

    #[test]
    fn what_has_no_counterpart_is_left_over() {
        let old = [
            pod("a", Some("api"), "x"),
            pod("b", Some("api"), "x"),
            pod("lone", None, "x"),
        ];
        let new = [
            pod("c", Some("api"), "x"),
            pod("d", Some("web"), "x"),
            pod("other", None, "x"),
        ];
        check(&old, &new, &[("a", "c")], &["b", "lone"], &["d", "other"]);
    }

    #[test]
    fn ended_pods_do_not_count() {
        let ended = Pod {
            ended: true,
            ..pod("a", None, "x")
        };
        check(&[ended], &[pod("a", None, "x")], &[], &[], &["a"]);
    }
}
