//! The spec of a policy in; its errors, or its rules in words, out.

use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::{lines, read};
use crate::convert::{FieldError, FieldWarning, network_policy};
use crate::policy::{Peers, Policy, Rule};

/// A NetworkPolicy `shop/p` with this spec, in flow style.
fn policy_of(spec: &str) -> Result<(Policy, Vec<FieldWarning>), Vec<FieldError>> {
    network_policy(&read::<NetworkPolicy>(&format!(
        "metadata: {{name: p, namespace: shop}}\nspec: {spec}"
    )))
}

/// The errors of a policy with this spec: each the beginning of its line.
#[track_caller]
fn check(spec: &str, expected: &[&str]) {
    let found = lines(&policy_of(spec).err().unwrap_or_default());
    let agrees = found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| f.starts_with(e));
    assert!(agrees, "{spec}\nfound    {found:#?}\nexpected {expected:#?}");
}

/// Both directions of a policy with this spec, in words, and its warnings.
#[track_caller]
fn check_rules(spec: &str, expected: &str, warnings: &[&str]) {
    let (policy, found) = policy_of(spec).unwrap_or_else(|e| panic!("{:#?}", lines(&e)));
    let words = |rules: &Option<Vec<Rule>>| match rules {
        None => "-".to_owned(),
        Some(rules) => {
            let rules: Vec<String> = rules
                .iter()
                .map(|rule| match &rule.peers {
                    Peers::All => format!("any: {}", rule.ports),
                    Peers::Listed(peers) => {
                        let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
                        format!("{}: {}", peers.join(" + "), rule.ports)
                    }
                })
                .collect();
            format!("[{}]", rules.join("; "))
        }
    };
    let found_rules = format!(
        "{} | {} | {}",
        policy.subject,
        words(&policy.ingress),
        words(&policy.egress)
    );
    assert_eq!(found_rules, expected, "{spec}");
    let found: Vec<FieldError> = found.into_iter().map(|(_, warning)| warning).collect();
    assert_eq!(lines(&found), warnings, "{spec}");
}

#[test]
fn policies_get_the_defaults_of_the_api() {
    let all = "all pods in namespace shop";
    check_rules("null", &format!("{all} | [] | -"), &[]);
    check_rules("{}", &format!("{all} | [] | -"), &[]);
    check_rules("{podSelector: {}, ingress: null}", &format!("{all} | [] | -"), &[]);
    check_rules(
        "{policyTypes: [], ingress: [{}]}",
        &format!("{all} | [any: all] | -"),
        &[],
    );
    check_rules("{egress: [{}]}", &format!("{all} | [] | [any: all]"), &[]);
    check_rules("{egress: []}", &format!("{all} | [] | -"), &[]);
    check_rules("{policyTypes: [Egress]}", &format!("{all} | - | []"), &[]);
    check_rules("{policyTypes: [Ingress, Egress]}", &format!("{all} | [] | []"), &[]);
    check_rules(
        "{ingress: [{from: null, ports: null}]}",
        &format!("{all} | [any: all] | -"),
        &[],
    );
    check_rules(
        "{ingress: [{from: [], ports: []}]}",
        &format!("{all} | [any: all] | -"),
        &[],
    );
    check_rules(
        "{ingress: [{ports: [{}, {protocol: UDP}, {port: 80}, {port: http}, {port: 1, endPort: 2, protocol: SCTP}]}]}",
        &format!("{all} | [any: TCP, UDP, 80/TCP, http/TCP, 1-2/SCTP] | -"),
        &[],
    );
}

#[test]
fn rules_of_a_direction_that_is_not_listed_are_ignored_with_a_warning() {
    check_rules(
        "{policyTypes: [Ingress], egress: [{}]}",
        "all pods in namespace shop | [] | -",
        &["spec.egress: these rules have no effect: add Egress to spec.policyTypes, or remove them"],
    );
    check_rules(
        "{policyTypes: [Egress], ingress: [{}]}",
        "all pods in namespace shop | - | []",
        &["spec.ingress: these rules have no effect: add Ingress to spec.policyTypes, or remove them"],
    );
}

#[test]
fn peers_look_where_the_api_says() {
    check_rules(
        "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}, \
         {namespaceSelector: {}}, {namespaceSelector: {matchLabels: {team: a}}, podSelector: {}}, \
         {namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchExpressions: \
         [{key: x, operator: NotIn, values: [b, a]}, {key: y, operator: Exists}, \
         {key: z, operator: DoesNotExist, values: []}]}}]}]}",
        "pods app=db in namespace shop | [pods app=api in namespace shop + all pods in all namespaces + \
         all pods in namespaces team=a + pods x notin (a,b),y,!z in namespaces team=b: all] | -",
        &[],
    );
}

#[test]
fn cidrs_are_read_as_the_api_server_reads_them() {
    let check = |cidr: &str, expected: &str, warning: Option<&str>| {
        let path = "spec.ingress[0].from[0].ipBlock.cidr";
        let warning = warning.map(|w| format!("{path}: \"{cidr}\" {w}"));
        check_rules(
            &format!("{{ingress: [{{from: [{{ipBlock: {{cidr: '{cidr}'}}}}]}}]}}"),
            &format!("all pods in namespace shop | [{expected}: all] | -"),
            &warning.as_deref().into_iter().collect::<Vec<_>>(),
        );
    };
    check("10.0.0.0/8", "10.0.0.0/8", None);
    check("0.0.0.0/0", "0.0.0.0/0", None);
    check("::/0", "::/0", None);
    check("2001:DB8:0::/48", "2001:db8::/48", None);
    let host_bits = "has bits set after its prefix length, which are ignored and which newer Kubernetes refuses: write";
    check(
        "10.1.2.3/8",
        "10.0.0.0/8",
        Some(&format!("{host_bits} 10.0.0.0/8, or 10.1.2.3/32 for that one address")),
    );
    let legacy = "is a form that newer Kubernetes refuses: write";
    check("010.000.000.000/8", "10.0.0.0/8", Some(&format!("{legacy} 10.0.0.0/8")));
    check("10.0.0.0/08", "10.0.0.0/8", Some(&format!("{legacy} 10.0.0.0/8")));
    check(
        "::ffff:10.0.0.0/104",
        "10.0.0.0/8",
        Some(&format!("{legacy} 10.0.0.0/8")),
    );
}

#[test]
fn malformed_cidrs_are_refused() {
    for cidr in [
        "10.0.0.0",
        "10.0.0.0/33",
        "10.0.0/8",
        "10.0.0.0/+8",
        "10.0.0.0/",
        "::/129",
        "fe80::%eth0/64",
        "x/8",
        "256.0.0.0/8",
        "1.2.3.4.5/8",
        "/8",
        "10.0.0.0/8/8",
        " 10.0.0.0/8",
    ] {
        let spec = format!("{{egress: [{{to: [{{ipBlock: {{cidr: '{cidr}'}}}}]}}]}}");
        check(
            &spec,
            &[&format!(
                "spec.egress[0].to[0].ipBlock.cidr: \"{cidr}\" is not a CIDR: write "
            )],
        );
    }
}

#[test]
fn exceptions_lie_strictly_within_their_block() {
    let except = |cidr: &str, except: &str| {
        format!("{{ingress: [{{from: [{{ipBlock: {{cidr: '{cidr}', except: ['{except}']}}}}]}}]}}")
    };
    let path = "spec.ingress[0].from[0].ipBlock.except[0]: ";
    check(&except("10.0.0.0/8", "10.1.0.0/16"), &[]);
    check(&except("10.0.0.1/8", "10.1.0.0/16"), &[]);
    check(&except("2001:db8::/32", "2001:db8:1::/48"), &[]);
    check(
        &except("10.0.0.0/8", "10.0.0.0/8"),
        &[&format!("{path}10.0.0.0/8 is the whole block")],
    );
    check(
        &except("10.0.0.0/16", "10.0.0.0/8"),
        &[&format!("{path}10.0.0.0/8 does not lie within 10.0.0.0/16")],
    );
    check(
        &except("10.0.0.0/8", "11.0.0.0/16"),
        &[&format!("{path}11.0.0.0/16 does not")],
    );
    check(
        &except("10.0.0.0/8", "2001:db8::/64"),
        &[&format!("{path}2001:db8::/64 does not")],
    );
    check(
        &except("10.0.0.0/8", "nonsense"),
        &[&format!("{path}\"nonsense\" is not a CIDR")],
    );
    check(
        &except("nonsense", "nonsense"),
        &["spec.ingress[0].from[0].ipBlock.cidr: "],
    );
}

#[test]
fn ports_are_checked_like_the_api_server_checks_them() {
    let port = |port: &str| format!("{{ingress: [{{ports: [{{{port}}}]}}]}}");
    let path = "spec.ingress[0].ports[0]";
    for good in [
        "port: 1",
        "port: 65535",
        "port: 80, endPort: 80",
        "port: 80, endPort: 65535",
        "port: a-1",
        "port: x15-characters4",
    ] {
        check(&port(good), &[]);
    }
    for bad in [
        "port: 0",
        "port: 65536",
        "port: -1",
        "port: ''",
        "port: UPPER",
        "port: a--b",
        "port: -a",
        "port: a-",
        "port: a_b",
        "port: sixteen-letters1",
        "port: '8080'",
    ] {
        check(&port(bad), &[&format!("{path}.port: ")]);
    }
    for bad in [
        "port: 80, endPort: 79",
        "port: 80, endPort: 65536",
        "port: http, endPort: 80",
        "endPort: 80",
    ] {
        check(&port(bad), &[&format!("{path}.endPort: ")]);
    }
    check(
        &port("port: 0, endPort: -1"),
        &[
            &format!("{path}.endPort: -1"),
            &format!("{path}.port: 0"),
            &format!("{path}.endPort: endPort -1"),
        ],
    );
    check(
        &port("protocol: tcp, port: 80"),
        &[&format!("{path}.protocol: \"tcp\" is not a protocol: write TCP")],
    );
    check(&port("protocol: ''"), &[&format!("{path}.protocol: \"\" is not")]);
    check(&port("protocol: ICMP"), &[&format!("{path}.protocol: \"ICMP\" is not")]);
}

#[test]
fn selectors_are_checked_like_the_api_server_checks_them() {
    let long = "a".repeat(64);
    let selector = |s: &str| format!("{{podSelector: {{{s}}}}}");
    for good in [
        "matchLabels: {a: ''}",
        "matchLabels: {example.com/a_b.c: X-1}",
        "matchExpressions: [{key: a, operator: In, values: ['']}]",
    ] {
        check(&selector(good), &[]);
    }
    let labels = "spec.podSelector.matchLabels";
    check(
        &selector("matchLabels: {'': a}"),
        &[&format!("{labels}[]: \"\" is not a label key")],
    );
    check(&selector("matchLabels: {-a: a}"), &[&format!("{labels}[-a]: ")]);
    check(&selector("matchLabels: {a/b/c: a}"), &[&format!("{labels}[a/b/c]: ")]);
    check(&selector("matchLabels: {UP/a: a}"), &[&format!("{labels}[UP/a]: ")]);
    check(&selector("matchLabels: {a: b c}"), &[&format!("{labels}[a]: ")]);
    check(
        &selector(&format!("matchLabels: {{{long}: {long}}}")),
        &[&format!("{labels}[{long}]: "), &format!("{labels}[{long}]: ")],
    );
    let item = "spec.podSelector.matchExpressions[0]";
    check(
        &selector("matchExpressions: [{key: a, operator: in, values: [b]}]"),
        &[&format!("{item}.operator: ")],
    );
    check(
        &selector("matchExpressions: [{key: a, operator: In}]"),
        &[&format!("{item}.values: ")],
    );
    check(
        &selector("matchExpressions: [{key: a, operator: NotIn, values: []}]"),
        &[&format!("{item}.values: ")],
    );
    check(
        &selector("matchExpressions: [{key: a, operator: DoesNotExist, values: [b]}]"),
        &[&format!("{item}.values: ")],
    );
    check(
        &selector("matchExpressions: [{operator: In, values: [b, '*']}]"),
        &[&format!("{item}.key: "), &format!("{item}.values[1]: ")],
    );
}

#[test]
fn peers_are_of_one_kind() {
    let peer = |p: &str| format!("{{egress: [{{to: [{{podSelector: {{}}}}, {{{p}}}]}}]}}");
    check(&peer(""), &["spec.egress[0].to[1]: the peer is empty"]);
    check(
        &peer("ipBlock: {cidr: ::/0}, namespaceSelector: {}"),
        &["spec.egress[0].to[1]: ipBlock stands beside"],
    );
    check(
        &peer("ipBlock: {cidr: ''}"),
        &["spec.egress[0].to[1].ipBlock.cidr: the block has no CIDR"],
    );
}

#[test]
fn policy_types_are_two_at_most() {
    check(
        "{policyTypes: [Ingress, Egress, Egress]}",
        &["spec.policyTypes: more than two"],
    );
    check(
        "{policyTypes: [Ingress, '']}",
        &["spec.policyTypes[1]: \"\" is not a policy type"],
    );
    check("{policyTypes: [Ingress, Ingress]}", &[]);
}
