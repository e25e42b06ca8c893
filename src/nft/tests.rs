//! Tests of rendering and differences by example; `tests/nft_tracer.rs` has the properties, `tests/nft_kernel.rs` the kernel.

use std::net::IpAddr;
use std::time::Duration;

use policy_compiler::cells::AddressRange;
use policy_compiler::changes::Changes;
use policy_compiler::cluster::{Cluster, Namespace, Node, Pod, PodName, Workload};
use policy_compiler::compile::{Compiler, Subjects, compile};
use policy_compiler::labels::{Labels, Selector};
use policy_compiler::policy::{
    Action, Direction, IpBlock, NamespaceScope, Peer, Peers, PodSelection, Policy, PolicyName, PortMatch, Ports, Rule,
    Tier,
};
use policy_compiler::ports::{PortRange, Protocol};

mod unknown;

use super::fake::Fake;
use super::names::{ChainName, Column, Extent, Family, PeerKind, SetName, Side};
use super::ruleset::{Element, Key, Rule as NftRule};
use super::tracer::{Packet, State, Tracer};
use super::transaction::{Operation, OperationError};
use super::{Denial, Kernel, KernelError, Renderer, Ruleset, Settings, Transaction, expressions, render, replace};

const IN4: Side = Side {
    direction: Direction::Ingress,
    family: Family::V4,
};

fn pod(app: &str, number: u8, address: &str) -> Pod {
    Pod {
        name: PodName {
            namespace: "shop".into(),
            name: format!("{app}-{number}").into(),
        },
        labels: Labels::default().with("app", app),
        addresses: vec![address.parse().unwrap()],
        node: Some("node-1".into()),
        host_network: false,
        ended: false,
        started: None,
        ports: Vec::new(),
        workload: Some(Workload {
            kind: "deployment".into(),
            name: app.into(),
        }),
    }
}

fn selection(app: &str) -> PodSelection {
    PodSelection {
        namespaces: NamespaceScope::Named("shop".into()),
        pods: Selector::labels([("app", app)]),
    }
}

fn rule(peer: Peer, first: u16, last: u16) -> Rule {
    Rule {
        action: Action::Accept,
        peers: Peers::Listed(vec![peer]),
        ports: Ports::Listed(vec![PortMatch::Range(Protocol::Tcp, PortRange { first, last })]),
    }
}

fn pods(app: &str) -> Peer {
    Peer::Pods(selection(app))
}

fn block(cidr: &str) -> Peer {
    Peer::Block(IpBlock::new(cidr.parse().unwrap(), []))
}

fn policy(name: &str, app: &str, ingress: Vec<Rule>) -> Policy {
    Policy {
        name: PolicyName {
            namespace: Some("shop".into()),
            name: name.into(),
        },
        tier: Tier::NetworkPolicy,
        enforcement: None,
        subject: selection(app),
        ingress: Some(ingress),
        egress: None,
    }
}

/// A database that the API reaches on 5432 and on a range of ports.
fn shop() -> Cluster {
    let mut cluster = Cluster::default();
    cluster.add_namespace(Namespace::new("shop", Labels::default()));
    cluster.add_node(Node {
        name: "node-1".into(),
        labels: Labels::default(),
        addresses: vec!["192.168.0.1".parse().unwrap()],
        pod_cidrs: Vec::new(),
    });
    cluster.add_pod(pod("db", 1, "10.0.0.1"));
    cluster.add_pod(pod("api", 1, "10.0.0.2"));
    cluster.add_pod(pod("web", 1, "10.0.0.3"));
    cluster.add_policy(policy(
        "db",
        "db",
        vec![rule(pods("api"), 5432, 5432), rule(pods("api"), 8000, 8080)],
    ));
    cluster
}

fn rendered(cluster: &Cluster) -> Ruleset {
    render(&compile(cluster, &Subjects::All), Settings::default())
}

/// A cluster, and the kernel in memory that follows it.
struct World {
    compiler: Compiler,
    renderer: Renderer,
    kernel: Fake,
}

impl World {
    fn new(cluster: &Cluster) -> Self {
        World::with(cluster, Settings::default())
    }

    fn with(cluster: &Cluster, settings: Settings) -> Self {
        let compiler = Compiler::new(cluster, Subjects::All);
        let renderer = Renderer::new(compiler.table(), settings);
        let kernel = Fake::default();
        kernel.apply(&replace(renderer.ruleset()).unwrap()).unwrap();
        World {
            compiler,
            renderer,
            kernel,
        }
    }

    /// Follows the cluster in one transaction; the kernel then holds what was rendered.
    #[track_caller]
    fn follow(&mut self, cluster: &Cluster) -> Transaction {
        let mut changes = Changes::default();
        for event in self.compiler.events_to(cluster) {
            changes.extend(self.compiler.apply(event));
        }
        let transaction = self.renderer.follow(self.compiler.table(), &changes).unwrap();
        self.kernel.apply(&transaction).unwrap();
        assert_eq!(self.kernel.to_string(), self.renderer.ruleset().to_string());
        transaction
    }
}

/// Changes the shop, and compares the transaction that follows, as nft text.
#[track_caller]
fn check_change(change: impl FnOnce(&mut Cluster), expected: &[&str]) {
    let mut cluster = shop();
    let mut world = World::new(&cluster);
    change(&mut cluster);
    let text = world.follow(&cluster).to_string();
    let lines: Vec<&str> = text.lines().map(|l| l.trim()).collect();
    assert_eq!(lines, expected, "\n{text}");
}

#[test]
fn a_table_can_be_read() {
    insta::assert_snapshot!(rendered(&shop()));
}

#[test]
fn json_says_the_same_in_nfts_words() {
    let json = replace(&rendered(&shop())).unwrap().to_json().unwrap();
    assert_eq!(json.len(), 1, "one step, one document");
    let value: serde_json::Value = serde_json::from_str(&json[0]).unwrap();
    let lines: Vec<String> = value["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.to_string())
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn nothing_changed_is_no_transaction() {
    check_change(|_| {}, &[]);
    check_change(|cluster| cluster.add_pod(pod("db", 1, "10.0.0.1")), &[]);
}

#[test]
fn another_peer_of_a_class_is_one_element() {
    check_change(
        |cluster| cluster.add_pod(pod("api", 2, "10.0.0.9")),
        &["add element inet palisade in4_peers { 10.0.0.9 : goto in4_c0 }"],
    );
}

#[test]
fn a_peer_that_may_nothing_is_no_element() {
    check_change(|cluster| cluster.add_pod(pod("web", 2, "10.0.0.9")), &[]);
}

#[test]
fn the_first_member_of_a_class_leaves_without_a_stir() {
    let mut cluster = shop();
    cluster.add_pod(pod("api", 2, "10.0.0.9"));
    let mut world = World::new(&cluster);
    cluster.pods.remove(&pod("api", 1, "10.0.0.2").name);
    let text = world.follow(&cluster).to_string();
    assert_eq!(text, "delete element inet palisade in4_peers { 10.0.0.2 }\n");
}

#[test]
fn an_unrelated_class_changes_no_name() {
    check_change(
        |cluster| cluster.add_policy(policy("a-first", "db", vec![rule(pods("web"), 80, 80)])),
        &[
            "add chain inet palisade in4_c1",
            "add set inet palisade in4_c1_ports { type ipv4_addr . inet_proto . inet_service; }",
            "add element inet palisade in4_c1_ports { 10.0.0.1 . tcp . 80 }",
            "add rule inet palisade in4_c1 meta l4proto tcp ct reply ip saddr . ct protocol . ct reply proto-src \
             @in4_c1_ports return comment \"peers: pods app=web in namespace shop\"",
            "add rule inet palisade in4_c1 meta l4proto udp ct reply ip saddr . ct protocol . ct reply proto-src \
             @in4_c1_ports return",
            "add rule inet palisade in4_c1 meta l4proto sctp ct reply ip saddr . ct protocol . ct reply proto-src \
             @in4_c1_ports return",
            "add rule inet palisade in4_c1 meta l4proto icmp ct reply ip saddr . ct protocol . ct reply proto-src \
             @in4_c1_ports return",
            "add rule inet palisade in4_c1 goto in4_denied comment \"policies: shop/a-first\"",
            "add element inet palisade in4_peers { 10.0.0.3 : goto in4_c1 }",
        ],
    );
}

#[test]
fn an_interval_map_is_filled_before_it_is_used() {
    let mut cluster = shop();
    cluster.add_policy(policy("office", "db", vec![rule(block("172.16.0.0/16"), 443, 443)]));
    let mut world = World::new(&cluster);
    cluster.add_policy(policy("office", "db", vec![rule(block("172.16.0.0/15"), 443, 443)]));
    let transaction = world.follow(&cluster);
    let steps: Vec<Vec<String>> = transaction
        .steps()
        .map(|step| step.iter().map(Operation::to_string).collect())
        .collect();
    let [first, second] = steps.as_slice() else {
        panic!("{} steps:\n{transaction}", steps.len());
    };
    assert_eq!(
        first.as_slice(),
        [
            "add map inet palisade in4_cidrs_1 { type ipv4_addr : verdict; flags interval; }",
            "add element inet palisade in4_cidrs_1 { 172.16.0.0-172.17.255.255 : goto in4_c1 }",
        ]
    );
    assert!(
        second.iter().any(|line| line.ends_with("vmap @in4_cidrs_1")),
        "{transaction}"
    );
    assert_eq!(
        second.last().map(String::as_str),
        Some("delete map inet palisade in4_cidrs_0")
    );
    // And back again to the first generation.
    cluster.add_policy(policy("office", "db", vec![rule(block("172.16.0.0/14"), 443, 443)]));
    world.follow(&cluster);
    let third = world.renderer.ruleset();
    assert!(third.sets.contains_key(&SetName::Cidrs(IN4, 0)));
    assert!(!third.sets.contains_key(&SetName::Cidrs(IN4, 1)));
}

#[test]
fn everything_outside_alike_needs_no_interval_map() {
    let mut cluster = shop();
    cluster.add_policy(policy("all", "db", vec![rule(block("0.0.0.0/0"), 443, 443)]));
    let ruleset = rendered(&cluster);
    assert!(!ruleset.sets.keys().any(|name| matches!(name, SetName::Cidrs(..))));
    let rest = ruleset.chains[&ChainName::Entry(IN4)].last().unwrap();
    let target = ChainName::Column(IN4, Column::Default(PeerKind::Outside));
    assert_eq!(*rest, NftRule::new([expressions::goto(target)]));
}

#[test]
fn short_ranges_become_elements_and_long_ones_a_chain() {
    let ranges = |last| {
        let mut cluster = shop();
        cluster.add_policy(policy("db", "db", vec![rule(pods("api"), 100, last)]));
        rendered(&cluster)
    };
    let count = |ruleset: &Ruleset| {
        let has =
            |(name, _): &(&SetName, &super::ruleset::Elements)| matches!(name, SetName::Cell(_, _, Extent::Ports));
        let ports = ruleset.sets.iter().find(has).map_or(0, |(_, elements)| elements.len());
        let chains = ruleset
            .chains
            .keys()
            .filter(|name| matches!(name, ChainName::Ranges(..)))
            .count();
        (ports, chains)
    };
    assert_eq!(count(&ranges(115)), (16, 0));
    assert_eq!(count(&ranges(116)), (0, 1));
}

/// Whoever edits a policy of many peers moves none of them.
#[test]
fn an_edited_policy_moves_no_element() {
    for edited in [
        vec![rule(pods("api"), 5433, 5433), rule(pods("api"), 8000, 8080)],
        vec![rule(pods("api"), 1, 65535)],
    ] {
        let mut cluster = shop();
        for number in 2..50 {
            cluster.add_pod(pod("api", number, &format!("10.0.1.{number}")));
        }
        cluster.add_policy(policy("office", "db", vec![rule(block("172.16.0.0/16"), 443, 443)]));
        let mut world = World::new(&cluster);
        cluster.add_policy(policy("db", "db", edited));
        cluster.add_policy(policy("office", "db", vec![rule(block("172.16.0.0/16"), 444, 444)]));
        let text = world.follow(&cluster).to_string();
        assert!(!text.contains("in4_peers {") && !text.contains("in4_cidrs"), "{text}");
        assert!(text.lines().count() < 30, "{text}");
    }
}

/// A node's new address is exempt at once, although no group and no class knows of it.
#[test]
fn a_node_that_gets_another_address_is_two_pairs() {
    let node = |address: &str| Node {
        name: "node-1".into(),
        labels: Labels::default(),
        addresses: vec![address.parse().unwrap()],
        pod_cidrs: Vec::new(),
    };
    check_change(
        |cluster| cluster.add_node(node("192.168.0.2")),
        &[
            "delete element inet palisade exempt4 { 10.0.0.1 . 192.168.0.1, 192.168.0.1 . 10.0.0.1 }",
            "add element inet palisade exempt4 { 10.0.0.1 . 192.168.0.2, 192.168.0.2 . 10.0.0.1 }",
        ],
    );
}

/// A packet of a connection from one address to another on a port; without one when `state` says so.
fn packet(from: &str, to: &str, port: u16, state: State) -> Packet {
    let opening = Packet::opening(from.parse().unwrap(), to.parse().unwrap(), port);
    Packet {
        state,
        connection: opening.connection.filter(|_| state == State::New),
        ..opening
    }
}

/// The shop in a kernel in memory, with an isolated web as well.
fn shop_in_memory() -> (Cluster, Ruleset, Fake) {
    let mut cluster = shop();
    cluster.add_policy(policy("web", "web", Vec::new()));
    let ruleset = rendered(&cluster);
    let kernel = Fake::default();
    kernel.apply(&replace(&ruleset).unwrap()).unwrap();
    (cluster, ruleset, kernel)
}

fn counts(kernel: &Fake) -> Vec<String> {
    let counts = kernel.counts(IN4).unwrap().expect("a table");
    counts.iter().map(|c| format!("{} {}", c.address, c.packets)).collect()
}

#[test]
fn a_counter_outlives_every_change_that_is_not_of_its_pod() {
    let (mut cluster, _, kernel) = shop_in_memory();
    let send = |from: &str, to: &str, port| kernel.send(&packet(from, to, port, State::New)).unwrap().unwrap();
    assert!(send("10.0.0.2", "10.0.0.1", 5432).accepted);
    for port in [5433, 5434, 5434] {
        assert!(!send("10.0.0.2", "10.0.0.1", port).accepted);
    }
    assert!(!send("10.0.0.2", "10.0.0.3", 80).accepted);
    assert!(
        !kernel
            .send(&packet("10.0.0.2", "10.0.0.3", 80, State::Invalid))
            .unwrap()
            .unwrap()
            .accepted
    );
    assert_eq!(counts(&kernel), ["10.0.0.1 3", "10.0.0.3 2"]);
    let record: Vec<String> = (kernel.denials().unwrap().expect("a table").iter())
        .map(|d| format!("{} to {} on {}: {}", d.from, d.to, d.words(), d.packets))
        .collect();
    let expected = [
        "10.0.0.2 to 10.0.0.1 on 5433/TCP: 1",
        "10.0.0.2 to 10.0.0.1 on 5434/TCP: 2",
        "10.0.0.2 to 10.0.0.3 on 80/TCP: 1",
    ];
    assert_eq!(record, expected, "what has no connection is only counted");

    let mut compiler = Compiler::new(&cluster, Subjects::All);
    let mut renderer = Renderer::new(compiler.table(), Settings::default());
    let mut follow = |cluster: &Cluster| {
        let mut changes = Changes::default();
        for event in compiler.events_to(cluster) {
            changes.extend(compiler.apply(event));
        }
        let transaction = renderer.follow(compiler.table(), &changes).unwrap();
        assert!(!transaction.is_empty());
        kernel.apply(&transaction).unwrap();
        counts(&kernel)
    };
    cluster.add_policy(policy("more", "db", vec![rule(block("192.0.2.0/24"), 1, 1)]));
    assert_eq!(follow(&cluster), ["10.0.0.1 3", "10.0.0.3 2"]);
    cluster.add_pod(pod("db", 2, "10.0.0.4"));
    assert_eq!(follow(&cluster), ["10.0.0.1 3", "10.0.0.3 2", "10.0.0.4 0"]);
    // The address goes to another pod, which starts from nothing.
    cluster.pods.remove(&pod("db", 1, "10.0.0.1").name);
    cluster.add_pod(pod("db", 3, "10.0.0.1"));
    assert_eq!(follow(&cluster), ["10.0.0.1 0", "10.0.0.3 2", "10.0.0.4 0"]);
}

#[test]
fn what_only_audited_policies_judge_is_counted_and_passes() {
    let (_, mut ruleset, _) = shop_in_memory();
    let web = Key::Address("10.0.0.3".parse().unwrap());
    let audited = ruleset.sets.entry(SetName::Audited(IN4)).or_default();
    audited.insert(web, Element::default());
    let tracer = Tracer::new(&ruleset);
    let check = |from: &str, to: &str, state, accepted, counted: &str| {
        let trace = tracer.trace(&packet(from, to, 80, state)).unwrap();
        let counted_for: Vec<String> = trace.counted.iter().map(|(_, address)| address.to_string()).collect();
        assert_eq!(
            (trace.accepted, counted_for),
            (accepted, vec![counted.to_owned()]),
            "{from} to {to}"
        );
    };
    for state in [State::New, State::Invalid, State::Untracked] {
        check("10.0.0.2", "10.0.0.3", state, true, "10.0.0.3");
        check("10.0.0.3", "10.0.0.1", state, false, "10.0.0.1");
    }
    // The enforced end decides, whichever way the packet goes.
    check("10.0.0.1", "10.0.0.3", State::Untracked, false, "10.0.0.1");
    check("10.0.0.1", "10.0.0.3", State::New, true, "10.0.0.3");
}

#[track_caller]
fn check_refused(operation: Operation, expected: fn(&OperationError) -> bool) {
    let mut transaction = Transaction::default();
    let error = transaction.add(operation).unwrap_err();
    assert!(expected(&error), "{error}");
    assert!(transaction.is_empty());
}

#[test]
fn operations_are_validated_when_they_are_added() {
    let isolated = SetName::Isolated(IN4);
    let v6: IpAddr = "fd00::1".parse().unwrap();
    let v4: IpAddr = "10.0.0.1".parse().unwrap();
    let plain = |key| (key, Element::default());
    let wrong_type = |e: &OperationError| matches!(e, OperationError::WrongType { .. });
    check_refused(
        Operation::AddElements(isolated, vec![plain(Key::Address(v6))]),
        wrong_type,
    );
    check_refused(
        Operation::AddElements(isolated, vec![plain(Key::Pair(v4, v4))]),
        wrong_type,
    );
    check_refused(
        Operation::DeleteElements(isolated, vec![Key::Port(v4, Protocol::Tcp, 1)]),
        wrong_type,
    );
    let reversed = AddressRange {
        first: "10.0.0.9".parse().unwrap(),
        last: v4,
    };
    check_refused(
        Operation::DeleteElements(SetName::Cidrs(IN4, 0), vec![Key::Interval(reversed)]),
        wrong_type,
    );
    check_refused(Operation::AddElements(isolated, Vec::new()), |e| {
        matches!(e, OperationError::NoElements(_))
    });
    let element = Element {
        goto: Some(ChainName::Denied),
        comment: None,
    };
    let wrong_verdict = |e: &OperationError| matches!(e, OperationError::WrongVerdict { .. });
    check_refused(
        Operation::AddElements(isolated, vec![(Key::Address(v4), element)]),
        wrong_verdict,
    );
    check_refused(
        Operation::AddElements(SetName::Peers(IN4), vec![plain(Key::Address(v4))]),
        wrong_verdict,
    );
    let commented = Element {
        goto: None,
        comment: Some("a \"quote\"".into()),
    };
    check_refused(
        Operation::AddElements(isolated, vec![(Key::Address(v4), commented)]),
        |e| matches!(e, OperationError::Comment(_)),
    );
    check_refused(
        Operation::DeleteElements(SetName::Denied(Family::V4), vec![Key::Pair(v4, v4)]),
        |e| matches!(e, OperationError::Dynamic(_)),
    );
    let entry = |from: IpAddr, port| Denial {
        from,
        to: from,
        protocol: "tcp".to_owned(),
        port,
        packets: 1,
        bytes: 60,
        ago: Duration::ZERO,
    };
    for entry in [entry(v6, Some(80)), entry(v4, None)] {
        check_refused(Operation::Forget(SetName::Denied(Family::V4), vec![entry]), wrong_type);
    }
    check_refused(Operation::Forget(SetName::Denied(Family::V4), Vec::new()), |e| {
        matches!(e, OperationError::NoElements(_))
    });
    let odd = NftRule::new([nftables::stmt::Statement::Notrack]);
    check_refused(Operation::AddRule(ChainName::Denied, odd), |e| {
        matches!(e, OperationError::UnknownRule { .. })
    });
}

/// Applies operations to a loaded table in memory, and holds what it says against nft's words.
#[track_caller]
fn check_fake(operations: Vec<Operation>, expected: &str) {
    let kernel = Fake::default();
    let before = rendered(&shop());
    kernel.apply(&replace(&before).unwrap()).unwrap();
    let mut transaction = Transaction::default();
    transaction
        .add(Operation::AddChain(ChainName::Ranges(IN4, 99)))
        .unwrap();
    for operation in operations {
        transaction.add(operation).unwrap();
    }
    match kernel.apply(&transaction) {
        Err(KernelError::Refused(reason)) => assert!(reason.ends_with(expected), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(kernel.content() == Some(before), "all or nothing");
}

#[test]
fn the_kernel_in_memory_is_as_strict_as_the_real_one() {
    let (missing, busy, exists) = ("No such file or directory", "Device or resource busy", "File exists");
    let class = ChainName::Column(IN4, Column::Class(0));
    let v4: IpAddr = "10.0.0.1".parse().unwrap();
    let to = |chain| Element {
        goto: Some(chain),
        comment: None,
    };
    check_fake(vec![Operation::DeleteChain(class)], busy);
    check_fake(vec![Operation::DeleteChain(ChainName::Denied)], busy);
    check_fake(vec![Operation::DeleteSet(SetName::Peers(IN4))], busy);
    check_fake(vec![Operation::DeleteSet(SetName::Cidrs(IN4, 7))], missing);
    check_fake(vec![Operation::FlushChain(ChainName::Ranges(IN4, 7))], missing);
    check_fake(
        vec![Operation::DeleteElements(SetName::Peers(IN4), vec![Key::Address(v4)])],
        missing,
    );
    let nowhere = (Key::Address(v4), to(ChainName::Ranges(IN4, 7)));
    check_fake(
        vec![Operation::AddElements(SetName::Peers(IN4), vec![nowhere])],
        missing,
    );
    let other = (Key::Address("10.0.0.2".parse().unwrap()), to(ChainName::Denied));
    check_fake(vec![Operation::AddElements(SetName::Peers(IN4), vec![other])], exists);
    let rule = NftRule::new([expressions::is_in(
        expressions::client(Family::V4),
        SetName::Cidrs(IN4, 7),
    )]);
    check_fake(vec![Operation::AddRule(class, rule)], missing);
    check_fake(vec![Operation::DeleteTable, Operation::AddChain(class)], missing);
}
