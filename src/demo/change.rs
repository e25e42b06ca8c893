//! A change of policy under an open connection: which one, and what must come of it. Pure part first, packets below.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use policy_compiler::cluster::{Cluster, Endpoint, PodName};
use policy_compiler::evaluate::Evaluator;
use policy_compiler::labels::Selector;
use policy_compiler::policy::{Enforcement, NamespaceScope, PodSelection, Policy, PolicyName, Tier};
use policy_compiler::ports::{Protocol, Traffic};

use super::agents::{Agents, Round};
use super::plan::{Destination, Expected, Planned};
use crate::sandbox::{Expect, Outcome, Place, Probe, Sandbox};

/// How long a connection that must not work is listened to. An answer takes less than a millisecond.
const SHORT: Duration = Duration::from_millis(400);

/// How long a connection that must work is waited for: TCP sends again after growing pauses.
const LONG: Duration = Duration::from_secs(10);

/// A connection, and a change of policy that ends it.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// The client.
    pub(super) from: PodName,
    /// The server.
    pub(super) to: PodName,
    /// Its address and port, one for each family.
    pub(super) addresses: Vec<SocketAddr>,
    /// What is changed, in words.
    pub(super) what: String,
    /// The cluster afterwards.
    pub(super) after: Cluster,
}

/// One thing that must be so.
#[derive(Clone, Debug)]
pub(super) struct Check {
    /// What.
    pub(super) what: String,
    /// What came of it instead; none when it is so.
    pub(super) instead: Option<String>,
    /// Whether the failure is traffic that passes and must not.
    pub(super) leak: bool,
}

/// What happens while a change is carried out.
pub(super) enum Event<'a> {
    /// The nodes have the policies of the moment.
    Applied(&'a Round),
    /// Something was looked at.
    Checked(&'a Check),
}

/// Chooses a TCP connection between two pods that is allowed, and a policy whose removal ends it; without such a
/// policy, all that admit the connection are replaced by one that admits nobody. Prefers two isolated pods.
pub(super) fn choose(cluster: &Cluster, planned: &[Planned]) -> Option<Change> {
    let evaluator = Evaluator::new(cluster);
    let mut candidates: Vec<_> = planned
        .iter()
        .filter_map(|p| candidate(&evaluator, cluster, p))
        .collect();
    candidates.sort_by_key(|(isolated, ..)| std::cmp::Reverse(*isolated));
    let (_, from, to, first) = candidates.first()?;
    let addresses = (candidates.iter())
        .filter(|(_, f, t, address)| (f, t, address.port()) == (from, to, first.port()))
        .map(|(.., address)| *address)
        .collect();
    let port = Traffic::Port(Protocol::Tcp, first.port());
    let denied = |after: &Cluster| {
        let evaluator = Evaluator::new(after);
        let (source, to) = ends(&evaluator, after, from, *first)?;
        (!evaluator.decide(&source, &to, port).allowed).then_some(())
    };
    let change = |what: String, after: Cluster| Change {
        from: from.clone(),
        to: to.clone(),
        addresses,
        what,
        after,
    };
    for (key, policy) in &cluster.policies {
        let mut after = cluster.clone();
        after.policies.remove(key);
        if denied(&after).is_some() {
            return Some(change(format!("policy {} is deleted", policy.name), after));
        }
    }
    let pod = cluster.pods.get(to)?;
    let mut after = cluster.clone();
    after.policies.retain(|_, policy| policy.ingress.is_none());
    let name = PolicyName {
        namespace: Some(pod.name.namespace.clone()),
        name: "demo-deny".into(),
    };
    let what = format!("a policy {name} that admits nobody to {to} takes the place of all ingress policies");
    after.add_policy(Policy {
        name,
        tier: Tier::NetworkPolicy,
        // Whatever its namespace asks for.
        enforcement: Some(Enforcement::Enforce),
        subject: PodSelection {
            namespaces: NamespaceScope::Named(pod.name.namespace.clone()),
            pods: Selector::labels(pod.labels.iter().map(|(k, v)| (k.clone(), v.clone()))),
        },
        ingress: Some(Vec::new()),
        egress: None,
    });
    denied(&after).map(|()| change(what, after))
}

type Candidate = (usize, PodName, PodName, SocketAddr);

fn candidate(evaluator: &Evaluator<'_>, cluster: &Cluster, planned: &Planned) -> Option<Candidate> {
    let (Place::Pod(from), Destination::Place(Place::Pod(to))) = (&planned.probe.from, &planned.to) else {
        return None;
    };
    let Traffic::Port(Protocol::Tcp, port) = planned.probe.traffic else {
        return None;
    };
    let declared = |number: u16| (cluster.pods.get(to)?.ports.iter()).find(|p| p.number == number);
    if planned.expected != Expected::Allowed || declared(port).is_none() {
        return None;
    }
    let address = SocketAddr::new(planned.probe.to, port);
    let (source, destination) = ends(evaluator, cluster, from, address)?;
    let decision = evaluator.decide(&source, &destination, planned.probe.traffic);
    let isolated = [&decision.egress, &decision.ingress]
        .iter()
        .filter(|s| !s.isolated_by.is_empty())
        .count();
    Some((isolated, from.clone(), to.clone(), address))
}

fn ends(evaluator: &Evaluator<'_>, cluster: &Cluster, from: &PodName, to: SocketAddr) -> Option<(Endpoint, Endpoint)> {
    let to = evaluator.addresses().endpoint(to.ip());
    let from: &Arc<_> = cluster.pods.get(from)?;
    let source = evaluator
        .addresses()
        .endpoints(from)
        .into_iter()
        .find(|e| e.same_family(&to))?;
    Some((source, to))
}

/// Opens the connection, changes the policy, takes the change back, and looks at both directions each time.
pub(super) fn carry_out(
    sandbox: &Sandbox,
    agents: &mut Agents<'_>,
    before: &Cluster,
    change: &Change,
    mut told: impl FnMut(Event<'_>),
) -> anyhow::Result<Vec<Check>> {
    let mut checks = Vec::new();
    let mut note = |check: Check, told: &mut dyn FnMut(Event<'_>)| {
        told(Event::Checked(&check));
        checks.push(check);
    };
    let mut flows = Vec::new();
    let from = Place::Pod(change.from.clone());
    for address in &change.addresses {
        match sandbox.open(&from, *address)? {
            Ok(mut flow) => {
                note(
                    must(format!("{address}: the client is answered"), flow.exchange(LONG)),
                    &mut told,
                );
                note(
                    must(format!("{address}: the server is heard"), flow.push(LONG)),
                    &mut told,
                );
                flows.push((address, flow));
            }
            Err(outcome) => {
                let check = Check {
                    what: format!("{address}: a connection opens"),
                    instead: Some(outcome.to_string()),
                    leak: false,
                };
                note(check, &mut told);
            }
        }
    }
    told(Event::Applied(&agents.apply(&change.after)?));
    for (address, flow) in &mut flows {
        let (server, client) = (flow.push(SHORT), flow.exchange(SHORT));
        note(
            must_not(format!("{address}: the server is no longer heard"), server),
            &mut told,
        );
        note(
            must_not(format!("{address}: the client is no longer answered"), client),
            &mut told,
        );
    }
    for check in new_connections(sandbox, change, Expect::Silence)? {
        note(check, &mut told);
    }
    told(Event::Applied(&agents.apply(before)?));
    for (address, flow) in &mut flows {
        let (client, server) = (flow.exchange(LONG), flow.push(LONG));
        note(
            must(format!("{address}: the client is answered again"), client),
            &mut told,
        );
        note(must(format!("{address}: the server is heard again"), server), &mut told);
    }
    for check in new_connections(sandbox, change, Expect::Answer)? {
        note(check, &mut told);
    }
    Ok(checks)
}

fn must(what: String, so: bool) -> Check {
    Check {
        what,
        instead: (!so).then(|| "silence".to_owned()),
        leak: false,
    }
}

fn must_not(what: String, so: bool) -> Check {
    Check {
        what,
        instead: so.then(|| "it still is".to_owned()),
        leak: so,
    }
}

fn new_connections(sandbox: &Sandbox, change: &Change, expect: Expect) -> anyhow::Result<Vec<Check>> {
    let probes: Vec<Probe> = (change.addresses.iter())
        .map(|address| Probe {
            from: Place::Pod(change.from.clone()),
            source: None,
            to: address.ip(),
            traffic: Traffic::Port(Protocol::Tcp, address.port()),
            expect,
        })
        .collect();
    let outcomes = sandbox.probe_all(&probes, |_| {})?;
    let checks = change.addresses.iter().zip(outcomes).map(|(address, outcome)| {
        let (what, so) = match expect {
            Expect::Answer => (
                "a new connection opens",
                outcome == Outcome::Answered(change.to.to_string()),
            ),
            _ => ("a new connection does not open", outcome == Outcome::Silent),
        };
        Check {
            what: format!("{address}: {what}"),
            instead: (!so).then(|| outcome.to_string()),
            leak: !so && expect != Expect::Answer,
        }
    });
    Ok(checks.collect())
}
