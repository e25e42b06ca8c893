//! The cluster that a command is about: manifests, or with `--live` the one that runs, read once.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::jiff::{Timestamp, Unit};

use super::args::{Live, Manifests};
use super::note;
use super::output::count;
use crate::agent::source::{Access, Count, Remark, Snapshot, Target, Timing, Wanted, snapshot};
use crate::manifests::{self, Loaded, ObjectName, Problem, Source};
use crate::progress::Progress;

/// How often whoever waits sees how far it is.
const TICK: Duration = Duration::from_millis(200);

/// Loads the manifests, or reads the live cluster with its Services.
pub(crate) fn load(manifests: &Manifests) -> anyhow::Result<Loaded> {
    match manifests.live.target() {
        Some(target) => live(&target, Wanted::Services),
        None => Ok(manifests::load(&manifests.paths)?),
    }
}

/// Reads a live cluster, as what manifests of its objects would be loaded as, and says on standard error where it is from.
/// Its objects stand in no file, so nothing is in `sources`.
pub(crate) fn live(target: &Target, wanted: Wanted) -> anyhow::Result<Loaded> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the asynchronous runtime")?;
    runtime.block_on(read(target, wanted))
}

impl Live {
    /// Which cluster, if a live one is meant.
    pub(crate) fn target(&self) -> Option<Target> {
        let kubeconfig = Target::Kubeconfig {
            file: self.kubeconfig.clone(),
            context: self.context.clone(),
        };
        let named = self.kubeconfig.is_some() || self.context.is_some() || has_kubeconfig();
        // As kubectl does: in a pod without a kubeconfig, the cluster of the pod.
        let in_a_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        self.live.then(|| match in_a_pod && !named {
            true => Target::ServiceAccount,
            false => kubeconfig,
        })
    }
}

/// Whether there is a kubeconfig where kubectl looks for one.
fn has_kubeconfig() -> bool {
    let variable = std::env::var_os("KUBECONFIG").is_some_and(|files| !files.is_empty());
    variable || std::env::home_dir().is_some_and(|home| home.join(".kube/config").exists())
}

async fn read(target: &Target, wanted: Wanted) -> anyhow::Result<Loaded> {
    let access = Access::new(target.clone())?;
    let server = &access.info().server;
    let (seen, mut progress) = (Count::default(), Progress::new());
    progress.stage(format!("reading the cluster at {server}"));
    let timing = Timing::default();
    let mut reading = std::pin::pin!(snapshot(&access, &timing, wanted, &seen));
    let mut tick = tokio::time::interval(TICK);
    let result = loop {
        tokio::select! {
            result = &mut reading => break result,
            _ = tick.tick() => progress.step(seen.read(), seen.all()),
        }
    };
    progress.clear();
    let Snapshot {
        cluster,
        remarks,
        no_services,
    } = result?;
    let now = Timestamp::now().round(Unit::Second)?;
    note(&format!(
        "{}, {} and {} read from {server} ({}) at {now}",
        count(cluster.pods.len(), "pod"),
        count(cluster.policies.len(), "policy"),
        count(cluster.namespaces.len(), "namespace"),
        access.info().credentials,
    ));
    let source = Source {
        file: server.as_str().into(),
        position: None,
    };
    let mut warnings: Vec<Problem> = remarks.into_iter().map(|remark| problem(&source, remark)).collect();
    warnings.extend(no_services.map(|why| Problem {
        source: source.clone(),
        object: None,
        path: None,
        message: format!(
            "services cannot be listed ({why}): the address of a Service is taken for that of anybody outside; allow the verb list on services"
        ),
    }));
    Ok(Loaded {
        cluster,
        warnings,
        ..Loaded::default()
    })
}

fn problem(source: &Source, remark: Remark) -> Problem {
    Problem {
        source: source.clone(),
        object: Some(ObjectName {
            kind: remark.kind.into(),
            namespace: remark.namespace,
            name: remark.name,
        }),
        path: remark.path,
        message: remark.message,
    }
}
