//! A real API server: `kube-apiserver` and `etcd` of the folder that `KUBEBUILDER_ASSETS` names, as controller-runtime's envtest
//! finds them. No kubelet, no controllers: objects are what the test makes of them.
//!
//! It trusts certificates that are made here, knows one administrator, and the agent's service account with the rights that
//! `deploy/base` gives it and no others.

use std::path::{Path, PathBuf};

use http::Method;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use palisade::manifests::decode;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::program::{Port, Program};
use crate::rendered::rendered;
use crate::server::{Server, code, request};

/// The variable.
const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// The namespaces that an API server makes by itself, some time after it is ready.
const OWN: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// A running API server with its store. Dropped in this order.
pub(crate) struct Real {
    client: Client,
    kubeconfig: String,
    _apiserver: Program,
    _etcd: Program,
    _port: Port,
    _folder: tempfile::TempDir,
}

impl Server for &Real {
    fn client(&self) -> Client {
        self.client.clone()
    }

    fn kubeconfig(&self) -> String {
        self.kubeconfig.clone()
    }
}

impl Real {
    /// Whether the environment names one.
    pub(crate) fn is_named() -> bool {
        std::env::var_os(ASSETS).is_some_and(|folder| !folder.is_empty())
    }

    /// The one that the environment names, started; none when it names none. One that cannot be used is an error.
    pub(crate) async fn named() -> Option<Real> {
        let folder = std::env::var_os(ASSETS).filter(|_| Real::is_named())?;
        let real = Real::start(Path::new(&folder)).await;
        Some(real.unwrap_or_else(|error| {
            panic!(
                "{ASSETS} is {}, and its servers are of no use: {error}",
                folder.display()
            )
        }))
    }

    async fn start(assets: &Path) -> Result<Real, String> {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let at = |name: &str| folder.path().join(name);
        let flag = |name: &str, value: &str| format!("--{name}={value}");
        let file = |name: &str, file: &str| flag(name, &at(file).display().to_string());

        // Nobody else can have taken a socket in a folder of its own.
        let socket = at("etcd.sock");
        let etcd_url = format!("unix://{}", socket.display());
        let arguments = [
            file("data-dir", "etcd"),
            flag("listen-client-urls", &etcd_url),
            // It must be a host and a port, and is for members of a cluster.
            flag("advertise-client-urls", "http://127.0.0.1:2379"),
            flag("listen-peer-urls", "http://127.0.0.1:0"),
        ];
        let mut etcd = Program::start(&assets.join("etcd"), "etcd", folder.path(), &arguments)?;
        etcd.until("accepts connections", async || {
            UnixStream::connect(&socket).await.map(drop).map_err(|e| e.to_string())
        })
        .await?;

        certificates(folder.path()).map_err(|e| e.to_string())?;
        let reserved = Port::reserve().map_err(|e| e.to_string())?;
        let port = reserved.number().map_err(|e| e.to_string())?;
        let arguments = [
            flag("etcd-servers", &etcd_url),
            file("cert-dir", "generated"),
            flag("bind-address", "127.0.0.1"),
            flag("secure-port", &port.to_string()),
            flag("permit-port-sharing", "true"),
            // Without these two it looks for a default route, and there may be none.
            flag("advertise-address", "127.0.0.1"),
            flag("endpoint-reconciler-type", "none"),
            file("tls-cert-file", "server.crt"),
            file("tls-private-key-file", "server.key"),
            file("client-ca-file", "ca.crt"),
            flag("service-account-issuer", "https://kubernetes.default.svc"),
            file("service-account-key-file", "accounts.pub"),
            file("service-account-signing-key-file", "accounts.key"),
            flag("service-cluster-ip-range", "10.0.0.0/24"),
            flag("authorization-mode", "RBAC"),
            // Pods would have to wait for accounts that no controller makes.
            flag("disable-admission-plugins", "ServiceAccount"),
        ];
        let mut apiserver = Program::start(
            &assets.join("kube-apiserver"),
            "kube-apiserver",
            folder.path(),
            &arguments,
        )?;

        let kubeconfig = |user: Value| kubeconfig(port, &at("ca.crt"), user);
        let admin = kubeconfig(json!({"client-certificate": at("admin.crt"), "client-key": at("admin.key")}));
        let client = client(&admin).await?;
        let ask = async |client: &Client, path: &str| request(client, Method::GET, path, None).await;
        apiserver
            .until("is ready", async || {
                let request = http::Request::get("/readyz").body(Vec::new());
                let answer = client.request_text(request.map_err(|e| e.to_string())?).await;
                answer.map(drop).map_err(|e| e.to_string())
            })
            .await?;
        for name in OWN {
            let path = format!("/api/v1/namespaces/{name}");
            apiserver
                .until(name, async || {
                    ask(&client, &path).await.map(drop).map_err(|e| e.to_string())
                })
                .await?;
        }

        std::fs::write(at("token"), account(&client).await?).map_err(|e| e.to_string())?;
        let agent = kubeconfig(json!({"tokenFile": at("token")}));
        let as_agent = self::client(&agent).await?;
        apiserver
            .until("knows the agent's rights", async || {
                let answer = ask(&as_agent, "/apis/networking.k8s.io/v1/networkpolicies").await;
                answer.map(drop).map_err(|e| e.to_string())
            })
            .await?;
        let secrets = ask(&as_agent, "/api/v1/secrets").await;
        if secrets.as_ref().map_err(code) != Err(403) {
            return Err(format!(
                "the agent may read secrets, so its rights are not limited: {secrets:?}"
            ));
        }
        Ok(Real {
            client,
            kubeconfig: agent,
            _apiserver: apiserver,
            _etcd: etcd,
            _port: reserved,
            _folder: folder,
        })
    }
}

/// The agent's service account with its rights, as `deploy/base` has them; returns a token.
async fn account(client: &Client) -> Result<String, String> {
    let mut account = None;
    for object in rendered("deploy/base") {
        let object: Value = decode(&object).map_err(|e| format!("{e:?}"))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let namespace = text(&object["metadata"]["namespace"]);
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        let path = match object["kind"].as_str().unwrap_or_default() {
            "Namespace" => "/api/v1/namespaces".to_owned(),
            "ServiceAccount" => format!("/api/v1/namespaces/{namespace}/serviceaccounts"),
            "ClusterRole" => format!("{rbac}/clusterroles"),
            "ClusterRoleBinding" => format!("{rbac}/clusterrolebindings"),
            "Role" => format!("{rbac}/namespaces/{namespace}/roles"),
            "RoleBinding" => format!("{rbac}/namespaces/{namespace}/rolebindings"),
            // Neither gives rights.
            "ResourceQuota" | "DaemonSet" => continue,
            other => return Err(format!("who applies {other}?")),
        };
        if object["kind"] == "ServiceAccount" {
            account = Some(format!("{path}/{}/token", text(&object["metadata"]["name"])));
        }
        let made = request(client, Method::POST, &path, Some(object)).await;
        made.map_err(|error| format!("{path}: {error}"))?;
    }
    let path = account.ok_or("deploy/base has no service account")?;
    let asked =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 86400}});
    let answer = request(client, Method::POST, &path, Some(asked)).await;
    let answer = answer.map_err(|error| format!("{path}: {error}"))?;
    let token = answer["status"]["token"].as_str().ok_or("no token was given")?;
    Ok(token.to_owned())
}

fn kubeconfig(port: u16, ca: &Path, user: Value) -> String {
    let server = format!("https://127.0.0.1:{port}");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": ca}}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    config.to_string()
}

async fn client(kubeconfig: &str) -> Result<Client, String> {
    let parsed = Kubeconfig::from_yaml(kubeconfig).map_err(|e| e.to_string())?;
    let config = Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await;
    let mut config = config.map_err(|e| e.to_string())?;
    // It is on this machine.
    config.proxy_url = None;
    Client::try_from(config).map_err(|e| e.to_string())
}

/// Writes an authority, the server's certificate, the administrator's, and the key that signs accounts' tokens.
fn certificates(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let write = |name: &str, text: String| std::fs::write(folder.join::<PathBuf>(name.into()), text);
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "test authority");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    write("ca.crt", ca.self_signed(&key)?.pem())?;
    let ca = Issuer::new(ca, key);

    let mut server = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()])?;
    server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let mut admin = CertificateParams::default();
    admin.distinguished_name.push(DnType::CommonName, "admin");
    // Who is of this group may do everything, whatever the roles say.
    admin
        .distinguished_name
        .push(DnType::OrganizationName, "system:masters");
    admin.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    for (name, mut params) in [("server", server), ("admin", admin)] {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        write(&format!("{name}.crt"), params.signed_by(&key, &ca)?.pem())?;
        write(&format!("{name}.key"), key.serialize_pem())?;
    }
    let accounts = KeyPair::generate()?;
    write("accounts.pub", accounts.public_key_pem())?;
    write("accounts.key", accounts.serialize_pem())?;
    Ok(())
}
