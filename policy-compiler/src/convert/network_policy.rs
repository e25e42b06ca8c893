//! NetworkPolicy v1, validated as the API server validates it.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::field::{Errors, FieldError, Path};
use super::{cidr, metadata, names};
use crate::diagnostics::Code;
use crate::labels::Name;
use crate::policy::{
    Action, Direction, IpBlock, NamespaceScope, Peer, Peers, PodSelection, Policy, PolicyName, PortMatch, Ports, Rule,
    Tier,
};
use crate::ports::PortRange;

/// Converts a policy; the second value warns of what is accepted and yet hardly meant. [`super::enforcement`] tells what is wrong with its mode.
///
/// # Errors
/// Every field that the API server would refuse.
pub fn network_policy(object: &NetworkPolicy) -> Result<(Policy, Vec<FieldWarning>), Vec<FieldError>> {
    let mut reader = Reader::default();
    let policy = reader.policy(object);
    let warnings = reader.warnings;
    reader.errors.finish((policy, warnings))
}

/// What is accepted and yet hardly meant: the sort of finding, and the field with what to write instead.
pub type FieldWarning = (Code, FieldError);

#[derive(Default)]
struct Reader {
    errors: Errors,
    warnings: Vec<FieldWarning>,
}

impl Reader {
    fn warn(&mut self, code: Code, path: &Path<'_>, message: String) {
        let path = path.to_field_path();
        self.warnings.push((code, FieldError { path, message }));
    }

    fn policy(&mut self, object: &NetworkPolicy) -> Policy {
        let (namespace, name) = metadata::namespaced(&object.metadata, names::dns_subdomain, &mut self.errors);
        metadata::object_labels(&object.metadata, &mut self.errors);
        let spec_path = Path::Field(&Path::Root, "spec");
        // Without a spec the API server stores an empty one: all pods of the namespace, nothing admitted.
        let spec = object.spec.clone().unwrap_or_default();
        let subject = PodSelection {
            namespaces: NamespaceScope::Named(namespace.clone()),
            pods: metadata::selector(
                spec.pod_selector.as_ref(),
                &spec_path.field("podSelector"),
                &mut self.errors,
            ),
        };

        let path = spec_path.field("ingress");
        let ingress: Vec<Rule> = spec
            .ingress
            .iter()
            .flatten()
            .enumerate()
            .map(|(at, rule)| {
                self.rule(
                    rule.from.as_deref(),
                    "from",
                    rule.ports.as_deref(),
                    &path.index(at),
                    &namespace,
                )
            })
            .collect();
        let path = spec_path.field("egress");
        let egress: Vec<Rule> = spec
            .egress
            .iter()
            .flatten()
            .enumerate()
            .map(|(at, rule)| {
                self.rule(
                    rule.to.as_deref(),
                    "to",
                    rule.ports.as_deref(),
                    &path.index(at),
                    &namespace,
                )
            })
            .collect();

        let types = self.policy_types(spec.policy_types.as_deref(), !egress.is_empty(), &spec_path);
        for (direction, rules, field) in [
            (Direction::Ingress, &ingress, "ingress"),
            (Direction::Egress, &egress, "egress"),
        ] {
            if !types.contains(&direction) && !rules.is_empty() {
                let name = type_name(direction);
                self.warn(
                    Code::RulesWithoutEffect,
                    &spec_path.field(field),
                    format!("these rules have no effect: add {name} to spec.policyTypes, or remove them"),
                );
            }
        }
        Policy {
            name: PolicyName {
                namespace: Some(namespace),
                name,
            },
            tier: Tier::NetworkPolicy,
            enforcement: metadata::enforcement_or_enforce(&object.metadata),
            subject,
            ingress: types.contains(&Direction::Ingress).then_some(ingress),
            egress: types.contains(&Direction::Egress).then_some(egress),
        }
    }

    fn policy_types(&mut self, types: Option<&[String]>, egress_rules: bool, spec: &Path<'_>) -> Vec<Direction> {
        let types = types.unwrap_or_default();
        if types.is_empty() {
            let mut implied = vec![Direction::Ingress];
            implied.extend(egress_rules.then_some(Direction::Egress));
            return implied;
        }
        let path = spec.field("policyTypes");
        if types.len() > 2 {
            self.errors
                .add(&path, "more than two policy types: write Ingress, Egress, or both once");
            return Vec::new();
        }
        let mut directions = Vec::new();
        for (at, name) in types.iter().enumerate() {
            match Direction::BOTH.into_iter().find(|d| type_name(*d) == name) {
                Some(direction) => directions.push(direction),
                None => self.errors.add(
                    &path.index(at),
                    format!("\"{name}\" is not a policy type: write Ingress or Egress"),
                ),
            }
        }
        directions
    }

    fn rule(
        &mut self,
        peers: Option<&[NetworkPolicyPeer]>,
        peers_field: &str,
        ports: Option<&[NetworkPolicyPort]>,
        path: &Path<'_>,
        namespace: &Name,
    ) -> Rule {
        let ports = match ports.unwrap_or_default() {
            [] => Ports::All,
            list => {
                let path = path.field("ports");
                Ports::Listed(
                    list.iter()
                        .enumerate()
                        .filter_map(|(at, p)| self.port(p, &path.index(at)))
                        .collect(),
                )
            }
        };
        let peers = match peers.unwrap_or_default() {
            [] => Peers::All,
            list => {
                let path = path.field(peers_field);
                Peers::Listed(
                    list.iter()
                        .enumerate()
                        .filter_map(|(at, p)| self.peer(p, &path.index(at), namespace))
                        .collect(),
                )
            }
        };
        Rule {
            action: Action::Accept,
            peers,
            ports,
        }
    }

    fn peer(&mut self, peer: &NetworkPolicyPeer, path: &Path<'_>, namespace: &Name) -> Option<Peer> {
        let pods_path = path.field("podSelector");
        let namespaces_path = path.field("namespaceSelector");
        let pods = peer
            .pod_selector
            .as_ref()
            .map(|s| metadata::selector(Some(s), &pods_path, &mut self.errors));
        let namespaces = peer
            .namespace_selector
            .as_ref()
            .map(|s| metadata::selector(Some(s), &namespaces_path, &mut self.errors));
        let block = peer.ip_block.as_ref().map(|b| self.block(b, &path.field("ipBlock")));
        match (block, pods, namespaces) {
            (None, None, None) => {
                self.errors.add(
                    path,
                    "the peer is empty: write podSelector, namespaceSelector or ipBlock ('podSelector: {}' is every \
                     pod of this namespace, 'namespaceSelector: {}' every pod of the cluster)",
                );
                None
            }
            (Some(block), None, None) => block.map(Peer::Block),
            (Some(_), _, _) => {
                self.errors
                    .add(path, "ipBlock stands beside a selector: write them as two peers");
                None
            }
            (None, pods, namespaces) => Some(Peer::Pods(PodSelection {
                namespaces: match namespaces {
                    Some(selector) => NamespaceScope::Matching(selector),
                    None => NamespaceScope::Named(namespace.clone()),
                },
                pods: pods.unwrap_or_default(),
            })),
        }
    }

    fn block(&mut self, block: &IPBlock, path: &Path<'_>) -> Option<IpBlock> {
        let cidr_path = path.field("cidr");
        if block.cidr.is_empty() {
            self.errors.add(
                &cidr_path,
                "the block has no CIDR: write one such as 10.9.8.0/24 or 2001:db8::/64",
            );
            return None;
        }
        let cidr = self.cidr(&block.cidr, &cidr_path)?;
        let list = path.field("except");
        let mut except = Vec::new();
        for (at, text) in block.except.iter().flatten().enumerate() {
            let path = list.index(at);
            let Some(part) = self.cidr(text, &path) else {
                continue;
            };
            if part == cidr {
                self.errors.add(
                    &path,
                    format!("{part} is the whole block, which leaves nothing: write a smaller CIDR within it"),
                );
            } else if !cidr.contains(&part) {
                self.errors.add(
                    &path,
                    format!("{part} does not lie within {cidr}: write a smaller CIDR within it"),
                );
            }
            except.push(part);
        }
        Some(IpBlock::new(cidr, except))
    }

    fn cidr(&mut self, text: &str, path: &Path<'_>) -> Option<IpNet> {
        match cidr::parse(text) {
            Ok((cidr, warning)) => {
                if let Some(warning) = warning {
                    self.warn(Code::CidrSpelling, path, warning);
                }
                Some(cidr)
            }
            Err(message) => {
                self.errors.add(path, message);
                None
            }
        }
    }

    fn port(&mut self, port: &NetworkPolicyPort, path: &Path<'_>) -> Option<PortMatch> {
        let protocol = names::protocol(port.protocol.as_deref());
        if let Err(message) = &protocol {
            self.errors.add(&path.field("protocol"), message);
        }
        let protocol = protocol.ok();
        let port_path = path.field("port");
        let end_path = path.field("endPort");
        match (&port.port, port.end_port) {
            (None, None) => Some(PortMatch::Range(protocol?, PortRange::ALL)),
            (None, Some(_)) => {
                self.errors.add(
                    &end_path,
                    "endPort has no port to begin at: write port, the first of the range",
                );
                None
            }
            (Some(IntOrString::String(name)), end) => {
                self.errors.check(&port_path, names::port_name(name));
                if end.is_some() {
                    self.errors.add(
                        &end_path,
                        "endPort goes with a number: write port as a number, or leave endPort out",
                    );
                }
                Some(PortMatch::Named(protocol?, name.as_str().into()))
            }
            (Some(IntOrString::Int(first)), end) => {
                let mut number = |value: i32, path: &Path<'_>| match names::port_number(value) {
                    Ok(number) => Some(number),
                    Err(message) => {
                        self.errors.add(path, message);
                        None
                    }
                };
                let last = end.map_or(Some(None), |end| number(end, &end_path).map(Some));
                let first_number = number(*first, &port_path);
                if let Some(end) = end
                    && end < *first
                {
                    self.errors.add(
                        &end_path,
                        format!("endPort {end} is below port {first}: write the last port of the range"),
                    );
                    return None;
                }
                let first = first_number?;
                let last = last?.unwrap_or(first);
                Some(PortMatch::Range(protocol?, PortRange { first, last }))
            }
        }
    }
}

fn type_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "Ingress",
        Direction::Egress => "Egress",
    }
}
