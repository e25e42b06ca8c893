//! The narrow way to the kernel: apply a transaction, read the own table back, remove it. [`Nft`] does it by the nft
//! program, which takes JSON on its standard input; [`super::fake::Fake`] does it in memory.

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::conntrack::{ClearError, Clearing};
use super::denials::{self, Count, Denial};
use super::generation;
use super::listing::Listing;
use super::marks::MarkMask;
use super::monitor::{Heard, Listening};
use super::names::{ChainName, SetName, Side, TABLE, TABLE_FAMILY};
use super::rules::{self, Digests};
use super::transaction::{Operation, Transaction};

/// Where transactions go.
pub trait Kernel {
    /// Applies the steps of a transaction in order, each all or nothing; stops at the first that fails. After an error the
    /// content is what the last successful step left: apply [`super::replace`] next.
    fn apply(&self, transaction: &Transaction) -> Result<(), KernelError>;

    /// Whether the kernel would take a transaction, as far as can be told without applying it.
    fn check(&self, transaction: &Transaction) -> Result<(), KernelError>;

    /// The content of the table; none when there is no table.
    fn read(&self) -> Result<Option<Listing>, KernelError>;

    /// A digest of the rules of each chain, which stays as long as the rules do.
    fn rules(&self) -> Result<Digests, KernelError> {
        let digest = |rules: &Vec<String>| {
            let mut hasher = DefaultHasher::new();
            rules.hash(&mut hasher);
            hasher.finish()
        };
        let chains = self.read()?.map(|listing| listing.chains).unwrap_or_default();
        Ok(Some(
            chains
                .iter()
                .map(|(name, rules)| (name.clone(), digest(rules)))
                .collect(),
        ))
    }

    /// Removes the table, if there is one.
    fn delete(&self) -> Result<(), KernelError>;

    /// The record of denied connections: a sample; none when there is no table that has one.
    fn denials(&self) -> Result<Option<Vec<Denial>>, KernelError> {
        Ok(None)
    }

    /// The exact counters of the pods that are judged on a side; none when there is no table that has them.
    fn counts(&self, _side: Side) -> Result<Option<Vec<Count>>, KernelError> {
        Ok(None)
    }

    /// The packets that were counted as from or to addresses of this node's pods that nobody knows; none when there are no rules for
    /// them.
    fn unknown(&self) -> Result<Option<u64>, KernelError> {
        Ok(None)
    }

    /// Whether the table is that of `--mode audit`: what it denies passes.
    fn audits(&self) -> Result<bool, KernelError> {
        Ok(false)
    }

    /// A number that every change of any table, by anybody, raises: while it stays, the content need not be read again.
    /// None when it cannot be told.
    fn generation(&self) -> Option<u32> {
        None
    }

    /// The transactions after the one of this generation number; none when it cannot be told.
    fn heard(&self, _since: u32) -> Option<Heard> {
        None
    }

    /// Begins to take these bits out of the marks of all tracked connections. A kernel that cannot do it says so.
    fn clear_marks(&self, _mask: MarkMask) -> Clearing {
        Clearing::ended(Err(ClearError::Unsupported))
    }
}

/// Why the kernel did not do it.
#[derive(Debug, Error)]
pub enum KernelError {
    /// There is no nft program.
    #[error("the program {program} is not installed; install it (apt-get install nftables)")]
    NotInstalled {
        /// What was looked for.
        program: String,
    },
    /// Not root, or in a container without the capability.
    #[error("no permission to change nftables; run as root, or give the container the NET_ADMIN capability")]
    NotPermitted,
    /// The kernel has no nf_tables.
    #[error("this kernel has no nf_tables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET); load or build the module")]
    NoNfTables,
    /// The program is older than its JSON that is needed, or was built without it.
    #[error("nft is too old or has no JSON ({found}); version 1.0.2 or later with JSON is needed")]
    TooOld {
        /// What it says about itself.
        found: String,
    },
    /// It took too long, and was ended.
    #[error("nft did not finish within {} seconds and was ended; the kernel is as before, or as after", .0.as_secs())]
    TimedOut(Duration),
    /// Only real root may enlarge a netlink socket's buffer beyond the limit.
    #[error(
        "the change is too large for one netlink message; run as root outside a user namespace, or raise net.core.wmem_max"
    )]
    TooLarge,
    /// nft refused.
    #[error("nft refused: {0}")]
    Refused(String),
    /// nft answered something else than was asked.
    #[error("nft's answer could not be read: {0}")]
    Answer(String),
    /// The program could not be run or spoken to.
    #[error("nft could not be run: {0}")]
    Io(#[from] std::io::Error),
    /// The transaction could not be written down.
    #[error("the transaction could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The real kernel, of the network namespace that the calling thread is in. Every call blocks.
#[derive(Clone, Debug)]
pub struct Nft {
    /// The program.
    pub program: OsString,
    /// How long one step may take.
    pub timeout: Duration,
    /// Whose tables are changed.
    pub listening: Listening,
}

impl Default for Nft {
    fn default() -> Self {
        Nft {
            program: "nft".into(),
            timeout: Duration::from_secs(30),
            listening: Listening::default(),
        }
    }
}

impl Nft {
    /// Whether the program is there and new enough; its version.
    pub fn version(&self) -> Result<String, KernelError> {
        let output = self.run(&["--version"], String::new())?;
        // nftables v1.0.6 (Lester Gooch #5)
        let found = output.stdout.trim().to_owned();
        let number = found.split_whitespace().find_map(|word| word.strip_prefix('v'));
        let parts: Vec<u32> = number.unwrap_or("0").split('.').map_while(|p| p.parse().ok()).collect();
        if !output.status.success() || parts.as_slice() < &[1, 0, 2][..] {
            return Err(KernelError::TooOld { found });
        }
        Ok(parts.iter().map(u32::to_string).collect::<Vec<_>>().join("."))
    }

    fn run(&self, arguments: &[&str], input: String) -> Result<Output, KernelError> {
        let child = Command::new(&self.program)
            .args(arguments)
            // Complaints are recognised by their English words.
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| match error.kind() {
                ErrorKind::NotFound => KernelError::NotInstalled {
                    program: self.program.to_string_lossy().into_owned(),
                },
                _ => KernelError::Io(error),
            })?;
        let mut child = KilledOnDrop(child);
        // Its three pipes are served at once, lest either side wait for the other for ever.
        let stdin = child.0.stdin.take();
        let writer = std::thread::spawn(move || {
            // When nft gives up early the pipe breaks; its complaint says why.
            stdin.map(|mut pipe| pipe.write_all(input.as_bytes()))
        });
        let (ending, ended) = mpsc::channel();
        let stdout = reader(child.0.stdout.take(), ending.clone());
        let stderr = reader(child.0.stderr.take(), ending);
        let deadline = Instant::now() + self.timeout;
        // It closes both when it ends: no time is lost between two looks whether it has.
        for _ in 0..2 {
            let _ = ended.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        let status = child.wait(deadline, self.timeout)?;
        let _ = writer.join();
        Ok(Output {
            status,
            stdout: stdout.join().unwrap_or_default(),
            stderr: stderr.join().unwrap_or_default(),
        })
    }

    /// The answer to `nft -j list`; none when there is no such thing.
    pub(super) fn list(&self, what: &[&str]) -> Result<Option<String>, KernelError> {
        let output = self.run(&[&["-j", "list"], what].concat(), String::new())?;
        if output.status.success() {
            return Ok(Some(output.stdout));
        }
        if output.stderr.contains("No such file or directory") {
            return Ok(None);
        }
        Err(complaint(&output.stderr))
    }

    fn list_set(&self, name: SetName) -> Result<Option<String>, KernelError> {
        self.list(&["set", TABLE_FAMILY, TABLE, &name.to_string()])
    }

    fn load(&self, options: &[&str], document: String) -> Result<(), KernelError> {
        let output = self.run(&[options, &["-j", "-f", "-"]].concat(), document)?;
        if output.status.success() {
            return Ok(());
        }
        Err(complaint(&output.stderr))
    }
}

impl Kernel for Nft {
    fn apply(&self, transaction: &Transaction) -> Result<(), KernelError> {
        transaction
            .to_json()?
            .into_iter()
            .try_for_each(|step| self.load(&[], step))
    }

    fn check(&self, transaction: &Transaction) -> Result<(), KernelError> {
        // As one step: the second would be checked against a kernel that has not seen the first.
        let steps = transaction.in_one_step().to_json()?;
        steps.into_iter().try_for_each(|step| self.load(&["--check"], step))
    }

    fn read(&self) -> Result<Option<Listing>, KernelError> {
        let listed = self.list(&["table", TABLE_FAMILY, TABLE])?;
        let listing = listed.map(|json| Listing::parse(&json)).transpose();
        listing.map_err(KernelError::Answer)
    }

    fn rules(&self) -> Result<Digests, KernelError> {
        Ok(rules::digests()?)
    }

    fn denials(&self) -> Result<Option<Vec<Denial>>, KernelError> {
        let mut all = Vec::new();
        for set in denials::record_sets() {
            let Some(json) = self.list_set(set)? else {
                return Ok(None);
            };
            all.extend(denials::parse_record(&json).map_err(KernelError::Answer)?);
        }
        Ok(Some(all))
    }

    fn counts(&self, side: Side) -> Result<Option<Vec<Count>>, KernelError> {
        let listed = self.list_set(SetName::Counters(side))?;
        let counts = listed.map(|json| denials::parse_counts(&json, side)).transpose();
        counts.map_err(KernelError::Answer)
    }

    fn unknown(&self) -> Result<Option<u64>, KernelError> {
        let listed = self.list(&["chain", TABLE_FAMILY, TABLE, &ChainName::Unknown.to_string()])?;
        let packets = listed.map(|json| denials::parse_chain(&json)).transpose();
        packets.map_err(KernelError::Answer)
    }

    fn audits(&self) -> Result<bool, KernelError> {
        let listed = self.list(&["chain", TABLE_FAMILY, TABLE, &ChainName::Denied.to_string()])?;
        let listing = listed.map(|json| Listing::parse(&json)).transpose();
        let listing = listing.map_err(KernelError::Answer)?;
        Ok(listing.is_some_and(|listing| listing.audits()))
    }

    fn delete(&self) -> Result<(), KernelError> {
        let mut transaction = Transaction::default();
        // Adding it first makes it an error-free deletion when it is not there.
        for operation in [Operation::AddTable, Operation::DeleteTable] {
            let added = transaction.add(operation);
            debug_assert!(added.is_ok(), "operations on the table are always valid");
        }
        self.apply(&transaction)
    }

    fn generation(&self) -> Option<u32> {
        generation::generation()
    }

    fn heard(&self, since: u32) -> Option<Heard> {
        self.listening.heard(since)
    }

    fn clear_marks(&self, mask: MarkMask) -> Clearing {
        Clearing::start(mask)
    }
}

struct Output {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

struct KilledOnDrop(Child);

impl KilledOnDrop {
    fn wait(&mut self, deadline: Instant, timeout: Duration) -> Result<ExitStatus, KernelError> {
        let mut pause = Duration::from_micros(50);
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(KernelError::TimedOut(timeout));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }
}

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // Neither fails in a way that anything can be done about; a child that has ended is only reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads a pipe to its end, and then says so.
fn reader(pipe: Option<impl Read + Send + 'static>, ending: mpsc::Sender<()>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = ending.send(());
        String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    })
}

/// What nft says, as one of the errors that have a remedy, or quoted.
fn complaint(stderr: &str) -> KernelError {
    let says = |text: &str| stderr.contains(text);
    if says("Operation not permitted") || says("Permission denied") {
        return KernelError::NotPermitted;
    }
    if says("Protocol not supported") || says("Unable to initialize Netlink socket") {
        return KernelError::NoNfTables;
    }
    if says("Message too long") {
        return KernelError::TooLarge;
    }
    if says("JSON support not compiled-in") {
        return KernelError::TooOld {
            found: "JSON support not compiled-in".to_owned(),
        };
    }
    const SHOWN: usize = 5;
    // Newer versions of nft repeat the line that they stumble over, and a document is one line.
    const OF_EACH: usize = 400;
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let shown = lines
        .iter()
        .take(SHOWN)
        .map(|line| match line.char_indices().nth(OF_EACH) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None => (*line).to_owned(),
        });
    let mut quoted = shown.collect::<Vec<_>>().join("; ");
    if lines.len() > SHOWN {
        quoted.push_str(&format!("; and {} more lines", lines.len() - SHOWN));
    }
    if quoted.is_empty() {
        quoted.push_str("it gave no reason");
    }
    KernelError::Refused(quoted)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn stand_in(script: &str) -> (tempfile::TempDir, Nft) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nft");
        // Written by another process: what this one has open for writing, a child of any thread may have open as well until it
        // becomes another program, and such a file cannot be executed (ETXTBSY).
        let text = format!("#!/bin/sh\n{script}\n");
        let written = Command::new("sh")
            .args(["-ec", "printf %s \"$1\" > \"$2\"; chmod 755 \"$2\"", "sh", &text])
            .arg(&path)
            .status();
        assert!(written.unwrap().success());
        let nft = Nft {
            program: path.into(),
            timeout: Duration::from_secs(60),
            ..Nft::default()
        };
        (dir, nft)
    }

    #[track_caller]
    fn check(script: &str, expected: &str) {
        let (_dir, nft) = stand_in(script);
        let error = nft.delete().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn a_complaint_that_repeats_a_document_is_cut() {
        let text = complaint(&format!("Error: syntax error\n{}\n^\n", "ö{".repeat(100_000))).to_string();
        assert!(text.starts_with("nft refused: Error: syntax error; ö{ö{"), "{text:.80}");
        assert!(text.ends_with("ö{…; ^") && text.chars().count() < 450, "{}", text.len());
    }

    #[test]
    fn each_complaint_says_what_to_do() {
        check(
            "echo 'Error: Could not process rule: Operation not permitted' >&2; exit 1",
            "NET_ADMIN",
        );
        check(
            "echo 'Unable to initialize Netlink socket: Protocol not supported' >&2; exit 1",
            "nf_tables",
        );
        check("echo 'Error: JSON support not compiled-in' >&2; exit 1", "too old");
        check(
            "echo 'internal:0:0-0: Error: Could not process rule: File exists' >&2; exit 1",
            "rule: File exists",
        );
        check(
            "echo 'netlink: Error: Could not process rule: Message too long' >&2; exit 1",
            "net.core.wmem_max",
        );
        check("exit 3", "no reason");
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let nft = Nft {
            program: "/nowhere/nft".into(),
            ..Nft::default()
        };
        let error = nft.delete().unwrap_err().to_string();
        assert!(
            error.contains("/nowhere/nft") && error.contains("apt-get install nftables"),
            "{error}"
        );
    }

    #[test]
    fn a_hanging_program_is_ended() {
        let (_dir, mut nft) = stand_in("exec sleep 60");
        nft.timeout = Duration::from_millis(50);
        let begin = Instant::now();
        assert!(matches!(nft.delete(), Err(KernelError::TimedOut(_))));
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let version = |text: &str| {
            let (_dir, nft) = stand_in(&format!("echo '{text}'"));
            nft.version().map_err(|e| e.to_string())
        };
        assert_eq!(version("nftables v1.0.6 (Lester Gooch #5)"), Ok("1.0.6".to_owned()));
        assert_eq!(version("nftables v1.1.0 (Commodore Bullmoose)"), Ok("1.1.0".to_owned()));
        assert!(version("nftables v0.9.8 (E.D.S.)").unwrap_err().contains("0.9.8"));
        assert!(version("something else").is_err());
    }
}
