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

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::labels::Selector;

pub use field::{FieldError, FieldPath, Path, Segment};
pub use metadata::{annotations, enforcement};
pub use names::port_name;
pub use network_policy::{FieldWarning, network_policy};
pub use objects::{namespace, node};
pub use pod::{PodTemplate, pod};
pub use service::service;
pub use workload::{
    WorkloadObject, cron_job, daemon_set, deployment, job, replica_set, replication_controller, stateful_set,
};

/// The namespace of an object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Converts a label selector that stands alone, outside of any object of the API.
///
/// # Errors
/// A malformed key or value, an operator that there is not, values where they do not belong.
pub fn label_selector(selector: &LabelSelector) -> Result<Selector, Vec<FieldError>> {
    let mut errors = field::Errors::default();
    let converted = metadata::selector(Some(selector), &Path::Root, &mut errors);
    errors.finish(converted)
}
