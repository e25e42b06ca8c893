//! Turns Kubernetes NetworkPolicy into per-pod ingress and egress allow sets.
//!
//! Pure: no I/O, no clock, no async, and it cannot fail. What is wrong with an object is told by [`convert`], where Kubernetes' types come
//! in; what is odd about a cluster by [`diagnostics`], beside the result.
//!
//! | to | use |
//! | --- | --- |
//! | take Kubernetes objects in, validated as the API server validates them | [`convert`] |
//! | describe a cluster | [`cluster::Cluster`], [`policy::Policy`] |
//! | compile it, whole or for one node | [`compile::compile`] |
//! | keep the answer while the cluster changes | [`compile::Compiler`], [`changes::Changes`] |
//! | ask who may reach whom, on which ports | [`table::Table`], [`ports::PortSet`] |
//! | ask why | [`evaluate::Evaluator`] |
//! | hear what is hardly meant | [`lint::lint`] |
//!
//! The compiler works on equivalence classes: subjects that the same policies select are one *group*, peers that every policy in use treats
//! alike are one *class*, and the answer is the small table of groups x classes. The repository's ARCHITECTURE.md tells how.
//!
//! ```
//! use k8s_openapi::api::{core::v1::Pod, networking::v1::NetworkPolicy};
//! use policy_compiler::cluster::Cluster;
//! use policy_compiler::compile::{Subjects, compile};
//! use policy_compiler::convert;
//! use policy_compiler::evaluate::Evaluator;
//! use policy_compiler::ports::{Protocol, Traffic};
//!
//! let pod = |name: &str, address: &str| -> Pod {
//!     serde_json::from_value(serde_json::json!({
//!         "metadata": {"namespace": "shop", "name": name, "labels": {"app": name}},
//!         "spec": {"containers": [{"name": "c", "ports": [{"name": "sql", "containerPort": 5432}]}]},
//!         "status": {"podIPs": [{"ip": address}]},
//!     })).unwrap()
//! };
//! let policy: NetworkPolicy = serde_json::from_value(serde_json::json!({
//!     "metadata": {"namespace": "shop", "name": "db"},
//!     "spec": {
//!         "podSelector": {"matchLabels": {"app": "db"}},
//!         "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "api"}}}], "ports": [{"port": "sql"}]}],
//!     },
//! })).unwrap();
//!
//! let mut cluster = Cluster::default();
//! for (name, address) in [("api", "10.244.1.2"), ("web", "10.244.1.3"), ("db", "10.244.2.2")] {
//!     cluster.add_pod(convert::pod(&pod(name, address)).unwrap());
//! }
//! let (policy, warnings) = convert::network_policy(&policy).unwrap();
//! assert!(warnings.is_empty());
//! cluster.add_policy(policy);
//!
//! let table = compile(&cluster, &Subjects::All);
//! let end = |address: &str| table.addresses().endpoint(address.parse().unwrap());
//! let (api, web, db) = (end("10.244.1.2"), end("10.244.1.3"), end("10.244.2.2"));
//! assert_eq!(table.allowed(&api, &db).to_string(), "5432/TCP");
//! assert_eq!(table.allowed(&web, &db).to_string(), "none");
//!
//! let why = Evaluator::new(&cluster).decide(&web, &db, Traffic::Port(Protocol::Tcp, 5432));
//! assert_eq!(
//!     why.to_string(),
//!     "ingress isolated by shop/db and no rule admits it; nearest: shop/db ingress[0] wants labels app=api, the peer has app=web",
//! );
//! ```

pub mod addresses;
pub mod cells;
pub mod changes;
pub mod cluster;
pub mod compile;
pub mod convert;
pub mod diagnostics;
pub mod difference;
pub mod evaluate;
mod event;
#[cfg(feature = "generate")]
pub mod generate;
mod half;
pub mod labels;
pub mod lint;
mod matching;
pub mod policy;
mod population;
pub mod ports;
mod rules;
pub mod table;
#[cfg(feature = "testing")]
pub mod testing;
