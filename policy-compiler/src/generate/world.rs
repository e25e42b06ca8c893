//! A cluster in the making: nodes that give out addresses, and workloads that make pods.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::random::Random;
use super::roles::{Kind, ROLES, SYSTEM, TEAMS};
use super::{Shape, Spec, policies, uniform};
use crate::cluster::{Cluster, ContainerPort, Namespace, Node, Pod, PodName, Workload};
use crate::labels::{Labels, Name};
use crate::ports::Protocol;

/// The first address of the pods' range, of the nodes' range, and the like in IPv6.
const PODS: u32 = u32::from_be_bytes([10, 0, 0, 0]);
const NODES: u32 = u32::from_be_bytes([172, 16, 0, 0]);
const PODS_V6: u128 = 0xfd00_0010 << 96;
const NODES_V6: u128 = 0xfd00_0172 << 96;

/// A workload with the pods that it has now.
pub(super) struct Controller {
    pub(super) namespace: Name,
    pub(super) kind: Kind,
    pub(super) name: Name,
    pub(super) labels: Vec<(Name, Name)>,
    pub(super) ports: Vec<ContainerPort>,
    pub(super) host_network: bool,
    /// What is in the names and labels of one generation of a Deployment's pods.
    pub(super) revision: Name,
    pub(super) pods: Vec<PodName>,
}

/// A node's range of pod addresses.
struct Range {
    name: Name,
    /// The address given out last, and all that are given out, as offsets.
    last: u32,
    used: BTreeSet<u32>,
}

/// What there is, and where the choices come from.
pub(super) struct World {
    pub(super) random: Random,
    pub(super) cluster: Cluster,
    pub(super) controllers: Vec<Controller>,
    pub(super) dual_stack: bool,
    ranges: Vec<Range>,
    /// The number of bits of an address that tell the pods of one node apart.
    host_bits: u32,
    /// When the last pod started.
    clock: i64,
}

impl World {
    pub(super) fn new(spec: &Spec) -> Self {
        let nodes = spec.nodes.max(1);
        // At least a /24 to a node, as most installers give; more where the spec crowds its nodes.
        let crowd = 4 * spec.pods.div_ceil(nodes) + 64;
        let mut world = World {
            random: Random::new(spec.seed),
            cluster: Cluster::default(),
            controllers: Vec::new(),
            dual_stack: spec.dual_stack,
            ranges: Vec::with_capacity(nodes),
            host_bits: crowd.next_power_of_two().ilog2().max(8),
            clock: 1_700_000_000,
        };
        (0..nodes as u32).for_each(|index| world.add_node(index));
        match spec.shape {
            Shape::Realistic => world.fill(spec),
            Shape::Uniform => uniform::fill(&mut world, spec),
        }
        world
    }

    /// A new workload without pods; its labels are `app` and those given.
    pub(super) fn add_controller(
        &mut self,
        namespace: &Name,
        kind: Kind,
        name: &str,
        labels: &[(&str, &str)],
        ports: &[(&str, Protocol, u16)],
    ) -> usize {
        let labels = labels.iter().map(|(k, v)| (Name::from(*k), Name::from(*v)));
        let ports = ports.iter().map(|(name, protocol, number)| ContainerPort {
            name: Some(Name::from(*name)),
            protocol: *protocol,
            number: *number,
        });
        self.controllers.push(Controller {
            namespace: namespace.clone(),
            kind,
            name: name.into(),
            labels: labels.collect(),
            ports: ports.collect(),
            host_network: false,
            revision: self.random.letters(9).into(),
            pods: Vec::new(),
        });
        self.controllers.len() - 1
    }

    /// A new pod of a workload on some node, or on the one given; it is not in the cluster yet.
    pub(super) fn new_pod(&mut self, controller: usize, node: Option<usize>) -> Pod {
        let node = node.unwrap_or_else(|| self.random.below(self.ranges.len()));
        let node = self.with_room(node);
        let suffix = self.random.letters(5);
        let controller = &mut self.controllers[controller];
        let mut labels = controller.labels.clone();
        let name = match controller.kind {
            Kind::Deployment => {
                labels.push(("pod-template-hash".into(), controller.revision.clone()));
                format!("{}-{}-{suffix}", controller.name, controller.revision)
            }
            Kind::StatefulSet => {
                let name = format!("{}-{}", controller.name, controller.pods.len());
                labels.push(("statefulset.kubernetes.io/pod-name".into(), name.as_str().into()));
                name
            }
            Kind::DaemonSet => format!("{}-{suffix}", controller.name),
            Kind::Job => {
                labels.push(("batch.kubernetes.io/job-name".into(), controller.name.clone()));
                format!("{}-{suffix}", controller.name)
            }
        };
        self.clock += 1;
        let mut pod = Pod {
            name: PodName {
                namespace: controller.namespace.clone(),
                name: name.into(),
            },
            labels: labels.into_iter().collect(),
            addresses: Vec::new(),
            node: Some(self.ranges[node].name.clone()),
            host_network: controller.host_network,
            // Most jobs of a running cluster are done, and their pods still there.
            ended: controller.kind == Kind::Job && self.clock % 4 != 0,
            started: Some(self.clock),
            ports: controller.ports.clone(),
            workload: Some(Workload {
                kind: controller.kind.name().into(),
                name: controller.name.clone(),
            }),
        };
        controller.pods.push(pod.name.clone());
        pod.addresses = if pod.host_network {
            self.node_addresses(node as u32)
        } else {
            self.next_addresses(node)
        };
        pod
    }

    /// Adds a new pod of a workload.
    pub(super) fn add_pod(&mut self, controller: usize, node: Option<usize>) {
        let pod = self.new_pod(controller, node);
        self.cluster.add_pod(pod);
    }

    pub(super) fn node_count(&self) -> usize {
        self.ranges.len()
    }

    pub(super) fn node_index(&self, name: &Name) -> Option<usize> {
        // Nodes are named in order.
        self.ranges.binary_search_by(|range| range.name.cmp(name)).ok()
    }

    fn addresses(&self, v4: u32, v6: u128) -> Vec<IpAddr> {
        let second = self.dual_stack.then(|| Ipv6Addr::from_bits(v6).into());
        [Ipv4Addr::from_bits(v4).into()].into_iter().chain(second).collect()
    }

    fn node_addresses(&self, index: u32) -> Vec<IpAddr> {
        self.addresses(NODES.wrapping_add(index + 1), NODES_V6 + u128::from(index) + 1)
    }

    /// The next free addresses of a node, in turn, as host-local address management gives them.
    fn next_addresses(&mut self, node: usize) -> Vec<IpAddr> {
        let size = 1 << self.host_bits;
        let range = &mut self.ranges[node];
        loop {
            // The first address is the gateway's, the last the broadcast address.
            range.last = if range.last + 2 >= size { 2 } else { range.last + 1 };
            if range.used.insert(range.last) {
                break;
            }
        }
        let (offset, node) = (range.last, node as u32);
        let v4 = PODS.wrapping_add(node << self.host_bits).wrapping_add(offset);
        self.addresses(v4, PODS_V6 + (u128::from(node) << 64) + u128::from(offset))
    }

    /// Takes back the addresses of a pod that is gone.
    pub(super) fn release(&mut self, pod: &Pod) {
        let node = pod.node.as_ref().and_then(|name| self.node_index(name));
        if let (Some(node), Some(IpAddr::V4(address)), false) = (node, pod.addresses.first(), pod.host_network) {
            let offset = address.to_bits().wrapping_sub(PODS) & ((1 << self.host_bits) - 1);
            self.ranges[node].used.remove(&offset);
        }
    }

    /// A node with room for one more pod: the one given, or one of those after it.
    fn with_room(&self, node: usize) -> usize {
        let room = |node: &usize| self.ranges[*node].used.len() + 3 < 1 << self.host_bits;
        let nodes = self.ranges.len();
        (node..node + nodes).map(|n| n % nodes).find(room).unwrap_or(node)
    }

    fn add_node(&mut self, index: u32) {
        let name: Name = format!("node-{index:06}").into();
        let v4 = Ipv4Addr::from_bits(PODS.wrapping_add(index << self.host_bits));
        let v6 = Ipv6Addr::from_bits(PODS_V6 + (u128::from(index) << 64));
        let mut pod_cidrs = vec![IpNet::V4(Ipv4Net::new_assert(v4, 32 - self.host_bits as u8))];
        if self.dual_stack {
            pod_cidrs.push(IpNet::V6(Ipv6Net::new_assert(v6, 64)));
        }
        let zone = *self.random.pick(&["a", "b", "c"]);
        self.cluster.add_node(Node {
            name: name.clone(),
            labels: [
                ("kubernetes.io/hostname", &*name),
                ("topology.kubernetes.io/zone", zone),
            ]
            .into_iter()
            .collect(),
            addresses: self.node_addresses(index),
            pod_cidrs,
        });
        self.ranges.push(Range {
            name,
            last: 1,
            used: BTreeSet::new(),
        });
    }

    /// The realistic shape.
    fn fill(&mut self, spec: &Spec) {
        let namespaces = spec.namespaces.max(1);
        let system = if namespaces >= 6 { SYSTEM.len() } else { 0 };
        let mut left = spec.pods;
        for name in &SYSTEM[..system] {
            let name = Name::from(*name);
            let labels: Labels = [("team", "platform"), ("env", "prod")].into_iter().collect();
            self.cluster.add_namespace(Namespace::new(name.clone(), labels));
            self.fill_system(&name, &mut left);
        }
        let teams = namespaces - system;
        let names: Vec<Name> = (0..teams).map(|index| self.add_team_namespace(index)).collect();
        for (name, pods) in names.iter().zip(self.random.uneven_shares(left, teams)) {
            self.fill_namespace(name, pods);
        }
        let counts = self.random.uneven_shares(spec.policies, teams);
        for (index, count) in counts.into_iter().enumerate() {
            policies::add(self, &names, index, count);
        }
    }

    fn add_team_namespace(&mut self, index: usize) -> Name {
        let (team, place) = (index / 6, index % 6);
        let word = TEAMS[team % TEAMS.len()];
        let team = match team / TEAMS.len() {
            0 => word.to_owned(),
            round => format!("{word}{}", round + 1),
        };
        let part = ["", "-jobs"][place / 3];
        let env = ["prod", "staging", "dev"][place % 3];
        let name = Name::from(format!("{team}{part}-{env}"));
        let labels: Labels = [("team", team.as_str()), ("env", env)].into_iter().collect();
        self.cluster.add_namespace(Namespace::new(name.clone(), labels));
        name
    }

    fn fill_system(&mut self, namespace: &Name, left: &mut usize) {
        let tcp = Protocol::Tcp;
        // Nodes may outnumber pods: what runs on every node never takes more than a half of those left.
        let every_node = |left: usize, world: &World| world.node_count().min(left / 2);
        match &**namespace {
            "kube-system" => {
                let ports = [("dns", Protocol::Udp, 53), ("dns-tcp", tcp, 53), ("metrics", tcp, 9153)];
                let dns = self.add_controller(
                    namespace,
                    Kind::Deployment,
                    "coredns",
                    &[("k8s-app", "kube-dns")],
                    &ports,
                );
                self.add_pods(dns, (*left / 1000 + 2).min(*left), left);
                let proxy = self.add_controller(
                    namespace,
                    Kind::DaemonSet,
                    "kube-proxy",
                    &[("k8s-app", "kube-proxy")],
                    &[],
                );
                self.controllers[proxy].host_network = true;
                self.add_pods(proxy, every_node(*left, self), left);
            }
            "monitoring" => {
                let labels = [("app", "prometheus"), ("tier", "monitoring")];
                let prometheus = self.add_controller(
                    namespace,
                    Kind::StatefulSet,
                    "prometheus",
                    &labels,
                    &[("http", tcp, 9090)],
                );
                self.add_pods(prometheus, 2.min(*left), left);
                let labels = [("app", "log-collector"), ("tier", "monitoring")];
                let ports = [("metrics", tcp, 2020)];
                let logs = self.add_controller(namespace, Kind::DaemonSet, "log-collector", &labels, &ports);
                self.add_pods(logs, every_node(*left, self), left);
            }
            _ => {
                let ports = [("http", tcp, 80), ("https", tcp, 443)];
                let labels = [("app", "ingress-nginx")];
                let ingress = self.add_controller(namespace, Kind::Deployment, "controller", &labels, &ports);
                self.add_pods(ingress, (*left / 2000 + 2).min(*left), left);
            }
        }
    }

    /// Adds pods to a workload; one on each node in turn when it is a DaemonSet.
    fn add_pods(&mut self, controller: usize, count: usize, left: &mut usize) {
        let daemon = self.controllers[controller].kind == Kind::DaemonSet;
        for index in 0..count {
            self.add_pod(controller, daemon.then_some(index));
        }
        *left -= count;
    }

    fn fill_namespace(&mut self, namespace: &Name, pods: usize) {
        let mut left = pods;
        for turn in 0.. {
            if left == 0 {
                break;
            }
            let role = &ROLES[turn % ROLES.len()];
            let name = match turn / ROLES.len() {
                0 => role.name.to_owned(),
                round => format!("{}-{}", role.name, round + 1),
            };
            let version = *self.random.pick(&["v1", "v1", "v2"]);
            let labels = [
                ("app", role.name),
                ("tier", role.tier),
                ("version", version),
                ("instance", &name),
            ];
            let ports: Vec<(&str, Protocol, u16)> = role
                .ports
                .iter()
                .map(|(name, numbers)| (*name, Protocol::Tcp, *self.random.pick(numbers)))
                .collect();
            let controller = self.add_controller(namespace, role.kind, &name, &labels, &ports);
            let replicas = *self.random.pick(role.replicas);
            self.add_pods(controller, replicas.min(left), &mut left);
        }
    }
}
