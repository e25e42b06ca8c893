//! Services.

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::field::{Errors, FieldError, Path};
use super::{metadata, names, objects};
use crate::cluster::{Service, ServiceKind, ServiceName, ServicePort, TargetPort};
use crate::labels::Name;

/// Converts a Service.
///
/// # Errors
/// A malformed name, label, type, port or address.
pub fn service(object: &v1::Service) -> Result<Service, Vec<FieldError>> {
    let mut errors = Errors::default();
    let (namespace, name) = metadata::namespaced(&object.metadata, names::dns_label, &mut errors);
    metadata::object_labels(&object.metadata, &mut errors);
    let path = Path::Field(&Path::Root, "spec");
    let spec = object.spec.clone().unwrap_or_default();
    let kind = match spec.type_.as_deref() {
        None | Some("ClusterIP") => ServiceKind::ClusterIp,
        Some("NodePort") => ServiceKind::NodePort,
        Some("LoadBalancer") => ServiceKind::LoadBalancer,
        Some("ExternalName") => ServiceKind::ExternalName,
        Some(other) => {
            errors.add(
                &path.field("type"),
                format!(
                    "\"{other}\" is not a type of Service: write ClusterIP, NodePort, LoadBalancer or ExternalName"
                ),
            );
            ServiceKind::ClusterIp
        }
    };
    let mut cluster_ips = Vec::new();
    let (one, many) = (path.field("clusterIP"), path.field("clusterIPs"));
    match (spec.cluster_ips.as_deref().unwrap_or_default(), &spec.cluster_ip) {
        ([], Some(ip)) if is_address(ip) => cluster_ips.extend(objects::read_address(ip, &one, &mut errors)),
        (list, _) => {
            for (at, ip) in list.iter().enumerate().filter(|(_, ip)| is_address(ip)) {
                cluster_ips.extend(objects::read_address(ip, &many.index(at), &mut errors));
            }
        }
    }
    let selector = spec.selector.as_ref().filter(|map| !map.is_empty());
    let selector = selector.map(|map| metadata::equality_selector(map, &path.field("selector"), &mut errors));
    let list = path.field("ports");
    let ports = spec.ports.iter().flatten().enumerate();
    let ports = ports
        .filter_map(|(at, p)| port(p, &list.index(at), &mut errors))
        .collect();
    errors.finish(Service {
        name: ServiceName { namespace, name },
        kind,
        cluster_ips,
        selector,
        ports,
    })
}

/// A headless Service says `None` where its address would stand.
fn is_address(ip: &str) -> bool {
    !matches!(ip, "" | "None")
}

fn port(port: &v1::ServicePort, path: &Path<'_>, errors: &mut Errors) -> Option<ServicePort> {
    let mut checked = |value: i32, field: &str| match names::port_number(value) {
        Ok(number) => Some(number),
        Err(message) => {
            errors.add(&path.field(field), message);
            None
        }
    };
    let number = checked(port.port, "port");
    // The API server reads 0 as "not given" in these two.
    let node_port = port.node_port.filter(|n| *n != 0).map(|n| checked(n, "nodePort"));
    let target = match &port.target_port {
        None | Some(IntOrString::Int(0)) => number.map(TargetPort::Number),
        Some(IntOrString::Int(n)) => checked(*n, "targetPort").map(TargetPort::Number),
        Some(IntOrString::String(name)) if name.is_empty() => number.map(TargetPort::Number),
        Some(IntOrString::String(name)) => {
            errors.check(&path.field("targetPort"), names::port_name(name));
            Some(TargetPort::Named(name.as_str().into()))
        }
    };
    let protocol = names::protocol(port.protocol.as_deref());
    if let Err(message) = &protocol {
        errors.add(&path.field("protocol"), message);
    }
    Some(ServicePort {
        name: port.name.as_deref().filter(|n| !n.is_empty()).map(Name::from),
        protocol: protocol.ok()?,
        port: number?,
        target: target?,
        node_port: node_port.flatten(),
    })
}
