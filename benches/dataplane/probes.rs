//! Whether all variants give the verdicts that the policies mean: before anything is timed, each is probed on the wire and
//! held against the reference evaluator. A rival that lets through what it should not would be fast for the wrong reason.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::ensure;
use policy_compiler::cluster::Cluster;
use policy_compiler::evaluate::Evaluator;
use policy_compiler::ports::{Protocol, Traffic as Port};

use crate::cluster::{FIRST_PORT, PORT};
use crate::traffic::Traffic;
use crate::variants::Loaded;
use crate::world::{CLIENT, OTHER, SERVER, STRANGER};

/// A port that no policy admits and nobody listens on: what gets through is refused.
const NO_PORT: u16 = PORT + 1;

/// Who tries, and on which port of the server.
const PROBES: [(Ipv4Addr, u16); 6] = [
    (CLIENT, PORT),
    (CLIENT, NO_PORT),
    (CLIENT, FIRST_PORT),
    (OTHER, PORT),
    (OTHER, FIRST_PORT),
    (STRANGER, PORT),
];

/// Probes every variant.
pub(crate) fn check(cluster: &Cluster, loaded: &mut Loaded<'_>, traffic: &mut Traffic<'_>) -> anyhow::Result<()> {
    let evaluator = Evaluator::new(cluster);
    let end = |address: Ipv4Addr| evaluator.addresses().endpoint(IpAddr::V4(address));
    for index in 0..loaded.variants.len() {
        loaded.wake(index)?;
        let variant = loaded.variants[index].clone();
        for (from, port) in PROBES {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                let meant = evaluator
                    .decide(&end(from), &end(SERVER), Port::Port(protocol, port))
                    .allowed;
                let passes = traffic.passes(from, protocol == Protocol::Tcp, port);
                ensure!(
                    passes == (meant || !variant.judges()),
                    "{}: from {from} to port {port}/{protocol}: passes: {passes}, meant: {meant}",
                    variant.name
                );
            }
        }
    }
    Ok(())
}
