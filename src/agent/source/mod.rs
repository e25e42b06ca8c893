//! The API server as the agent's source: four watches go in, first a snapshot and then its changes come out.
//!
//! Nothing comes out before every watch is complete. What is held stays while a watch fails; when the API server has
//! forgotten where a watch was, the difference to the new list comes out, and only when that list is complete.
//!
//! Commands that answer one question list everything once (`snapshot`).

mod access;
mod complaints;
mod credentials;
mod intern;
mod kinds;
mod limits;
mod page;
mod partial;
mod plugin;
mod proxy;
mod reason;
mod salvage;
mod shared;
mod snapshot;
mod store;
mod transport;
mod watch;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use policy_compiler::cluster::Cluster;
use policy_compiler::compile::Event;
use policy_compiler::labels::Name;
use policy_compiler::policy::PolicyName;
use tokio::task::JoinSet;
use tracing::error;

pub use access::{Access, AccessError, ClusterInfo, Target};
pub use kinds::{Identity, Resource};
pub(crate) use reason::reason;
pub use shared::{Health, Unreadable};
pub use snapshot::{Count, Remark, Snapshot, SnapshotError, Wanted, snapshot};

use kinds::{Namespaces, Nodes, Pods, Policies, Watched};
use shared::{Shared, Taken};
use watch::Watch;

/// How long everything may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From a request to the head of its answer.
    pub answer: Duration,
    /// From the head of a page of a list to its end.
    pub page: Duration,
    /// From one line of a watch to the next. The API server sends a bookmark about once a minute, so a watch that falls silent
    /// for longer is taken for dead. There are none before anything newer is known than what the watch began with (where etcd
    /// does not notify of progress, that can take hours): such a watch is made anew without complaint.
    pub idle: Duration,
    /// After how long the API server is to end a watch.
    pub watch: Duration,
    /// A watch that lived so long is made anew at once; after a shorter one a delay comes first.
    pub long: Duration,
    /// The delay after the first failure.
    pub first_delay: Duration,
    /// The longest delay.
    pub longest_delay: Duration,
    /// How old credentials must be to be read again when there is no connection: it may be the certificates.
    pub renew: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            answer: Duration::from_secs(30),
            page: Duration::from_secs(120),
            idle: Duration::from_secs(90),
            watch: Duration::from_secs(290),
            long: Duration::from_secs(5),
            first_delay: Duration::from_secs(1),
            longest_delay: Duration::from_secs(30),
            renew: Duration::from_secs(10),
        }
    }
}

impl Timing {
    /// In seconds, and less a random part of up to a quarter: the watches of a thousand nodes must not end at once.
    fn watch_seconds(&self) -> u32 {
        let jitter = RandomState::new().hash_one(()) % 256;
        let seconds = self.watch.mul_f64(1.0 - jitter as f64 / 1024.0).as_secs();
        u32::try_from(seconds).unwrap_or(u32::MAX).max(1)
    }
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// Every watch is complete: the whole cluster. Comes once, and first.
    Ready(Box<Cluster>),
    /// What has changed since, at most one event for each object; never empty. Of a change that was undone before it was
    /// taken, the event that undoes it may be left.
    Events {
        /// The changes, in order of kind and name.
        events: Vec<Event>,
        /// When the first of them came from the API server.
        since: Instant,
    },
}

/// Watches over pods, namespaces, nodes and policies. They end when this is dropped.
pub struct Watches {
    shared: Arc<Shared>,
    tasks: JoinSet<Resource>,
}

impl Watches {
    /// Starts watching. Must be called in a tokio runtime, whose workers then do the reading.
    pub fn start(access: Arc<Access>, timing: Timing) -> Self {
        Watches::watch(&access, timing, None)
    }

    /// Starts watching as an agent of this node: no other Node is watched, for none matters there, and each is told anew every
    /// few minutes, so that in a cluster of n nodes n agents would hear n kubelets.
    pub fn of_node(access: Arc<Access>, timing: Timing, node: Name) -> Self {
        Watches::watch(&access, timing, Some(node))
    }

    fn watch(access: &Arc<Access>, timing: Timing, node: Option<Name>) -> Self {
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        spawn::<Namespaces>(&mut tasks, access, &shared, timing, None);
        spawn::<Nodes>(&mut tasks, access, &shared, timing, node);
        spawn::<Policies>(&mut tasks, access, &shared, timing, None);
        spawn::<Pods>(&mut tasks, access, &shared, timing, None);
        Watches { shared, tasks }
    }

    /// Waits for what comes next. Dropped before it is done, it loses nothing.
    pub async fn next(&mut self) -> Update {
        loop {
            tokio::select! {
                taken = self.shared.take() => return match taken {
                    Taken::Ready(cluster) => Update::Ready(Box::new(cluster)),
                    Taken::Events(events, since) => Update::Events { events, since },
                },
                Some(ended) = self.tasks.join_next() => {
                    // A watch never ends by itself. What it held stays, and its health says that it is old.
                    error!("a watch has ended: {ended:?}; restart the agent, and please report this");
                }
            }
        }
    }

    /// Waits until there may be changes, and takes none: they go on gathering for `Waiting::take`. Dropped before it is done,
    /// it loses nothing.
    pub async fn changed(&mut self) {
        tokio::select! {
            () = self.shared.changed() => {}
            Some(ended) = self.tasks.join_next() => error!("a watch has ended: {ended:?}; restart the agent, and please report this"),
        }
    }

    /// The changes that nobody has taken yet.
    pub(in crate::agent) fn waiting(&self) -> Waiting {
        Waiting(self.shared.clone())
    }

    /// What is known beside the cluster.
    pub(in crate::agent) fn known(&self) -> Known {
        Known(self.shared.clone())
    }

    /// The first thousand policies that are not in force as they are written, by name; those left out of which the API server does
    /// not say who they are.
    pub fn unreadable(&self) -> Vec<Unreadable> {
        self.shared.unreadable()
    }

    /// How the watches fare.
    pub fn health(&self) -> BTreeMap<Resource, Health> {
        self.shared.health()
    }

    /// Whether every watch has been complete.
    pub fn is_synced(&self) -> bool {
        self.health().values().all(|health| health.synced)
    }
}

/// Changes that wait to be taken: of each object the last, however long nobody takes them.
pub(in crate::agent) struct Waiting(Arc<Shared>);

impl Waiting {
    /// What has changed since the last call, and since when; none when nothing has, or not every watch is complete.
    pub(in crate::agent) fn take(&self) -> Option<(Vec<Event>, Instant)> {
        match self.0.try_take()? {
            Taken::Events(events, since) => Some((events, since)),
            Taken::Ready(_) => None,
        }
    }
}

/// What the watches know beside the cluster, for whoever writes to the API server.
pub(in crate::agent) struct Known(Arc<Shared>);

impl Known {
    /// As [`Watches::unreadable`].
    pub(in crate::agent) fn unreadable(&self) -> Vec<Unreadable> {
        self.0.unreadable()
    }

    /// Who a policy is, if the API server has said.
    pub(in crate::agent) fn identity(&self, policy: &PolicyName) -> Option<Identity> {
        self.0.identity(policy)
    }
}

fn spawn<K: Watched>(
    tasks: &mut JoinSet<Resource>,
    access: &Arc<Access>,
    shared: &Arc<Shared>,
    timing: Timing,
    only: Option<Name>,
) {
    let watch = Watch::<K>::new(access.clone(), shared.clone(), timing, only);
    tasks.spawn(async move {
        watch.run().await;
        K::RESOURCE
    });
}
