//! Why a cluster cannot be read, in words that say what to do.

use std::fmt;

use thiserror::Error;

use super::super::access::{Access, ClusterInfo, Target};
use super::super::kinds::Resource;
use super::super::transport::Failure;

/// Why a cluster cannot be read.
#[derive(Debug, Error)]
pub struct SnapshotError {
    cluster: ClusterInfo,
    /// The flags that point kubectl to the same place, each after a space.
    flags: String,
    /// Never empty.
    failures: Vec<(Resource, Failure)>,
}

impl SnapshotError {
    pub(super) fn new(access: &Access, failures: Vec<(Resource, Failure)>) -> Self {
        SnapshotError {
            cluster: access.info().clone(),
            flags: flags(access.target()),
            failures,
        }
    }

    fn forbidden(&self) -> Vec<Resource> {
        let is_forbidden = |failure: &Failure| matches!(failure, Failure::Refused { code: 403, .. });
        let forbidden = self.failures.iter().filter(|(_, failure)| is_forbidden(failure));
        forbidden.map(|(resource, _)| *resource).collect()
    }
}

fn flags(target: &Target) -> String {
    let mut flags = String::new();
    if let Target::Kubeconfig { file, context } = target {
        for (flag, value) in [
            ("--kubeconfig", file.as_ref().map(|f| f.display().to_string())),
            ("--context", context.clone()),
        ] {
            flags.extend(value.map(|value| format!(" {flag} {value}")));
        }
    }
    flags
}

impl fmt::Display for SnapshotError {
    /// Each reason once, with the kinds that it is about; then what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ClusterInfo {
            server,
            credentials,
            proxy,
            ..
        } = &self.cluster;
        write!(f, "cannot read the cluster at {server} ({credentials}")?;
        if let Some(proxy) = proxy {
            write!(f, ", by way of the proxy {proxy}")?;
        }
        f.write_str(")")?;
        let mut told: Vec<(String, Vec<String>)> = Vec::new();
        for (resource, failure) in &self.failures {
            let reason = failure.to_string();
            match told.iter_mut().find(|(known, _)| *known == reason) {
                Some((_, resources)) => resources.push(resource.to_string()),
                None => told.push((reason, vec![resource.to_string()])),
            }
        }
        for (reason, resources) in &told {
            write!(f, "\n  list {}: {reason}", resources.join(", "))?;
        }
        let forbidden = self.forbidden();
        if !forbidden.is_empty() {
            return self.rights(f, &forbidden);
        }
        let remedy = match self.failures.first().map(|(_, failure)| failure) {
            Some(Failure::Refused { code: 401, .. }) => "log in anew, or see to the credentials of that user",
            Some(Failure::Refused { code: 429 | 500.., .. }) => "this has been tried several times: try again later",
            Some(Failure::Refused { .. } | Failure::Nonsense(_)) => {
                "see that this is the URL of a Kubernetes API server, version 1.28 or newer"
            }
            Some(Failure::TooLarge) => "no object may be so large",
            _ => "see that the server is the right one, that it runs, and that it can be reached from here",
        };
        write!(f, "\n{remedy}")
    }
}

impl SnapshotError {
    /// What to ask kubectl, and the rules that are missing.
    fn rights(&self, f: &mut fmt::Formatter<'_>, forbidden: &[Resource]) -> fmt::Result {
        f.write_str("\nask whether you may:")?;
        for resource in forbidden {
            let group = match resource.group() {
                "" => String::new(),
                group => format!(".{group}"),
            };
            let everywhere = if resource.is_namespaced() {
                " --all-namespaces"
            } else {
                ""
            };
            write!(
                f,
                "\n  kubectl auth can-i list {resource}{group}{everywhere}{}",
                self.flags
            )?;
        }
        f.write_str("\na ClusterRole that is bound to this user (by a ClusterRoleBinding) must have these rules:")?;
        for group in ["", "networking.k8s.io"] {
            let resources = forbidden.iter().filter(|resource| resource.group() == group);
            let resources: Vec<String> = resources.map(ToString::to_string).collect();
            if !resources.is_empty() {
                let resources = resources.join(", ");
                write!(
                    f,
                    "\n  - {{apiGroups: [\"{group}\"], resources: [{resources}], verbs: [list]}}"
                )?;
            }
        }
        Ok(())
    }
}
