//! Which kinds are read, from which API versions, and what happens to all others.

use super::decode::nearest;

/// A kind that policy, or a view of it, has a use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    ReplicationController,
    NetworkPolicy,
    Deployment,
    StatefulSet,
    DaemonSet,
    ReplicaSet,
    Job,
    CronJob,
}

/// Each kind with its name and its API version.
const KNOWN: [(Kind, &str, &str); 12] = [
    (Kind::Namespace, "Namespace", "v1"),
    (Kind::Node, "Node", "v1"),
    (Kind::Pod, "Pod", "v1"),
    (Kind::Service, "Service", "v1"),
    (Kind::ReplicationController, "ReplicationController", "v1"),
    (Kind::NetworkPolicy, "NetworkPolicy", "networking.k8s.io/v1"),
    (Kind::Deployment, "Deployment", "apps/v1"),
    (Kind::StatefulSet, "StatefulSet", "apps/v1"),
    (Kind::DaemonSet, "DaemonSet", "apps/v1"),
    (Kind::ReplicaSet, "ReplicaSet", "apps/v1"),
    (Kind::Job, "Job", "batch/v1"),
    (Kind::CronJob, "CronJob", "batch/v1"),
];

impl Kind {
    pub(super) fn name(self) -> &'static str {
        self.entry().1
    }

    pub(super) fn api_version(self) -> &'static str {
        self.entry().2
    }

    pub(super) fn is_namespaced(self) -> bool {
        !matches!(self, Kind::Namespace | Kind::Node)
    }

    fn entry(self) -> &'static (Kind, &'static str, &'static str) {
        &KNOWN[self as usize]
    }
}

/// What to do with an object.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Read it.
    Known(Kind),
    /// Read its items; those of a typed list need not repeat their kind.
    List(Option<Kind>),
    /// Pass it over, and count it under this name.
    Other(String),
    /// As [`Class::Other`]; but it is a policy, or a list of policies, so that a cluster which reads it may answer otherwise.
    OtherPolicy(String),
    /// Refuse it, because of this field, with this reason.
    Wrong(&'static str, String),
}

/// Sorts an object by its `apiVersion` and `kind`.
pub(super) fn classify(api_version: &str, kind: &str) -> Class {
    if (api_version, kind) == ("v1", "List") {
        return Class::List(None);
    }
    let group = group_of(api_version);
    if let Some(list) = known(kind) {
        return match judge(list, api_version) {
            Ok(kind) => Class::Known(kind),
            Err(class) => class,
        };
    }
    if let Some(item) = kind.strip_suffix("List").and_then(known) {
        return match judge(item, api_version) {
            Ok(kind) => Class::List(Some(kind)),
            Err(class) => class,
        };
    }
    // A mistyped policy that is silently passed over would be worse than an error.
    let siblings = KNOWN.iter().filter(|(_, _, version)| group_of(version) == group);
    match nearest(kind, siblings.map(|(_, name, _)| *name)) {
        Some(near) => Class::Wrong(
            "kind",
            format!("\"{kind:.80}\" is not a kind of {api_version:.80}: did you mean {near}?"),
        ),
        None => other(kind, kind.to_owned()),
    }
}

/// The name of a kind whose name is known in lower case, as [`policy_compiler::cluster::Workload`] has it.
pub(super) fn workload(kind: &str) -> &str {
    let known = KNOWN.iter().find(|(_, name, _)| name.eq_ignore_ascii_case(kind));
    known.map_or(kind, |(_, name, _)| name)
}

fn known(name: &str) -> Option<Kind> {
    KNOWN
        .iter()
        .find(|(_, known, _)| *known == name)
        .map(|(kind, _, _)| *kind)
}

/// Whether this is the kind that we know. Others may have a kind of the same name in a group of their own, and such a
/// group always has a dot.
fn judge(kind: Kind, api_version: &str) -> Result<Kind, Class> {
    let (_, name, right) = kind.entry();
    let group = group_of(api_version);
    if api_version == *right {
        Ok(kind)
    } else if group == group_of(right) || !group.contains('.') {
        Err(Class::Wrong(
            "apiVersion",
            format!("{name} is not read from {api_version:.80}: write apiVersion: {right}"),
        ))
    } else {
        Err(other(name, format!("{name}.{group}")))
    }
}

/// What is not read. The policies of all networks are called so: AdminNetworkPolicy, CiliumNetworkPolicy, GlobalNetworkPolicy.
fn other(kind: &str, name: String) -> Class {
    match kind.strip_suffix("List").unwrap_or(kind).ends_with("NetworkPolicy") {
        true => Class::OtherPolicy(name),
        false => Class::Other(name),
    }
}

fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_kinds() {
        for (kind, name, _) in &KNOWN {
            assert_eq!(kind.name(), *name);
        }
    }

    #[track_caller]
    fn check(api_version: &str, kind: &str, expected: Class) {
        assert_eq!(classify(api_version, kind), expected);
    }

    #[test]
    fn kinds_are_told_apart_by_group_and_version() {
        check("v1", "Pod", Class::Known(Kind::Pod));
        check("v1", "PodList", Class::List(Some(Kind::Pod)));
        check("v1", "List", Class::List(None));
        check("v1", "ConfigMap", Class::Other("ConfigMap".into()));
        check("v1", "ConfigMapList", Class::Other("ConfigMapList".into()));
        check("v1", "PodTemplate", Class::Other("PodTemplate".into()));
        check(
            "policy/v1",
            "PodDisruptionBudget",
            Class::Other("PodDisruptionBudget".into()),
        );
        check("networking.k8s.io/v1", "Ingress", Class::Other("Ingress".into()));
        check(
            "serving.knative.dev/v1",
            "Service",
            Class::Other("Service.serving.knative.dev".into()),
        );
        check(
            "projectcalico.org/v3",
            "NetworkPolicy",
            Class::OtherPolicy("NetworkPolicy.projectcalico.org".into()),
        );
        for (api_version, kind) in [
            ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
            ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
            ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy"),
            ("cilium.io/v2", "CiliumNetworkPolicy"),
            ("cilium.io/v2", "CiliumClusterwideNetworkPolicyList"),
            ("projectcalico.org/v3", "GlobalNetworkPolicy"),
            ("networking.k8s.io/v1", "ClusterNetworkPolicy"),
        ] {
            check(api_version, kind, Class::OtherPolicy(kind.into()));
        }
        check(
            "projectcalico.org/v3",
            "NetworkPolicyList",
            Class::OtherPolicy("NetworkPolicy.projectcalico.org".into()),
        );
        check(
            "extensions/v1beta1",
            "NetworkPolicy",
            Class::Wrong(
                "apiVersion",
                "NetworkPolicy is not read from extensions/v1beta1: write apiVersion: networking.k8s.io/v1".into(),
            ),
        );
        check(
            "v1",
            "NetworkPolicy",
            Class::Wrong(
                "apiVersion",
                "NetworkPolicy is not read from v1: write apiVersion: networking.k8s.io/v1".into(),
            ),
        );
        check(
            "batch.volcano.sh/v1alpha1",
            "Job",
            Class::Other("Job.batch.volcano.sh".into()),
        );
        check(
            "networking.k8s.io/v1",
            "networkpolicy",
            Class::Wrong(
                "kind",
                "\"networkpolicy\" is not a kind of networking.k8s.io/v1: did you mean NetworkPolicy?".into(),
            ),
        );
    }
}
