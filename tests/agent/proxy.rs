//! The agent behind a proxy: a real one, that speaks CONNECT and wants to know who asks.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use super::api::{Api, Authority, Kind};
use super::cluster::{arguments, fill, policy, runtime};
use super::{Agent, in_a_namespace, read, table, until};

/// `me:pass word@`, as an URL has it and as the header has it.
const SECRET: &str = "me:pass%20word%40";
const HEADER: &str = "Basic bWU6cGFzcyB3b3JkQA==";
const TOKEN: &str = "token-that-nobody-may-see";

/// A proxy.
struct Proxy {
    address: SocketAddr,
    /// To where it was asked for a tunnel.
    asked: Arc<Mutex<BTreeSet<String>>>,
}

impl Proxy {
    async fn start(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let proxy = Proxy {
            address: listener.local_addr().expect("address"),
            asked: Arc::default(),
        };
        let asked = proxy.asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (asked, tls) = (asked.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => tunnel(stream, asked).await,
                        Some(tls) => tunnel(TlsAcceptor::from(tls).accept(stream).await.ok()?, asked).await,
                    }
                });
            }
        });
        proxy
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").iter().cloned().collect()
    }
}

async fn tunnel(mut client: impl AsyncRead + AsyncWrite + Unpin, asked: Arc<Mutex<BTreeSet<String>>>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let to = head.strip_prefix("CONNECT ")?.split(' ').next()?.to_owned();
    asked.lock().expect("no panic").insert(to.clone());
    let authorized = head.lines().filter_map(|line| line.split_once(": "));
    let mut authorized = authorized.filter(|(name, _)| name.eq_ignore_ascii_case("proxy-authorization"));
    if !authorized.any(|(_, value)| value == HEADER) {
        let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"p\"\r\nContent-Length: 0\r\n\r\n";
        client.write_all(refusal.as_bytes()).await.ok()?;
        return None;
    }
    let mut server = TcpStream::connect(to).await.ok()?;
    client
        .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
        .await
        .ok()?;
    copy_bidirectional(&mut client, &mut server).await.ok()?;
    Some(())
}

/// A small cluster behind TLS that wants a token, a proxy, and a folder for files.
struct Setup {
    runtime: tokio::runtime::Runtime,
    api: Api,
    proxy: Proxy,
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Setup {
    fn new() -> Self {
        let runtime = runtime();
        let authority = Authority::new();
        let serving = authority.server(&["127.0.0.1"]).serving(None);
        let api = runtime.block_on(Api::start_tls("127.0.0.1:0", serving));
        fill(&api);
        api.set_token(Some(TOKEN));
        let proxy = runtime.block_on(Proxy::start(None));
        Setup {
            runtime,
            api,
            proxy,
            folder: tempfile::tempdir().expect("directory"),
            authority,
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// An agent with these variables, and this in the kubeconfig's cluster.
    fn agent(&self, variables: &[(&str, &str)], mut cluster: Value) -> Agent {
        cluster["certificate-authority-data"] = json!(ByteString(self.authority.pem().as_bytes().to_vec()));
        let kubeconfig = self.api.kubeconfig_of(cluster, json!({"token": TOKEN}));
        Agent::within(
            &arguments("worker-1", self.folder.path(), &kubeconfig, &[]),
            variables,
            self.log(),
        )
    }

    fn server(&self) -> String {
        self.api.address().to_string()
    }
}

#[test]
fn the_proxy_of_the_environment_is_used_and_its_password_never_told() {
    in_a_namespace(
        "proxy::the_proxy_of_the_environment_is_used_and_its_password_never_told",
        || {
            let setup = Setup::new();
            let address = setup.proxy.address;
            let url = format!("http://{SECRET}@{address}");
            // Everything that anybody in the program logs.
            let agent = setup.agent(&[("HTTPS_PROXY", &url), ("RUST_LOG", "trace")], json!({}));
            agent.until_ready();
            assert_eq!(setup.proxy.asked(), [setup.server()]);
            setup.api.put(Kind::NetworkPolicy, policy(9090));
            until("a policy is followed through the proxy", || {
                table().is_some_and(|t| t.contains("9090"))
            });
            // Connections that fail are told as well.
            setup.api.reset();
            until("the reset is told", || read(&setup.log()).contains("cannot watch"));
            let said = ["/readyz", "/status", "/metrics"]
                .map(|path| agent.get(path).1)
                .concat();
            assert!(agent.stop().success());
            let told = read(&setup.log()) + &said;
            assert!(told.contains(&format!("through http://{address}")));
            for secret in ["pass%20word", "pass word", HEADER.trim_start_matches("Basic "), TOKEN] {
                let line = told.lines().find(|line| line.contains(secret));
                assert_eq!(line, None, "{secret}");
            }
        },
    );
}

#[test]
fn who_needs_no_proxy_gets_none_and_the_kubeconfigs_goes_first() {
    in_a_namespace(
        "proxy::who_needs_no_proxy_gets_none_and_the_kubeconfigs_goes_first",
        || {
            let setup = Setup::new();
            let url = format!("http://{SECRET}@{}", setup.proxy.address);
            let agent = setup.agent(
                &[("HTTPS_PROXY", &url), ("NO_PROXY", "example.org,127.0.0.0/8")],
                json!({}),
            );
            agent.until_ready();
            assert_eq!(setup.proxy.asked(), [""; 0]);
            assert!(agent.stop().success());
            // The environment has nothing to say about the proxy that the kubeconfig names.
            let elsewhere = [("HTTPS_PROXY", "http://192.0.2.1:1"), ("NO_PROXY", "127.0.0.1")];
            let agent = setup.agent(&elsewhere, json!({"proxy-url": url}));
            agent.until_ready();
            assert_eq!(setup.proxy.asked(), [setup.server()]);
            assert!(agent.stop().success());
        },
    );
}

#[test]
fn a_proxy_that_refuses_or_is_silent_is_told() {
    in_a_namespace("proxy::a_proxy_that_refuses_or_is_silent_is_told", || {
        let setup = Setup::new();
        let silent = setup.runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("bind");
        let silent = format!("http://me:hunter2@{}", silent.local_addr().expect("address"));
        let refusing = format!("http://me:hunter2@{}", setup.proxy.address);
        for (url, part) in [
            (refusing.as_str(), "proxy authorization required"),
            (&silent, "no connection comes about: nothing answers in time"),
            ("http://me:hunter2@127.0.0.1:1", "Connection refused"),
        ] {
            let agent = setup.agent(&[("HTTPS_PROXY", url)], json!({}));
            until(part, || {
                let (code, text) = agent.get("/readyz");
                code == 503 && text.contains("pods cannot be watched: ") && text.contains(part)
            });
            assert!(!read(&setup.log()).contains("hunter2") && !agent.get("/readyz").1.contains("hunter2"));
            assert!(agent.stop().success());
        }
        assert_eq!(table(), None);
        assert!(setup.api.calls().is_empty());
    });
}
