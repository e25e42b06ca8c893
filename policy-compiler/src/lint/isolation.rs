//! Pods that no policy isolates: single workloads, and whole namespaces without a default.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::View;
use crate::cluster::{Pod, Workload};
use crate::convert::FieldPath;
use crate::diagnostics::{Code, Findings, ObjectName};
use crate::labels::Name;
use crate::policy::{Direction, Enforcement, NamespaceScope, Policy};

pub(super) fn look(view: &View<'_>, out: &mut Findings) {
    let mut namespaces: BTreeMap<&Name, Vec<(&Arc<Pod>, bool)>> = BTreeMap::new();
    for (index, pod) in view.table.pods().filter(|(_, pod)| !pod.host_network) {
        let judged = Direction::BOTH.map(|d| view.table.half(d).group_in_force(index).is_some());
        let pods = namespaces.entry(&pod.name.namespace).or_default();
        pods.push((pod, judged.contains(&true)));
    }
    let defaults: BTreeSet<&Name> = view
        .cluster
        .policies
        .values()
        .filter_map(|p| of_all_pods(view, p))
        .collect();
    for (namespace, mut pods) in namespaces {
        pods.sort_by_key(|(pod, _)| &pod.name);
        if pods.iter().any(|(_, judged)| *judged) {
            let open = pods.iter().filter(|(_, judged)| !judged).map(|(pod, _)| *pod);
            unprotected(open, out);
        }
        if !defaults.contains(namespace) {
            let message = "no policy isolates all of its pods for ingress: what the others do not select is open to everybody; \
                           write one with podSelector: {} and no ingress rule";
            let name = ObjectName::of_namespace(namespace);
            out.add(Code::NoDefaultDeny, name, FieldPath::default(), message);
        }
    }
}

/// A workload, or a pod that belongs to none.
type Who<'a> = (Option<&'a Workload>, Option<&'a Name>);

/// One finding for each workload, by its first pod.
fn unprotected<'a>(open: impl Iterator<Item = &'a Arc<Pod>>, out: &mut Findings) {
    let mut workloads: BTreeMap<Who<'_>, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in open {
        let alone = pod.workload.is_none().then_some(&pod.name.name);
        workloads.entry((pod.workload.as_ref(), alone)).or_default().push(pod);
    }
    for ((workload, _), pods) in workloads {
        let Some(first) = pods.first() else { continue };
        let like = match workload {
            Some(Workload { kind, name }) if pods.len() > 1 => {
                format!(", like {} more of {kind} {name},", pods.len() - 1)
            }
            _ => String::new(),
        };
        let message = format!(
            "no policy isolates it{like} in any direction, and others in this namespace are isolated: select it by a policy"
        );
        let name = ObjectName::of_pod(&first.name);
        out.add(Code::UnprotectedWorkload, name, FieldPath::default(), message);
    }
}

/// The namespace of which a policy isolates every pod for ingress.
fn of_all_pods<'a>(view: &View<'a>, policy: &'a Policy) -> Option<&'a Name> {
    let NamespaceScope::Named(namespace) = &policy.subject.namespaces else {
        return None;
    };
    let isolates = policy.subject.pods.is_everything()
        && policy.isolates(Direction::Ingress)
        && view.cluster.enforcement(policy) == Enforcement::Enforce;
    isolates.then_some(namespace)
}
