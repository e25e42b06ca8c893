//! The objects of the API server, their versions and their history.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::faults::{Faults, Verb};

/// Changes that are remembered for each kind.
const HISTORY: usize = 20_000;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Namespace,
    Node,
    Pod,
    NetworkPolicy,
    Service,
    /// Of `events.k8s.io`.
    Event,
}

impl Kind {
    /// Those that the agent watches.
    pub(crate) const ALL: [Kind; 4] = [Kind::Namespace, Kind::Node, Kind::Pod, Kind::NetworkPolicy];
    pub(super) const SERVED: [Kind; 6] = [
        Kind::Namespace,
        Kind::Node,
        Kind::Pod,
        Kind::NetworkPolicy,
        Kind::Service,
        Kind::Event,
    ];

    /// Its name in URLs and in RBAC.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Kind::Namespace => "namespaces",
            Kind::Node => "nodes",
            Kind::Pod => "pods",
            Kind::NetworkPolicy => "networkpolicies",
            Kind::Service => "services",
            Kind::Event => "events",
        }
    }

    /// Its API group in RBAC.
    pub(crate) fn group(self) -> &'static str {
        match self {
            Kind::NetworkPolicy => "networking.k8s.io",
            Kind::Event => "events.k8s.io",
            _ => "",
        }
    }

    pub(crate) fn api_version(self) -> &'static str {
        match self {
            Kind::NetworkPolicy => "networking.k8s.io/v1",
            Kind::Event => "events.k8s.io/v1",
            _ => "v1",
        }
    }

    pub(crate) fn is_namespaced(self) -> bool {
        matches!(self, Kind::Pod | Kind::NetworkPolicy | Kind::Service | Kind::Event)
    }
}

/// A call that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) verb: Verb,
    pub(crate) kind: Kind,
    /// The part of the URL after the question mark.
    pub(crate) query: String,
}

pub(super) struct State {
    version: u64,
    objects: BTreeMap<Kind, BTreeMap<Name, Arc<str>>>,
    history: BTreeMap<Kind, VecDeque<Change>>,
    /// The newest version whose change is not in the history any more.
    dropped: BTreeMap<Kind, u64>,
    /// A watch that begins at an earlier version than this is refused; those that are there already go on.
    compacted: u64,
    /// Lists that are read page by page: all of them as they stood when the first page was asked for.
    pub(super) snapshots: HashMap<u64, (u64, Vec<Arc<str>>)>,
    pub(super) faults: Faults,
    pub(super) calls: Vec<Call>,
    pub(super) streaming: bool,
    pub(super) outage: bool,
    pub(super) silent: bool,
    /// Whether answers that were held go out.
    pub(super) let_go: bool,
    pub(super) duplicates: bool,
    pub(super) held: BTreeSet<Kind>,
    /// Watches of earlier generations are cut.
    pub(super) generation: u64,
    pub(super) bookmark_every: Duration,
    /// Values of the header `Authorization`; none means that nobody asks.
    pub(super) authorized: Vec<String>,
}

type Name = (String, String);

/// One change, as watches tell it.
#[derive(Clone)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) what: &'static str,
    pub(super) name: Arc<str>,
    pub(super) object: Arc<str>,
}

impl Default for State {
    fn default() -> Self {
        State {
            version: 100,
            objects: BTreeMap::new(),
            history: BTreeMap::new(),
            dropped: BTreeMap::new(),
            compacted: 0,
            snapshots: HashMap::new(),
            faults: Faults::default(),
            calls: Vec::new(),
            streaming: true,
            outage: false,
            silent: false,
            let_go: false,
            duplicates: false,
            held: BTreeSet::new(),
            generation: 0,
            bookmark_every: Duration::from_secs(1),
            authorized: Vec::new(),
        }
    }
}

impl State {
    /// The newest version.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// All objects of a kind.
    pub(super) fn all(&self, kind: Kind) -> Vec<Arc<str>> {
        self.select(kind, None)
    }

    /// All objects of a kind, or those of one name.
    pub(super) fn select(&self, kind: Kind, only: Option<&str>) -> Vec<Arc<str>> {
        let objects = self.objects.get(&kind).into_iter().flatten();
        let chosen = objects.filter(|((_, name), _)| only.is_none_or(|only| only == name));
        chosen.map(|(_, object)| object.clone()).collect()
    }

    pub(super) fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<str>> {
        let objects = self.objects.get(&kind)?;
        objects.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Adds or replaces an object, and returns it as it is now.
    pub(super) fn put(&mut self, kind: Kind, mut object: Value) -> Arc<str> {
        self.version += 1;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &object["metadata"];
        let name = (text(&metadata["namespace"]), text(&metadata["name"]));
        object["apiVersion"] = json!(kind.api_version());
        object["kind"] = json!(format!("{kind:?}"));
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if kind == Kind::NetworkPolicy {
            self.identify(&name, &mut object);
        }
        let object: Arc<str> = object.to_string().into();
        let short: Arc<str> = name.1.as_str().into();
        let before = self.objects.entry(kind).or_default().insert(name, object.clone());
        let what = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.remember(kind, what, short, object.clone());
        object
    }

    /// Of policies clients ask which they are, and which version of the spec.
    fn identify(&self, name: &Name, object: &mut Value) {
        let before = self.get(Kind::NetworkPolicy, &name.0, &name.1);
        let (uid, generation) = match before.and_then(|text| serde_json::from_str::<Value>(&text).ok()) {
            Some(before) => {
                let changed = i64::from(before["spec"] != object["spec"]);
                let generation = before["metadata"]["generation"].as_i64().unwrap_or_default() + changed;
                (before["metadata"]["uid"].clone(), generation)
            }
            None => (json!(format!("00000000-0000-4000-8000-{:012x}", self.version)), 1),
        };
        object["metadata"]["uid"] = uid;
        object["metadata"]["generation"] = json!(generation);
    }

    pub(super) fn delete(&mut self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<str>> {
        let objects = self.objects.entry(kind).or_default();
        let object = objects.remove(&(namespace.to_owned(), name.to_owned()))?;
        self.version += 1;
        let mut object: Value = serde_json::from_str(&object).unwrap();
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object: Arc<str> = object.to_string().into();
        self.remember(kind, "DELETED", name.into(), object.clone());
        Some(object)
    }

    /// Forgets all changes, for watches that are yet to begin.
    pub(super) fn compact(&mut self) {
        // As in a real server, something has always happened since.
        self.version += 1;
        self.compacted = self.version;
    }

    /// Whether a watch can begin at a version.
    pub(super) fn knows(&self, kind: Kind, version: u64) -> bool {
        version >= self.compacted && self.since(kind, version).is_some()
    }

    /// The changes of a kind after a version, or none when they are forgotten.
    pub(super) fn since(&self, kind: Kind, version: u64) -> Option<Vec<Change>> {
        if version < self.dropped.get(&kind).copied().unwrap_or_default() {
            return None;
        }
        let Some(history) = self.history.get(&kind) else {
            return Some(Vec::new());
        };
        let first = history.partition_point(|change| change.version <= version);
        Some(history.range(first..).cloned().collect())
    }

    fn remember(&mut self, kind: Kind, what: &'static str, name: Arc<str>, object: Arc<str>) {
        let history = self.history.entry(kind).or_default();
        history.push_back(Change {
            version: self.version,
            what,
            name,
            object,
        });
        if history.len() > HISTORY
            && let Some(oldest) = history.pop_front()
        {
            self.dropped.insert(kind, oldest.version);
        }
    }
}
