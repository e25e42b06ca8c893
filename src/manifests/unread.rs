//! Policies of kinds that are not read, such as those of other networks: objects in, warnings out. A cluster that enforces them
//! may answer otherwise, and nobody is to find that out from a packet.

use std::sync::Arc;

use policy_compiler::diagnostics::Code;

use super::problem::{ObjectName, Problem, Source};
use super::yaml::Node;
use super::{Loader, Object, at};

/// The most policies of one kind of which each has a warning of its own.
pub(super) const NAMED: usize = 20;

impl Loader {
    /// Notes a policy, or a list of policies, of a kind that is not read.
    pub(super) fn unread(&mut self, file: &Arc<str>, node: &Node, api_version: &str, kind: String) {
        let metadata = |field: &str| node.get("metadata").and_then(|m| m.get(field)).and_then(Node::as_str);
        let name = ObjectName {
            kind: format!("{kind:.80}").into(),
            namespace: metadata("namespace").filter(|n| !n.is_empty()).map(Into::into),
            name: metadata("name").unwrap_or_default().into(),
        };
        let count = self.loaded.skipped.entry(kind.clone()).or_default();
        *count += 1;
        if *count > NAMED {
            let source = Source {
                file: file.clone(),
                position: Some(node.position),
            };
            self.crowd.entry(kind).or_insert(source);
            return;
        }
        let message =
            format!("a policy of {api_version:.80}, which is not read: every answer is as if it were not there");
        self.ignored_rules(&Object {
            file,
            node,
            name: name.clone(),
        });
        let warning = at(file, node.position, Some(&name), None, message);
        self.loaded.warnings.push(warning.of(Code::UnreadObject));
    }

    /// Adds what is said of all of a kind after the first ones, and where an object stands that rules out what is said of it.
    pub(super) fn finish_unread(&mut self) {
        for (kind, source) in std::mem::take(&mut self.crowd) {
            let more = self.loaded.skipped.get(&kind).map_or(0, |count| count - NAMED);
            let warning = Problem {
                source,
                object: None,
                path: None,
                message: format!(
                    "{more} more of kind {kind:.80} from here on, not read either: every answer is as if they were not there"
                ),
                code: Some(Code::UnreadObject),
            };
            self.loaded.warnings.push(warning);
        }
        let loaded = &mut self.loaded;
        let unread = loaded.warnings.iter().filter(|w| w.code == Some(Code::UnreadObject));
        for warning in unread {
            if let Some(object) = warning.object.as_ref().filter(|o| loaded.lint_ignore.contains_key(o)) {
                loaded.sources.insert(object.clone(), warning.source.clone());
            }
        }
    }
}
