//! The kinds that are read: bytes of an object go in, the compiler's type or what is wrong with the object comes out.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use k8s_openapi::api::core::v1;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use policy_compiler::cluster::{Cluster, Namespace, Node, Pod, PodName, Service};
use policy_compiler::compile::Event;
use policy_compiler::convert::{self, FieldError, FieldWarning};
use policy_compiler::diagnostics::ObjectName;
use policy_compiler::labels::Name;
use policy_compiler::policy::{Policy, PolicyName, Tier};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::intern::Pool;
use super::limits;
use super::partial::{self, Meta};
use super::salvage;
use crate::manifests::LINT_IGNORE_ANNOTATION;

/// A kind of the API that is read.
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
    /// `services`; not watched, for policy never sees one
    Services,
}

impl Resource {
    /// All that are watched.
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
            Resource::Services => "/api/v1/services",
        }
    }

    /// The API group in RBAC; empty for the core.
    pub fn group(self) -> &'static str {
        let group = self.path().strip_prefix("/apis/").and_then(|p| p.split('/').next());
        group.unwrap_or_default()
    }

    /// Whether its objects are in namespaces.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Resource::Namespaces | Resource::Nodes)
    }

    /// The kind of one object.
    pub fn kind(self) -> &'static str {
        match self {
            Resource::Namespaces => "Namespace",
            Resource::Nodes => "Node",
            Resource::NetworkPolicies => "NetworkPolicy",
            Resource::Pods => "Pod",
            Resource::Services => "Service",
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
            Resource::Services => "services",
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

    /// The name of the object, with its kind.
    pub(super) fn object(&self, kind: &str) -> ObjectName {
        ObjectName {
            kind: kind.into(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
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

/// Which object of all that ever had its name, and which version of its spec: what an Event about it must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `metadata.uid`
    pub uid: Arc<str>,
    /// `metadata.generation`
    pub generation: i64,
}

impl Identity {
    fn of(meta: &Meta) -> Option<Self> {
        Some(Identity {
            uid: meta.uid.as_deref()?.into(),
            generation: meta.generation.unwrap_or_default(),
        })
    }
}

/// What an object says, or what is wrong with it.
pub(super) type Converted<O> = Result<Found<O>, Vec<FieldError>>;

/// What an object says.
pub(super) struct Found<O> {
    pub(super) object: O,
    /// What of it is not heeded.
    pub(super) odd: Option<Oddity>,
    /// What of it is heeded and yet hardly meant.
    pub(super) doubts: Vec<FieldWarning>,
}

impl<O> Found<O> {
    fn whole(object: O) -> Self {
        Found {
            object,
            odd: None,
            doubts: Vec::new(),
        }
    }
}

/// What of an object is not heeded.
pub(super) struct Oddity {
    pub(super) message: String,
    /// What is done instead.
    pub(super) remedy: &'static str,
}

/// A kind, as far as it differs from the others.
pub(super) trait Kind: Send + Sync + 'static {
    const RESOURCE: Resource;
    /// What is read off the wire.
    type Wire: DeserializeOwned + Send;
    /// What is kept.
    type Object: PartialEq + Send + Sync;

    fn meta(wire: &Self::Wire) -> &Meta;
    fn convert(wire: Self::Wire, pool: &mut Pool) -> Converted<Self::Object>;
    /// What of an object that cannot be read is safer kept than left out.
    fn salvage(_object: &[u8]) -> Option<Self::Object> {
        None
    }
    fn add(cluster: &mut Cluster, object: Self::Object);
}

/// A kind that a table is made of, so that a change of it is an event.
pub(super) trait Watched: Kind {
    fn event(object: Arc<Self::Object>) -> Event;
    fn gone(key: &Key) -> Event;
}

/// An object that has been read, or has not.
pub(super) struct Read<O> {
    pub(super) key: Key,
    /// None when the API server does not say.
    pub(super) identity: Option<Identity>,
    pub(super) outcome: Outcome<O>,
    /// What of it is accepted and yet hardly meant.
    pub(super) doubts: Vec<FieldWarning>,
    /// What its annotation [`LINT_IGNORE_ANNOTATION`] says.
    pub(super) lint_ignore: Option<String>,
}

/// An object and what of it is not heeded, or what is wrong with it.
pub(super) type Outcome<O> = Result<(O, Option<Oddity>), Unreadable<O>>;

/// What is wrong with an object.
pub(super) struct Unreadable<O> {
    pub(super) message: String,
    pub(super) salvaged: Option<O>,
}

impl<O> Unreadable<O> {
    /// What is done in place of what the object says, when nothing better is known of it.
    pub(super) fn remedy(&self) -> &'static str {
        match self.salvaged {
            Some(_) => "it isolates its pods, and its rules that can be read are in force",
            None => "it is left out",
        }
    }
}

/// Converts an object that has been decoded; `text` is what it was decoded from.
pub(super) fn read<K: Kind>(wire: K::Wire, text: impl FnOnce() -> Vec<u8>, pool: &mut Pool) -> Option<Read<K::Object>> {
    let key = Key::of(K::meta(&wire))?;
    let identity = Identity::of(K::meta(&wire));
    let annotations = K::meta(&wire).annotations.as_ref();
    let lint_ignore = annotations.and_then(|a| a.get(LINT_IGNORE_ANNOTATION)).cloned();
    let checked = limits::check(K::meta(&wire));
    // A conversion that panics is a defect of ours, and must cost one object and not the watch.
    let converted = checked.and_then(|()| {
        let converted = catch_unwind(AssertUnwindSafe(|| K::convert(wire, pool)));
        let converted =
            converted.map_err(|_| "reading it failed in an unexpected way (please report this)".to_owned())?;
        converted.map_err(|errors| limits::sentence(&errors))
    });
    let (outcome, doubts) = match converted {
        Ok(Found { object, odd, doubts }) => (Ok((object, odd)), doubts),
        Err(message) => {
            let salvaged = K::salvage(&text());
            (Err(Unreadable { message, salvaged }), Vec::new())
        }
    };
    Some(Read {
        key,
        identity,
        outcome,
        doubts,
        lint_ignore,
    })
}

/// What can be said of an object that cannot be decoded; none when it has no name.
pub(super) fn unreadable<K: Kind>(text: &[u8], error: &serde_json::Error) -> Option<Read<K::Object>> {
    let meta = serde_json::from_slice::<Bare>(text).ok()?.meta();
    Some(Read {
        key: Key::of(&meta)?,
        identity: Identity::of(&meta),
        outcome: Err(Unreadable {
            // It may quote all of a value.
            message: limits::line(&error.to_string()),
            salvaged: K::salvage(text),
        }),
        doubts: Vec::new(),
        lint_ignore: None,
    })
}

/// The name and the version of any object, whatever else is wrong with it.
#[derive(Debug, Deserialize)]
pub(super) struct Bare {
    metadata: BareMeta,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BareMeta {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    uid: Option<String>,
    generation: Option<i64>,
}

impl Bare {
    /// `metadata` with nothing else in it.
    pub(super) fn meta(&self) -> Meta {
        Meta {
            name: self.metadata.name.clone(),
            namespace: self.metadata.namespace.clone(),
            resource_version: self.metadata.resource_version.clone(),
            uid: self.metadata.uid.clone(),
            generation: self.metadata.generation,
            ..Meta::default()
        }
    }

    pub(super) fn key(&self) -> Option<Key> {
        Key::of(&self.meta())
    }
}

/// A mode that is none: the conversion has taken it for enforcement.
fn no_mode(metadata: &ObjectMeta, remedy: &'static str) -> Option<Oddity> {
    let error = convert::enforcement(metadata).err()?;
    Some(Oddity {
        message: limits::sentence(&[error]),
        remedy,
    })
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

    fn convert(wire: Self::Wire, _: &mut Pool) -> Converted<Namespace> {
        let object = v1::Namespace::from(wire);
        let odd = no_mode(
            &object.metadata,
            "its policies are enforced, but for those that say otherwise",
        );
        Ok(Found {
            object: convert::namespace(&object)?,
            odd,
            doubts: Vec::new(),
        })
    }

    fn add(cluster: &mut Cluster, object: Namespace) {
        cluster.add_namespace(object);
    }
}

impl Watched for Namespaces {
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

    fn convert(wire: Self::Wire, _: &mut Pool) -> Converted<Node> {
        convert::node(&wire.into()).map(Found::whole)
    }

    fn add(cluster: &mut Cluster, object: Node) {
        cluster.add_node(object);
    }
}

impl Watched for Nodes {
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

    fn convert(wire: Self::Wire, _: &mut Pool) -> Converted<Policy> {
        let object = NetworkPolicy::from(wire);
        let odd = no_mode(&object.metadata, "it is enforced");
        let (object, doubts) = convert::network_policy(&object)?;
        Ok(Found { object, odd, doubts })
    }

    fn salvage(object: &[u8]) -> Option<Policy> {
        catch_unwind(|| salvage::policy(object)).ok()?
    }

    fn add(cluster: &mut Cluster, object: Policy) {
        cluster.add_policy(object);
    }
}

impl Watched for Policies {
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

    fn convert(wire: Self::Wire, pool: &mut Pool) -> Converted<Pod> {
        let pod = convert::pod(&wire.into())?;
        Ok(Found::whole(pool.pod(pod)))
    }

    fn add(cluster: &mut Cluster, object: Pod) {
        cluster.add_pod(object);
    }
}

impl Watched for Pods {
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

/// Services.
pub(super) struct Services;

impl Kind for Services {
    const RESOURCE: Resource = Resource::Services;
    type Wire = partial::Service;
    type Object = Service;

    fn meta(wire: &Self::Wire) -> &Meta {
        &wire.metadata
    }

    fn convert(wire: Self::Wire, _: &mut Pool) -> Converted<Service> {
        convert::service(&wire.into()).map(Found::whole)
    }

    fn add(cluster: &mut Cluster, object: Service) {
        cluster.add_service(object);
    }
}
