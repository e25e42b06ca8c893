//! The connections of a server, between the network and HTTP: TLS, and what can go wrong with a connection as such.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::Socket;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, copy_bidirectional, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch as signal};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

/// What happens to connections from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// New ones work. Those that were frozen stay so.
    On,
    /// All stay open, but nothing is read or written any more, handshakes of new ones included.
    Frozen,
}

/// How many connections there have been of what kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Accepted, before anything else.
    pub(crate) accepted: usize,
    /// The protocol of each that has come about, if one was negotiated.
    pub(crate) protocols: Vec<Option<String>>,
    /// Why handshakes have failed.
    pub(crate) refused: Vec<String>,
}

#[derive(Clone)]
pub(super) struct Wire {
    server: Arc<Mutex<Arc<ServerConfig>>>,
    /// How they flow, and how often they have been reset.
    state: Arc<signal::Sender<(Flow, u64)>>,
    seen: Arc<Mutex<Seen>>,
}

impl Wire {
    pub(super) fn new(server: Arc<ServerConfig>) -> Self {
        Wire {
            server: Arc::new(Mutex::new(server)),
            state: Arc::new(signal::channel((Flow::On, 0)).0),
            seen: Arc::default(),
        }
    }

    /// What the server is to new connections.
    pub(super) fn set_server(&self, server: Arc<ServerConfig>) {
        *self.server.lock().unwrap() = server;
    }

    pub(super) fn set_flow(&self, flow: Flow) {
        self.state.send_modify(|state| state.0 = flow);
    }

    /// Ends all connections with a TCP reset.
    pub(super) fn reset(&self) {
        self.state.send_modify(|state| state.1 += 1);
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// Accepts connections for ever.
    pub(super) fn listen(self, listener: TcpListener) -> (Connections, JoinHandle<()>) {
        let address = listener.local_addr().unwrap();
        let (sender, receiver) = mpsc::channel(16);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(self.clone().connection(stream, sender.clone()));
            }
        });
        (Connections { receiver, address }, task)
    }

    async fn connection(self, stream: TcpStream, sender: mpsc::Sender<DuplexStream>) {
        self.seen.lock().unwrap().accepted += 1;
        let socket = Socket::from(stream.as_fd().try_clone_to_owned().unwrap());
        let mut state = self.state.subscribe();
        let resets = state.borrow().1;
        let over = async move {
            let _ = state.wait_for(|(_, now)| *now != resets).await;
        };
        tokio::select! {
            // Closed with nothing to wait for, a connection ends with a reset.
            () = over => socket.set_linger(Some(Duration::ZERO)).unwrap(),
            () = self.serve(stream, sender) => {}
        }
    }

    async fn serve(&self, stream: TcpStream, sender: mpsc::Sender<DuplexStream>) {
        if self.state.borrow().0 == Flow::Frozen {
            let _stream = stream;
            return std::future::pending().await;
        }
        let acceptor = TlsAcceptor::from(self.server.lock().unwrap().clone());
        let stream = match acceptor.accept(stream).await {
            Ok(stream) => stream,
            Err(error) => return self.seen.lock().unwrap().refused.push(error.to_string()),
        };
        let protocol = stream.get_ref().1.alpn_protocol();
        let protocol = protocol.map(|p| String::from_utf8_lossy(p).into_owned());
        self.seen.lock().unwrap().protocols.push(protocol);
        self.pump(stream, sender).await;
    }

    async fn pump(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin, sender: mpsc::Sender<DuplexStream>) {
        let (mut near, far) = duplex(64 << 10);
        if sender.send(far).await.is_err() {
            return;
        }
        let mut state = self.state.subscribe();
        let frozen = async move {
            let _ = state.wait_for(|(flow, _)| *flow == Flow::Frozen).await;
        };
        tokio::select! {
            _ = copy_bidirectional(&mut stream, &mut near) => {}
            () = frozen => std::future::pending().await,
        }
    }
}

/// The connections that have come about, for the HTTP server.
pub(super) struct Connections {
    receiver: mpsc::Receiver<DuplexStream>,
    address: SocketAddr,
}

impl axum::serve::Listener for Connections {
    type Io = DuplexStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (DuplexStream, SocketAddr) {
        match self.receiver.recv().await {
            Some(stream) => (stream, self.address),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
