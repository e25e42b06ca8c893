//! Names, labels and label selectors: what all kinds share.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::DEFAULT_NAMESPACE;
use super::field::{Errors, FieldError, Path};
use super::names;
use crate::labels::{Labels, Name, Operator, Requirement, Selector};
use crate::policy::{Enforcement, MODE_ANNOTATION};

const METADATA: Path<'static> = Path::Field(&Path::Root, "metadata");

/// What the annotations of an object may come to, in bytes of keys and values (apimachinery, `TotalAnnotationSizeLimitB`).
const ANNOTATIONS_BYTES: usize = 256 << 10;

/// The rule that the name of a kind follows.
pub(super) type NameRule = fn(&str) -> Result<(), String>;

/// The namespace and name of a namespaced object.
pub(super) fn namespaced(meta: &ObjectMeta, rule: NameRule, errors: &mut Errors) -> (Name, Name) {
    let namespace = match meta.namespace.as_deref() {
        None | Some("") => DEFAULT_NAMESPACE,
        Some(namespace) => {
            errors.check(&METADATA.field("namespace"), names::dns_label(namespace));
            namespace
        }
    };
    (namespace.into(), name(meta, rule, errors))
}

/// The name of an object that has no namespace.
pub(super) fn cluster_wide(meta: &ObjectMeta, rule: NameRule, errors: &mut Errors) -> Name {
    if meta.namespace.as_deref().is_some_and(|n| !n.is_empty()) {
        errors.add(
            &METADATA.field("namespace"),
            "this kind is in no namespace: leave the field out",
        );
    }
    name(meta, rule, errors)
}

/// `metadata.labels` of the object.
pub(super) fn object_labels(meta: &ObjectMeta, errors: &mut Errors) -> Labels {
    labels(meta.labels.as_ref(), &METADATA.field("labels"), errors)
}

/// What the API server would not take of an object's annotations. The conversions do not ask: annotations mean nothing to policy, and no live
/// object is to be left out for them. Whoever reads what a person has written does.
pub fn annotations(meta: &ObjectMeta) -> Vec<FieldError> {
    let path = METADATA.field("annotations");
    let annotations = meta.annotations.iter().flatten();
    let bytes: usize = annotations.clone().map(|(key, value)| key.len() + value.len()).sum();
    let large = (bytes > ANNOTATIONS_BYTES).then(|| FieldError {
        path: path.to_field_path(),
        message: format!("{bytes} bytes of keys and values: write at most {ANNOTATIONS_BYTES}"),
    });
    let keys = annotations.filter_map(|(key, _)| {
        let message = names::annotation_key(key).err()?;
        let path = path.key(key).to_field_path();
        Some(FieldError { path, message })
    });
    keys.chain(large).collect()
}

/// What the annotation [`MODE_ANNOTATION`] of a NetworkPolicy or of a namespace asks for; none without it.
///
/// The API server lets every text pass here, so that a live object may hold anything. The conversions therefore take a value that is none for
/// [`Enforcement::Enforce`]: leaving a policy out would open its pods. Whoever converts asks here what to report.
///
/// # Errors
/// A value that is no mode.
pub fn enforcement(meta: &ObjectMeta) -> Result<Option<Enforcement>, FieldError> {
    let Some(text) = meta.annotations.as_ref().and_then(|a| a.get(MODE_ANNOTATION)) else {
        return Ok(None);
    };
    let known = Enforcement::BOTH.into_iter().find(|e| e.word() == text);
    known.map(Some).ok_or_else(|| FieldError {
        path: METADATA.field("annotations").key(MODE_ANNOTATION).to_field_path(),
        message: format!("\"{text:.80}\" is not a mode: write enforce or audit"),
    })
}

/// What the annotation asks for; of a value that is no mode, that the policy is enforced.
pub(super) fn enforcement_or_enforce(meta: &ObjectMeta) -> Option<Enforcement> {
    enforcement(meta).unwrap_or(Some(Enforcement::Enforce))
}

/// Labels at any place.
pub(super) fn labels(map: Option<&BTreeMap<String, String>>, path: &Path<'_>, errors: &mut Errors) -> Labels {
    let Some(map) = map else {
        return Labels::default();
    };
    check_labels(map, path, errors);
    map.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()
}

/// A selector by equality alone, as Services and ReplicationControllers have it.
pub(super) fn equality_selector(map: &BTreeMap<String, String>, path: &Path<'_>, errors: &mut Errors) -> Selector {
    check_labels(map, path, errors);
    Selector::labels(map.iter().map(|(k, v)| (k.as_str(), v.as_str())))
}

/// A label selector; absent means one of everything.
pub(super) fn selector(selector: Option<&LabelSelector>, path: &Path<'_>, errors: &mut Errors) -> Selector {
    let Some(selector) = selector else {
        return Selector::everything();
    };
    let mut requirements = Vec::new();
    if let Some(map) = &selector.match_labels {
        check_labels(map, &path.field("matchLabels"), errors);
        requirements.extend(map.iter().map(|(key, value)| Requirement {
            key: key.as_str().into(),
            operator: Operator::In(vec![value.as_str().into()]),
        }));
    }
    let list = path.field("matchExpressions");
    for (at, expression) in selector.match_expressions.iter().flatten().enumerate() {
        let path = list.index(at);
        errors.check(&path.field("key"), names::label_key(&expression.key));
        let given = expression.values.as_deref().unwrap_or_default();
        let operator = match expression.operator.as_str() {
            op @ ("In" | "NotIn") => {
                let values_path = path.field("values");
                if given.is_empty() {
                    errors.add(&values_path, format!("{op} needs values: write at least one"));
                }
                for (at, value) in given.iter().enumerate() {
                    errors.check(&values_path.index(at), names::label_value(value));
                }
                let values: Vec<Name> = given.iter().map(|v| v.as_str().into()).collect();
                if op == "In" {
                    Operator::In(values)
                } else {
                    Operator::NotIn(values)
                }
            }
            op @ ("Exists" | "DoesNotExist") => {
                if !given.is_empty() {
                    errors.add(
                        &path.field("values"),
                        format!("{op} takes no values: leave them out, or write In or NotIn"),
                    );
                }
                if op == "Exists" {
                    Operator::Exists
                } else {
                    Operator::DoesNotExist
                }
            }
            other => {
                errors.add(
                    &path.field("operator"),
                    format!("\"{other}\" is not an operator: write In, NotIn, Exists or DoesNotExist"),
                );
                continue;
            }
        };
        requirements.push(Requirement {
            key: expression.key.as_str().into(),
            operator,
        });
    }
    Selector::new(requirements)
}

fn check_labels(map: &BTreeMap<String, String>, path: &Path<'_>, errors: &mut Errors) {
    for (key, value) in map {
        let path = path.key(key);
        errors.check(&path, names::label_key(key));
        errors.check(&path, names::label_value(value));
    }
}

fn name(meta: &ObjectMeta, rule: NameRule, errors: &mut Errors) -> Name {
    let name = meta.name.as_deref().unwrap_or_default();
    let path = METADATA.field("name");
    if !name.is_empty() {
        errors.check(&path, rule(name));
    } else if meta.generate_name.is_some() {
        errors.add(
            &path,
            "the object has no name yet, only generateName: write the name that it is to have",
        );
    } else {
        errors.add(&path, "the object has no name: write one");
    }
    name.into()
}
