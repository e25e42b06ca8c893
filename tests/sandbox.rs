//! The sandbox itself, without any policy: everybody is reached, silence is told from absence, and nothing stays behind.

mod support;

use std::collections::BTreeSet;
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use libtest_mimic::Failed;
use palisade::sandbox::{Expect, Netns, Options, Outcome, Place, Probe, Sandbox, assign_addresses};
use policy_compiler::cluster::{
    Cluster, ContainerPort, Node, Pod, PodName, Service, ServiceKind, ServiceName, ServicePort, TargetPort,
};
use policy_compiler::labels::{Labels, Selector};
use policy_compiler::ports::{Protocol, Traffic};

type Result<T = (), E = Box<dyn Error>> = std::result::Result<T, E>;

/// Set in the child process that only holds a sandbox until it is killed.
const HOLD: &str = "PALISADE_TEST_HOLD_SANDBOX";

/// A port that everybody listens on.
const EXTRA: u16 = 9999;

/// A port that nobody listens on.
const NOBODY: u16 = 4;

/// A node that forwards nothing.
const DROP_ALL: &str =
    "table inet drops {\nchain forward { type filter hook forward priority filter; policy drop; }\n}\n";

fn main() -> ExitCode {
    if std::env::var_os(HOLD).is_some() {
        return hold();
    }
    support::run(
        "the sandbox",
        vec![
            ("everybody_reaches_everybody", everybody_reaches_everybody),
            ("silence_is_told_from_absence", silence_is_told_from_absence),
            ("half_a_leak_is_seen", half_a_leak_is_seen),
            ("cluster_ips_are_translated", cluster_ips_are_translated),
            ("a_flow_stops_and_goes_on", a_flow_stops_and_goes_on),
            (
                "an_open_connection_outlives_a_long_silence",
                an_open_connection_outlives_a_long_silence,
            ),
            ("host_network_pods_share_their_node", host_network_pods_share_their_node),
            ("what_cannot_be_built_is_refused", what_cannot_be_built_is_refused),
            ("a_killed_process_leaves_nothing", a_killed_process_leaves_nothing),
        ],
    )
}

fn pod(name: &str, node: &str, ports: &[(Protocol, u16)]) -> Pod {
    Pod {
        name: PodName {
            namespace: "shop".into(),
            name: name.into(),
        },
        labels: Labels::default(),
        addresses: Vec::new(),
        node: Some(node.into()),
        host_network: false,
        ended: false,
        started: None,
        ports: (ports.iter())
            .map(|(protocol, number)| ContainerPort {
                name: None,
                protocol: *protocol,
                number: *number,
            })
            .collect(),
        workload: None,
    }
}

/// Two pods on one node, one on another, one that shares its node's network.
fn cluster() -> Result<Cluster> {
    let all = [(Protocol::Tcp, 80), (Protocol::Udp, 53), (Protocol::Sctp, 3868)];
    let mut cluster = Cluster::default();
    cluster.add_pod(pod("web-0", "a", &all));
    cluster.add_pod(pod("web-1", "a", &all));
    cluster.add_pod(pod("db", "b", &all));
    cluster.add_pod(Pod {
        host_network: true,
        ..pod("proxy", "b", &[(Protocol::Tcp, 10256)])
    });
    assign_addresses(&mut cluster)?;
    Ok(cluster)
}

fn options() -> Options {
    Options {
        extra_ports: Protocol::ALL.into_iter().map(|p| (p, EXTRA)).collect(),
        ..Options::default()
    }
}

fn place(name: &str) -> Place {
    Place::Pod(PodName {
        namespace: "shop".into(),
        name: name.into(),
    })
}

fn address(sandbox: &Sandbox, place: &Place, four: bool) -> Result<IpAddr> {
    let found = sandbox.addresses(place)?.iter().copied().find(|a| a.is_ipv4() == four);
    Ok(found.ok_or_else(|| format!("{place} has no address of that family"))?)
}

fn probe(from: &Place, to: IpAddr, traffic: Traffic, expect: Expect) -> Probe {
    Probe {
        from: from.clone(),
        source: None,
        to,
        traffic,
        expect,
    }
}

#[track_caller]
fn check(sandbox: &Sandbox, probe: &Probe, expected: &Outcome) -> Result {
    let caller = std::panic::Location::caller();
    let outcome = sandbox.probe(probe)?;
    match outcome == *expected {
        true => Ok(()),
        false => Err(format!("{caller}: {probe:?}: expected {expected:?}, saw {outcome:?}").into()),
    }
}

fn failed(error: Box<dyn Error>) -> Failed {
    Failed::from(error.to_string())
}

/// Every pod, node and the client to every other, TCP, UDP, SCTP and ICMP, IPv4 and IPv6: the right one answers.
fn everybody_reaches_everybody() -> Result<(), Failed> {
    let work = || -> Result {
        let sandbox = Sandbox::build(&cluster()?, &options())?;
        let places: Vec<Place> = sandbox.places().filter(|p| **p != place("proxy")).cloned().collect();
        let traffics = Protocol::ALL.into_iter().map(|p| Traffic::Port(p, EXTRA));
        let traffics: Vec<Traffic> = traffics.chain([Traffic::Other]).collect();
        let mut probes = Vec::new();
        let mut expected = Vec::new();
        for from in &places {
            for to in &places {
                for address in sandbox.addresses(to)? {
                    for traffic in &traffics {
                        probes.push(probe(from, *address, *traffic, Expect::Answer));
                        expected.push(Outcome::Answered(to.to_string()));
                    }
                }
            }
        }
        // Three pods, two nodes and the client: six by six, two families, four protocols.
        assert_eq!(probes.len(), 6 * 6 * 2 * 4);
        let outcomes = sandbox.probe_all(&probes, |_| {})?;
        for ((probe, expected), outcome) in probes.iter().zip(&expected).zip(&outcomes) {
            assert_eq!(outcome, expected, "{probe:?} ({:?})", sandbox.sctp());
        }
        Ok(())
    };
    work().map_err(failed)
}

/// What comes of a probe, in a round that lasts until somebody else is answered: on a busy machine silence alone may be over before
/// a refusal is there.
fn told(sandbox: &Sandbox, probe: &Probe) -> Result<Outcome> {
    let to = address(sandbox, &place("web-1"), probe.to.is_ipv4())?;
    let other = Probe {
        from: place("web-0"),
        to,
        traffic: Traffic::Port(Protocol::Tcp, 80),
        expect: Expect::Answer,
        ..probe.clone()
    };
    let mut outcomes = sandbox.probe_all(&[probe.clone(), other], |_| {})?;
    assert_eq!(outcomes.pop(), Some(Outcome::Answered("shop/web-1".into())));
    Ok(outcomes.pop().ok_or("no outcome")?)
}

/// Nobody listens, no such pod, no such network, and a real drop: four different outcomes, whatever is expected.
fn silence_is_told_from_absence() -> Result<(), Failed> {
    let work = || -> Result {
        let sandbox = Sandbox::build(&cluster()?, &options())?;
        let node = sandbox.netns(&Place::Node("b".into()))?;
        for four in [true, false] {
            let db = address(&sandbox, &place("db"), four)?;
            for from in [place("web-0"), Place::Client, Place::Node("a".into())] {
                for expect in [Expect::Answer, Expect::Silence] {
                    for protocol in Protocol::ALL {
                        let nobody = probe(&from, db, Traffic::Port(protocol, NOBODY), expect);
                        assert_eq!(told(&sandbox, &nobody)?, Outcome::Refused, "{nobody:?}");
                    }
                    let nowhere: [IpAddr; 2] = match four {
                        true => [[10, 244, 2, 77].into(), [203, 0, 113, 9].into()],
                        false => ["fd00:10:244:2::77".parse()?, "2001:db8:77::9".parse()?],
                    };
                    for to in nowhere {
                        for traffic in [
                            Traffic::Port(Protocol::Tcp, 80),
                            Traffic::Port(Protocol::Udp, 53),
                            Traffic::Other,
                        ] {
                            let outcome = told(&sandbox, &probe(&from, to, traffic, expect))?;
                            assert!(
                                matches!(outcome, Outcome::Unreachable(_)),
                                "{from} to {to} {traffic}: {outcome:?}"
                            );
                        }
                    }
                }
            }
        }
        node.nft(DROP_ALL)?;
        let mut dropped = Vec::new();
        for four in [true, false] {
            let db = address(&sandbox, &place("db"), four)?;
            for port in [EXTRA, NOBODY] {
                let traffics = Protocol::ALL.into_iter().map(|p| Traffic::Port(p, port));
                dropped.extend(traffics.map(|t| probe(&place("web-0"), db, t, Expect::Silence)));
            }
            dropped.push(probe(&Place::Client, db, Traffic::Other, Expect::Silence));
        }
        for (probe, outcome) in dropped.iter().zip(sandbox.probe_all(&dropped, |_| {})?) {
            assert_eq!(outcome, Outcome::Silent, "{probe:?}");
        }
        Ok(())
    };
    work().map_err(failed)
}

/// A rule that drops only the answers does not pass for a denial.
fn half_a_leak_is_seen() -> Result<(), Failed> {
    let work = || -> Result {
        let sandbox = Sandbox::build(&cluster()?, &options())?;
        let db = address(&sandbox, &place("db"), true)?;
        let node = sandbox.netns(&Place::Node("b".into()))?;
        node.nft(&format!(
            "table ip drops {{\nchain forward {{ type filter hook forward priority filter; ip saddr {db} drop; }}\n}}\n"
        ))?;
        let probe = probe(&place("web-0"), db, Traffic::Port(Protocol::Udp, 53), Expect::Arrival);
        check(&sandbox, &probe, &Outcome::OneWay)
    };
    work().map_err(failed)
}

/// A cluster IP is answered by its back ends in turn, in both families and every protocol, and by a pod's own self.
fn cluster_ips_are_translated() -> Result<(), Failed> {
    let work = || -> Result {
        let mut cluster = cluster()?;
        let ports = [(Protocol::Tcp, 80), (Protocol::Udp, 53), (Protocol::Sctp, 3868)];
        cluster.add_service(Service {
            name: ServiceName {
                namespace: "shop".into(),
                name: "web".into(),
            },
            kind: ServiceKind::ClusterIp,
            cluster_ips: vec!["10.96.0.5".parse()?, "fd00:96::5".parse()?],
            selector: Some(Selector::labels([("app", "web")])),
            ports: (ports.into_iter())
                .map(|(protocol, port)| ServicePort {
                    name: None,
                    protocol,
                    port: 1000 + port,
                    target: TargetPort::Number(port),
                    node_port: None,
                })
                .collect(),
        });
        for name in ["web-0", "web-1"] {
            let Place::Pod(name) = place(name) else {
                continue;
            };
            let mut pod = Pod::clone(&cluster.pods[&name]);
            pod.labels = Labels::default().with("app", "web");
            cluster.add_pod(pod);
        }
        let sandbox = Sandbox::build(&cluster, &options())?;
        assert_eq!(sandbox.frontends().len(), 2 * ports.len());
        for frontend in sandbox.frontends() {
            let traffic = Traffic::Port(frontend.protocol, frontend.port);
            for from in [place("db"), place("web-0"), Place::Node("b".into())] {
                let probe = probe(&from, frontend.address, traffic, Expect::Answer);
                let outcomes = sandbox.probe_all(&vec![probe.clone(); 6], |_| {})?;
                let by: BTreeSet<String> = outcomes.iter().map(ToString::to_string).collect();
                let both = ["answered by shop/web-0", "answered by shop/web-1"].map(String::from);
                assert_eq!(by, BTreeSet::from(both), "{probe:?}");
            }
            let unserved = probe(
                &place("db"),
                frontend.address,
                Traffic::Port(Protocol::Tcp, NOBODY),
                Expect::Answer,
            );
            let outcome = sandbox.probe(&unserved)?;
            assert!(matches!(outcome, Outcome::Unreachable(_)), "{unserved:?}: {outcome:?}");
        }
        Ok(())
    };
    work().map_err(failed)
}

/// An open connection speaks both ways, stops in both when packets are dropped, and catches up afterwards.
fn a_flow_stops_and_goes_on() -> Result<(), Failed> {
    let work = || -> Result {
        let (short, long) = (Duration::from_millis(300), Duration::from_secs(10));
        let sandbox = Sandbox::build(&cluster()?, &options())?;
        let node = sandbox.netns(&Place::Node("b".into()))?;
        for four in [true, false] {
            let to = SocketAddr::new(address(&sandbox, &place("db"), four)?, 80);
            let mut flow = sandbox.open(&place("web-0"), to)?.map_err(|o| o.to_string())?;
            assert_eq!(flow.name(), "shop/db");
            assert!(flow.exchange(long) && flow.push(long), "the connection works");
            node.nft(DROP_ALL)?;
            assert!(!flow.push(short), "the listener is heard through a drop");
            assert!(!flow.exchange(short), "the client is answered through a drop");
            node.nft("delete table inet drops")?;
            assert!(flow.exchange(long) && flow.push(long), "the connection goes on");
            // What a router says of a way that it has lost for a moment ends no connection either.
            let router = sandbox.netns(&Place::Node("a".into()))?;
            let way = format!("unreachable {} metric 1\n", to.ip());
            router.ip(&format!("route add {way}"))?;
            std::thread::scope(|scope| -> Result {
                let found = scope.spawn(|| {
                    std::thread::sleep(short);
                    router.ip(&format!("route del {way}"))
                });
                assert!(flow.exchange(long), "an error on the way ends the connection");
                assert!(flow.exchange(long) && flow.push(long), "nor is it told of later");
                Ok(found.join().map_err(|_| "a panic")??)
            })?;
        }
        let nobody = SocketAddr::new(address(&sandbox, &place("db"), true)?, NOBODY);
        assert_eq!(sandbox.open(&place("web-0"), nobody)?.err(), Some(Outcome::Refused));
        Ok(())
    };
    work().map_err(failed)
}

/// Nobody can tell how long a busy machine looks at a connection that is denied: the kernel does not give it up before.
fn an_open_connection_outlives_a_long_silence() -> Result<(), Failed> {
    let work = || -> Result {
        // Kernels before 6.15 send again after ever longer pauses.
        let (silence, long) = (Duration::from_secs(20), Duration::from_secs(90));
        let sandbox = Sandbox::build(&cluster()?, &options())?;
        let node = sandbox.netns(&Place::Node("b".into()))?;
        let to = SocketAddr::new(address(&sandbox, &place("db"), true)?, 80);
        let mut flow = sandbox.open(&place("web-0"), to)?.map_err(|o| o.to_string())?;
        node.nft(DROP_ALL)?;
        assert!(!flow.push(silence), "the listener is heard through a drop");
        node.nft("delete table inet drops")?;
        assert!(flow.push(long), "the connection goes on");
        Ok(())
    };
    work().map_err(failed)
}

/// A host-network pod answers on its node's addresses, and speaks from them.
fn host_network_pods_share_their_node() -> Result<(), Failed> {
    let work = || -> Result {
        let sandbox = Sandbox::build(&cluster()?, &options())?;
        for to in sandbox.addresses(&place("proxy"))? {
            assert!(sandbox.addresses(&Place::Node("b".into()))?.contains(to));
            let proxy = Traffic::Port(Protocol::Tcp, 10256);
            let answered = Outcome::Answered("shop/proxy".into());
            check(&sandbox, &probe(&place("web-1"), *to, proxy, Expect::Answer), &answered)?;
            let db = address(&sandbox, &place("db"), to.is_ipv4())?;
            let answered = Outcome::Answered("shop/db".into());
            check(
                &sandbox,
                &probe(&place("proxy"), db, Traffic::Port(Protocol::Udp, 53), Expect::Answer),
                &answered,
            )?;
        }
        Ok(())
    };
    work().map_err(failed)
}

#[track_caller]
fn refused(cluster: &Cluster, options: &Options, message: &str) -> Result {
    match Sandbox::build(cluster, options) {
        Ok(_) => Err(format!("this was built, instead of: {message}").into()),
        Err(error) => {
            assert_eq!(error.to_string(), message);
            Ok(())
        }
    }
}

fn what_cannot_be_built_is_refused() -> Result<(), Failed> {
    let work = || -> Result {
        let mut bare = Cluster::default();
        bare.add_node(Node {
            name: "a".into(),
            labels: Labels::default(),
            addresses: vec!["172.18.0.2".parse()?],
            pod_cidrs: vec!["10.244.1.0/24".parse::<IpNet>()?],
        });
        let lacks = "node a has not got an IPv4 and an IPv6 address: complete the cluster with assign_addresses first";
        refused(&bare, &options(), lacks)?;

        let taken = Options {
            client: vec!["172.18.0.2".parse()?],
            ..options()
        };
        let message =
            "the outside client cannot have 172.18.0.2: a pod or node of the cluster has it; choose another address";
        refused(&cluster()?, &taken, message)?;

        let mut crowd = Cluster::default();
        (0..201).for_each(|n| crowd.add_pod(pod(&format!("p{n}"), "a", &[])));
        assign_addresses(&mut crowd)?;
        let message = "201 pods are too many for a sandbox, which holds 200: every pod is a network namespace of its own; \
                       leave out replicas or whole namespaces";
        refused(&crowd, &options(), message)
    };
    work().map_err(failed)
}

/// SIGKILL to a process that holds a sandbox: the kernel takes its namespaces away.
fn a_killed_process_leaves_nothing() -> Result<(), Failed> {
    let work = || -> Result {
        let mut child = Command::new(std::env::current_exe()?)
            .env(HOLD, "1")
            .stdout(Stdio::piped())
            .stdin(Stdio::piped())
            .spawn()?;
        let mut paths = Vec::new();
        for line in BufReader::new(child.stdout.take().ok_or("no pipe")?).lines() {
            match line? {
                end if end == "ready" => break,
                path => paths.push(path),
            }
        }
        // Three pods, two nodes, the client and the switch.
        assert_eq!(paths.len(), 7, "{paths:?}");
        // One end of a veth pair in each namespace: the kernel removes the other end, here, with the namespace.
        let witness = Netns::new("the witness")?;
        let devices = || -> Result<usize> {
            Ok(witness
                .run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??
                .matches("w")
                .count())
        };
        for (at, path) in paths.iter().enumerate() {
            witness.ip(&format!("link add w{at} type veth peer name witness netns {path}\n"))?;
        }
        assert_eq!(devices()?, 7);
        child.kill()?;
        child.wait()?;
        let start = Instant::now();
        while devices()? > 0 {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{} namespaces are still there",
                devices()?
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    };
    work().map_err(failed)
}

/// Builds a sandbox, prints the paths of its namespaces, and waits to be killed.
fn hold() -> ExitCode {
    let built = || -> Result<Sandbox> { Ok(Sandbox::build(&cluster()?, &options())?) };
    match built() {
        Ok(sandbox) => {
            let mut paths: BTreeSet<String> = BTreeSet::from([sandbox.underlay().path()]);
            paths.extend(sandbox.places().filter_map(|p| Some(sandbox.netns(p).ok()?.path())));
            paths.iter().for_each(|path| println!("{path}"));
            println!("ready");
            // Until the pipe closes, should the test die first.
            let _ = std::io::stdin().read_line(&mut String::new());
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}
