//! The endpoint syntax of the command line and of test files: text in, what it names out. `ends.rs` looks it up.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use policy_compiler::cluster::{PodName, Workload};
use policy_compiler::labels::Name;

/// An endpoint E: `namespace/pod`, `namespace/kind/name`, an IP address, or a CIDR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EndpointSpec {
    /// One pod, through all of its addresses.
    Pod(PodName),
    /// All pods of a workload.
    Workload(Name, Workload),
    /// One address; a pod's address means that pod, through that address.
    Address(IpAddr),
    /// Every address of a CIDR, those of known pods included.
    Block(IpNet),
}

/// Why a text is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EndpointError {
    /// Not of any of the forms.
    #[error(
        "`{0}` is not an endpoint: write namespace/pod, namespace/kind/name (shop/deployment/api), an IP address or a CIDR"
    )]
    Syntax(String),
    /// Begins like an address or a CIDR, and is none.
    #[error("`{0}` is not an address: write an IPv4 or IPv6 address, or a CIDR such as 10.0.0.0/8 or fd00::/8")]
    Address(String),
    /// A Service, in whose place policy sees the pods behind it.
    #[error("`{0}`: a Service is no end of a connection: name the pods behind it, such as shop/deployment/api")]
    Service(String),
    /// A middle part that is no kind of workload.
    #[error("`{text}`: `{kind}` is not a kind of workload: write pod, {}", KINDS.map(|(kind, _)| kind).join(", "))]
    Kind {
        /// The whole text.
        text: String,
        /// The kind in it.
        kind: String,
    },
}

/// The kinds that pods belong to, with kubectl's short names and plurals.
const KINDS: [(&str, &[&str]); 7] = [
    ("deployment", &["deploy", "deployments"]),
    ("statefulset", &["sts", "statefulsets"]),
    ("daemonset", &["ds", "daemonsets"]),
    ("replicaset", &["rs", "replicasets"]),
    ("replicationcontroller", &["rc", "replicationcontrollers"]),
    ("job", &["jobs"]),
    ("cronjob", &["cj", "cronjobs"]),
];

impl FromStr for EndpointSpec {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        if let Ok(address) = text.parse() {
            return Ok(EndpointSpec::Address(address));
        }
        if let Ok(block) = text.parse::<IpNet>() {
            return Ok(EndpointSpec::Block(block.trunc()));
        }
        let parts: Vec<&str> = text.split('/').collect();
        // No namespace has a dot or a colon in it, so this was meant as an address.
        if parts[0].contains(['.', ':']) {
            return Err(EndpointError::Address(text.to_owned()));
        }
        let is_name = |part: &&str| {
            let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
            !part.is_empty() && part.bytes().all(inner)
        };
        let syntax = || EndpointError::Syntax(text.to_owned());
        match parts.as_slice() {
            [namespace, name] if [namespace, name].into_iter().all(is_name) => Ok(pod(namespace, name)),
            [namespace, kind, name] if [namespace, name].into_iter().all(is_name) => {
                let asked = kind.to_ascii_lowercase();
                if ["pod", "pods", "po"].contains(&&*asked) {
                    return Ok(pod(namespace, name));
                }
                if ["service", "services", "svc"].contains(&&*asked) {
                    return Err(EndpointError::Service(text.to_owned()));
                }
                let known = KINDS
                    .iter()
                    .find(|(k, others)| *k == asked || others.contains(&&*asked));
                let (kind, _) = known.ok_or_else(|| EndpointError::Kind {
                    text: text.to_owned(),
                    kind: (*kind).to_owned(),
                })?;
                let workload = Workload {
                    kind: (*kind).into(),
                    name: (*name).into(),
                };
                Ok(EndpointSpec::Workload((*namespace).into(), workload))
            }
            _ => Err(syntax()),
        }
    }
}

fn pod(namespace: &str, name: &str) -> EndpointSpec {
    EndpointSpec::Pod(PodName {
        namespace: namespace.into(),
        name: name.into(),
    })
}

impl fmt::Display for EndpointSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndpointSpec::Pod(name) => name.fmt(f),
            EndpointSpec::Workload(namespace, workload) => {
                write!(f, "{namespace}/{}/{}", workload.kind, workload.name)
            }
            EndpointSpec::Address(address) => address.fmt(f),
            EndpointSpec::Block(block) => block.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        crate::cli::check_syntax::<EndpointSpec>(text, expected);
    }

    #[test]
    fn endpoints_are_read() {
        check("shop/web-0", Ok("shop/web-0"));
        check("shop/pod/web-0", Ok("shop/web-0"));
        check("shop/deployment/api", Ok("shop/deployment/api"));
        check("shop/deploy/api", Ok("shop/deployment/api"));
        check("shop/Deployment/api", Ok("shop/deployment/api"));
        check("shop/sts/db", Ok("shop/statefulset/db"));
        check("shop/ds/log", Ok("shop/daemonset/log"));
        check("shop/rs/a.b", Ok("shop/replicaset/a.b"));
        check("shop/rc/a", Ok("shop/replicationcontroller/a"));
        check("shop/job/a", Ok("shop/job/a"));
        check("shop/cj/a", Ok("shop/cronjob/a"));
        check("10.0.0.1", Ok("10.0.0.1"));
        check("fd00::1", Ok("fd00::1"));
        check("10.0.0.1/8", Ok("10.0.0.0/8"));
        check("fd00::1/64", Ok("fd00::/64"));
    }

    #[test]
    fn what_is_no_endpoint_says_what_to_write() {
        check("", Err("write namespace/pod"));
        check("web", Err("write namespace/pod"));
        check("shop/", Err("write namespace/pod"));
        check("a/b/c/d", Err("write namespace/pod"));
        check("shop/Web", Err("write namespace/pod"));
        check(
            "shop/service/web",
            Err("a Service is no end of a connection: name the pods behind it"),
        );
        check(
            "shop/ingress/web",
            Err("`ingress` is not a kind of workload: write pod, deployment"),
        );
        check("10.0.0.300", Err("not an address"));
        check("10.0.0.0/33", Err("not an address"));
        check("fd00::/129", Err("not an address"));
    }
}
