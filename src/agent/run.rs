//! The agent, wired: the flags, the log, the HTTP endpoint, the folder or the API server, the loop, and the signals that end it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use policy_compiler::cluster::Cluster;
use policy_compiler::labels::Name;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::announce::Announcer;
use super::bridge::{self, Bridges};
use super::enforcer::Enforcer;
use super::folder::{self, Folder};
use super::http::{self, Shared};
use super::live;
use super::logs;
use super::reconcile::{READ_EVERY, Read, Reconciler, Told, news};
use super::source::{Access, Target, Timing, Watches};
use crate::manifests::{self, Loaded};
use crate::nft::{ClearError, Kernel, MarkMask, Nft, Settings};

/// Where the agent serves unless it is told otherwise.
pub const HTTP_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9440);

/// How long a client may keep the agent from ending.
const LINGER: Duration = Duration::from_secs(1);

/// How long `palisade cleanup` waits for the marks of connections.
const CLEANUP: Duration = Duration::from_secs(120);

/// What `palisade agent` is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to enforce.
    pub source: Source,
    /// `--node-name`: whose pods to enforce.
    pub node: Name,
    /// `--http-addr`: where to serve health and metrics.
    pub http_addr: SocketAddr,
    /// How the rules are rendered.
    pub settings: Settings,
    /// `--bridge-netfilter`: what to do about bridges whose packets meet no rule.
    pub bridges: bridge::Mode,
}

/// Where the cluster is described.
#[derive(Clone, Debug)]
pub enum Source {
    /// `--manifests`: a folder.
    Folder(PathBuf),
    /// `--kubeconfig`, or the pod's service account: an API server.
    Cluster(Target),
}

/// Runs until SIGTERM or SIGINT; the rules stay in the kernel. An error means that it could not start (exit code 2), and
/// that the kernel is as it was.
pub fn run(options: Options) -> anyhow::Result<()> {
    logs::start();
    // The loop blocks the thread that calls `block_on`; HTTP and signals have the worker.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(enforce(options));
    runtime.shutdown_background();
    result
}

/// What [`cleanup`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cleaned {
    /// Whether there was a table.
    pub table: bool,
    /// Connections that had bits of the mask in their marks; none when no mask was given.
    pub connections: Option<usize>,
}

/// Removes the table with everything in it, and then what `--verified-mark` has left in the marks of connections.
pub fn cleanup(mask: Option<MarkMask>) -> anyhow::Result<Cleaned> {
    let kernel = Nft::default();
    let table = kernel.read()?.is_some();
    if table {
        kernel.delete()?;
    }
    let clear = |mask| {
        let result = kernel.clear_marks(mask).wait(CLEANUP);
        result
            .unwrap_or(Err(ClearError::GivenUp))
            .context("the marks of connections are left as they are")
    };
    Ok(Cleaned {
        table,
        connections: mask.map(clear).transpose()?,
    })
}

async fn enforce(options: Options) -> anyhow::Result<()> {
    // First of all, so that a signal during the first apply ends the agent after it, not in it.
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;

    let kernel = Nft::default();
    // Whatever is missing (the program, privileges, nf_tables) is said now, before anything is touched.
    let nft = kernel.version()?;
    let earlier = kernel.read()?.is_some();
    let listener = TcpListener::bind(options.http_addr).await.with_context(|| {
        format!(
            "cannot serve HTTP on {}: if another agent does (`palisade status`), end one of them, for two undo each other's work; \
             else choose another address with --http-addr",
            options.http_addr
        )
    })?;
    let http = listener.local_addr().context("cannot tell the HTTP address")?;
    let access = match &options.source {
        Source::Folder(_) => None,
        Source::Cluster(target) => Some(Access::new(target.clone())?),
    };
    info!(
        node = %options.node, mode = %options.settings.mode, deny = %options.settings.deny_action, unknown_pods = %options.settings.unknown_pods, from = describe(&options.source, access.as_ref()), %http, nft,
        table = if earlier { "to be replaced" } else { "to be made" }, "starting"
    );

    let shared = Shared::default();
    let (ending, ended) = oneshot::channel::<()>();
    let server = tokio::spawn(http::serve(listener, shared.clone(), async { drop(ended.await) }));

    let mut stop = Box::pin(async move {
        tokio::select! {
            _ = terminate.recv() => info!("SIGTERM"),
            _ = interrupt.recv() => info!("SIGINT"),
        }
    });
    let enforcer = Enforcer::new(options.node.clone(), options.settings, kernel);
    let bridges = Bridges::new(options.bridges);
    match (&options.source, access) {
        (Source::Cluster(_), Some(access)) => {
            let access = Arc::new(access);
            let watches = Watches::of_node(access.clone(), Timing::default(), options.node);
            let known = watches.known();
            if let Some((live, mut changes)) = live::start(watches, &shared, &mut stop).await {
                let announcer = Announcer::new(access, enforcer.node().clone(), shared.metrics.clone());
                let announcing = announcer.run(known, shared.noted.clone());
                let mut reconciler = Reconciler::new(live, enforcer, shared).with_bridges(bridges);
                // A snapshot can always be read; what nft refuses is tried again.
                drop(reconciler.start());
                // Not before: the loop has now counted the nodes.
                tokio::spawn(announcing);
                reconciler.run(&mut changes, stop).await;
            }
        }
        (Source::Folder(folder), _) => {
            let (folder, mut changes) = folder::watch(folder).context("cannot tell the current directory")?;
            let mut reconciler = Reconciler::new(Manifests::new(folder), enforcer, shared).with_bridges(bridges);
            if let Err(errors) = reconciler.start() {
                bail!(
                    "nothing has been applied, for the manifests cannot be used:\n{}",
                    errors.join("\n")
                );
            }
            reconciler.run(&mut changes, stop).await;
        }
        (Source::Cluster(_), None) => bail!("there are no credentials for the API server"),
    }
    info!("stopping; the rules stay in the kernel, and `palisade cleanup` removes them");
    drop(ending);
    // A client that keeps its connection open does not keep the agent.
    match tokio::time::timeout(LINGER, server).await {
        Ok(Ok(Err(error))) => error!("HTTP: {error}"),
        Ok(Err(panic)) => error!("HTTP: {panic}"),
        Ok(Ok(Ok(()))) | Err(_) => {}
    }
    Ok(())
}

/// The source, for the log.
fn describe(source: &Source, access: Option<&Access>) -> String {
    let info = access.map(Access::info);
    match (source, info) {
        (Source::Folder(folder), _) => folder.display().to_string(),
        (Source::Cluster(_), None) => String::new(),
        (Source::Cluster(_), Some(info)) => {
            let proxy = info
                .proxy
                .as_ref()
                .map_or_else(String::new, |proxy| format!(", through {proxy}"));
            format!("{} ({}{proxy})", info.server, info.credentials)
        }
    }
}

/// The folder, read with a watch armed before.
struct Manifests {
    folder: Folder,
    /// Whether it has been said that the folder cannot be watched.
    unwatched: bool,
    /// What is hardly meant in the manifests now, and so has been logged.
    warnings: BTreeSet<String>,
}

impl Manifests {
    fn new(folder: Folder) -> Self {
        Manifests {
            folder,
            unwatched: false,
            warnings: BTreeSet::new(),
        }
    }
}

impl Read for Manifests {
    fn read(&mut self) -> Result<Told, Vec<String>> {
        match self.folder.arm() {
            Ok(()) => self.unwatched = false,
            Err(error) if !self.unwatched => {
                self.unwatched = true;
                warn!(
                    "cannot watch the manifests ({error}): they are read every {} s",
                    READ_EVERY.as_secs()
                );
            }
            Err(_) => {}
        }
        let loaded = load(self.folder.path())?;
        let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        for warning in news(&mut self.warnings, &warnings) {
            warn!("{warning}");
        }
        Ok(Told::Snapshot(loaded.cluster))
    }
}

/// What the folder says; a folder that says nothing is an error.
fn load(path: &Path) -> Result<Loaded, Vec<String>> {
    let loaded = manifests::load(&[path.to_owned()])
        .map_err(|errors| errors.errors().iter().map(ToString::to_string).collect::<Vec<_>>())?;
    if loaded.cluster == Cluster::default() {
        // More likely a wrong path or a volume that is not mounted than an order to let everything pass.
        let path = path.display();
        return Err(vec![format!(
            "{path}: no manifest of a pod, namespace, node or policy is in this folder; to want no rules, stop the agent \
             and run `palisade cleanup`"
        )]);
    }
    if !loaded.empty.is_empty() {
        // Whoever writes a file in place empties it first; taken at its word, that would open the node until the rest comes.
        let being_written = |file: &String| {
            format!(
                "{file}: is empty, as while it is being written; to say nothing, remove it (and write by renaming into place)"
            )
        };
        return Err(loaded.empty.iter().map(being_written).collect());
    }
    Ok(loaded)
}
