//! A cluster in network namespaces: real packets between pods that do not exist.
//!
//! A [`Cluster`] goes in; out comes one namespace per node and per pod, one for the
//! switch between the nodes and one for a client outside, with a listener on every container port, and probes that tell
//! an answer, silence, "nobody listens" and "no such address" apart. Nothing outside of these namespaces is touched, and
//! they have no names: when this process ends, in whatever way, the kernel takes them away.
//!
//! ```no_run
//! # use palisade::sandbox::*;
//! # use policy_compiler::{cluster::Cluster, ports::{Protocol, Traffic}};
//! # fn main() -> Result<(), SandboxError> {
//! # let mut cluster = Cluster::default();
//! become_root_in_user_namespace()?; // first thing in main
//! assign_addresses(&mut cluster)?;
//! let sandbox = Sandbox::build(&cluster, &Options::default())?;
//! let probe = Probe {
//!     from: Place::Client,
//!     source: None,
//!     to: [10, 244, 1, 2].into(),
//!     traffic: Traffic::Port(Protocol::Tcp, 8080),
//!     expect: Expect::Silence,
//! };
//! assert_eq!(sandbox.probe(&probe)?, Outcome::Silent);
//! # Ok(()) }
//! ```

mod addresses;
mod error;
mod flow;
mod listen;
mod netns;
mod options;
mod privilege;
mod probe;
mod sctp;
mod services;
mod socket;
mod topology;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use policy_compiler::cluster::{Cluster, PodName};
use policy_compiler::labels::Name;
use tokio::runtime::{Handle, Runtime};

pub use addresses::assign_addresses;
pub use error::SandboxError;
pub use flow::Flow;
pub use netns::{Netns, program};
pub use options::{Options, Wiring};
pub use privilege::become_root_in_user_namespace;
pub use probe::{Expect, Outcome, Probe};
pub use services::{Backend, Frontend, frontends};
pub use socket::Sctp;

use listen::{Heard, Ports};
use probe::Round;
use topology::Topology;

/// How many probes are out at once: more than this overruns the queue between the two ends of a veth pair.
const AT_ONCE: usize = 400;

/// Somebody in the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A pod; a host-network pod is in its node's namespace.
    Pod(PodName),
    /// A node itself.
    Node(Name),
    /// The client outside of the cluster.
    Client,
}

impl fmt::Display for Place {
    /// The name that a listener there answers with.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Pod(name) => name.fmt(f),
            Place::Node(name) => write!(f, "node/{name}"),
            Place::Client => f.write_str("client"),
        }
    }
}

/// A namespace, and the addresses of the one who is there.
#[derive(Debug)]
struct Seat {
    netns: Arc<Netns>,
    addresses: Vec<IpAddr>,
}

/// A cluster in network namespaces.
#[derive(Debug)]
pub struct Sandbox {
    seats: BTreeMap<Place, Seat>,
    underlay: Netns,
    holders: BTreeMap<IpAddr, Place>,
    frontends: Vec<Frontend>,
    sctp: Sctp,
    heard: Arc<Heard>,
    tokens: AtomicU64,
    slowest: Mutex<Duration>,
    runtime: Option<Runtime>,
}

impl Sandbox {
    /// Builds the namespaces of a cluster that [`assign_addresses`] has completed, and starts the listeners.
    pub fn build(cluster: &Cluster, options: &Options) -> Result<Sandbox, SandboxError> {
        raise_file_limit();
        // Before anything is built, and both in one go.
        program("ip").and(program("nft"))?;
        let frontends = services::frontends(cluster);
        let topology = Topology::of(cluster, options, &frontends)?;
        let seats = wire(&topology, options, &frontends)?;
        for seat in seats.0.values() {
            seat.netns.await_addresses()?;
        }
        let (seats, underlay) = with_host_network_pods(cluster, seats);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("sandbox")
            .enable_all()
            .build()
            .map_err(|error| SandboxError::Runtime { error })?;
        // Nodes come after pods, so a node's address is the node's, not one of its host-network pods'.
        let holders = (seats.iter())
            .flat_map(|(place, seat)| seat.addresses.iter().map(move |a| (*a, place.clone())))
            .collect();
        let sandbox = Sandbox {
            seats,
            underlay,
            holders,
            frontends,
            sctp: Sctp::detect(),
            heard: Arc::default(),
            tokens: AtomicU64::new(1),
            slowest: Mutex::default(),
            runtime: Some(runtime),
        };
        sandbox.listen(cluster, options)?;
        Ok(sandbox)
    }

    /// The namespace of a pod, a node or the client, to run programs and the agent in.
    pub fn netns(&self, place: &Place) -> Result<&Arc<Netns>, SandboxError> {
        Ok(&self.seat(place)?.netns)
    }

    /// The addresses of a pod, a node or the client.
    pub fn addresses(&self, place: &Place) -> Result<&[IpAddr], SandboxError> {
        Ok(&self.seat(place)?.addresses)
    }

    /// Everybody in the sandbox: pods, nodes, the client.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.seats.keys()
    }

    /// The ports of the cluster's Services, which every node translates.
    pub fn frontends(&self) -> &[Frontend] {
        &self.frontends
    }

    /// How SCTP is spoken here.
    pub fn sctp(&self) -> Sctp {
        self.sctp
    }

    /// The namespace of the switch between the nodes.
    pub fn underlay(&self) -> &Netns {
        &self.underlay
    }

    /// One probe.
    pub fn probe(&self, probe: &Probe) -> Result<Outcome, SandboxError> {
        let mut outcomes = self.probe_all(std::slice::from_ref(probe), |_| {})?;
        Ok(outcomes.pop().unwrap_or(Outcome::Silent))
    }

    /// Many probes, hundreds at a time; the outcomes come in their order. After each batch the callback hears how many
    /// are done.
    pub fn probe_all(&self, probes: &[Probe], mut done: impl FnMut(usize)) -> Result<Vec<Outcome>, SandboxError> {
        let mut outcomes = Vec::with_capacity(probes.len());
        for batch in probes.chunks(AT_ONCE) {
            outcomes.extend(self.batch(batch)?);
            done(outcomes.len());
        }
        Ok(outcomes)
    }

    /// Opens a TCP connection that stays open; what came of it instead when it could not be opened.
    pub fn open(&self, from: &Place, to: SocketAddr) -> Result<Result<Flow, Outcome>, SandboxError> {
        let seat = self.seat(from)?;
        let source = seat.source(to.ip());
        let token = self.tokens.fetch_add(1, Ordering::Relaxed);
        Flow::open(&seat.netns, source, to, token, &self.handle()?, &self.heard)
    }

    fn batch(&self, probes: &[Probe]) -> Result<Vec<Outcome>, SandboxError> {
        let runtime = self.handle()?;
        let mut places: BTreeMap<&Place, Vec<usize>> = BTreeMap::new();
        for (at, probe) in probes.iter().enumerate() {
            places.entry(&probe.from).or_default().push(at);
        }
        let mut prepared: Vec<Option<_>> = probes.iter().map(|_| None).collect();
        for (place, numbers) in places {
            let seat = self.seat(place)?;
            let sockets = seat.netns.run(|| -> Vec<_> {
                let with_source = |at: &usize| Probe {
                    source: probes[*at].source.or_else(|| seat.source(probes[*at].to)),
                    ..probes[*at].clone()
                };
                numbers
                    .iter()
                    .map(|at| probe::prepare(&with_source(at), self.sctp))
                    .collect()
            })?;
            for (at, socket) in numbers.into_iter().zip(sockets) {
                prepared[at] = Some(socket);
            }
        }
        let slowest = *self.slowest.lock().unwrap_or_else(PoisonError::into_inner);
        let round = Round::new(probes, slowest, self.heard.clone());
        let tasks: Vec<_> = (probes.iter().zip(prepared))
            .filter_map(|(probe, socket)| {
                let token = self.tokens.fetch_add(1, Ordering::Relaxed);
                let holder = match self.holders.get(&probe.to) {
                    Some(place) => place.to_string(),
                    None => format!("the kernel at {}", probe.to),
                };
                Some(runtime.spawn(probe::send(probe.clone(), socket?, token, holder, round.clone())))
            })
            .collect();
        let all = async move {
            let mut outcomes = Vec::with_capacity(tasks.len());
            for task in tasks {
                outcomes.push(match task.await {
                    Ok(outcome) => outcome,
                    Err(error) => (Outcome::Failed(error.to_string()), Duration::ZERO),
                });
            }
            outcomes
        };
        let outcomes = flow::wait(&runtime, all).unwrap_or_default();
        let mut slowest = self.slowest.lock().unwrap_or_else(PoisonError::into_inner);
        *slowest = outcomes.iter().map(|(_, took)| *took).fold(*slowest, Duration::max);
        Ok(outcomes.into_iter().map(|(outcome, _)| outcome).collect())
    }

    fn seat(&self, place: &Place) -> Result<&Seat, SandboxError> {
        self.seats.get(place).ok_or_else(|| SandboxError::NoSuchPlace {
            place: place.to_string(),
        })
    }

    fn handle(&self) -> Result<Handle, SandboxError> {
        match &self.runtime {
            Some(runtime) => Ok(runtime.handle().clone()),
            // Only while the sandbox is being dropped.
            None => Err(SandboxError::Runtime {
                error: std::io::ErrorKind::BrokenPipe.into(),
            }),
        }
    }

    /// Listens in every namespace on the container ports of those who are there, and on the extra ports.
    fn listen(&self, cluster: &Cluster, options: &Options) -> Result<(), SandboxError> {
        let mut namespaces: BTreeMap<String, (&Seat, Ports)> = BTreeMap::new();
        for (place, seat) in &self.seats {
            let (_, ports) = (namespaces.entry(seat.netns.name().to_owned())).or_insert_with(|| (seat, Ports::new()));
            // Host-network pods share their node's ports: the first by name has a port, the node itself comes last.
            if let Place::Pod(name) = place
                && let Some(pod) = cluster.pods.get(name)
            {
                for port in &pod.ports {
                    ports
                        .entry((port.protocol, port.number))
                        .or_insert_with(|| place.to_string());
                }
            }
            let shared = matches!(place, Place::Pod(name) if cluster.pods.get(name).is_some_and(|p| p.host_network));
            if !shared {
                for port in &options.extra_ports {
                    ports.entry(*port).or_insert_with(|| place.to_string());
                }
            }
        }
        let runtime = self.handle()?;
        for (seat, ports) in namespaces.into_values() {
            listen::listen(&seat.netns, &seat.addresses, &ports, self.sctp, &self.heard, &runtime)?;
        }
        Ok(())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Listeners never end by themselves, and a runtime must not be waited for inside another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Seat {
    fn source(&self, to: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| a.is_ipv4() == to.is_ipv4())
    }
}

/// Makes the namespaces and runs the batches of the topology in them.
fn wire(
    topology: &Topology,
    options: &Options,
    frontends: &[Frontend],
) -> Result<(BTreeMap<Place, Seat>, Netns), SandboxError> {
    let mut seats = BTreeMap::new();
    let underlay = Netns::new("the underlay")?;
    let client = namespace(&Place::Client, false)?;
    let mut node_paths = Vec::new();
    let mut nodes = Vec::new();
    for plan in &topology.nodes {
        let place = Place::Node(plan.node.name.clone());
        let netns = namespace(&place, true)?;
        node_paths.push(netns.path());
        nodes.push((place, netns));
    }
    underlay.ip(&topology.underlay(&node_paths, &client.path()))?;
    client.ip(&topology.client())?;
    for (at, (plan, (place, netns))) in topology.nodes.iter().zip(nodes).enumerate() {
        let mut pods = Vec::new();
        for pod in &plan.pods {
            pods.push(namespace(&Place::Pod(pod.name.clone()), false)?);
        }
        let paths: Vec<String> = pods.iter().map(Netns::path).collect();
        // A cluster IP without a translation is known to be nobody's within the shortest wait of a probe.
        netns.sysctl(&[
            ("ipv4/neigh/eth0/retrans_time_ms", "100"),
            ("ipv6/neigh/eth0/retrans_time_ms", "100"),
        ])?;
        if topology.wiring.bridged() {
            netns.sysctl(&[
                ("bridge/bridge-nf-call-iptables", "1"),
                ("bridge/bridge-nf-call-ip6tables", "1"),
            ])?;
        }
        netns.ip(&topology.node(at, &paths))?;
        if topology.wiring == Wiring::Overlay {
            netns.bridge(&topology.forwarding(at))?;
        }
        netns.nft(topology::UNREACHABLE)?;
        netns.nft(&services::rules(frontends, &plan.node.addresses))?;
        for (pod, own) in plan.pods.iter().zip(pods) {
            if topology.wiring.bridged() {
                // As above: an address of the pod network that nobody has is known to be nobody's.
                own.sysctl(&[
                    ("ipv4/neigh/eth0/retrans_time_ms", "100"),
                    ("ipv6/neigh/eth0/retrans_time_ms", "100"),
                ])?;
            }
            own.ip(&pod.batch(&plan.node, topology.wiring))?;
            seats.insert(Place::Pod(pod.name.clone()), Seat::new(own, &pod.addresses));
        }
        seats.insert(place, Seat::new(netns, &plan.node.addresses));
    }
    seats.insert(Place::Client, Seat::new(client, &options.client));
    Ok((seats, underlay))
}

impl Seat {
    fn new(netns: Netns, addresses: &[IpAddr]) -> Seat {
        Seat {
            netns: Arc::new(netns),
            addresses: addresses.to_vec(),
        }
    }
}

/// Host-network pods sit in their node's seat.
fn with_host_network_pods(
    cluster: &Cluster,
    (mut seats, underlay): (BTreeMap<Place, Seat>, Netns),
) -> (BTreeMap<Place, Seat>, Netns) {
    for pod in cluster.pods.values().filter(|p| p.host_network && !p.ended) {
        let node = pod.node.as_ref().and_then(|n| seats.get(&Place::Node(n.clone())));
        if let Some(node) = node {
            let seat = Seat {
                netns: node.netns.clone(),
                addresses: node.addresses.clone(),
            };
            seats.insert(Place::Pod(pod.name.clone()), seat);
        }
    }
    (seats, underlay)
}

/// A namespace with the settings that all of them need; a router forwards.
fn namespace(place: &Place, router: bool) -> Result<Netns, SandboxError> {
    let netns = Netns::new(place.to_string())?;
    let group = nix::unistd::getegid();
    netns.sysctl(&[
        // Set before any device is there: later devices take them over.
        ("ipv6/conf/default/disable_ipv6", "0"),
        ("ipv6/conf/all/disable_ipv6", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        // Errors are what tells "nobody listens" from silence, so none is held back.
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv6/icmp/ratelimit", "0"),
        ("ipv4/ping_group_range", &format!("{group} {group}")),
        // An open connection that is let through again goes on at once, not after an ever longer pause.
        ("ipv4/tcp_thin_linear_timeouts", "1"),
        ("ipv4/ip_forward", if router { "1" } else { "0" }),
        ("ipv6/conf/all/forwarding", if router { "1" } else { "0" }),
    ])?;
    // The same for longer pauses; kernels before 6.15 have no such limit, and only take longer.
    let _ = netns.sysctl(&[("ipv4/tcp_rto_max_ms", "1000")]);
    // With pauses of a second the usual numbers of attempts are 14 s for a connection, and 7 s for opening one: what policy holds back
    // for longer would end by itself.
    netns.sysctl(&[("ipv4/tcp_retries2", "255"), ("ipv4/tcp_syn_retries", "127")])?;
    Ok(netns)
}

/// Two hundred pods with a few listeners each need more files than the usual soft limit of 1024.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // When it cannot be raised, opening the sockets says so by itself.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
