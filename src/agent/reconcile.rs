//! The agent's loop. Signals go in (the source changed, time passed, stop), and the kernel is brought to what the source
//! says, by snapshot or by events; readiness, metrics and the log tell how it went.
//!
//! Every step blocks: reading files, compiling, nft. The loop must therefore have a thread of its own, such as the one
//! that calls `block_on` of a runtime whose workers do the rest.

use std::collections::{BTreeSet, HashSet};
use std::future::Future;
use std::time::Duration;

use policy_compiler::addresses::AddressConflict;
use policy_compiler::cluster::Cluster;
use policy_compiler::compile::Event;
use policy_compiler::labels::Name;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use super::backoff::Backoff;
use super::bridge::Bridges;
use super::denials::Denials;
use super::enforcer::{Applied, ApplyError, Enforcer, Summary};
use super::folder::{AT_LATEST, Changes};
use super::http::Shared;
use super::isolate::{Isolation, Policies};
use super::metrics::{ByOutcome, Outcome};
use super::readiness::Cause;
use crate::nft::{Kernel, KernelError, Settings, UnknownPods};

/// How often the folder is read although nothing has been seen to change: inotify does not see everything (a network
/// file system, a directory far above the folder moved away).
pub const READ_EVERY: Duration = Duration::from_secs(30);

/// How often the agent looks whether somebody else has changed the table. Nearly always that is a netlink message or two (tens
/// of microseconds); only when somebody may have changed ours, nft lists it.
pub const CHECK_EVERY: Duration = Duration::from_secs(1);

/// How often the nodes are counted: no more depends on it than how often something is told.
const COUNT_EVERY: Duration = Duration::from_secs(60);

/// How long transactions of our own go on being trusted before the whole table is looked at. Nothing says that they should not be.
const CONFIRM_EVERY: Duration = Duration::from_secs(300);

/// Listing a large table takes long, and so does reading many manifests. Each is done so seldom, when nothing tells that it
/// is worth it, that it takes one part in so many of the time.
const SHARE: u32 = 20;

/// After so long a quiet time, listings may follow each other at once again: somebody's first change is seen at once.
const BURST: Duration = Duration::from_secs(60);

/// What a source has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The whole cluster.
    Snapshot(Cluster),
    /// What has changed since the snapshot or the events before, which came first; none is fine.
    Events {
        /// The changes, at most one for each object.
        events: Vec<Event>,
        /// When the first of them came.
        since: std::time::Instant,
    },
}

/// Where the loop hears of the cluster.
pub trait Read {
    /// Reads it, without waiting, or says what is wrong, one error (with file and line) a string.
    fn read(&mut self) -> Result<Told, Vec<String>>;
}

impl<F: FnMut() -> Result<Cluster, Vec<String>>> Read for F {
    fn read(&mut self) -> Result<Told, Vec<String>> {
        self().map(Told::Snapshot)
    }
}

/// The loop and what it remembers, none of which grows with time.
#[derive(Debug)]
pub struct Reconciler<R, K> {
    source: R,
    enforcer: Enforcer<K>,
    shared: Shared,
    /// The last good snapshot, with all events since.
    cluster: Option<Cluster>,
    /// The policies that the kernel took last.
    taken: Policies,
    /// Whether those of the cluster may be others.
    policies_changed: bool,
    /// When the first event came that the kernel does not know.
    waiting_since: Option<std::time::Instant>,
    isolation: Isolation,
    /// What is wrong with the manifests now, and so has been logged.
    errors: BTreeSet<String>,
    /// What is odd about the cluster now, and so has been logged.
    findings: BTreeSet<String>,
    /// Looks whether packets between pods on a bridge meet the rules; none where nobody asked for it.
    bridges: Option<Bridges>,
    /// What is wrong with bridges now, and so has been logged.
    escapes: BTreeSet<String>,
    denials: Denials,
    backoff: Backoff,
    retry_at: Option<Instant>,
    check_at: Instant,
    count_at: Instant,
    /// When the table was last listed.
    listed_at: Instant,
    /// When all listings so far have had their share of the time; not before then is the table listed again.
    list_at: Instant,
    repaired_at: Option<Instant>,
    /// Why no connection passes by its mark, as it has been logged.
    unmarked: Option<String>,
}

enum Turn {
    Stop,
    Read,
    Retry,
    Check,
}

impl<R: Read, K: Kernel> Reconciler<R, K> {
    /// Nothing is read or applied yet.
    pub fn new(source: R, enforcer: Enforcer<K>, shared: Shared) -> Self {
        Reconciler {
            source,
            enforcer,
            shared,
            cluster: None,
            taken: Policies::new(),
            policies_changed: false,
            waiting_since: None,
            isolation: Isolation::default(),
            errors: BTreeSet::new(),
            findings: BTreeSet::new(),
            bridges: None,
            escapes: BTreeSet::new(),
            denials: Denials::default(),
            backoff: Backoff::default(),
            retry_at: None,
            check_at: Instant::now(),
            count_at: Instant::now(),
            listed_at: Instant::now(),
            list_at: before(Instant::now(), BURST),
            repaired_at: None,
            unmarked: None,
        }
    }

    /// Has the loop look after the bridges of pods as well.
    #[must_use]
    pub fn with_bridges(mut self, bridges: Bridges) -> Self {
        self.bridges = Some(bridges);
        self
    }

    /// Reads for the first time and applies what there is. With errors in the manifests nothing is applied.
    ///
    /// When nft fails, the loop tries again.
    pub fn start(&mut self) -> Result<(), Vec<String>> {
        let read = self.read();
        self.note(&read);
        self.hear(read?);
        Ok(())
    }

    /// Follows changes until `stop` is done. What is in the kernel then stays there.
    pub async fn run(&mut self, changes: &mut Changes, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut read_at = Instant::now() + READ_EVERY;
        let mut unsettled_since = None;
        loop {
            self.shared.heartbeat.beat();
            let retry_at = self.retry_at;
            let turn = tokio::select! {
                biased;
                () = &mut stop => Turn::Stop,
                () = changes.next() => Turn::Read,
                () = sleep_until(retry_at.unwrap_or(read_at)), if retry_at.is_some() => Turn::Retry,
                () = sleep_until(self.check_at), if retry_at.is_none() => Turn::Check,
                () = sleep_until(read_at) => Turn::Read,
            };
            match turn {
                Turn::Stop => return,
                Turn::Read => {
                    let start = Instant::now();
                    let read = self.read();
                    read_at = Instant::now() + READ_EVERY.max(start.elapsed().saturating_mul(SHARE));
                    // Changed while it was read: it may have been read half way, and the next read is due anyway.
                    let since = *unsettled_since.get_or_insert_with(Instant::now);
                    let whole = matches!(read, Ok(Told::Events { .. }));
                    if !whole && changes.any() && since.elapsed() < AT_LATEST {
                        continue;
                    }
                    unsettled_since = None;
                    self.note(&read);
                    self.complain(read.as_ref().err().map_or(&[], Vec::as_slice));
                    if let Ok(told) = read {
                        self.hear(told);
                    }
                }
                Turn::Retry => {
                    let result = self.enforcer.resync();
                    let result = self.or_isolate(result);
                    self.settle(result);
                }
                Turn::Check => {
                    self.check();
                    self.look();
                }
            }
        }
    }

    fn read(&mut self) -> Result<Told, Vec<String>> {
        let start = Instant::now();
        let read = self.source.read();
        if !matches!(read, Ok(Told::Events { .. })) {
            self.shared.metrics.read_duration.observe(start.elapsed().as_secs_f64());
        }
        read
    }

    /// Tells how a read of a snapshot went, in metrics and readiness.
    fn note(&self, read: &Result<Told, Vec<String>>) {
        let Shared { readiness, metrics, .. } = &self.shared;
        let outcome = match read {
            Err(errors) => {
                let lines = errors.iter().map(|e| format!("manifests: {e}")).collect();
                readiness.block(Cause::Manifests, lines);
                Outcome::Failed
            }
            Ok(Told::Events { .. }) => return,
            Ok(Told::Snapshot(cluster)) => {
                readiness.clear(Cause::Manifests);
                if self.cluster.as_ref() == Some(cluster) {
                    Outcome::Unchanged
                } else {
                    Outcome::Changed
                }
            }
        };
        metrics
            .manifest_errors
            .set(read.as_ref().err().map_or(0, Vec::len) as i64);
        metrics.reads.get_or_create(&ByOutcome { outcome }).inc();
    }

    /// Logs what is wrong with the manifests, once and not with every read.
    fn complain(&mut self, errors: &[String]) {
        if errors.is_empty() && !self.errors.is_empty() {
            info!("the manifests can be read again");
        }
        for error in news(&mut self.errors, errors) {
            error!("{error}; the kernel keeps the last good policy");
        }
    }

    fn hear(&mut self, told: Told) {
        match told {
            Told::Snapshot(cluster) => self.apply(cluster),
            Told::Events { events, since } if !events.is_empty() => self.follow(events, since),
            Told::Events { .. } => {}
        }
    }

    fn apply(&mut self, cluster: Cluster) {
        if self.enforcer.is_held() && self.cluster.as_ref() == Some(&cluster) {
            // Not even compiled: the answer would be the same.
            self.settle(Ok(Applied::default()));
            return;
        }
        let closed = self.isolation.close(&cluster);
        let result = self.bring(closed.as_ref().unwrap_or(&cluster));
        self.cluster = Some(cluster);
        self.policies_changed = true;
        self.count_nodes();
        self.check_bridges();
        let result = self.or_isolate(result);
        self.settle(result);
    }

    /// Brings the kernel to the cluster after these events. The work follows the events, unless a policy is closed: then
    /// the whole cluster is looked through.
    fn follow(&mut self, events: Vec<Event>, since: std::time::Instant) {
        // Every source begins with a snapshot.
        let Some(mut cluster) = self.cluster.take() else {
            return;
        };
        self.waiting_since.get_or_insert(since);
        let policies = events
            .iter()
            .any(|event| matches!(event, Event::Policy(_) | Event::PolicyGone(..)));
        self.policies_changed |= policies;
        for event in &events {
            event.clone().apply_to(&mut cluster);
        }
        // nft has failed, and each attempt now is the whole table: only another policy may mend it before its time.
        let patient = self.retry_at.is_some() && !policies;
        if self.isolation.count() > 0 {
            let closed = self.isolation.close(&cluster);
            self.compile(|enforcer| enforcer.compile(closed.as_ref().unwrap_or(&cluster)));
        } else {
            self.compile(|enforcer| enforcer.take(events));
        }
        self.cluster = Some(cluster);
        if !patient {
            let result = self.enforcer.commit();
            let result = self.or_isolate(result);
            self.settle(result);
        }
    }

    /// Compiles a snapshot and brings the kernel to it.
    fn bring(&mut self, cluster: &Cluster) -> Result<Applied, ApplyError> {
        self.compile(|enforcer| enforcer.compile(cluster));
        self.enforcer.commit()
    }

    fn compile(&mut self, work: impl FnOnce(&mut Enforcer<K>)) {
        let start = Instant::now();
        work(&mut self.enforcer);
        self.shared
            .metrics
            .compile_duration
            .observe(start.elapsed().as_secs_f64());
        let summary = self.enforcer.summary();
        self.tell(&summary);
    }

    /// When the kernel refused: closes the policies that it refuses, and tries again.
    fn or_isolate(&mut self, result: Result<Applied, ApplyError>) -> Result<Applied, ApplyError> {
        let Some(cluster) = &self.cluster else { return result };
        let refused = match result {
            Err(ApplyError::Kernel(KernelError::Refused(why))) => why,
            Ok(applied) => {
                if std::mem::take(&mut self.policies_changed) {
                    self.taken = cluster.policies.clone();
                }
                return Ok(applied);
            }
            error => return error,
        };
        let enforcer = &self.enforcer;
        let found = self
            .isolation
            .seek(cluster, &self.taken, |candidate| enforcer.check(candidate))?;
        let closed = if found { self.isolation.close(cluster) } else { None };
        match closed {
            Some(closed) => {
                error!("nft refused: {refused}");
                self.bring(&closed)
            }
            None => Err(KernelError::Refused(refused).into()),
        }
    }

    /// Tells how a transaction went, and plans what comes next.
    fn settle(&mut self, result: Result<Applied, ApplyError>) {
        let Shared { readiness, metrics, .. } = &self.shared;
        let outcome = match &result {
            Ok(applied) if applied.changed => Outcome::Changed,
            Ok(_) => Outcome::Unchanged,
            Err(_) => Outcome::Failed,
        };
        metrics.applies.get_or_create(&ByOutcome { outcome }).inc();
        match result {
            Ok(applied) => {
                metrics.succeeded_now();
                let lag = self.waiting_since.take().map(|since| since.elapsed());
                metrics.enforced(&self.shared.noted.held(&self.enforcer, &applied, lag));
                self.backoff.reset();
                self.retry_at = None;
                if applied.changed {
                    if let Some(lag) = lag {
                        metrics.event_to_kernel.observe(lag.as_secs_f64());
                    }
                    metrics.apply_duration.observe(applied.duration.as_secs_f64());
                    metrics.operations.inc_by(applied.operations as u64);
                    // Pods come and go all day in a large cluster.
                    match lag {
                        None => {
                            info!(operations = applied.operations, took = ?applied.duration, "the kernel follows the source")
                        }
                        Some(lag) => {
                            debug!(operations = applied.operations, took = ?applied.duration, ?lag, "the kernel follows the API server")
                        }
                    }
                    // What the table looks like now is what later looks are compared with.
                    self.check_at = Instant::now();
                } else {
                    debug!("nothing changed");
                }
                // Last: who has waited for it finds all the rest told.
                readiness.clear(Cause::Starting);
                readiness.clear(Cause::Kernel);
            }
            Err(error) => {
                let delay = self.backoff.delay();
                error!(
                    "{error}; the whole table is tried again in {:.1} s",
                    delay.as_secs_f64()
                );
                readiness.block(Cause::Kernel, vec![format!("kernel: {error}")]);
                self.retry_at = Some(Instant::now() + delay);
            }
        }
    }

    /// Looks whether somebody else has changed the table, and undoes it.
    fn check(&mut self) {
        self.check_at = Instant::now() + CHECK_EVERY;
        if Instant::now() >= self.count_at {
            self.count_nodes();
        }
        self.check_bridges();
        if let Err(error) = self.verify() {
            return self.settle(Err(error));
        }
        if !self.enforcer.is_touched() {
            if let Err(error) = self.enforcer.learn() {
                return self.settle(Err(error));
            }
            self.shared.metrics.succeeded_now();
            if !self.enforcer.is_unconfirmed() || self.listed_at.elapsed() < CONFIRM_EVERY {
                return;
            }
        }
        if Instant::now() < self.list_at {
            return;
        }
        self.listed_at = Instant::now();
        let start = Instant::now();
        let drift = self.enforcer.drift();
        let took = start.elapsed();
        self.shared.metrics.drift_check_duration.observe(took.as_secs_f64());
        self.list_at = self.list_at.max(before(Instant::now(), BURST)) + took.saturating_mul(SHARE);
        match drift {
            Ok(None) => self.shared.metrics.succeeded_now(),
            Ok(Some(difference)) => {
                // Against somebody who changes it all the time: not faster than looks are due.
                if let Some(repaired) = self.repaired_at
                    && repaired.elapsed() < CHECK_EVERY
                {
                    self.check_at = repaired + CHECK_EVERY;
                    return;
                }
                warn!("somebody else has changed the table inet palisade ({difference}): it is replaced");
                self.repaired_at = Some(Instant::now());
                let result = self.enforcer.resync();
                if result.is_ok() {
                    self.shared.metrics.drift_repairs.inc();
                }
                self.settle(result);
            }
            Err(error) => self.settle(Err(error)),
        }
    }

    /// Counts the nodes that pods run on. Node objects are not asked: an agent need not know those of other nodes.
    fn count_nodes(&mut self) {
        self.count_at = Instant::now() + COUNT_EVERY;
        let pods = self.cluster.iter().flat_map(|cluster| cluster.pods.values());
        let nodes: HashSet<&Name> = pods.filter_map(|pod| pod.node.as_ref()).collect();
        self.shared.metrics.nodes.set(nodes.len() as i64);
    }

    /// Looks whether packets between pods on a bridge meet the rules: the agent is not ready while they do not.
    fn check_bridges(&mut self) {
        let (Some(bridges), Some(cluster)) = (&self.bridges, &self.cluster) else {
            return;
        };
        let reasons = bridges.check(cluster, self.enforcer.node());
        for reason in news(&mut self.escapes, &reasons) {
            error!("{reason}");
        }
        match reasons.is_empty() {
            true => self.shared.readiness.clear(Cause::Bridge),
            false => self.shared.readiness.block(Cause::Bridge, reasons),
        }
    }

    /// Looks what was denied, when it is time to.
    fn look(&mut self) {
        if let Some(cluster) = &self.cluster {
            self.denials.look(&mut self.enforcer, cluster, &self.shared.metrics);
        }
    }

    /// Lets connections pass by their marks again, once there is nothing more urgent; several changes in a row cost one number.
    fn verify(&mut self) -> Result<(), ApplyError> {
        while self.enforcer.verify()? {}
        let verified = self.enforcer.verified();
        let trouble = verified
            .trouble()
            .map(|trouble| format!("--verified-mark is without effect, every packet is judged: {trouble}"));
        let Shared { readiness, metrics, .. } = &self.shared;
        metrics.verified_marks.set(verified.is_on().into());
        readiness.remark(trouble.clone());
        if self.unmarked != trouble {
            match &trouble {
                Some(trouble) => warn!("{trouble}"),
                None => info!("packets of judged connections pass by their mark"),
            }
            self.unmarked = trouble;
        }
        Ok(())
    }

    fn tell(&mut self, summary: &Summary) {
        let Shared { readiness, metrics, .. } = &self.shared;
        metrics.pods.set(summary.pods as i64);
        metrics.node_pods.set(summary.node_pods as i64);
        metrics.policies.set(summary.policies as i64);
        metrics.address_conflicts.set(summary.conflicts.len() as i64);
        let mut findings: Vec<String> = summary.conflicts.iter().map(conflict).collect();
        let mut warnings = Vec::new();
        if !summary.node_known {
            // Not an error: a node may have no pods yet. But most likely a name with a typing error.
            let node = self.enforcer.node();
            warnings.push(format!(
                "there is neither a Node {node} nor a pod on it: there is nothing to enforce here"
            ));
        }
        warnings.extend(uncovered(self.enforcer.node(), self.enforcer.settings(), summary));
        metrics.isolated_policies.set(self.isolation.count() as i64);
        self.shared.noted.note_refused(self.isolation.network_policies());
        warnings.extend(self.isolation.lines());
        findings.extend(warnings.iter().cloned());
        readiness.warn(warnings);
        for finding in news(&mut self.findings, &findings) {
            warn!("{finding}");
        }
    }
}

/// What `--unknown-pods drop` cannot do here. A node that nobody knows has no range: to guess one would cut off pods.
fn uncovered(node: &Name, settings: Settings, summary: &Summary) -> Option<String> {
    match (settings.unknown_pods, summary.pod_ranges, summary.pods_outside_ranges) {
        (UnknownPods::Allow, ..) => None,
        (UnknownPods::Drop, 0, _) => Some(format!(
            "--unknown-pods drop is without effect: no Node {node} with podCIDRs is known"
        )),
        (UnknownPods::Drop, _, 0) => None,
        (UnknownPods::Drop, _, outside) => Some(format!(
            "--unknown-pods drop covers only a part of the pods here: {outside} of their addresses are outside the podCIDRs of Node {node}"
        )),
    }
}

fn conflict(conflict: &AddressConflict) -> String {
    let AddressConflict { address, winner, loser } = conflict;
    format!("{address} is claimed by pods {winner} and {loser}: it is taken for that of {winner}, which started last")
}

/// So long ago, or as long ago as this clock knows.
fn before(instant: Instant, by: Duration) -> Instant {
    instant.checked_sub(by).unwrap_or(instant)
}

/// The lines that were not there before; `known` becomes the lines of now.
pub(super) fn news<'a>(known: &mut BTreeSet<String>, lines: &'a [String]) -> Vec<&'a String> {
    let mut told = BTreeSet::new();
    let news = lines
        .iter()
        .filter(|line| told.insert(*line) && !known.contains(*line))
        .collect();
    *known = lines.iter().cloned().collect();
    news
}

#[cfg(test)]
mod tests;
