//! What the API server permits: one SelfSubjectAccessReview for each verb that the agent uses.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Finding, Verdict};
use crate::agent::source::{Access, Resource, Target, reason};

const CHECK: &str = "rbac";
const VERBS: [&str; 2] = ["list", "watch"];

/// What the agent can do without.
const EVENTS: &str = "create events";

/// How long all questions together may take.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn check(cluster: Option<&Target>) -> Finding {
    let Some(target) = cluster else {
        return Finding::of(
            CHECK,
            Verdict::Skipped,
            "no API server is named",
            "name one with --kubeconfig FILE [--context NAME], or run this in the agent's pod",
        );
    };
    let failed = |error: String, remedy: &str| Finding::of(CHECK, Verdict::Failed, error, remedy);
    let denied = |error| {
        failed(
            error,
            "see that the API server can be reached from here, and that the credentials are valid",
        )
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return denied(error.to_string()),
    };
    // Within the runtime, for the client has a task of its own.
    let access = match runtime.block_on(async { Access::new(target.clone()) }) {
        Ok(access) => access,
        Err(error) => {
            return failed(
                error.to_string(),
                "name a kubeconfig, and a context in it, as kubectl would take them: --kubeconfig FILE [--context NAME]",
            );
        }
    };
    let asked = runtime.block_on(async { tokio::time::timeout(PATIENCE, missing(&access)).await });
    match asked {
        Err(_) => denied(format!("the API server did not answer within {} s", PATIENCE.as_secs())),
        Ok(Err(error)) => denied(error),
        Ok(Ok(missing)) if missing.is_empty() => Finding::ok(
            CHECK,
            "these credentials may list and watch pods, namespaces, nodes and networkpolicies, and create events",
        ),
        Ok(Ok(missing)) => {
            let only_events = missing.iter().all(|right| right == EVENTS);
            Finding::of(
                CHECK,
                if only_events { Verdict::Warning } else { Verdict::Failed },
                format!("these credentials may not {}", missing.join(", ")),
                match only_events {
                    true => {
                        "bind the ClusterRole of deploy/base/rbac.yaml to them, or do without Events on policies that cannot be \
                         enforced as they are written"
                    }
                    false => "bind the ClusterRole of deploy/base/rbac.yaml to them",
                },
            )
        }
    }
}

/// What is not permitted.
async fn missing(access: &Access) -> Result<Vec<String>, String> {
    let client = access.client();
    let reads = Resource::ALL
        .into_iter()
        .flat_map(|resource| VERBS.map(|verb| (resource.group(), resource.to_string(), verb)));
    let rights: Vec<_> = reads
        .chain([("events.k8s.io", "events".to_owned(), "create")])
        .collect();
    let mut missing = Vec::new();
    for (group, resource, verb) in rights {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"group": group, "resource": resource, "verb": verb}},
        });
        let request = http::Request::post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
            .header("Content-Type", "application/json")
            .body(review.to_string().into_bytes())
            .map_err(|error| error.to_string())?;
        let answer: Value = client.request(request).await.map_err(|error| reason(&error))?;
        if answer["status"]["allowed"] != true {
            missing.push(format!("{verb} {resource}"));
        }
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use axum::routing::post;

    use super::*;

    /// What comes of an API server that permits what `allows` says, asked with group, resource and verb.
    fn asked(allows: fn(&str, &str, &str) -> bool) -> Finding {
        let answer = move |review: String| async move {
            let review: Value = serde_json::from_str(&review).expect("JSON");
            let asked = &review["spec"]["resourceAttributes"];
            let word = |field: &str| asked[field].as_str().unwrap_or("none").to_owned();
            let allowed = allows(&word("group"), &word("resource"), &word("verb"));
            json!({"kind": review["kind"], "apiVersion": review["apiVersion"], "status": {"allowed": allowed}})
                .to_string()
        };
        let router = axum::Router::new().route("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", post(answer));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .expect("bind");
        let address = listener.local_addr().expect("address");
        runtime.spawn(async move { axum::serve(listener, router).await });
        let file = tempfile::NamedTempFile::new().expect("a file");
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "c", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        std::fs::write(file.path(), kubeconfig.to_string()).expect("written");
        check(Some(&Target::Kubeconfig {
            file: Some(file.path().to_owned()),
            context: None,
        }))
    }

    #[test]
    fn each_verb_is_asked_for() {
        let all = asked(|group, resource, _| {
            let expected = match resource {
                "networkpolicies" => "networking.k8s.io",
                "events" => "events.k8s.io",
                _ => "",
            };
            group == expected
        });
        assert_eq!(all.verdict, Verdict::Ok, "{all:?}");
        let quiet = asked(|_, resource, _| resource != "events");
        assert_eq!(
            (quiet.verdict, quiet.found.as_str()),
            (Verdict::Warning, "these credentials may not create events")
        );
        let some = asked(|_, resource, verb| (resource, verb) != ("pods", "watch"));
        assert_eq!(some.verdict, Verdict::Failed);
        assert_eq!(some.found, "these credentials may not watch pods");
    }

    #[test]
    fn no_cluster_is_no_failure_and_no_answer_is_one() {
        assert_eq!(check(None).verdict, Verdict::Skipped);
        let target = Target::Kubeconfig {
            file: Some("/nonexistent".into()),
            context: None,
        };
        let finding = check(Some(&target));
        assert_eq!(finding.verdict, Verdict::Failed);
        assert!(
            finding
                .remedy
                .is_some_and(|remedy| remedy.contains("--kubeconfig FILE"))
        );

        let file = tempfile::NamedTempFile::new().expect("a file");
        // No port of this machine; with what is behind the client's error.
        let kubeconfig = json!({
            "current-context": "c", "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
            "users": [], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        std::fs::write(file.path(), kubeconfig.to_string()).expect("written");
        let finding = check(Some(&Target::Kubeconfig {
            file: Some(file.path().to_owned()),
            context: None,
        }));
        assert!(finding.found.contains("Connection refused"), "{finding:?}");
    }
}
