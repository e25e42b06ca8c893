//! Pods as few patterns: some of the pods that are compared in, all of a namespace, workloads and single pods out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use policy_compiler::cluster::Pod;
use policy_compiler::labels::Name;

use crate::cli::describe::title;

/// How many exceptions a name may have before it is no name.
const EXCEPTIONS: usize = 3;

/// A pod that is compared.
pub(super) struct Known {
    pub(super) pod: Arc<Pod>,
    /// The families of its ends; none of one without an address.
    pub(super) ends: Vec<Option<bool>>,
}

impl Known {
    /// How many of its ends can talk with ends of these families.
    pub(super) fn ends_for(&self, families: &BTreeSet<Option<bool>>) -> usize {
        let can = |end: &&Option<bool>| end.is_none() || families.contains(&None) || families.contains(*end);
        self.ends.iter().filter(can).count()
    }
}

/// Pods by namespace and title.
pub(super) type Tree = BTreeMap<Name, BTreeMap<String, BTreeSet<usize>>>;

pub(super) fn by_namespace<'k>(list: &'k [Known], pods: &BTreeSet<usize>) -> BTreeMap<&'k Name, BTreeSet<usize>> {
    let mut out: BTreeMap<&Name, BTreeSet<usize>> = BTreeMap::new();
    for at in pods {
        out.entry(&list[*at].pod.name.namespace).or_default().insert(*at);
    }
    out
}

/// Whether these exceptions make a better name than a list of what is meant.
pub(super) fn few(except: &[String], plain: &[String]) -> bool {
    except.len() <= EXCEPTIONS && except.len() * 2 < plain.len()
}

pub(super) fn with_exceptions(all: &str, except: &[String]) -> String {
    match except {
        [] => all.to_owned(),
        except => {
            let but: Vec<String> = except.iter().map(|name| spoken(name)).collect();
            format!("{all} except {}", but.join(" and "))
        }
    }
}

/// Pods as patterns: `namespace/*` where all of several workloads of a namespace are meant, else workloads, else pods.
pub(super) fn items(tree: &Tree, list: &[Known], pods: &BTreeSet<usize>) -> Vec<String> {
    let mut out = Vec::new();
    for (namespace, here) in by_namespace(list, pods) {
        let titles: BTreeSet<String> = here.iter().map(|at| title(&list[*at].pod)).collect();
        let all = &tree[namespace];
        let mut names = Vec::new();
        let mut whole = titles.len() == all.len();
        for title in titles {
            let members = &all[&title];
            match members.is_subset(&here) {
                true => names.push(title),
                false => {
                    whole = false;
                    let some = members.intersection(&here);
                    names.extend(some.map(|at| list[*at].pod.name.to_string()));
                }
            }
        }
        match whole && all.len() > 1 {
            true => out.push(format!("{namespace}/*")),
            false => out.extend(names),
        }
    }
    out
}

/// A pattern for people.
pub(super) fn spoken(pattern: &str) -> String {
    match pattern.strip_suffix("/*") {
        Some(namespace) => format!("every pod of namespace {namespace}"),
        None => pattern.to_owned(),
    }
}
