use super::*;

fn finding(namespace: &str, name: &str, uid: &str, generation: i64) -> Finding {
    Finding {
        policy: PolicyName {
            namespace: Some(namespace.into()),
            name: name.into(),
        },
        identity: Identity {
            uid: uid.into(),
            generation,
        },
        reason: Reason::Invalid,
        message: "wrong; left out".to_owned(),
    }
}

#[test]
fn the_name_follows_from_what_is_said() {
    let name = |finding: &Finding, hour| finding.name(hour);
    let one = finding("shop", "web", "6f1c0000-aaaa", 3);
    assert_eq!(name(&one, 7).as_deref(), Some("policyinvalid-6f1c0000-aaaa-3-7"));
    let refused = Finding {
        reason: Reason::Refused,
        ..one.clone()
    };
    let all = [
        name(&one, 7),
        name(&refused, 7),
        name(&one, 8),
        name(&finding("shop", "web", "6f1c0000-aaaa", 4), 7),
        name(&finding("shop", "web", "6f1c0000-aaab", 3), 7),
    ];
    let all = BTreeSet::from(all);
    assert_eq!(all.len(), 5, "{all:?}");
    assert!(!all.contains(&None));
}

#[test]
fn what_the_api_server_would_not_take_is_not_said() {
    let long = "n".repeat(254);
    for odd in [
        finding("", "web", "1", 1),
        finding("shop/../kube-system", "web", "1", 1),
        finding(&long, "web", "1", 1),
        finding("shop", "", "1", 1),
        finding("shop", "We\u{1b}[1mb", "1", 1),
        finding("shop", &long, "1", 1),
        finding("shop", "web", "", 1),
        finding("shop", "web", "1?x=y", 1),
        finding("shop", "web", &"1".repeat(65), 1),
        finding("shop", "web", "1", -1),
    ] {
        assert_eq!(odd.name(7), None, "{odd:?}");
    }
    let longest = finding(&"n".repeat(63), &"n".repeat(253), &"f".repeat(64), i64::MAX);
    assert!(longest.name(u64::MAX).is_some_and(|name| name.len() <= LONGEST_NAME));
}

#[test]
fn an_event_is_within_the_bounds_of_the_api() {
    let mut one = finding("shop", "web", "1", 1);
    one.message = "ü".repeat(5000);
    let node = "n".repeat(253);
    let event = one.event("name", &node);
    let note = event.note.expect("a note");
    assert!(
        (LONGEST_NOTE - 1..=LONGEST_NOTE).contains(&note.len()),
        "{}",
        note.len()
    );
    assert!(note.ends_with("ü..."), "{note}");
    let instance = event.reporting_instance.expect("an instance");
    assert_eq!(instance.len(), LONGEST_INSTANCE);
    let regarding = event.regarding.expect("an object");
    assert_eq!(regarding.namespace, event.metadata.namespace);
    assert_eq!(cut("short", 5), "short");
    assert_eq!(cut("much longer", 6), "muc...");
}

#[test]
fn all_agents_together_send_no_more_than_so_many_requests() {
    for (nodes, expected) in [(0, 1.0), (1, 1.0), (50, 1.0), (100, 2.0), (5000, 100.0)] {
        assert_eq!(pace(nodes), Duration::from_secs_f64(expected), "{nodes} nodes");
    }
}

#[test]
fn in_a_small_cluster_each_draws_and_in_a_large_one_about_sixteen() {
    for name in ["x", "y", "z"] {
        assert!((0..16).all(|at| draws(name, &format!("node-{at}"), 16)));
        assert!(draws(name, "node", 0));
        let drawn = (0..5000).filter(|at| draws(name, &format!("node-{at}"), 5000)).count();
        assert!((4..40).contains(&drawn), "{name}: {drawn}");
    }
}

#[test]
fn a_refusal_says_whether_to_try_again() {
    let status = |code, seconds, cause: &str| Status {
        code,
        details: serde_json::from_value(serde_json::json!({
            "retryAfterSeconds": seconds, "causes": [{"reason": cause}],
        }))
        .expect("details"),
        ..Status::default()
    };
    assert!(matches!(refusal(&status(409, 0, "")), Answer::Known));
    assert!(matches!(refusal(&status(403, 0, "")), Answer::Forbidden(_)));
    for code in [400, 404, 422] {
        assert!(matches!(refusal(&status(code, 0, "")), Answer::Void(_)), "{code}");
    }
    let ending = refusal(&status(403, 0, "NamespaceTerminating"));
    assert!(
        matches!(ending, Answer::Void(_)),
        "the namespace goes, and not the right"
    );
    for why in [
        "events.events.k8s.io \"a\" is forbidden: exceeded quota: small",
        "admission webhook \"w\" denied the request",
    ] {
        let status = Status {
            message: why.to_owned(),
            ..status(403, 0, "")
        };
        assert!(matches!(refusal(&status), Answer::Void(_)), "{why}");
    }
    for code in [401, 429, 500, 503] {
        let Answer::Later(_, wish) = refusal(&status(code, 7, "")) else {
            panic!("{code}");
        };
        assert_eq!(wish, Some(Duration::from_secs(7)));
    }
}
