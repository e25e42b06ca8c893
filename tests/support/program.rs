//! Servers that a test starts and waits for; they end with it.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

/// How long a server may take to start, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(180);

/// How much of a log an error shows.
const TAIL: usize = 40;

/// A running program.
pub(crate) struct Program {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts it with all that it says in a file of this folder.
    pub(crate) fn start(
        file: &Path,
        name: &'static str,
        folder: &Path,
        arguments: &[String],
    ) -> Result<Program, String> {
        let log = folder.join(format!("{name}.log"));
        let failed = |what: &str, error: io::Error| format!("{}: {what}: {error}", file.display());
        let output = File::create(&log).map_err(|e| failed("no log", e))?;
        let errors = output.try_clone().map_err(|e| failed("no log", e))?;
        let child = Command::new(file)
            .args(arguments)
            .current_dir(folder)
            // For etcd: what it holds need not outlive the test. Versions that do not know it pass it over.
            .env("ETCD_UNSAFE_NO_FSYNC", "true")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|e| failed("cannot be started", e))?;
        Ok(Program { name, child, log })
    }

    /// Waits until something can be done that needs it, and returns what came of it.
    pub(crate) async fn until<T>(
        &mut self,
        what: &str,
        mut attempt: impl AsyncFnMut() -> Result<T, String>,
    ) -> Result<T, String> {
        let start = Instant::now();
        loop {
            let error = match attempt().await {
                Ok(result) => return Ok(result),
                Err(error) => error,
            };
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("{} has ended ({status}):\n{}", self.name, self.tail()));
            }
            if start.elapsed() > PATIENCE {
                let tail = self.tail();
                return Err(format!(
                    "{}: {what}: not within {PATIENCE:?}: {error}\n{tail}",
                    self.name
                ));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port of the loopback interface that the kernel gives to nobody else as long as this lives. A server may listen there that
/// sets SO_REUSEPORT.
pub(crate) struct Port(Socket);

impl Port {
    /// Any that is free.
    pub(crate) fn reserve() -> io::Result<Port> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_port(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        Ok(Port(socket))
    }

    /// Its number.
    pub(crate) fn number(&self) -> io::Result<u16> {
        let address = self.0.local_addr()?.as_socket();
        Ok(address.map_or(0, |address| address.port()))
    }
}
