//! The cluster snapshot: what the compiler takes in. Plain data, ordered, cheap to clone.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::labels::{Labels, NAMESPACE_NAME_LABEL, Name, Selector};
use crate::policy::{Enforcement, Policy, PolicyName, Tier};
use crate::ports::{PortSet, Protocol, Traffic};

/// The name of a pod: `namespace/name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    /// `metadata.namespace`.
    pub namespace: Name,
    /// `metadata.name`.
    pub name: Name,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Serialize for PodName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The controller that a pod belongs to, such as a Deployment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workload {
    /// The kind in lower case, as endpoints are written: `deployment`.
    pub kind: Name,
    /// Its name, in the pod's namespace.
    pub name: Name,
}

/// A port that a container of the pod declares (`containers[].ports[]`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerPort {
    /// Its name, when it has one.
    pub name: Option<Name>,
    /// Its protocol.
    pub protocol: Protocol,
    /// `containerPort`.
    pub number: u16,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pod {
    /// Its name.
    pub name: PodName,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `status.podIPs`; empty until the pod has its addresses.
    pub addresses: Vec<IpAddr>,
    /// `spec.nodeName`.
    pub node: Option<Name>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// Whether the phase is Succeeded or Failed: such a pod does not exist for policy.
    pub ended: bool,
    /// `status.startTime`, in seconds since 1970.
    pub started: Option<i64>,
    /// The ports of its containers, and of its init containers that keep running.
    pub ports: Vec<ContainerPort>,
    /// The workload that it belongs to.
    pub workload: Option<Workload>,
}

impl Pod {
    /// The ports that a name stands for on this pod; more than one when containers disagree.
    pub fn named_port(&self, protocol: Protocol, name: &str) -> PortSet {
        self.ports
            .iter()
            .filter(|p| p.protocol == protocol && p.name.as_deref() == Some(name))
            .fold(PortSet::none(), |set, p| {
                set.union(&PortSet::single(Traffic::Port(protocol, p.number)))
            })
    }
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace {
    /// Its name.
    pub name: Name,
    /// `metadata.labels`, always with [`NAMESPACE_NAME_LABEL`].
    pub labels: Labels,
    /// What its annotation asks for, of the policies in it that have none of their own.
    pub enforcement: Option<Enforcement>,
}

impl Namespace {
    /// A namespace; its name label is set as the API server sets it, and it asks for no mode.
    pub fn new(name: impl Into<Name>, labels: Labels) -> Self {
        let name = name.into();
        let labels = labels.with(NAMESPACE_NAME_LABEL, &name);
        Namespace {
            name,
            labels,
            enforcement: None,
        }
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// Its name.
    pub name: Name,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `status.addresses` of type InternalIP and ExternalIP.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<ipnet::IpNet>,
}

/// The name of a Service: `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// `metadata.namespace`.
    pub namespace: Name,
    /// `metadata.name`.
    pub name: Name,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// How a Service is reached (`spec.type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKind {
    /// Through its cluster addresses; headless when it has none.
    ClusterIp,
    /// Through a port of every node as well.
    NodePort,
    /// Through a load balancer as well.
    LoadBalancer,
    /// An alias in DNS, without backends.
    ExternalName,
}

/// The port of the backends of a Service (`ports[].targetPort`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By name, resolved on each backend pod.
    Named(Name),
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePort {
    /// Its name, when it has one.
    pub name: Option<Name>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port on the cluster addresses.
    pub port: u16,
    /// The port on the backends.
    pub target: TargetPort,
    /// The port on every node, when one is given.
    pub node_port: Option<u16>,
}

/// A Service. Policy never depends on it: it sees the backend that was chosen, never the Service's own address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// How it is reached.
    pub kind: ServiceKind,
    /// `spec.clusterIPs`; empty for a headless Service and until they are assigned.
    pub cluster_ips: Vec<IpAddr>,
    /// Which pods of its namespace are its backends; none when its endpoints are kept by hand.
    pub selector: Option<Selector>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// Everything that policy depends on, at one moment, and the Services beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Namespaces by name.
    pub namespaces: BTreeMap<Name, Arc<Namespace>>,
    /// Pods by name; ended ones may be among them.
    pub pods: BTreeMap<PodName, Arc<Pod>>,
    /// Nodes by name.
    pub nodes: BTreeMap<Name, Arc<Node>>,
    /// Policies in their order of evaluation.
    pub policies: BTreeMap<(Tier, PolicyName), Arc<Policy>>,
    /// Services by name; policy does not depend on them.
    pub services: BTreeMap<ServiceName, Arc<Service>>,
}

impl Cluster {
    /// Adds or replaces a namespace.
    pub fn add_namespace(&mut self, namespace: Namespace) {
        self.namespaces.insert(namespace.name.clone(), Arc::new(namespace));
    }

    /// Adds or replaces a pod.
    pub fn add_pod(&mut self, pod: Pod) {
        self.pods.insert(pod.name.clone(), Arc::new(pod));
    }

    /// Adds or replaces a node.
    pub fn add_node(&mut self, node: Node) {
        self.nodes.insert(node.name.clone(), Arc::new(node));
    }

    /// Adds or replaces a policy.
    pub fn add_policy(&mut self, policy: Policy) {
        self.policies
            .insert((policy.tier, policy.name.clone()), Arc::new(policy));
    }

    /// Adds or replaces a Service.
    pub fn add_service(&mut self, service: Service) {
        self.services.insert(service.name.clone(), Arc::new(service));
    }

    /// The labels of a namespace; of one that is not known, just its name label.
    pub fn namespace_labels(&self, name: &Name) -> Labels {
        match self.namespaces.get(name) {
            Some(namespace) => namespace.labels.clone(),
            None => Labels::default().with(NAMESPACE_NAME_LABEL, name),
        }
    }

    /// Whether a policy is in force here.
    pub fn enforcement(&self, policy: &Policy) -> Enforcement {
        let namespace = policy.name.namespace.as_ref().and_then(|n| self.namespaces.get(n));
        policy.enforcement_in(namespace.and_then(|n| n.enforcement))
    }
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// A pod, through one of its addresses; none for a pod that has no address (yet).
    Pod(Arc<Pod>, Option<IpAddr>),
    /// An address that is no pod's.
    Address(IpAddr),
}

impl Endpoint {
    /// The address of this end.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Endpoint::Pod(_, address) => *address,
            Endpoint::Address(address) => Some(*address),
        }
    }

    /// The pod at this end, as policy sees it: a host-network pod is its node, hence none.
    pub fn pod(&self) -> Option<&Arc<Pod>> {
        match self {
            Endpoint::Pod(pod, _) if !pod.host_network => Some(pod),
            _ => None,
        }
    }

    /// Whether the two ends can be those of one connection: two addresses must be of one family.
    pub fn same_family(&self, other: &Endpoint) -> bool {
        match (self.address(), other.address()) {
            (Some(a), Some(b)) => a.is_ipv4() == b.is_ipv4(),
            _ => true,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Pod(pod, Some(address)) => write!(f, "{} ({address})", pod.name),
            Endpoint::Pod(pod, None) => pod.name.fmt(f),
            Endpoint::Address(address) => address.fmt(f),
        }
    }
}

/// A connection that policy never touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exemption {
    /// A pod reaches itself.
    Itself,
    /// A pod and the node that it runs on, or a host-network pod there.
    OwnNode,
}

impl fmt::Display for Exemption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Exemption::Itself => "a pod always reaches itself",
            Exemption::OwnNode => "a pod and its own node always reach each other",
        })
    }
}
