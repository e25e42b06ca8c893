//! What the agent counts, in OpenMetrics. docs/agent.md explains every name; a test holds that it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use policy_compiler::cluster::PodName;
use policy_compiler::policy::Direction;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::source::{Health, Resource};
use super::status::Enforced;

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// From half a millisecond (a cached read) to half a minute (nft's time-out and beyond).
const BUCKETS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0, 30.0];

/// Of the time from event to kernel: fine around its budgets of 50 and 250 milliseconds.
const LAG_BUCKETS: [f64; 12] = [0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// There is something new.
    Changed,
    /// All was as before.
    Unchanged,
    /// It did not work.
    Failed,
}

impl Outcome {
    const ALL: [Outcome; 3] = [Outcome::Changed, Outcome::Unchanged, Outcome::Failed];
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let value = match self {
            Outcome::Changed => "changed",
            Outcome::Unchanged => "unchanged",
            Outcome::Failed => "failed",
        };
        value.encode(encoder)
    }
}

/// What came of a request to create an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Announced {
    /// It was created.
    Posted,
    /// Another agent had created it.
    Known,
    /// It was not.
    Failed,
}

impl EncodeLabelValue for Announced {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let value = match self {
            Announced::Posted => "posted",
            Announced::Known => "known",
            Announced::Failed => "failed",
        };
        value.encode(encoder)
    }
}

/// The label of the counter of such requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByAnnounced {
    outcome: Announced,
}

/// The label of counters by outcome.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByOutcome {
    /// How it ended.
    pub outcome: Outcome,
}

/// The labels of counters by pod and direction; there are two for each judged pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByPod {
    namespace: String,
    pod: String,
    direction: &'static str,
}

impl ByPod {
    /// Of one direction.
    pub fn new(pod: &PodName, direction: Direction) -> Self {
        ByPod {
            namespace: pod.namespace.to_string(),
            pod: pod.name.to_string(),
            direction: word(direction),
        }
    }

    /// Of both.
    pub fn both(pod: &PodName) -> [Self; 2] {
        Direction::BOTH.map(|direction| ByPod::new(pod, direction))
    }
}

fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

/// The label of metrics of the two halves of the compiled table.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDirection {
    direction: &'static str,
}

/// How large what is enforced is.
#[derive(Clone, Debug, Default)]
struct Sizes {
    groups: Family<ByDirection, Gauge>,
    classes: Family<ByDirection, Gauge>,
    chains: Gauge,
    rules: Gauge,
    sets: Gauge,
    elements: Gauge,
}

/// The label of metrics by kind of object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByResource {
    /// As RBAC names it.
    pub resource: String,
}

/// How the watches of an API server fare.
#[derive(Clone, Debug, Default)]
struct WatchMetrics {
    objects: Family<ByResource, Gauge>,
    invalid: Family<ByResource, Gauge>,
    failing: Family<ByResource, Gauge>,
    events: Family<ByResource, Counter>,
    lists: Family<ByResource, Counter>,
    failures: Family<ByResource, Counter>,
}

/// All metrics of the agent; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// 1 when the kernel holds the current policy.
    pub ready: Gauge,
    /// Errors in the manifests, as of the last read.
    pub manifest_errors: Gauge,
    /// Reads of the folder.
    pub reads: Family<ByOutcome, Counter>,
    /// How long reading the folder took.
    pub read_duration: Histogram,
    /// How long compiling and rendering took.
    pub compile_duration: Histogram,
    /// From the arrival of an event of the API server until the kernel held it.
    pub event_to_kernel: Histogram,
    /// How long nft took.
    pub apply_duration: Histogram,
    /// Rounds of compiling and applying.
    pub applies: Family<ByOutcome, Counter>,
    /// Operations in the transactions that were applied.
    pub operations: Counter,
    /// When the kernel was last brought to, or found at, what the manifests say.
    pub last_success: Gauge<f64, AtomicU64>,
    /// How long comparing the kernel's table with what it should be took.
    pub drift_check_duration: Histogram,
    /// How often somebody else's change of the table was undone.
    pub drift_repairs: Counter,
    /// Packets that policy denied to this node's pods, or would have in audit mode.
    pub denied_packets: Family<ByPod, Counter>,
    /// Packets from or to an address of this node's pods that nobody knows, with `--unknown-pods drop`.
    pub unknown_pod_packets: Counter,
    /// 1 while packets of judged connections pass by their mark.
    pub verified_marks: Gauge,
    /// Live pods in the cluster.
    pub pods: Gauge,
    /// Live pods on this node.
    pub node_pods: Gauge,
    /// Nodes that some pod runs on; every agent is such a pod.
    pub nodes: Gauge,
    /// Policies that select a pod of this node.
    pub policies: Gauge,
    /// Policies whose rules the kernel refuses, and which therefore allow nothing.
    pub isolated_policies: Gauge,
    /// Addresses that more than one live pod claims.
    pub address_conflicts: Gauge,
    /// Events on policies that are still to be created.
    pub policy_events_waiting: Gauge,
    policy_events: Family<ByAnnounced, Counter>,
    sizes: Sizes,
    watches: WatchMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram = || Histogram::new(BUCKETS);
        let metrics = Metrics {
            registry: Arc::default(),
            ready: Gauge::default(),
            manifest_errors: Gauge::default(),
            reads: Family::default(),
            read_duration: histogram(),
            compile_duration: histogram(),
            event_to_kernel: Histogram::new(LAG_BUCKETS),
            apply_duration: histogram(),
            applies: Family::default(),
            operations: Counter::default(),
            last_success: Gauge::default(),
            drift_check_duration: histogram(),
            drift_repairs: Counter::default(),
            denied_packets: Family::default(),
            unknown_pod_packets: Counter::default(),
            verified_marks: Gauge::default(),
            pods: Gauge::default(),
            node_pods: Gauge::default(),
            nodes: Gauge::default(),
            policies: Gauge::default(),
            isolated_policies: Gauge::default(),
            address_conflicts: Gauge::default(),
            policy_events_waiting: Gauge::default(),
            policy_events: Family::default(),
            sizes: Sizes::default(),
            watches: WatchMetrics::default(),
        };
        // Every label value exists from the start, so that a rate over a first failure is seen.
        for outcome in Outcome::ALL {
            drop(metrics.reads.get_or_create(&ByOutcome { outcome }));
            drop(metrics.applies.get_or_create(&ByOutcome { outcome }));
        }
        for outcome in [Announced::Posted, Announced::Known, Announced::Failed] {
            drop(metrics.policy_events.get_or_create(&ByAnnounced { outcome }));
        }
        metrics.enforced(&Enforced::default());
        for resource in Resource::ALL {
            metrics.watch(resource, &Health::default());
        }
        let registry = Arc::new(metrics.registered());
        Metrics { registry, ..metrics }
    }
}

impl Metrics {
    /// The text of an OpenMetrics exposition.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// The kernel holds, as of now, what the manifests say.
    pub fn succeeded_now(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        self.last_success.set(now.unwrap_or(Duration::ZERO).as_secs_f64());
    }

    /// Tells how large what is enforced is.
    pub fn enforced(&self, enforced: &Enforced) {
        let sizes = &self.sizes;
        for (direction, half) in [
            (Direction::Ingress, enforced.ingress),
            (Direction::Egress, enforced.egress),
        ] {
            let by = ByDirection {
                direction: word(direction),
            };
            sizes.groups.get_or_create(&by).set(half.groups as i64);
            sizes.classes.get_or_create(&by).set(half.classes as i64);
        }
        let table = &enforced.table;
        sizes.chains.set(table.chains as i64);
        sizes.rules.set(table.rules as i64);
        sizes.sets.set(table.sets as i64);
        sizes.elements.set(table.elements as i64);
    }

    /// Counts a request to create an Event.
    pub fn announced(&self, outcome: Announced) {
        self.policy_events.get_or_create(&ByAnnounced { outcome }).inc();
    }

    /// Tells how a watch fares.
    pub fn watch(&self, resource: Resource, health: &Health) {
        let by = ByResource {
            resource: resource.to_string(),
        };
        let watches = &self.watches;
        watches.objects.get_or_create(&by).set(health.objects as i64);
        watches.invalid.get_or_create(&by).set(health.invalid as i64);
        watches
            .failing
            .get_or_create(&by)
            .set(health.failing_since.is_some().into());
        for (counter, value) in [
            (&watches.events, health.events),
            (&watches.lists, health.lists),
            (&watches.failures, health.failures),
        ] {
            // The watch counts; here it is only told.
            counter.get_or_create(&by).inner().store(value, Ordering::Relaxed);
        }
    }

    #[rustfmt::skip] // a table
    fn registered(&self) -> Registry {
        let mut r = Registry::with_prefix("palisade");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        r.register("build", "The version that runs", build);
        r.register("ready", "Whether the kernel holds the current policy", self.ready.clone());
        r.register("manifest_errors", "Errors in the manifests, as of the last read", self.manifest_errors.clone());
        r.register("manifest_reads", "Reads of the manifests", self.reads.clone());
        r.register_with_unit("manifest_read_duration", "Reading the manifests", Unit::Seconds, self.read_duration.clone());
        r.register_with_unit("compile_duration", "Compiling and rendering for this node", Unit::Seconds, self.compile_duration.clone());
        r.register_with_unit("apply_duration", "One transaction through nft", Unit::Seconds, self.apply_duration.clone());
        r.register_with_unit("event_to_kernel", "From the first event of a round until the kernel held it", Unit::Seconds, self.event_to_kernel.clone());
        r.register("applies", "Rounds of compiling and applying", self.applies.clone());
        r.register("operations", "Operations in applied transactions", self.operations.clone());
        r.register_with_unit("last_success_timestamp", "When the kernel was last known to hold the current policy", Unit::Seconds, self.last_success.clone());
        r.register_with_unit("drift_check_duration", "Comparing the table in the kernel with what it should be", Unit::Seconds, self.drift_check_duration.clone());
        r.register("drift_repairs", "Changes of the table by others that were undone", self.drift_repairs.clone());
        r.register("denied_packets", "Packets that policy denied, by the pod whose policies did", self.denied_packets.clone());
        r.register("unknown_pod_packets", "Packets from or to an address of this node's pods that no known pod has", self.unknown_pod_packets.clone());
        r.register("verified_marks", "Whether packets of judged connections pass by their mark", self.verified_marks.clone());
        r.register("pods", "Live pods in the cluster", self.pods.clone());
        r.register("node_pods", "Live pods on this node that policy can select", self.node_pods.clone());
        r.register("nodes", "Nodes that pods run on", self.nodes.clone());
        r.register("policies", "Policies that select a pod of this node", self.policies.clone());
        let s = &self.sizes;
        r.register("groups", "Sorts of pods of this node, by the policies that select them", s.groups.clone());
        r.register("classes", "Sorts of peers that these policies tell apart", s.classes.clone());
        r.register("chains", "Chains of the table inet palisade", s.chains.clone());
        r.register("rules", "Rules of the table", s.rules.clone());
        r.register("sets", "Sets and maps of the table", s.sets.clone());
        r.register("elements", "Elements of these, without the records of denials", s.elements.clone());
        r.register("isolated_policies", "Policies whose rules the kernel refuses, and which therefore allow nothing", self.isolated_policies.clone());
        r.register("address_conflicts", "Addresses that more than one live pod claims", self.address_conflicts.clone());
        r.register("policy_events", "Requests to create Events on policies that are not enforced as they are written", self.policy_events.clone());
        r.register("policy_events_waiting", "Such Events that this agent has yet to create", self.policy_events_waiting.clone());
        let w = &self.watches;
        r.register("watch_objects", "Objects known from the API server", w.objects.clone());
        r.register("watch_invalid_objects", "Objects of the API server that cannot be read", w.invalid.clone());
        r.register("watch_failing", "Whether the watch fails", w.failing.clone());
        r.register("watch_events", "Events, those included that change nothing", w.events.clone());
        r.register("watch_lists", "Complete lists", w.lists.clone());
        r.register("watch_failures", "Failures of the watch", w.failures.clone());
        r
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Name, labels and type of every metric in the manual.
    fn documented() -> Vec<(String, BTreeSet<String>, String)> {
        let row = |line: &'static str| {
            let (name, rest) = line.strip_prefix("| `palisade_")?.split_once("` | ")?;
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            let labels = labels.trim_end_matches('}').split(',').filter(|l| !l.is_empty());
            let (kind, _) = rest.split_once(" | ")?;
            Some((name.to_owned(), labels.map(str::to_owned).collect(), kind.to_owned()))
        };
        include_str!("../../docs/agent.md").lines().filter_map(row).collect()
    }

    #[test]
    fn every_metric_is_documented_and_no_other() {
        let metrics = Metrics::default();
        // A counter by pod is not exposed before there is a pod.
        let pod = PodName {
            namespace: "shop".into(),
            name: "web".into(),
        };
        drop(
            metrics
                .denied_packets
                .get_or_create(&ByPod::new(&pod, Direction::Ingress)),
        );
        let text = metrics.encode().expect("text");
        let exposed = text.lines().filter_map(|line| {
            let (name, kind) = line.strip_prefix("# TYPE palisade_")?.split_once(' ')?;
            // The name of a sample says more than that of its family.
            let name = match kind {
                "counter" => format!("{name}_total"),
                "info" => format!("{name}_info"),
                _ => name.to_owned(),
            };
            let sample = text
                .lines()
                .filter_map(|line| line.strip_prefix("palisade_")?.strip_prefix(&name))
                .find_map(|rest| rest.strip_prefix('{')?.split_once("} "));
            let labels = sample.map_or("", |(labels, _)| labels).split(',');
            let labels = labels.filter_map(|label| label.split_once('='));
            Some((
                name,
                labels.map(|(label, _)| label.to_owned()).collect(),
                kind.to_owned(),
            ))
        });
        assert_eq!(documented(), exposed.collect::<Vec<_>>());
    }

    #[test]
    fn the_exposition_is_that_of_openmetrics() {
        let text = Metrics::default().encode().expect("text");
        assert!(text.ends_with("# EOF\n"), "{text}");
        let of = |kind: &str| -> Vec<&str> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(kind));
            lines.filter_map(|line| line.split(' ').next()).collect()
        };
        let (helped, typed) = (of("# HELP "), of("# TYPE "));
        assert_eq!(helped, typed);
        assert!(
            typed.len() > 20 && typed.iter().all(|name| name.starts_with("palisade_")),
            "{typed:?}"
        );
        for name in of("# UNIT ") {
            assert!(name.ends_with("_seconds"), "{name}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            let name = name.split('{').next().expect("a name");
            let suffixes = ["", "_total", "_info", "_count", "_sum", "_bucket"];
            let family = suffixes
                .iter()
                .find_map(|s| typed.iter().find(|t| name == format!("{t}{s}")));
            assert!(family.is_some(), "{line}");
        }
    }

    #[test]
    fn a_failure_to_come_is_counted_from_zero() {
        let text = Metrics::default().encode().expect("text");
        assert!(
            text.contains("palisade_applies_total{outcome=\"failed\"} 0\n"),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
