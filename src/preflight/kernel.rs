//! What nft and the kernel can, and what others have in nftables.

use std::collections::BTreeSet;

use policy_compiler::cluster::Cluster;
use policy_compiler::compile::{Subjects, compile};

use super::{Finding, Verdict};
use crate::manifests;
use crate::nft::foreign::Named;
use crate::nft::{Kernel, KernelError, Nft, Settings, render, replace};

/// A node whose table has every sort of rule, set and map that rendering knows.
const SAMPLE: &str = include_str!("sample.yaml");

/// Chains and tables of those who enforce policy: the beginnings of their names, and in each project's sources where they stand.
/// Not here are those who enforce it elsewhere: Cilium, Dataplane V2 and the AWS VPC CNI in eBPF (the chains `CILIUM_*` hold no policy),
/// Antrea and OVN in Open vSwitch. `files.rs` knows these.
const ENFORCERS: [(&str, &str); 10] = [
    // kubernetes-sigs/kube-network-policies, pkg/dataplane/controller.go: the default of NFTableName.
    ("kube-network-policies", "kube-network-policies"),
    // The same with the table name that kindnetd of kind and kindnet give it.
    ("kindnet-network-policies", "kindnet"),
    // projectcalico/calico, felix/rules/rule_defs.go: ChainNamePrefix.
    ("cali-", "Calico"),
    // There, felix/dataplane/linux/int_dataplane.go: the table of the nftables mode, whose chains are named otherwise.
    ("calico", "Calico"),
    // cloudnativelabs/kube-router, pkg/controllers/netpol, of which k3s has a copy. KUBE-ROUTER-SERVICES and -HAIRPIN are of its service
    // proxy, which enforces nothing.
    ("KUBE-ROUTER-INPUT", "kube-router or k3s"),
    ("KUBE-ROUTER-FORWARD", "kube-router or k3s"),
    ("KUBE-POD-FW-", "kube-router or k3s"),
    ("KUBE-NWPLCY-", "kube-router or k3s"),
    // weaveworks/weave, npc/constants.go.
    ("WEAVE-NPC", "Weave Net"),
    // Azure/azure-container-networking, npm/util/const.go.
    ("AZURE-NPM", "Azure Network Policy Manager"),
];

pub(super) fn check(nft: &Nft) -> Vec<Finding> {
    let version = match nft.version() {
        Ok(version) => Finding::ok("nft", format!("version {version}")),
        Err(error) => {
            // Nothing else can be asked without it.
            let skipped = ["permission", "kernel", "enforcers", "flowtables"];
            let remedy = "install nftables 1.0.2 or later with JSON (apt-get install nftables)";
            let mut findings = vec![Finding::of("nft", Verdict::Failed, error.to_string(), remedy)];
            findings.extend(skipped.map(|check| Finding::of(check, Verdict::Skipped, "nft is needed", "see nft")));
            return findings;
        }
    };
    let (permission, kernel) = features(dry_run(nft));
    vec![
        version,
        permission,
        kernel,
        enforcers(nft),
        flowtables(nft.flowtables()),
    ]
}

/// Has the kernel judge the sample's whole table, without taking it.
fn dry_run(nft: &Nft) -> Result<(), KernelError> {
    let sample = manifests::parse("sample", SAMPLE).map_or_else(|_| Cluster::default(), |loaded| loaded.cluster);
    let table = compile(&sample, &Subjects::Node("sample".into()));
    let transaction = replace(&render(&table, Settings::default())).map_err(|e| KernelError::Refused(e.to_string()))?;
    nft.check(&transaction)
}

fn features(outcome: Result<(), KernelError>) -> (Finding, Finding) {
    let permitted = Finding::ok("permission", "nftables may be changed");
    match outcome {
        Ok(()) => (
            permitted,
            Finding::ok("kernel", "takes every sort of rule, set and map that the agent renders"),
        ),
        Err(error @ KernelError::NotPermitted) => (
            Finding::of(
                "permission",
                Verdict::Failed,
                error.to_string(),
                "run as root, or with the capability NET_ADMIN in the node's network namespace",
            ),
            Finding::of("kernel", Verdict::Skipped, "permission is needed", "see permission"),
        ),
        Err(error) => (
            permitted,
            Finding::of(
                "kernel",
                Verdict::Failed,
                error.to_string(),
                "use a kernel with CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET, CONFIG_NFT_CT, CONFIG_NFT_LIMIT, \
                 CONFIG_NFT_FIB_INET, CONFIG_NFT_REJECT_INET and CONFIG_NF_CONNTRACK (5.10 or later), or load these modules",
            ),
        ),
    }
}

fn enforcers(nft: &Nft) -> Finding {
    const CHECK: &str = "enforcers";
    let named = match nft.tables_and_chains() {
        Ok(named) => named,
        Err(error) => {
            return Finding::of(CHECK, Verdict::Skipped, error.to_string(), "see permission");
        }
    };
    let found: BTreeSet<String> = named
        .iter()
        .filter_map(|n| {
            let who = enforcer(n.name.as_deref().unwrap_or(&n.table))?;
            Some(format!("{who} in table {} {}", n.family, n.table))
        })
        .collect();
    if found.is_empty() {
        return Finding::ok(CHECK, "nobody else's policy is in nftables");
    }
    Finding::of(
        CHECK,
        Verdict::Failed,
        Vec::from_iter(found).join(", "),
        "switch its policies off and restart the node, or do without the agent: two enforcers allow only what both allow, and \
         neither tells what the other denies",
    )
}

/// Who enforces policy in a table or chain of that name.
fn enforcer(name: &str) -> Option<&'static str> {
    let (_, who) = ENFORCERS.iter().find(|(start, _)| name.starts_with(start))?;
    Some(who)
}

fn flowtables(listed: Result<Vec<Named>, KernelError>) -> Finding {
    const CHECK: &str = "flowtables";
    match listed {
        Ok(found) if found.is_empty() => Finding::ok(CHECK, "no connection is offloaded past the rules"),
        Ok(found) => {
            let names: Vec<String> = found
                .iter()
                .map(|f| format!("{} {} {}", f.family, f.table, f.name.as_deref().unwrap_or_default()))
                .collect();
            Finding::of(
                CHECK,
                Verdict::Warning,
                names.join(", "),
                "take the pods' devices out of it: packets of an offloaded connection meet no rule, so a changed policy does not \
                 stop them",
            )
        }
        Err(error) => Finding::of(CHECK, Verdict::Skipped, error.to_string(), "see permission"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_has_every_sort_of_set() {
        let loaded = manifests::parse("sample", SAMPLE).expect("valid");
        assert_eq!(loaded.warnings, []);
        let table = compile(&loaded.cluster, &Subjects::Node("sample".into()));
        let text = render(&table, Settings::default()).to_string();
        for part in [
            "map eg4_cidrs_0 ",
            "map eg4_peers ",
            "map eg6_cidrs_0 ",
            "map eg6_peers ",
            "map in4_cidrs_0 ",
            "map in4_peers ",
            "map in6_peers ",
            "8000-8080",
            "inet_service",
            "sctp",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }

    #[test]
    fn what_is_missing_is_told_apart() {
        let verdicts = |outcome| {
            let (permission, kernel) = features(outcome);
            (permission.verdict, kernel.verdict)
        };
        assert_eq!(verdicts(Ok(())), (Verdict::Ok, Verdict::Ok));
        assert_eq!(
            verdicts(Err(KernelError::NotPermitted)),
            (Verdict::Failed, Verdict::Skipped)
        );
        assert_eq!(verdicts(Err(KernelError::NoNfTables)), (Verdict::Ok, Verdict::Failed));
    }

    #[test]
    fn names_that_others_use_for_policy_are_known_and_those_of_services_are_not() {
        for (name, who) in [
            ("kube-network-policies", "kube-network-policies"),
            ("cali-FORWARD", "Calico"),
            ("calico", "Calico"),
            ("KUBE-ROUTER-FORWARD", "kube-router or k3s"),
            ("KUBE-NWPLCY-DEFAULT", "kube-router or k3s"),
            ("WEAVE-NPC-INGRESS", "Weave Net"),
            ("AZURE-NPM-ACCEPT", "Azure Network Policy Manager"),
        ] {
            assert_eq!(enforcer(name), Some(who), "{name}");
        }
        for name in [
            "kube-proxy",
            "KUBE-FORWARD",
            "KUBE-ROUTER-SERVICES",
            "CNI-HOSTPORT-DNAT",
            "FLANNEL-FWD",
            "palisade",
        ] {
            assert_eq!(enforcer(name), None, "{name}");
        }
    }

    #[test]
    fn a_flowtable_is_worth_a_look() {
        assert_eq!(flowtables(Ok(Vec::new())).verdict, Verdict::Ok);
        let fast = Named {
            family: "inet".to_owned(),
            table: "router".to_owned(),
            name: Some("fast".to_owned()),
        };
        let finding = flowtables(Ok(vec![fast]));
        assert_eq!(
            (finding.verdict, finding.found.as_str()),
            (Verdict::Warning, "inet router fast")
        );
        assert_eq!(flowtables(Err(KernelError::NotPermitted)).verdict, Verdict::Skipped);
    }

    #[test]
    fn without_nft_the_rest_is_skipped() {
        let nft = Nft {
            program: "/nowhere/nft".into(),
            ..Nft::default()
        };
        let findings = check(&nft);
        let verdicts: Vec<Verdict> = findings.iter().map(|f| f.verdict).collect();
        assert_eq!(verdicts[0], Verdict::Failed);
        assert!(verdicts[1..].iter().all(|v| *v == Verdict::Skipped), "{findings:?}");
    }
}
