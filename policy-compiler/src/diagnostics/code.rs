//! The sorts of findings: each with a stable name, a usual severity, and what it is about.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::Severity;

/// A sort of finding, in the order of their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the summary of each stands in the table below")]
pub enum Code {
    AddressConflict,
    AuditBesideOtherTier,
    AuditedPolicy,
    BlockCoversPods,
    CidrSpelling,
    EgressWithoutDns,
    EmptyBlock,
    EmptyFolder,
    HostNetworkPod,
    NamedPortPartial,
    NamedPortWithoutMatch,
    NamespaceLabelsUnknown,
    NoDefaultDeny,
    NothingOfUse,
    NothingToAudit,
    OneSidedAllow,
    OverlappingExcept,
    OverlappingPorts,
    PeerMatchesNothing,
    PodWithoutAddress,
    RedundantPolicy,
    RedundantRule,
    RulesWithoutEffect,
    SelectorsAsTwoPeers,
    SelectsNoPod,
    UnknownLintRule,
    UnknownMode,
    UnknownNamespace,
    UnprotectedWorkload,
    UnreadObject,
}

/// Each with its name, its usual severity, and a sentence for people.
const TABLE: [(Code, &str, Severity, &str); 30] = {
    use Severity::{Note, Warning};
    [
        (
            Code::AddressConflict,
            "address-conflict",
            Warning,
            "Two live pods claim one address",
        ),
        (
            Code::AuditBesideOtherTier,
            "audit-beside-other-tier",
            Warning,
            "An audited policy is left out where cluster-wide policies judge",
        ),
        (
            Code::AuditedPolicy,
            "audited-policy",
            Note,
            "A policy is on trial: it denies nothing",
        ),
        (
            Code::BlockCoversPods,
            "block-covers-pods",
            Note,
            "An ipBlock holds addresses of pods, and CNIs differ on whether it matches these",
        ),
        (
            Code::CidrSpelling,
            "cidr-spelling",
            Warning,
            "A CIDR has host bits set, or a form that newer Kubernetes refuses",
        ),
        (
            Code::EgressWithoutDns,
            "egress-without-dns",
            Warning,
            "Pods may send, but not ask for names",
        ),
        (
            Code::EmptyBlock,
            "empty-block",
            Warning,
            "The exceptions of an ipBlock leave no address",
        ),
        (Code::EmptyFolder, "empty-folder", Warning, "A folder holds no manifest"),
        (
            Code::HostNetworkPod,
            "host-network-pod",
            Warning,
            "A policy selects pods that use their node's network, which no policy isolates",
        ),
        (
            Code::NamedPortPartial,
            "named-port-partial",
            Note,
            "Only some of the destination pods declare a named port",
        ),
        (
            Code::NamedPortWithoutMatch,
            "named-port-without-match",
            Warning,
            "No destination pod declares a named port",
        ),
        (
            Code::NamespaceLabelsUnknown,
            "namespace-labels-unknown",
            Warning,
            "A namespaceSelector asks for labels of namespaces that are not given",
        ),
        (
            Code::NoDefaultDeny,
            "no-default-deny",
            Note,
            "No policy isolates all pods of a namespace for ingress",
        ),
        (
            Code::NothingOfUse,
            "nothing-of-use",
            Warning,
            "Of all that is given nothing is of use to policy",
        ),
        (
            Code::NothingToAudit,
            "nothing-to-audit",
            Warning,
            "Policies in force isolate all pods of an audited policy",
        ),
        (
            Code::OneSidedAllow,
            "one-sided-allow",
            Warning,
            "One side allows what the other side always denies",
        ),
        (
            Code::OverlappingExcept,
            "overlapping-except",
            Note,
            "An exception of an ipBlock lies within another one",
        ),
        (
            Code::OverlappingPorts,
            "overlapping-ports",
            Note,
            "Ports of one rule are listed twice",
        ),
        (
            Code::PeerMatchesNothing,
            "peer-matches-nothing",
            Warning,
            "The selectors of a peer match no pod",
        ),
        (
            Code::PodWithoutAddress,
            "pod-without-address",
            Note,
            "Pods have no address, so that no ipBlock is taken to match them",
        ),
        (
            Code::RedundantPolicy,
            "redundant-policy",
            Warning,
            "Removing a policy changes no allow set of any pod",
        ),
        (
            Code::RedundantRule,
            "redundant-rule",
            Warning,
            "Removing a rule changes no allow set of any pod",
        ),
        (
            Code::RulesWithoutEffect,
            "rules-without-effect",
            Warning,
            "Rules of a direction that is not among the policy types",
        ),
        (
            Code::SelectorsAsTwoPeers,
            "selectors-as-two-peers",
            Note,
            "A namespaceSelector and a podSelector stand as two peers (either) where one (both) may be meant",
        ),
        (Code::SelectsNoPod, "selects-no-pod", Warning, "A policy selects no pod"),
        (
            Code::UnknownLintRule,
            "unknown-lint-rule",
            Warning,
            "The annotation palisade.dev/lint-ignore names a rule that there is not",
        ),
        (
            Code::UnknownMode,
            "unknown-mode",
            Warning,
            "The annotation palisade.dev/mode of a live object is no mode, so that the policies are enforced",
        ),
        (
            Code::UnknownNamespace,
            "unknown-namespace",
            Note,
            "A namespace is referred to but not given",
        ),
        (
            Code::UnprotectedWorkload,
            "unprotected-workload",
            Note,
            "Pods are isolated in no direction, where others in their namespace are",
        ),
        (
            Code::UnreadObject,
            "unread-object",
            Warning,
            "An object of a live cluster cannot be read, or a policy is of a kind that is not read",
        ),
    ]
};

impl Code {
    /// All of them, in the order of their names.
    pub fn all() -> impl Iterator<Item = Code> {
        TABLE.iter().map(|(code, ..)| *code)
    }

    /// The stable name: `selects-no-pod`.
    pub fn id(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// The severity of most of its findings; one may be less where less is known, as its message then says.
    pub fn severity(self) -> Severity {
        TABLE[self as usize].2
    }

    /// What it is about, in a sentence without a full stop.
    pub fn summary(self) -> &'static str {
        TABLE[self as usize].3
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

impl FromStr for Code {
    type Err = ();

    fn from_str(id: &str) -> Result<Self, ()> {
        Code::all().find(|code| code.id() == id).ok_or(())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_names_and_of_the_codes() {
        for (at, (code, id, ..)) in TABLE.iter().enumerate() {
            assert_eq!(*code as usize, at, "{id}");
            assert_eq!(id.parse(), Ok(*code));
        }
        assert!(TABLE.is_sorted_by_key(|(_, id, ..)| *id));
    }
}
