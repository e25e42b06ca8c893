//! Objects as they are read off the wire: the fields in use and no others. What the conversion wants is built from them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// An object with only the fields in use of its spec and its status.
#[derive(Debug, Deserialize)]
pub(super) struct Object<Spec, Status> {
    #[serde(default = "Meta::default")]
    pub(super) metadata: Meta,
    #[serde(default = "none")]
    spec: Option<Spec>,
    #[serde(default = "none")]
    status: Option<Status>,
}

fn none<T>() -> Option<T> {
    None
}

/// What is in use of `metadata`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) resource_version: Option<String>,
    pub(super) uid: Option<String>,
    pub(super) generation: Option<i64>,
    pub(super) labels: Option<BTreeMap<String, String>>,
    pub(super) annotations: Option<BTreeMap<String, String>>,
    pub(super) owner_references: Option<Vec<Owner>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Owner {
    kind: String,
    name: String,
    controller: Option<bool>,
}

pub(super) type Namespace = Object<IgnoredAny, IgnoredAny>;
pub(super) type Node = Object<NodeSpec, NodeStatus>;
pub(super) type Pod = Object<PodSpec, PodStatus>;
pub(super) type Policy = Object<NetworkPolicySpec, IgnoredAny>;
pub(super) type Service = Object<v1::ServiceSpec, IgnoredAny>;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct NodeStatus {
    addresses: Option<Vec<v1::NodeAddress>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    restart_policy: Option<String>,
    ports: Option<Vec<v1::ContainerPort>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<v1::PodIP>>,
    start_time: Option<Time>,
}

impl Meta {
    fn into_metadata(self) -> ObjectMeta {
        let owners = self.owner_references.unwrap_or_default().into_iter();
        let owners = owners.map(|owner| OwnerReference {
            kind: owner.kind,
            name: owner.name,
            controller: owner.controller,
            ..OwnerReference::default()
        });
        ObjectMeta {
            name: self.name,
            namespace: self.namespace,
            labels: self.labels,
            annotations: self.annotations,
            owner_references: Some(owners.collect()),
            ..ObjectMeta::default()
        }
    }
}

impl From<Namespace> for v1::Namespace {
    fn from(object: Namespace) -> Self {
        v1::Namespace {
            metadata: object.metadata.into_metadata(),
            ..v1::Namespace::default()
        }
    }
}

impl From<Node> for v1::Node {
    fn from(object: Node) -> Self {
        let spec = object.spec.map(|spec| v1::NodeSpec {
            pod_cidr: spec.pod_cidr,
            pod_cidrs: spec.pod_cidrs,
            ..v1::NodeSpec::default()
        });
        let status = object.status.map(|status| v1::NodeStatus {
            addresses: status.addresses,
            ..v1::NodeStatus::default()
        });
        v1::Node {
            metadata: object.metadata.into_metadata(),
            spec,
            status,
        }
    }
}

impl From<Container> for v1::Container {
    fn from(container: Container) -> Self {
        v1::Container {
            restart_policy: container.restart_policy,
            ports: container.ports,
            ..v1::Container::default()
        }
    }
}

impl From<Pod> for v1::Pod {
    fn from(object: Pod) -> Self {
        let containers = |list: Vec<Container>| list.into_iter().map(v1::Container::from).collect();
        let spec = object.spec.map(|spec| v1::PodSpec {
            node_name: spec.node_name,
            host_network: spec.host_network,
            containers: spec.containers.map_or_else(Vec::new, containers),
            init_containers: spec.init_containers.map(containers),
            ..v1::PodSpec::default()
        });
        let status = object.status.map(|status| v1::PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            start_time: status.start_time,
            ..v1::PodStatus::default()
        });
        v1::Pod {
            metadata: object.metadata.into_metadata(),
            spec,
            status,
        }
    }
}

impl From<Policy> for NetworkPolicy {
    fn from(object: Policy) -> Self {
        NetworkPolicy {
            metadata: object.metadata.into_metadata(),
            spec: object.spec,
        }
    }
}

impl From<Service> for v1::Service {
    fn from(object: Service) -> Self {
        v1::Service {
            metadata: object.metadata.into_metadata(),
            spec: object.spec,
            ..v1::Service::default()
        }
    }
}
