//! The proxy in front of an API server: a URL and the environment go in, the proxy's URL comes out, and a form of it for
//! people.

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;

/// The proxy that the environment wants for this server.
pub(super) fn from_environment(server: &Uri) -> Option<Uri> {
    wanted(&Matcher::from_env(), server, |name| std::env::var(name).ok())
}

fn wanted(matcher: &Matcher, server: &Uri, environment: impl Fn(&str) -> Option<String>) -> Option<Uri> {
    let intercept = matcher.intercept(server)?;
    if intercept.basic_auth().is_none() && intercept.raw_auth().is_none() {
        return Some(intercept.uri().clone());
    }
    // The matcher has taken user and password out of the URL, where kube looks for them.
    let names = match server.scheme_str() {
        Some("https") => ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
        _ => ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
    };
    let value = names
        .into_iter()
        .find_map(|n| environment(n).filter(|v| !v.is_empty()))?;
    let url = if value.contains("://") {
        value
    } else {
        format!("http://{value}")
    };
    url.parse().ok()
}

/// What is wrong with a proxy, if anything; kube would say it with user and password.
pub(super) fn check(proxy: &Uri) -> Result<(), String> {
    match proxy.scheme_str() {
        Some("http" | "https") => Ok(()),
        _ => Err(format!(
            "the proxy {} cannot be used: write an http:// or https:// URL",
            without_secrets(proxy)
        )),
    }
}

/// The URL without user, password and path.
pub(super) fn without_secrets(url: &Uri) -> String {
    let host = url.authority().map_or("", |a| a.as_str());
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{}://{host}", url.scheme_str().unwrap_or("http"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environments_proxy_is_for_those_servers_that_no_proxy_leaves_out() {
        let value = "http://me:secret@proxy:3128";
        let matcher = Matcher::builder().https(value).no("10.0.0.0/8,.corp").build();
        let proxied = |server: &'static str| {
            let environment = |name: &str| (name == "HTTPS_PROXY").then(|| value.to_owned());
            wanted(&matcher, &Uri::from_static(server), environment).map(|uri| uri.to_string())
        };
        assert_eq!(
            proxied("https://192.0.2.1:6443").as_deref(),
            Some("http://me:secret@proxy:3128/")
        );
        for direct in ["https://10.1.2.3:6443", "https://api.corp", "http://192.0.2.1"] {
            assert_eq!(proxied(direct), None, "{direct}");
        }
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_told_without_its_password() {
        let error = check(&Uri::from_static("socks5://me:secret@proxy:1080")).expect_err("no SOCKS");
        assert!(
            error.contains("socks5://proxy:1080") && !error.contains("secret"),
            "{error}"
        );
        assert_eq!(check(&Uri::from_static("https://me:secret@proxy")), Ok(()));
    }
}
