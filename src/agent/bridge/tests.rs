use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use super::*;
use crate::manifests;

const CLUSTER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {nodeName: a, containers: [{name: main, image: i}]}
status: {phase: Running, podIP: 10.244.1.2, podIPs: [{ip: 10.244.1.2}, {ip: 'fd00::2'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: shop}
spec: {nodeName: a, hostNetwork: true, containers: [{name: main, image: i}]}
status: {phase: Running, podIP: 172.18.0.2, podIPs: [{ip: 172.18.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: shop}
spec: {nodeName: a, containers: [{name: main, image: i}]}
status: {phase: Succeeded, podIP: 172.17.0.2, podIPs: [{ip: 172.17.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: elsewhere, namespace: shop}
spec: {nodeName: b, containers: [{name: main, image: i}]}
status: {phase: Running, podIP: 172.17.0.3, podIPs: [{ip: 172.17.0.3}]}
";

/// Devices in memory.
#[derive(Debug, Default)]
struct State {
    bridges: Vec<Bridge>,
    ways: BTreeMap<IpAddr, u32>,
    /// What switching on says, if not that it is done.
    refuses: Option<io::ErrorKind>,
    /// Whether switching on does what it says.
    obeys: bool,
    switched: usize,
}

#[derive(Clone, Debug)]
struct Fake(Arc<Mutex<State>>);

impl Links for Fake {
    fn bridges(&self) -> io::Result<Vec<Bridge>> {
        Ok(self.0.lock().expect("whole").bridges.clone())
    }

    fn way_to(&self, address: IpAddr) -> io::Result<Option<u32>> {
        Ok(self.0.lock().expect("whole").ways.get(&address).copied())
    }

    fn filter(&self, bridge: &Bridge) -> io::Result<()> {
        let mut state = self.0.lock().expect("whole");
        if let Some(kind) = state.refuses {
            return Err(kind.into());
        }
        state.switched += 1;
        if state.obeys {
            let found = state.bridges.iter_mut().find(|b| b.index == bridge.index);
            let found = found.expect("a bridge");
            (found.ipv4, found.ipv6) = (true, true);
        }
        Ok(())
    }
}

fn bridge(index: u32, name: &str) -> Bridge {
    Bridge {
        index,
        name: name.to_owned(),
        ipv4: false,
        ipv6: false,
    }
}

/// A node with the pods' bridge `cni0` and with `docker0`, and its sysctls, each a number or not there.
fn node(sysctls: [Option<u8>; 2]) -> (Fake, tempfile::TempDir) {
    let ways = [
        ("10.244.1.2", 5),
        ("fd00::2", 5),
        ("172.18.0.2", 6),
        ("172.17.0.2", 6),
        ("172.17.0.3", 6),
    ];
    let state = State {
        bridges: vec![bridge(5, "cni0"), bridge(6, "docker0")],
        ways: ways
            .into_iter()
            .map(|(a, device)| (a.parse().expect("an address"), device))
            .collect(),
        obeys: true,
        ..State::default()
    };
    let folder = tempfile::tempdir().expect("a folder");
    for (name, value) in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"]
        .into_iter()
        .zip(sysctls)
    {
        if let Some(value) = value {
            std::fs::write(folder.path().join(name), format!("{value}\n")).expect("written");
        }
    }
    (Fake(Arc::new(Mutex::new(state))), folder)
}

/// The reasons, and how many bridges were switched on.
#[track_caller]
fn check(mode: Mode, fake: &Fake, sysctls: &tempfile::TempDir) -> (Vec<String>, usize) {
    let cluster = manifests::parse("pods.yaml", CLUSTER).expect("manifests").cluster;
    let bridges = Bridges::of(mode, Box::new(fake.clone()), sysctls.path().to_owned());
    let reasons = bridges.check(&cluster, &"a".into());
    (reasons, fake.0.lock().expect("whole").switched)
}

const RUN: &str = "Run on this node: modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1 \
                   net.bridge.bridge-nf-call-ip6tables=1";

#[test]
fn with_the_sysctls_on_nothing_is_to_do() {
    let (fake, sysctls) = node([Some(1), Some(1)]);
    for mode in [Mode::Auto, Mode::Require, Mode::Ignore] {
        assert_eq!(check(mode, &fake, &sysctls), (vec![], 0));
    }
}

#[test]
fn only_the_bridge_of_this_nodes_pods_is_switched_on() {
    for off in [[Some(0), Some(0)], [Some(1), Some(0)], [Some(0), Some(1)]] {
        let (fake, sysctls) = node(off);
        assert_eq!(check(Mode::Auto, &fake, &sysctls), (vec![], 1));
        let state = fake.0.lock().expect("whole");
        let on: Vec<_> = state
            .bridges
            .iter()
            .map(|b| (b.name.as_str(), b.ipv4, b.ipv6))
            .collect();
        assert_eq!(on, [("cni0", true, true), ("docker0", false, false)]);
        drop(state);
        assert_eq!(check(Mode::Auto, &fake, &sysctls), (vec![], 1), "once is enough");
        assert_eq!(
            check(Mode::Require, &fake, &sysctls),
            (vec![], 1),
            "and all that is required"
        );
    }
}

#[test]
fn a_bridge_without_pods_is_nobodys_business() {
    let (fake, sysctls) = node([Some(0), None]);
    fake.0.lock().expect("whole").bridges.remove(0);
    for mode in [Mode::Auto, Mode::Require] {
        assert_eq!(check(mode, &fake, &sysctls), (vec![], 0));
    }
}

#[test]
fn what_is_forbidden_is_not_done_and_is_said() {
    let (fake, sysctls) = node([Some(0), Some(1)]);
    let reason = "bridge: what passes between pods on the bridge cni0 meets no rule: bridge-nf-call-iptables or its twin for \
                  IPv6 is 0. ";
    assert_eq!(
        check(Mode::Require, &fake, &sysctls),
        (vec![format!("{reason}{RUN}")], 0)
    );
    assert_eq!(check(Mode::Ignore, &fake, &sysctls), (vec![], 0));
}

#[test]
fn without_the_module_an_option_is_not_enough() {
    let (fake, sysctls) = node([None, None]);
    let reason = "bridge: what passes between pods on the bridge cni0 meets no rule: br_netfilter is not loaded. ";
    for on in [false, true] {
        let mut state = fake.0.lock().expect("whole");
        (state.bridges[0].ipv4, state.bridges[0].ipv6) = (on, on);
        drop(state);
        assert_eq!(check(Mode::Auto, &fake, &sysctls), (vec![format!("{reason}{RUN}")], 0));
    }
}

#[test]
fn what_cannot_be_switched_on_is_said() {
    let (fake, sysctls) = node([Some(0), Some(0)]);
    fake.0.lock().expect("whole").obeys = false;
    let (reasons, _) = check(Mode::Auto, &fake, &sysctls);
    assert!(reasons[0].contains("it does not stay switched on"), "{reasons:?}");
    fake.0.lock().expect("whole").refuses = Some(io::ErrorKind::PermissionDenied);
    let (reasons, _) = check(Mode::Auto, &fake, &sysctls);
    assert!(
        reasons[0].contains("it cannot be switched on (permission denied)"),
        "{reasons:?}"
    );
}
