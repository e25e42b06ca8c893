//! Who a set of ends is, in words: whole workloads by their name, pods where replicas differ, addresses by CIDR.

use std::collections::BTreeMap;
use std::sync::Arc;

use policy_compiler::cluster::{Pod, PodName};

use super::ends::{Compiled, End, Region, workload_name};
use super::output::count;

/// How many names a line of text takes before it counts the rest.
const NAMES_IN_A_LINE: usize = 4;

/// Puts ends into words.
pub(crate) struct Describer<'c> {
    compiled: &'c Compiled,
    /// The number of live pods of every workload.
    sizes: BTreeMap<String, usize>,
}

impl<'c> Describer<'c> {
    pub(crate) fn new(compiled: &'c Compiled) -> Self {
        let mut sizes = BTreeMap::new();
        for pod in compiled.pods() {
            *sizes.entry(title(pod)).or_default() += 1;
        }
        Describer { compiled, sizes }
    }

    /// The names of pods: a workload stands for its pods, with their number, where all of them are meant.
    pub(crate) fn pods<'a>(&self, pods: impl IntoIterator<Item = &'a Arc<Pod>>) -> Vec<String> {
        self.names(pods, |workload, pods| format!("{workload} ({})", count(pods, "pod")))
    }

    /// The names of pods as endpoints: a workload stands for its pods where all of them are meant.
    pub(crate) fn endpoints<'a>(&self, pods: impl IntoIterator<Item = &'a Arc<Pod>>) -> Vec<String> {
        self.names(pods, |workload, _| workload.to_owned())
    }

    fn names<'a>(
        &self,
        pods: impl IntoIterator<Item = &'a Arc<Pod>>,
        whole: impl Fn(&str, usize) -> String,
    ) -> Vec<String> {
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
                // A pod without a workload goes by its own name, which has no kind in it.
                let is_workload = title.matches('/').count() == 2;
                out.push(if is_workload { whole(&title, names.len()) } else { title });
            } else {
                out.extend(names.iter().map(ToString::to_string));
            }
        }
        out
    }

    /// The names of ends: workloads and pods, then addresses.
    pub(crate) fn ends(&self, ends: &[&End]) -> Vec<String> {
        let (whole, partial) = self.split(ends);
        let mut out = self.pods(whole);
        out.extend(partial);
        out
    }

    /// The names of ends, each pod by its own.
    pub(crate) fn every_end(&self, ends: &[&End]) -> Vec<String> {
        let (whole, partial) = self.split(ends);
        let mut out: Vec<String> = whole.iter().map(|pod| pod.name.to_string()).collect();
        out.extend(partial);
        out
    }

    /// Addresses by their CIDR; one that holds pods stands for the other addresses in it.
    fn region(&self, region: &Region) -> String {
        let mut pods = self.compiled.table.addresses().pod_addresses();
        match pods.any(|(address, _)| region.cidr.contains(&address)) {
            true => format!("other addresses of {region}"),
            false => region.to_string(),
        }
    }

    /// The pods of which all addresses are meant, sorted; then the other ends by name.
    fn split<'e>(&self, ends: &[&'e End]) -> (Vec<&'e Arc<Pod>>, Vec<String>) {
        let mut by_pod: BTreeMap<&PodName, Vec<&'e End>> = BTreeMap::new();
        let mut others = Vec::new();
        for end in ends {
            match end {
                End::Pod(pod, _) => by_pod.entry(&pod.name).or_default().push(end),
                End::Region(region) => others.push(self.region(region)),
            }
        }
        let (mut whole, mut partial) = (Vec::new(), Vec::new());
        for ends in by_pod.into_values() {
            let Some(End::Pod(pod, _)) = ends.first() else { continue };
            if self.compiled.pod_ends(pod).count() == ends.len() {
                whole.push(pod);
            } else {
                partial.extend(ends.iter().map(|end| end.endpoint().to_string()));
            }
        }
        partial.extend(others);
        (whole, partial)
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
