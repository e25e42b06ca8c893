//! A network namespace without a name: kept alive by one file descriptor, entered by short-lived threads.
//!
//! Nothing is written to `/run/netns`, so the kernel takes the namespace and all that is in it away with the process,
//! however the process ends.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

use super::SandboxError;

/// Where Debian keeps the programs of the administrator; an unprivileged user's PATH lacks these.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";

/// How long the kernel may take to give an address its route; as an error says.
const PATIENCE: Duration = Duration::from_secs(30);

/// A network namespace of this process.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes a namespace, with its loopback device still down; the name is only for messages.
    pub fn new(name: impl Into<String>) -> Result<Netns, SandboxError> {
        let name = name.into();
        // unshare changes only the calling thread, so a thread of its own keeps the caller where it is.
        let file = in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|error| SandboxError::NotPermitted { error })?;
            File::open("/proc/thread-self/ns/net").map_err(|error| SandboxError::Proc { error })
        })?;
        Ok(Netns { name, file })
    }

    /// The name that messages call it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path that programs (`ip link ... netns PATH`) can open while this process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs a closure in a thread inside the namespace and waits for it. Sockets made there belong to the namespace,
    /// whoever uses them later; programs and threads started there run in it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, SandboxError> {
        in_thread(|| {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|error| SandboxError::NotPermitted { error })?;
            Ok(work())
        })
    }

    /// Sets sysctls below `/proc/sys/net`, such as `ipv4/ip_forward`; the kernel shows each thread those of its namespace.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<(), SandboxError> {
        self.run(|| {
            for (key, value) in settings {
                std::fs::write(format!("/proc/sys/net/{key}"), value).map_err(|error| SandboxError::Sysctl {
                    namespace: self.name.clone(),
                    key: (*key).to_owned(),
                    error,
                })?;
            }
            Ok(())
        })?
    }

    /// Runs commands of iproute2 in the namespace, one a line, as `ip -batch` takes them.
    pub fn ip(&self, batch: &str) -> Result<(), SandboxError> {
        self.program("ip", &["-batch", "-"], batch)
    }

    /// The same for commands of iproute2's `bridge`.
    pub fn bridge(&self, batch: &str) -> Result<(), SandboxError> {
        self.program("bridge", &["-batch", "-"], batch)
    }

    /// Loads nft rules in the namespace.
    pub fn nft(&self, rules: &str) -> Result<(), SandboxError> {
        self.program("nft", &["-f", "-"], rules)
    }

    /// Waits until packets to the addresses of the namespace, those of its routers' side included, find it. The kernel gives an IPv6
    /// address its route later than the address, and the later the more namespaces come and go; until then its holder asks the
    /// neighbours who has it.
    pub fn await_addresses(&self) -> Result<(), SandboxError> {
        let start = Instant::now();
        loop {
            let read = |name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
            let listings = self.run(|| Ok((read("if_inet6")?, read("ipv6_route")?)))?;
            let (addresses, routes) = listings.map_err(|error| SandboxError::Proc { error })?;
            match without_route(&addresses, &routes) {
                None => return Ok(()),
                Some(address) if start.elapsed() > PATIENCE => {
                    return Err(SandboxError::NoRoute {
                        namespace: self.name.clone(),
                        address: address.into(),
                    });
                }
                Some(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// The child reads all that it does from a pipe, so it ends by itself when this process is killed.
    fn program(&self, name: &'static str, arguments: &[&str], input: &str) -> Result<(), SandboxError> {
        let failed = |message| SandboxError::Program {
            program: name,
            namespace: self.name.clone(),
            message,
        };
        let path = program(name)?;
        let output = self.run(|| {
            let mut child = Command::new(path)
                .args(arguments)
                .env("LC_ALL", "C")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?;
            // A program that stops early closes its end; its own message says more than the broken pipe.
            let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
            child.wait_with_output()
        })?;
        let output = output.map_err(|error: std::io::Error| failed(error.to_string()))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(failed(complaint(&String::from_utf8_lossy(&output.stderr), input))),
        }
    }
}

/// The first address of a listing of `/proc/net/if_inet6` (address and device stand in the first and last column) for which one of
/// `/proc/net/ipv6_route` has no route to the address itself that stays within the machine: destination, length of its prefix, flags
/// and device stand in the first, second and the last two columns, in hexadecimal.
fn without_route(addresses: &str, routes: &str) -> Option<Ipv6Addr> {
    const LOCAL: u32 = 0x8000_0000; // RTF_LOCAL
    let local: HashSet<(&str, &str)> = (routes.lines())
        .filter_map(|route| {
            let columns: Vec<&str> = route.split_ascii_whitespace().collect();
            let [address, "80", .., flags, device] = columns[..] else {
                return None;
            };
            (u32::from_str_radix(flags, 16).ok()? & LOCAL != 0).then_some((address, device))
        })
        .collect();
    addresses.lines().find_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        let (address, device) = (columns.next()?, columns.next_back()?);
        let missing = !local.contains(&(address, device));
        missing.then(|| u128::from_str_radix(address, 16).ok().map(Ipv6Addr::from_bits))?
    })
}

/// Where a program of the sandbox is: `ip`, `bridge` or `nft`, searched in PATH and then where Debian keeps it.
pub fn program(name: &'static str) -> Result<PathBuf, SandboxError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(std::env::split_paths(SYSTEM_PATH));
    let found = folders.map(|folder| folder.join(name)).find(|file| file.is_file());
    found.ok_or(SandboxError::MissingProgram {
        program: name,
        package: if name == "nft" { "nftables" } else { "iproute2" },
    })
}

/// What a program wrote, with the line that `ip -batch` only numbers.
fn complaint(stderr: &str, input: &str) -> String {
    let message = stderr.trim().replace('\n', "; ");
    let number = message
        .split_once("Command failed -:")
        .and_then(|(_, rest)| rest.trim().parse::<usize>().ok());
    match number.and_then(|n| input.lines().nth(n.checked_sub(1)?)) {
        Some(line) => format!("{message} ({line})"),
        None => message,
    }
}

fn in_thread<T: Send>(work: impl FnOnce() -> Result<T, SandboxError> + Send) -> Result<T, SandboxError> {
    std::thread::scope(|scope| match std::thread::Builder::new().spawn_scoped(scope, work) {
        Ok(handle) => handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        Err(error) => Err(SandboxError::Thread { error }),
    })
}

#[cfg(test)]
mod tests {
    use super::{complaint, without_route};

    #[test]
    fn a_failed_batch_line_is_shown() {
        let stderr = "RTNETLINK answers: File exists\nCommand failed -:2\n";
        assert_eq!(
            complaint(stderr, "link set lo up\naddr add 10.0.0.1/32 dev lo\n"),
            "RTNETLINK answers: File exists; Command failed -:2 (addr add 10.0.0.1/32 dev lo)"
        );
    }

    #[test]
    fn an_address_without_a_route_of_its_own_is_found() {
        let routes = "fd000010024400020000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 \
                      00000100 00000001 00000000 00000001     eth0\n\
                      fd000010024400020000000000000002 80 00000000000000000000000000000000 00 00000000000000000000000000000000 \
                      00000000 00000002 00000000 80200001     eth0\n\
                      fd000010024400020000000000000003 80 00000000000000000000000000000000 00 00000000000000000000000000000000 \
                      00000400 00000002 00000000 00000005     eth0\n\
                      fe800000000000000000000000000001 80 00000000000000000000000000000000 00 00000000000000000000000000000000 \
                      00000000 00000002 00000000 80200001     pod0\n";
        let addresses = [
            ("fd000010024400020000000000000002 02 80 00 82     eth0\n", None),
            (
                "fd000010024400020000000000000003 02 80 00 82     eth0\n",
                Some("fd00:10:244:2::3"),
            ),
            ("fe800000000000000000000000000001 03 40 20 82     pod0\n", None),
            (
                "fe800000000000000000000000000001 04 40 20 82     pod1\n",
                Some("fe80::1"),
            ),
        ];
        for (address, expected) in addresses {
            let found = without_route(address, routes).map(|address| address.to_string());
            assert_eq!(found.as_deref(), expected, "{address}");
        }
        let all = addresses.map(|(address, _)| address).concat();
        assert_eq!(
            without_route(&all, routes).map(|a| a.to_string()).as_deref(),
            Some("fd00:10:244:2::3")
        );
    }
}
