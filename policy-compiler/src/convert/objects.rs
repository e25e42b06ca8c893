//! Namespaces and nodes.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1;

use super::field::{Errors, FieldError, Path};
use super::{cidr, metadata, names};
use crate::cluster::{Namespace, Node};

/// Converts a Namespace; it gets the label that the API server puts on every namespace. [`super::enforcement`] tells what is wrong with its mode.
///
/// # Errors
/// A malformed name or label.
pub fn namespace(object: &v1::Namespace) -> Result<Namespace, Vec<FieldError>> {
    let mut errors = Errors::default();
    let name = metadata::cluster_wide(&object.metadata, names::dns_label, &mut errors);
    let labels = metadata::object_labels(&object.metadata, &mut errors);
    errors.finish(Namespace {
        enforcement: metadata::enforcement_or_enforce(&object.metadata),
        ..Namespace::new(name, labels)
    })
}

/// Converts a Node: its InternalIP and ExternalIP addresses, and its pod CIDRs.
///
/// # Errors
/// A malformed name, label, address or CIDR.
pub fn node(object: &v1::Node) -> Result<Node, Vec<FieldError>> {
    let mut errors = Errors::default();
    let name = metadata::cluster_wide(&object.metadata, names::dns_subdomain, &mut errors);
    let labels = metadata::object_labels(&object.metadata, &mut errors);
    let status = Path::Field(&Path::Root, "status");
    let list = status.field("addresses");
    let given = object
        .status
        .as_ref()
        .and_then(|s| s.addresses.as_deref())
        .unwrap_or_default();
    let mut addresses = Vec::new();
    for (at, address) in given.iter().enumerate() {
        if matches!(address.type_.as_str(), "InternalIP" | "ExternalIP") {
            addresses.extend(read_address(
                &address.address,
                &list.index(at).field("address"),
                &mut errors,
            ));
        }
    }
    let pod_cidrs = pod_cidrs(object, &mut errors);
    errors.finish(Node {
        name,
        labels,
        addresses,
        pod_cidrs,
    })
}

/// Reads an address that some status gives.
pub(super) fn read_address(text: &str, path: &Path<'_>, errors: &mut Errors) -> Option<IpAddr> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some(address.to_canonical()),
        Err(_) => {
            errors.add(
                path,
                format!("\"{text}\" is not an IP address: write one such as 10.9.8.7 or 2001:db8::7"),
            );
            None
        }
    }
}

fn pod_cidrs(object: &v1::Node, errors: &mut Errors) -> Vec<IpNet> {
    let Some(spec) = &object.spec else {
        return Vec::new();
    };
    let path = Path::Field(&Path::Root, "spec");
    let (many, one) = (path.field("podCIDRs"), path.field("podCIDR"));
    let mut out = Vec::new();
    let mut read = |text: &str, path: &Path<'_>| match cidr::parse(text) {
        Ok((cidr, _)) => out.push(cidr),
        Err(message) => errors.add(path, message),
    };
    match (spec.pod_cidrs.as_deref().unwrap_or_default(), &spec.pod_cidr) {
        ([], Some(text)) if !text.is_empty() => read(text, &one),
        (list, _) => {
            for (at, text) in list.iter().enumerate() {
                read(text, &many.index(at));
            }
        }
    }
    out
}
