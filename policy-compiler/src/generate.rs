//! Realistic clusters at any size, from a seed: a [`Spec`] in, a [`Cluster`] out, and the pod events that such a cluster
//! sees. The same spec gives the same cluster on every machine. For tests, for benchmarks, and for sizing agents.

mod events;
mod policies;
mod random;
mod roles;
mod uniform;
mod world;

use crate::cluster::Cluster;
pub use events::Events;

/// What a generated cluster looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Teams with an environment per namespace; workloads of several roles and sizes; monitoring, ingress and DNS in
    /// namespaces of their own; default-deny, and the allows that people write on top of it. Namespaces differ in size.
    Realistic,
    /// Every namespace alike, as in Antrea's controller benchmark: one policy that denies everything, and others each of
    /// which lets the pods of one label reach each other. Pods are spread evenly over the labels.
    Uniform,
}

/// How large a cluster to generate. The sizes are met exactly, whatever they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Equal specs give equal clusters.
    pub seed: u64,
    /// What it looks like.
    pub shape: Shape,
    /// Nodes; at least one is made.
    pub nodes: usize,
    /// Namespaces; at least one is made.
    pub namespaces: usize,
    /// Pods, those of the system's own DaemonSets included.
    pub pods: usize,
    /// NetworkPolicies.
    pub policies: usize,
    /// Whether pods and nodes have an IPv6 address beside the IPv4 one.
    pub dual_stack: bool,
}

impl Spec {
    /// A cluster of so many pods in common proportions: 30 pods on a node, 50 in a namespace, and a policy for every 10.
    pub fn realistic(pods: usize) -> Self {
        Spec {
            seed: 1,
            shape: Shape::Realistic,
            nodes: pods.div_ceil(30),
            namespaces: pods.div_ceil(50),
            pods,
            policies: pods / 10,
            dual_stack: false,
        }
    }

    /// The shape of Antrea's controller benchmark with small namespaces: 25,000 namespaces, each of 4 pods and 3 policies.
    pub fn antrea() -> Self {
        Spec {
            seed: 1,
            shape: Shape::Uniform,
            nodes: 1_000,
            namespaces: 25_000,
            pods: 100_000,
            policies: 75_000,
            dual_stack: false,
        }
    }

    /// The shape of Antrea's controller benchmark with large namespaces: 100 of them, each of 1,000 pods and 101 policies.
    pub fn antrea_large_namespaces() -> Self {
        Spec {
            namespaces: 100,
            policies: 10_100,
            ..Self::antrea()
        }
    }
}

/// The cluster of a spec.
///
/// ```
/// use policy_compiler::generate::{Spec, cluster};
/// let cluster = cluster(&Spec::realistic(1_000));
/// assert_eq!((cluster.pods.len(), cluster.policies.len()), (1_000, 100));
/// ```
pub fn cluster(spec: &Spec) -> Cluster {
    world::World::new(spec).cluster
}

/// The pod events that the cluster of a spec goes on to see, without end: rolling updates (each pod replaced by one of
/// another name and address), labels that change, workloads that grow and shrink. Nothing happens in a cluster without pods.
///
/// ```
/// use policy_compiler::compile::{Compiler, Subjects};
/// use policy_compiler::generate::{Spec, cluster, events};
/// let spec = Spec::realistic(100);
/// let mut compiler = Compiler::new(&cluster(&spec), Subjects::All);
/// for event in events(&spec).take(10) {
///     compiler.apply(event);
/// }
/// ```
pub fn events(spec: &Spec) -> Events {
    Events::new(world::World::new(spec))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::addresses::AddressBook;
    use crate::compile::{Subjects, compile};
    use crate::diagnostics::{Code, ObjectName, diagnose};
    use crate::policy::{Direction, Peers, Policy};

    fn policy(policy: &Policy) -> String {
        let mut out = format!("{}: {}", policy.name, policy.subject);
        for direction in Direction::BOTH {
            let Some(rules) = policy.rules(direction) else { continue };
            out += &format!("; {direction}:");
            for rule in rules {
                let peers = match &rule.peers {
                    Peers::All => "everything".to_owned(),
                    Peers::Listed(peers) => peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "),
                };
                out += &format!(" [{peers} on {}]", rule.ports);
            }
        }
        out
    }

    /// A cluster as text, one object on a line.
    fn text(cluster: &Cluster) -> String {
        let mut lines: Vec<String> = Vec::new();
        for node in cluster.nodes.values() {
            lines.push(format!(
                "{} ({}) {:?} {:?}",
                node.name, node.labels, node.addresses, node.pod_cidrs
            ));
        }
        for namespace in cluster.namespaces.values() {
            lines.push(format!("{} ({})", namespace.name, namespace.labels));
        }
        for pod in cluster.pods.values() {
            let ports: Vec<String> = pod
                .ports
                .iter()
                .map(|p| format!("{}/{}", p.number, p.protocol))
                .collect();
            let node = pod.node.as_deref().unwrap_or("nowhere");
            let more = [(pod.host_network, " host-network"), (pod.ended, " ended")];
            let more: String = more.iter().filter(|(is, _)| *is).map(|(_, what)| *what).collect();
            lines.push(format!(
                "{} ({}) on {node} {:?} ports {}{more}",
                pod.name,
                pod.labels,
                pod.addresses,
                ports.join(" ")
            ));
        }
        lines.extend(cluster.policies.values().map(|p| policy(p)));
        lines.join("\n")
    }

    #[track_caller]
    fn check_sizes(spec: &Spec) {
        let cluster = cluster(spec);
        let sizes = (cluster.namespaces.len(), cluster.pods.len(), cluster.policies.len());
        assert_eq!(sizes, (spec.namespaces.max(1), spec.pods, spec.policies), "{spec:?}");
        assert_eq!(cluster.nodes.len(), spec.nodes.max(1));
        assert!(AddressBook::new(&cluster).conflicts().is_empty(), "{spec:?}");
        assert!(
            cluster
                .pods
                .keys()
                .all(|p| cluster.namespaces.contains_key(&p.namespace))
        );
        for pod in cluster.pods.values().filter(|p| !p.host_network) {
            let node = &cluster.nodes[pod.node.as_ref().expect("every pod has a node")];
            assert_eq!(pod.addresses.len(), node.pod_cidrs.len());
            let inside = |address| node.pod_cidrs.iter().any(|cidr| cidr.contains(address));
            assert!(
                pod.addresses.iter().all(inside),
                "{} is outside {:?}",
                pod.name,
                node.pod_cidrs
            );
        }
    }

    #[test]
    fn sizes_are_met_exactly() {
        let realistic = Spec::realistic(1_000);
        check_sizes(&realistic);
        for pods in [0, 1, 7, 60, 3_000] {
            check_sizes(&Spec::realistic(pods));
        }
        let crowded = Spec { nodes: 1, ..realistic };
        let sparse = Spec {
            nodes: 2_000,
            namespaces: 0,
            dual_stack: true,
            ..realistic
        };
        let dense = Spec {
            policies: 5_000,
            dual_stack: true,
            ..realistic
        };
        let [one, small] = [1, 50].map(|namespaces| Spec {
            namespaces,
            pods: 203,
            policies: 151,
            ..Spec::antrea()
        });
        for spec in [crowded, sparse, dense, one, small] {
            check_sizes(&spec);
        }
    }

    #[test]
    fn equal_specs_are_equal_clusters_and_seeds_differ() {
        let spec = Spec::realistic(200);
        assert_eq!(cluster(&spec), cluster(&spec));
        assert_ne!(cluster(&spec), cluster(&Spec { seed: 2, ..spec }));
    }

    #[test]
    fn a_tiny_realistic_cluster() {
        let spec = Spec {
            nodes: 2,
            namespaces: 6,
            pods: 30,
            policies: 24,
            dual_stack: true,
            ..Spec::realistic(30)
        };
        insta::assert_snapshot!(text(&cluster(&spec)));
    }

    #[test]
    fn a_tiny_uniform_cluster() {
        let spec = Spec {
            nodes: 2,
            namespaces: 2,
            pods: 8,
            policies: 6,
            ..Spec::antrea()
        };
        insta::assert_snapshot!(text(&cluster(&spec)));
    }

    /// What is odd about a generated cluster is what is odd about real ones, and no accident of the generator.
    #[test]
    fn generated_policies_mean_something() {
        let cluster = cluster(&Spec::realistic(5_000));
        let table = compile(&cluster, &Subjects::All);
        let mut codes: BTreeSet<Code> = BTreeSet::new();
        let mut idle: BTreeSet<&ObjectName> = BTreeSet::new();
        let findings = diagnose(&cluster, &table);
        for finding in &findings {
            codes.insert(finding.code);
            idle.insert(&finding.object);
        }
        assert_eq!(codes, [Code::SelectsNoPod].into());
        assert!(
            idle.len() * 4 < cluster.policies.len(),
            "{} of {} policies do nothing",
            idle.len(),
            cluster.policies.len()
        );
    }
}
