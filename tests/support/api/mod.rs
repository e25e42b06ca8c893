//! An API server inside the test: real HTTP on the loopback interface, objects that tests change, and faults by name.
//!
//! It speaks as much of the protocol as a client that watches can tell from the real one: lists in pages, watches, streaming
//! lists, versions and their expiry, bookmarks, single objects. It checks no object: what is put is what is told.

mod faults;
mod serve;
mod state;
mod tls;
mod watch;
mod wire;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch as signal;
use tokio::task::JoinHandle;
use tokio_rustls::rustls::ServerConfig;

pub(crate) use faults::{Fault, Verb};
use state::State;
pub(crate) use state::{Call, Kind};
#[allow(unused_imports, reason = "not every test needs certificates")]
pub(crate) use tls::{Authority, Identity};
use wire::Wire;
#[allow(unused_imports, reason = "not every test needs them")]
pub(crate) use wire::{Flow, Seen};

/// One of all Events that say the same each hour, as long as it lasts: their names differ in nothing but the hour at the end.
pub(crate) fn but_for_the_hour(events: Vec<Value>) -> Vec<Value> {
    let name = |event: &Value| event["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let hourless = |event: &Value| name(event).rsplit_once('-').map(|(rest, _)| rest.to_owned());
    let events: BTreeMap<_, _> = events.into_iter().map(|event| (hourless(&event), event)).collect();
    events.into_values().collect()
}

/// A running API server; it ends when this is dropped.
pub(crate) struct Api {
    inner: Inner,
    address: SocketAddr,
    server: JoinHandle<()>,
    /// With TLS: what is below HTTP.
    wire: Option<(Wire, JoinHandle<()>)>,
}

/// What handlers share.
#[derive(Clone)]
struct Inner {
    state: Arc<Mutex<State>>,
    /// Raised by everything that a watch may have to act on.
    changed: Arc<signal::Sender<u64>>,
}

impl Inner {
    fn new() -> Self {
        Inner {
            state: Arc::new(Mutex::new(State::default())),
            changed: Arc::new(signal::channel(0).0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.send_modify(|count| *count += 1);
        result
    }

    /// Waits until answers that are held may go.
    async fn let_go(&self) {
        let mut changed = self.changed.subscribe();
        while !self.state().let_go && changed.changed().await.is_ok() {}
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.server.abort();
        if let Some((wire, task)) = &self.wire {
            task.abort();
            wire.reset();
        }
        // Watches that are being served end as well.
        self.inner.change(|state| state.generation += 1);
    }
}

impl Api {
    /// Starts one, empty.
    pub(crate) async fn start() -> Api {
        let inner = Inner::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = serve::router(inner.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Api {
            inner,
            address,
            server,
            wire: None,
        }
    }

    /// Starts one with TLS, empty, on an address of this machine.
    pub(crate) async fn start_tls(address: &str, tls: Arc<ServerConfig>) -> Api {
        let inner = Inner::new();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let wire = Wire::new(tls);
        let (connections, listening) = wire.clone().listen(listener);
        let router = serve::router(inner.clone());
        let server = tokio::spawn(async move { axum::serve(connections, router).await.unwrap() });
        Api {
            inner,
            address,
            server,
            wire: Some((wire, listening)),
        }
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.wire.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    fn wire(&self) -> &Wire {
        &self.wire.as_ref().expect("a server with TLS").0
    }

    /// What it is to new connections.
    pub(crate) fn set_server(&self, tls: Arc<ServerConfig>) {
        self.wire().set_server(tls);
    }

    /// What happens to connections from now on.
    pub(crate) fn set_flow(&self, flow: Flow) {
        self.wire().set_flow(flow);
    }

    /// Ends all connections with a TCP reset.
    pub(crate) fn reset(&self) {
        self.wire().reset();
    }

    /// The connections so far.
    pub(crate) fn seen(&self) -> Seen {
        self.wire().seen()
    }

    /// A client of its own for the test.
    pub(crate) fn client(&self) -> Client {
        Client::try_from(Config::new(self.url().parse().unwrap())).unwrap()
    }

    /// A kubeconfig for it: a token file, if any, is read by the client again and again.
    pub(crate) fn kubeconfig(&self, token_file: Option<&std::path::Path>) -> String {
        let user = token_file.map_or_else(|| json!({}), |file| json!({"tokenFile": file}));
        self.kubeconfig_of(json!({}), user)
    }

    /// A kubeconfig for it with these fields of the cluster, and this user.
    pub(crate) fn kubeconfig_of(&self, mut cluster: Value, user: Value) -> String {
        if cluster.get("server").is_none() {
            cluster["server"] = json!(self.url());
        }
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        kubeconfig.to_string()
    }

    /// Adds or replaces an object, whatever it is.
    pub(crate) fn put(&self, kind: Kind, object: Value) {
        self.inner.change(|state| state.put(kind, object));
    }

    /// Adds or replaces an object that serialises.
    pub(crate) fn put_object(&self, kind: Kind, object: &impl serde::Serialize) {
        self.put(kind, serde_json::to_value(object).unwrap());
    }

    /// Removes an object; whether it was there.
    pub(crate) fn delete(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        self.inner.change(|state| state.delete(kind, namespace, name)).is_some()
    }

    /// Forgets all history: who was not up to date must list again.
    pub(crate) fn compact(&self) {
        self.inner.change(State::compact);
    }

    /// The next so many requests of a kind meet a fault.
    pub(crate) fn fault(&self, kind: Kind, verb: Verb, times: usize, fault: Fault) {
        self.inner.change(|state| state.faults.add(kind, verb, times, fault));
    }

    /// Lets all answers go that are held, and those to come.
    pub(crate) fn let_go(&self) {
        self.inner.change(|state| state.let_go = true);
    }

    /// Faults that nobody has met yet.
    pub(crate) fn faults_left(&self) -> usize {
        self.inner.state().faults.left()
    }

    /// Whether it knows streaming lists; a server that does not takes their parameters for errors.
    pub(crate) fn set_streaming(&self, streaming: bool) {
        self.inner.change(|state| state.streaming = streaming);
    }

    /// Whether every request is refused with status 503, and every watch cut.
    pub(crate) fn set_outage(&self, outage: bool) {
        self.inner.change(|state| {
            state.outage = outage;
            state.generation += u64::from(outage);
        });
    }

    /// Whether it goes silent: connections stay, requests are accepted, and nothing is ever answered.
    pub(crate) fn set_silent(&self, silent: bool) {
        self.inner.change(|state| state.silent = silent);
    }

    /// Cuts the connections of all watches.
    pub(crate) fn cut(&self) {
        self.inner.change(|state| state.generation += 1);
    }

    /// Whether the events of a kind are held back. Between kinds the API promises no order.
    pub(crate) fn hold(&self, kind: Kind, hold: bool) {
        self.inner.change(|state| {
            if hold {
                state.held.insert(kind);
            } else {
                state.held.remove(&kind);
            }
        });
    }

    /// Whether every event is told twice.
    pub(crate) fn set_duplicates(&self, duplicates: bool) {
        self.inner.change(|state| state.duplicates = duplicates);
    }

    /// How often a watch gets a bookmark.
    pub(crate) fn set_bookmarks(&self, every: Duration) {
        self.inner.change(|state| state.bookmark_every = every);
    }

    /// Only requests with this bearer token are served; all watches are cut.
    pub(crate) fn set_token(&self, token: Option<&str>) {
        self.set_tokens(token.as_slice());
        self.cut();
    }

    /// Only requests with one of these bearer tokens are served; with none, all are.
    pub(crate) fn set_tokens(&self, tokens: &[&str]) {
        self.set_authorized(tokens.iter().map(|token| format!("Bearer {token}")).collect());
    }

    /// Only requests whose header `Authorization` is one of these are served; with none, all are.
    pub(crate) fn set_authorized(&self, values: Vec<String>) {
        self.inner.change(|state| state.authorized = values);
    }

    /// All calls so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.inner.state().calls.clone()
    }

    /// How many calls there were so far, of a kind and a verb.
    pub(crate) fn count(&self, kind: Kind, verb: Verb) -> usize {
        let state = self.inner.state();
        state.calls.iter().filter(|c| c.kind == kind && c.verb == verb).count()
    }

    /// All objects of a kind as they stand.
    pub(crate) fn objects(&self, kind: Kind) -> Vec<Value> {
        let objects = self.inner.state().all(kind);
        objects.iter().map(|text| serde_json::from_str(text).unwrap()).collect()
    }
}
