//! From the types of the Kubernetes API to those of this crate: the only module that knows k8s-openapi.
//!
//! Pure. Every conversion validates as the API server does and returns all errors of the object, each with its field
//! path. An object without `metadata.namespace` is in [`DEFAULT_NAMESPACE`], as `kubectl` has it.

mod cidr;
mod field;
mod metadata;
mod names;
mod network_policy;
mod objects;
mod pod;
mod service;
mod workload;

#[cfg(test)]
mod tests;

pub use field::{FieldError, FieldPath, Path, Segment};
pub use network_policy::network_policy;
pub use objects::{namespace, node};
pub use pod::{PodTemplate, pod};
pub use service::service;
pub use workload::{
    WorkloadObject, cron_job, daemon_set, deployment, job, replica_set, replication_controller, stateful_set,
};

/// The namespace of an object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";
