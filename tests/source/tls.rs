//! The API server's certificate: whose is taken, whose is not, and how that is told.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use palisade::agent::source::Resource;
use policy_compiler::compile::Event;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::api::{Api, Authority, Identity, Kind};
use crate::objects::pod;
use crate::world::{World, filled};

/// Base64, as kubeconfigs have it.
pub(crate) fn data(pem: &str) -> Value {
    json!(ByteString(pem.as_bytes().to_vec()))
}

/// A small cluster behind this certificate.
pub(crate) async fn behind(server: &Identity) -> Api {
    filled(Api::start_tls("127.0.0.1:0", server.serving(None)).await).await
}

/// A server that is not who it should be: told, and nothing of it is taken.
async fn refused(api: Api, cluster: Value, expected: &str) -> World {
    let kubeconfig = api.kubeconfig_of(cluster, json!({}));
    let mut world = World::watch_as(api, &kubeconfig);
    for resource in Resource::ALL {
        let told = |h: &palisade::agent::source::Health| h.error.as_ref().is_some_and(|e| e.contains(expected));
        world.until(expected, told, resource).await;
    }
    world.quiet(Duration::from_millis(500)).await;
    assert!(world.cluster.is_none());
    assert_eq!(world.api.calls(), [], "not even a request");
    world
}

#[tokio::test]
async fn a_server_of_the_clusters_authority_is_taken() {
    let authority = Authority::new();
    let api = behind(&authority.server(&["127.0.0.1"])).await;
    let cluster = json!({"certificate-authority-data": data(authority.pem())});
    let kubeconfig = api.kubeconfig_of(cluster, json!({}));
    let mut world = World::watch_as(api, &kubeconfig);
    world.converge().await;
    world.api.put(Kind::Pod, pod("shop", "web-2", "web", "10.1.0.3"));
    let events = world.converge().await;
    assert!(matches!(&events[..], [Event::Pod(_)]), "{events:?}");
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let api = behind(&other.server(&["127.0.0.1"])).await;
    let cluster = json!({"certificate-authority-data": data(authority.pem())});
    refused(api, cluster, "is not signed by the authority that the credentials name").await;
}

#[tokio::test]
async fn a_server_whose_certificate_has_expired_is_refused() {
    let authority = Authority::new();
    let api = behind(&authority.expired(&["127.0.0.1"])).await;
    let cluster = json!({"certificate-authority-data": data(authority.pem())});
    refused(api, cluster, "the API server's certificate has expired").await;
}

#[tokio::test]
async fn a_server_of_another_name_is_refused() {
    let authority = Authority::new();
    let api = behind(&authority.server(&["api.example.org"])).await;
    let cluster = json!({"certificate-authority-data": data(authority.pem())});
    refused(
        api,
        cluster,
        "is for other names: use one of them as the server, or as tls-server-name",
    )
    .await;
}

#[tokio::test]
async fn a_server_may_be_known_by_another_name_or_by_none() {
    let authority = Authority::new();
    let server = authority.server(&["api.example.org"]);
    // The name that the kubeconfig gives.
    let api = behind(&server).await;
    let named = json!({"certificate-authority-data": data(authority.pem()), "tls-server-name": "api.example.org"});
    let kubeconfig = api.kubeconfig_of(named, json!({}));
    World::watch_as(api, &kubeconfig).converge().await;
    let wrong = json!({"certificate-authority-data": data(authority.pem()), "tls-server-name": "api.example.com"});
    refused(behind(&server).await, wrong, "is for other names").await;
    // Anybody, at the user's risk; said when it starts.
    let api = behind(&server).await;
    let kubeconfig = api.kubeconfig_of(json!({"insecure-skip-tls-verify": true}), json!({}));
    let (_folder, access) = crate::world::access(&kubeconfig);
    assert!(access.unwrap().info().unverified);
    World::watch_as(api, &kubeconfig).converge().await;
}

#[tokio::test]
async fn a_server_at_an_ipv6_address_is_taken() {
    if let Err(error) = std::net::TcpListener::bind("[::1]:0") {
        // Past the test harness, which would swallow it.
        let _ = writeln!(
            std::io::stderr(),
            "NOT RUN: a server at an IPv6 address: there is no ::1 here: {error}"
        );
        return;
    }
    let authority = Authority::new();
    let api = Api::start_tls("[::1]:0", authority.server(&["::1"]).serving(None)).await;
    assert!(api.url().starts_with("https://[::1]:"));
    let cluster = json!({"certificate-authority-data": data(authority.pem())});
    let kubeconfig = api.kubeconfig_of(cluster.clone(), json!({}));
    World::watch_as(filled(api).await, &kubeconfig).converge().await;
    let api = Api::start_tls("[::1]:0", authority.server(&["::2"]).serving(None)).await;
    refused(filled(api).await, cluster, "is for other names").await;
}

#[tokio::test]
async fn one_that_does_not_speak_tls_is_told() {
    let api = filled(Api::start().await).await;
    let https = api.url().replace("http:", "https:");
    refused(
        api,
        json!({"server": https, "insecure-skip-tls-verify": true}),
        "does not speak TLS",
    )
    .await;
}

/// Each watch is a connection of its own, over HTTP/1.1, even where the server would rather have HTTP/2: there, four watches and
/// their lists would share one connection, and with it one window and one fate.
#[tokio::test]
async fn every_watch_has_a_connection_of_its_own() {
    let authority = Authority::new();
    let api = behind(&authority.server(&["127.0.0.1"])).await;
    let cluster = json!({"certificate-authority-data": data(authority.pem())});
    let kubeconfig = api.kubeconfig_of(cluster, json!({}));
    let mut world = World::watch_as(api, &kubeconfig);
    world.converge().await;
    let seen = world.api.seen();
    assert!(seen.protocols.len() >= 4, "{seen:?}");
    assert!(
        seen.protocols.iter().all(Option::is_none),
        "HTTP/1.1, which needs no name: {seen:?}"
    );

    // Another client would get HTTP/2.
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap())
        .unwrap();
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    let stream = TcpStream::connect(world.api.address()).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
}
