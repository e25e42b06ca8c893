//! What a watch tells of a cluster, one object at a time.

use std::sync::Arc;

use crate::cluster::{Cluster, Namespace, Node, Pod, PodName};
use crate::labels::Name;
use crate::policy::{Policy, PolicyName, Tier};

/// One change of the cluster, as a watch tells it. An object that is there already is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A pod was added or changed.
    Pod(Arc<Pod>),
    /// A pod is gone.
    PodGone(PodName),
    /// A namespace was added or changed.
    Namespace(Arc<Namespace>),
    /// A namespace is gone.
    NamespaceGone(Name),
    /// A node was added or changed.
    Node(Arc<Node>),
    /// A node is gone.
    NodeGone(Name),
    /// A policy was added or changed.
    Policy(Arc<Policy>),
    /// A policy is gone.
    PolicyGone(Tier, PolicyName),
}

impl Event {
    /// Makes a cluster what it is after the event.
    pub fn apply_to(self, cluster: &mut Cluster) {
        match self {
            Event::Pod(pod) => drop(cluster.pods.insert(pod.name.clone(), pod)),
            Event::PodGone(name) => drop(cluster.pods.remove(&name)),
            Event::Namespace(namespace) => drop(cluster.namespaces.insert(namespace.name.clone(), namespace)),
            Event::NamespaceGone(name) => drop(cluster.namespaces.remove(&name)),
            Event::Node(node) => drop(cluster.nodes.insert(node.name.clone(), node)),
            Event::NodeGone(name) => drop(cluster.nodes.remove(&name)),
            Event::Policy(policy) => drop(cluster.policies.insert((policy.tier, policy.name.clone()), policy)),
            Event::PolicyGone(tier, name) => drop(cluster.policies.remove(&(tier, name))),
        }
    }
}
