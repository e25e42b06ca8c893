//! Input that nobody sends in good faith, from whoever may write objects and from whatever answers in the API server's place.
//! What is quadratic takes minutes at these sizes, so that the answer itself is the test.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use palisade::agent::source::{Resource, Timing, Watches};
use policy_compiler::compile::Event;
use policy_compiler::policy::Peers;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

use crate::api::Kind;
use crate::objects::{pod, policy};
use crate::world::{HASTY, SOON, TIMING, World, access};

/// Objects that may be told but must do no harm: what comes after them is told as ever.
async fn goes_on(world: &mut World) {
    world.api.put(Kind::Pod, pod("shop", "after", "web", "10.1.0.99"));
    let start = Instant::now();
    while !world
        .cluster
        .as_ref()
        .unwrap()
        .pods
        .keys()
        .any(|name| &*name.name == "after")
    {
        assert!(start.elapsed() < SOON);
        world.next().await;
    }
    for (resource, health) in world.watches.health() {
        assert_eq!(health.lists, 1, "{resource} had to start anew: {health:#?}");
    }
}

/// A complaint of a bearable length, on one line.
fn tame(complaint: &str) {
    assert!(complaint.len() < 1500, "{} bytes", complaint.len());
    assert!(!complaint.chars().any(char::is_control), "{complaint:?}");
}

/// Pods with this put into them: how many cannot be read, and what is told.
async fn complaints(objects: Vec<Value>) -> Vec<String> {
    let mut world = World::synced().await;
    let many = objects.len();
    objects.into_iter().for_each(|object| world.api.put(Kind::Pod, object));
    world.until("all are told", |h| h.invalid == many, Resource::Pods).await;
    goes_on(&mut world).await;
    let complaints = world.watches.health()[&Resource::Pods].complaints.clone();
    complaints.iter().for_each(|complaint| tame(complaint));
    complaints
}

#[tokio::test]
async fn values_beyond_all_bounds_cost_their_object_alone() {
    let with = |name: &str, change: fn(&mut Value)| {
        let mut object = pod("shop", name, "web", "10.1.0.66");
        change(&mut object);
        object
    };
    let told = complaints(vec![
        with("address", |o| {
            o["status"]["podIPs"] = json!([{"ip": "x".repeat(1 << 20)}])
        }),
        with("labels", |o| {
            let labels: serde_json::Map<_, _> = (0..100_000).map(|at| (format!("l{at}"), json!("v"))).collect();
            o["metadata"]["labels"] = Value::Object(labels);
        }),
        with("number", |o| {
            o["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(99_999_999_999_u64)
        }),
        with("port", |o| {
            o["spec"]["containers"][0]["ports"][0]["containerPort"] = json!("p".repeat(1 << 20))
        }),
    ])
    .await;
    assert!(
        told[0].starts_with("Pod shop/address: status.podIPs[0].ip: \"xxx"),
        "{}",
        told[0]
    );
    assert!(
        told[1].starts_with("Pod shop/labels: metadata.labels: 100000 labels are too many"),
        "{}",
        told[1]
    );
    assert!(
        told[2].starts_with("Pod shop/number: invalid value: integer `99999999999`"),
        "{}",
        told[2]
    );
    assert!(
        told[3].starts_with("Pod shop/port: invalid type: string \"ppp"),
        "{}",
        told[3]
    );
}

#[tokio::test]
async fn names_write_no_lines_and_steer_no_terminal() {
    let told = complaints(vec![
        pod("shop", "a\nready\x1b[2J", "web", "10.1.0.66"),
        pod("sh\rop", "b", "\x1b]0;title\x07", "10.1.0.67"),
        pod("shop", &"n".repeat(1 << 20), "web", "10.1.0.68"),
    ])
    .await;
    assert!(
        told[0].starts_with("Pod sh\\rop/b: metadata.namespace: "),
        "{}",
        told[0]
    );
    assert!(
        told[1].starts_with("Pod shop/a\\nready\\u{1b}[2J: metadata.name: "),
        "{}",
        told[1]
    );
}

#[tokio::test]
async fn what_is_large_and_not_in_use_is_passed_over() {
    let mut world = World::synced().await;
    // Deeper than any decoder that calls itself goes.
    let mut nested = json!(1);
    for _ in 0..1000 {
        nested = json!([nested]);
    }
    let mut object = pod("shop", "large", "web", "10.1.0.66");
    object["metadata"]["annotations"] = json!({"note": "x".repeat(1 << 20)});
    object["metadata"]["managedFields"] = nested.clone();
    object["spec"]["volumes"] = nested;
    world.api.put(Kind::Pod, object);
    let events = world.next().await;
    assert!(
        matches!(&events[..], [Event::Pod(pod)] if &*pod.name.name == "large"),
        "{events:?}"
    );
    goes_on(&mut world).await;
}

#[tokio::test]
async fn a_hundred_thousand_entries_of_a_policy_are_read() {
    let mut world = World::synced().await;
    let mut object = policy("shop", "many", "web", 80);
    let block = |at: u32| json!({"ipBlock": {"cidr": format!("{}/32", std::net::Ipv4Addr::from(0x0a00_0000 + at))}});
    object["spec"]["ingress"][0]["from"] = (0..100_000).map(block).collect();
    world.api.put(Kind::NetworkPolicy, object);
    let events = world.next().await;
    let [Event::Policy(policy)] = &events[..] else {
        panic!("{} events", events.len())
    };
    let rule = &policy.ingress.as_ref().unwrap()[0];
    assert!(matches!(&rule.peers, Peers::Listed(peers) if peers.len() == 100_000));
    goes_on(&mut world).await;
}

#[tokio::test]
async fn a_long_policy_that_cannot_be_read_as_a_whole_is_salvaged_in_time() {
    let mut world = World::synced().await;
    let mut object = policy("shop", "many", "web", 80);
    let values: Vec<String> = (0..20_000).map(|at| format!("v{at}")).collect();
    object["spec"]["podSelector"] =
        json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": values}]});
    let mut rules = vec![json!({"ports": [{"port": 80}]}); 50_000];
    rules.push(json!({"ports": "all"}));
    object["spec"]["ingress"] = json!(rules);
    world.api.put(Kind::NetworkPolicy, object);
    let events = world.next().await;
    let [Event::Policy(policy)] = &events[..] else {
        panic!("{} events", events.len())
    };
    assert_eq!(policy.ingress.as_ref().map(Vec::len), Some(50_000));
    let told = world.watches.health()[&Resource::NetworkPolicies].complaints.clone();
    told.iter().for_each(|complaint| tame(complaint));
    goes_on(&mut world).await;
}

/// A server that answers every request for pods like this, and nothing else.
async fn odd<A, F>(timing: Timing, answer: A) -> (tempfile::TempDir, Watches, Arc<AtomicUsize>)
where
    A: Fn(TcpStream) -> F + Clone + Send + 'static,
    F: Future<Output = Option<()>> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, count) = (answer.clone(), count.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.ok()?);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                assert!(!head.to_ascii_lowercase().contains("accept-encoding"), "{head}");
                if !head.starts_with("GET /api/v1/pods?") {
                    return std::future::pending().await;
                }
                count.fetch_add(1, Ordering::Relaxed);
                answer(stream).await
            });
        }
    });
    let kubeconfig = json!({
        "current-context": "odd", "users": [{"name": "odd", "user": {"token": "secret"}}],
        "clusters": [{"name": "odd", "cluster": {"server": format!("http://{address}")}}],
        "contexts": [{"name": "odd", "context": {"cluster": "odd", "user": "odd"}}],
    });
    let (folder, access) = access(&kubeconfig.to_string());
    (folder, Watches::start(Arc::new(access.unwrap()), timing), asked)
}

/// What the watch of pods tells when it fails with something like this.
async fn fails(watches: &Watches, part: &str) {
    let start = Instant::now();
    loop {
        let health = watches.health()[&Resource::Pods].clone();
        if health.error.as_ref().is_some_and(|error| error.contains(part)) {
            tame(health.error.as_ref().unwrap());
            assert!(!health.synced);
            return;
        }
        assert!(start.elapsed() < SOON, "{part}: {health:#?}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn write(mut stream: TcpStream, text: impl AsRef<[u8]>) -> Option<()> {
    stream.write_all(text.as_ref()).await.ok()?;
    // Read by then, in any case.
    sleep(Duration::from_millis(200)).await;
    Some(())
}

#[tokio::test]
async fn a_redirection_is_not_followed_with_the_token() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = elsewhere.local_addr().unwrap();
    for code in [301, 302, 303, 307, 308] {
        let head = format!("HTTP/1.1 {code} Moved\r\nLocation: http://{location}/\r\nContent-Length: 0\r\n\r\n");
        let (_folder, watches, _) = odd(TIMING, move |stream| write(stream, head.clone())).await;
        fails(&watches, &format!("the API server answers {code}")).await;
        assert!(
            tokio::time::timeout(Duration::from_millis(300), elsewhere.accept())
                .await
                .is_err()
        );
    }
}

#[tokio::test]
async fn what_is_compressed_is_never_unpacked() {
    // The beginning of what `gzip` makes of a gigabyte of zeros.
    let zeros = [
        0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xec, 0xc1, 1, 1, 0, 0, 0, 0x80, 0x90, 0xfe, b'\n',
    ];
    let head = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 21\r\n\r\n";
    let answer = [head.as_bytes(), &zeros].concat();
    let (_folder, watches, _) = odd(TIMING, move |stream| write(stream, answer.clone())).await;
    fails(&watches, "the answer makes no sense").await;
}

#[tokio::test]
async fn headers_without_end_and_without_haste_are_given_up() {
    // As fast as they are read.
    let (_folder, watches, _) = odd(TIMING, |mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\n").await.ok()?;
        loop {
            stream
                .write_all(b"X-More: and more and more and more and more\r\n")
                .await
                .ok()?;
        }
    })
    .await;
    fails(&watches, "message head is too large").await;
    // A byte now and then.
    let (_folder, watches, _) = odd(HASTY, |mut stream| async move {
        for byte in b"HTTP/1.1 200 OK\r\nX-More: ".iter().chain(std::iter::repeat(&b'x')) {
            stream.write_u8(*byte).await.ok()?;
            sleep(Duration::from_millis(50)).await;
        }
        None
    })
    .await;
    fails(&watches, "no answer within 1500 ms").await;
}

#[tokio::test]
async fn a_body_that_comes_byte_by_byte_is_given_up() {
    for (status, part) in [(200, "no answer within 2500 ms"), (500, "the API server answers 500")] {
        let (_folder, watches, asked) = odd(HASTY, move |mut stream| async move {
            let head = format!("HTTP/1.1 {status} Odd\r\nTransfer-Encoding: chunked\r\n\r\n");
            stream.write_all(head.as_bytes()).await.ok()?;
            loop {
                stream.write_all(b"1\r\n \r\n").await.ok()?;
                sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        fails(&watches, part).await;
        assert!(asked.load(Ordering::Relaxed) > 0);
    }
}

#[tokio::test]
async fn what_an_error_says_is_one_short_line() {
    for body in [
        json!({"kind": "Status", "code": 403, "reason": "a\nb", "message": "no\n\x1b[31m".to_owned() + &"x".repeat(9999)}).to_string(),
        "\x1b[31m<html>\x07".to_owned() + &"y".repeat(9999),
        "z".repeat(1 << 20),
    ] {
        let answer = format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let (_folder, watches, _) = odd(TIMING, move |stream| write(stream, answer.clone())).await;
        fails(&watches, "the API server answers 403").await;
    }
}

#[tokio::test]
async fn bytes_that_are_no_text_cost_their_object_at_most() {
    let line = |name: &str, bytes: &[u8]| {
        let head =
            format!(r#"{{"type":"ADDED","object":{{"metadata":{{"namespace":"n","name":"{name}","labels":{{"a":""#);
        [head.as_bytes(), bytes, b"\"}}}}\n"].concat()
    };
    let end = br#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
    // Not UTF-8, half of a surrogate pair, the same key twice, and one that is well.
    let twice = br#"{"type":"ADDED","object":{"metadata":{"namespace":"n","name":"d"},"metadata":{"namespace":"n","name":"e"}}}"#;
    let lines = [
        &line("a", b"\xff\xfe")[..],
        &line("b", br"\ud800"),
        twice,
        b"\n",
        &line("c", b"fine"),
        end,
        b"\n",
    ]
    .concat();
    let head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
    let answer = [head, &lines[..]].concat();
    let (_folder, watches, _) = odd(TIMING, move |stream| write(stream, answer.clone())).await;
    let start = Instant::now();
    while !watches.health()[&Resource::Pods].synced {
        assert!(start.elapsed() < SOON, "{:#?}", watches.health()[&Resource::Pods]);
        sleep(Duration::from_millis(20)).await;
    }
    let health = watches.health()[&Resource::Pods].clone();
    assert_eq!((health.objects, health.invalid), (1, 2), "{health:#?}");
    health.complaints.iter().for_each(|complaint| tame(complaint));
}

#[tokio::test]
async fn a_page_with_bytes_that_are_no_text_is_read_all_the_same() {
    let page = b"{\"metadata\":{\"resourceVersion\":\"7\"},\"items\":[{\"metadata\":{\"namespace\":\"n\",\"name\":\"a\",\"labels\":{\"a\":\"\xff\"}}},\
                 {\"metadata\":{\"namespace\":\"n\",\"name\":\"b\"}}]}";
    let refusal = "HTTP/1.1 422 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let list = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        page.len()
    );
    let first = Arc::new(AtomicUsize::new(0));
    let (_folder, watches, _) = odd(TIMING, move |stream| {
        let answer = match first.fetch_add(1, Ordering::Relaxed) {
            0 => refusal.as_bytes().to_vec(),
            _ => [list.as_bytes(), page].concat(),
        };
        write(stream, answer)
    })
    .await;
    let start = Instant::now();
    while !watches.health()[&Resource::Pods].synced {
        assert!(start.elapsed() < SOON, "{:#?}", watches.health()[&Resource::Pods]);
        sleep(Duration::from_millis(20)).await;
    }
    let health = watches.health()[&Resource::Pods].clone();
    assert_eq!((health.objects, health.invalid), (1, 1), "{health:#?}");
}
