//! A TCP connection that stays open, to see whether a change of policy stops it.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Handle;

use super::listen::{Heard, Lines, send_line};
use super::probe::{Outcome, classify, within};
use super::{Netns, SandboxError, socket};

/// How long opening a flow may take; as with a probe, a machine that stands still for seconds is no silence.
const OPENING: Duration = Duration::from_secs(20);

/// An open connection from a place to a listener of the sandbox.
#[derive(Debug)]
pub struct Flow {
    client: Option<(TcpStream, Lines)>,
    server: Arc<TcpStream>,
    name: String,
    token: u64,
    count: u64,
    runtime: Handle,
    heard: Arc<Heard>,
}

impl Flow {
    pub(super) fn open(
        netns: &Netns,
        source: Option<IpAddr>,
        to: SocketAddr,
        token: u64,
        runtime: &Handle,
        heard: &Arc<Heard>,
    ) -> Result<Result<Flow, Outcome>, SandboxError> {
        let socket = match netns.run(|| socket::stream(policy_compiler::ports::Protocol::Tcp, to.ip(), source))? {
            Ok(socket) => socket,
            Err(error) => return Ok(Err(classify(error))),
        };
        let opening = async move {
            let stream = TcpSocket::from_std_stream(socket).connect(to).await?;
            // A small request must not wait for the acknowledgement of the one before it.
            stream.set_nodelay(true)?;
            let mut lines = Lines::default();
            let hello = format!("flow {token}");
            send_line(&stream, &hello).await?;
            let line = lines.next(&stream).await?;
            let name = line.strip_suffix(&hello).unwrap_or(&line).trim_end().to_owned();
            Ok((stream, lines, name))
        };
        let opened = wait(runtime, within(OPENING, opening));
        let (client, lines, name) = match opened {
            Some(Some(Ok(opened))) => opened,
            Some(Some(Err(error))) => return Ok(Err(classify(error))),
            Some(None) => return Ok(Err(Outcome::Silent)),
            None => return Ok(Err(Outcome::Failed("the runtime has stopped".to_owned()))),
        };
        // The listener notes a flow before it answers, so its end is known by now.
        let Some(server) = heard.flow(token) else {
            return Ok(Err(Outcome::Failed(format!("{name} does not know the connection"))));
        };
        Ok(Ok(Flow {
            client: Some((client, lines)),
            server,
            name,
            token,
            count: 0,
            runtime: runtime.clone(),
            heard: heard.clone(),
        }))
    }

    /// Who answers at the other end.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The client asks, the listener answers: whether the answer came in time. TCP sends what was lost again, so an
    /// exchange that succeeds later also delivers what an earlier one could not.
    pub fn exchange(&mut self, time: Duration) -> bool {
        self.count += 1;
        let request = format!("ping {}", self.count);
        let answer = format!("{} {request}", self.name);
        self.round(time, answer, request, None)
    }

    /// The listener speaks without being asked: whether the client heard it in time.
    pub fn push(&mut self, time: Duration) -> bool {
        self.count += 1;
        let news = format!("push {}", self.count);
        self.round(time, news.clone(), news, Some(self.server.clone()))
    }

    /// Sends a line, from the client or from the given end, and waits until the client reads the other line.
    fn round(&mut self, time: Duration, wanted: String, line: String, server: Option<Arc<TcpStream>>) -> bool {
        let Some((client, mut lines)) = self.client.take() else {
            return false;
        };
        let work = async move {
            let heard = async {
                while let Err(error) = send_line(server.as_deref().unwrap_or(&client), &line).await {
                    passing(error)?;
                }
                loop {
                    match lines.next(&client).await {
                        Ok(line) if line == wanted => return io::Result::Ok(()),
                        Ok(_) => {}
                        Err(error) => passing(error)?,
                    }
                }
            };
            let heard = matches!(within(time, heard).await, Some(Ok(())));
            (heard, client, lines)
        };
        match wait(&self.runtime, work) {
            Some((heard, client, lines)) => {
                self.client = Some((client, lines));
                heard
            }
            None => false,
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.heard.close(self.token);
    }
}

/// An ICMP error, as when a router did not find its neighbour for a moment: it is told once, perhaps much later, and TCP goes on.
fn passing(error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Ok(()),
        _ => Err(error),
    }
}

/// Waits for work of the runtime from a thread that may itself belong to some other runtime; none when it has stopped.
pub(super) fn wait<T: Send + 'static>(runtime: &Handle, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let (sender, receiver) = std::sync::mpsc::channel();
    runtime.spawn(async move {
        let _ = sender.send(work.await);
    });
    receiver.recv().ok()
}
