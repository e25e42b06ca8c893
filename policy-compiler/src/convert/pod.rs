//! Pods and pod templates.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{self, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::field::{Errors, FieldError, Path};
use super::{metadata, names, objects};
use crate::cluster::{ContainerPort, Pod, PodName, Workload};
use crate::labels::{Labels, Name, Selector};

/// The pods that a workload object would make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodTemplate {
    /// `metadata.labels`.
    pub labels: Labels,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// The ports of its containers, and of its init containers that keep running.
    pub ports: Vec<ContainerPort>,
    /// `spec.nodeSelector`: the nodes that its pods may run on.
    pub node_selector: Selector,
}

/// Converts a Pod. Its workload is that of its controller: of a ReplicaSet with a `pod-template-hash` it is the
/// Deployment behind it; the Node behind a mirror pod is none.
///
/// # Errors
/// A malformed name, label, port or address.
pub fn pod(object: &v1::Pod) -> Result<Pod, Vec<FieldError>> {
    let mut errors = Errors::default();
    let (namespace, name) = metadata::namespaced(&object.metadata, names::dns_subdomain, &mut errors);
    let labels = metadata::object_labels(&object.metadata, &mut errors);
    let spec_path = Path::Field(&Path::Root, "spec");
    let spec = object.spec.as_ref();
    let ports = spec.map_or_else(Vec::new, |s| ports(s, &spec_path, &mut errors));

    let status_path = Path::Field(&Path::Root, "status");
    let status = object.status.as_ref();
    let mut addresses = Vec::new();
    let many = status.and_then(|s| s.pod_ips.as_deref()).unwrap_or_default();
    let list = status_path.field("podIPs");
    for (at, ip) in many.iter().enumerate() {
        addresses.extend(objects::read_address(&ip.ip, &list.index(at).field("ip"), &mut errors));
    }
    if many.is_empty()
        && let Some(ip) = status.and_then(|s| s.pod_ip.as_deref()).filter(|ip| !ip.is_empty())
    {
        addresses.extend(objects::read_address(ip, &status_path.field("podIP"), &mut errors));
    }

    let pod = Pod {
        workload: owner(&object.metadata, &labels),
        name: PodName { namespace, name },
        labels,
        addresses,
        node: spec
            .and_then(|s| s.node_name.as_deref())
            .filter(|n| !n.is_empty())
            .map(Name::from),
        host_network: spec.and_then(|s| s.host_network).unwrap_or_default(),
        ended: matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")),
        started: status.and_then(|s| s.start_time.as_ref()).map(|t| t.0.as_second()),
        ports,
    };
    errors.finish(pod)
}

/// Reads a pod template.
pub(super) fn template(object: Option<&PodTemplateSpec>, path: &Path<'_>, errors: &mut Errors) -> PodTemplate {
    let metadata_path = path.field("metadata");
    let spec_path = path.field("spec");
    let labels = object.and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.as_ref());
    let spec = object.and_then(|t| t.spec.as_ref());
    let none = BTreeMap::new();
    let node_selector = spec.and_then(|s| s.node_selector.as_ref()).unwrap_or(&none);
    PodTemplate {
        labels: metadata::labels(labels, &metadata_path.field("labels"), errors),
        host_network: spec.and_then(|s| s.host_network).unwrap_or_default(),
        ports: spec.map_or_else(Vec::new, |s| ports(s, &spec_path, errors)),
        node_selector: metadata::equality_selector(node_selector, &spec_path.field("nodeSelector"), errors),
    }
}

/// The workload of the controller that owns an object; none when its kind or name is nothing that an object can have.
pub(super) fn owner(meta: &ObjectMeta, labels: &Labels) -> Option<Workload> {
    let owner = meta
        .owner_references
        .iter()
        .flatten()
        .find(|o| o.controller == Some(true))?;
    // The API server takes any text here from whoever may make pods, and people read it in terminals.
    let fit = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && c != '/');
    if !fit(&owner.kind) || !fit(&owner.name) {
        return None;
    }
    let (kind, name) = match owner.kind.as_str() {
        "Node" => return None,
        "ReplicaSet" => match labels
            .get("pod-template-hash")
            .and_then(|hash| deployment_of(&owner.name, hash))
        {
            Some(deployment) => ("deployment", deployment),
            None => ("replicaset", owner.name.as_str()),
        },
        kind => {
            return Some(Workload {
                kind: kind.to_ascii_lowercase().into(),
                name: owner.name.as_str().into(),
            });
        }
    };
    Some(Workload {
        kind: kind.into(),
        name: name.into(),
    })
}

fn deployment_of<'a>(replica_set: &'a str, hash: &str) -> Option<&'a str> {
    replica_set
        .strip_suffix(hash)?
        .strip_suffix('-')
        .filter(|name| !name.is_empty())
}

fn ports(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) -> Vec<ContainerPort> {
    let mut out = Vec::new();
    // Other init containers end before the pod serves anybody.
    let sidecars = spec.init_containers.iter().flatten().enumerate();
    let sidecars = sidecars
        .filter(|(_, c)| c.restart_policy.as_deref() == Some("Always"))
        .map(|(at, c)| ("initContainers", at, c));
    let containers = spec.containers.iter().enumerate().map(|(at, c)| ("containers", at, c));
    for (field, at, container) in containers.chain(sidecars) {
        let list = path.field(field);
        let container_path = list.index(at);
        let ports_path = container_path.field("ports");
        for (at, port) in container.ports.iter().flatten().enumerate() {
            let path = ports_path.index(at);
            let number = names::port_number(port.container_port);
            let protocol = names::protocol(port.protocol.as_deref());
            let name = port.name.as_deref().filter(|n| !n.is_empty());
            if let Some(name) = name {
                errors.check(&path.field("name"), names::port_name(name));
            }
            match (number, protocol) {
                (Ok(number), Ok(protocol)) => out.push(ContainerPort {
                    name: name.map(Name::from),
                    protocol,
                    number,
                }),
                (number, protocol) => {
                    errors.check(&path.field("containerPort"), number.map(drop));
                    errors.check(&path.field("protocol"), protocol.map(drop));
                }
            }
        }
    }
    out
}
