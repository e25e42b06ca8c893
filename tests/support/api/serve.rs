//! Requests: which object or collection, which verb, which fault; and the answers but for those of watches.

use std::collections::HashMap;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State as Extract};
use axum::http::{Method, Response, StatusCode, header};
use serde_json::{Value, json};

use super::faults::{Fault, Verb};
use super::state::{Call, Kind, State};
use super::{Inner, watch};

pub(super) fn router(inner: Inner) -> Router {
    Router::new().fallback(handle).with_state(inner)
}

/// What a URL names.
struct Target {
    kind: Kind,
    namespace: String,
    name: Option<String>,
    /// Whether it is the status of the object.
    status: bool,
}

async fn handle(Extract(inner): Extract<Inner>, request: Request) -> Response<Body> {
    let Some(target) = target(request.uri().path()) else {
        return refusal(404, "NotFound", "the server could not find the requested resource");
    };
    let query: HashMap<String, String> = parameters(request.uri().query().unwrap_or_default());
    let verb = verb(request.method(), &target, &query);
    let given = request.headers().get(header::AUTHORIZATION);
    let given = given.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (authorized, silent) = {
        let mut state = inner.state();
        state.calls.push(Call {
            verb,
            kind: target.kind,
            query: request.uri().query().unwrap_or_default().to_owned(),
        });
        let authorized = state.authorized.is_empty() || state.authorized.iter().any(|value| value == given);
        (authorized, state.silent)
    };
    if silent {
        std::future::pending::<()>().await;
    }
    if !authorized {
        return refusal(401, "Unauthorized", "Unauthorized");
    }
    if inner.state().outage {
        return refusal(
            503,
            "ServiceUnavailable",
            "the server is currently unable to handle the request",
        );
    }
    let fault = inner.state().faults.meet(target.kind, verb);
    match fault {
        Some(Fault::Status(410)) => return refusal(410, "Expired", "too old resource version"),
        Some(Fault::Status(code)) => return refusal(code, "", "as the test wants it"),
        Some(Fault::TooManyRequests(seconds)) => {
            let mut response = refusal(429, "TooManyRequests", "please try again later");
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            return response;
        }
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Slow(delay)) => tokio::time::sleep(delay).await,
        Some(Fault::Held) => inner.let_go().await,
        Some(Fault::Garbage) if verb == Verb::List => return answer(StatusCode::OK, "<html>log in</html>".to_owned()),
        _ => {}
    }
    if matches!(verb, Verb::Watch | Verb::StreamingList) {
        return watch::answer(inner, target.kind, verb, &query, fault);
    }
    let body = to_bytes(request.into_body(), 1 << 22).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if verb == Verb::List {
        return list(&mut inner.state(), &target, &query);
    }
    inner.change(|state| single(state, verb, &target, body))
}

fn target(path: &str) -> Option<Target> {
    let path = path.trim_matches('/');
    let (group, rest) = match path.strip_prefix("api/v1/") {
        Some(rest) => ("", rest),
        None => path.strip_prefix("apis/")?.split_once("/v1/")?,
    };
    let kind = |plural: &str| {
        Kind::SERVED
            .into_iter()
            .find(|k| k.plural() == plural && k.group() == group)
    };
    let target = |kind, namespace: &str, name: Option<&str>, status| Target {
        kind,
        namespace: namespace.to_owned(),
        name: name.map(str::to_owned),
        status,
    };
    let parts: Vec<&str> = rest.split('/').collect();
    Some(match parts[..] {
        [plural] => target(kind(plural)?, "", None, false),
        ["namespaces", namespace, plural] => target(kind(plural)?, namespace, None, false),
        ["namespaces", namespace, plural, name] => target(kind(plural)?, namespace, Some(name), false),
        ["namespaces", namespace, plural, name, "status"] => target(kind(plural)?, namespace, Some(name), true),
        [plural, name] => target(kind(plural)?, "", Some(name), false),
        _ => return None,
    })
}

fn verb(method: &Method, target: &Target, query: &HashMap<String, String>) -> Verb {
    let is = |key: &str| query.get(key).is_some_and(|v| v == "true");
    match method.as_str() {
        "POST" => Verb::Create,
        "PUT" => Verb::Update,
        "PATCH" => Verb::Patch,
        "DELETE" => Verb::Delete,
        _ if target.name.is_some() => Verb::Get,
        _ if is("watch") && is("sendInitialEvents") => Verb::StreamingList,
        _ if is("watch") => Verb::Watch,
        _ => Verb::List,
    }
}

fn list(state: &mut State, target: &Target, query: &HashMap<String, String>) -> Response<Body> {
    let (id, first) = match query.get("continue") {
        None => {
            // The names of snapshots are never used again, and the tests are short: nobody tidies up.
            let id = state.snapshots.len() as u64;
            let all = (state.version(), state.select(target.kind, only(query)));
            state.snapshots.insert(id, all);
            (id, 0)
        }
        Some(token) => {
            let (id, first) = token.split_once('.').unwrap();
            (id.parse().unwrap(), first.parse().unwrap())
        }
    };
    let limit = query.get("limit").map_or(usize::MAX, |l| l.parse().unwrap());
    let (version, all) = &state.snapshots[&id];
    let next = all.len().min(first + limit.min(all.len()));
    let token = if next < all.len() {
        format!("{id}.{next}")
    } else {
        String::new()
    };
    let items = all[first..next].join(",");
    let kind = target.kind;
    let text = format!(
        r#"{{"kind":"{kind:?}List","apiVersion":"{}","metadata":{{"resourceVersion":"{version}","continue":"{token}"}},"items":[{items}]}}"#,
        kind.api_version()
    );
    if token.is_empty() {
        state.snapshots.insert(id, (0, Vec::new()));
    }
    answer(StatusCode::OK, text)
}

fn single(state: &mut State, verb: Verb, target: &Target, mut body: Value) -> Response<Body> {
    let kind = target.kind;
    let name = match &target.name {
        Some(name) => name.clone(),
        None => body["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
    };
    let Some(before) = state.get(kind, &target.namespace, &name) else {
        if verb == Verb::Create {
            if kind.is_namespaced() {
                body["metadata"]["namespace"] = json!(target.namespace);
            }
            return answer(StatusCode::CREATED, state.put(kind, body).to_string());
        }
        return refusal(404, "NotFound", &format!("{} \"{name}\" not found", kind.plural()));
    };
    let text = match verb {
        Verb::Create => {
            return refusal(
                409,
                "AlreadyExists",
                &format!("{} \"{name}\" already exists", kind.plural()),
            );
        }
        Verb::Delete => {
            state.delete(kind, &target.namespace, &name);
            before.to_string()
        }
        Verb::Update => state.put(kind, body).to_string(),
        Verb::Patch => {
            let mut object: Value = serde_json::from_str(&before).unwrap();
            if target.status {
                body = json!({ "status": body["status"] });
            }
            merge(&mut object, body);
            state.put(kind, object).to_string()
        }
        _ => before.to_string(),
    };
    answer(StatusCode::OK, text)
}

/// The one name that a client asks for; of field selectors nothing else is known here.
pub(super) fn only(query: &HashMap<String, String>) -> Option<&str> {
    let selector = query.get("fieldSelector")?;
    Some(selector.strip_prefix("metadata.name=").unwrap())
}

/// A JSON merge patch.
fn merge(object: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *object = patch;
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(&key);
        } else {
            merge(&mut object[key.as_str()], value);
        }
    }
}

/// The parameters of a URL; nothing that clients send here needs more than `%` and `+` undone.
fn parameters(query: &str) -> HashMap<String, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(key, value)| (key.to_owned(), value.replace("%3D", "=")))
        .collect()
}

pub(super) fn refusal(code: u16, reason: &str, message: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": "Failure", "reason": reason, "message": message, "code": code,
    });
    answer(StatusCode::from_u16(code).unwrap(), status.to_string())
}

fn answer(code: StatusCode, text: String) -> Response<Body> {
    let response = Response::builder().status(code);
    response
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(text))
        .unwrap()
}
