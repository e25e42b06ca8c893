//! Which probes a cluster asks for, and what policy says about each: pure, from the reference evaluator.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use policy_compiler::cluster::{Cluster, Endpoint, Pod};
use policy_compiler::evaluate::Evaluator;
use policy_compiler::policy::{Direction, PortMatch, Ports};
use policy_compiler::ports::{PortRange, Protocol, Traffic};

use crate::sandbox::{Expect, Frontend, Outcome, Place, Probe};

/// More probes than this do not end while somebody waits; leaving some out would be no proof.
const LIMIT: usize = 20_000;

/// Where a probe is sent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Destination {
    /// Straight to somebody's address.
    Place(Place),
    /// To the cluster IP of a Service.
    Service(String),
}

/// What must come of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// An answer.
    Allowed,
    /// Silence.
    Denied,
    /// An answer of one of these, or silence: it depends on the back end that the Service chooses.
    Depends(BTreeSet<String>),
}

/// A probe with what must come of it.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    /// The probe.
    pub(super) probe: Probe,
    /// Where it is sent, in words.
    pub(super) to: Destination,
    /// Who may answer at all.
    pub(super) answerers: BTreeSet<String>,
    /// What must come of it under the policies.
    pub(super) expected: Expected,
    /// Why, in the words of the evaluator.
    pub(super) reason: String,
}

/// How an outcome compares to what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Judgement {
    /// As it must be.
    AsExpected,
    /// Something came through that must not.
    Leak,
    /// Something that must pass did not.
    Blocked,
    /// The probe says nothing about policy: nobody listens, no way there, a strange answer.
    Broken,
}

impl Planned {
    /// Without policy: the right one must answer, or silence would prove nothing later.
    pub(super) fn judge_baseline(&self, outcome: &Outcome) -> Judgement {
        match outcome {
            Outcome::Answered(name) if self.answerers.contains(name) => Judgement::AsExpected,
            _ => Judgement::Broken,
        }
    }

    /// With the policies.
    pub(super) fn judge(&self, outcome: &Outcome) -> Judgement {
        match (&self.expected, outcome) {
            (Expected::Allowed, Outcome::Answered(name)) if self.answerers.contains(name) => Judgement::AsExpected,
            (Expected::Allowed, Outcome::Silent | Outcome::OneWay) => Judgement::Blocked,
            (Expected::Depends(names), Outcome::Answered(name)) if names.contains(name) => Judgement::AsExpected,
            (Expected::Denied | Expected::Depends(_), Outcome::Silent) => Judgement::AsExpected,
            // A refusal comes from the pod itself: packets went there and back.
            (Expected::Denied | Expected::Depends(_), Outcome::Answered(_) | Outcome::OneWay | Outcome::Refused) => {
                Judgement::Leak
            }
            _ => Judgement::Broken,
        }
    }
}

/// Every pair and port, and every Service from everywhere inside.
pub(super) fn plan(
    cluster: &Cluster,
    frontends: &[Frontend],
    client: &[IpAddr],
    ports: &BTreeSet<(Protocol, u16)>,
) -> anyhow::Result<Vec<Planned>> {
    let evaluator = Evaluator::new(cluster);
    let book = evaluator.addresses();
    // A host-network pod is its node, as far as policy can tell.
    let pods: Vec<&Arc<Pod>> = (cluster.pods.values())
        .filter(|p| !p.ended && !p.host_network && book.endpoints(p).iter().any(|e| e.address().is_some()))
        .collect();
    let mut ends: BTreeMap<Place, Vec<Endpoint>> = BTreeMap::new();
    for pod in &pods {
        ends.insert(Place::Pod(pod.name.clone()), book.endpoints(pod));
    }
    for node in cluster.nodes.values() {
        let addresses = node.addresses.iter().map(|a| book.endpoint(*a)).collect();
        ends.insert(Place::Node(node.name.clone()), addresses);
    }
    ends.insert(Place::Client, client.iter().map(|a| book.endpoint(*a)).collect());

    let mut planned = Vec::new();
    for (from, sources) in &ends {
        for (to, destinations) in &ends {
            // Policy is about pods, and a pod that reaches itself never leaves its namespace.
            let between_pods = matches!(from, Place::Pod(_)) || matches!(to, Place::Pod(_));
            if from == to || !between_pods || matches!(to, Place::Node(_)) {
                continue;
            }
            let mut traffics: BTreeSet<Traffic> = ports.iter().map(|(p, n)| Traffic::Port(*p, *n)).collect();
            traffics.insert(Traffic::Other);
            if let Some(pod) = pods.iter().find(|p| Place::Pod(p.name.clone()) == *to) {
                traffics.extend(pod.ports.iter().map(|p| Traffic::Port(p.protocol, p.number)));
            }
            for destination in destinations {
                let Some(source) = sources.iter().find(|s| s.same_family(destination)) else {
                    continue;
                };
                for traffic in &traffics {
                    let decision = evaluator.decide(source, destination, *traffic);
                    let expected = match decision.allowed {
                        true => Expected::Allowed,
                        false => Expected::Denied,
                    };
                    let to = (Destination::Place(to.clone()), destination.address());
                    let answerers = [answerer(&to.0)].into();
                    planned.extend(probe(
                        from,
                        source,
                        to,
                        *traffic,
                        answerers,
                        expected,
                        decision.to_string(),
                    ));
                }
            }
        }
        // Cluster IPs mean nothing outside of the cluster.
        for frontend in frontends
            .iter()
            .filter(|f| *from != Place::Client && !f.backends.is_empty())
        {
            let to = Endpoint::Address(frontend.address);
            if let Some(source) = sources.iter().find(|s| s.same_family(&to)) {
                planned.push(service_probe(&evaluator, from, source, frontend));
            }
        }
        anyhow::ensure!(
            planned.len() <= LIMIT,
            "these manifests ask for more than {LIMIT} probes ({} pods, every pair and port): narrow them down, for \
             instance to some namespaces or to fewer replicas",
            pods.len()
        );
    }
    Ok(planned)
}

/// Ports that every probe destination is tried on: those that policies name, by number or by a pod's name for it, and
/// one that none of them names.
pub(super) fn ports(cluster: &Cluster) -> BTreeSet<(Protocol, u16)> {
    let mut ports = BTreeSet::new();
    for policy in cluster.policies.values() {
        let rules = Direction::BOTH.into_iter().filter_map(|d| policy.rules(d)).flatten();
        for entry in rules.flat_map(|rule| match &rule.ports {
            Ports::All => &[],
            Ports::Listed(list) => list.as_slice(),
        }) {
            match entry {
                PortMatch::Range(_, PortRange::ALL) => {}
                PortMatch::Range(protocol, range) => {
                    ports.extend([(*protocol, range.first.max(1)), (*protocol, range.last)]);
                }
                PortMatch::Named(protocol, name) => {
                    let declared = cluster.pods.values().filter(|p| !p.ended).flat_map(|p| &p.ports);
                    let named = declared.filter(|p| p.protocol == *protocol && p.name.as_ref() == Some(name));
                    ports.extend(named.map(|p| (*protocol, p.number)));
                }
            }
        }
    }
    let declared: BTreeSet<u16> = cluster.pods.values().flat_map(|p| &p.ports).map(|p| p.number).collect();
    let free = |n: &u16| !declared.contains(n) && Protocol::ALL.iter().all(|p| !ports.contains(&(*p, *n)));
    ports.extend((9999..u16::MAX).find(free).map(|n| (Protocol::Tcp, n)));
    ports
}

fn answerer(to: &Destination) -> String {
    match to {
        Destination::Place(place) => place.to_string(),
        Destination::Service(name) => name.clone(),
    }
}

fn probe(
    from: &Place,
    source: &Endpoint,
    (to, address): (Destination, Option<IpAddr>),
    traffic: Traffic,
    answerers: BTreeSet<String>,
    expected: Expected,
    reason: String,
) -> Option<Planned> {
    let probe = Probe {
        from: from.clone(),
        source: source.address(),
        to: address?,
        traffic,
        expect: match expected {
            Expected::Allowed => Expect::Answer,
            Expected::Denied | Expected::Depends(_) => Expect::Silence,
        },
    };
    Some(Planned {
        probe,
        to,
        answerers,
        expected,
        reason,
    })
}

/// A probe to a cluster IP: policy sees the back end that is chosen.
fn service_probe(evaluator: &Evaluator<'_>, from: &Place, source: &Endpoint, frontend: &Frontend) -> Planned {
    let mut allowed = BTreeSet::new();
    let mut answerers = BTreeSet::new();
    let mut reasons = BTreeSet::new();
    for backend in &frontend.backends {
        let to = evaluator.addresses().endpoint(backend.address.ip());
        let decision = evaluator.decide(source, &to, Traffic::Port(frontend.protocol, backend.address.port()));
        answerers.insert(backend.pod.to_string());
        reasons.insert(decision.to_string());
        if decision.allowed {
            allowed.insert(backend.pod.to_string());
        }
    }
    let expected = match (allowed.len(), answerers.len()) {
        (0, _) => Expected::Denied,
        (some, all) if some == all => Expected::Allowed,
        _ => Expected::Depends(allowed),
    };
    Planned {
        probe: Probe {
            from: from.clone(),
            source: source.address(),
            to: frontend.address,
            traffic: Traffic::Port(frontend.protocol, frontend.port),
            expect: match expected {
                Expected::Allowed => Expect::Answer,
                Expected::Denied | Expected::Depends(_) => Expect::Silence,
            },
        },
        to: Destination::Service(frontend.service.clone()),
        answerers,
        expected,
        reason: reasons.into_iter().collect::<Vec<_>>().join("; or: "),
    }
}
