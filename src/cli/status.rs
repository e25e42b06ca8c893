//! `palisade status`: the answer of the agent's `/status` goes in, text or JSON comes out.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::body::Body;
use http_body_util::{BodyExt, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::output::{Style, columns, count};
use crate::agent::status::{Half, KIND, Status};

/// The agent answers from memory.
const PATIENCE: Duration = Duration::from_secs(5);

/// Far beyond any answer, whose lists are bounded.
const LONGEST: usize = 1 << 20;

/// Asks the agent that serves there.
pub(crate) fn ask(address: SocketAddr) -> anyhow::Result<Status> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let nobody = || {
        format!(
            "no agent answers at {address}: run this on the node (or in its agent's pod), and name the agent's --http-addr if \
             it has another"
        )
    };
    let (code, body) = runtime.block_on(async {
        let answer = tokio::time::timeout(PATIENCE, get(address)).await;
        answer.with_context(nobody)?.with_context(nobody)
    })?;
    let status = serde_json::from_slice(&body).ok().filter(|s: &Status| s.kind == KIND);
    match status {
        Some(status) => Ok(status),
        None => bail!(
            "what answers at {address} is no agent of this version (it answered {code} to /status); name the agent's \
             address with --http-addr"
        ),
    }
}

async fn get(address: SocketAddr) -> anyhow::Result<(http::StatusCode, Vec<u8>)> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let request = http::Request::get(format!("http://{address}/status")).body(Body::empty())?;
    let response = client.request(request).await?;
    let code = response.status();
    let body = Limited::new(response.into_body(), LONGEST).collect().await;
    let body = body.map_err(anyhow::Error::from_boxed)?;
    Ok((code, body.to_bytes().to_vec()))
}

/// For people.
pub(crate) fn text(status: &Status) -> String {
    let node = status.enforced.as_ref().map_or("this node", |e| e.node.as_str());
    let mut out = match status.ready {
        true => format!("{}: {}\n", Style::Bold.paint(node), Style::Good.paint("ready")),
        false => format!("{}: {}\n", Style::Bold.paint(node), Style::Bad.paint("not ready")),
    };
    let mut rows = vec![("agent", format!("palisade {}", status.version))];
    if let Some(enforced) = &status.enforced {
        let denied = match (enforced.mode.as_str(), enforced.deny_action.as_str()) {
            ("audit", _) => "audit: what policy denies passes, and is recorded".to_owned(),
            (mode, action) => format!("{mode}: what policy denies meets {action}"),
        };
        let half = |half: &Half| format!("{}, {}", count(half.groups, "group"), classes(half.classes));
        let table = &enforced.table;
        rows.push(("mode", denied));
        let unknown = match enforced.unknown_pods.as_str() {
            "drop" => "pass nothing until they are known",
            _ => "are let pass until they are known",
        };
        rows.push(("new pods", unknown.to_owned()));
        let pods = count(enforced.node_pods, "pod");
        rows.push((
            "pods",
            format!("{pods} on this node, {} in the cluster", enforced.cluster_pods),
        ));
        rows.push((
            "policies",
            format!("{} of these pods", count(enforced.policies, "policy")),
        ));
        rows.push(("ingress", half(&enforced.ingress)));
        rows.push(("egress", half(&enforced.egress)));
        rows.push((
            "table",
            format!(
                "{}, {}, {}, {}",
                count(table.chains, "chain"),
                count(table.rules, "rule"),
                count(table.sets, "set"),
                count(table.elements, "element")
            ),
        ));
    }
    rows.push((
        "last apply",
        match &status.last_apply {
            Some(last) => format!(
                "{} ago: {} in {:.0} ms",
                time(last.seconds_ago),
                count(last.operations, "operation"),
                last.seconds * 1000.0
            ),
            None => "none yet".to_owned(),
        },
    ));
    if let Some(lag) = status.last_apply.and_then(|last| last.lag_seconds) {
        let words = format!("{:.0} ms from its first event until the kernel held it", lag * 1000.0);
        rows.push(("lag", words));
    }
    rows.push((
        "in force",
        match status.held_seconds_ago {
            Some(ago) => format!("the kernel held the current policy {} ago", time(ago)),
            None => "the kernel has never held the current policy".to_owned(),
        },
    ));
    let cells: Vec<Vec<(String, Style)>> = rows
        .into_iter()
        .map(|(name, value)| vec![(name.to_owned(), Style::Dim), (value, Style::Plain)])
        .collect();
    out.push_str(&columns(2, &cells));
    for problem in &status.problems {
        out.push_str(&format!("{} {problem}\n", Style::Bad.paint("problem:")));
    }
    for warning in &status.warnings {
        out.push_str(&format!("{} {warning}\n", Style::Warn.paint("warning:")));
    }
    out
}

fn classes(number: usize) -> String {
    match number {
        1 => "1 class of peers".to_owned(),
        _ => format!("{number} classes of peers"),
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_has_applied_nothing_says_why() {
        let shared = crate::agent::http::Shared::default();
        let text = anstream::adapter::strip_str(&text(&Status::of(&shared))).to_string();
        assert_eq!(
            text,
            format!(
                "this node: not ready\n  agent       palisade {}\n  last apply  none yet\n  in force    the kernel has never \
                 held the current policy\nproblem: starting: the policy has not been applied yet\n",
                env!("CARGO_PKG_VERSION")
            )
        );
    }

    #[test]
    fn nobody_and_somebody_else_are_told_apart() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let other = std::thread::spawn(move || {
            use std::io::{Read, Write};
            let (mut stream, _) = listener.accept().expect("asked");
            let mut request = [0; 64];
            let _ = stream.read(&mut request).expect("a request");
            let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
            stream.write_all(answer.as_bytes()).expect("answered");
        });
        let error = ask(address).expect_err("no agent").to_string();
        assert!(
            error.contains("is no agent of this version (it answered 404"),
            "{error}"
        );
        other.join().expect("no panic");
        // A port that is taken, so that no other program gets it meanwhile, and that nobody listens on.
        let taken = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let any_port = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        taken.bind(&any_port.into()).expect("bound");
        let address = taken.local_addr().expect("address").as_socket().expect("an address");
        let error = ask(address).expect_err("nobody").to_string();
        assert!(
            error.starts_with(&format!("no agent answers at {address}: ")),
            "{error}"
        );
    }

    #[test]
    fn times_are_told_as_people_do() {
        assert_eq!(
            [0.04, 59.6, 600.0, 86400.0].map(time),
            ["0.0 s", "60 s", "10 min", "24 h"]
        );
    }
}
