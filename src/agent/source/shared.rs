//! What the four watches and the agent's loop share: changes that the loop has not taken yet, and how the watches fare.
//!
//! Changes wait by object, and a later one replaces an earlier: however slow the loop and however fast the changes, no more
//! waits than there are objects, and no watch ever waits for the loop.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use policy_compiler::cluster::Cluster;
use policy_compiler::compile::Event;
use tokio::sync::Notify;

use super::kinds::Resource;

/// How many of the objects that cannot be read are told by name.
const INVALID_TOLD: usize = 20;

/// How one watch fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether it has ever been complete. Then what is held stays, whatever happens.
    pub synced: bool,
    /// Since when it fails, if it does.
    pub failing_since: Option<Instant>,
    /// The last failure, of now or of earlier.
    pub error: Option<String>,
    /// When the API server was last heard on it; bookmarks count.
    pub heard: Option<Instant>,
    /// Objects held.
    pub objects: usize,
    /// Objects that cannot be read.
    pub invalid: usize,
    /// What is wrong with the first of them, each with its name.
    pub complaints: Vec<String>,
    /// Events so far, those that changed nothing included.
    pub events: u64,
    /// Complete lists so far, streamed or not.
    pub lists: u64,
    /// Failures so far.
    pub failures: u64,
}

/// Shared by the watches and the loop.
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    health: BTreeMap<Resource, Health>,
    waiting: BTreeMap<(Resource, Subject), Event>,
    since: Option<Instant>,
    ready: bool,
}

/// Which object, in the order in which a batch gives them.
type Subject = super::kinds::Key;

/// What the loop takes.
pub(super) enum Taken {
    /// All that is held, once every watch is complete.
    Ready(Cluster),
    /// What has changed since then.
    Events(Vec<Event>, Instant),
}

impl Default for Shared {
    fn default() -> Self {
        let health = Resource::ALL.into_iter().map(|r| (r, Health::default()));
        Shared {
            state: Mutex::new(State {
                health: health.collect(),
                waiting: BTreeMap::new(),
                since: None,
                ready: false,
            }),
            changed: Notify::new(),
        }
    }
}

impl Shared {
    /// Adds changes of one kind, and tells the loop.
    pub(super) fn add(&self, resource: Resource, events: impl IntoIterator<Item = Event>) {
        let mut state = self.state();
        let before = state.waiting.len();
        for event in events {
            state.waiting.insert((resource, subject(&event)), event);
        }
        if before == 0 && !state.waiting.is_empty() {
            state.since = Some(Instant::now());
        }
        let wake = state.is_due();
        drop(state);
        if wake {
            self.changed.notify_one();
        }
    }

    /// A list is complete: its changes, and with the first that the watch is synced.
    pub(super) fn synced(&self, resource: Resource, events: Vec<Event>) {
        let mut state = self.state();
        if let Some(health) = state.health.get_mut(&resource) {
            health.synced = true;
            health.lists += 1;
        }
        drop(state);
        self.add(resource, events);
    }

    /// Changes how a watch fares.
    pub(super) fn note<T>(&self, resource: Resource, change: impl FnOnce(&mut Health) -> T) -> T {
        change(self.state().health.entry(resource).or_default())
    }

    /// The objects that cannot be read.
    pub(super) fn complain<'a, K: std::fmt::Display + 'a>(
        &self,
        resource: Resource,
        invalid: impl ExactSizeIterator<Item = (&'a K, &'a String)>,
    ) {
        self.note(resource, |health| {
            health.invalid = invalid.len();
            let lines = invalid.take(INVALID_TOLD);
            health.complaints = lines
                .map(|(key, message)| format!("{} {key}: {message}", resource.kind()))
                .collect();
        });
    }

    /// How all watches fare.
    pub(super) fn health(&self) -> BTreeMap<Resource, Health> {
        self.state().health.clone()
    }

    /// Waits until there is something to take. Dropped before it is done, it loses nothing.
    pub(super) async fn take(&self) -> Taken {
        loop {
            if let Some(taken) = self.try_take() {
                return taken;
            }
            self.changed.notified().await;
        }
    }

    /// Waits for changes without taking them; may end early. Dropped before it is done, it loses nothing.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What there is to take now.
    pub(super) fn try_take(&self) -> Option<Taken> {
        let mut state = self.state();
        if !state.is_due() {
            return None;
        }
        let waiting = std::mem::take(&mut state.waiting).into_values();
        let since = state.since.take().unwrap_or_else(Instant::now);
        if state.ready {
            return Some(Taken::Events(waiting.collect(), since));
        }
        state.ready = true;
        drop(state);
        let mut cluster = Cluster::default();
        waiting.for_each(|event| event.apply_to(&mut cluster));
        Some(Taken::Ready(cluster))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_due(&self) -> bool {
        if self.ready {
            !self.waiting.is_empty()
        } else {
            self.health.values().all(|health| health.synced)
        }
    }
}

fn subject(event: &Event) -> Subject {
    let (namespace, name) = match event {
        Event::Pod(pod) => (Some(&pod.name.namespace), &pod.name.name),
        Event::PodGone(name) => (Some(&name.namespace), &name.name),
        Event::Namespace(namespace) => (None, &namespace.name),
        Event::Node(node) => (None, &node.name),
        Event::NamespaceGone(name) | Event::NodeGone(name) => (None, name),
        Event::Policy(policy) => (policy.name.namespace.as_ref(), &policy.name.name),
        Event::PolicyGone(_, name) => (name.namespace.as_ref(), &name.name),
    };
    Subject {
        namespace: namespace.cloned(),
        name: name.clone(),
    }
}
