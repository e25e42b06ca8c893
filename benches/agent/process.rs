//! The processes of the benchmark: the API server, and the agent's own binary, of which time, memory and metrics are read from
//! outside, as the kernel and its HTTP endpoint tell them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde_json::json;

/// Where the agent serves, in the benchmark's network namespace.
const HTTP: &str = "127.0.0.1:9440";

/// Something is wrong when the agent is not ready by then.
const PATIENCE: Duration = Duration::from_secs(120);

/// Keeps the calling thread, and whatever it starts from now on, to one core; does nothing on a machine that has one only.
pub(crate) fn keep_to(core: usize) {
    if std::thread::available_parallelism().map_or(1, usize::from) > core {
        let mut set = CpuSet::new();
        set.set(core).unwrap();
        sched_setaffinity(Pid::from_raw(0), &set).unwrap();
    }
}

/// What the kernel must come to know: since when, whether it comes (`+`) or goes (`-`), and whether it is a pod of the agent's node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) time: u64,
    pub(crate) sign: char,
    pub(crate) address: IpAddr,
    pub(crate) here: bool,
}

/// What the API server has done.
pub(crate) struct Done {
    pub(crate) told: Vec<Told>,
    pub(crate) begin: u64,
    pub(crate) end: u64,
    /// Changes in the API server.
    pub(crate) sent: usize,
}

/// The API server's process.
pub(crate) struct Server {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    pub(crate) url: String,
    /// Objects and their bytes: namespaces, nodes, pods, policies.
    pub(crate) sizes: Vec<(usize, usize)>,
}

impl Server {
    pub(crate) fn start(pods: usize) -> Server {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["serve", &pods.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = output.next().expect("the API server starts").unwrap();
        let (url, sizes) = line.split_once(' ').unwrap();
        let sizes: Vec<usize> = sizes.split(' ').map(|size| size.parse().unwrap()).collect();
        Server {
            child,
            input,
            output,
            url: url.to_owned(),
            sizes: sizes.chunks(2).map(|pair| (pair[0], pair[1])).collect(),
        }
    }

    pub(crate) fn begin(&mut self, what: &str) {
        writeln!(self.input, "{what}").unwrap();
    }

    pub(crate) fn done(&mut self) -> Done {
        let mut told = Vec::new();
        loop {
            let line = self.output.next().expect("the API server goes on").unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            if let ["done", begin, end, sent] = words[..] {
                let (begin, end) = (begin.parse().unwrap(), end.parse().unwrap());
                let sent = sent.parse().unwrap();
                return Done { told, begin, end, sent };
            }
            told.push(Told {
                time: words[0].parse().unwrap(),
                sign: words[1].parse().unwrap(),
                address: words[2].parse().unwrap(),
                here: words[3] == "here",
            });
        }
    }

    pub(crate) fn ask(&mut self, what: &str) -> Done {
        self.begin(what);
        self.done()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the kernel says of a process at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Time on a core, in seconds.
    pub(crate) own: f64,
    /// That of its children that have ended.
    pub(crate) children: f64,
    /// Bytes that have passed over the loopback interface, which carries nothing else than the agent's connections.
    pub(crate) wire: u64,
}

/// In bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) resident: u64,
    pub(crate) peak: u64,
}

/// The agent's process.
pub(crate) struct Agent {
    child: Child,
    started: Instant,
    children: ChildrenPeak,
}

impl Agent {
    /// Starts it on a core of its own, with its log in a file.
    pub(crate) fn start(program: &str, folder: &Path, url: &str, node: &str) -> Agent {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": [{"name": "c", "cluster": {"server": url}}],
            "contexts": [{"name": "c", "context": {"cluster": "c"}}],
        });
        let kubeconfig = folder.join("kubeconfig");
        fs::write(&kubeconfig, config.to_string()).unwrap();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(folder.join("agent.log"))
            .unwrap();
        let mut command = Command::new(program);
        command
            .args(["agent", "--node-name", node, "--http-addr", HTTP, "--kubeconfig"])
            .arg(kubeconfig);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let spawn = move || {
            keep_to(1);
            (Instant::now(), command.spawn().unwrap())
        };
        let (started, child) = std::thread::spawn(spawn).join().unwrap();
        let children = ChildrenPeak::watch(child.id());
        Agent {
            child,
            started,
            children,
        }
    }

    /// Waits until `/readyz` says 200; the time since the start.
    pub(crate) fn ready(&self) -> Duration {
        while !get("/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            assert!(self.started.elapsed() < PATIENCE, "the agent is not ready; see its log");
            sleep(Duration::from_millis(5));
        }
        self.started.elapsed()
    }

    pub(crate) fn usage(&self) -> Usage {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, behind_name) = stat.rsplit_once(") ").unwrap();
        let fields: Vec<&str> = behind_name.split(' ').collect();
        let each_second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap() as f64;
        // utime, stime, cutime and cstime are the fields 14 to 17 of proc_pid_stat(5).
        let time = |at: usize| fields[at - 3].parse::<f64>().unwrap() / each_second;
        Usage {
            own: time(14) + time(15),
            children: time(16) + time(17),
            wire: wire(),
        }
    }

    pub(crate) fn memory(&self) -> Memory {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        Memory {
            resident: field(&status, "VmRSS:").unwrap(),
            peak: field(&status, "VmHWM:").unwrap(),
        }
    }

    /// The most that a child has been seen to have, in bytes.
    pub(crate) fn children_peak(&self) -> u64 {
        self.children.peak.load(Ordering::Relaxed)
    }

    /// Its metrics, by name with labels.
    pub(crate) fn metrics(&self) -> BTreeMap<String, f64> {
        let answer = get("/metrics").expect("the agent serves metrics");
        let lines = answer.lines().filter_map(|line| line.rsplit_once(' '));
        lines
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect()
    }

    /// As a kubelet and a Prometheus do, with one look at each.
    pub(crate) fn probe(&self) {
        for path in ["/healthz", "/readyz", "/metrics"] {
            assert!(get(path).is_some(), "the agent answers {path}");
        }
    }

    /// Ends it as a kubelet does.
    pub(crate) fn stop(mut self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes that have passed over the loopback interface so far.
pub(crate) fn wire() -> u64 {
    let devices = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let loopback = devices
        .lines()
        .find_map(|line| line.trim().strip_prefix("lo:"))
        .unwrap();
    loopback.split_whitespace().next().unwrap().parse().unwrap()
}

/// The answer to a request, with its head; none while nobody answers.
fn get(path: &str) -> Option<String> {
    let address: SocketAddr = HTTP.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {HTTP}\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// A size in a file of /proc, in bytes.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Looks again and again at the memory of a process's children: nft lives for less than a second.
struct ChildrenPeak {
    peak: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ChildrenPeak {
    fn watch(parent: u32) -> ChildrenPeak {
        let (peak, over): (Arc<AtomicU64>, Arc<AtomicBool>) = Default::default();
        let thread = std::thread::spawn({
            let (peak, over) = (peak.clone(), over.clone());
            move || {
                while !over.load(Ordering::Relaxed) {
                    peak.fetch_max(children(parent).max().unwrap_or_default(), Ordering::Relaxed);
                    sleep(Duration::from_millis(10));
                }
            }
        });
        ChildrenPeak {
            peak,
            over,
            thread: Some(thread),
        }
    }
}

impl Drop for ChildrenPeak {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The peak memory of each child that runs nft now. Between fork and exec it is a copy of its parent.
fn children(parent: u32) -> impl Iterator<Item = u64> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let younger = processes.filter(move |entry| {
        let name = entry.file_name();
        name.to_str()
            .and_then(|name| name.parse().ok())
            .is_some_and(|id: u32| id > parent)
    });
    younger.filter_map(move |entry| {
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let is_child = status.lines().any(|line| line == format!("PPid:\t{parent}"));
        (is_child && status.starts_with("Name:\tnft\n")).then(|| field(&status, "VmHWM:"))?
    })
}
