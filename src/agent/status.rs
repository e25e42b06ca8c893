//! What this node enforces, in numbers: the loop notes them after each apply, `/status` serves them as JSON, and
//! `palisade status` reads that. The JSON is stable; docs/cli.md explains every field.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use policy_compiler::policy::{Direction, PolicyName};
use serde::{Deserialize, Serialize};

use super::enforcer::{Applied, Enforcer};
use super::http::Shared;
use crate::nft::Kernel;

/// The version of the JSON.
pub const API_VERSION: &str = "palisade.dev/v1alpha1";

/// The kind of the JSON.
pub const KIND: &str = "NodeStatus";

/// The answer of `/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// [`API_VERSION`].
    pub api_version: String,
    /// [`KIND`].
    pub kind: String,
    /// Of the agent.
    pub version: String,
    /// Whether the kernel holds the current policy.
    pub ready: bool,
    /// Why not; empty when ready.
    pub problems: Vec<String>,
    /// What is worth telling all the same.
    pub warnings: Vec<String>,
    /// How long ago the kernel was last known to hold the current policy, in seconds; none when it never did.
    pub held_seconds_ago: Option<f64>,
    /// What is enforced; none before the first apply.
    pub enforced: Option<Enforced>,
    /// The last transaction; none before the first.
    pub last_apply: Option<LastApply>,
}

/// What is enforced, as of the last apply.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enforced {
    /// The node.
    pub node: String,
    /// `enforce` or `audit`.
    pub mode: String,
    /// `drop` or `reject`.
    pub deny_action: String,
    /// `allow` or `drop`.
    pub unknown_pods: String,
    /// Live pods in the cluster.
    pub cluster_pods: usize,
    /// Those on this node that policy can select.
    pub node_pods: usize,
    /// Policies that select one of them.
    pub policies: usize,
    /// What may come in.
    pub ingress: Half,
    /// What may go out.
    pub egress: Half,
    /// The table `inet palisade`.
    pub table: Table,
}

/// One direction of the compiled table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Half {
    /// Sorts of pods of this node, by the policies that select them.
    pub groups: usize,
    /// Sorts of peers that some policy tells apart.
    pub classes: usize,
}

/// The size of the table in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    /// Chains.
    pub chains: usize,
    /// Rules in them.
    pub rules: usize,
    /// Sets and maps.
    pub sets: usize,
    /// Elements that rendering put in them: the records of denials are not among them.
    pub elements: usize,
}

/// The last transaction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastApply {
    /// How long ago, in seconds.
    pub seconds_ago: f64,
    /// How long the kernel took.
    pub seconds: f64,
    /// From the arrival of the first event that it brought until the kernel held it, in seconds; none when it was no event of an API
    /// server that it followed.
    pub lag_seconds: Option<f64>,
    /// Its operations, each element counted.
    pub operations: usize,
}

/// What the loop has noted, shared.
#[derive(Clone, Debug, Default)]
pub struct Noted(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    enforced: Option<Enforced>,
    applied: Option<Last>,
    refused: Vec<PolicyName>,
}

#[derive(Debug)]
struct Last {
    at: Instant,
    applied: Applied,
    lag: Option<Duration>,
}

impl Noted {
    /// The kernel holds what this enforcer wants, by what was done or without a change; so long after the first event that it
    /// brought.
    pub fn held<K: Kernel>(&self, enforcer: &Enforcer<K>, applied: &Applied, lag: Option<Duration>) -> Enforced {
        let enforced = Enforced::of(enforcer);
        let mut state = self.state();
        state.enforced = Some(enforced.clone());
        if applied.changed {
            state.applied = Some(Last {
                at: Instant::now(),
                applied: applied.clone(),
                lag,
            });
        }
        enforced
    }
}

impl Noted {
    /// The NetworkPolicies whose rules the kernel refuses.
    pub fn note_refused(&self, policies: Vec<PolicyName>) {
        self.state().refused = policies;
    }

    /// See [`Self::note_refused`].
    pub fn refused(&self) -> Vec<PolicyName> {
        self.state().refused.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Enforced {
    fn of<K: Kernel>(enforcer: &Enforcer<K>) -> Self {
        let summary = enforcer.summary();
        let settings = enforcer.settings();
        let table = enforcer.wanted().map_or_else(Table::default, |ruleset| Table {
            chains: ruleset.chains.len(),
            rules: ruleset.chains.values().map(Vec::len).sum(),
            sets: ruleset.sets.len(),
            elements: ruleset.sets.values().map(|elements| elements.len()).sum(),
        });
        let half = |direction| {
            enforcer.compiled().map_or_else(Half::default, |table| Half {
                groups: table.half(direction).groups().count(),
                classes: table.half(direction).classes().count(),
            })
        };
        Enforced {
            node: enforcer.node().to_string(),
            mode: settings.mode.to_string(),
            deny_action: settings.deny_action.to_string(),
            unknown_pods: settings.unknown_pods.to_string(),
            cluster_pods: summary.pods,
            node_pods: summary.node_pods,
            policies: summary.policies,
            ingress: half(Direction::Ingress),
            egress: half(Direction::Egress),
            table,
        }
    }
}

impl Status {
    /// As of now.
    pub fn of(shared: &Shared) -> Self {
        let (problems, warnings) = shared.readiness.lines();
        let state = shared.noted.state();
        let last_apply = state.applied.as_ref().map(|Last { at, applied, lag }| LastApply {
            seconds_ago: at.elapsed().as_secs_f64(),
            seconds: applied.duration.as_secs_f64(),
            lag_seconds: lag.map(|lag| lag.as_secs_f64()),
            operations: applied.operations,
        });
        let succeeded = shared.metrics.last_success.get();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let ago = now.unwrap_or(Duration::ZERO).as_secs_f64() - succeeded;
        Status {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: problems.is_empty(),
            problems,
            warnings,
            // A clock that was set back makes no success lie in the future.
            held_seconds_ago: (succeeded > 0.0).then(|| ago.max(0.0)),
            enforced: state.enforced.clone(),
            last_apply,
        }
    }
}
