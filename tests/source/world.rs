//! An API server, a source that watches it, and what the source has told so far.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use palisade::agent::source::{Access, Resource, Target, Timing, Update, Watches};
use policy_compiler::cluster::Cluster;
use policy_compiler::compile::Event;
use policy_compiler::convert;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::api::{Api, Kind};
use crate::objects::{namespace, node, pod, policy};

/// How long anything that is expected may take; machines are slow at times.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// As the agent's, but for tests that cannot wait.
pub(crate) const TIMING: Timing = Timing {
    answer: Duration::from_millis(1500),
    page: Duration::from_secs(3),
    idle: Duration::from_millis(2500),
    watch: Duration::from_secs(290),
    long: Duration::from_millis(400),
    first_delay: Duration::from_millis(50),
    longest_delay: Duration::from_millis(400),
};

pub(crate) struct World {
    pub(crate) api: Api,
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

    pub(crate) fn watch_with(api: Api, token_file: Option<PathBuf>) -> World {
        World::begin(api, token_file, Watches::start)
    }

    /// The same as an agent of this node has it.
    pub(crate) fn watch_of(api: Api, node: &str) -> World {
        World::begin(api, None, |access, timing| {
            Watches::of_node(access, timing, node.into())
        })
    }

    fn begin(api: Api, token_file: Option<PathBuf>, start: impl FnOnce(Arc<Access>, Timing) -> Watches) -> World {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        std::fs::write(&file, api.kubeconfig(token_file.as_deref())).unwrap();
        let target = Target::Kubeconfig {
            file: Some(file),
            context: None,
        };
        let access = Arc::new(Access::new(target).unwrap());
        World {
            api,
            watches: start(access, TIMING),
            cluster: None,
            strict: true,
            _folder: folder,
        }
    }

    /// A small cluster that has been told.
    pub(crate) async fn synced() -> World {
        let mut world = World::watch(small().await);
        world.converge().await;
        world
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
            while self.cluster.as_ref() != Some(&self.wanted()) {
                match timeout(SOON.saturating_sub(start.elapsed()), self.watches.next()).await {
                    Ok(update) => told.extend(self.take(update)),
                    Err(_) => panic!(
                        "{caller}: no convergence: {:#?}\nhas {:#?}\nwants {:#?}",
                        self.watches.health(),
                        self.cluster,
                        self.wanted()
                    ),
                }
            }
            told
        }
    }

    /// What the API server holds, decoded as a whole.
    pub(crate) fn wanted(&self) -> Cluster {
        fn decoded<T: serde::de::DeserializeOwned>(object: Value) -> Option<T> {
            serde_json::from_value(object).ok()
        }
        let mut cluster = Cluster::default();
        for object in self.api.objects(Kind::Namespace) {
            decoded::<v1::Namespace>(object)
                .and_then(|o| convert::namespace(&o).ok())
                .into_iter()
                .for_each(|o| cluster.add_namespace(o));
        }
        for object in self.api.objects(Kind::Node) {
            decoded::<v1::Node>(object)
                .and_then(|o| convert::node(&o).ok())
                .into_iter()
                .for_each(|o| cluster.add_node(o));
        }
        for object in self.api.objects(Kind::Pod) {
            decoded::<v1::Pod>(object)
                .and_then(|o| convert::pod(&o).ok())
                .into_iter()
                .for_each(|o| cluster.add_pod(o));
        }
        for object in self.api.objects(Kind::NetworkPolicy) {
            decoded::<NetworkPolicy>(object)
                .and_then(|o| convert::network_policy(&o).ok())
                .into_iter()
                .for_each(|(o, _)| cluster.add_policy(o));
        }
        cluster
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

/// An API server with a few objects of every kind.
pub(crate) async fn small() -> Api {
    let api = Api::start().await;
    api.put(Kind::Namespace, namespace("shop", "red"));
    api.put(Kind::Namespace, namespace("other", "blue"));
    api.put(Kind::Node, node("n1", "192.0.2.1"));
    api.put(Kind::Pod, pod("shop", "web-1", "web", "10.1.0.1"));
    api.put(Kind::Pod, pod("shop", "db-1", "db", "10.1.0.2"));
    api.put(Kind::NetworkPolicy, policy("shop", "db", "db", 5432));
    api
}
