//! Which objects differ between two clusters, in what, and whether that makes any difference: two clusters in, lines about objects out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use policy_compiler::difference::{self, Aspect, Change, End, Object, Pods, PolicyChange, Revert};
use policy_compiler::labels::{Labels, Name};
use policy_compiler::policy::{Enforcement, Tier};
use serde::{Serialize, Serializer};

use super::Version;
use crate::cli::describe::title;
use crate::cli::explain::source;
use crate::cli::output::count;
use crate::manifests::Source;

/// Of more objects than this it is not told one by one whether their change makes a difference: each takes a comparison.
const JUDGED: usize = 25;

/// Everything that differs in the objects that policy depends on.
#[derive(Serialize)]
pub(super) struct Objects {
    pub(super) policies: Vec<Changed>,
    pub(super) namespaces: Vec<Changed>,
    pub(super) nodes: Vec<Changed>,
    pub(super) pods: Vec<Changed>,
    /// How many pods have other addresses, or are on another node.
    #[serde(rename = "movedPods")]
    pub(super) moved_pods: usize,
}

/// An object that differs.
#[derive(Serialize)]
pub(super) struct Changed {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) change: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) fields: Vec<Field>,
    /// Whether the answers would be others without the change.
    pub(super) effect: Effect,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "displayed")]
    pub(super) source: Option<Source>,
}

fn displayed<S: Serializer>(source: &Option<Source>, serializer: S) -> Result<S::Ok, S::Error> {
    source.as_ref().map(ToString::to_string).serialize(serializer)
}

/// Whether the answers would be others without a change; for programs, null when that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Known(bool),
    /// There is no pod that it could be known of.
    NoPod {
        /// Whether there was one before.
        gone: bool,
    },
    /// Not looked at.
    Unknown,
}

impl Serialize for Effect {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Effect::Known(known) => serializer.serialize_some(known),
            Effect::NoPod { .. } | Effect::Unknown => serializer.serialize_none(),
        }
    }
}

impl Effect {
    /// What was found, of a change about pods that the clusters (before, after) have or not.
    fn new(found: Option<bool>, pods: [bool; 2]) -> Self {
        match (found, pods) {
            (Some(true), _) => Effect::Known(true),
            (_, [before, false]) => Effect::NoPod { gone: before },
            (Some(found), _) => Effect::Known(found),
            (None, _) => Effect::Unknown,
        }
    }
}

/// Something in which an object differs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Field {
    field: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<String>,
}

impl Field {
    fn plain(field: &str) -> Self {
        Field {
            field: field.to_owned(),
            before: None,
            after: None,
        }
    }

    /// For people.
    fn words(&self) -> String {
        match (&self.before, &self.after) {
            (None, None) => self.field.clone(),
            (Some(before), Some(after)) => format!("{} {before} → {after}", self.field),
            (None, Some(after)) => format!("{} {after} added", self.field),
            (Some(before), None) => format!("{} {before} removed", self.field),
        }
    }
}

impl Changed {
    /// In what it differs.
    pub(super) fn words(&self) -> String {
        let fields: Vec<String> = self.fields.iter().map(Field::words).collect();
        match fields.is_empty() {
            true => self.change.to_owned(),
            false => format!("changed: {}", fields.join(", ")),
        }
    }

    /// What is to be said of its effect: nothing of the usual.
    pub(super) fn effect_words(&self) -> Option<&'static str> {
        match (self.effect, self.kind) {
            (Effect::Known(true) | Effect::Unknown, _) => None,
            (Effect::Known(false), _) => Some("no effect"),
            (Effect::NoPod { gone: true }, "Namespace") => Some("has no pod now: not compared"),
            (Effect::NoPod { gone: false }, "Namespace") => Some("has no pod here: not compared"),
            (Effect::NoPod { gone: true }, _) => Some("selects no pod now: not compared"),
            (Effect::NoPod { gone: false }, _) => Some("selects no pod here: not compared"),
        }
    }

    /// The sign of the change in a list.
    pub(super) fn sign(&self) -> char {
        match self.change {
            "added" => '+',
            "removed" => '-',
            _ => '~',
        }
    }
}

fn fields(change: &Change) -> (&'static str, Vec<Field>) {
    match change {
        Change::Added => ("added", Vec::new()),
        Change::Removed => ("removed", Vec::new()),
        Change::Changed(aspects) => ("changed", aspects.iter().flat_map(aspect).collect()),
    }
}

fn aspect(aspect: &Aspect) -> Vec<Field> {
    let mode = |mode: &Option<Enforcement>| Some(mode.map_or("unset", Enforcement::word).to_owned());
    match aspect {
        Aspect::Subject => vec![Field::plain("podSelector")],
        Aspect::Ingress => vec![Field::plain("ingress")],
        Aspect::Egress => vec![Field::plain("egress")],
        Aspect::Order => vec![Field::plain("tier")],
        Aspect::Mode(before, after) => vec![Field {
            field: "mode".to_owned(),
            before: mode(before),
            after: mode(after),
        }],
        Aspect::Labels(before, after) => labels(before, after),
    }
}

fn labels(before: &Labels, after: &Labels) -> Vec<Field> {
    let keys: BTreeSet<&Name> = before.iter().chain(after.iter()).map(|(key, _)| key).collect();
    let fields = keys.into_iter().map(|key| Field {
        field: format!("label {key}"),
        before: before.get(key).map(ToString::to_string),
        after: after.get(key).map(ToString::to_string),
    });
    fields.filter(|field| field.before != field.after).collect()
}

impl Objects {
    pub(super) fn new(before: &Version, after: &Version, pods: &Pods, ends: &[End]) -> Self {
        let (old, new) = (&before.1, &after.1);
        let policies = difference::policies(&old.cluster, &new.cluster);
        let namespaces = difference::namespaces(&old.cluster, &new.cluster);
        let of_policies = policies.iter().map(Revert::from);
        let reverts: Vec<Revert> = of_policies.chain(namespaces.iter().map(Revert::from)).collect();
        let effects = match reverts.len() <= JUDGED {
            true => Revert::effects(&reverts, &new.cluster, &new.table, ends),
            false => Vec::new(),
        };
        let mut effects = effects.into_iter().map(Some).chain(std::iter::repeat(None));
        let mut effect = || effects.next().flatten();
        Objects {
            policies: policies
                .iter()
                .map(|object| {
                    let pods = [old, new].map(|version| object.selects_any(&version.table));
                    policy(object, [before, after], Effect::new(effect(), pods))
                })
                .collect(),
            namespaces: namespaces
                .iter()
                .filter_map(|object| {
                    let pods = [old, new].map(|version| object.holds_any(&version.table));
                    let effect = Effect::new(effect(), pods);
                    named("Namespace", object, |n| n.name.to_string(), effect)
                })
                .collect(),
            nodes: nodes(before, after),
            pods: pods_changed(pods),
            moved_pods: pods
                .both
                .iter()
                .filter(|(a, b)| a.addresses != b.addresses || a.node != b.node)
                .count(),
        }
    }

    /// How many policies and namespaces changed, and how many of them to no effect that is known.
    pub(super) fn summary(&self) -> Option<String> {
        let numbers = [(self.policies.len(), "policy"), (self.namespaces.len(), "namespace")];
        let all = self.policies.len() + self.namespaces.len();
        let named = numbers.iter().filter(|(number, _)| *number > 0);
        let named: Vec<String> = named.map(|(number, noun)| count(*number, noun)).collect();
        let number = |of: fn(Effect) -> bool| {
            let changed = self.policies.iter().chain(&self.namespaces);
            changed.filter(|object| of(object.effect)).count()
        };
        let said = [
            (number(|effect| effect == Effect::Known(false)), "without effect"),
            (number(|effect| matches!(effect, Effect::NoPod { .. })), "not compared"),
        ];
        let said = said.into_iter().filter(|(number, _)| *number > 0);
        let said = said.map(|(number, what)| match (number, all) {
            (1, 1) => format!(", {what}"),
            (number, all) if number == all => format!(", all {what}"),
            (number, _) => format!(", {number} of them {what}"),
        });
        (all > 0).then(|| format!("{} changed{}", named.join(", "), said.collect::<String>()))
    }

    /// Policies that changed and have no pod here to be compared by, nor had.
    pub(super) fn without_pods(&self) -> impl Iterator<Item = &Changed> {
        let policies = self.policies.iter();
        policies.filter(|policy| policy.effect == Effect::NoPod { gone: false })
    }

    /// All of them, by section.
    pub(super) fn sections(&self) -> [(&'static str, &[Changed]); 4] {
        [
            ("Policies", &self.policies),
            ("Namespaces", &self.namespaces),
            ("Nodes", &self.nodes),
            ("Pods", &self.pods),
        ]
    }
}

fn policy(object: &PolicyChange, [before, after]: [&Version; 2], effect: Effect) -> Changed {
    let (change, fields) = fields(&object.change);
    let (policy, version) = match (&object.before, &object.after) {
        (_, Some(policy)) => (Some(policy), after),
        (policy, None) => (policy.as_ref(), before),
    };
    let kind = match policy.is_none_or(|p| p.tier == Tier::NetworkPolicy) {
        true => "NetworkPolicy",
        false => "ClusterNetworkPolicy",
    };
    Changed {
        kind,
        name: policy.map(|p| p.name.to_string()).unwrap_or_default(),
        change,
        fields,
        effect,
        source: policy.and_then(|p| source(&version.0, &p.name)).cloned(),
    }
}

fn named<T>(kind: &'static str, object: &Object<T>, name: impl Fn(&T) -> String, effect: Effect) -> Option<Changed> {
    let (change, fields) = fields(&object.change);
    let either = object.after.as_ref().or(object.before.as_ref())?;
    Some(Changed {
        kind,
        name: name(either),
        change,
        fields,
        effect,
        source: None,
    })
}

/// Policy looks at the addresses of nodes alone.
fn nodes(before: &Version, after: &Version) -> Vec<Changed> {
    let [old, new] = [before, after].map(|version| &version.1.cluster.nodes);
    let names: BTreeSet<&Name> = old.keys().chain(new.keys()).collect();
    let addresses = |list: &[IpAddr]| {
        let list: Vec<String> = list.iter().map(ToString::to_string).collect();
        Some(list.join(", "))
    };
    let changed = names.into_iter().filter_map(|name| {
        let (change, fields) = match (old.get(name), new.get(name)) {
            (Some(old), Some(new)) if old.addresses == new.addresses => return None,
            (Some(old), Some(new)) => {
                let field = Field {
                    field: "addresses".to_owned(),
                    before: addresses(&old.addresses),
                    after: addresses(&new.addresses),
                };
                ("changed", vec![field])
            }
            (None, _) => ("added", Vec::new()),
            (_, None) => ("removed", Vec::new()),
        };
        Some(Changed {
            kind: "Node",
            name: name.to_string(),
            change,
            fields,
            effect: Effect::Unknown,
            source: None,
        })
    });
    changed.collect()
}

/// Pods that selectors or names of ports may see differently, by workload.
fn pods_changed(pods: &Pods) -> Vec<Changed> {
    let mut by_title: BTreeMap<(String, Vec<Field>), usize> = BTreeMap::new();
    for (old, new) in &pods.both {
        let mut fields = labels(&old.labels, &new.labels);
        let sorted = |ports: &[policy_compiler::cluster::ContainerPort]| {
            let ports: BTreeSet<_> = ports.iter().filter(|p| p.name.is_some()).cloned().collect();
            ports
        };
        if sorted(&old.ports) != sorted(&new.ports) {
            fields.push(Field::plain("named ports"));
        }
        if old.host_network != new.host_network {
            fields.push(Field {
                field: "hostNetwork".to_owned(),
                before: Some(old.host_network.to_string()),
                after: Some(new.host_network.to_string()),
            });
        }
        if !fields.is_empty() {
            *by_title.entry((title(new), fields)).or_default() += 1;
        }
    }
    let changed = by_title.into_iter().map(|((title, fields), number)| Changed {
        kind: "Pod",
        name: match title.matches('/').count() == 2 {
            true => format!("{title} ({})", count(number, "pod")),
            false => title,
        },
        change: "changed",
        fields,
        effect: Effect::Unknown,
        source: None,
    });
    changed.collect()
}
