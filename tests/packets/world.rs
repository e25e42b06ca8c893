//! A cluster in a sandbox with an agent's enforcer on every node: manifests in, real packets between them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ipnet::IpNet;
use palisade::agent::enforcer::Enforcer;
use palisade::manifests;
use palisade::nft::names::Side;
use palisade::nft::{Kernel, KernelError, MarkMask, Nft, Settings};
use palisade::sandbox::{Expect, Netns, Options, Outcome, Place, Probe, Sandbox, Wiring, assign_addresses, program};
use policy_compiler::cluster::{Cluster, Pod, PodName};
use policy_compiler::labels::Name;
use policy_compiler::policy::Direction;
use policy_compiler::ports::{Protocol, Traffic};

pub(crate) type Result<T = (), E = Box<dyn Error>> = std::result::Result<T, E>;

/// Denied packets by direction and the address of a pod.
pub(crate) type Counts = BTreeMap<(Direction, IpAddr), u64>;

thread_local! {
    /// What worlds of this thread are built with beside their mode, so that whole suites run with other settings.
    static VERIFIED: Cell<Option<MarkMask>> = const { Cell::new(None) };
}

/// Does something with worlds whose enforcers keep verdicts in these bits of the connection mark.
pub(crate) fn with_marks<T>(mask: Option<MarkMask>, work: impl FnOnce() -> T) -> T {
    let before = VERIFIED.replace(mask);
    let result = work();
    VERIFIED.set(before);
    result
}

/// The bits that worlds of this thread are built with.
pub(crate) fn marks() -> Option<MarkMask> {
    VERIFIED.get()
}

/// For how long a node's connections may be looked through.
const CLEARING: Duration = Duration::from_secs(90);

/// A sandbox and the enforcers of its nodes, which have applied nothing yet.
pub(crate) struct World {
    pub(crate) sandbox: Sandbox,
    cluster: Cluster,
    enforcers: Vec<(Name, Enforcer<Nft>)>,
}

impl World {
    /// Builds a completed cluster. The enforcers are told of `cluster`, which may know less than what is staged.
    pub(crate) fn stage(
        staged: &Cluster,
        cluster: Cluster,
        options: &Options,
        settings: impl Into<Settings>,
    ) -> Result<World> {
        let settings = Settings {
            verified: marks(),
            ..settings.into()
        };
        let sandbox = Sandbox::build(staged, options)?;
        let nft = Nft {
            program: program("nft")?.into(),
            ..Nft::default()
        };
        let enforcers = (staged.nodes.keys())
            .map(|node| (node.clone(), Enforcer::new(node.clone(), settings, nft.clone())))
            .collect();
        Ok(World {
            sandbox,
            cluster,
            enforcers,
        })
    }

    /// Builds a cluster from manifests, without the policies among them.
    pub(crate) fn of(text: &str, settings: impl Into<Settings>) -> Result<World> {
        World::wired(text, settings, &Options::default())
    }

    /// The same, wired otherwise.
    pub(crate) fn wired(text: &str, settings: impl Into<Settings>, options: &Options) -> Result<World> {
        let mut cluster = manifests::parse("cluster.yaml", text)
            .map_err(|e| e.to_string())?
            .cluster;
        assign_addresses(&mut cluster)?;
        World::stage(&cluster.clone(), cluster, options, settings)
    }

    /// Brings every node to these policies and no others, in one transaction each, and lets marks be used again. Returns how
    /// many nodes changed.
    pub(crate) fn enforce(&mut self, policies: &Cluster) -> Result<usize> {
        let changed = self.apply(policies)?;
        self.verify()?;
        Ok(changed)
    }

    /// Only the transaction that changes policy.
    pub(crate) fn apply(&mut self, policies: &Cluster) -> Result<usize> {
        self.cluster.policies = policies.policies.clone();
        let mut changed = 0;
        for (node, enforcer) in &mut self.enforcers {
            let netns = self.sandbox.netns(&Place::Node(node.clone()))?;
            changed += usize::from(netns.run(|| enforcer.apply(&self.cluster))??.changed);
        }
        Ok(changed)
    }

    /// What follows it, so that connections pass by their marks.
    pub(crate) fn verify(&mut self) -> Result {
        for (node, enforcer) in &mut self.enforcers {
            let netns = self.sandbox.netns(&Place::Node(node.clone()))?;
            netns.run(|| enforcer.verify_all(CLEARING))??;
            let verified = enforcer.verified();
            let wanted = enforcer.settings().marks().is_some();
            must(
                verified.is_on() == wanted,
                format!("node {node}: marks are not in use: {:?}", verified.trouble()),
            )?;
        }
        Ok(())
    }

    /// What the enforcers know, with these policies and no others.
    pub(crate) fn with_policies(&self, text: &str) -> Result<Cluster> {
        let loaded = manifests::parse("policies.yaml", text).map_err(|e| e.to_string())?;
        let mut cluster = self.cluster.clone();
        cluster.policies = loaded.cluster.policies;
        Ok(cluster)
    }

    /// Applies one node's whole table anew; whether the kernel was changed.
    pub(crate) fn resync(&mut self, place: &Place) -> Result<bool> {
        let netns = self.sandbox.netns(place)?;
        let found = (self.enforcers.iter_mut()).find(|(node, _)| *place == Place::Node(node.clone()));
        let (_, enforcer) = found.ok_or_else(|| format!("{place} is no node"))?;
        Ok(netns.run(|| enforcer.resync())??.changed)
    }

    /// Applies one node's whole table anew, whatever is there; how many operations that took.
    pub(crate) fn replace(&mut self, place: &Place) -> Result<usize> {
        let netns = self.sandbox.netns(place)?;
        let found = (self.enforcers.iter_mut()).find(|(node, _)| *place == Place::Node(node.clone()));
        let (_, enforcer) = found.ok_or_else(|| format!("{place} is no node"))?;
        let wanted = enforcer.wanted().ok_or("nothing is enforced yet")?;
        let transaction = palisade::nft::replace(wanted)?;
        let kernel = enforcer.kernel().clone();
        netns.run(|| kernel.apply(&transaction))??;
        Ok(transaction.size())
    }

    /// Brings every node to this cluster, in one transaction each.
    pub(crate) fn follow(&mut self, cluster: Cluster) -> Result {
        self.cluster = cluster.clone();
        self.enforce(&cluster).map(|_| ())
    }

    /// The same, from manifests.
    pub(crate) fn policies(&mut self, text: &str) -> Result {
        self.enforce(&loaded(text)?).map(|_| ())
    }

    /// Puts agents that know nothing in the place of those that there are; the kernel stays as it is.
    pub(crate) fn restart(&mut self) {
        for (node, enforcer) in &mut self.enforcers {
            *enforcer = Enforcer::new(node.clone(), enforcer.settings(), enforcer.kernel().clone());
        }
    }

    /// What nft says in a namespace.
    pub(crate) fn nft(&self, place: &Place, arguments: &[&str]) -> Result<String> {
        let nft = program("nft")?;
        let output = self
            .netns(place)?
            .run(|| Command::new(nft).args(arguments).output())??;
        must(output.status.success(), String::from_utf8_lossy(&output.stderr))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A pod of the shop, labelled as `web` is, that the enforcers hear of and nobody builds.
    pub(crate) fn add_pod(&mut self, name: &str, address: IpAddr) {
        self.cluster.add_pod(Pod {
            name: PodName {
                namespace: "shop".into(),
                name: name.into(),
            },
            labels: [("app", "web")].into_iter().collect(),
            addresses: vec![address],
            node: Some("c".into()),
            host_network: false,
            ended: false,
            started: None,
            ports: Vec::new(),
            workload: None,
        });
    }

    /// In which respect a node's kernel is not as its enforcer believes.
    pub(crate) fn drift(&mut self) -> Result<Option<String>> {
        for (node, enforcer) in &mut self.enforcers {
            let netns = self.sandbox.netns(&Place::Node(node.clone()))?;
            if let Some(difference) = netns.run(|| enforcer.drift())?? {
                return Ok(Some(format!("node {node}: {difference}")));
            }
        }
        Ok(None)
    }

    /// What a node's kernel says, by the agent's own reader.
    pub(crate) fn kernel<T>(&self, name: &str, ask: impl FnOnce(&Nft) -> Result<T, KernelError> + Send) -> Result<T>
    where
        T: Send,
    {
        let kernel = Nft {
            program: program("nft")?.into(),
            ..Nft::default()
        };
        Ok(self.netns(&node(name))?.run(|| ask(&kernel))??)
    }

    /// The packets that all nodes together have counted as denied to each pod's address, audited ones included.
    pub(crate) fn counts(&self) -> Result<Counts> {
        let mut counts = Counts::new();
        for (name, _) in &self.enforcers {
            for side in Side::all() {
                let counted = self.kernel(name, |kernel| kernel.counts(side))?;
                for count in counted.unwrap_or_default() {
                    *counts.entry((side.direction, count.address)).or_default() += count.packets;
                }
            }
        }
        Ok(counts)
    }

    /// The namespace of a place.
    pub(crate) fn netns(&self, place: &Place) -> Result<&Netns> {
        Ok(self.sandbox.netns(place)?)
    }

    /// The address of a place in a family.
    pub(crate) fn address(&self, place: &Place, family: Family) -> Result<IpAddr> {
        let mut found = self.sandbox.addresses(place)?.iter().copied();
        let found = found.find(|a| a.is_ipv4() == (family == Family::V4));
        Ok(found.ok_or_else(|| format!("{place} has no address of {family:?}"))?)
    }

    /// The networks of a node's pods.
    pub(crate) fn pod_networks(&self, node: &str) -> &[IpNet] {
        self.cluster.nodes.get(node).map_or(&[], |node| &node.pod_cidrs)
    }

    /// A pod's address and a port.
    pub(crate) fn socket(&self, place: &Place, family: Family, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.address(place, family)?, port))
    }

    /// Sends one probe, and fails when anything else comes of it.
    #[track_caller]
    pub(crate) fn check(&self, from: &Place, to: (IpAddr, Traffic), expected: &Outcome) -> Result {
        let caller = std::panic::Location::caller();
        let expect = match expected {
            Outcome::Silent => Expect::Silence,
            Outcome::OneWay => Expect::Arrival,
            _ => Expect::Answer,
        };
        let outcome = self.sandbox.probe(&Probe {
            from: from.clone(),
            source: None,
            to: to.0,
            traffic: to.1,
            expect,
        })?;
        match outcome == *expected {
            true => Ok(()),
            false => {
                let at = format!("{}:{}", caller.file(), caller.line());
                Err(format!(
                    "{at}: {from} to {} on {}: expected {expected}, saw {outcome}",
                    to.0, to.1
                )
                .into())
            }
        }
    }

    /// From a place to another's own address: this one answers.
    #[track_caller]
    pub(crate) fn passes(&self, from: &Place, to: &Place, traffic: Traffic, family: Family) -> Result {
        let answered = Outcome::Answered(to.to_string());
        self.check(from, (self.address(to, family)?, traffic), &answered)
    }

    /// From a place to another's own address: nothing comes back, and nothing arrives.
    #[track_caller]
    pub(crate) fn dropped(&self, from: &Place, to: &Place, traffic: Traffic, family: Family) -> Result {
        self.check(from, (self.address(to, family)?, traffic), &Outcome::Silent)
    }
}

/// What manifests hold; without any, nothing.
pub(crate) fn loaded(text: &str) -> Result<Cluster> {
    if text.is_empty() {
        return Ok(Cluster::default());
    }
    let loaded = manifests::parse("policies.yaml", text).map_err(|e| e.to_string())?;
    Ok(loaded.cluster)
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Family; 2] = [Family::V4, Family::V6];
}

/// Whether this machine can build that wiring; otherwise says that the test did not run, and why.
pub(crate) fn possible(wiring: Wiring, test: &str) -> bool {
    let filtered = Path::new("/proc/sys/net/bridge/bridge-nf-call-ip6tables").exists();
    if wiring.bridged() && !filtered {
        println!("NOT RUN: {test}: this kernel has no br_netfilter (modprobe br_netfilter)");
        return false;
    }
    let tunnel = || Netns::new("a trial")?.ip("link add trial type vxlan id 1 dstport 8472\n");
    if let (Wiring::Overlay, Err(error)) = (wiring, tunnel()) {
        println!("NOT RUN: {test}: this kernel has no VXLAN ({error})");
        return false;
    }
    true
}

/// A pod of the namespace `shop`.
pub(crate) fn pod(name: &str) -> Place {
    Place::Pod(PodName {
        namespace: "shop".into(),
        name: name.into(),
    })
}

/// A node.
pub(crate) fn node(name: &str) -> Place {
    Place::Node(name.into())
}

pub(crate) fn tcp(port: u16) -> Traffic {
    Traffic::Port(Protocol::Tcp, port)
}

pub(crate) fn udp(port: u16) -> Traffic {
    Traffic::Port(Protocol::Udp, port)
}

/// Fails with the place of the caller and what is wrong.
#[track_caller]
pub(crate) fn must(met: bool, what: impl std::fmt::Display) -> Result {
    let caller = std::panic::Location::caller();
    match met {
        true => Ok(()),
        false => Err(format!("{}:{}: {what}", caller.file(), caller.line()).into()),
    }
}
