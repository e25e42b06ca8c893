//! An API server that holds the shop of `tests/cli/`, a kubeconfig for it, and the program.

use std::path::PathBuf;
use std::process::{Command, Output};

use palisade::manifests;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::api::{Api, Kind};
use crate::environment::without_settings;

/// What is read of a cluster.
pub(crate) const KINDS: [Kind; 5] = [
    Kind::Namespace,
    Kind::Node,
    Kind::Service,
    Kind::Pod,
    Kind::NetworkPolicy,
];

pub(crate) struct World {
    pub(crate) api: Api,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) kubeconfig: String,
    /// Serves the API.
    _runtime: Runtime,
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl World {
    pub(crate) fn empty() -> World {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.unwrap();
        let api = runtime.block_on(Api::start());
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, api.kubeconfig(None)).unwrap();
        World {
            api,
            kubeconfig: kubeconfig.display().to_string(),
            folder,
            _runtime: runtime,
        }
    }

    /// The shop, as a cluster would hold it.
    pub(crate) fn shop() -> World {
        let world = World::empty();
        let (documents, problems) = manifests::read(&[PathBuf::from("tests/cli/shop")]);
        assert_eq!(problems, []);
        for document in &documents {
            let object = json(&document.node);
            let items = object["items"].as_array().cloned();
            items
                .unwrap_or_else(|| vec![object])
                .into_iter()
                .for_each(|object| world.put(object));
        }
        world
    }

    /// Adds or replaces an object of a kind that is read; others are passed over.
    pub(crate) fn put(&self, object: Value) {
        let kind = KINDS.into_iter().find(|kind| object["kind"] == format!("{kind:?}"));
        if let Some(kind) = kind {
            self.api.put(kind, object);
        }
    }

    /// Runs the program among the files of `tests/cli/`, where nothing of this machine's own settings counts.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        self.command(arguments).into()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
        without_settings(&mut command)
            .args(arguments)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli"))
            .env("HOME", self.folder.path());
        command
    }

    /// Runs a command on the API server's cluster.
    pub(crate) fn live(&self, arguments: &[&str]) -> Ended {
        self.run(&[arguments, &["--live", "--kubeconfig", &self.kubeconfig]].concat())
    }

    /// The same text with words for what differs from run to run.
    pub(crate) fn general(&self, text: &str) -> String {
        let text = text.replace(&format!("{}/", self.api.url()), "SERVER");
        text.replace(&self.kubeconfig, "KUBECONFIG")
    }

    /// The objects of the API server as a file.
    pub(crate) fn manifests(&self) -> String {
        let items: Vec<Value> = KINDS.into_iter().flat_map(|kind| self.api.objects(kind)).collect();
        let file = self.folder.path().join("cluster.json");
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        std::fs::write(&file, list.to_string()).unwrap();
        file.display().to_string()
    }
}

impl From<Command> for Ended {
    fn from(mut command: Command) -> Ended {
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended {
            code: status.code().unwrap(),
            stdout: text(stdout),
            stderr: text(stderr),
        }
    }
}

/// A manifest as JSON.
pub(crate) fn json(node: &manifests::Node) -> Value {
    match &node.value {
        manifests::Value::Null => Value::Null,
        manifests::Value::Bool(value) => json!(value),
        manifests::Value::Integer(value) => json!(value),
        manifests::Value::Float(value) => json!(value),
        manifests::Value::String(value) => json!(value),
        manifests::Value::List(items) => items.iter().map(json).collect(),
        manifests::Value::Map(entries) => entries.iter().map(|e| (e.key.to_string(), json(&e.value))).collect(),
    }
}
