//! Random changes of an API server's objects, and random trouble with it.

use std::time::Duration;

use rand_pcg::Pcg32;
use rand_pcg::rand_core::Rng;
use serde_json::{Value, json};

use crate::api::{Api, Fault, Kind, Verb};
use crate::objects::{namespace, node, pod, policy};

/// Numbers that a seed repeats.
pub(crate) struct Random(Pcg32);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(Pcg32::new(seed, 1))
    }

    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        self.0.next_u32() % bound
    }

    pub(crate) fn one_in(&mut self, many: u32) -> bool {
        self.below(many) == 0
    }

    pub(crate) fn of<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u32) as usize].clone()
    }
}

/// What the environment says of a soak test.
pub(crate) fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |value| value.parse().unwrap())
}

/// A random change of a small cluster, whose names and addresses collide.
pub(crate) fn change(api: &Api, random: &mut Random) {
    let space = random.of(&["shop", "other", "third"]);
    let at = random.below(30);
    match random.below(20) {
        0 => api.put(Kind::Namespace, namespace(space, random.of(&["red", "blue"]))),
        1 => drop(api.delete(Kind::Namespace, "", space)),
        2 => api.put(Kind::Node, node(&format!("n{}", at % 3), &format!("192.0.2.{at}"))),
        3 => drop(api.delete(Kind::Node, "", &format!("n{}", at % 3))),
        4..=6 => {
            let name = format!("p{}", at % 10);
            api.put(Kind::NetworkPolicy, any_policy(space, &name, random));
        }
        7 => drop(api.delete(Kind::NetworkPolicy, space, &format!("p{}", at % 10))),
        8..=11 => drop(api.delete(Kind::Pod, space, &format!("w{at}"))),
        _ => {
            let address = format!("10.1.{}.{}", random.below(4), at);
            let mut pod = pod(space, &format!("w{at}"), random.of(&["web", "db", "api"]), &address);
            pod["spec"]["nodeName"] = json!(random.of(&["n1", "n1", "n2"]));
            api.put(Kind::Pod, pod);
        }
    }
}

/// Peers, ports and directions of all sorts.
fn any_policy(space: &str, name: &str, random: &mut Random) -> Value {
    let port = random.below(40);
    let mut policy = policy(space, name, random.of(&["web", "db"]), port as u16 + 1);
    let rule = &mut policy["spec"]["ingress"][0];
    match random.below(5) {
        0 => rule["ports"] = json!([{"port": 100 + port, "endPort": 2000 + port}, {"port": 53, "protocol": "UDP"}]),
        1 => rule["ports"] = json!([{"port": "http"}]),
        _ => {}
    }
    match random.below(5) {
        0 => rule["from"] = json!([{"podSelector": {"matchLabels": {"app": random.of(&["web", "api"])}}}]),
        1 => {
            rule["from"] = json!([{"ipBlock": {"cidr": "10.1.0.0/22", "except": [format!("10.1.{}.0/24", port % 4)]}}])
        }
        _ => {}
    }
    if random.one_in(3) {
        policy["spec"]["policyTypes"] = json!(["Ingress", "Egress"]);
        policy["spec"]["egress"] = json!([{"to": [{"namespaceSelector": {"matchLabels": {"team": "blue"}}}]}]);
    }
    policy
}

/// Random trouble; `silence` is the sort that takes clients longest to notice.
pub(crate) fn trouble(api: &Api, random: &mut Random, silence: bool) {
    let kind = random.of(&Kind::ALL);
    match random.below(10) {
        0 | 1 => api.cut(),
        2 | 3 => {
            api.compact();
            api.cut();
        }
        4 => api.set_outage(true),
        5 => api.set_duplicates(random.one_in(2)),
        6 => api.hold(kind, true),
        7 => api.set_streaming(random.one_in(2)),
        _ => {
            let verb = random.of(&[Verb::List, Verb::Watch, Verb::StreamingList]);
            let mut faults = vec![
                Fault::Status(410),
                Fault::Status(429),
                Fault::Status(500),
                Fault::Slow(Duration::from_millis(50)),
            ];
            if verb != Verb::List {
                faults.extend([
                    Fault::GoneEvent,
                    Fault::CutWithinEvent,
                    Fault::CloseAtOnce,
                    Fault::Garbage,
                ]);
            }
            if silence && random.one_in(5) {
                faults = vec![Fault::Silence];
            }
            api.fault(kind, verb, 1, random.of(&faults));
            api.cut();
        }
    }
}

/// The end of all trouble that lasts.
pub(crate) fn calm(api: &Api) {
    api.set_outage(false);
    api.set_duplicates(false);
    for kind in Kind::ALL {
        api.hold(kind, false);
    }
}
