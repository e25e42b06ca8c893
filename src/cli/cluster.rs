//! The cluster that a command is about: manifests, or with `--live` the one that runs, read once.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::jiff::{Timestamp, Unit};

use policy_compiler::cluster::Cluster;
use policy_compiler::diagnostics::Code;

use super::args::{DiffArgs, Live, Manifests};
use super::diff::Version;
use super::ends::Compiled;
use super::output::{count, note};
use crate::agent::source::{Access, Count, Remark, Snapshot, Target, Timing, Wanted, snapshot};
use crate::manifests::{self, Loaded, Problem, Source};
use crate::progress::Progress;

/// How old what is known of a live cluster may be when there are news about it. Reading it all again costs the API server more
/// than a look at the record costs the node.
const AGE: Duration = Duration::from_secs(30);

/// How long after a first failure the API server is asked again: somebody waits.
const FIRST_DELAY: Duration = Duration::from_millis(500);

/// How often whoever waits sees how far it is.
const TICK: Duration = Duration::from_millis(200);

/// Loads the manifests, or reads the live cluster with its Services.
pub(crate) fn load(manifests: &Manifests) -> anyhow::Result<Loaded> {
    match manifests.live.target() {
        Some(target) => live(&target, Wanted::Services),
        None if manifests.paths.iter().filter(|path| is_stdin(path)).count() > 1 => {
            anyhow::bail!("standard input is given twice, and can be read only once: give one -")
        }
        None => Ok(manifests::load(&manifests.paths)?),
    }
}

/// The clusters that are to be compared.
pub(crate) fn versions(args: &DiffArgs) -> anyhow::Result<(Version, Version)> {
    let (before, after) = both(args)?;
    let version = |loaded: Loaded| {
        let compiled = Compiled::new(loaded.cluster.clone());
        (loaded, compiled)
    };
    Ok((version(before), version(after)))
}

/// Two clusters of manifests, or one with manifests put over it.
fn both(args: &DiffArgs) -> anyhow::Result<(Loaded, Loaded)> {
    let over = |before: Loaded, path: &Path| {
        let after = before.overlay(&one(path)?, args.prune);
        Ok((before, after))
    };
    match (args.paths.as_slice(), args.live.target()) {
        ([path], Some(target)) => over(live(&target, Wanted::Policy)?, path),
        (_, Some(_)) => {
            anyhow::bail!("with --live the old cluster is the one that runs: give one PATH, what is to be applied")
        }
        ([old, new], None) if is_stdin(old) && is_stdin(new) => {
            anyhow::bail!("OLD and NEW cannot both be standard input: give one of them as a file or a folder")
        }
        ([old, new], None) if args.overlay => over(one(old)?, new),
        ([_, _], None) if args.prune => {
            anyhow::bail!("--prune is about what NEW is put over: give --overlay or --live as well")
        }
        ([old, new], None) => Ok((one(old)?, one(new)?)),
        _ => anyhow::bail!("give two PATHs, OLD and NEW, or --live and one"),
    }
}

fn one(path: &Path) -> anyhow::Result<Loaded> {
    Ok(manifests::load(&[path.to_owned()])?)
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Reads a live cluster, as what manifests of its objects would be loaded as, and says on standard error where it is from.
/// Its objects stand in no file, so nothing is in `sources`.
pub(crate) fn live(target: &Target, wanted: Wanted) -> anyhow::Result<Loaded> {
    let (loaded, origin) = read(target, wanted)?;
    note(&origin);
    Ok(loaded)
}

/// What a command that goes on knows of a cluster: nothing, manifests as they were at its start, or the live one.
pub(crate) struct Known {
    loaded: Option<Loaded>,
    live: Option<Target>,
    read: Instant,
}

impl Known {
    /// Reads what policy is made of.
    pub(crate) fn new(paths: &[PathBuf], target: Option<Target>) -> anyhow::Result<Self> {
        let loaded = match (&target, paths) {
            (Some(target), _) => Some(live(target, Wanted::Policy)?),
            (None, []) => None,
            (None, paths) => Some(manifests::load(paths)?),
        };
        Ok(Known {
            loaded,
            live: target,
            read: Instant::now(),
        })
    }

    /// The cluster, if there is one.
    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        self.loaded.as_ref().map(|loaded| &loaded.cluster)
    }

    /// What is odd about it.
    pub(crate) fn warnings(&self) -> &[Problem] {
        self.loaded.as_ref().map_or(&[], |loaded| &loaded.warnings)
    }

    /// Reads a live cluster again unless that was done not long ago. When it fails, what is known stays.
    pub(crate) fn refresh(&mut self) -> anyhow::Result<()> {
        let Some(target) = &self.live else { return Ok(()) };
        if self.read.elapsed() < AGE {
            return Ok(());
        }
        let result = read(target, Wanted::Policy);
        self.read = Instant::now();
        self.loaded = Some(result?.0);
        Ok(())
    }
}

impl Live {
    /// Which cluster, if a live one is meant.
    pub(crate) fn target(&self) -> Option<Target> {
        if !self.live {
            return None;
        }
        let named = self.kubeconfig.is_some() || self.context.is_some() || has_kubeconfig();
        // As kubectl does: in a pod without a kubeconfig, the cluster of the pod.
        if !named && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
            return Some(Target::ServiceAccount);
        }
        Some(Target::Kubeconfig {
            file: self.kubeconfig.clone(),
            context: self.context.clone(),
        })
    }
}

/// Whether there is a kubeconfig where kubectl looks for one.
fn has_kubeconfig() -> bool {
    let variable = std::env::var_os("KUBECONFIG").is_some_and(|files| !files.is_empty());
    variable || std::env::home_dir().is_some_and(|home| home.join(".kube/config").exists())
}

/// The cluster, and in a sentence where it is from.
fn read(target: &Target, wanted: Wanted) -> anyhow::Result<(Loaded, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the asynchronous runtime")?;
    runtime.block_on(read_all(target, wanted))
}

async fn read_all(target: &Target, wanted: Wanted) -> anyhow::Result<(Loaded, String)> {
    if matches!(target, Target::Kubeconfig { file: None, .. }) && !has_kubeconfig() {
        anyhow::bail!(
            "there is no kubeconfig (KUBECONFIG is not set, and there is no ~/.kube/config): name one with --kubeconfig FILE"
        );
    }
    let access = Access::new(target.clone())?;
    let server = &access.info().server;
    let (seen, mut progress) = (Count::default(), Progress::new());
    progress.stage(format!("reading the cluster at {server}"));
    let timing = Timing {
        first_delay: FIRST_DELAY,
        ..Timing::default()
    };
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
        lint_ignore,
        no_services,
    } = result?;
    let now = Timestamp::now().round(Unit::Second)?;
    let origin = format!(
        "{}, {} and {} read from {server} ({}) at {now}",
        count(cluster.pods.len(), "pod"),
        count(cluster.policies.len(), "policy"),
        count(cluster.namespaces.len(), "namespace"),
        access.info().credentials,
    );
    let source = Source {
        file: server.as_str().into(),
        position: None,
    };
    let mut warnings: Vec<Problem> = remarks.into_iter().map(|remark| problem(&source, remark)).collect();
    warnings.extend(no_services.map(|why| Problem {
        source: source.clone(),
        object: None,
        path: None,
        code: Some(Code::UnreadObject),
        message: format!(
            "services cannot be listed ({why}): the address of a Service is taken for that of anybody outside; allow the verb list on services"
        ),
    }));
    let loaded = Loaded {
        cluster,
        warnings,
        lint_ignore,
        ..Loaded::default()
    };
    Ok((loaded, origin))
}

fn problem(source: &Source, remark: Remark) -> Problem {
    Problem {
        source: source.clone(),
        object: Some(remark.object),
        path: remark.path,
        message: remark.message,
        code: Some(remark.code),
    }
}
