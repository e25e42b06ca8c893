//! The kinds that are watched: bytes of an object go in, the compiler's type or what is wrong with the object comes out.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use policy_compiler::cluster::{Namespace, Node, Pod, PodName};
use policy_compiler::compile::Event;
use policy_compiler::convert::{self, FieldError};
use policy_compiler::labels::Name;
use policy_compiler::policy::{Policy, PolicyName, Tier};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::intern::Pool;
use super::limits;
use super::partial::{self, Meta};
use super::salvage;

/// A kind of the API that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// `namespaces`
    Namespaces,
    /// `nodes`
    Nodes,
    /// `networkpolicies`
    NetworkPolicies,
    /// `pods`
    Pods,
}

impl Resource {
    /// All of them.
    pub const ALL: [Resource; 4] = [
        Resource::Namespaces,
        Resource::Nodes,
        Resource::NetworkPolicies,
        Resource::Pods,
    ];

    /// The path of the collection on the API server.
    pub fn path(self) -> &'static str {
        match self {
            Resource::Namespaces => "/api/v1/namespaces",
            Resource::Nodes => "/api/v1/nodes",
            Resource::NetworkPolicies => "/apis/networking.k8s.io/v1/networkpolicies",
            Resource::Pods => "/api/v1/pods",
        }
    }

    /// The kind of one object.
    pub fn kind(self) -> &'static str {
        match self {
            Resource::Namespaces => "Namespace",
            Resource::Nodes => "Node",
            Resource::NetworkPolicies => "NetworkPolicy",
            Resource::Pods => "Pod",
        }
    }
}

impl fmt::Display for Resource {
    /// As RBAC names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Resource::Namespaces => "namespaces",
            Resource::Nodes => "nodes",
            Resource::NetworkPolicies => "networkpolicies",
            Resource::Pods => "pods",
        })
    }
}

/// Which object of a kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    /// None for kinds that are in no namespace.
    pub(super) namespace: Option<Name>,
    pub(super) name: Name,
}

impl Key {
    fn of(meta: &Meta) -> Option<Self> {
        let filled = |text: &Option<String>| text.as_deref().filter(|t| !t.is_empty()).map(Name::from);
        Some(Key {
            namespace: filled(&meta.namespace),
            name: filled(&meta.name)?,
        })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An object that breaks the rules of names must neither flood the log nor write lines of its own into it.
        if let Some(namespace) = &self.namespace {
            write!(f, "{}/", limits::line(namespace))?;
        }
        f.write_str(&limits::line(&self.name))
    }
}

/// A kind, as far as it differs from the others.
pub(super) trait Kind: Send + Sync + 'static {
    const RESOURCE: Resource;
    /// What is read off the wire.
    type Wire: DeserializeOwned + Send;
    /// What is kept.
    type Object: PartialEq + Send + Sync;

    fn meta(wire: &Self::Wire) -> &Meta;
    fn convert(wire: Self::Wire, pool: &mut Pool) -> Result<Self::Object, Vec<FieldError>>;
    /// What of an object that cannot be read is safer kept than left out.
    fn salvage(_object: &[u8]) -> Option<Self::Object> {
        None
    }
    fn event(object: Arc<Self::Object>) -> Event;
    fn gone(key: &Key) -> Event;
}

/// An object that has been read, or has not.
pub(super) struct Read<O> {
    pub(super) key: Key,
    pub(super) outcome: Result<O, Unreadable<O>>,
}

/// What is wrong with an object.
pub(super) struct Unreadable<O> {
    pub(super) message: String,
    pub(super) salvaged: Option<O>,
}

/// Converts an object that has been decoded; `text` is what it was decoded from.
pub(super) fn read<K: Kind>(wire: K::Wire, text: impl FnOnce() -> Vec<u8>, pool: &mut Pool) -> Option<Read<K::Object>> {
    let key = Key::of(K::meta(&wire))?;
    let checked = limits::check(K::meta(&wire));
    // A conversion that panics is a defect of ours, and must cost one object and not the watch.
    let converted = checked.and_then(|()| {
        let converted = catch_unwind(AssertUnwindSafe(|| K::convert(wire, pool)));
        let converted =
            converted.map_err(|_| "reading it failed in an unexpected way (please report this)".to_owned())?;
        converted.map_err(|errors| limits::sentence(&errors))
    });
    let outcome = converted.map_err(|message| Unreadable {
        message,
        salvaged: K::salvage(&text()),
    });
    Some(Read { key, outcome })
}

/// What can be said of an object that cannot be decoded; none when it has no name.
pub(super) fn unreadable<K: Kind>(text: &[u8], error: &serde_json::Error) -> Option<Read<K::Object>> {
    let identity: Identity = serde_json::from_slice(text).ok()?;
    Some(Read {
        key: Key::of(&identity.meta())?,
        outcome: Err(Unreadable {
            // It may quote all of a value.
            message: limits::line(&error.to_string()),
            salvaged: K::salvage(text),
        }),
    })
}

/// The name and the version of any object, whatever else is wrong with it.
#[derive(Debug, Deserialize)]
pub(super) struct Identity {
    metadata: IdentityMeta,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IdentityMeta {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
}

impl Identity {
    /// `metadata` with nothing else in it.
    pub(super) fn meta(&self) -> Meta {
        Meta {
            name: self.metadata.name.clone(),
            namespace: self.metadata.namespace.clone(),
            resource_version: self.metadata.resource_version.clone(),
            ..Meta::default()
        }
    }

    pub(super) fn key(&self) -> Option<Key> {
        Key::of(&self.meta())
    }
}

/// Namespaces.
pub(super) struct Namespaces;

impl Kind for Namespaces {
    const RESOURCE: Resource = Resource::Namespaces;
    type Wire = partial::Namespace;
    type Object = Namespace;

    fn meta(wire: &Self::Wire) -> &Meta {
        &wire.metadata
    }

    fn convert(wire: Self::Wire, _: &mut Pool) -> Result<Namespace, Vec<FieldError>> {
        convert::namespace(&wire.into())
    }

    fn event(object: Arc<Namespace>) -> Event {
        Event::Namespace(object)
    }

    fn gone(key: &Key) -> Event {
        Event::NamespaceGone(key.name.clone())
    }
}

/// Nodes.
pub(super) struct Nodes;

impl Kind for Nodes {
    const RESOURCE: Resource = Resource::Nodes;
    type Wire = partial::Node;
    type Object = Node;

    fn meta(wire: &Self::Wire) -> &Meta {
        &wire.metadata
    }

    fn convert(wire: Self::Wire, _: &mut Pool) -> Result<Node, Vec<FieldError>> {
        convert::node(&wire.into())
    }

    fn event(object: Arc<Node>) -> Event {
        Event::Node(object)
    }

    fn gone(key: &Key) -> Event {
        Event::NodeGone(key.name.clone())
    }
}

/// NetworkPolicies.
pub(super) struct Policies;

impl Kind for Policies {
    const RESOURCE: Resource = Resource::NetworkPolicies;
    type Wire = partial::Policy;
    type Object = Policy;

    fn meta(wire: &Self::Wire) -> &Meta {
        &wire.metadata
    }

    fn convert(wire: Self::Wire, _: &mut Pool) -> Result<Policy, Vec<FieldError>> {
        convert::network_policy(&wire.into()).map(|(policy, _)| policy)
    }

    fn salvage(object: &[u8]) -> Option<Policy> {
        catch_unwind(|| salvage::policy(object)).ok()?
    }

    fn event(object: Arc<Policy>) -> Event {
        Event::Policy(object)
    }

    fn gone(key: &Key) -> Event {
        let name = PolicyName {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        };
        Event::PolicyGone(Tier::NetworkPolicy, name)
    }
}

/// Pods.
pub(super) struct Pods;

impl Kind for Pods {
    const RESOURCE: Resource = Resource::Pods;
    type Wire = partial::Pod;
    type Object = Pod;

    fn meta(wire: &Self::Wire) -> &Meta {
        &wire.metadata
    }

    fn convert(wire: Self::Wire, pool: &mut Pool) -> Result<Pod, Vec<FieldError>> {
        let pod = convert::pod(&wire.into())?;
        Ok(pool.pod(pod))
    }

    fn event(object: Arc<Pod>) -> Event {
        Event::Pod(object)
    }

    fn gone(key: &Key) -> Event {
        Event::PodGone(PodName {
            namespace: key.namespace.clone().unwrap_or_default(),
            name: key.name.clone(),
        })
    }
}
