//! Policies of kinds that are not read: whoever asks is told beside the answer, in every command.

use std::path::Path;

use serde_json::Value;

use crate::run;

const POLICY: &str = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n\
                      metadata: {name: no-db}\nspec: {tier: Admin, priority: 1}\n";

/// The shop, with a policy that is not read.
fn shop(folder: &Path, policy: &str) -> String {
    std::fs::write(folder.join("tier.yaml"), policy).unwrap();
    let test = "apiVersion: palisade.dev/v1alpha1\nkind: ConnectivityTest\nmetadata: {name: t}\nresources: [RESOURCES, tier.yaml]\n\
                cases: [{name: c, from: shop/deployment/web, to: shop/statefulset/db, ports: 5432, expect: deny}]\n";
    let shop = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/shop");
    std::fs::write(folder.join("test.yaml"), test.replace("RESOURCES", shop)).unwrap();
    folder.join("tier.yaml").display().to_string()
}

#[test]
fn every_command_tells_of_policies_that_it_does_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let tier = &*shop(folder.path(), POLICY);
    let test = &*folder.path().join("test.yaml").display().to_string();
    let ends = [
        "--from",
        "shop/deployment/web",
        "--to",
        "shop/statefulset/db",
        "--port",
        "5432",
    ];
    let explain = [&["explain", "shop", tier][..], &ends].concat();
    let said = format!(
        "{tier}:1:1: ClusterNetworkPolicy no-db: a policy of policy.networking.k8s.io/v1alpha2, which is not read: every answer is as if it were not there [unread-object]"
    );
    for (args, code) in [
        (&explain[..], 0),
        (&["matrix", "shop", tier, "--port", "5432"], 0),
        (&["compile", "shop", tier, "-o", "json"], 0),
        (&["test", test], 0),
        (&["diff", "shop", tier, "--overlay"], 0),
    ] {
        let (found, _, stderr) = run(args);
        assert_eq!(found, Some(code), "{args:?}: {stderr}");
        assert_eq!(
            stderr.matches(&format!("warning: {said}\n")).count(),
            1,
            "{args:?}: {stderr}"
        );
    }
    let (_, stdout, _) = run(&["compile", "shop", tier]);
    assert!(stdout.contains("; passed over: 1 ClusterNetworkPolicy, "), "{stdout}");
    assert!(stdout.contains(&format!("warning: {said}\n")), "{stdout}");
}

#[test]
fn lint_finds_them_unless_it_is_told_not_to() {
    let folder = tempfile::tempdir().unwrap();
    let tier = &*shop(folder.path(), POLICY);
    let only = ["--only", "unread-object"];
    let lint = |form: &str| run(&[&["lint", "shop", tier, "-o", form], &only[..]].concat());
    let (code, report, _) = lint("json");
    let report: Value = serde_json::from_str(&report).unwrap();
    let finding = &report["findings"][0];
    assert_eq!((code, &report["summary"]["warnings"]), (Some(1), &Value::from(1)));
    assert_eq!(finding["object"], "ClusterNetworkPolicy no-db");
    assert_eq!(
        (finding["file"].as_str(), finding["line"].as_u64()),
        (Some(tier), Some(1))
    );
    for (form, says) in [
        ("text", "1:1 warning ClusterNetworkPolicy no-db: a policy of"),
        (
            "github",
            ",line=1,col=1,title=unread-object::ClusterNetworkPolicy no-db: a policy of",
        ),
        ("sarif", "\"startLine\": 1"),
    ] {
        let (code, report, _) = lint(form);
        assert_eq!(code, Some(1), "{form}");
        assert!(report.contains(says), "{form}: {report}");
    }
    let annotated = |rules: &str| {
        let name = format!("{{name: no-db, annotations: {{palisade.dev/lint-ignore: {rules}}}}}");
        shop(folder.path(), &POLICY.replace("{name: no-db}", &name));
        run(&["lint", "shop", tier, "--only", "unread-object,unknown-lint-rule"])
    };
    let (code, report, _) = annotated("unread-object");
    assert_eq!((code, &*report), (Some(0), "nothing found, 1 ignored\n"));
    let (_, report, _) = annotated("unread");
    assert!(
        report.contains("tier.yaml\n") && report.contains("[unknown-lint-rule]"),
        "{report}"
    );
}
