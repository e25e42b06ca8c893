//! What the files of a node tell: its devices, its CNI, bridges and connection tracking. The root of the file system comes in.

use std::fs;
use std::path::Path;

use super::{Finding, Verdict};

/// Devices of those who enforce policy, or can: the beginnings of their names. GKE's Dataplane V2 and Azure's CNI powered by Cilium are
/// Cilium.
const DEVICES: [(&str, &str); 8] = [
    ("cilium_", "Cilium"),
    ("lxc_health", "Cilium"),
    ("cali", "Calico"),
    ("vxlan.calico", "Calico"),
    ("antrea-gw", "Antrea"),
    ("ovn-k8s-mp", "OVN-Kubernetes"),
    ("ovn0", "Kube-OVN"),
    ("weave", "Weave Net"),
];

/// Words in the CNI's configuration that name somebody who enforces policy.
const PLUGINS: [(&str, &str); 9] = [
    ("cilium", "Cilium"),
    ("calico", "Calico"),
    ("canal", "Calico (Canal)"),
    ("antrea", "Antrea"),
    ("ovn-k8s", "OVN-Kubernetes"),
    ("kube-ovn", "Kube-OVN"),
    ("weave", "Weave Net"),
    ("kuberouter", "kube-router"),
    ("kube-router", "kube-router"),
];

/// Where the network policy agent of the AWS VPC CNI pins its maps (aws/aws-network-policy-agent, pkg/ebpf/bpf_client.go); nothing else
/// of it is to be seen.
const AWS_MAPS: &str = "sys/fs/bpf/globals/aws/maps";

/// Where the kernel names the tables of the old iptables.
const LEGACY: [&str; 2] = ["proc/net/ip_tables_names", "proc/net/ip6_tables_names"];

/// Bridges that CNIs put pods on.
const BRIDGES: [&str; 3] = ["cni0", "cbr0", "kube-bridge"];

pub(super) fn check(root: &Path) -> Vec<Finding> {
    vec![cni(root), legacy(root), bridge(root), ipvs(root), conntrack(root)]
}

/// The devices of this process's network namespace. Not by `/sys/class/net`, which is of the namespace that mounted it.
fn devices(root: &Path) -> Vec<String> {
    let text = fs::read_to_string(root.join("proc/net/dev")).unwrap_or_default();
    text.lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .collect()
}

/// The files that the CNI is configured by, names and texts.
fn configurations(root: &Path) -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir(root.join("etc/cni/net.d")) else {
        return Vec::new();
    };
    let mut found: Vec<(String, String)> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let extension = path.extension().and_then(|e| e.to_str());
            matches!(extension, Some("conf" | "conflist" | "json"))
        })
        .filter_map(|path| {
            let name = path.file_name()?.to_string_lossy().into_owned();
            Some((name, fs::read_to_string(path).unwrap_or_default()))
        })
        .collect();
    found.sort();
    found
}

fn cni(root: &Path) -> Finding {
    let (devices, files) = (devices(root), configurations(root));
    let mut found = Vec::new();
    for device in &devices {
        if let Some((_, who)) = DEVICES.iter().find(|(start, _)| device.starts_with(start)) {
            found.push(format!("{who} (device {device})"));
        }
    }
    for (name, text) in &files {
        let mentions = |word: &&(&str, &str)| name.contains(word.0) || text.contains(&format!("\"{}", word.0));
        if let Some((_, who)) = PLUGINS.iter().find(mentions) {
            found.push(format!("{who} (/etc/cni/net.d/{name})"));
        }
    }
    if fs::read_dir(root.join(AWS_MAPS)).is_ok_and(|mut maps| maps.next().is_some()) {
        found.push(format!("the network policy agent of the AWS VPC CNI (/{AWS_MAPS})"));
    }
    // One device a pod: a few tell it.
    const SHOWN: usize = 4;
    let more = found.len().saturating_sub(SHOWN);
    found.truncate(SHOWN);
    if more > 0 {
        found.push(format!("and {more} more"));
    }
    if !found.is_empty() {
        return Finding::of(
            "cni",
            Verdict::Warning,
            found.join(", "),
            "this CNI can enforce policy itself: switch that off, or do without the agent",
        );
    }
    match files.is_empty() {
        true => Finding::ok(
            "cni",
            "no device of a CNI that enforces policy; /etc/cni/net.d has no configuration here",
        ),
        false => Finding::ok("cni", "none that is known to enforce policy itself"),
    }
}

/// nft lists what iptables-nft has made, and not what the old iptables has.
fn legacy(root: &Path) -> Finding {
    const CHECK: &str = "iptables-legacy";
    let tables = LEGACY.map(|file| fs::read_to_string(root.join(file)).unwrap_or_default());
    let mut tables: Vec<&str> = tables.iter().flat_map(|text| text.lines()).collect();
    tables.sort_unstable();
    tables.dedup();
    match tables.is_empty() {
        true => Finding::ok(CHECK, "the kernel has no table of the old iptables"),
        false => Finding::of(
            CHECK,
            Verdict::Warning,
            format!(
                "the kernel has tables of the old iptables ({}), which nft does not show",
                tables.join(", ")
            ),
            "look for another enforcer's chains in them: iptables-legacy-save | grep -E \
             '^:(cali-|KUBE-ROUTER-|KUBE-NWPLCY-|WEAVE-NPC|AZURE-NPM)'",
        ),
    }
}

fn bridge(root: &Path) -> Finding {
    const REMEDY: &str = "modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1 \
                          net.bridge.bridge-nf-call-ip6tables=1, and the same at boot";
    let devices = devices(root);
    let pods_bridge = devices.iter().find(|d| BRIDGES.contains(&d.as_str()));
    let plugin = configurations(root)
        .into_iter()
        .any(|(_, text)| text.replace(' ', "").contains("\"type\":\"bridge\"") || text.contains("\"flannel\""));
    let who = match (pods_bridge, plugin) {
        (Some(device), _) => format!("pods are on the bridge {device}"),
        (None, true) => "the CNI puts pods on a bridge".to_owned(),
        (None, false) => return Finding::ok("bridge", "no bridge of pods is known"),
    };
    let sysctl = |name: &str| {
        let text = fs::read_to_string(root.join("proc/sys/net/bridge").join(name)).ok()?;
        Some(text.trim() != "0")
    };
    let switches = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"].map(sysctl);
    match switches {
        [Some(true), Some(true)] => Finding::ok("bridge", format!("{who}, and its packets meet the rules")),
        [Some(_), Some(_)] => Finding::of(
            "bridge",
            Verdict::Ok,
            format!("{who}; its packets do not meet the rules yet"),
            "the agent switches that on (--bridge-netfilter auto); to have it from boot on, set \
             net.bridge.bridge-nf-call-iptables=1 and net.bridge.bridge-nf-call-ip6tables=1",
        ),
        _ => Finding::of(
            "bridge",
            Verdict::Failed,
            format!("{who}, and br_netfilter is not loaded: what passes between them meets no rule"),
            REMEDY,
        ),
    }
}

fn ipvs(root: &Path) -> Finding {
    match devices(root).iter().any(|device| device == "kube-ipvs0") {
        false => Finding::ok("ipvs", "kube-proxy does not use IPVS"),
        true => Finding::of(
            "ipvs",
            Verdict::Warning,
            "kube-proxy uses IPVS (device kube-ipvs0)",
            "use kube-proxy's mode nftables or iptables: IPVS is not tested",
        ),
    }
}

fn conntrack(root: &Path) -> Finding {
    let read = |name: &str| -> Option<u64> {
        let path = root.join("proc/sys/net/netfilter").join(name);
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let (Some(count), Some(max)) = (
        read("nf_conntrack_count"),
        read("nf_conntrack_max").filter(|max| *max > 0),
    ) else {
        return Finding::ok("conntrack", "not loaded yet: the first rule loads it");
    };
    let found = format!("{count} of {max} connections tracked");
    let remedy = "raise net.netfilter.nf_conntrack_max (kube-proxy's --conntrack-max-per-core): when it is full, packets that \
                  open connections are lost, whatever policy says";
    match count.saturating_mul(100) / max {
        95.. => Finding::of("conntrack", Verdict::Failed, found, remedy),
        75..95 => Finding::of("conntrack", Verdict::Warning, found, remedy),
        _ => Finding::ok("conntrack", found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdicts on cni, iptables-legacy, bridge, ipvs and conntrack where these files are.
    #[track_caller]
    fn check(files: &[(&str, &str)], expected: [Verdict; 5]) -> Vec<Finding> {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("written");
        }
        let findings = super::check(root.path());
        let verdicts: Vec<Verdict> = findings.iter().map(|f| f.verdict).collect();
        assert_eq!(verdicts, expected, "{findings:#?}");
        findings
    }

    const DEV: &str = "Inter-|   Receive\n face |bytes\n";
    use Verdict::{Failed, Ok, Warning};

    #[test]
    fn a_bare_node_is_fine() {
        check(&[], [Ok, Ok, Ok, Ok, Ok]);
        let loaded = ("proc/sys/net/netfilter/nf_conntrack_count", "12\n");
        check(
            &[loaded, ("proc/sys/net/netfilter/nf_conntrack_max", "262144\n")],
            [Ok, Ok, Ok, Ok, Ok],
        );
    }

    #[test]
    fn devices_and_configurations_give_a_cni_away() {
        for device in ["cilium_host", "cali1234567890a", "antrea-gw0"] {
            let text = format!("{DEV}    lo: 0 0\n{device}: 0 0\n");
            let findings = check(&[("proc/net/dev", &text)], [Warning, Ok, Ok, Ok, Ok]);
            assert!(findings[0].found.contains(device), "{findings:?}");
        }
        check(&[("etc/cni/net.d/05-cilium.conflist", "{}")], [Warning, Ok, Ok, Ok, Ok]);
        check(
            &[("etc/cni/net.d/10-net.conflist", r#"{"plugins": [{"type": "calico"}]}"#)],
            [Warning, Ok, Ok, Ok, Ok],
        );
        check(
            &[
                ("etc/cni/net.d/05-cilium.conflist.bak", "{}"),
                ("etc/cni/net.d/10-ptp.conflist", r#"{"type": "ptp"}"#),
            ],
            [Ok, Ok, Ok, Ok, Ok],
        );
    }

    #[test]
    fn what_leaves_no_device_is_seen_by_its_maps_and_what_nft_does_not_show_is_told() {
        let maps = "sys/fs/bpf/globals/aws/maps/global_aws_conntrack_map";
        let findings = check(&[(maps, "")], [Warning, Ok, Ok, Ok, Ok]);
        assert!(findings[0].found.contains("AWS VPC CNI"), "{findings:?}");
        let empty = ("proc/net/ip_tables_names", "");
        check(&[empty], [Ok, Ok, Ok, Ok, Ok]);
        let findings = check(
            &[
                ("proc/net/ip_tables_names", "nat\nfilter\n"),
                ("proc/net/ip6_tables_names", "filter\n"),
            ],
            [Ok, Warning, Ok, Ok, Ok],
        );
        assert!(findings[1].found.contains("(filter, nat)"), "{findings:?}");
    }

    #[test]
    fn a_bridge_of_pods_needs_br_netfilter() {
        let dev = format!("{DEV}  cni0: 0 0\n");
        let v4 = "proc/sys/net/bridge/bridge-nf-call-iptables";
        let v6 = "proc/sys/net/bridge/bridge-nf-call-ip6tables";
        let findings = check(&[("proc/net/dev", &dev)], [Ok, Ok, Failed, Ok, Ok]);
        assert!(
            findings[2]
                .remedy
                .as_ref()
                .is_some_and(|r| r.starts_with("modprobe br_netfilter"))
        );
        let off = check(
            &[("proc/net/dev", &dev), (v4, "0\n"), (v6, "1\n")],
            [Ok, Ok, Ok, Ok, Ok],
        );
        assert!(off[2].remedy.is_some(), "{off:?}");
        let on = check(
            &[("proc/net/dev", &dev), (v4, "1\n"), (v6, "1\n")],
            [Ok, Ok, Ok, Ok, Ok],
        );
        assert_eq!(on[2].remedy, None, "{on:?}");
        let plugin = r#"{"plugins": [{"type": "bridge"}]}"#;
        check(&[("etc/cni/net.d/10-b.conflist", plugin)], [Ok, Ok, Failed, Ok, Ok]);
        let docker = format!("{DEV}docker0: 0 0\n");
        check(&[("proc/net/dev", &docker)], [Ok, Ok, Ok, Ok, Ok]);
    }

    #[test]
    fn ipvs_and_a_full_table_of_connections_are_told() {
        let dev = format!("{DEV}kube-ipvs0: 0 0\n");
        check(&[("proc/net/dev", &dev)], [Ok, Ok, Ok, Warning, Ok]);
        for (count, verdict) in [("749", Ok), ("750", Warning), ("950", Failed)] {
            let files = [
                ("proc/sys/net/netfilter/nf_conntrack_count", count),
                ("proc/sys/net/netfilter/nf_conntrack_max", "1000"),
            ];
            check(&files, [Ok, Ok, Ok, Ok, verdict]);
        }
    }
}
