//! An API server, a source that watches it, and what the source has told so far.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use palisade::agent::source::{Access, AccessError, Resource, Target, Timing, Update, Watches};
use policy_compiler::cluster::Cluster;
use policy_compiler::compile::Event;
use tokio::time::{Instant, timeout};

use crate::api::{Api, Kind};
use crate::objects::{namespace, node, pod, policy};
use crate::server::Server;

/// How long anything that is expected may take; machines are slow at times.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Longer than any test.
pub(crate) const NEVER: Duration = Duration::from_secs(3600);

/// As the agent's, but that what fails is soon tried again. No answer is given up because the machine stood still for a while.
pub(crate) const TIMING: Timing = Timing {
    answer: Duration::from_secs(60),
    page: Duration::from_secs(120),
    idle: Duration::from_secs(90),
    watch: Duration::from_secs(290),
    long: Duration::from_millis(400),
    first_delay: Duration::from_millis(50),
    longest_delay: Duration::from_millis(400),
    renew: Duration::from_millis(500),
};

/// The same for tests of silence, which must be noticed before they end.
pub(crate) const HASTY: Timing = Timing {
    answer: Duration::from_millis(1500),
    page: Duration::from_secs(3),
    idle: Duration::from_millis(2500),
    ..TIMING
};

pub(crate) struct World<S = Api> {
    pub(crate) api: S,
    pub(crate) watches: Watches,
    /// As told so far; none before the first snapshot.
    pub(crate) cluster: Option<Cluster>,
    /// Whether every event must change something. A change that is undone before it is taken need not.
    pub(crate) strict: bool,
    /// Holds the kubeconfig.
    _folder: tempfile::TempDir,
}

impl World {
    /// A source for an API server as it is.
    pub(crate) fn watch(api: Api) -> World {
        World::watch_with(api, None)
    }

    /// The same with other times.
    pub(crate) fn watch_in(api: Api, timing: Timing) -> World {
        let kubeconfig = api.kubeconfig(None);
        World::watch_as_in(api, &kubeconfig, timing)
    }

    pub(crate) fn watch_with(api: Api, token_file: Option<PathBuf>) -> World {
        let kubeconfig = api.kubeconfig(token_file.as_deref());
        World::watch_as(api, &kubeconfig)
    }

    /// A source that has this kubeconfig.
    pub(crate) fn watch_as(api: Api, kubeconfig: &str) -> World {
        World::watch_as_in(api, kubeconfig, TIMING)
    }

    /// The same with other times.
    pub(crate) fn watch_as_in(api: Api, kubeconfig: &str, timing: Timing) -> World {
        World::begin(api, kubeconfig, timing, Watches::start)
    }

    /// The same as an agent of this node has it.
    pub(crate) fn watch_of(api: Api, node: &str) -> World {
        let kubeconfig = api.kubeconfig(None);
        World::begin(api, &kubeconfig, TIMING, |access, timing| {
            Watches::of_node(access, timing, node.into())
        })
    }

    /// A small cluster that has been told.
    pub(crate) async fn synced() -> World {
        World::synced_on(Api::start().await).await
    }

    /// The same with other times.
    pub(crate) async fn synced_in(timing: Timing) -> World {
        let mut world = World::watch_in(small().await, timing);
        world.converge().await;
        world
    }
}

impl<S: Server> World<S> {
    /// The same on any API server, and nothing else in it.
    pub(crate) async fn synced_on(api: S) -> World<S> {
        api.clear().await;
        fill(&api).await;
        let kubeconfig = Server::kubeconfig(&api);
        let mut world = World::begin(api, &kubeconfig, TIMING, Watches::start);
        world.converge().await;
        world
    }

    fn begin(api: S, kubeconfig: &str, timing: Timing, start: impl FnOnce(Arc<Access>, Timing) -> Watches) -> World<S> {
        let (folder, access) = access(kubeconfig);
        World {
            api,
            watches: start(Arc::new(access.unwrap()), timing),
            cluster: None,
            strict: true,
            _folder: folder,
        }
    }

    /// What comes next, which must come soon.
    pub(crate) async fn next(&mut self) -> Vec<Event> {
        let update = timeout(SOON, self.watches.next()).await;
        let update = update.unwrap_or_else(|_| panic!("nothing comes: {:#?}", self.watches.health()));
        self.take(update)
    }

    pub(crate) fn take(&mut self, update: Update) -> Vec<Event> {
        match update {
            Update::Ready(cluster) => {
                assert!(self.cluster.is_none(), "a second snapshot");
                self.cluster = Some(*cluster);
                Vec::new()
            }
            Update::Events { events, .. } => {
                let cluster = self.cluster.as_mut().expect("a snapshot first");
                assert!(!events.is_empty());
                for event in &events {
                    let before = cluster.clone();
                    event.clone().apply_to(cluster);
                    assert!(!self.strict || before != *cluster, "changes nothing: {event:?}");
                }
                events
            }
        }
    }

    /// Nothing comes for a while.
    pub(crate) async fn quiet(&mut self, during: Duration) {
        if let Ok(update) = timeout(during, self.watches.next()).await {
            panic!("{update:?}");
        }
    }

    /// Waits until the source has told what the API server holds; what was told on the way.
    #[track_caller]
    pub(crate) fn converge(&mut self) -> impl Future<Output = Vec<Event>> {
        let caller = std::panic::Location::caller();
        async move {
            let start = Instant::now();
            let mut told = Vec::new();
            loop {
                let wanted = self.api.cluster().await;
                if self.cluster.as_ref() == Some(&wanted) {
                    return told;
                }
                match timeout(SOON.saturating_sub(start.elapsed()), self.watches.next()).await {
                    Ok(update) => told.extend(self.take(update)),
                    Err(_) => panic!(
                        "{caller}: no convergence: {:#?}\nhas {:#?}\nwants {:#?}",
                        self.watches.health(),
                        self.cluster,
                        wanted
                    ),
                }
            }
        }
    }

    /// Waits until a watch fares so.
    pub(crate) async fn until(&self, what: &str, so: impl Fn(&palisade::agent::source::Health) -> bool, of: Resource) {
        let start = Instant::now();
        while !so(&self.watches.health()[&of]) {
            assert!(start.elapsed() < SOON, "{what}: {:#?}", self.watches.health()[&of]);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// What a kubeconfig gives, and the folder that it is in.
pub(crate) fn access(kubeconfig: &str) -> (tempfile::TempDir, Result<Access, AccessError>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config");
    std::fs::write(&file, kubeconfig).unwrap();
    let target = Target::Kubeconfig {
        file: Some(file),
        context: None,
    };
    let access = Access::new(target);
    (folder, access)
}

/// An API server with a few objects of every kind.
pub(crate) async fn small() -> Api {
    let api = Api::start().await;
    fill(&api).await;
    api
}

/// The same with the objects of [`small`].
pub(crate) async fn filled(api: Api) -> Api {
    fill(&api).await;
    api
}

async fn fill(api: &impl Server) {
    api.put(Kind::Namespace, namespace("shop", "red")).await;
    api.put(Kind::Namespace, namespace("other", "blue")).await;
    api.put(Kind::Node, node("n1", "192.0.2.1")).await;
    api.put(Kind::Pod, pod("shop", "web-1", "web", "10.1.0.1")).await;
    api.put(Kind::Pod, pod("shop", "db-1", "db", "10.1.0.2")).await;
    api.put(Kind::NetworkPolicy, policy("shop", "db", "db", 5432)).await;
}
