//! A CNI with a bridge: pods of one node are neighbours, so that even neighbour discovery between them is forwarded, and
//! seen by the rules where the node sets `bridge-nf-call-ip6tables`.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use palisade::agent::enforcer::Enforcer;
use palisade::manifests;
use palisade::nft::{Mode, Nft};
use palisade::sandbox::{Netns, program};
use policy_compiler::cluster::Cluster;

use crate::packets::ip;
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
    if !Path::new("/proc/sys/net/bridge/bridge-nf-call-ip6tables").exists() {
        println!("NOT RUN: pods_on_a_bridge_find_each_other: this kernel has no br_netfilter");
        return Ok(());
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
        println!("NOT RUN: pods_on_a_bridge_find_each_other: {error}");
        return Ok(());
    }
    node.ip("link add br0 type bridge mcast_snooping 0\nlink set br0 up\n\
             addr add 10.77.0.1/24 dev br0\naddr add fd00:77::1/64 dev br0 nodad\n")?;
    for (number, pod) in [(2, &client), (3, &server)] {
        let path = pod.path();
        node.ip(&format!(
            "link add p{number} type veth peer name eth0 netns {path}\nlink set p{number} master br0 up\n"
        ))?;
        pod.ip(&format!(
            "link set eth0 up\naddr add 10.77.0.{number}/24 dev eth0\naddr add fd00:77::{number}/64 dev eth0 nodad\n"
        ))?;
    }
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
            let connected = client.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(1200)))?;
            must(
                connected.is_ok() == allowed,
                format!("{address}, policies {policies:?}: {connected:?}, expected a connection: {allowed}"),
            )?;
            let neighbour = ip(&client, &["neigh", "show", &address.to_string()])?;
            must(
                neighbour.contains("lladdr"),
                format!("the server was not found: {neighbour}"),
            )?;
        }
    }
    Ok(())
}
