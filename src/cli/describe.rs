//! Who a set of ends is, in words: whole workloads by their name, pods where replicas differ, addresses by CIDR.

use std::collections::BTreeMap;
use std::sync::Arc;

use policy_compiler::cluster::{Pod, PodName};

use super::ends::{Compiled, End, workload_name};
use super::output::count;

/// How many names a line of text takes before it counts the rest.
const NAMES_IN_A_LINE: usize = 4;

/// Puts ends into words.
pub(crate) struct Describer {
    /// The number of live pods of every workload.
    sizes: BTreeMap<String, usize>,
}

impl Describer {
    pub(crate) fn new(compiled: &Compiled) -> Self {
        let mut sizes = BTreeMap::new();
        for pod in compiled.table.pods() {
            *sizes.entry(title(pod)).or_default() += 1;
        }
        Describer { sizes }
    }

    /// The names of pods: a workload stands for its pods where all of them are meant.
    pub(crate) fn pods<'a>(&self, pods: impl IntoIterator<Item = &'a Arc<Pod>>) -> Vec<String> {
        let mut by_title: BTreeMap<String, Vec<&PodName>> = BTreeMap::new();
        for pod in pods {
            let names = by_title.entry(title(pod)).or_default();
            if names.last() != Some(&&pod.name) {
                names.push(&pod.name);
            }
        }
        let mut out = Vec::new();
        for (title, names) in by_title {
            if self.sizes.get(&title) == Some(&names.len()) {
                out.push(self.whole(&title, names.len()));
            } else {
                out.extend(names.iter().map(ToString::to_string));
            }
        }
        out
    }

    /// `shop/deployment/api (2 pods)`; a pod without a workload by its name alone.
    fn whole(&self, title: &str, pods: usize) -> String {
        match title.matches('/').count() {
            1 => title.to_owned(),
            _ => format!("{title} ({})", count(pods, "pod")),
        }
    }

    /// The names of ends, sorted by end.
    pub(crate) fn ends(&self, ends: &[&End]) -> Vec<String> {
        let pods = ends.iter().filter_map(|end| match end {
            End::Pod(pod, _) => Some(pod),
            End::Region(_) => None,
        });
        let mut out = self.pods(pods);
        out.extend(ends.iter().filter_map(|end| match end {
            End::Region(region) => Some(region.to_string()),
            End::Pod(..) => None,
        }));
        out
    }
}

/// What a pod goes by: its workload, or itself.
pub(crate) fn title(pod: &Pod) -> String {
    workload_name(pod).unwrap_or_else(|| pod.name.to_string())
}

/// Names on one line; of a long list the first few, and how many more there are.
pub(crate) fn join(names: &[String]) -> String {
    if names.len() <= NAMES_IN_A_LINE + 1 {
        return names.join(", ");
    }
    let shown = &names[..NAMES_IN_A_LINE];
    format!("{} and {} more", shown.join(", "), names.len() - NAMES_IN_A_LINE)
}
