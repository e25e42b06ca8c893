//! The form of a test file (`kind: ConnectivityTest`): documents in, tests out, or every error with its place.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use policy_compiler::convert;
use policy_compiler::labels::Selector;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::endpoint::EndpointSpec;
use super::output::API_VERSION;
use super::ports::PortSpec;
use crate::manifests::{Document, Entry, Node, ObjectName, Position, Problem, Source, Value, decode};

/// The form, by an example, for `palisade test --help`.
pub(crate) const FORM: &str = "\
A test file:
  apiVersion: palisade.dev/v1alpha1
  kind: ConnectivityTest
  metadata: {name: shop}
  resources: [../manifests/]            # relative to this file
  cases:
  - name: only the api reaches the database
    from: {not: [shop/deployment/api]}  # an ENDPOINT, a selection, or a list
    to: shop/statefulset/db
    ports: all                          # or a PORT, or a list
    expect: deny                        # or allow: every pair on every port
Exit codes: 0 all cases passed; 1 a case failed; 2 bad usage or input, such as an end that stands for nothing.";

const KIND: &str = "ConnectivityTest";

/// One document of kind ConnectivityTest.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Schema {
    api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: Metadata,
    resources: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    name: String,
}

/// One assertion: connections from `from` to `to` on `ports` are allowed, or denied; every one of them.
#[derive(Debug, Deserialize)]
pub(crate) struct Case {
    /// What it says, for people.
    pub(crate) name: String,
    /// The sources.
    pub(crate) from: Selection,
    /// The destinations.
    pub(crate) to: Selection,
    /// The ports of the destinations.
    pub(crate) ports: PortList,
    /// What is to be.
    pub(crate) expect: Expect,
}

/// What a case expects of every pair on every port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Expect {
    /// Every pair on every port is allowed.
    Allow,
    /// No pair on any port is allowed.
    Deny,
}

/// One end of a case.
#[derive(Debug)]
pub(crate) enum Selection {
    /// An endpoint E.
    Endpoint(EndpointSpec),
    /// Pods by what holds for them.
    Pods(Box<Pods>),
    /// What any of these selects.
    Any(Vec<Selection>),
}

/// Pods for which all that is given holds.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Pods {
    /// They are in this namespace.
    pub(crate) namespace: Option<String>,
    /// They are in a namespace with such labels.
    pub(crate) namespace_selector: Option<LabelQuery>,
    /// They have such labels.
    pub(crate) pod_selector: Option<LabelQuery>,
    /// They are none of these.
    pub(crate) not: Option<Selection>,
}

/// A label selector as Kubernetes writes it.
#[derive(Debug)]
pub(crate) struct LabelQuery(pub(crate) Selector);

/// The ports of a case; never empty.
#[derive(Debug)]
pub(crate) struct PortList(pub(crate) Vec<PortSpec>);

/// A test with its place.
#[derive(Debug)]
pub(crate) struct TestFile {
    /// The file as it was named or found.
    pub(crate) file: Arc<str>,
    /// `metadata.name`.
    pub(crate) name: String,
    /// The manifests, as paths from where the command runs.
    pub(crate) resources: Vec<PathBuf>,
    /// The assertions.
    pub(crate) cases: Vec<Case>,
    node: Node,
}

impl TestFile {
    /// Reads a document; none when it is of another kind.
    pub(crate) fn read(document: Document) -> Option<Result<Self, Vec<Problem>>> {
        let Document { file, node } = document;
        let is_test = node.get("kind").and_then(Node::as_str) == Some(KIND);
        is_test.then(|| Self::decode(file, node))
    }

    fn decode(file: Arc<str>, node: Node) -> Result<Self, Vec<Problem>> {
        let name = node.get("metadata").and_then(|m| m.get("name")).and_then(Node::as_str);
        let object = object_name(name.unwrap_or_default());
        let problem = |position, path, message| Problem {
            source: Source {
                file: file.clone(),
                position: Some(position),
            },
            object: Some(object.clone()),
            path,
            message,
            code: None,
        };
        let schema: Schema = decode(&node).map_err(|errors| {
            let problems = errors.into_iter().map(|e| problem(e.position, Some(e.path), e.message));
            problems.collect::<Vec<_>>()
        })?;
        let mut errors = Vec::new();
        let mut check = |wrong: bool, field: &str, message: String| {
            if wrong {
                let position = node.get(field).map_or(node.position, |n| n.position);
                errors.push(problem(position, None, message));
            }
        };
        let version = &schema.api_version;
        check(
            version != API_VERSION,
            "apiVersion",
            format!("apiVersion \"{version}\" is not known: write {API_VERSION}"),
        );
        check(
            schema.resources.is_empty(),
            "resources",
            "resources is empty: list the manifests that the test is about".to_owned(),
        );
        check(
            schema.cases.is_empty(),
            "cases",
            "cases is empty, so nothing would be tested: write at least one".to_owned(),
        );
        if !errors.is_empty() {
            return Err(errors);
        }
        let folder = PathBuf::from(&*file).parent().map(PathBuf::from).unwrap_or_default();
        Ok(TestFile {
            name: schema.metadata.name,
            resources: schema.resources.iter().map(|r| folder.join(r)).collect(),
            cases: schema.cases,
            file,
            node,
        })
    }

    /// The node of a field of a case, in the document.
    pub(crate) fn field(&self, case: usize, field: &str) -> &Node {
        self.entry(case, field).map_or(&self.node, |entry| &entry.value)
    }

    /// Where the name of a case is given.
    pub(crate) fn position(&self, case: usize) -> Position {
        self.entry(case, "name")
            .map_or(self.node.position, |entry| entry.position)
    }

    fn entry(&self, case: usize, field: &str) -> Option<&Entry> {
        let Value::List(cases) = &self.node.get("cases")?.value else {
            return None;
        };
        let Value::Map(entries) = &cases.get(case)?.value else {
            return None;
        };
        entries.iter().find(|entry| &*entry.key == field)
    }

    /// What is wrong with a case, at a place in it.
    pub(crate) fn problem(&self, case: usize, at: &Node, message: impl fmt::Display) -> Problem {
        Problem {
            source: Source {
                file: self.file.clone(),
                position: Some(at.position),
            },
            object: Some(object_name(&self.name)),
            path: None,
            message: format!("case \"{}\": {message}", self.cases[case].name),
            code: None,
        }
    }
}

fn object_name(name: &str) -> ObjectName {
    ObjectName {
        kind: KIND.into(),
        namespace: None,
        name: name.into(),
    }
}

impl<'de> Deserialize<'de> for Selection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Selection;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "an endpoint (shop/deployment/api, an address or a CIDR), a mapping with namespace, \
                     namespaceSelector, podSelector or not, or a list of these",
                )
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Selection, E> {
                text.parse().map(Selection::Endpoint).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Selection, A::Error> {
                let mut any = Vec::new();
                while let Some(one) = list.next_element()? {
                    any.push(one);
                }
                if any.is_empty() {
                    return Err(A::Error::custom("the list is empty: write at least one endpoint"));
                }
                Ok(Selection::Any(any))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Selection, A::Error> {
                let pods = Pods::deserialize(MapAccessDeserializer::new(map))?;
                let said = pods.namespace.is_some()
                    || pods.namespace_selector.is_some()
                    || pods.pod_selector.is_some()
                    || pods.not.is_some();
                if !said {
                    return Err(A::Error::custom(
                        "says nothing: write namespace, namespaceSelector, podSelector or not (podSelector: {} is all pods)",
                    ));
                }
                Ok(Selection::Pods(Box::new(pods)))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl<'de> Deserialize<'de> for LabelQuery {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let selector = LabelSelector::deserialize(deserializer)?;
        let converted = convert::label_selector(&selector).map_err(|errors| {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            D::Error::custom(errors.join("; "))
        })?;
        Ok(LabelQuery(converted))
    }
}

impl<'de> Deserialize<'de> for PortList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = PortList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("all, a port such as 8080/TCP, or a list of ports")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<PortList, E> {
                text.parse().map(|port| PortList(vec![port])).map_err(E::custom)
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<PortList, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<PortList, A::Error> {
                let mut ports = Vec::new();
                while let Some(PortList(mut one)) = list.next_element()? {
                    ports.append(&mut one);
                }
                if ports.is_empty() {
                    return Err(A::Error::custom("the list is empty: write at least one port, or all"));
                }
                Ok(PortList(ports))
            }
        }
        deserializer.deserialize_any(Form)
    }
}
