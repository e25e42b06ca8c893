//! The real agent, in the namespace of a node of the sandbox, with a folder of manifests and a stand-in for nft that fails
//! when it is told to.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade::sandbox::{Netns, Place, program};

use crate::environment::without_settings;
use crate::world::{Result, World, must, pod};

/// A machine under load gets plenty; nothing waits for so long when all is well.
const PATIENCE: Duration = Duration::from_secs(90);

/// Passes everything on to nft, and counts the documents. At the one of this number it does what the plan says instead.
const STAND_IN: &str = r#"#!/bin/sh
case " $* " in *" -f "*) ;; *) exec NFT "$@" ;; esac
cd 'DIR'
count=$(($(cat count) + 1))
echo $count > count
cat > document
if [ -s refuse ] && grep -q -f refuse document; then
echo 'internal:0:0-0: Error: Could not process rule: Invalid argument' >&2
exit 1
fi
read -r number when what < plan
if [ $count != $number ]; then exec NFT "$@" < document; fi
case $when in
after) NFT "$@" < document ;;
half) head -c $(($(wc -c < document) / 2)) document | NFT "$@" ;;
esac
case $what in
kill) kill -9 $PPID ;;
die) kill -9 $$ ;;
hang) echo $$ > hangs; exec sleep 600 ;;
esac
echo 'internal:0:0-0: Error: Could not process rule: as the test says' >&2
exit 1
"#;

/// A stand-in for nft.
pub(crate) struct StandIn {
    folder: tempfile::TempDir,
}

impl StandIn {
    pub(crate) fn new() -> Result<StandIn> {
        let stand_in = StandIn {
            folder: tempfile::tempdir()?,
        };
        let script = (STAND_IN.replace("NFT", &program("nft")?.display().to_string()))
            .replace("DIR", &stand_in.folder.path().display().to_string());
        // Written by another process: what this one has open for writing, a child of any thread may have open as well until it
        // becomes another program, and such a file cannot be executed (ETXTBSY).
        let written = Command::new("sh")
            .args(["-ec", "printf %s \"$1\" > \"$2\"; chmod 755 \"$2\"", "sh", &script])
            .arg(stand_in.program())
            .status()?;
        must(written.success(), "the stand-in cannot be written")?;
        stand_in.plan("0 - -")?;
        Ok(stand_in)
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.folder.path().join("nft")
    }

    /// What it does at which document from now on: `1 before kill`, `2 half die`, `1 after hang`, `1 before fail`. A kill is that of the
    /// agent.
    pub(crate) fn plan(&self, plan: &str) -> Result {
        fs::write(self.folder.path().join("count"), "0\n")?;
        Ok(fs::write(self.folder.path().join("plan"), format!("{plan}\n"))?)
    }

    /// Documents with this in them are refused from now on.
    pub(crate) fn refuse(&self, text: &str) -> Result {
        Ok(fs::write(self.folder.path().join("refuse"), text)?)
    }

    /// The documents since the plan was made.
    pub(crate) fn documents(&self) -> Result<usize> {
        Ok(fs::read_to_string(self.folder.path().join("count"))?.trim().parse()?)
    }

    /// Whether a stand-in that was told to hang still does.
    pub(crate) fn hangs(&self) -> bool {
        let process = fs::read_to_string(self.folder.path().join("hangs"));
        process.is_ok_and(|id| Path::new("/proc").join(id.trim()).is_dir())
    }
}

/// The agent and its folder.
pub(crate) struct Process {
    netns: Arc<Netns>,
    node: String,
    folder: tempfile::TempDir,
    nft: Option<PathBuf>,
    child: Option<Child>,
    http: String,
}

impl Process {
    /// An agent of a node that has not started yet, and a folder that tells it of the pods of the world.
    pub(crate) fn new(world: &World, node: &str, nft: Option<&StandIn>) -> Result<Process> {
        let process = Process {
            netns: world.sandbox.netns(&Place::Node(node.into()))?.clone(),
            node: node.to_owned(),
            folder: tempfile::tempdir()?,
            nft: nft
                .map(|n| n.program().parent().map(Path::to_owned))
                .unwrap_or_default(),
            child: None,
            http: String::new(),
        };
        fs::create_dir(process.manifests())?;
        fs::write(process.manifests().join("cluster.yaml"), cluster(world)?)?;
        Ok(process)
    }

    /// The folder of manifests.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    /// The log so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// These policies and no others, from one moment to the next.
    pub(crate) fn policies(&self, text: &str) -> Result {
        let file = self.folder.path().join("policies.yaml");
        fs::write(&file, text)?;
        Ok(fs::rename(file, self.manifests().join("policies.yaml"))?)
    }

    /// Starts it; it need not become ready, nor stay.
    pub(crate) fn start(&mut self) -> Result {
        let log = fs::File::create(self.folder.path().join("log"))?;
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        if let Some(first) = &self.nft {
            let rest = std::env::split_paths(&path).collect::<Vec<_>>();
            path = std::env::join_paths([first.clone()].into_iter().chain(rest))?;
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
        without_settings(&mut command)
            .args([
                "agent",
                "--http-addr",
                "127.0.0.1:0",
                "--node-name",
                &self.node,
                "--manifests",
            ])
            .arg(self.manifests())
            .env("PATH", path)
            .stdin(Stdio::null())
            .stderr(log);
        self.child = Some(self.netns.run(|| command.spawn())??);
        self.http.clear();
        Ok(())
    }

    /// Starts it and waits until the kernel holds its policy.
    pub(crate) fn start_ready(&mut self) -> Result {
        self.start()?;
        self.until("ready", |p| {
            Ok(p.get("/readyz").is_ok_and(|a| a.starts_with("HTTP/1.1 200")))
        })
    }

    /// Lets it do nothing until it goes on.
    pub(crate) fn pause(&self) -> Result {
        self.signal(Signal::SIGSTOP)
    }

    pub(crate) fn go_on(&self) -> Result {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result {
        let child = self.child.as_ref().ok_or("the agent does not run")?;
        Ok(kill(Pid::from_raw(child.id().try_into()?), signal)?)
    }

    /// Ends it without warning.
    pub(crate) fn kill(&mut self) -> Result {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Whether it has ended by itself, or been ended by the stand-in.
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?.is_some()),
            None => Ok(true),
        }
    }

    /// What it answers, head and body.
    pub(crate) fn get(&mut self, path: &str) -> Result<String> {
        if self.http.is_empty() {
            let log = self.log();
            let address = log.lines().find_map(|line| {
                let (_, rest) = line.split_once("\"http\":\"")?;
                Some(rest.split_once('"')?.0.to_owned())
            });
            self.http = address.ok_or("the log does not tell the HTTP address yet")?;
        }
        let mut stream = self.netns.run(|| TcpStream::connect(&self.http))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// The value of a metric.
    pub(crate) fn metric(&mut self, name: &str) -> Result<u64> {
        let answer = self.get("/metrics")?;
        let line = answer
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.ok_or_else(|| format!("no metric {name}"))?.parse()?)
    }

    /// Waits for a condition.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, met: impl FnMut(&mut Process) -> Result<bool>) -> Result {
        self.until_within(PATIENCE, what, met)
    }

    /// Waits for a condition that may take longer.
    #[track_caller]
    pub(crate) fn until_within(
        &mut self,
        patience: Duration,
        what: &str,
        mut met: impl FnMut(&mut Process) -> Result<bool>,
    ) -> Result {
        let start = Instant::now();
        while !met(self)? {
            let log = if start.elapsed() < patience {
                String::new()
            } else {
                self.log()
            };
            must(
                log.is_empty(),
                format!("not within {patience:?}: {what}; the agent's log:\n{log}"),
            )?;
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The pods of the shop and their nodes, with the addresses that the sandbox gave them.
fn cluster(world: &World) -> Result<String> {
    let mut text = String::from("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
    for (name, node) in [("web", "a"), ("api", "a"), ("db", "b")] {
        let addresses = world.sandbox.addresses(&pod(name))?;
        let ips: Vec<String> = addresses.iter().map(|a| format!("{{ip: '{a}'}}")).collect();
        let (first, ips) = (addresses.first().ok_or("a pod without an address")?, ips.join(", "));
        text.push_str(&format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n\
             spec: {{nodeName: {node}, containers: [{{name: main, image: i}}]}}\n\
             status: {{phase: Running, podIP: '{first}', podIPs: [{ips}]}}\n"
        ));
    }
    for name in ["a", "b"] {
        let addresses = world.sandbox.addresses(&Place::Node(name.into()))?;
        let listed: Vec<String> = (addresses.iter())
            .map(|a| format!("{{type: InternalIP, address: '{a}'}}"))
            .collect();
        text.push_str(&format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus: {{addresses: [{}]}}\n",
            listed.join(", ")
        ));
    }
    Ok(text)
}
