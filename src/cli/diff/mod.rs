//! `palisade diff`: what a change opens and closes. Two clusters in; connections that differ, by kinds of ends and each with an example and
//! its reasons, isolation, audit, and the objects that changed out. `policy_compiler::difference` finds what differs; here it is put into words.

mod cause;
mod comment;
mod json;
mod objects;
mod patterns;
#[cfg(test)]
mod tests;
mod text;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use policy_compiler::cluster::{Endpoint, Pod, PodName};
use policy_compiler::difference::{self, Block, Differences, End, Isolation, Pods};
use policy_compiler::evaluate::{Decision, Evaluator};
use policy_compiler::policy::{Direction, PolicyName};
use policy_compiler::ports::PortSet;
use serde::Serialize;

pub(crate) use self::comment::command;
use self::objects::Objects;
use self::words::{Family, Party, Words};
use super::describe::title;
use super::ends::{Compiled, End as SomeEnd};
use super::outcomes::usual;
use super::verdict::Verdict;
use crate::manifests::Loaded;

/// A cluster as it was loaded, and compiled.
pub(crate) type Version = (Loaded, Compiled);

/// What is in the second list and not in the first.
pub(crate) fn news<T: PartialEq + Clone>(before: &[T], after: &[T]) -> Vec<T> {
    after.iter().filter(|item| !before.contains(item)).cloned().collect()
}

/// What differs between two clusters.
pub(crate) struct Diff<'a> {
    before: &'a Version,
    after: &'a Version,
    evaluators: [Evaluator<'a>; 2],
    words: Words,
    pods: Pods,
    differences: Differences,
    isolation: Vec<Isolation>,
    objects: Objects,
}

/// Connections that changed alike, with one of them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    from: Party,
    to: Party,
    /// The only family that it is about, where the ends have both.
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<Family>,
    ports: PortSet,
    /// Whether it is about pods and nodes of which only one cluster has the one on the other.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    own_node: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    example: Option<Example>,
}

/// One connection, judged by the reference evaluator.
#[derive(Serialize)]
struct Example {
    from: String,
    to: String,
    port: String,
    before: Judgement,
    after: Judgement,
    /// What the judgements are of.
    #[serde(skip)]
    decisions: [Decision; 2],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Judgement {
    verdict: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit_verdict: Option<Verdict>,
    reason: String,
}

/// Pods that are isolated in one of the clusters only.
#[derive(Serialize)]
struct Isolated {
    direction: Direction,
    isolated: bool,
    policies: Vec<PolicyName>,
    pods: Party,
}

/// Pods of one workload that only one of the clusters has.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Lone {
    name: String,
    pods: Vec<PodName>,
    /// Whether the other cluster has other pods of the workload.
    replicas: bool,
    ingress_isolated_by: Vec<PolicyName>,
    egress_isolated_by: Vec<PolicyName>,
}

impl<'a> Diff<'a> {
    /// Compares two clusters.
    pub(crate) fn new(before: &'a Version, after: &'a Version) -> Self {
        let (old, new) = (&before.1, &after.1);
        let pods = Pods::new(&old.cluster, &new.cluster);
        let regions = old.common_regions(new);
        let of_pods = pods.both.iter();
        let mut ends: Vec<End> = of_pods
            .flat_map(|pair| difference::ends(&old.table, &new.table, pair))
            .collect();
        ends.extend(regions.iter().map(|region| {
            let end = SomeEnd::Region(region.clone()).endpoint();
            End {
                before: end.clone(),
                after: end,
            }
        }));
        // By name after, so that answers are in that order.
        ends.sort_by(|a, b| (&a.after, &a.before).cmp(&(&b.after, &b.before)));
        ends.dedup();
        let differences = difference::differences(&old.table, &new.table, &ends);
        let isolation = difference::isolation(&old.table, &new.table, &pods);
        let objects = Objects::new(before, after, &pods, &ends);
        Diff {
            before,
            after,
            evaluators: [Evaluator::new(&old.cluster), Evaluator::new(&new.cluster)],
            words: Words::new([old, new], ends, &regions),
            pods,
            differences,
            isolation,
            objects,
        }
    }

    /// Whether anything but the text of objects differs. Other replicas of a workload that both have are no difference.
    pub(crate) fn is_empty(&self) -> bool {
        let replicas = |pods: &[Arc<Pod>], version| self.lone(pods, version).iter().all(|lone| lone.replicas);
        self.differences.is_empty()
            && self.isolation.is_empty()
            && replicas(&self.pods.removed, 0)
            && replicas(&self.pods.added, 1)
    }

    /// Whether the cluster after has policies and none of the pods before, as a change has that was meant to be put over them.
    pub(crate) fn has_nothing_in_common(&self) -> bool {
        let policies = &self.after.1.cluster.policies;
        self.pods.both.is_empty() && !self.pods.removed.is_empty() && !policies.is_empty()
    }

    /// What is to be known beside the answer: what it says nothing about.
    pub(crate) fn doubts(&self) -> Vec<String> {
        let names: Vec<&str> = self.objects.without_pods().map(|policy| &*policy.name).collect();
        let policies = match names.len() {
            0 => None,
            1 => Some(format!(
                "policy {} selects no pod here, so its change was not compared",
                names[0]
            )),
            more => Some(format!(
                "{more} policies select no pod here, so their changes were not compared: {}",
                names.join(", ")
            )),
        };
        policies.into_iter().collect()
    }

    fn entry(&self, block: &Block) -> Entry {
        let family = self.words.family(&block.from, &block.to);
        Entry {
            from: self.words.party(&block.from, &block.to, family),
            to: self.words.party(&block.to, &block.from, family),
            family,
            ports: block.ports.clone(),
            own_node: block.own_node,
            example: self.example(block),
        }
    }

    fn example(&self, block: &Block) -> Option<Example> {
        let [old, new] = [&self.before.1.table, &self.after.1.table];
        let (from, to) = difference::example(old, new, self.words.ends(), block)?;
        let traffic = usual(&to.after, &block.ports)?;
        let name = |end: &End| match &end.after {
            Endpoint::Pod(pod, Some(address)) if new.addresses().owned(pod).len() > 1 => {
                format!("{} ({address})", pod.name)
            }
            Endpoint::Pod(pod, _) => pod.name.to_string(),
            Endpoint::Address(address) => address.to_string(),
        };
        let decisions = [
            self.evaluators[0].decide(&from.before, &to.before, traffic),
            self.evaluators[1].decide(&from.after, &to.after, traffic),
        ];
        let judgement = |decision: &Decision| Judgement {
            verdict: Verdict::one(decision.allowed),
            audit_verdict: (decision.allowed && !decision.would_be_allowed()).then_some(Verdict::Deny),
            reason: decision.to_string(),
        };
        Some(Example {
            from: name(from),
            to: name(to),
            port: traffic.to_string(),
            before: judgement(&decisions[0]),
            after: judgement(&decisions[1]),
            decisions,
        })
    }

    fn isolated(&self, isolation: &Isolation) -> Isolated {
        let names: BTreeSet<&PodName> = isolation.pods.iter().map(|at| &self.pods.both[*at].1.name).collect();
        Isolated {
            direction: isolation.direction,
            isolated: isolation.isolated,
            policies: isolation.policies.clone(),
            pods: self.words.pods(&names),
        }
    }

    /// Pods that only one cluster has, by workload: the one before (0) or after (1).
    fn lone(&self, pods: &[Arc<Pod>], version: usize) -> Vec<Lone> {
        let mut both: BTreeSet<String> = BTreeSet::new();
        for (old, new) in &self.pods.both {
            let pod = if version == 0 { old } else { new };
            both.extend(pod.workload.is_some().then(|| title(pod)));
        }
        let mut by_title: BTreeMap<String, Vec<&Arc<Pod>>> = BTreeMap::new();
        for pod in pods {
            by_title.entry(title(pod)).or_default().push(pod);
        }
        let lone = by_title.into_iter().map(|(name, pods)| {
            let isolated_by = |direction| match pods.first() {
                Some(pod) => self.isolated_by(version, pod, direction),
                None => Vec::new(),
            };
            Lone {
                replicas: both.contains(&name),
                name,
                pods: pods.iter().map(|pod| pod.name.clone()).collect(),
                ingress_isolated_by: isolated_by(Direction::Ingress),
                egress_isolated_by: isolated_by(Direction::Egress),
            }
        });
        lone.collect()
    }

    fn isolated_by(&self, version: usize, pod: &Arc<Pod>, direction: Direction) -> Vec<PolicyName> {
        let pod = Endpoint::Pod(pod.clone(), None);
        let decision = self.evaluators[version].decide(&pod, &pod, policy_compiler::ports::Traffic::Other);
        match direction {
            Direction::Ingress => decision.ingress.isolated_by,
            Direction::Egress => decision.egress.isolated_by,
        }
    }
}
