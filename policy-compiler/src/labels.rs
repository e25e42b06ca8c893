//! Labels, and the selectors over them (`metav1.LabelSelector`).

use std::fmt;
use std::sync::Arc;

/// A name, a label key or a label value; cheap to copy.
pub type Name = Arc<str>;

/// The label that the API server puts on every namespace.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Labels, sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Box<[(Name, Name)]>);

impl Labels {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Name> {
        let at = self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.0[at].1)
    }

    /// All pairs, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &Name)> {
        self.0.iter().map(|(k, v)| (k, v))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These labels with one more; it replaces a value of the same key.
    #[must_use]
    pub fn with(&self, key: &str, value: &str) -> Labels {
        self.iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .filter(|(k, _)| **k != *key)
            .chain([(key.into(), value.into())])
            .collect()
    }
}

impl<K: Into<Name>, V: Into<Name>> FromIterator<(K, V)> for Labels {
    /// Of two pairs with one key the later wins.
    fn from_iter<T: IntoIterator<Item = (K, V)>>(pairs: T) -> Self {
        let map: std::collections::BTreeMap<Name, Name> =
            pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        Labels(map.into_iter().collect())
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.iter().map(|(k, v)| format!("{k}={v}")).collect();
        f.write_str(&parts.join(","))
    }
}

/// What a requirement asks of the value of its key (`matchExpressions[].operator`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The key is there with one of these values; sorted.
    In(Vec<Name>),
    /// The key is absent, or has none of these values; sorted.
    NotIn(Vec<Name>),
    /// The key is there.
    Exists,
    /// The key is absent.
    DoesNotExist,
}

/// One requirement of a selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label key.
    pub key: Name,
    /// What is asked of its value.
    pub operator: Operator,
}

impl Requirement {
    /// Whether labels fulfil it.
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.binary_search(v).is_ok()),
            Operator::NotIn(values) => value.is_none_or(|v| values.binary_search(v).is_err()),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.operator {
            Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0]),
            Operator::In(values) => write!(f, "{key} in ({})", values.join(",")),
            Operator::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0]),
            Operator::NotIn(values) => write!(f, "{key} notin ({})", values.join(",")),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
        }
    }
}

/// A label selector: all requirements must hold; without any it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(Vec<Requirement>);

impl Selector {
    /// The selector of everything (`{}`).
    pub fn everything() -> Self {
        Self::default()
    }

    /// A selector in canonical order: requirements and their values sorted, repeats dropped.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        let mut all: Vec<Requirement> = requirements
            .into_iter()
            .map(|mut r| {
                if let Operator::In(values) | Operator::NotIn(values) = &mut r.operator {
                    values.sort_unstable();
                    values.dedup();
                }
                r
            })
            .collect();
        all.sort_unstable();
        all.dedup();
        Selector(all)
    }

    /// A selector by equality (`matchLabels`).
    pub fn labels<K: Into<Name>, V: Into<Name>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Self::new(pairs.into_iter().map(|(k, v)| Requirement {
            key: k.into(),
            operator: Operator::In(vec![v.into()]),
        }))
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// The requirements, sorted.
    pub fn requirements(&self) -> &[Requirement] {
        &self.0
    }

    /// Whether labels fulfil every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|r| r.matches(labels))
    }
}

impl fmt::Display for Selector {
    /// As kubectl writes selectors: `app=web,tier in (a,b),!legacy`; everything is `{}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("{}");
        }
        let parts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(operator: Operator, labels: &[(&str, &str)], expected: bool) {
        let labels: Labels = labels.iter().copied().collect();
        let selector = Selector::new([Requirement {
            key: "app".into(),
            operator,
        }]);
        assert_eq!(selector.matches(&labels), expected, "{selector} on {labels}");
    }

    #[test]
    fn operators_match_as_the_api_defines() {
        let ab = || vec!["a".into(), "b".into()];
        check(Operator::In(ab()), &[("app", "b")], true);
        check(Operator::In(ab()), &[("app", "c")], false);
        check(Operator::In(ab()), &[], false);
        check(Operator::NotIn(ab()), &[("app", "b")], false);
        check(Operator::NotIn(ab()), &[("app", "c")], true);
        check(Operator::NotIn(ab()), &[("tier", "a")], true);
        check(Operator::Exists, &[("app", "")], true);
        check(Operator::Exists, &[], false);
        check(Operator::DoesNotExist, &[], true);
        check(Operator::DoesNotExist, &[("app", "")], false);
    }

    #[test]
    fn equal_meaning_in_another_order_is_equal() {
        let requirement = |values: [&str; 2]| Requirement {
            key: "app".into(),
            operator: Operator::In(values.map(Name::from).to_vec()),
        };
        assert_eq!(
            Selector::new([requirement(["a", "b"])]),
            Selector::new([requirement(["b", "a"]), requirement(["a", "b"])])
        );
    }
}
