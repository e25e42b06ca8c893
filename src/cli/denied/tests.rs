//! Reports of a record: their words, their form for programs, and what is left out.

use super::*;

const CLUSTER: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Node
metadata: {name: worker-2}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {nodeName: worker-1, containers: [{name: web, image: web}]}
status: {phase: Running, podIP: 10.244.1.2, podIPs: [{ip: 10.244.1.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: shop, labels: {app: db}}
spec: {nodeName: worker-1, containers: [{name: db, image: db}]}
status: {phase: Running, podIP: 10.244.1.3, podIPs: [{ip: 10.244.1.3}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
";

fn denial(from: &str, to: &str, protocol: &str, port: Option<u16>, packets: u64, ago: u64) -> Denial {
    Denial {
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        protocol: protocol.to_owned(),
        port,
        packets,
        bytes: packets * 60,
        ago: Duration::from_secs(ago),
    }
}

fn record() -> Vec<Denial> {
    vec![
        denial("192.168.0.2", "10.244.1.3", "icmp", None, 3, 1800),
        denial("192.0.2.10", "10.244.1.3", "udp", Some(53), 1, 100),
        denial("10.244.1.2", "10.244.1.3", "tcp", Some(22), 12, 3),
        denial("10.244.1.2", "10.244.1.3", "tcp", Some(5432), 1, 0),
    ]
}

fn report(cluster: bool, filter: &Filter) -> Report {
    let loaded = crate::manifests::parse("cluster.yaml", CLUSTER).unwrap();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    Report::new(
        &record(),
        cluster.then_some(&loaded.cluster),
        Rules::default(),
        filter,
        now,
    )
}

fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

#[test]
fn each_line_says_who_whom_and_why() {
    insta::assert_snapshot!(plain(&report(true, &Filter::default()).text(true)));
    insta::assert_snapshot!(plain(&report(false, &Filter::default()).text(true)));
}

#[test]
fn what_an_audited_policy_would_deny_passes() {
    let text = CLUSTER.replace(
        "metadata: {name: db, namespace: shop}",
        "metadata: {name: db, namespace: shop, annotations: {palisade.dev/mode: audit}}",
    );
    let loaded = crate::manifests::parse("cluster.yaml", &text).unwrap();
    let report = Report::new(
        &record()[2..3],
        Some(&loaded.cluster),
        Rules::default(),
        &Filter::default(),
        SystemTime::UNIX_EPOCH,
    );
    let line = plain(&report.text(false));
    let why = "passes: egress not isolated; ingress not isolated (audit: would be denied by shop/db, no rule admits it; \
               nearest: shop/db ingress[0] wants port 5432/TCP, asked for 22/TCP)";
    assert!(line.contains(why), "{line}");
    assert!(report.json().unwrap().contains("\"auditVerdict\": \"deny\""));
}

#[test]
fn in_audit_mode_all_of_it_passes() {
    let loaded = crate::manifests::parse("cluster.yaml", CLUSTER).unwrap();
    let told = |audit| {
        let rules = Rules {
            audit,
            ..Rules::default()
        };
        let (record, filter) = (record(), Filter::default());
        let report = Report::new(
            &record[2..],
            Some(&loaded.cluster),
            rules,
            &filter,
            SystemTime::UNIX_EPOCH,
        );
        (
            plain(&report.text(false)),
            report.json().unwrap() + &report.json_lines().unwrap(),
        )
    };
    let (text, json) = told(true);
    assert!(text.contains("22/TCP    passes: ingress isolated by shop/db"), "{text}");
    // What policy allows by now was denied then, or would have been, by another one.
    assert!(text.contains("5432/TCP  allowed now: "), "{text}");
    assert!(
        json.contains("\"mode\": \"audit\"") && json.contains("\"mode\":\"audit\""),
        "{json}"
    );
    let (text, json) = told(false);
    assert!(
        !text.contains("passes") && json.contains("\"mode\": \"enforce\""),
        "{text} {json}"
    );
}

#[test]
fn what_is_addressed_to_no_pod_is_not_called_allowed() {
    let loaded = crate::manifests::parse("cluster.yaml", CLUSTER).unwrap();
    let record = [
        denial("fe80::1", "fe80::2", "tcp", Some(5432), 1, 0),
        denial("10.244.1.2", "224.0.0.251", "udp", Some(5353), 1, 0),
        denial("10.244.1.2", "192.0.2.1", "udp", Some(5353), 1, 0),
    ];
    let filter = Filter::default();
    let report = Report::new(
        &record,
        Some(&loaded.cluster),
        Rules::default(),
        &filter,
        SystemTime::UNIX_EPOCH,
    );
    let text = plain(&report.text(false));
    let told: Vec<bool> = text.lines().map(|line| line.contains("addressed to no pod")).collect();
    assert_eq!(told, [true, true, false], "{text}");
    assert!(text.contains("allowed now"), "{text}");
    assert_eq!(report.json().unwrap().matches("\"verdict\": \"deny\"").count(), 2);
}

#[test]
fn an_unknown_pod_is_told_where_the_kernel_drops_it() {
    let text = CLUSTER.replace(
        "metadata: {name: worker-2}",
        "metadata: {name: worker-2}\nspec: {podCIDR: 10.244.1.0/24}",
    );
    let loaded = crate::manifests::parse("cluster.yaml", &text).unwrap();
    let record = [
        denial("10.244.1.9", "10.244.1.2", "tcp", Some(80), 1, 0),
        denial("10.244.1.9", "10.244.1.3", "tcp", Some(80), 1, 0),
        denial("10.244.2.9", "10.244.1.2", "tcp", Some(80), 1, 0),
    ];
    let lines = |drops_unknown| {
        let now = SystemTime::UNIX_EPOCH;
        let rules = Rules {
            drops_unknown,
            ..Rules::default()
        };
        let report = Report::new(&record, Some(&loaded.cluster), rules, &Filter::default(), now);
        plain(&report.text(false))
            .lines()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let (told, off) = (lines(true), lines(false));
    assert!(
        told[0].ends_with("80/TCP  no pod of the cluster has 10.244.1.9 (--unknown-pods drop)"),
        "{told:?}"
    );
    assert!(
        told[1].contains("has 10.244.1.9 (--unknown-pods drop); ingress isolated by shop/db"),
        "{told:?}"
    );
    assert!(
        told[2].contains("allowed now") && off[0].contains("allowed now"),
        "{told:?} {off:?}"
    );
    assert!(off[1].contains("80/TCP  ingress isolated by shop/db"), "{off:?}");
}

#[test]
fn json_is_stable() {
    let filter = Filter {
        namespace: None,
        pod: Some("shop/web-0".to_owned()),
    };
    insta::assert_snapshot!(report(true, &filter).json().unwrap());
    let lines = report(true, &filter).json_lines().unwrap();
    let kinds: Vec<String> = (lines.lines())
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["kind"].to_string())
        .collect();
    assert_eq!(kinds, ["\"Denial\"", "\"Denial\""]);
}

#[test]
fn filters_look_at_both_ends() {
    let rows = |namespace: Option<&str>, pod: Option<&str>| {
        let filter = Filter {
            namespace: namespace.map(str::to_owned),
            pod: pod.map(str::to_owned),
        };
        report(true, &filter).rows.len()
    };
    assert_eq!(rows(None, None), 4);
    assert_eq!(rows(Some("shop"), None), 4);
    assert_eq!(rows(Some("other"), None), 0);
    assert_eq!(rows(None, Some("shop/db-0")), 4);
    assert_eq!(rows(None, Some("shop/web-0")), 2);
    assert_eq!(rows(Some("other"), Some("shop/web-0")), 0);
}

#[test]
fn a_filter_that_can_find_nothing_is_told() {
    let loaded = crate::manifests::parse("cluster.yaml", CLUSTER).unwrap();
    let doubt = |namespace: Option<&str>, pod: Option<&str>| {
        let filter = Filter {
            namespace: namespace.map(str::to_owned),
            pod: pod.map(str::to_owned),
        };
        filter.doubt(&loaded.cluster).unwrap_or_default()
    };
    assert_eq!(doubt(Some("shop"), Some("shop/db-0")), "");
    let mistyped = doubt(None, Some("shop/db0"));
    assert!(
        mistyped.starts_with("there is no pod shop/db0 (did you mean shop/db-0?)"),
        "{mistyped}"
    );
    assert_eq!(doubt(Some("shp"), None), "there is no pod in namespace shp");
}

#[test]
fn a_watch_tells_what_is_new() {
    let mut watch = Watch::default();
    assert_eq!(watch.news(record()), record());
    assert!(watch.news(record()).is_empty());
    let mut next = record();
    next[1].packets += 1;
    next.push(denial("10.244.1.2", "10.244.1.3", "tcp", Some(23), 1, 0));
    assert_eq!(watch.news(next.clone()), [next[1].clone(), next[4].clone()]);
    // One that aged and came again.
    next.remove(0);
    assert!(watch.news(next).is_empty());
    assert_eq!(watch.news(record())[0], record()[0]);
}
