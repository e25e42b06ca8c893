//! What tests need of any API server, the scripted one and a real one alike: objects go in by requests that any client could
//! make, and what the server then holds comes out as the cluster that an agent should know.

use http::header::CONTENT_TYPE;
use http::{Method, Request};
use k8s_openapi::api::core::v1;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Client;
use policy_compiler::cluster::Cluster;
use policy_compiler::convert;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api::{Api, Kind};

/// An API server.
pub(crate) trait Server {
    /// A client that may do everything.
    fn client(&self) -> Client;

    /// A kubeconfig with the rights of an agent.
    fn kubeconfig(&self) -> String;

    /// All objects of a kind as they stand.
    async fn objects(&self, kind: Kind) -> Vec<Value> {
        let list = request(&self.client(), Method::GET, &collection(kind, ""), None).await;
        match list.unwrap()["items"].take() {
            Value::Array(items) => items,
            other => panic!("a list without items: {other}"),
        }
    }

    /// Makes an object, or makes an existing one like it: labels, annotations and the spec of a policy; then its status. All
    /// else of an object cannot be changed in a real API server.
    async fn put(&self, kind: Kind, mut object: Value) {
        let client = &self.client();
        let (namespace, name) = (text(&object, "namespace"), text(&object, "name"));
        let path = path(kind, &namespace, &name);
        let status = object["status"].take();
        match request(client, Method::GET, &path, None).await {
            Ok(mut existing) => {
                for field in ["labels", "annotations"] {
                    existing["metadata"][field] = object["metadata"][field].take();
                }
                if kind == Kind::NetworkPolicy {
                    existing["spec"] = object["spec"].take();
                }
                request(client, Method::PUT, &path, Some(existing)).await.unwrap();
            }
            Err(error) if code(&error) == 404 => {
                let fields = object.as_object_mut().unwrap();
                fields.remove("status");
                // Whose fields are whose is the server's business.
                fields["metadata"].as_object_mut().unwrap().remove("managedFields");
                object["apiVersion"] = json!(kind.api_version());
                object["kind"] = json!(format!("{kind:?}"));
                let path = collection(kind, &namespace);
                request(client, Method::POST, &path, Some(object)).await.unwrap();
            }
            Err(error) => panic!("{path}: {error}"),
        }
        if !status.is_null() {
            let (path, body) = (format!("{path}/status"), json!({ "status": status }));
            request(client, Method::PATCH, &path, Some(body)).await.unwrap();
        }
    }

    /// Removes an object that is there, at once: there is no kubelet that would end a pod, and nobody who would empty a namespace.
    async fn delete(&self, kind: Kind, namespace: &str, name: &str) {
        let client = &self.client();
        let path = path(kind, namespace, name);
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
        request(client, Method::DELETE, &path, Some(options)).await.unwrap();
        if kind != Kind::Namespace {
            return;
        }
        if let Ok(mut rest) = request(client, Method::GET, &path, None).await {
            rest["spec"]["finalizers"] = json!([]);
            let finalize = format!("{path}/finalize");
            request(client, Method::PUT, &finalize, Some(rest)).await.unwrap();
        }
    }

    /// Removes everything but what the server makes by itself.
    async fn clear(&self) {
        for kind in [Kind::NetworkPolicy, Kind::Pod, Kind::Node, Kind::Namespace] {
            for object in self.objects(kind).await {
                let (namespace, name) = (text(&object, "namespace"), text(&object, "name"));
                let own = ["default", "palisade-system"].contains(&name.as_str()) || name.starts_with("kube-");
                if kind != Kind::Namespace || !own {
                    self.delete(kind, &namespace, &name).await;
                }
            }
        }
    }

    /// What the server holds, decoded as a whole. What cannot be decoded is not there.
    async fn cluster(&self) -> Cluster {
        async fn all<T: DeserializeOwned>(server: &(impl Server + ?Sized), kind: Kind) -> Vec<T> {
            let objects = server.objects(kind).await.into_iter();
            objects.filter_map(|o| serde_json::from_value(o).ok()).collect()
        }
        let mut cluster = Cluster::default();
        for object in all::<v1::Namespace>(self, Kind::Namespace).await {
            convert::namespace(&object)
                .into_iter()
                .for_each(|o| cluster.add_namespace(o));
        }
        for object in all::<v1::Node>(self, Kind::Node).await {
            convert::node(&object).into_iter().for_each(|o| cluster.add_node(o));
        }
        for object in all::<v1::Pod>(self, Kind::Pod).await {
            convert::pod(&object).into_iter().for_each(|o| cluster.add_pod(o));
        }
        for object in all::<NetworkPolicy>(self, Kind::NetworkPolicy).await {
            convert::network_policy(&object)
                .into_iter()
                .for_each(|(o, _)| cluster.add_policy(o));
        }
        cluster
    }
}

impl Server for Api {
    fn client(&self) -> Client {
        Api::client(self)
    }

    fn kubeconfig(&self) -> String {
        Api::kubeconfig(self, None)
    }

    // Past the faults, and not among the calls.

    async fn objects(&self, kind: Kind) -> Vec<Value> {
        Api::objects(self, kind)
    }

    async fn put(&self, kind: Kind, object: Value) {
        Api::put(self, kind, object);
    }

    async fn delete(&self, kind: Kind, namespace: &str, name: &str) {
        assert!(
            Api::delete(self, kind, namespace, name),
            "no {kind:?} {namespace}/{name}"
        );
    }
}

/// One request; a patch is a merge patch.
pub(crate) async fn request(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<Value, kube::Error> {
    let format = match method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, format);
    let body = body.map_or_else(Vec::new, |body| body.to_string().into_bytes());
    client.request(request.body(body).unwrap()).await
}

/// The status code of a refusal, 0 for other errors.
pub(crate) fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

fn collection(kind: Kind, namespace: &str) -> String {
    let root = if kind.group().is_empty() { "/api" } else { "/apis" };
    let version = kind.api_version();
    let plural = kind.plural();
    match namespace {
        "" => format!("{root}/{version}/{plural}"),
        _ => format!("{root}/{version}/namespaces/{namespace}/{plural}"),
    }
}

fn path(kind: Kind, namespace: &str, name: &str) -> String {
    format!("{}/{name}", collection(kind, namespace))
}

fn text(object: &Value, field: &str) -> String {
    object["metadata"][field].as_str().unwrap_or_default().to_owned()
}
