//! The pure parts of the demo, over the shop: which probes, what is expected, which change, how it is shown.

use std::collections::{BTreeMap, BTreeSet};

use policy_compiler::cluster::Cluster;
use policy_compiler::ports::{Protocol, Traffic};

use super::change::{self, Check};
use super::plan::{Destination, Expected, Judgement, Planned, plan, ports};
use super::report::{Made, Summary, complaints, matrices, to_json};
use super::shop;
use crate::sandbox::{Expect, Options, Outcome, Place, Probe, assign_addresses, frontends};

fn shop_cluster() -> Cluster {
    let mut cluster = shop::load().expect("the manifests are valid").cluster;
    let before = cluster.clone();
    assign_addresses(&mut cluster).expect("there are enough addresses");
    assert_eq!(cluster, before, "the shop says all of its addresses itself");
    cluster
}

fn planned(cluster: &Cluster) -> Vec<Planned> {
    let client = Options::default().client;
    plan(cluster, &frontends(cluster), &client, &ports(cluster)).expect("the shop is small")
}

/// What came of the probes when everything went as expected; a Service's answer comes from its first back end.
fn perfect(planned: Vec<Planned>) -> Vec<Made> {
    let made = planned.into_iter().map(|planned| {
        let answer = |names: &BTreeSet<String>| Outcome::Answered(names.first().cloned().unwrap_or_default());
        let observed = match &planned.expected {
            Expected::Allowed => answer(&planned.answerers),
            Expected::Depends(names) => answer(names),
            Expected::Denied => Outcome::Silent,
        };
        Made {
            baseline: answer(&planned.answerers),
            judgement: planned.judge(&observed),
            observed: Some(observed),
            planned,
        }
    });
    made.collect()
}

#[test]
fn the_shop_is_probed_on_every_port_that_its_policies_name() {
    let expected = [
        (Protocol::Tcp, 53),
        (Protocol::Tcp, 80),
        (Protocol::Tcp, 5432),
        (Protocol::Tcp, 8080),
        (Protocol::Tcp, 9999),
        (Protocol::Udp, 53),
    ];
    assert_eq!(ports(&shop_cluster()), BTreeSet::from(expected));
}

/// The sentence of the demo, checked by hand and not by the evaluator: who reaches whom on which port in the shop.
#[test]
fn the_shop_means_what_its_story_says() {
    let mut allowed: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for one in planned(&shop_cluster()) {
        if let (Place::Pod(from), Destination::Place(Place::Pod(to))) = (&one.probe.from, &one.to)
            && one.expected == Expected::Allowed
        {
            let key = (from.name.to_string(), to.name.to_string());
            allowed.entry(key).or_default().insert(one.probe.traffic.to_string());
        }
    }
    let mut story = BTreeMap::new();
    let mut say = |from: &str, to: &str, ports: &[&str]| {
        story.insert(
            (from.to_owned(), to.to_owned()),
            ports.iter().map(|p| (*p).to_owned()).collect(),
        );
    };
    for front in ["frontend-1", "frontend-2"] {
        say("coredns-1", front, &["80/TCP"]);
        for back in ["backend-1", "backend-2"] {
            say(front, back, &["8080/TCP"]);
        }
    }
    for back in ["backend-1", "backend-2"] {
        say(back, "database-0", &["5432/TCP"]);
    }
    for anybody in ["frontend-1", "frontend-2", "backend-1", "backend-2", "database-0"] {
        say(anybody, "coredns-1", &["53/TCP", "53/UDP"]);
    }
    assert_eq!(allowed, story);
}

#[test]
fn the_outside_reaches_only_the_front_ends_and_dns_which_no_policy_isolates() {
    let reached: BTreeSet<(String, String)> = (planned(&shop_cluster()).into_iter())
        .filter(|p| p.probe.from == Place::Client && p.expected == Expected::Allowed)
        .filter_map(|p| match p.to {
            Destination::Place(Place::Pod(name)) if &*name.namespace == "shop" => {
                Some((name.name.to_string(), p.probe.traffic.to_string()))
            }
            _ => None,
        })
        .collect();
    let front = |name: &str| (name.to_owned(), "80/TCP".to_owned());
    assert_eq!(reached, BTreeSet::from([front("frontend-1"), front("frontend-2")]));
}

#[test]
fn outcomes_are_judged() {
    let planned = |expected: Expected| Planned {
        probe: Probe {
            from: Place::Client,
            source: None,
            to: [10, 0, 0, 1].into(),
            traffic: Traffic::Other,
            expect: Expect::Silence,
        },
        to: Destination::Service("shop/web".into()),
        answerers: ["a".to_owned(), "b".to_owned()].into(),
        expected,
        reason: String::new(),
    };
    let by = |name: &str| Outcome::Answered(name.to_owned());
    let unreachable = || Outcome::Unreachable("no route".to_owned());
    let depends = || Expected::Depends(["a".to_owned()].into());
    let cases = [
        (Expected::Allowed, by("a"), Judgement::AsExpected),
        (Expected::Allowed, by("c"), Judgement::Broken),
        (Expected::Allowed, Outcome::Silent, Judgement::Blocked),
        (Expected::Allowed, Outcome::OneWay, Judgement::Blocked),
        (Expected::Allowed, Outcome::Refused, Judgement::Broken),
        (Expected::Denied, Outcome::Silent, Judgement::AsExpected),
        (Expected::Denied, by("a"), Judgement::Leak),
        (Expected::Denied, by("c"), Judgement::Leak),
        (Expected::Denied, Outcome::OneWay, Judgement::Leak),
        (Expected::Denied, Outcome::Refused, Judgement::Leak),
        (Expected::Denied, unreachable(), Judgement::Broken),
        (depends(), by("a"), Judgement::AsExpected),
        (depends(), Outcome::Silent, Judgement::AsExpected),
        (depends(), by("b"), Judgement::Leak),
    ];
    for (expected, outcome, judgement) in cases {
        let planned = planned(expected);
        assert_eq!(
            planned.judge(&outcome),
            judgement,
            "{:?} and {outcome:?}",
            planned.expected
        );
    }
    assert_eq!(
        planned(Expected::Denied).judge_baseline(&by("b")),
        Judgement::AsExpected
    );
    for outcome in [by("c"), Outcome::Silent, Outcome::Refused, unreachable()] {
        assert_eq!(planned(Expected::Denied).judge_baseline(&outcome), Judgement::Broken);
    }
}

#[test]
fn a_policy_is_found_whose_removal_ends_a_connection() {
    let cluster = shop_cluster();
    let change = change::choose(&cluster, &planned(&cluster)).expect("the shop has connections");
    assert_eq!(change.from.to_string(), "shop/backend-1");
    assert_eq!(change.to.to_string(), "shop/database-0");
    assert_eq!(change.addresses.len(), 2, "one of each family");
    assert_eq!(change.what, "policy shop/backend is deleted");
    assert_eq!(change.after.policies.len(), cluster.policies.len() - 1);
}

#[test]
fn without_a_policy_that_denies_one_is_put_in() {
    let mut cluster = shop_cluster();
    cluster.policies.clear();
    let change = change::choose(&cluster, &planned(&cluster)).expect("everything is allowed");
    let what = format!(
        "a policy {}/demo-deny that admits nobody to {} takes the place of all ingress policies",
        change.to.namespace, change.to
    );
    assert_eq!(change.what, what);
    let denied = planned(&change.after).into_iter().filter(|p| {
        p.probe.from == Place::Pod(change.from.clone()) && p.to == Destination::Place(Place::Pod(change.to.clone()))
    });
    assert!(denied.clone().count() > 0);
    assert_eq!(denied.filter(|p| p.expected != Expected::Denied).count(), 0);
}

#[test]
fn the_matrix_of_the_shop() {
    let cluster = shop_cluster();
    let made = perfect(planned(&cluster));
    assert_eq!(complaints(&made, &[]), Vec::<String>::new());
    insta::assert_snapshot!(matrices(&cluster, &made));
}

/// A leak on one port, a block on another, a listener that was never there: in the matrix, in words, in numbers.
#[test]
fn what_is_off_is_shown() {
    let cluster = shop_cluster();
    let mut made = perfect(planned(&cluster));
    let mut set = |from: &str, to: &str, port: u16, observed: Option<Outcome>| {
        let found = made.iter_mut().find(|m| {
            let one = &m.planned;
            one.probe.from.to_string() == from
                && one.to == Destination::Place(place(to))
                && one.probe.traffic == Traffic::Port(Protocol::Tcp, port)
        });
        let made = found.expect("the probe is planned");
        match &observed {
            Some(observed) => made.judgement = made.planned.judge(observed),
            None => {
                made.baseline = Outcome::Refused;
                made.judgement = Judgement::Broken;
            }
        }
        made.observed = observed;
    };
    set(
        "client",
        "database-0",
        5432,
        Some(Outcome::Answered("shop/database-0".into())),
    );
    set("shop/frontend-1", "backend-1", 8080, Some(Outcome::Silent));
    set("shop/frontend-2", "database-0", 5432, None);
    let checks = [Check {
        what: "10.244.3.10:5432: the server is no longer heard".into(),
        instead: Some("it still is".into()),
        leak: true,
    }];
    let summary = Summary::of(&made, &checks);
    assert_eq!((summary.probes - summary.as_expected, summary.leaks), (4, 2));
    assert!(!summary.is_fine());
    let json = to_json(&made, &checks, Some("a policy is deleted"));
    assert_eq!(json["kind"], "Demo");
    assert_eq!(json["summary"]["leaks"], 2);
    assert_eq!(json["openConnection"]["change"], "a policy is deleted");
    let off = json["probes"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|p| p["asExpected"] == false);
    assert_eq!(off.count(), 3);
    insta::assert_snapshot!(format!(
        "{}\n{}",
        matrices(&cluster, &made),
        complaints(&made, &checks).join("\n")
    ));
}

fn place(name: &str) -> Place {
    Place::Pod(policy_compiler::cluster::PodName {
        namespace: "shop".into(),
        name: name.into(),
    })
}
