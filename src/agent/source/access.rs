//! How the API server is reached: a kubeconfig or the pod's service account goes in, a client comes out, and a new one
//! whenever credentials or certificates may have changed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::Request;
use http::header::AUTHORIZATION;
use kube::client::{Body, ClientBuilder};
use kube::config::{InClusterError, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use thiserror::Error;
use tower::util::MapRequestLayer;
use tracing::{debug, warn};

use super::{credentials, proxy};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);

/// How long reading credentials may take; the file system can hang.
const RENEWAL: Duration = Duration::from_secs(30);

/// How long before they expire credentials are asked for anew, and how old they must be for that: some live shorter.
const EARLY: Duration = Duration::from_secs(60);
const EARLY_AGE: Duration = Duration::from_secs(1);

/// Which API server, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The service account of the pod that this process runs in.
    ServiceAccount,
    /// A kubeconfig.
    Kubeconfig {
        /// The file; none means `$KUBECONFIG`, or `~/.kube/config`.
        file: Option<PathBuf>,
        /// The context; none means the file's current one.
        context: Option<String>,
    },
}

/// Why there is no client.
#[derive(Debug, Error)]
pub enum AccessError {
    /// Not in a pod.
    #[error(
        "this process runs in no pod (KUBERNETES_SERVICE_HOST is not set): name an API server with --kubeconfig FILE, or a \
         folder with --manifests DIR"
    )]
    NoPod,
    /// In a pod without a usable service account.
    #[error(
        "the pod's service account cannot be used: {0}; the pod needs serviceAccountName, and must not set \
         automountServiceAccountToken: false"
    )]
    ServiceAccount(String),
    /// The kubeconfig cannot be read.
    #[error("{file}: {message}")]
    File {
        /// Which.
        file: String,
        /// Why.
        message: String,
    },
    /// The kubeconfig has no such context.
    #[error("{file}: there is no context \"{context}\": name one with --context; there are {known}")]
    Context {
        /// The file.
        file: String,
        /// What was asked for.
        context: String,
        /// Those of the file.
        known: String,
    },
    /// The kubeconfig has no current context.
    #[error("{file}: the file has no current context: name one with --context; there are {known}")]
    NoContext {
        /// The file.
        file: String,
        /// Those of the file.
        known: String,
    },
    /// The configuration makes no client: certificates, keys, tokens, a plugin.
    #[error("cannot use the credentials for {server}: {message}")]
    Client {
        /// The API server's URL, without user and password.
        server: String,
        /// Why.
        message: String,
    },
}

/// What to tell people about the API server; nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterInfo {
    /// Its URL, without user and password.
    pub server: String,
    /// Where the credentials are from: a file and its context, or the service account.
    pub credentials: String,
    /// The proxy in between, without user and password.
    pub proxy: Option<String>,
    /// Whether anybody's certificate is taken for the API server's.
    pub unverified: bool,
}

/// A client that is made anew when need be.
pub struct Access {
    target: Target,
    info: ClusterInfo,
    current: Mutex<Current>,
    /// Held by whoever renews.
    renewing: Arc<()>,
}

struct Current {
    client: Client,
    /// When the credentials were last read, or were last to be.
    read: Instant,
    /// Until when they are good, if that is known.
    expires: Option<SystemTime>,
    /// Why they could not be read again, if the last attempt came to nothing.
    trouble: Option<String>,
}

impl Access {
    /// Reads the credentials. Must be called in a tokio runtime; no connection is made yet.
    ///
    /// # Errors
    /// What is missing, in which file, and what to write.
    pub fn new(target: Target) -> Result<Self, AccessError> {
        let (current, info) = build(&target)?;
        if info.unverified {
            warn!(
                server = %info.server,
                "the API server's certificate is not verified (insecure-skip-tls-verify): whoever stands in between decides on policy"
            );
        }
        let current = Mutex::new(current);
        Ok(Access {
            target,
            info,
            current,
            renewing: Arc::default(),
        })
    }

    /// The client of now.
    pub fn client(&self) -> Client {
        self.current().client.clone()
    }

    /// Which API server this is for.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// What to tell people.
    pub fn info(&self) -> &ClusterInfo {
        &self.info
    }

    /// Asks for credentials anew that are about to expire.
    pub async fn keep_fresh(&self) {
        let expires = self.current().expires;
        if expires.is_some_and(|at| at < SystemTime::now() + EARLY) {
            self.renew(EARLY_AGE).await;
        }
    }

    /// Reads tokens, certificates and keys again, unless that was done within `age`. When they cannot be read the client
    /// stays what it was; why, for as long as that lasts.
    pub async fn renew(&self, age: Duration) -> Option<String> {
        {
            let mut current = self.current();
            // Whoever renews holds one more: a plugin or a file system that hangs is asked once.
            if current.read.elapsed() < age || Arc::strong_count(&self.renewing) > 1 {
                return current.trouble.clone();
            }
            // Whoever comes next need not do it as well.
            current.read = Instant::now();
        }
        let (target, renewing) = (self.target.clone(), self.renewing.clone());
        // Files are read and plugins run: not on the thread that everything else waits for.
        let built = tokio::task::spawn_blocking(move || {
            let built = build(&target);
            drop(renewing);
            built
        });
        let trouble = match tokio::time::timeout(RENEWAL, built).await {
            Ok(Ok(Ok((current, _)))) => {
                debug!("credentials read again");
                *self.current() = current;
                return None;
            }
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(panic)) => format!("cannot read the credentials again: {panic}"),
            Err(_) => format!("reading the credentials again takes more than {} s", RENEWAL.as_secs()),
        };
        let before = self.current().trouble.replace(trouble.clone());
        if before.as_ref() != Some(&trouble) {
            warn!("{trouble}; the credentials stay what they were");
        }
        Some(trouble)
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn build(target: &Target) -> Result<(Current, ClusterInfo), AccessError> {
    let read = Instant::now();
    let (mut config, credentials, proxied) = match target {
        Target::ServiceAccount => (service_account()?, "the pod's service account".to_owned(), None),
        Target::Kubeconfig { file, context } => kubeconfig(file.as_deref(), context.as_deref())?,
    };
    let server = config.cluster_url.clone();
    let shown = format!("{}{}", proxy::without_secrets(&server), server.path());
    let failed = |message: String| AccessError::Client {
        server: shown.clone(),
        message,
    };
    // kube reads HTTPS_PROXY for kubeconfigs alone, and asks NO_PROXY about the proxy instead of the server.
    config.proxy_url = match proxied {
        Some(url) => Some(url.parse().map_err(|error| failed(format!("proxy-url: {error}")))?),
        None => proxy::from_environment(&server),
    };
    config.proxy_url.as_ref().map_or(Ok(()), proxy::check).map_err(failed)?;
    if config.root_cert.as_ref().is_some_and(Vec::is_empty) {
        return Err(failed(
            "there is no certificate in the certificate authority's file or data".to_owned(),
        ));
    }
    config.connect_timeout = Some(CONNECT);
    // Failures are seen, counted and waited out by whoever watches.
    config.default_retry = false;
    let (token, expires) = credentials::take(&mut config.auth_info).map_err(failed)?;
    let info = ClusterInfo {
        server: shown.clone(),
        credentials,
        proxy: config.proxy_url.as_ref().map(proxy::without_secrets),
        unverified: config.accept_invalid_certs,
    };
    let builder = ClientBuilder::try_from(config).map_err(|error| failed(error.to_string()))?;
    let client = match token {
        None => builder.build(),
        Some(token) => {
            let authorized = move |mut request: Request<Body>| {
                request.headers_mut().insert(AUTHORIZATION, token.header());
                request
            };
            builder.with_layer(&MapRequestLayer::new(authorized)).build()
        }
    };
    let current = Current {
        client,
        read,
        expires,
        trouble: None,
    };
    Ok((current, info))
}

fn service_account() -> Result<Config, AccessError> {
    Config::incluster().map_err(|error| match error {
        InClusterError::ReadEnvironmentVariable(_) => AccessError::NoPod,
        error => AccessError::ServiceAccount(error.to_string()),
    })
}

/// The configuration, where it is from, and the proxy that it names itself.
fn kubeconfig(file: Option<&Path>, context: Option<&str>) -> Result<(Config, String, Option<String>), AccessError> {
    let name = match file {
        Some(file) => file.display().to_string(),
        None => std::env::var("KUBECONFIG")
            .ok()
            .filter(|files| !files.is_empty())
            .unwrap_or_else(|| "~/.kube/config".to_owned()),
    };
    let failed = |error: KubeconfigError| AccessError::File {
        file: name.clone(),
        message: message(error),
    };
    let read = file.map_or_else(Kubeconfig::read, Kubeconfig::read_from);
    let mut kubeconfig = read.map_err(failed)?;
    let known = || {
        let names: Vec<&str> = kubeconfig.contexts.iter().map(|c| c.name.as_str()).collect();
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    };
    let chosen = context.or(kubeconfig.current_context.as_deref().filter(|c| !c.is_empty()));
    let Some(chosen) = chosen.map(str::to_owned) else {
        return Err(AccessError::NoContext {
            known: known(),
            file: name,
        });
    };
    let Some(entry) = kubeconfig.contexts.iter().find(|c| c.name == chosen) else {
        return Err(AccessError::Context {
            known: known(),
            file: name,
            context: chosen,
        });
    };
    let cluster = entry.context.as_ref().map(|c| c.cluster.as_str());
    let cluster = kubeconfig.clusters.iter().find(|c| Some(c.name.as_str()) == cluster);
    let proxied = cluster.and_then(|c| c.cluster.as_ref()?.proxy_url.clone());
    let proxied = proxied.filter(|url| !url.is_empty());
    let credentials = format!("{name}, context {chosen}");
    kubeconfig.current_context = Some(chosen);
    let config = Config::try_from(kubeconfig).map_err(failed)?;
    Ok((config, credentials, proxied))
}

/// The error without the path, which stands before it already.
fn message(error: KubeconfigError) -> String {
    match error {
        KubeconfigError::ReadConfig(error, _) => format!("cannot read the kubeconfig: {error}"),
        KubeconfigError::Parse(error) => {
            let error = error.to_string();
            // The first line says where and what; below it stand lines of the file, with the secrets in them.
            let first = error.lines().next().unwrap_or_default();
            format!("this is not a kubeconfig: {}", first.trim_start_matches("error: "))
        }
        KubeconfigError::FindPath => {
            "there is no home directory to look for .kube/config in: set KUBECONFIG, or name the file".to_owned()
        }
        KubeconfigError::LoadClusterOfContext(cluster) => {
            format!("the context names cluster \"{cluster}\", which is not among the clusters")
        }
        KubeconfigError::MissingClusterUrl => "the cluster has no server: write its URL".to_owned(),
        KubeconfigError::ParseNoProxy(error) => format!("NO_PROXY cannot be read: {error}"),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBECONFIG: &str = r#"{
        "apiVersion": "v1", "kind": "Config", "current-context": "one",
        "clusters": [{"name": "a", "cluster": {"server": "https://me:secret@10.0.0.1:6443/k8s/a"}},
                     {"name": "b", "cluster": {"server": "http://10.0.0.2", "proxy-url": "http://me:secret@proxy:3128"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "one", "context": {"cluster": "a", "user": "u"}},
                     {"name": "two", "context": {"cluster": "b", "user": "u"}},
                     {"name": "three", "context": {"cluster": "c", "user": "u"}}]}"#;

    fn info(text: &str, context: Option<&str>) -> Result<ClusterInfo, String> {
        let file = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
        std::fs::write(file.path(), text).map_err(|e| e.to_string())?;
        let target = Target::Kubeconfig {
            file: Some(file.path().to_owned()),
            context: context.map(str::to_owned),
        };
        let name = file.path().display().to_string();
        let info = Access::new(target).map(|access| access.info().clone());
        let mut info = info.map_err(|e| e.to_string().replace(&name, "F"))?;
        info.credentials = info.credentials.replace(&name, "F");
        Ok(info)
    }

    #[tokio::test]
    async fn a_kubeconfig_names_its_server_and_secrets_stay_hidden() {
        let two = info(KUBECONFIG, Some("two")).expect("a context");
        assert_eq!(two.server, "http://10.0.0.2/");
        assert_eq!(two.credentials, "F, context two");
        assert_eq!(two.proxy.as_deref(), Some("http://proxy:3128"));
        let one = info(KUBECONFIG, None).expect("the current context");
        assert_eq!(one.server, "https://10.0.0.1:6443/k8s/a");
    }

    #[tokio::test]
    async fn every_error_says_what_to_write() {
        for (text, context, expected) in [
            (
                KUBECONFIG,
                Some("four"),
                "F: there is no context \"four\": name one with --context; there are one, two, three",
            ),
            (
                KUBECONFIG,
                Some("three"),
                "F: the context names cluster \"c\", which is not among the clusters",
            ),
            (
                "{}",
                None,
                "F: the file has no current context: name one with --context; there are none",
            ),
        ] {
            assert_eq!(info(text, context).map(drop), Err(expected.to_owned()));
        }
        let error = info("[1, 2", None).expect_err("no kubeconfig");
        assert!(error.starts_with("F: this is not a kubeconfig: line 1 "), "{error}");
        let secret = "users:\n- name: u\n  user: {token: hush\ncontexts: []\n";
        let error = info(secret, None).expect_err("no kubeconfig");
        assert!(error.contains("line 4 ") && !error.contains("hush"), "{error}");
        let target = Target::Kubeconfig {
            file: Some("/nonexistent/config".into()),
            context: None,
        };
        let error = Access::new(target).map(drop).map_err(|e| e.to_string());
        let expected = "/nonexistent/config: cannot read the kubeconfig: No such file or directory (os error 2)";
        assert_eq!(error, Err(expected.to_owned()));
    }
}
