//! Types of our own, as the test files of the `test` command are.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::check_errors;
use crate::manifests::{DecodeError, decode, documents};

/// A type of our own, as the test files of the `test` command are.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Case {
    name: String,
    #[serde(default)]
    port_count: u16,
    expect: Expect,
    to: Option<OneOrMany>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    parts: Vec<Case>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Expect {
    Allow,
    Deny,
    Both { first: bool, second: bool },
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[track_caller]
fn check(yaml: &str, expected: &[&str]) {
    let parsed = documents(yaml);
    assert_eq!(parsed.errors, []);
    let errors = decode::<Case>(&parsed.documents[0]).expect_err("something is wrong");
    let line = |e: &DecodeError| format!("{}:{} {} {}", e.position.line, e.position.column, e.path, e.message);
    assert_eq!(errors.iter().map(line).collect::<Vec<_>>(), expected);
}

#[test]
fn everything_that_a_type_can_hold_is_decoded() {
    let yaml = "name: a\nexpect: {both: {first: on, second: false}}\nto: [u, v]\nlabels: {a: b}\nparts:\n\
                - {name: '1', expect: deny, to: x, portCount: 0x10}\n- {name: b, expect: allow, to: ~}\n";
    let case: Case = decode(&documents(yaml).documents[0]).expect("all is well");
    let part = |name: &str, expect, port_count, to| Case {
        name: name.into(),
        port_count,
        expect,
        to,
        labels: BTreeMap::new(),
        parts: vec![],
    };
    let expected = Case {
        labels: [("a".to_owned(), "b".to_owned())].into(),
        parts: vec![
            part("1", Expect::Deny, 16, Some(OneOrMany::One("x".into()))),
            part("b", Expect::Allow, 0, None),
        ],
        ..part(
            "a",
            Expect::Both {
                first: true,
                second: false,
            },
            0,
            Some(OneOrMany::Many(vec!["u".into(), "v".into()])),
        )
    };
    assert_eq!(case, expected);
}

#[test]
fn every_unknown_field_is_named_with_its_place() {
    check(
        "name: a\nexpect: deny\nportcount: 1\nlabels: {any: thing}\nparts:\n- name: b\n  expected: deny\n  \
         expect: deny\n  x: {y: z}\nother: 1\n",
        &[
            "3:1 portcount \"portcount\" is not a field here: did you mean portCount?",
            "7:3 parts[0].expected \"expected\" is not a field here: did you mean expect?",
            "9:3 parts[0].x \"x\" is not a field here: remove it",
            "10:1 other \"other\" is not a field here: remove it",
        ],
    );
}

#[test]
fn every_value_of_a_wrong_type_is_named_beside_the_unknown_fields() {
    check(
        "name: a\nexpect: 1\nparts:\n- name: [b]\n  expect: dney\n- {name: c, expect: deny, foo: 1}\n- x\n\
         - {name: [d], expect: deny}\nbar: 1\n",
        &[
            "2:9 expect expected allow, deny or both, found the number 1",
            "4:9 parts[0].name expected a string, found a list",
            "5:11 parts[0].expect \"dney\" is not known here: write allow, deny or both",
            "6:27 parts[1].foo \"foo\" is not a field here: remove it",
            "7:3 parts[2] expected a mapping, found the string \"x\"",
            "8:10 parts[3].name expected a string, found a list",
            "9:1 bar \"bar\" is not a field here: remove it",
        ],
    );
    check(
        "nam: a\nparts:\n- name: [b]\n",
        &[
            "1:1  the field name is missing: write it",
            "1:1 nam \"nam\" is not a field here: did you mean name?",
            "3:9 parts[0].name expected a string, found a list",
        ],
    );
    check("name: a\n", &["1:1  the field expect is missing: write it"]);
    check(
        "name: 1\n",
        &["1:7 name expected a string, found the number 1: write it in quotes, \"1\""],
    );
    check(
        "name: a\nexpect: dney\n",
        &["2:9 expect \"dney\" is not known here: write allow, deny or both"],
    );
    check(
        "name: a\nexpect: [deny]\n",
        &["2:9 expect expected allow, deny or both, found a list"],
    );
    check(
        "name: a\nportCount: '80'\n",
        &["2:12 portCount expected a whole number, found the string \"80\": write 80 without quotes"],
    );
    check(
        "name: a\nportCount: 65536\n",
        &["2:12 portCount invalid value: integer `65536`, expected u16"],
    );
    check(
        "name: a\nto: {}\n",
        &["2:5 to data did not match any variant of untagged enum OneOrMany"],
    );
    check(
        "name: a\nexpect: {both: {first: 'true'}}\n",
        &["2:24 expect.both.first expected a boolean, found the string \"true\": write true without quotes"],
    );
    check(
        "name: a\nlabels: [a]\n",
        &["2:9 labels expected a mapping, found a list"],
    );
}

#[test]
fn one_run_reports_every_error_of_an_object() {
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a, namespace: x}\nspec:\n  podSelector: {}\n";
    check_errors(
        &format!("{policy}  ingres: []\n  ingress: [{{prots: [], ports: [{{port: 0}}]}}]\n"),
        &[
            "f.yaml:6:3: NetworkPolicy x/a: spec.ingres: \"ingres\" is not a field here: did you mean ingress?",
            "f.yaml:7:14: NetworkPolicy x/a: spec.ingress[0].prots: \"prots\" is not a field here: did you mean ports?",
            "f.yaml:7:40: NetworkPolicy x/a: spec.ingress[0].ports[0].port: 0 is not a port: write a number from 1 to 65535",
        ],
    );
    check_errors(
        &format!("{policy}  ingress: {{}}\n  foo: 1\n  egress: [{{to: 1}}]\n"),
        &[
            "f.yaml:6:12: NetworkPolicy x/a: spec.ingress: expected a list, found a mapping",
            "f.yaml:7:3: NetworkPolicy x/a: spec.foo: \"foo\" is not a field here: remove it",
            "f.yaml:8:17: NetworkPolicy x/a: spec.egress[0].to: expected a list, found the number 1",
        ],
    );
}
