//! Services as destinations: policy never sees a cluster address, so a question about one becomes a question about the
//! back ends that stand behind it.

use std::net::IpAddr;
use std::sync::Arc;

use policy_compiler::cluster::{Cluster, Endpoint, Service, ServiceName, ServicePort, TargetPort};
use policy_compiler::policy::PortMatch;
use policy_compiler::ports::{PortRange, PortSet};

use super::describe::{Describer, join};
use super::endpoint::EndpointSpec;
use super::ends::{Compiled, End};
use super::ports::PortSpec;

/// The pods behind a Service, and the ports that it sends connections to.
pub(crate) struct Backends {
    /// The Service.
    pub(crate) name: ServiceName,
    /// The pods; sorted, never empty.
    pub(crate) ends: Vec<End>,
    ports: Vec<ServicePort>,
}

/// The Service that has an address.
pub(crate) fn of_address(cluster: &Cluster, address: IpAddr) -> Option<&Arc<Service>> {
    cluster.services.values().find(|s| s.cluster_ips.contains(&address))
}

impl Backends {
    /// The back ends of a Service, on the ports of it that are asked for.
    pub(crate) fn new(compiled: &Compiled, service: &Service, asked: &PortSpec) -> anyhow::Result<Self> {
        let name = &service.name;
        let is_asked = |port: &&ServicePort| match asked {
            PortSpec::All => true,
            PortSpec::One(PortMatch::Range(protocol, range)) => port.protocol == *protocol && range.contains(port.port),
            PortSpec::One(PortMatch::Named(protocol, name)) => {
                port.protocol == *protocol && port.name.as_ref() == Some(name)
            }
        };
        let ports: Vec<ServicePort> = service.ports.iter().filter(is_asked).cloned().collect();
        if ports.is_empty() {
            let has: Vec<String> = service
                .ports
                .iter()
                .map(|p| format!("{}/{}", p.port, p.protocol))
                .collect();
            anyhow::bail!(
                "Service {name} has no port {asked}: ask for one that it has ({})",
                has.join(", ")
            );
        }
        let is_backend = |end: &End| match (end, &service.selector) {
            (End::Pod(pod, _), Some(selector)) => pod.name.namespace == name.namespace && selector.matches(&pod.labels),
            _ => false,
        };
        let pods = compiled.pods().flat_map(|pod| compiled.pod_ends(pod));
        let ends: Vec<End> = pods.filter(is_backend).collect();
        if ends.is_empty() {
            anyhow::bail!("no pod is a back end of Service {name}: ask for an address or a pod");
        }
        Ok(Backends {
            name: name.clone(),
            ends,
            ports,
        })
    }

    /// The ports of a back end that connections arrive on.
    pub(crate) fn ports(&self, backend: &Endpoint) -> PortSet {
        let Endpoint::Pod(pod, _) = backend else {
            return PortSet::none();
        };
        self.ports.iter().fold(PortSet::none(), |set, port| match &port.target {
            TargetPort::Number(number) => set.union(&PortSet::of(port.protocol, PortRange::one(*number))),
            TargetPort::Named(name) => set.union(&pod.named_port(port.protocol, name)),
        })
    }

    /// What to tell a person who asked for the Service's address.
    pub(crate) fn note(&self, describer: &Describer<'_>, address: &EndpointSpec) -> String {
        format!(
            "{address} is the address of Service {}, which policy never sees: it judges the back end that is chosen, so this is \
             about {}",
            self.name,
            join(&describer.ends(&self.ends.iter().collect::<Vec<_>>()))
        )
    }
}
