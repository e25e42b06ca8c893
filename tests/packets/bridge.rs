//! A CNI with a bridge: pods of one node are neighbours, so that even neighbour discovery between them is forwarded, and
//! seen by the rules where the node sets `bridge-nf-call-ip6tables`; and they share what is addressed to nobody in particular.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use palisade::agent::enforcer::Enforcer;
use palisade::manifests;
use palisade::nft::{Mode, Nft};
use palisade::sandbox::{Netns, program};
use policy_compiler::cluster::Cluster;
use socket2::{Domain, Socket, Type};

use crate::packets::{ip, waited};
use crate::world::{Result, must};

const CLUSTER: &str = "
apiVersion: v1
kind: Node
metadata: {name: node}
status: {addresses: [{type: InternalIP, address: 10.77.0.1}, {type: InternalIP, address: 'fd00:77::1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {nodeName: node, containers: [{name: main, image: i}]}
status: {phase: Running, podIP: 10.77.0.2, podIPs: [{ip: 10.77.0.2}, {ip: 'fd00:77::2'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: shop, labels: {app: server}}
spec: {nodeName: node, containers: [{name: main, image: i}]}
status: {phase: Running, podIP: 10.77.0.3, podIPs: [{ip: 10.77.0.3}, {ip: 'fd00:77::3'}]}
";

/// Nobody reaches any pod, and no pod reaches anybody.
const DENY_ALL: &str = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
";

/// But the client reaches the server.
const ALLOW: &str = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow, namespace: shop}
spec:
  podSelector: {}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}]
  egress: [{to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: 80}]}]
";

/// Denied everything, pods on a bridge still learn each other's hardware address, and not a byte more.
pub(crate) fn pods_on_a_bridge_find_each_other() -> Result {
    let Some([node, client, server]) = bridge("br0", "pods_on_a_bridge_find_each_other")? else {
        return Ok(());
    };
    let nft = Nft {
        program: program("nft")?.into(),
        ..Nft::default()
    };
    let mut enforcer = Enforcer::new("node".into(), Mode::Enforce, nft);
    for address in ["10.77.0.3", "fd00:77::3"] {
        let address: IpAddr = address.parse()?;
        let to = SocketAddr::new(address, 80);
        let _listener = server.run(|| TcpListener::bind(to))??;
        for (policies, allowed) in [("", true), (DENY_ALL, false), (&format!("{DENY_ALL}{ALLOW}"), true)] {
            let cluster: Cluster = manifests::parse("bridge.yaml", &format!("{CLUSTER}{policies}"))
                .map_err(|e| e.to_string())?
                .cluster;
            node.run(|| enforcer.apply(&cluster))??;
            ip(&client, &["neigh", "flush", "all"])?;
            ip(&server, &["neigh", "flush", "all"])?;
            let patience = Duration::from_millis(if allowed { 10_000 } else { 1200 });
            let start = Instant::now();
            let mut neighbour = String::new();
            // A question that got lost is asked again a second later: as long as nobody was found, silence says nothing.
            while !neighbour.contains("lladdr") {
                must(
                    start.elapsed() < Duration::from_secs(30),
                    format!("the server was not found: {neighbour}"),
                )?;
                let connected = client.run(|| TcpStream::connect_timeout(&to, patience))?;
                must(
                    connected.is_ok() == allowed,
                    format!("{address}, policies {policies:?}: {connected:?}, expected a connection: {allowed}"),
                )?;
                neighbour = ip(&client, &["neigh", "show", &address.to_string()])?;
            }
        }
    }
    Ok(())
}

/// A node, the client and the server on a bridge of this name whose packets meet the rules; none where that cannot be had.
fn bridge(name: &str, test: &str) -> Result<Option<[Netns; 3]>> {
    if !Path::new("/proc/sys/net/bridge/bridge-nf-call-ip6tables").exists() {
        println!("NOT RUN: {test}: this kernel has no br_netfilter");
        return Ok(None);
    }
    let (node, client, server) = (
        Netns::new("the node")?,
        Netns::new("the client")?,
        Netns::new("the server")?,
    );
    for netns in [&node, &client, &server] {
        netns.sysctl(&[
            ("ipv6/conf/default/disable_ipv6", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv4/tcp_syn_retries", "2"),
        ])?;
    }
    let calls = node.sysctl(&[
        ("bridge/bridge-nf-call-iptables", "1"),
        ("bridge/bridge-nf-call-ip6tables", "1"),
    ]);
    if let Err(error) = calls {
        println!("NOT RUN: {test}: {error}");
        return Ok(None);
    }
    node.ip(&format!(
        "link add {name} type bridge mcast_snooping 0\nlink set {name} up\n\
         addr add 10.77.0.1/24 dev {name}\naddr add fd00:77::1/64 dev {name} nodad\n"
    ))?;
    for (number, pod) in [(2, &client), (3, &server)] {
        let path = pod.path();
        node.ip(&format!(
            "link add p{number} type veth peer name eth0 netns {path}\nlink set p{number} master {name} up\n"
        ))?;
        pod.ip(&format!(
            "link set eth0 address 02:00:00:00:77:0{number} up\naddr add 10.77.0.{number}/24 brd + dev eth0\naddr add fd00:77::{number}/64 dev eth0 nodad\n"
        ))?;
    }
    for netns in [&node, &client, &server] {
        netns.await_addresses()?;
    }
    Ok(Some([node, client, server]))
}

/// Where it is told how to close what no rule of a family of IP sees.
const MANUAL: &str = include_str!("../../docs/agent.md");

/// The server may be reached by nobody.
const DENY_INGRESS: &str = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-ingress, namespace: shop}
spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}
";

/// The client may reach nobody.
const DENY_EGRESS: &str = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-egress, namespace: shop}
spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}
";

/// Link-local addresses, broadcast and multicast between pods of one bridge, which no policy can judge: they pass until a pod
/// of the node is isolated, and again when none is. What policy allows passes meanwhile, and neighbours are found.
pub(crate) fn a_shared_link_is_closed_while_a_pod_is_isolated() -> Result {
    let Some([node, client, server]) = bridge("cni0", "a_shared_link_is_closed_while_a_pod_is_isolated")? else {
        return Ok(());
    };
    let nft = Nft {
        program: program("nft")?.into(),
        ..Nft::default()
    };
    let mut enforcer = Enforcer::new("node".into(), Mode::Enforce, nft);
    let (link, _) = (link_local_of(&server)?, link_local_of(&client)?);
    let scope = scope_of(&client)?;
    let link_local = |address| SocketAddr::V6(std::net::SocketAddrV6::new(address, 53, 0, scope));
    let ways: [(&str, &str, SocketAddr); 5] = [
        ("a broadcast to the subnet", "10.77.0.2", "10.77.0.255:53".parse()?),
        ("a broadcast", "10.77.0.2", "255.255.255.255:53".parse()?),
        ("a multicast", "10.77.0.2", "224.0.0.1:53".parse()?),
        ("an IPv6 multicast", "fd00:77::2", link_local("ff02::1".parse()?)),
        ("a link-local address", "::", link_local(link)),
    ];
    let listeners = ["0.0.0.0", "::"].map(|any| server.run(|| listen(any)));
    let [v4, v6] = listeners;
    let (v4, v6) = (v4??, v6??);
    let mut numbers = 0u32..;
    let mut heard = |from: &str, to: SocketAddr, wait: Duration| -> Result<bool> {
        let listener = if to.is_ipv4() { &v4 } else { &v6 };
        let number = numbers.next().ok_or("out of numbers")?.to_be_bytes();
        client.run(|| -> std::io::Result<()> {
            let socket = UdpSocket::bind((from, 0))?;
            socket.set_broadcast(true)?;
            socket.send_to(&number, to).map(drop)
        })??;
        listener.set_read_timeout(Some(wait))?;
        // What waited for its neighbour to be found comes later than what it was sent for.
        let mut came = [0; 4];
        while waited(|| listener.recv_from(&mut came))?.is_some() {
            if came == number {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let (soon, long) = (Duration::from_millis(400), Duration::from_secs(10));
    let (server4, server6): (SocketAddr, SocketAddr) = ("10.77.0.3:53".parse()?, "[fd00:77::3]:53".parse()?);
    let mut apply = |policies: &str| -> Result {
        let loaded = manifests::parse("bridge.yaml", &format!("{CLUSTER}{policies}")).map_err(|e| e.to_string())?;
        node.run(|| enforcer.apply(&loaded.cluster))??;
        Ok(())
    };
    // A running connection, too.
    let to = SocketAddr::V6(std::net::SocketAddrV6::new(link, 80, 0, scope_of(&server)?));
    let listener = server.run(|| TcpListener::bind(to))??;
    let to = SocketAddr::V6(std::net::SocketAddrV6::new(link, 80, 0, scope));
    apply("")?;
    let mut out = client.run(|| TcpStream::connect_timeout(&to, long))??;
    let (mut into, _) = listener.accept()?;
    let mut arrives = |round: u8, wait: Duration| -> Result<bool> {
        out.write_all(&[round])?;
        into.set_read_timeout(Some(wait))?;
        // What was held back comes first, with this or alone.
        let mut byte = [0];
        while waited(|| into.read_exact(&mut byte))?.is_some() {
            if byte == [round] {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let rounds = [("", true), (DENY_INGRESS, false), ("", true), (DENY_EGRESS, false)];
    for (round, (policies, passes)) in (0..).zip(rounds) {
        apply(policies)?;
        for (what, from, to) in ways {
            must(
                heard(from, to, if passes { long } else { soon })? == passes,
                format!("policies {policies:?}: {what} was to pass: {passes}"),
            )?;
        }
        must(
            arrives(round, if passes { long } else { soon })? == passes,
            format!("policies {policies:?}: a running connection by link-local addresses was to go on: {passes}"),
        )?;
        for (from, to) in [("10.77.0.2", server4), ("fd00:77::2", server6)] {
            must(
                heard(from, to, if passes { long } else { soon })? == passes,
                format!("policies {policies:?}: {to} was to be reached: {passes}"),
            )?;
        }
    }
    // What policy allows passes, and neighbours are still found; also with what the manual has for frames with a VLAN tag.
    let rules = MANUAL
        .split("```")
        .find(|block| block.contains("table bridge pod_bridge"));
    node.nft(rules.ok_or("the manual has no such rules")?)?;
    apply(&format!(
        "{DENY_ALL}{}",
        ALLOW.replace("port: 80", "port: 53, protocol: UDP")
    ))?;
    for (from, to) in [("10.77.0.2", server4), ("fd00:77::2", server6)] {
        ip(&client, &["neigh", "flush", "dev", "eth0"])?;
        must(heard(from, to, long)?, format!("{to} is not reached any more"))?;
    }
    Ok(())
}

/// A pod's link-local address, which the kernel makes when it has noticed that the link is up.
fn link_local_of(pod: &Netns) -> Result<std::net::Ipv6Addr> {
    let start = Instant::now();
    loop {
        let shown = ip(pod, &["-6", "-o", "addr", "show", "dev", "eth0", "scope", "link"])?;
        if let Some(address) = shown.split_whitespace().find_map(|word| word.strip_suffix("/64")) {
            pod.await_addresses()?;
            return Ok(address.parse()?);
        }
        must(
            start.elapsed() < Duration::from_secs(30),
            "the pod has no link-local address",
        )?;
        sleep(Duration::from_millis(20));
    }
}

/// The number of a pod's device.
fn scope_of(pod: &Netns) -> Result<u32> {
    let groups = pod.run(|| std::fs::read_to_string("/proc/thread-self/net/igmp6"))??;
    let mut devices = groups.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let device = devices
        .find(|words| words.get(1) == Some(&"eth0"))
        .ok_or("there is no eth0")?;
    Ok(device[0].parse()?)
}

/// For datagrams to all addresses of one family.
fn listen(any: &str) -> std::io::Result<UdpSocket> {
    let any: IpAddr = any.parse().map_err(std::io::Error::other)?;
    let address = SocketAddr::new(any, 53);
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    if any.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}
