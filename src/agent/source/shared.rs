//! What the four watches and the agent's loop share: changes that the loop has not taken yet, and how the watches fare.
//!
//! Changes wait by object, and a later one replaces an earlier: however slow the loop and however fast the changes, no more
//! waits than there are objects, and no watch ever waits for the loop.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use policy_compiler::cluster::Cluster;
use policy_compiler::compile::Event;
use policy_compiler::policy::PolicyName;
use tokio::sync::Notify;

use super::kinds::{Identity, Key, Read, Resource};
use super::store::Wrong;

/// How many of the objects that cannot be read are told by name.
const INVALID_TOLD: usize = 20;

/// Of how many policies that cannot be read as a whole is kept what is wrong with them.
const UNREADABLE_KEPT: usize = 1000;

/// A policy that is not in force as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Which.
    pub policy: PolicyName,
    /// Which of that name.
    pub identity: Identity,
    /// What is wrong with it.
    pub message: String,
    /// What is done instead of what it says.
    pub remedy: &'static str,
}

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
    /// Of the policies, readable or not.
    identities: BTreeMap<Key, Identity>,
    /// What is wrong with policies, at most [`UNREADABLE_KEPT`].
    unreadable: BTreeMap<Key, Wrong>,
    waiting: BTreeMap<(Resource, Key), Event>,
    since: Option<Instant>,
    ready: bool,
}

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
                identities: BTreeMap::new(),
                unreadable: BTreeMap::new(),
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
        self.put(self.state(), resource, events);
    }

    fn put(&self, mut state: MutexGuard<'_, State>, resource: Resource, events: impl IntoIterator<Item = Event>) {
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

    /// A list is complete: its changes, and with the first that the watch is synced. All in one, for the loop takes the snapshot as
    /// soon as the last watch is.
    pub(super) fn synced(&self, resource: Resource, events: Vec<Event>) {
        let mut state = self.state();
        if let Some(health) = state.health.get_mut(&resource) {
            health.synced = true;
            health.lists += 1;
        }
        self.put(state, resource, events);
    }

    /// Changes how a watch fares.
    pub(super) fn note<T>(&self, resource: Resource, change: impl FnOnce(&mut Health) -> T) -> T {
        change(self.state().health.entry(resource).or_default())
    }

    /// The objects that cannot be read, or not as a whole.
    pub(super) fn complain(&self, resource: Resource, invalid: &BTreeMap<Key, Wrong>) {
        self.note(resource, |health| {
            health.invalid = invalid.len();
            let lines = invalid.iter().take(INVALID_TOLD);
            health.complaints = lines
                .map(|(key, wrong)| format!("{} {key}: {}", resource.kind(), wrong.message))
                .collect();
        });
        if resource == Resource::NetworkPolicies {
            let kept = invalid.iter().take(UNREADABLE_KEPT);
            self.state().unreadable = kept.map(|(key, wrong)| (key.clone(), wrong.clone())).collect();
        }
    }

    /// Remembers who a policy is. Of other kinds nobody asks.
    pub(super) fn identify<O>(&self, resource: Resource, read: &Read<O>) {
        if resource != Resource::NetworkPolicies {
            return;
        }
        let mut state = self.state();
        match &read.identity {
            Some(identity) => state.identities.insert(read.key.clone(), identity.clone()),
            None => state.identities.remove(&read.key),
        };
    }

    /// The object is gone.
    pub(super) fn forget(&self, resource: Resource, key: &Key) {
        if resource == Resource::NetworkPolicies {
            self.state().identities.remove(key);
        }
    }

    /// All objects but these are gone.
    pub(super) fn keep_only(&self, resource: Resource, there: impl Fn(&Key) -> bool) {
        if resource == Resource::NetworkPolicies {
            self.state().identities.retain(|key, _| there(key));
        }
    }

    /// Who a policy is, if the API server has said.
    pub(super) fn identity(&self, policy: &PolicyName) -> Option<Identity> {
        self.state().identities.get(&key(policy)).cloned()
    }

    /// The first policies that are not in force as they are written, by name.
    pub(super) fn unreadable(&self) -> Vec<Unreadable> {
        let state = self.state();
        let whole = |(key, wrong): (&Key, &Wrong)| {
            Some(Unreadable {
                policy: PolicyName {
                    namespace: key.namespace.clone(),
                    name: key.name.clone(),
                },
                identity: state.identities.get(key)?.clone(),
                message: wrong.message.clone(),
                remedy: wrong.remedy,
            })
        };
        state.unreadable.iter().filter_map(whole).collect()
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

fn key(policy: &PolicyName) -> Key {
    Key {
        namespace: policy.namespace.clone(),
        name: policy.name.clone(),
    }
}

fn subject(event: &Event) -> Key {
    let (namespace, name) = match event {
        Event::Pod(pod) => (Some(&pod.name.namespace), &pod.name.name),
        Event::PodGone(name) => (Some(&name.namespace), &name.name),
        Event::Namespace(namespace) => (None, &namespace.name),
        Event::Node(node) => (None, &node.name),
        Event::NamespaceGone(name) | Event::NodeGone(name) => (None, name),
        Event::Policy(policy) => (policy.name.namespace.as_ref(), &policy.name.name),
        Event::PolicyGone(_, name) => (name.namespace.as_ref(), &name.name),
    };
    Key {
        namespace: namespace.cloned(),
        name: name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use policy_compiler::cluster::Node;
    use policy_compiler::labels::Labels;

    use super::*;

    #[test]
    fn the_snapshot_has_what_the_last_list_brings() {
        // Whoever takes does so at any moment.
        for _ in 0..20_000 {
            let shared = Shared::default();
            for resource in [Resource::Namespaces, Resource::NetworkPolicies, Resource::Pods] {
                shared.synced(resource, Vec::new());
            }
            let node = Node {
                name: "n1".into(),
                labels: Labels::default(),
                addresses: Vec::new(),
                pod_cidrs: Vec::new(),
            };
            let first = thread::scope(|scope| {
                let first = scope.spawn(|| {
                    loop {
                        if let Some(taken) = shared.try_take() {
                            break taken;
                        }
                    }
                });
                shared.synced(Resource::Nodes, vec![Event::Node(node.into())]);
                first.join()
            });
            match first {
                Ok(Taken::Ready(cluster)) => assert_eq!(cluster.nodes.len(), 1),
                _ => panic!("no snapshot comes first"),
            }
        }
    }
}
