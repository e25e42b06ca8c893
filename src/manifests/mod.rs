//! From manifests to the compiler's [`Cluster`].
//!
//! Paths go in; a cluster comes out, or every error of every file. The steps: `files` finds the files, `yaml` and
//! `json` make trees of their text, `kinds` sorts the objects, `decode` makes them typed, `policy_compiler::convert`
//! validates and converts them, and `workloads` derives the pods that no Pod object stands for.

mod decode;
mod files;
mod json;
mod kinds;
mod overlay;
mod problem;
mod scalar;
mod template;
#[cfg(test)]
mod tests;
mod unread;
mod workloads;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::Metadata;
use k8s_openapi::api::{apps, batch, core, networking};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use policy_compiler::cluster::{Cluster, PodName};
use policy_compiler::convert::{self, DEFAULT_NAMESPACE, FieldError, FieldPath, WorkloadObject};
use policy_compiler::diagnostics::Code;
use serde::de::DeserializeOwned;

use kinds::{Class, Kind};

pub(crate) use decode::nearest;
pub use decode::{DecodeError, decode};
pub use files::{MAX_FILE_SIZE, STDIN};
pub use problem::{LoadErrors, ObjectName, Problem, Source};
pub use yaml::{Documents, Entry, MAX_ALIASED, MAX_DEPTH, Node, Position, SyntaxError, Value, documents};

/// The most malformed values that are reported of one object: nobody reads more, and each has to be found in the text.
pub const MAX_ERRORS: usize = 1000;

/// The annotation of an object that names the lint rules which are not to speak of it, separated by commas.
pub const LINT_IGNORE_ANNOTATION: &str = "palisade.dev/lint-ignore";

/// What the manifests hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    /// The cluster, with the pods that were derived from workloads.
    pub cluster: Cluster,
    /// How many objects of kinds without meaning here were passed over, by kind (`ConfigMap`,
    /// `NetworkPolicy.projectcalico.org`).
    pub skipped: BTreeMap<String, usize>,
    /// What was accepted and yet is hardly meant, sorted by file and place.
    pub warnings: Vec<Problem>,
    /// Where each object stands.
    pub sources: BTreeMap<ObjectName, Source>,
    /// The text of each NetworkPolicy as a tree, to find its fields: see [`Loaded::place`].
    pub policies: BTreeMap<ObjectName, Node>,
    /// What the annotation [`LINT_IGNORE_ANNOTATION`] of an object says, where it has one.
    pub lint_ignore: BTreeMap<ObjectName, String>,
    /// The pods that were derived from a workload, because no Pod object stands for it.
    pub derived: BTreeSet<PodName>,
    /// Files without a single byte, as a file is for a moment while somebody writes it anew.
    pub empty: Vec<String>,
}

impl Loaded {
    /// Where a field of an object stands, or the nearest thing around it that is known: the object, or for a pod that was derived its workload.
    pub fn place(&self, object: &ObjectName, field: &FieldPath) -> Option<Source> {
        let object = self.given(object);
        let mut source = self.sources.get(&object)?.clone();
        if let Some(node) = self.policies.get(&object).filter(|_| !field.is_root()) {
            source.position = Some(node.locate(field));
        }
        Some(source)
    }

    /// The object that stands in the manifests for this one: itself, or for a pod that was derived its workload.
    pub fn given(&self, object: &ObjectName) -> ObjectName {
        let pod = object.namespace.as_ref().filter(|_| &*object.kind == "Pod");
        let pod = pod.map(|namespace| PodName {
            namespace: namespace.clone(),
            name: object.name.clone(),
        });
        let derived = pod.filter(|pod| self.derived.contains(pod));
        let workload = derived.and_then(|pod| self.cluster.pods.get(&pod)?.workload.clone());
        match workload {
            Some(workload) => ObjectName {
                kind: kinds::workload(&workload.kind).into(),
                namespace: object.namespace.clone(),
                name: workload.name,
            },
            None => object.clone(),
        }
    }
}

/// Loads manifests. A path is a file, a folder (its `*.yaml`, `*.yml` and `*.json` files in all its depth, without
/// hidden ones), or `-` for standard input. A file that is reached twice is read once.
///
/// # Errors
/// Everything that is wrong with any of them: files that cannot be read, malformed YAML, unknown fields, values that
/// the API server would refuse, objects given twice.
pub fn load(paths: &[PathBuf]) -> Result<Loaded, LoadErrors> {
    let found = files::find(paths);
    let mut loader = Loader::default();
    for (file, message) in found.errors {
        loader.errors.push(whole_file(file, message));
    }
    for folder in found.empty {
        let message = "no manifest is in this folder: they are named *.yaml, *.yml or *.json";
        let warning = whole_file(folder, message.to_owned()).of(Code::EmptyFolder);
        loader.loaded.warnings.push(warning);
    }
    let first = found.files.first().map(files::File::name);
    for file in found.files {
        match file.read() {
            Ok(text) => {
                if text.is_empty() {
                    loader.loaded.empty.push(file.name().to_string());
                }
                loader.add(&file.name(), &text);
            }
            Err(message) => loader.errors.push(whole_file(file.name(), message)),
        }
    }
    // A pipe of which nothing came, or the wrong file, is not a cluster in which all is well.
    if let Some(first) = first.filter(|_| loader.loaded.sources.is_empty()) {
        let warning = whole_file(first, nothing_of_use(&loader.loaded.skipped)).of(Code::NothingOfUse);
        loader.loaded.warnings.push(warning);
    }
    loader.finish()
}

/// What is said where only objects of these kinds are given.
fn nothing_of_use(skipped: &BTreeMap<String, usize>) -> String {
    if skipped.is_empty() {
        return "no object is given: check where the manifests are to come from".to_owned();
    }
    let kinds: Vec<String> = skipped.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let build = match skipped.contains_key("Kustomization") {
        true => " (what `kubectl kustomize` makes of a folder with a kustomization.yaml)",
        false => "",
    };
    format!(
        "no object that is given is of use to policy, and these were passed over: {}; give policies, namespaces, and pods or workloads{build}",
        kinds.join(", ")
    )
}

/// A document with the name of its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The file as it was named or found.
    pub file: Arc<str>,
    /// What stands in it.
    pub node: Node,
}

/// Reads the documents of files, found as [`load`] finds them, without a look at what they mean; and what is wrong with any.
pub fn read(paths: &[PathBuf]) -> (Vec<Document>, Vec<Problem>) {
    let found = files::find(paths);
    let mut documents = Vec::new();
    let mut errors: Vec<Problem> = found.errors.into_iter().map(|(file, e)| whole_file(file, e)).collect();
    for file in found.files {
        let name: Arc<str> = file.name().into();
        match file.read() {
            Ok(text) => {
                let parsed = yaml::documents(&text);
                let problem = |e: SyntaxError| at(&name, e.position, None, None, e.message);
                errors.extend(parsed.errors.into_iter().map(problem));
                documents.extend(parsed.documents.into_iter().map(|node| Document {
                    file: name.clone(),
                    node,
                }));
            }
            Err(message) => errors.push(whole_file(file.name(), message)),
        }
    }
    (documents, errors)
}

/// Loads the manifests of one text, as [`load`] does those of a file of that name.
///
/// # Errors
/// As [`load`].
pub fn parse(file_name: &str, text: &str) -> Result<Loaded, LoadErrors> {
    let mut loader = Loader::default();
    loader.add(file_name, text);
    loader.finish()
}

#[derive(Default)]
struct Loader {
    loaded: Loaded,
    workloads: Vec<WorkloadObject>,
    errors: Vec<Problem>,
    /// Of a kind of policies that is not read and of which there are many, where the first stands that has no warning of its own.
    crowd: BTreeMap<String, Source>,
}

/// An object on its way: where it is, and what it calls itself.
struct Object<'a> {
    file: &'a Arc<str>,
    node: &'a Node,
    name: ObjectName,
}

impl Loader {
    fn add(&mut self, file_name: &str, text: &str) {
        let file: Arc<str> = file_name.into();
        let parsed = yaml::documents(text);
        for error in parsed.errors {
            self.errors.push(at(&file, error.position, None, None, error.message));
        }
        for document in &parsed.documents {
            self.document(&file, document, None);
        }
    }

    fn finish(mut self) -> Result<Loaded, LoadErrors> {
        if let Some(errors) = LoadErrors::new(std::mem::take(&mut self.errors)) {
            return Err(errors);
        }
        self.finish_unread();
        self.loaded.warnings.sort();
        self.loaded.derived = workloads::derive(&mut self.loaded.cluster, self.workloads);
        Ok(self.loaded)
    }

    /// Reads a document, or an item of a list of the given kind.
    fn document(&mut self, file: &Arc<str>, node: &Node, list: Option<Kind>) {
        let mut fail = |position, message: &str| {
            self.errors.push(at(file, position, None, None, message.to_owned()));
        };
        let Value::Map(_) = node.value else {
            return fail(
                node.position,
                "not a manifest: write a mapping with apiVersion and kind",
            );
        };
        let inherited = list.map(|k| (k.api_version(), k.name()));
        let field = |name: &str| node.get(name).and_then(Node::as_str).filter(|text| !text.is_empty());
        let api_version = field("apiVersion").or(inherited.map(|(version, _)| version));
        let kind = field("kind").or(inherited.map(|(_, kind)| kind));
        let (api_version, kind) = match (api_version, kind) {
            (Some(api_version), Some(kind)) => (api_version, kind),
            (None, None) if is_kustomization(file) => ("", "Kustomization"),
            (None, None) => return fail(node.position, "not a manifest: write apiVersion and kind, both strings"),
            (None, _) => return fail(node.position, "not a manifest: write apiVersion, a string"),
            (_, None) => return fail(node.position, "not a manifest: write kind, a string"),
        };
        match kinds::classify(api_version, kind) {
            Class::Known(kind) => self.object(file, node, kind),
            Class::List(kind) => match node.get("items").map(|items| (&items.value, items.position)) {
                Some((Value::List(items), _)) => {
                    for item in items {
                        self.document(file, item, kind);
                    }
                }
                None | Some((Value::Null, _)) => {}
                Some((_, position)) => fail(position, "items is no list: write a list of objects"),
            },
            Class::Other(kind) => *self.loaded.skipped.entry(kind).or_default() += 1,
            Class::OtherPolicy(kind) => self.unread(file, node, api_version, kind),
            Class::Wrong(field, message) => {
                let position = node.entries().iter().find(|e| &*e.key == field).map(|e| e.position);
                fail(position.unwrap_or(node.position), &message);
            }
        }
    }

    fn object(&mut self, file: &Arc<str>, node: &Node, kind: Kind) {
        let metadata = |field: &str| node.get("metadata").and_then(|m| m.get(field)).and_then(Node::as_str);
        let namespace = metadata("namespace")
            .filter(|n| !n.is_empty())
            .unwrap_or(DEFAULT_NAMESPACE);
        let name = ObjectName {
            kind: kind.name().into(),
            namespace: kind.is_namespaced().then(|| namespace.into()),
            name: metadata("name").unwrap_or_default().into(),
        };
        let object = &Object { file, node, name };
        match kind {
            Kind::Namespace => {
                let value = self.read(object, |o: &core::v1::Namespace| {
                    strict(convert::namespace(o), &o.metadata)
                });
                value.into_iter().for_each(|v| self.loaded.cluster.add_namespace(v));
            }
            Kind::Node => {
                let value = self.read(object, convert::node);
                value.into_iter().for_each(|v| self.loaded.cluster.add_node(v));
            }
            Kind::Pod => {
                let value = self.read(object, convert::pod);
                value.into_iter().for_each(|v| self.loaded.cluster.add_pod(v));
            }
            Kind::Service => {
                let value = self.read(object, convert::service);
                value.into_iter().for_each(|v| self.loaded.cluster.add_service(v));
            }
            Kind::NetworkPolicy => {
                let convert = |o: &networking::v1::NetworkPolicy| strict(convert::network_policy(o), &o.metadata);
                if let Some((policy, warnings)) = self.read(object, convert) {
                    self.loaded.cluster.add_policy(policy);
                    let warnings = warnings.into_iter().map(|(code, error)| object.problem(error).of(code));
                    self.loaded.warnings.extend(warnings);
                    self.loaded.policies.insert(object.name.clone(), object.node.clone());
                }
            }
            Kind::Deployment => self.workload::<apps::v1::Deployment>(object, convert::deployment),
            Kind::StatefulSet => self.workload::<apps::v1::StatefulSet>(object, convert::stateful_set),
            Kind::DaemonSet => self.workload::<apps::v1::DaemonSet>(object, convert::daemon_set),
            Kind::ReplicaSet => self.workload::<apps::v1::ReplicaSet>(object, convert::replica_set),
            Kind::ReplicationController => {
                self.workload::<core::v1::ReplicationController>(object, convert::replication_controller);
            }
            Kind::Job => self.workload::<batch::v1::Job>(object, convert::job),
            Kind::CronJob => self.workload::<batch::v1::CronJob>(object, convert::cron_job),
        }
    }

    fn workload<K: DeserializeOwned + Metadata<Ty = ObjectMeta>>(
        &mut self,
        object: &Object<'_>,
        convert: fn(&K) -> Result<WorkloadObject, Vec<FieldError>>,
    ) {
        let value = self.read(object, convert);
        self.workloads.extend(value);
    }

    /// Decodes and converts an object; what is wrong with it is reported, and it is then left out.
    fn read<K: DeserializeOwned + Metadata<Ty = ObjectMeta>, T>(
        &mut self,
        object: &Object<'_>,
        convert: fn(&K) -> Result<T, Vec<FieldError>>,
    ) -> Option<T> {
        self.register(object);
        let (decoded, errors) = decode::decode_known::<K>(object.node);
        let sound = errors.is_empty();
        let name = Some(&object.name);
        self.errors.extend(
            errors
                .into_iter()
                .map(|e| at(object.file, e.position, name, Some(e.path), e.message)),
        );
        let decoded = decoded?;
        let mut errors = convert::annotations(decoded.metadata());
        match convert(&decoded) {
            Ok(value) if errors.is_empty() => sound.then_some(value),
            converted => {
                errors.extend(converted.err().into_iter().flatten());
                let more = errors.len().saturating_sub(MAX_ERRORS);
                let shown = errors.into_iter().take(MAX_ERRORS);
                self.errors.extend(shown.map(|e| object.problem(e)));
                if more > 0 {
                    let message = format!("{more} more errors are in this object: correct the first {MAX_ERRORS}");
                    let position = object.node.position;
                    self.errors
                        .push(at(object.file, position, Some(&object.name), None, message));
                }
                None
            }
        }
    }

    /// Notes where an object stands, and reports one that is given twice.
    fn register(&mut self, object: &Object<'_>) {
        if object.name.name.is_empty() {
            return;
        }
        let source = Source {
            file: object.file.clone(),
            position: Some(object.node.position),
        };
        if let Some(first) = self.loaded.sources.get(&object.name) {
            let message = format!("this object is already there in {first}: keep one of the two");
            self.errors
                .push(at(object.file, object.node.position, Some(&object.name), None, message));
            return;
        }
        self.ignored_rules(object);
        self.loaded.sources.insert(object.name.clone(), source);
    }

    /// Notes the lint rules that are not to speak of an object.
    fn ignored_rules(&mut self, object: &Object<'_>) {
        let annotations = object.node.get("metadata").and_then(|m| m.get("annotations"));
        let rules = annotations.and_then(|a| a.get(LINT_IGNORE_ANNOTATION));
        if let Some(rules) = rules.and_then(Node::as_str).filter(|_| !object.name.name.is_empty()) {
            self.loaded.lint_ignore.insert(object.name.clone(), rules.to_owned());
        }
    }
}

impl Object<'_> {
    fn problem(&self, error: FieldError) -> Problem {
        let position = self.node.locate(&error.path);
        at(self.file, position, Some(&self.name), Some(error.path), error.message)
    }
}

/// A conversion that takes a mode which is none for an error: in a manifest it is a slip of the pen, and there is somebody to correct it.
fn strict<T>(converted: Result<T, Vec<FieldError>>, metadata: &ObjectMeta) -> Result<T, Vec<FieldError>> {
    match (converted, convert::enforcement(metadata)) {
        (converted, Ok(_)) => converted,
        (Ok(_), Err(error)) => Err(vec![error]),
        (Err(errors), Err(error)) => Err([vec![error], errors].concat()),
    }
}

fn at(
    file: &Arc<str>,
    position: Position,
    object: Option<&ObjectName>,
    path: Option<FieldPath>,
    message: String,
) -> Problem {
    Problem {
        source: Source {
            file: file.clone(),
            position: Some(position),
        },
        object: object.cloned(),
        path,
        message: template::hinted(message),
        code: None,
    }
}

fn whole_file(file: String, message: String) -> Problem {
    Problem {
        source: Source {
            file: file.into(),
            position: None,
        },
        object: None,
        path: None,
        message,
        code: None,
    }
}

/// The one kind of file that may leave out its kind.
fn is_kustomization(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    matches!(name, "kustomization.yaml" | "kustomization.yml" | "Kustomization")
}
