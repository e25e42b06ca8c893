//! What can go wrong with a sandbox, in words that say what to do.

use std::net::IpAddr;

use nix::errno::Errno;

use super::topology::POD_LIMIT;

/// A sandbox that could not be built or used.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// No privilege to make or enter a namespace.
    #[error(
        "network namespaces are not permitted here ({error}): run the command as root (sudo), in a container with \
         --privileged, or permit user namespaces (sysctl user.max_user_namespaces, and on Ubuntu \
         kernel.apparmor_restrict_unprivileged_userns=0)"
    )]
    NotPermitted {
        /// What the kernel said.
        error: Errno,
    },
    /// A program is not there.
    #[error("the program {program} is missing: install the Debian package {package}")]
    MissingProgram {
        /// Its name.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
    },
    /// A program failed.
    #[error("{program} failed in the network namespace of {namespace}: {message}")]
    Program {
        /// Its name.
        program: &'static str,
        /// Where it ran.
        namespace: String,
        /// What it wrote.
        message: String,
    },
    /// The kernel gives an address no route.
    #[error("{namespace} has the address {address}, and after 30 s no packet to it would find the way")]
    NoRoute {
        /// Whose namespace.
        namespace: String,
        /// Its address.
        address: IpAddr,
    },
    /// A sysctl cannot be set.
    #[error("sysctl net/{key} cannot be set in the network namespace of {namespace}: {error}")]
    Sysctl {
        /// Whose namespace.
        namespace: String,
        /// Its path below `/proc/sys/net`.
        key: String,
        /// Why.
        error: std::io::Error,
    },
    /// `/proc` is not as it should be.
    #[error("/proc cannot be used: {error}; the sandbox needs it mounted and writable")]
    Proc {
        /// Why.
        error: std::io::Error,
    },
    /// No thread to be had.
    #[error("no thread can be started: {error}")]
    Thread {
        /// Why.
        error: std::io::Error,
    },
    /// The asynchronous runtime, or a socket in it, failed.
    #[error("the runtime of the probes failed: {error}")]
    Runtime {
        /// Why.
        error: std::io::Error,
    },
    /// A listener cannot listen.
    #[error("{name} cannot listen on {port}: {error}")]
    Listen {
        /// Who.
        name: String,
        /// Where.
        port: String,
        /// Why.
        error: std::io::Error,
    },
    /// More pods than one machine takes.
    #[error(
        "{found} pods are too many for a sandbox, which holds {POD_LIMIT}: every pod is a network namespace of its \
         own; leave out replicas or whole namespaces"
    )]
    TooManyPods {
        /// How many pods there are.
        found: usize,
    },
    /// Something that every member needs is missing.
    #[error("{object} has not got {what}: complete the cluster with assign_addresses first")]
    Incomplete {
        /// The pod or node.
        object: String,
        /// What it lacks.
        what: &'static str,
    },
    /// All addresses are used up.
    #[error("there is no free address left for {object}")]
    NoFreeAddress {
        /// The pod or node.
        object: String,
    },
    /// The client's address belongs to the cluster.
    #[error("the outside client cannot have {address}: a pod or node of the cluster has it; choose another address")]
    ClientAddressTaken {
        /// The address.
        address: IpAddr,
    },
    /// A place that is not in the sandbox.
    #[error("{place} is not in the sandbox")]
    NoSuchPlace {
        /// The pod, node or client.
        place: String,
    },
}
