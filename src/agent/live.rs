//! The agent on an API server: watches go in, the loop hears a snapshot and then events, and health becomes readiness,
//! metrics and log lines.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use policy_compiler::cluster::Cluster;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tracing::info;

use super::folder::{self, Changes};
use super::http::Shared;
use super::readiness::Cause;
use super::reconcile::{Read, Told};
use super::source::{Health, Resource, Update, Waiting, Watches};

/// How long changes are gathered from the first of them: those of one rollout come in flocks. In a large one there is never a quiet
/// time, and then this wait is part of every delay; what comes while nft works is gathered in any case.
const QUIET: Duration = Duration::from_millis(5);
const AT_LATEST: Duration = Duration::from_millis(15);

/// How often health is told.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// A watch that has failed for so long is worth a warning in `/readyz`. Readiness stays: what the kernel holds is the last
/// policy that anybody knows, and a restart would not change that.
const STALE_AFTER: Duration = Duration::from_secs(60);

/// The cluster, then what has changed since; the loop reads it when [`Changes`] say so.
pub(super) struct Live {
    first: Option<Cluster>,
    waiting: Waiting,
    task: JoinHandle<()>,
}

impl Read for Live {
    fn read(&mut self) -> Result<Told, Vec<String>> {
        if let Some(cluster) = self.first.take() {
            return Ok(Told::Snapshot(cluster));
        }
        let (events, since) = self.waiting.take().unwrap_or_else(|| (Vec::new(), Instant::now()));
        Ok(Told::Events { events, since })
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits until every watch is complete, and follows them from then on; none when `stop` is done before.
pub(super) async fn start(
    mut watches: Watches,
    shared: &Shared,
    stop: impl Future<Output = ()>,
) -> Option<(Live, Changes)> {
    let mut stop = std::pin::pin!(stop);
    let mut tell = ticker();
    let began = Instant::now();
    let cluster = loop {
        shared.heartbeat.beat();
        tokio::select! {
            biased;
            () = &mut stop => return None,
            update = watches.next() => match update {
                Update::Ready(cluster) => break *cluster,
                Update::Events { .. } => {}
            },
            _ = tell.tick() => publish(&watches.health(), shared),
        }
    };
    publish(&watches.health(), shared);
    info!(
        pods = cluster.pods.len(),
        policies = cluster.policies.len(),
        namespaces = cluster.namespaces.len(),
        nodes = cluster.nodes.len(),
        "every watch is complete after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let (changed, changes) = folder::signal(QUIET, AT_LATEST);
    let live = Live {
        first: Some(cluster),
        waiting: watches.waiting(),
        task: tokio::spawn(follow(watches, changed, shared.clone())),
    };
    Some((live, changes))
}

/// Tells the loop that there are changes, and leaves them where they gather.
async fn follow(mut watches: Watches, changed: mpsc::Sender<()>, shared: Shared) {
    let mut tell = ticker();
    loop {
        tokio::select! {
            () = watches.changed() => {
                // Full: the loop is due anyway. Closed: the agent ends.
                let _ = changed.try_send(());
            }
            _ = tell.tick() => publish(&watches.health(), &shared),
        }
    }
}

fn ticker() -> tokio::time::Interval {
    let mut ticker = tokio::time::interval(TELL_EVERY);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

/// Tells how the watches fare.
fn publish(health: &BTreeMap<Resource, Health>, shared: &Shared) {
    let Shared { readiness, metrics, .. } = shared;
    let (mut missing, mut warnings) = (Vec::new(), Vec::new());
    for (resource, health) in health {
        metrics.watch(*resource, health);
        let error = health.error.as_deref().filter(|_| health.failing_since.is_some());
        match (health.synced, health.failing_since) {
            (false, _) => missing.push(match error {
                Some(error) => format!("{resource} cannot be watched: {error}"),
                None => format!("{resource} have not been listed yet"),
            }),
            (true, Some(since)) if since.elapsed() >= STALE_AFTER => warnings.push(format!(
                "{resource} cannot be watched for {} s, and their last known state is enforced: {}",
                since.elapsed().as_secs(),
                error.unwrap_or_default()
            )),
            (true, _) => {}
        }
        warnings.extend(health.complaints.iter().cloned());
    }
    if missing.is_empty() {
        readiness.clear(Cause::Watches);
    } else {
        readiness.block(Cause::Watches, missing);
    }
    readiness.warn_of(Cause::Watches, warnings);
}

#[cfg(test)]
mod tests {
    use tokio::time;

    use super::*;

    /// What a storm cannot show: it is gathered for as long as nft works in any case.
    #[tokio::test(start_paused = true)]
    async fn a_flock_is_gathered_and_a_lone_change_hardly_waits() {
        let (events, mut changes) = folder::signal(QUIET, AT_LATEST);
        let start = time::Instant::now();
        events.try_send(()).expect("room");
        changes.next().await;
        assert_eq!(start.elapsed(), QUIET);

        let lasts = Duration::from_millis(1000);
        let flock = tokio::spawn(async move {
            for _ in 0..lasts.as_millis() {
                let _ = events.try_send(());
                time::sleep(Duration::from_millis(1)).await;
            }
        });
        let mut told = 0;
        while time::timeout(lasts, changes.next()).await.is_ok() {
            told += 1;
        }
        assert!(flock.is_finished());
        let most = lasts.as_millis() / AT_LATEST.as_millis() + 1;
        assert!(told > 1 && told <= most, "{told} times, and {most} are the most");
    }
}
