//! Who the agent is to the API server: everything that a kubeconfig can say, and what happens when it is replaced while
//! watches run.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use palisade::agent::source::Resource;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::api::{Api, Authority, Identity, Kind, Verb};
use crate::objects::pod;
use crate::tls::{behind, data};
use crate::world::{SOON, World, access, filled};

/// A folder for the files that a kubeconfig names.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Files(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Written aside and renamed, as whoever rotates credentials does.
    fn put(&self, name: &str, text: &str) -> PathBuf {
        let (aside, path) = (self.path("aside"), self.path(name));
        fs::write(&aside, text).unwrap();
        fs::rename(&aside, &path).unwrap();
        path
    }

    fn identity(&self, identity: &Identity) -> Value {
        let certificate = self.put("client.crt", &identity.certificate);
        let key = self.put("client.key", &identity.key);
        json!({"client-certificate": certificate, "client-key": key})
    }

    /// A plugin that says this.
    fn plugin(&self, script: &str) -> Value {
        // Not executable itself: a file that another thread's child still has open for writing cannot be executed.
        let path = self.put("plugin", script);
        json!({"exec": {
            "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": [path], "interactiveMode": "IfAvailable",
        }})
    }
}

/// A small cluster that wants certificates of this authority from its clients.
async fn guarded(authority: &Authority, clients: &Authority) -> Api {
    let server = authority.server(&["127.0.0.1"]);
    filled(Api::start_tls("127.0.0.1:0", server.serving(Some(clients))).await).await
}

/// The API server changes, and the source follows.
async fn goes_on(world: &mut World, at: u8) {
    let name = format!("after-{at}");
    world
        .api
        .put(Kind::Pod, pod("shop", &name, "web", &format!("10.5.0.{at}")));
    world.converge().await;
}

async fn fails_with(world: &World, part: &str) {
    let told = |h: &palisade::agent::source::Health| {
        h.failing_since.is_some() && h.error.as_ref().is_some_and(|e| e.contains(part))
    };
    world.until(part, told, Resource::Pods).await;
}

#[tokio::test]
async fn a_client_certificate_may_stand_in_files_and_in_the_kubeconfig() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let identity = clients.client();
    let files = Files::new();
    let inline =
        json!({"client-certificate-data": data(&identity.certificate), "client-key-data": data(&identity.key)});
    for user in [files.identity(&identity), inline] {
        let api = guarded(&authority, &clients).await;
        let ca = files.put("ca.crt", authority.pem());
        let kubeconfig = api.kubeconfig_of(json!({"certificate-authority": ca}), user);
        World::watch_as(api, &kubeconfig).converge().await;
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_or_with_another_ones_is_told_so() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let cluster = json!({"certificate-authority-data": data(authority.pem())});
    let files = Files::new();
    for (user, part) in [
        (
            json!({}),
            "the API server wants a client certificate, and the credentials have none",
        ),
        (
            files.identity(&Authority::new().client()),
            "the API server refuses the client certificate",
        ),
    ] {
        let api = guarded(&authority, &clients).await;
        let kubeconfig = api.kubeconfig_of(cluster.clone(), user);
        let world = World::watch_as(api, &kubeconfig);
        fails_with(&world, part).await;
        assert_eq!(world.api.calls(), []);
        assert!(!world.watches.is_synced());
    }
}

#[tokio::test]
async fn a_token_may_stand_in_the_kubeconfig_and_in_a_file() {
    let authority = Authority::new();
    let cluster = json!({"certificate-authority-data": data(authority.pem())});
    let files = Files::new();
    // As editors and `echo` leave it.
    let file = files.put("token", "secret\n");
    for user in [
        json!({"token": "secret"}),
        json!({"tokenFile": file}),
        json!({"tokenFile": file, "token": "old"}),
    ] {
        let api = behind(&authority.server(&["127.0.0.1"])).await;
        api.set_token(Some("secret"));
        let kubeconfig = api.kubeconfig_of(cluster.clone(), user);
        World::watch_as(api, &kubeconfig).converge().await;
    }
    let api = behind(&authority.server(&["127.0.0.1"])).await;
    api.set_token(Some("other"));
    let kubeconfig = api.kubeconfig_of(cluster, json!({"tokenFile": file}));
    let world = World::watch_as(api, &kubeconfig);
    fails_with(&world, "the API server answers 401 Unauthorized").await;
}

#[tokio::test]
async fn user_and_password_are_sent() {
    let authority = Authority::new();
    let api = behind(&authority.server(&["127.0.0.1"])).await;
    // `me:secret`.
    api.set_authorized(vec!["Basic bWU6c2VjcmV0".to_owned()]);
    let cluster = json!({"certificate-authority-data": data(authority.pem())});
    let kubeconfig = api.kubeconfig_of(cluster, json!({"username": "me", "password": "secret"}));
    World::watch_as(api, &kubeconfig).converge().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_told_with_its_file() {
    let files = Files::new();
    let api = Api::start().await;
    let garbage = files.put("garbage", "nothing");
    for (cluster, user, part) in [
        (
            json!({"certificate-authority": "/nonexistent/ca.crt"}),
            json!({}),
            "/nonexistent/ca.crt",
        ),
        (
            json!({"certificate-authority": garbage}),
            json!({}),
            "there is no certificate in the certificate authority",
        ),
        (
            json!({}),
            json!({"client-certificate": "/nonexistent/crt", "client-key": garbage}),
            "/nonexistent/crt",
        ),
        (json!({}), json!({"client-certificate": garbage}), "client key"),
        (
            json!({}),
            json!({"client-certificate": garbage, "client-key": garbage}),
            "private key",
        ),
        (
            json!({}),
            json!({"tokenFile": "/nonexistent/token"}),
            "cannot read the token in /nonexistent/token: No such file",
        ),
        (
            json!({"proxy-url": "socks5://me:hunter2@127.0.0.1:1"}),
            json!({}),
            "the proxy socks5://127.0.0.1:1 cannot be used",
        ),
        (
            json!({"proxy-url": "http://me:hunter 2@127.0.0.1:1"}),
            json!({}),
            "proxy",
        ),
        (json!({"tls-server-name": "-?-"}), json!({}), "server name"),
    ] {
        let (_folder, access) = access(&api.kubeconfig_of(cluster.clone(), user.clone()));
        let error = access.map(drop).expect_err("cannot be used").to_string();
        assert!(
            error.contains(part) && !error.contains("hunter"),
            "{cluster} {user}: {error}"
        );
    }
}

/// The rotation of everything that can be rotated, while watches run: old no longer accepted, new not there yet, new there.
#[tokio::test]
async fn a_client_certificate_is_replaced() {
    let (authority, first, second) = (Authority::new(), Authority::new(), Authority::new());
    let server = authority.server(&["127.0.0.1"]);
    let files = Files::new();
    let user = files.identity(&first.client());
    let api = guarded(&authority, &first).await;
    let kubeconfig = api.kubeconfig_of(json!({"certificate-authority-data": data(authority.pem())}), user);
    let mut world = World::watch_as(api, &kubeconfig);
    world.converge().await;
    let before = world.cluster.clone();

    world.api.set_server(server.serving(Some(&second)));
    world.api.reset();
    fails_with(&world, "the API server refuses the client certificate").await;
    world.quiet(Duration::from_millis(300)).await;
    assert_eq!(world.cluster, before);
    // Between the two writes certificate and key do not fit: whatever becomes of that, it goes on.
    let next = second.client();
    files.put("client.crt", &next.certificate);
    fails_with(&world, "cannot use the credentials").await;
    files.put("client.key", &next.key);
    goes_on(&mut world, 1).await;
    assert!(!world.api.seen().refused.is_empty());
}

#[tokio::test]
async fn the_clusters_authority_is_replaced() {
    let (first, second) = (Authority::new(), Authority::new());
    let files = Files::new();
    let ca = files.put("ca.crt", first.pem());
    let api = behind(&first.server(&["127.0.0.1"])).await;
    let kubeconfig = api.kubeconfig_of(json!({"certificate-authority": ca}), json!({}));
    let mut world = World::watch_as(api, &kubeconfig);
    world.converge().await;
    let before = world.cluster.clone();

    // The server first; those that are connected go on, so they are cut.
    world.api.set_server(second.server(&["127.0.0.1"]).serving(None));
    world.api.reset();
    fails_with(&world, "is not signed by the authority that the credentials name").await;
    world.quiet(Duration::from_millis(300)).await;
    assert_eq!(world.cluster, before);
    files.put("ca.crt", second.pem());
    goes_on(&mut world, 1).await;

    // And in the order that is recommended: a bundle of both, then the server, then the new one alone.
    files.put("ca.crt", &(second.pem().to_owned() + first.pem()));
    world.api.set_server(first.server(&["127.0.0.1"]).serving(None));
    world.api.reset();
    goes_on(&mut world, 2).await;
}

#[tokio::test]
async fn a_token_in_a_file_is_replaced_before_the_old_one_is_refused() {
    let authority = Authority::new();
    let files = Files::new();
    let file = files.put("token", "one");
    let api = behind(&authority.server(&["127.0.0.1"])).await;
    api.set_token(Some("one"));
    let cluster = json!({"certificate-authority-data": data(authority.pem())});
    let kubeconfig = api.kubeconfig_of(cluster, json!({"tokenFile": file}));
    let mut world = World::watch_as(api, &kubeconfig);
    world.converge().await;
    for at in 1..4 {
        let token = format!("token-{at}");
        let before = format!("token-{}", at - 1);
        world.api.set_tokens(&[if at == 1 { "one" } else { &before }, &token]);
        files.put("token", &format!("{token}\n"));
        world.api.set_token(Some(&token));
        goes_on(&mut world, at).await;
        // No request that has the old one is under way when the next one comes.
        let start = Instant::now();
        while Kind::ALL
            .into_iter()
            .any(|kind| world.api.count(kind, Verb::Watch) < usize::from(at))
        {
            assert!(start.elapsed() < SOON);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    for (resource, health) in world.watches.health() {
        let refused = health.error.as_ref().is_some_and(|e| e.contains("answers 401"));
        assert!(!refused, "{resource}: no request had the old one: {health:?}");
    }
    // A file that goes away takes nothing with it.
    fs::remove_file(&file).unwrap();
    world.api.cut();
    goes_on(&mut world, 9).await;
}

#[tokio::test]
async fn a_plugin_gives_tokens_and_is_asked_again_when_they_end() {
    let authority = Authority::new();
    let files = Files::new();
    let count = files.put("count", "");
    let token = files.put("token", "one");
    let expires = files.put("expires", "2100-01-01T00:00:00Z");
    let script = format!(
        r#"echo asked >> '{}'; printf '{{"kind": "ExecCredential", "status": {{"token": "%s", "expirationTimestamp": "%s"}}}}' "$(cat '{}')" "$(cat '{}')""#,
        count.display(),
        token.display(),
        expires.display()
    );
    let user = files.plugin(&script);
    let api = behind(&authority.server(&["127.0.0.1"])).await;
    api.set_token(Some("one"));
    let cluster = json!({"certificate-authority-data": data(authority.pem())});
    let kubeconfig = api.kubeconfig_of(cluster, user);
    let mut world = World::watch_as(api, &kubeconfig);
    world.converge().await;
    let asked = || fs::read_to_string(&count).unwrap().lines().count();
    assert_eq!(asked(), 1, "once for one client");

    let began = Instant::now();
    // Refused: the plugin is asked at once. What it gives now is about to expire.
    files.put("token", "two");
    files.put("expires", "2020-01-01T00:00:00Z");
    world.api.set_token(Some("two"));
    goes_on(&mut world, 1).await;

    // So it is asked again before the next request, though nobody has refused anything.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let before = asked();
    // Once a second, and on a busy machine these were some more.
    let most = 8 + usize::try_from(began.elapsed().as_secs()).unwrap();
    assert!((2..=most).contains(&before), "{before} times");
    world.api.set_tokens(&["two", "three"]);
    files.put("token", "three");
    world.api.cut();
    goes_on(&mut world, 2).await;
    // Of four watches that are cut one asks, and the others go on with what is still good.
    let start = Instant::now();
    while asked() == before {
        assert!(start.elapsed() < SOON, "the plugin is not asked again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    // It fails for a while: told, without what it prints; the last state stays.
    let before = world.cluster.clone();
    files.plugin("echo hunter2; echo cannot log in >&2; exit 1");
    world.api.set_token(Some("four"));
    fails_with(&world, "answers 401").await;
    fails_with(&world, "failed with exit status: 1: cannot log in").await;
    world.quiet(Duration::from_millis(500)).await;
    assert_eq!(world.cluster, before);
    files.put("token", "four");
    files.plugin(&script);
    goes_on(&mut world, 3).await;
}

#[tokio::test]
async fn a_plugin_gives_certificates() {
    let (authority, first, second) = (Authority::new(), Authority::new(), Authority::new());
    let files = Files::new();
    let script = |identity: &Identity| {
        let status = json!({"clientCertificateData": identity.certificate, "clientKeyData": identity.key});
        let said = files.put("said", &json!({"kind": "ExecCredential", "status": status}).to_string());
        format!("cat '{}'", said.display())
    };
    let user = files.plugin(&script(&first.client()));
    let api = guarded(&authority, &first).await;
    let kubeconfig = api.kubeconfig_of(json!({"certificate-authority-data": data(authority.pem())}), user);
    let mut world = World::watch_as(api, &kubeconfig);
    world.converge().await;
    files.plugin(&script(&second.client()));
    world
        .api
        .set_server(authority.server(&["127.0.0.1"]).serving(Some(&second)));
    world.api.reset();
    goes_on(&mut world, 1).await;
}

#[tokio::test]
async fn a_plugin_that_cannot_be_used_is_told_when_it_starts() {
    let api = Api::start().await;
    let files = Files::new();
    for (script, part) in [
        (
            "echo hunter2; echo no network >&2; exit 7",
            "failed with exit status: 7: no network",
        ),
        ("echo hunter2", "printed something that is no ExecCredential"),
    ] {
        let (_folder, access) = access(&api.kubeconfig_of(json!({}), files.plugin(script)));
        let error = access.map(drop).expect_err("cannot be used").to_string();
        assert!(
            error.starts_with(&format!("cannot use the credentials for {}", api.url())),
            "{error}"
        );
        assert!(error.contains(part) && !error.contains("hunter2"), "{error}");
    }
    let mut missing = files.plugin("true");
    missing["exec"]["command"] = json!(Path::new("/nonexistent/plugin"));
    missing["exec"]["installHint"] = json!("get it at example.org");
    let (_folder, access) = access(&api.kubeconfig_of(json!({}), missing));
    let error = access.map(drop).expect_err("cannot be used").to_string();
    assert!(
        error.contains("cannot be started: No such file") && error.contains("get it at example.org"),
        "{error}"
    );
}
