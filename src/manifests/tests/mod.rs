//! Text in; the error output, or what was loaded, out.

mod decode;
mod files;
mod unread;
mod workloads;

use std::path::Path;

use policy_compiler::policy::Enforcement;

use super::*;

fn policy(spec: &str) -> String {
    format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: ns}}\n{spec}")
}

/// The error output of a text, without the count at its end.
#[track_caller]
fn check_errors(text: &str, expected: &[&str]) {
    let errors = match parse("f.yaml", text) {
        Ok(loaded) => panic!("loaded: {loaded:#?}"),
        Err(errors) => errors.errors().iter().map(ToString::to_string).collect::<Vec<_>>(),
    };
    assert_eq!(errors, expected);
}

#[track_caller]
fn loaded(text: &str) -> Loaded {
    parse("f.yaml", text).unwrap_or_else(|e| panic!("{e}"))
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/manifests/testdata")
        .join(path)
}

#[test]
fn annotations_are_those_that_the_api_server_takes() {
    check_errors(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  annotations:\n    a b: x\n",
        &[
            "f.yaml:6:10: Namespace shop: metadata.annotations[a b]: \"a b\" is not an annotation key: write letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
        ],
    );
}

#[test]
fn one_run_reports_every_error_of_a_folder() {
    let folder = here("broken");
    let errors = load(std::slice::from_ref(&folder)).expect_err("every file of it is broken");
    let text = errors.to_string().replace(&format!("{}/", folder.display()), "");
    insta::assert_snapshot!(text);
}

#[test]
fn nulls_mean_what_they_mean_to_the_api() {
    for spec in [
        "",
        "spec:\n",
        "spec: {podSelector: null, ingress: null, policyTypes: null}\n",
    ] {
        let loaded = loaded(&policy(spec));
        let policy = loaded.cluster.policies.values().next().expect("one policy");
        assert_eq!(
            (policy.ingress.as_deref(), policy.egress.as_deref()),
            (Some(&[][..]), None),
            "{spec}"
        );
        assert!(policy.subject.pods.is_everything());
    }
    let nothing = "found nothing";
    check_errors(
        &policy("spec: {ingress: [null]}"),
        &[&format!(
            "f.yaml:4:18: NetworkPolicy ns/p: spec.ingress[0]: expected a mapping, {nothing}"
        )],
    );
    check_errors(
        &policy("spec:\n  podSelector:\n    matchLabels:\n      app:\n"),
        &[&format!(
            "f.yaml:7:7: NetworkPolicy ns/p: spec.podSelector.matchLabels[app]: expected a string, {nothing}: write \
             \"\" if it is to be empty"
        )],
    );
}

#[test]
fn plain_scalars_are_no_strings_when_kubernetes_says_so() {
    for (written, what) in [
        ("yes", "boolean"),
        ("on", "boolean"),
        ("1", "number"),
        ("1.5", "number"),
        ("0x1F", "number"),
    ] {
        check_errors(
            &policy(&format!("spec: {{podSelector: {{matchLabels: {{app: {written}}}}}}}")),
            &[&format!(
                "f.yaml:4:41: NetworkPolicy ns/p: spec.podSelector.matchLabels[app]: expected a string, found the \
                 {what} {written}: write it in quotes, \"{written}\""
            )],
        );
    }
    for written in ["'yes'", "\"1\"", "!!str 1", "v1", "2001-01-01", "1.2.3", "yEs"] {
        loaded(&policy(&format!(
            "spec: {{podSelector: {{matchLabels: {{app: {written}}}}}}}"
        )));
    }
}

#[test]
fn numbers_are_whole_where_they_must_be() {
    let port = |port: &str| policy(&format!("spec: {{ingress: [{{ports: [{{port: {port}}}]}}]}}"));
    let path = "f.yaml:4:34: NetworkPolicy ns/p: spec.ingress[0].ports[0].port";
    loaded(&port("80"));
    loaded(&port("8_0"));
    loaded(&port("80.0"));
    check_errors(
        &port("80.5"),
        &[&format!(
            "{path}: invalid type: floating point `80.5`, expected IntOrString"
        )],
    );
    check_errors(
        &port("99999999999"),
        &[&format!(
            "{path}: invalid value: integer `99999999999`, expected a 32-bit integer"
        )],
    );
    check_errors(
        &port("[80]"),
        &[&format!("{path}: invalid type: sequence, expected IntOrString")],
    );
}

#[test]
fn a_mode_is_one_that_there_is() {
    let audited = |mode: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  annotations:\n    palisade.dev/mode: {mode}\n---\n\
             apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{name: p, namespace: shop, annotations: {{palisade.dev/mode: {mode}}}}}\n"
        )
    };
    for (mode, expected) in [("audit", Enforcement::Audit), ("enforce", Enforcement::Enforce)] {
        let cluster = loaded(&audited(mode)).cluster;
        assert_eq!(cluster.namespaces["shop"].enforcement, Some(expected));
        let policy = cluster.policies.values().next().expect("one policy");
        assert_eq!(policy.enforcement, Some(expected));
    }
    let message = "metadata.annotations[palisade.dev/mode]: \"Audit\" is not a mode: write enforce or audit";
    check_errors(
        &audited("Audit"),
        &[
            &format!("f.yaml:6:24: Namespace shop: {message}"),
            &format!("f.yaml:10:71: NetworkPolicy shop/p: {message}"),
        ],
    );
}

#[test]
fn anchors_aliases_and_merge_keys_work_as_in_kubectl() {
    let text = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p}
spec:
  podSelector: {matchLabels: &web {app: web, tier: front}}
  ingress:
  - from:
    - podSelector: {matchLabels: {<<: *web, tier: back}}
    - podSelector: {matchLabels: {<<: [{a: '1'}, {a: '2', b: '2'}]}}
    - podSelector: {matchLabels: *web}
";
    let loaded = loaded(text);
    let policy = loaded.cluster.policies.values().next().expect("one policy");
    let rule = &policy.ingress.as_deref().expect("ingress")[0];
    let policy_compiler::policy::Peers::Listed(peers) = &rule.peers else {
        panic!("{rule:?}");
    };
    let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
    let expected = ["app=web,tier=back", "a=1,b=2", "app=web,tier=front"];
    assert_eq!(peers, expected.map(|s| format!("pods {s} in namespace default")));
}

#[test]
fn yaml_that_means_two_things_is_refused() {
    check_errors(
        "a: 1\nb: 2\na: 3\nkind: X\napiVersion: x/v1\n",
        &["f.yaml:3:1: \"a\" is already there in line 1: write it once"],
    );
    check_errors(
        "kind: X\napiVersion: x/v1\n1: a\n'1': b\n",
        &["f.yaml:4:1: \"1\" is already there in line 3: write it once"],
    );
    check_errors(
        "kind: X\napiVersion: x/v1\na: &a {x: 1}\nb:\n  x: 2\n  <<: *a\n",
        &["f.yaml:5:3: \"x\" stands before the << that also gives it: write << first"],
    );
    check_errors(
        "kind: X\napiVersion: x/v1\n<<: 1\n",
        &["f.yaml:3:1: << merges a mapping or a list of mappings: write an alias of one"],
    );
    check_errors(
        "kind: X\napiVersion: x/v1\n[a]: 1\n",
        &["f.yaml:3:1: a list cannot be a key: write a string"],
    );
    check_errors(
        "kind: X\napiVersion: x/v1\n? {a: 1}\n: 1\n",
        &["f.yaml:3:3: a mapping cannot be a key: write a string"],
    );
    check_errors(
        "kind: X\napiVersion: x/v1\n~: 1\n",
        &["f.yaml:3:1: the key is empty: write a key, in quotes if it is to be the word null"],
    );
    check_errors(
        "kind: X\napiVersion: x/v1\na: &a [*a]\n",
        &["f.yaml:3:8: the alias stands within its own anchor, or in another document: write the value out"],
    );
}

#[test]
fn a_template_is_to_be_rendered_first() {
    let render = "; if this is a template, render it first";
    check_errors(
        "kind: X\napiVersion: x/v1\na: {{ .Values.a }}\n",
        &[&format!(
            "f.yaml:3:5: a mapping cannot be a key: write a string{render}"
        )],
    );
    for text in [
        "{{- if .Values.a }}\nkind: X\n{{- end }}\n",
        "kind: X\n{{- end }}\n",
        "metadata:\n  {{- toYaml .Values.a | nindent 4 }}\nb: c\n",
        "kind: X\n{{ include \"a\" . }}\nb: c\n",
    ] {
        let errors = documents(text).errors;
        assert!(errors.iter().all(|error| error.message.ends_with(render)), "{errors:?}");
        assert_eq!(errors.len(), 1, "{errors:?}");
    }
    // What is wrong elsewhere is no template's fault.
    let errors = documents("a: \"{{ x }}\"\nb: c\nd: [\ne: f\n").errors;
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(!errors[0].message.contains("template"), "{errors:?}");
    // In quotes it is YAML, and no name.
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n";
    check_errors(
        &format!("{policy}metadata: {{name: \"{{{{ .Release.Name }}}}-x\"}}\n"),
        &[&format!(
            "f.yaml:3:18: NetworkPolicy default/{{{{ .Release.Name }}}}-x: metadata.name: \"{{{{ .Release.Name }}}}-x\" \
             is not a DNS subdomain: write lower-case letters, digits, '-' and '.', each part between dots beginning and \
             ending with a letter or digit{render}"
        )],
    );
    check_errors(
        &format!("{policy}metadata: {{name: x}}\nspec: \"{{{{ .Values.spec }}}}\"\n"),
        &[&format!(
            "f.yaml:4:7: NetworkPolicy default/x: spec: expected a mapping, found the string \"{{{{ .Values.spec }}}}\"{render}"
        )],
    );
    let twice = "\"{{ a }}\": 1\n\"{{ a }}\": 2\n";
    check_errors(
        &format!("kind: X\napiVersion: x/v1\n{twice}"),
        &[&format!(
            "f.yaml:4:1: \"{{{{ a }}}}\" is already there in line 3: write it once{render}"
        )],
    );
}

#[test]
fn bombs_are_refused_early() {
    let mut bomb = "kind: X\napiVersion: x/v1\na0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for level in 1..12 {
        let below = format!("*a{}", level - 1);
        bomb += &format!("a{level}: &a{level} [{}]\n", [below.as_str(); 10].join(", "));
    }
    let errors = parse("f.yaml", &bomb).expect_err("a bomb").to_string();
    assert!(
        errors.contains("the aliases of this file repeat more than 1000000 values"),
        "{errors}"
    );
    let deep = format!("kind: X\napiVersion: x/v1\na: {}", "- ".repeat(200));
    let errors = parse("f.yaml", &deep.replace("a: ", "a:\n "))
        .expect_err("too deep")
        .to_string();
    assert!(errors.contains("nested more than 128 levels deep"), "{errors}");
    let errors = parse("f.yaml", &"[".repeat(100_000)).expect_err("too deep").to_string();
    assert!(errors.contains("1 error"), "{errors}");
}

#[test]
fn json_is_read_as_json() {
    let text = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Pod\",\n\t\"metadata\":{\"name\":\"p\",\"namespace\":\"ns\",\n\t\t\
                \"annotations\": {\"a\": \"\\ud83d\\ude00 \\/ \\\" \\t\"}, \"labels\":{\"a\":\"b\"}},\n\t\"status\": {\"podIP\": \"x\"}\n}\n";
    check_errors(
        text,
        &["f.yaml:6:22: Pod ns/p: status.podIP: \"x\" is not an IP address: write one such as 10.9.8.7 or 2001:db8::7"],
    );
}

#[test]
fn json_is_told_from_yaml_in_flow_style() {
    let namespace = "\"apiVersion\": \"v1\", \"kind\": \"Namespace\"";
    let stream = format!(
        "{{{namespace}, \"metadata\": {{\"name\": \"a\"}}}}\n{{{namespace}, \"metadata\": {{\"name\": \"b\"}}}}"
    );
    assert_eq!(loaded(&stream).cluster.namespaces.len(), 2);
    assert_eq!(
        loaded("{apiVersion: v1, kind: Namespace, metadata: {name: a}}")
            .cluster
            .namespaces
            .len(),
        1
    );
    // A comma too many is YAML, if not JSON.
    assert_eq!(
        loaded(&format!("{{{namespace}, \"metadata\": {{\"name\": \"a\",}}}}"))
            .cluster
            .namespaces
            .len(),
        1
    );
    check_errors(
        &format!("{{{namespace},\n\t\"metadata\": {{\"name\" \"a\"}}}}"),
        &["f.yaml:2:22: malformed JSON: expected a colon"],
    );
    check_errors(
        &format!("{{{namespace},\n\"kind\": \"Namespace\", \"metadata\": {{\"name\": \"a\"}}}}"),
        &["f.yaml:2:1: \"kind\" is already there in line 1: write it once"],
    );
    check_errors(
        "{apiVersion: v1, kind: Namespace",
        &["f.yaml:2:1: malformed YAML: while parsing a flow mapping, did not find expected ',' or '}'"],
    );
}

proptest::proptest! {
    #[test]
    fn json_numbers_and_strings_are_those_of_serde_json(text in "-?[0-9]{0,3}(\\.[0-9]{0,2})?([eE][-+]?[0-9]?)?|\"([a-zé\\\\/\"]|\\\\u[dD8+][0-9a-f]{3}|\\\\[bfnrtux])*\"") {
        let ours = json::documents(&format!("[{text}]"));
        let theirs = serde_json::from_str::<Vec<serde_json::Value>>(&format!("[{text}]"));
        match (ours, theirs) {
            (Ok(ours), Ok(theirs)) => {
                let Value::List(items) = &ours.documents[0].value else {
                    panic!("{ours:?}");
                };
                for (ours, theirs) in items.iter().zip(&theirs) {
                    match &ours.value {
                        Value::String(text) => proptest::prop_assert_eq!(Some(text.as_str()), theirs.as_str()),
                        Value::Integer(n) => proptest::prop_assert_eq!(Some(*n as f64), theirs.as_f64()),
                        Value::Float(n) => proptest::prop_assert_eq!(Some(*n), theirs.as_f64()),
                        other => panic!("{other:?}"),
                    }
                }
            }
            // serde_json refuses half a surrogate pair, Go's decoder does not.
            (Ok(_), Err(error)) => {
                let error = error.to_string();
                proptest::prop_assert!(error.contains("surrogate") || error.contains("hex escape"), "{}", error);
            }
            (Err(error), Ok(theirs)) => panic!("{text}: {} {theirs:?}", error.message),
            (Err(_), Err(_)) => {}
        }
    }
}

#[test]
fn lists_give_their_items_their_kind() {
    let loaded = loaded(
        "{apiVersion: v1, kind: PodList, metadata: {}, items: [{metadata: {name: a}}, {metadata: {name: b}}]}\n---\n\
         {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Namespace, metadata: {name: ns}}, \
         {apiVersion: v1, kind: Secret}, {apiVersion: v1, kind: List, items: null}]}\n---\n\
         {apiVersion: v1, kind: NodeList}\n---\n{apiVersion: v1, kind: SecretList, items: []}\n",
    );
    let pods: Vec<String> = loaded.cluster.pods.keys().map(ToString::to_string).collect();
    assert_eq!(pods, ["default/a", "default/b"]);
    assert_eq!(loaded.cluster.namespaces.len(), 1);
    let skipped: Vec<(&str, usize)> = loaded.skipped.iter().map(|(k, n)| (k.as_str(), *n)).collect();
    assert_eq!(skipped, [("Secret", 1), ("SecretList", 1)]);
    check_errors(
        "{apiVersion: v1, kind: PodList, items: {}}",
        &["f.yaml:1:40: items is no list: write a list of objects"],
    );
    check_errors(
        "{apiVersion: v1, kind: List, items: [{}]}",
        &["f.yaml:1:38: not a manifest: write apiVersion and kind, both strings"],
    );
}

#[test]
fn empty_documents_and_other_kinds_are_passed_over() {
    let text = "---\n# nothing\n---\n---\napiVersion: palisade.dev/v1alpha1\nkind: ConnectivityTest\n---\n\
                apiVersion: crd.projectcalico.org/v1\nkind: NetworkPolicy\n---\napiVersion: v1\nkind: ConfigMap\n---\n\
                apiVersion: v1\nkind: ConfigMap\n...\n";
    let loaded = loaded(text);
    let skipped: Vec<String> = loaded.skipped.iter().map(|(k, n)| format!("{k} {n}")).collect();
    assert_eq!(
        skipped,
        [
            "ConfigMap 2",
            "ConnectivityTest 1",
            "NetworkPolicy.crd.projectcalico.org 1"
        ]
    );
    assert_eq!(loaded.cluster, Cluster::default());
    assert_eq!(parse("empty.yaml", "").map(|l| l.skipped.len()), Ok(0));
    let kustomization = parse("a/kustomization.yaml", "resources: [a.yaml]").expect("a kind of its own");
    assert_eq!(kustomization.skipped.get("Kustomization"), Some(&1));
}

#[test]
fn real_manifests_load_with_all_their_fields() {
    let text = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, creationTimestamp: null, annotations: {a: b}}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 25%, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: web}, creationTimestamp: null}
    spec:
      containers:
      - name: web
        image: nginx
        command: [a, b]
        env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]
        resources: {requests: {cpu: 1, memory: 64Mi}, limits: {cpu: 0.5}}
        livenessProbe: {httpGet: {path: /, port: http}, periodSeconds: 3}
        readinessProbe: {tcpSocket: {port: 80}}
        ports: [{name: http, containerPort: 80}]
        volumeMounts: [{name: v, mountPath: /v}]
        securityContext: {capabilities: {drop: [ALL]}, runAsNonRoot: true}
      volumes: [{name: v, emptyDir: {sizeLimit: 1Gi}}]
      tolerations: [{operator: Exists}]
status: {}
";
    assert_eq!(loaded(text).derived.len(), 2);
}

#[test]
fn warnings_name_their_place() {
    let text = policy("spec:\n  policyTypes: [Ingress]\n  egress:\n  - {}\n");
    let warnings: Vec<String> = loaded(&text).warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "f.yaml:6:3: NetworkPolicy ns/p: spec.egress: these rules have no effect: add Egress to spec.policyTypes, or remove them [rules-without-effect]",
        ]
    );
}

#[test]
fn sources_name_the_place_of_every_object() {
    let loaded = loaded(
        "# first\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}\n",
    );
    let sources: Vec<String> = loaded
        .sources
        .iter()
        .map(|(name, source)| format!("{name} {source}"))
        .collect();
    assert_eq!(sources, ["Namespace a f.yaml:2:1", "Pod default/p f.yaml:6:1"]);
}

mod arbitrary {
    use proptest::prelude::*;

    /// Pieces of which YAML, and manifests, are made.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "a",
            ": ",
            "- ",
            "\n",
            "  ",
            "{",
            "}",
            "[",
            "]",
            ", ",
            "&a ",
            "*a",
            "<<: ",
            "!!str ",
            "!x ",
            "'",
            "\"",
            "|",
            ">",
            "%",
            "? ",
            "#",
            "---\n",
            "...\n",
            "\t",
            "\\",
            "apiVersion: networking.k8s.io/v1\n",
            "kind: NetworkPolicy\n",
            "spec: ",
            "ingress: ",
            "ports: ",
            "port: 80",
            "metadata: ",
            "name: x",
            "\u{feff}",
            "\u{0}",
            "é",
            "~",
            "1",
            "items: ",
            "kind: List\n",
            "apiVersion: v1\n",
        ]);
        prop::collection::vec(piece, 0..60).prop_map(|p| p.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn text_never_panics(text in prop_oneof![pieces(), "\\PC{0,200}", any::<String>()]) {
            match super::parse("f.yaml", &text) {
                Ok(loaded) => prop_assert!(loaded.derived.len() <= loaded.cluster.pods.len()),
                Err(errors) => prop_assert!(errors.errors().iter().all(|e| e.source.position.is_some_and(|p| p.line > 0))),
            }
        }
    }
}
