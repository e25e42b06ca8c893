//! The kinds that make pods: Deployment, StatefulSet, DaemonSet, ReplicaSet, ReplicationController, Job and CronJob.

use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::api::core::v1::{PodTemplateSpec, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::field::{Errors, FieldError, Path};
use super::pod::{PodTemplate, owner, template};
use super::{metadata, names};
use crate::cluster::Workload;
use crate::labels::{Name, Selector};

/// A workload object, as far as policy is concerned with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadObject {
    /// `metadata.namespace`.
    pub namespace: Name,
    /// Its kind and name.
    pub workload: Workload,
    /// The workload that controls it, such as the Deployment of a ReplicaSet.
    pub owner: Option<Workload>,
    /// How many pods it asks for (`replicas`, or the `parallelism` of a job), when it says so.
    pub replicas: Option<u32>,
    /// Which pods are its own; none for kinds whose selector the API server writes.
    pub selector: Option<Selector>,
    /// What its pods look like.
    pub template: PodTemplate,
}

/// Converts a Deployment.
///
/// # Errors
/// A malformed name, label, port or selector, and a selector that does not match the template.
pub fn deployment(object: &apps::Deployment) -> Result<WorkloadObject, Vec<FieldError>> {
    let spec = &object.spec;
    let mut reader = Reader::new("deployment", &object.metadata);
    reader.count(spec.replicas, &SPEC.field("replicas"));
    reader.select(&spec.selector);
    reader.finish(Some(&spec.template))
}

/// Converts a StatefulSet.
///
/// # Errors
/// As [`deployment`].
pub fn stateful_set(object: &apps::StatefulSet) -> Result<WorkloadObject, Vec<FieldError>> {
    let spec = &object.spec;
    let mut reader = Reader::new("statefulset", &object.metadata);
    reader.count(spec.replicas, &SPEC.field("replicas"));
    reader.select(&spec.selector);
    reader.finish(Some(&spec.template))
}

/// Converts a DaemonSet.
///
/// # Errors
/// As [`deployment`].
pub fn daemon_set(object: &apps::DaemonSet) -> Result<WorkloadObject, Vec<FieldError>> {
    let spec = &object.spec;
    let mut reader = Reader::new("daemonset", &object.metadata);
    reader.select(&spec.selector);
    reader.finish(Some(&spec.template))
}

/// Converts a ReplicaSet.
///
/// # Errors
/// As [`deployment`].
pub fn replica_set(object: &apps::ReplicaSet) -> Result<WorkloadObject, Vec<FieldError>> {
    let spec = &object.spec;
    let mut reader = Reader::new("replicaset", &object.metadata);
    reader.count(spec.replicas, &SPEC.field("replicas"));
    reader.select(&spec.selector);
    reader.finish(spec.template.as_ref())
}

/// Converts a ReplicationController. Its selector may be absent: then it is the labels of the template.
///
/// # Errors
/// As [`deployment`].
pub fn replication_controller(object: &ReplicationController) -> Result<WorkloadObject, Vec<FieldError>> {
    let spec = object.spec.clone().unwrap_or_default();
    let mut reader = Reader::new("replicationcontroller", &object.metadata);
    reader.count(spec.replicas, &SPEC.field("replicas"));
    if let Some(map) = spec.selector.as_ref().filter(|map| !map.is_empty()) {
        let path = SPEC.field("selector");
        reader.object.selector = Some(metadata::equality_selector(map, &path, &mut reader.errors));
    }
    let mut object = reader.finish(spec.template.as_ref())?;
    if object.selector.is_none() && !object.template.labels.is_empty() {
        object.selector = Some(Selector::labels(
            object.template.labels.iter().map(|(k, v)| (k.clone(), v.clone())),
        ));
    }
    Ok(object)
}

/// Converts a Job.
///
/// # Errors
/// As [`deployment`].
pub fn job(object: &batch::Job) -> Result<WorkloadObject, Vec<FieldError>> {
    let spec = object.spec.clone().unwrap_or_default();
    let mut reader = Reader::new("job", &object.metadata);
    reader.count(spec.parallelism, &SPEC.field("parallelism"));
    if let Some(selector) = &spec.selector {
        reader.select(selector);
    }
    reader.finish(Some(&spec.template))
}

/// Converts a CronJob.
///
/// # Errors
/// As [`deployment`].
pub fn cron_job(object: &batch::CronJob) -> Result<WorkloadObject, Vec<FieldError>> {
    let job = object.spec.job_template.spec.clone().unwrap_or_default();
    let mut reader = Reader::new("cronjob", &object.metadata);
    let job_template = SPEC.field("jobTemplate");
    let job_spec = job_template.field("spec");
    reader.count(job.parallelism, &job_spec.field("parallelism"));
    reader.finish_at(Some(&job.template), &job_spec.field("template"))
}

const SPEC: Path<'static> = Path::Field(&Path::Root, "spec");

struct Reader {
    errors: Errors,
    object: WorkloadObject,
}

impl Reader {
    fn new(kind: &str, meta: &ObjectMeta) -> Self {
        let mut errors = Errors::default();
        let (namespace, name) = metadata::namespaced(meta, names::dns_subdomain, &mut errors);
        let labels = metadata::object_labels(meta, &mut errors);
        let object = WorkloadObject {
            namespace,
            workload: Workload {
                kind: kind.into(),
                name,
            },
            owner: owner(meta, &labels),
            replicas: None,
            selector: None,
            template: PodTemplate::default(),
        };
        Reader { errors, object }
    }

    fn count(&mut self, count: Option<i32>, path: &Path<'_>) {
        self.object.replicas = count.and_then(|n| u32::try_from(n).ok());
        if let Some(number) = count.filter(|n| *n < 0) {
            self.errors.add(path, format!("{number} is negative: write 0 or more"));
        }
    }

    fn select(&mut self, selector: &LabelSelector) {
        let path = SPEC.field("selector");
        let selector = metadata::selector(Some(selector), &path, &mut self.errors);
        if selector.is_everything() {
            self.errors.add(
                &path,
                "the selector is missing or empty: write the labels of the template's pods as matchLabels",
            );
        } else {
            self.object.selector = Some(selector);
        }
    }

    fn finish(self, template: Option<&PodTemplateSpec>) -> Result<WorkloadObject, Vec<FieldError>> {
        self.finish_at(template, &SPEC.field("template"))
    }

    fn finish_at(
        mut self,
        object: Option<&PodTemplateSpec>,
        path: &Path<'_>,
    ) -> Result<WorkloadObject, Vec<FieldError>> {
        self.object.template = template(object, path, &mut self.errors);
        // A selector and labels of a job in the cluster carry its uid; they match there as well.
        if let Some(selector) = &self.object.selector
            && !selector.matches(&self.object.template.labels)
        {
            let metadata = path.field("metadata");
            self.errors.add(
                &metadata.field("labels"),
                format!("the labels of the template do not match spec.selector: make them fulfil {selector}"),
            );
        }
        self.errors.finish(self.object)
    }
}
