//! A defect of ours in the midst of a watch.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::http::Uri;
use tokio::time::{sleep, timeout};

use super::intern::Pool;
use super::kinds::{Converted, Kind};
use super::partial::{self, Meta};
use super::*;

const SOON: Duration = Duration::from_secs(20);

/// How often [`Bomb`] has gone off.
static WENT_OFF: AtomicUsize = AtomicUsize::new(0);

/// Nodes, but that the first three events of one of them go wrong.
struct Bomb;

impl Kind for Bomb {
    const RESOURCE: Resource = Resource::Nodes;
    type Wire = partial::Node;
    type Object = policy_compiler::cluster::Node;

    fn meta(wire: &Self::Wire) -> &Meta {
        Nodes::meta(wire)
    }

    fn convert(wire: Self::Wire, pool: &mut Pool) -> Converted<Self::Object> {
        Nodes::convert(wire, pool)
    }

    fn add(cluster: &mut Cluster, object: Self::Object) {
        Nodes::add(cluster, object);
    }
}

impl Watched for Bomb {
    fn event(object: Arc<Self::Object>) -> Event {
        if &*object.name == "bomb" && WENT_OFF.fetch_add(1, Ordering::Relaxed) < 3 {
            panic!("as the test\nwants it {}", "!".repeat(400));
        }
        Nodes::event(object)
    }

    fn gone(key: &kinds::Key) -> Event {
        Nodes::gone(key)
    }
}

/// There is a node at the start, and then another one.
async fn answer(uri: Uri) -> String {
    let line =
        |name: &str| format!(r#"{{"type":"ADDED","object":{{"metadata":{{"name":"{name}","resourceVersion":"3"}}}}}}"#);
    let end = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"2","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
    let listing = uri.query().is_some_and(|query| query.contains("sendInitialEvents"));
    let lines = match (listing, uri.path()) {
        (true, "/api/v1/nodes") => vec![line("one"), end.to_owned(), line("bomb")],
        (true, _) => vec![end.to_owned()],
        (false, _) => Vec::new(),
    };
    lines.into_iter().map(|line| line + "\n").collect()
}

#[tokio::test]
async fn a_panic_in_a_watch_is_told_and_the_watch_begins_anew() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let server = format!("http://{}", listener.local_addr().expect("address"));
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    let file = tempfile::NamedTempFile::new().expect("file");
    let kubeconfig = serde_json::json!({
        "current-context": "test", "clusters": [{"name": "test", "cluster": {"server": server}}],
        "users": [], "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    std::fs::write(file.path(), kubeconfig.to_string()).expect("write");
    let target = Target::Kubeconfig {
        file: Some(file.path().to_owned()),
        context: None,
    };
    let access = Arc::new(Access::new(target).expect("credentials"));
    let timing = Timing {
        first_delay: Duration::from_millis(300),
        longest_delay: Duration::from_millis(600),
        ..Timing::default()
    };
    let shared = Arc::new(Shared::default());
    let mut tasks = JoinSet::new();
    spawn::<Namespaces>(&mut tasks, &access, &shared, timing, None);
    spawn::<Bomb>(&mut tasks, &access, &shared, timing, None);
    spawn::<Policies>(&mut tasks, &access, &shared, timing, None);
    spawn::<Pods>(&mut tasks, &access, &shared, timing, None);
    let mut watches = Watches { shared, tasks };

    let told = timeout(SOON, async {
        while watches.health()[&Resource::Nodes].failing_since.is_none() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    told.await.expect("it is told");
    let health = watches.health();
    let error = health[&Resource::Nodes].error.clone().unwrap_or_default();
    assert!(error.starts_with("the watch failed in an unexpected way"), "{error}");
    assert!(
        error.ends_with("!!!") && error.len() < 1000 && !error.contains('\n'),
        "{error}"
    );

    // All that is there comes out in the end, and what was told before once more.
    let mut cluster = Cluster::default();
    while !(cluster.nodes.contains_key("one") && cluster.nodes.contains_key("bomb")) {
        match timeout(SOON, watches.next()).await.expect("something comes") {
            Update::Ready(first) => cluster = *first,
            Update::Events { events, .. } => events.into_iter().for_each(|event| event.apply_to(&mut cluster)),
        }
    }
    assert_eq!(WENT_OFF.load(Ordering::Relaxed), 4, "three times, and once well");
    for resource in [Resource::Namespaces, Resource::Pods, Resource::NetworkPolicies] {
        let error = watches.health()[&resource].error.clone();
        assert_eq!(error, None, "{resource}");
    }
}
