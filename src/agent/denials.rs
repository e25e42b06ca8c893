//! What was denied on this node, told: the kernel's counters become metrics of each pod, and its record becomes log lines, a
//! few a minute, with the reason from the reference evaluator. Then room is made in the record.
//!
//! The counters are read every few seconds and not when somebody scrapes: each listing is a start of nft. The record is
//! read when a counter has moved or room in it is not ample, and seldom otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use policy_compiler::cluster::{Cluster, Endpoint, Pod, PodName};
use policy_compiler::evaluate::{Decision, Evaluator};
use policy_compiler::labels::Name;
use policy_compiler::policy::PolicyName;
use tokio::time::Instant;
use tracing::{debug, info};

use super::enforcer::{ApplyError, Enforcer};
use super::metrics::{ByPod, Metrics};
use crate::nft::denials::unknown_words;
use crate::nft::names::{Family, Side};
use crate::nft::{Denial, Kernel, Mode, UnknownPods};

mod room;

/// How often the counters are read.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How often the record is read although no counter has moved: what is addressed to no pod is recorded, and counted for none.
/// What has ample room does not fill in that time.
const READ_EVERY: Duration = Duration::from_secs(15);

/// Reading takes at most one part in so many of the time, ...
const SHARE: u32 = 20;

/// ... but where room is not ample the next look comes after so long at most: half a set fills in ten seconds, and the look itself
/// takes some.
const LOOK_WITHIN: Duration = Duration::from_secs(8);

/// For so long a connection that was logged is not logged again.
const QUIET: Duration = Duration::from_secs(60);

/// At most so many are logged in that time; then one line says how many more there were.
const LINES: usize = 20;

/// So many of these are of one source: a scan must not hide the others.
const LINES_OF_ONE: usize = 5;

/// So many policies are named in one of them.
const POLICIES: usize = 8;

/// What is remembered from one look to the next; bounded by the node's pods and the size of the record.
#[derive(Debug, Default)]
pub struct Denials {
    look_at: Option<Instant>,
    read_at: Option<Instant>,
    /// Whether the record had less than ample room when it was last read.
    crowded: bool,
    /// The kernel's counters as they were last read. They begin anew when the table is replaced; ours do not.
    counted: BTreeMap<(Side, IpAddr, PodName), u64>,
    /// The same of addresses that nobody knows.
    unknown: Option<u64>,
    /// The packets of each entry of the record.
    recorded: BTreeMap<(IpAddr, IpAddr, String), u64>,
    /// The pods that have series.
    told: BTreeSet<PodName>,
    log: Log,
}

/// Who tried to reach whom, on which port: workloads, pods without one, nodes and addresses.
type Class = (String, String, String);

/// Lines of the last minute.
#[derive(Debug, Default)]
struct Log {
    since: Option<Instant>,
    logged: BTreeSet<Class>,
    more: BTreeSet<Class>,
}

/// Something that was denied since the last look.
struct News {
    packets: u64,
    from: Endpoint,
    to: Endpoint,
    denial: Denial,
}

impl Denials {
    /// Reads the kernel when it is time to; cheap otherwise.
    pub fn look<K: Kernel>(&mut self, enforcer: &mut Enforcer<K>, cluster: &Cluster, metrics: &Metrics) {
        let start = Instant::now();
        if self.look_at.is_some_and(|at| start < at) {
            return;
        }
        if let Err(error) = self.read(enforcer, cluster, metrics) {
            // Whoever looks after the table says what is wrong with nft; a count is only late, and room is made with the next.
            debug!("the counters of denied packets cannot be read, or there is no room for more: {error}");
        }
        self.look_at = Some(Instant::now() + self.pause(start.elapsed()));
    }

    /// How long it is from the end of a look to the next, when it took so long.
    fn pause(&self, took: Duration) -> Duration {
        let pause = took.saturating_mul(SHARE);
        let pause = if self.crowded { pause.min(LOOK_WITHIN) } else { pause };
        LOOK_EVERY.max(pause)
    }

    fn read<K: Kernel>(
        &mut self,
        enforcer: &mut Enforcer<K>,
        cluster: &Cluster,
        metrics: &Metrics,
    ) -> Result<(), ApplyError> {
        let (kernel, node, settings) = (enforcer.kernel(), enforcer.node(), enforcer.settings());
        let local = local(node, cluster);
        self.forget(&local, metrics);
        let mut moved = false;
        for side in Side::all().filter(|side| local.keys().any(|a| Family::of(*a) == side.family)) {
            for count in kernel.counts(side)?.unwrap_or_default() {
                let Some(pod) = local.get(&count.address) else { continue };
                let before = self
                    .counted
                    .insert((side, count.address, (*pod).clone()), count.packets);
                let new = increase(before, count.packets);
                moved |= new > 0;
                self.told.insert((*pod).clone());
                metrics
                    .denied_packets
                    .get_or_create(&ByPod::new(pod, side.direction))
                    .inc_by(new);
            }
        }
        let drops_unknown = settings.unknown_pods == UnknownPods::Drop;
        if drops_unknown && let Some(packets) = kernel.unknown()? {
            let new = increase(self.unknown.replace(packets), packets);
            moved |= new > 0;
            metrics.unknown_pod_packets.inc_by(new);
        }
        let now = Instant::now();
        self.log.turn(now);
        if !moved && !self.crowded && self.read_at.is_some_and(|at| now < at) {
            return Ok(());
        }
        self.read_at = Some(now + READ_EVERY);
        let Some(record) = kernel.denials()? else { return Ok(()) };
        self.crowded = room::is_crowded(&record);
        let surplus = room::surplus(&record);
        let evaluator = Evaluator::new(cluster);
        for news in self.news(record, &evaluator) {
            let book = evaluator.addresses();
            let unknown = (news.denial.unknown_end(cluster, book, Some(node))).filter(|_| drops_unknown);
            self.log.line(&news, unknown, &evaluator, settings.mode, now);
        }
        // One set that is refused does not keep another full.
        let mut result = Ok(());
        for entries in surplus {
            debug!("the record grows full: {} of its entries make room", entries.len());
            let gone: BTreeSet<_> = entries.iter().map(key).collect();
            match enforcer.forget(entries) {
                // The first packet is news when it comes again.
                Ok(()) => self.recorded.retain(|key, _| !gone.contains(key)),
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Drops the series of pods that are gone.
    fn forget(&mut self, local: &BTreeMap<IpAddr, &PodName>, metrics: &Metrics) {
        let pods: BTreeSet<&PodName> = local.values().copied().collect();
        self.counted
            .retain(|(_, address, pod), _| local.get(address).is_some_and(|now| *now == pod));
        self.told.retain(|pod| {
            let stays = pods.contains(pod);
            if !stays {
                for labels in ByPod::both(pod) {
                    metrics.denied_packets.remove(&labels);
                }
            }
            stays
        });
    }

    /// What is new in the record, the longest ago first.
    fn news(&mut self, record: Vec<Denial>, evaluator: &Evaluator<'_>) -> Vec<News> {
        let mut recorded = BTreeMap::new();
        let mut news = Vec::new();
        for denial in record {
            let key = key(&denial);
            let packets = increase(self.recorded.get(&key).copied(), denial.packets);
            recorded.insert(key, denial.packets);
            if packets > 0 {
                news.push(News {
                    packets,
                    from: evaluator.addresses().endpoint(denial.from),
                    to: evaluator.addresses().endpoint(denial.to),
                    denial,
                });
            }
        }
        self.recorded = recorded;
        news.sort_by(|a, b| b.denial.ago.cmp(&a.denial.ago).then_with(|| a.denial.cmp(&b.denial)));
        news
    }
}

impl Log {
    /// Ends a minute, and says what it has kept to itself.
    fn turn(&mut self, now: Instant) {
        if self.since.is_none_or(|since| now.duration_since(since) < QUIET) {
            return;
        }
        if !self.more.is_empty() {
            info!(
                "and {} more sorts of denied connections in the last minute: `palisade denied` shows all",
                self.more.len()
            );
        }
        *self = Log::default();
    }

    fn line(&mut self, news: &News, unknown: Option<IpAddr>, evaluator: &Evaluator<'_>, mode: Mode, now: Instant) {
        let (from, to) = (title(&news.from, evaluator), title(&news.to, evaluator));
        let class = (from, to, news.denial.words());
        if self.logged.contains(&class) {
            return;
        }
        let of_one = self.logged.iter().filter(|(from, ..)| *from == class.0).count();
        if self.logged.len() >= LINES || of_one >= LINES_OF_ONE {
            self.more.insert(class);
            return;
        }
        self.since.get_or_insert(now);
        let decision = evaluator.decide(&news.from, &news.to, news.denial.traffic());
        let audited = unknown.is_none() && decision.allowed && !decision.would_be_allowed();
        let reason = match (unknown, news.denial.by_shared_link(), decision.allowed && !audited) {
            (Some(address), _, _) => unknown_words(address),
            (None, Some(why), true) => why.to_owned(),
            // Policy has changed since, or the packet belonged to no connection that is known.
            (None, None, true) => "allowed by now".to_owned(),
            (None, _, false) => decision.to_string(),
        };
        let word = match mode {
            Mode::Enforce if !audited => "denied",
            _ => "would be denied",
        };
        let policies = policies(&decision);
        info!(from = %news.from, to = %news.to, port = class.2, packets = news.packets, policies, reason, "{word}");
        self.logged.insert(class);
    }
}

/// The policies that deny, or would: those that isolate the pod, and whose rule decides; none when nobody does by now.
fn policies(decision: &Decision) -> Option<String> {
    let sides = decision.sides().into_iter().filter(|side| !side.would_allow());
    let names: BTreeSet<&PolicyName> = sides
        .flat_map(|side| {
            let deciding = side.decided_by.iter().map(|rule| &rule.policy);
            let audited = side.audit.iter().flat_map(|audit| &audit.policies);
            side.isolated_by.iter().chain(deciding).chain(audited)
        })
        .collect();
    let mut words: Vec<String> = names.iter().take(POLICIES).map(ToString::to_string).collect();
    if names.len() > POLICIES {
        words.push(format!("and {} more", names.len() - POLICIES));
    }
    (!words.is_empty()).then(|| words.join(", "))
}

/// The addresses of this node's pods.
fn local<'a>(node: &Name, cluster: &'a Cluster) -> BTreeMap<IpAddr, &'a PodName> {
    let here = |pod: &&Arc<Pod>| pod.node.as_ref() == Some(node) && !pod.host_network && !pod.ended;
    let pods = cluster.pods.values().filter(here);
    pods.flat_map(|pod| pod.addresses.iter().map(|address| (*address, &pod.name)))
        .collect()
}

fn key(denial: &Denial) -> (IpAddr, IpAddr, String) {
    (denial.from, denial.to, denial.words())
}

/// By how much a counter has risen; one that is lower than it was has begun anew.
fn increase(before: Option<u64>, now: u64) -> u64 {
    match before {
        Some(before) if before <= now => now - before,
        _ => now,
    }
}

fn title(end: &Endpoint, evaluator: &Evaluator<'_>) -> String {
    match end {
        Endpoint::Pod(pod, _) => match &pod.workload {
            Some(workload) => format!("{}/{}/{}", pod.name.namespace, workload.kind, workload.name),
            None => pod.name.to_string(),
        },
        Endpoint::Address(address) => match evaluator.addresses().node(end) {
            Some(node) => format!("node/{node}"),
            None => address.to_string(),
        },
    }
}

#[cfg(test)]
mod tests;
