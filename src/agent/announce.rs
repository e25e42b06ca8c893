//! Kubernetes Events on policies that are not enforced as they are written: what the watches and the loop have found goes in,
//! now and then one request to the API server comes out.
//!
//! Every agent of a cluster finds much the same, and they do not talk to each other. What keeps them from a storm:
//!
//! - the name of an Event follows from what it says, so that the API server takes the first and refuses all others;
//! - an agent sends one request in so long a time that all together send [`ALL_TOGETHER`] a second, however many they are
//!   and whatever they have found;
//! - of what all of them find, each tells only what falls to it by lot, so that about [`TRIES`] do.
//!
//! An API server forgets Events after an hour, so what lasts is told once an hour. Nothing waits for any of this.

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use kube::core::Status;
use policy_compiler::labels::Name;
use policy_compiler::policy::PolicyName;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::backoff::Backoff;
use super::metrics::{Announced, Metrics};
use super::source::{Access, Identity, Known, Unreadable};
use super::status::Noted;

/// Requests a second of all agents of a cluster together.
pub const ALL_TOGETHER: u32 = 50;

/// How many agents of a large cluster, on average, tell what all of them find.
pub const TRIES: u64 = 16;

/// However few agents there are, one sends no more than a request in this time.
const AT_LEAST: Duration = Duration::from_secs(1);

/// How long the API server may take.
const ANSWER: Duration = Duration::from_secs(30);

/// How long an agent that may not create Events keeps quiet.
const FORBIDDEN: Duration = Duration::from_secs(600);

/// How old credentials must be to be read again when they are refused.
const REFUSED_AGE: Duration = Duration::from_secs(1);

/// As long as the API server keeps an Event, unless it is told otherwise.
const KEPT: Duration = Duration::from_secs(3600);

/// Bounds of the API, in bytes.
const LONGEST_NOTE: usize = 1024;
const LONGEST_INSTANCE: usize = 128;
const LONGEST_NAME: usize = 253;
const LONGEST_NAMESPACE: usize = 63;
const LONGEST_UID: usize = 64;

/// Who says it.
const CONTROLLER: &str = "palisade.dev/agent";

/// Why a policy is not enforced as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It cannot be read, or not as a whole. Every agent finds this.
    Invalid,
    /// A kernel refuses its rules. Other nodes have other kernels, and other pods.
    Refused,
}

impl Reason {
    /// As the Event says it.
    pub fn word(self) -> &'static str {
        match self {
            Reason::Invalid => "PolicyInvalid",
            Reason::Refused => "PolicyRefused",
        }
    }
}

/// A policy that is not enforced as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which.
    pub policy: PolicyName,
    /// Which of that name, and which version of it.
    pub identity: Identity,
    /// Why.
    pub reason: Reason,
    /// What is wrong, and what is done instead.
    pub message: String,
}

impl From<Unreadable> for Finding {
    fn from(unreadable: Unreadable) -> Self {
        let Unreadable { message, remedy, .. } = &unreadable;
        Finding {
            message: format!("{message}; {remedy}"),
            reason: Reason::Invalid,
            policy: unreadable.policy,
            identity: unreadable.identity,
        }
    }
}

impl Finding {
    /// The name of the Event: of this version of this policy, for this reason, in this hour since 1970. None when the API
    /// server would not take it.
    fn name(&self, hour: u64) -> Option<String> {
        let namespace = self.policy.namespace.as_deref()?;
        let Identity { uid, generation } = &self.identity;
        let plain = |text: &str, longest: usize, dots: bool| {
            let usual = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (dots && b == b'.');
            (1..=longest).contains(&text.len()) && text.bytes().all(usual)
        };
        let fits = plain(namespace, LONGEST_NAMESPACE, false)
            && plain(&self.policy.name, LONGEST_NAME, true)
            && plain(uid, LONGEST_UID, false)
            && *generation >= 0;
        let reason = self.reason.word().to_ascii_lowercase();
        fits.then(|| format!("{reason}-{uid}-{generation}-{hour}"))
    }

    /// The Event, as this node tells it.
    fn event(&self, name: &str, node: &str) -> Event {
        Event {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: self.policy.namespace.as_deref().map(str::to_owned),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(Timestamp::now())),
            type_: Some("Warning".to_owned()),
            reason: Some(self.reason.word().to_owned()),
            action: Some("Enforce".to_owned()),
            note: Some(cut(&format!("on node {node}: {}", self.message), LONGEST_NOTE)),
            regarding: Some(ObjectReference {
                api_version: Some("networking.k8s.io/v1".to_owned()),
                kind: Some("NetworkPolicy".to_owned()),
                namespace: self.policy.namespace.as_deref().map(str::to_owned),
                name: Some(self.policy.name.to_string()),
                uid: Some(self.identity.uid.to_string()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(cut(node, LONGEST_INSTANCE)),
            ..Event::default()
        }
    }
}

/// Tells the API server.
pub struct Announcer {
    access: Arc<Access>,
    node: Name,
    metrics: Metrics,
    /// The names of Events that need not be sent again; all of them are of what is found now.
    told: BTreeSet<String>,
    /// The name of the Event that was sent last.
    last: Option<String>,
    backoff: Backoff,
    forbidden: bool,
}

/// What came of a request.
enum Answer {
    Posted,
    /// Another agent was first.
    Known,
    /// It will never be taken.
    Void(String),
    Forbidden(String),
    /// It may be taken later.
    Later(String, Option<Duration>),
}

impl Announcer {
    /// For the agent of a node.
    pub fn new(access: Arc<Access>, node: Name, metrics: Metrics) -> Self {
        Announcer {
            access,
            node,
            metrics,
            told: BTreeSet::new(),
            last: None,
            backoff: Backoff::default(),
            forbidden: false,
        }
    }

    /// Tells what is found, and never ends.
    pub(super) async fn run(mut self, known: Known, noted: Noted) {
        // Agents that were started together do not begin together.
        let part = RandomState::new().hash_one(()) % 1024;
        sleep(pace(self.nodes()).mul_f64(part as f64 / 1024.0)).await;
        loop {
            let mut findings: Vec<Finding> = known.unreadable().into_iter().map(Finding::from).collect();
            findings.extend(noted.refused().into_iter().filter_map(|policy| {
                Some(Finding {
                    identity: known.identity(&policy)?,
                    reason: Reason::Refused,
                    message: "the kernel refuses its rules: what only it allows is denied until it changes".to_owned(),
                    policy,
                })
            }));
            let wait = self.turn(&findings, self.nodes(), SystemTime::now()).await;
            sleep(wait).await;
        }
    }

    /// How many agents there may be, as the loop last counted.
    fn nodes(&self) -> usize {
        usize::try_from(self.metrics.nodes.get()).unwrap_or_default()
    }

    /// Sends at most one request, of all that is found by agents on so many nodes; how long to wait before the next turn.
    pub async fn turn(&mut self, findings: &[Finding], nodes: usize, now: SystemTime) -> Duration {
        let pace = pace(nodes);
        let hour = hour(now);
        let mine = |name: &String, reason| reason == Reason::Refused || draws(name, &self.node, nodes);
        let due: Vec<(String, &Finding)> = findings
            .iter()
            .filter_map(|finding| Some((finding.name(hour)?, finding)))
            .filter(|(name, finding)| mine(name, finding.reason))
            .collect();
        let names: BTreeSet<&String> = due.iter().map(|(name, _)| name).collect();
        self.told.retain(|name| names.contains(name));
        let waiting = names.len() - self.told.len();
        self.metrics.policy_events_waiting.set(waiting as i64);
        // In turn: one that the API server will not take keeps none of the others waiting.
        let untold = |due: &&(String, &Finding)| !self.told.contains(&due.0);
        let after = |due: &&(String, &Finding)| self.last.as_ref().is_none_or(|last| due.0 > *last);
        let mut untold: Vec<&(String, &Finding)> = due.iter().filter(untold).collect();
        untold.sort_by(|a, b| a.0.cmp(&b.0));
        let Some((name, finding)) = untold.iter().copied().find(after).or_else(|| untold.first().copied()) else {
            return pace;
        };
        self.last = Some(name.clone());
        let answer = self.send(name, finding).await;
        self.take(name, finding, answer).max(pace)
    }

    async fn send(&self, name: &str, finding: &Finding) -> Answer {
        let namespace = finding.policy.namespace.as_deref().unwrap_or_default();
        let events: Api<Event> = Api::namespaced(self.access.client(), namespace);
        let event = finding.event(name, &self.node);
        match timeout(ANSWER, events.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => Answer::Posted,
            Ok(Err(kube::Error::Api(status))) => {
                if status.code == 401 {
                    self.access.renew(REFUSED_AGE).await;
                }
                refusal(&status)
            }
            Ok(Err(error)) => Answer::Later(cut(&error.to_string(), LONGEST_NOTE), None),
            Err(_) => Answer::Later(format!("no answer within {} s", ANSWER.as_secs()), None),
        }
    }

    /// Notes what came of it; how long to wait.
    fn take(&mut self, name: &str, finding: &Finding, answer: Answer) -> Duration {
        let (what, done, wait) = match answer {
            Answer::Posted => {
                debug!(policy = %finding.policy, event = name, "Event created");
                (Announced::Posted, true, Duration::ZERO)
            }
            Answer::Known => (Announced::Known, true, Duration::ZERO),
            Answer::Void(why) => {
                debug!(policy = %finding.policy, event = name, "the API server takes no Event: {why}");
                (Announced::Failed, true, Duration::ZERO)
            }
            Answer::Forbidden(why) => {
                if !std::mem::replace(&mut self.forbidden, true) {
                    warn!("no Events tell of policies that are not enforced as they are written: {why}");
                }
                (Announced::Failed, false, FORBIDDEN)
            }
            Answer::Later(why, wish) => {
                debug!(policy = %finding.policy, event = name, "Event not created: {why}");
                let wish = wish.unwrap_or_default().min(FORBIDDEN);
                (Announced::Failed, false, self.backoff.delay().max(wish))
            }
        };
        self.metrics.announced(what);
        if matches!(what, Announced::Posted | Announced::Known) {
            self.backoff.reset();
            if std::mem::take(&mut self.forbidden) {
                info!("Events can be created now");
            }
        }
        if done {
            self.told.insert(name.to_owned());
            self.metrics.policy_events_waiting.dec();
        }
        wait
    }
}

/// What a refusal means.
fn refusal(status: &Status) -> Answer {
    let text = cut(&status.to_string(), LONGEST_NOTE);
    let details = status.details.as_ref();
    let ending = details.is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating"));
    // These concern that namespace or that Event alone, and not the right to create any.
    let here = ending
        || ["exceeded quota", "admission webhook"]
            .iter()
            .any(|why| text.contains(why));
    match status.code {
        409 => Answer::Known,
        403 if !here => Answer::Forbidden(text),
        401 | 408 | 429 | 500.. => {
            let seconds = details.map_or(0, |d| d.retry_after_seconds);
            Answer::Later(text, Some(Duration::from_secs(seconds.into())))
        }
        _ => Answer::Void(text),
    }
}

/// Whether it falls to a node, one of so many, to tell what all find: anew for each Event.
fn draws(name: &str, node: &str, nodes: usize) -> bool {
    let mut hasher = DefaultHasher::new();
    (name, node).hash(&mut hasher);
    hasher.finish() % (nodes.max(1) as u64) < TRIES
}

/// How long an agent waits between two requests.
fn pace(nodes: usize) -> Duration {
    let all = u32::try_from(nodes).unwrap_or(u32::MAX);
    (AT_LEAST.saturating_mul(all) / ALL_TOGETHER).max(AT_LEAST)
}

/// Which hour it is, since 1970.
fn hour(now: SystemTime) -> u64 {
    let now = now.duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs() / KEPT.as_secs()
}

/// At most so many bytes, and no half character.
fn cut(text: &str, longest: usize) -> String {
    const MORE: &str = "...";
    if text.len() <= longest {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(longest - MORE.len());
    format!("{}{MORE}", &text[..end])
}

#[cfg(test)]
mod tests;
