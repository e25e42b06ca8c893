//! What happens to the pods of a generated cluster: each event as the API server would report it.

use std::collections::VecDeque;
use std::sync::Arc;

use super::roles::Kind;
use super::world::World;
use crate::cluster::{Cluster, Pod};
use crate::compile::Event;

/// The events of a generated cluster, without end.
pub struct Events {
    world: World,
    /// How many pods each workload began with: it stays near that.
    sizes: Vec<usize>,
    pending: VecDeque<Event>,
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        while self.pending.is_empty() {
            if self.world.controllers.is_empty() {
                return None;
            }
            self.happen();
        }
        let event = self.pending.pop_front()?;
        if let Some(gone) = apply(&event, &mut self.world.cluster) {
            self.world.release(&gone);
        }
        Some(event)
    }
}

impl Events {
    pub(super) fn new(world: World) -> Self {
        Events {
            sizes: world.controllers.iter().map(|c| c.pods.len()).collect(),
            world,
            pending: VecDeque::new(),
        }
    }

    /// One thing happens to one workload.
    fn happen(&mut self) {
        let index = self.world.random.below(self.world.controllers.len());
        let controller = &self.world.controllers[index];
        match (self.world.random.below(10), controller.kind) {
            (0..5, Kind::Deployment) => self.roll(index),
            (0..5, _) => self.restart(index),
            (5..8, _) => self.relabel(index),
            // What runs once on every node neither grows nor shrinks.
            (_, Kind::DaemonSet) => {}
            _ if controller.pods.len() > self.sizes[index] => self.shrink(index),
            _ => self.start(index, None),
        }
    }

    /// Every pod is replaced by one of the next generation, which starts before the old one goes.
    fn roll(&mut self, index: usize) {
        let revision = self.world.random.letters(9).into();
        let controller = &mut self.world.controllers[index];
        controller.revision = revision;
        for old in std::mem::take(&mut controller.pods) {
            self.start(index, None);
            self.pending.push_back(Event::PodGone(old));
        }
    }

    /// The last pod goes, and one takes its place: of the same name in a StatefulSet, on the same node in a DaemonSet.
    fn restart(&mut self, index: usize) {
        let Some(old) = self.world.controllers[index].pods.pop() else {
            return;
        };
        let node = self.world.cluster.pods.get(&old).and_then(|p| p.node.clone());
        let daemon = self.world.controllers[index].kind == Kind::DaemonSet;
        let node = node.filter(|_| daemon).and_then(|n| self.world.node_index(&n));
        self.pending.push_back(Event::PodGone(old));
        self.start(index, node);
    }

    fn shrink(&mut self, index: usize) {
        if let Some(old) = self.world.controllers[index].pods.pop() {
            self.pending.push_back(Event::PodGone(old));
        }
    }

    /// A new pod is seen twice: when it is placed, and when it has its addresses.
    fn start(&mut self, index: usize, node: Option<usize>) {
        let running = self.world.new_pod(index, node);
        let mut placed = running.clone();
        placed.addresses = Vec::new();
        placed.started = None;
        placed.ended = false;
        self.pending
            .extend([Event::Pod(Arc::new(placed)), Event::Pod(Arc::new(running))]);
    }

    /// Someone labels one pod: to take it out of service, or to look at it.
    fn relabel(&mut self, index: usize) {
        let pods = &self.world.controllers[index].pods;
        let Some(pod) = pods.first().and_then(|name| self.world.cluster.pods.get(name)) else {
            return;
        };
        let mut pod = Arc::unwrap_or_clone(pod.clone());
        let was = pod.labels.get("canary").is_some_and(|value| **value == *"true");
        pod.labels = pod.labels.with("canary", if was { "false" } else { "true" });
        self.pending.push_back(Event::Pod(Arc::new(pod)));
    }
}

/// Makes a cluster what it is after a pod event; answers with the pod that is gone.
fn apply(event: &Event, cluster: &mut Cluster) -> Option<Arc<Pod>> {
    match event {
        Event::Pod(pod) => {
            cluster.pods.insert(pod.name.clone(), pod.clone());
            None
        }
        Event::PodGone(name) => cluster.pods.remove(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Spec, cluster, events};
    use super::*;
    use crate::addresses::AddressBook;

    #[test]
    fn a_cluster_stays_whole_under_its_events() {
        let spec = Spec::realistic(300);
        let mut cluster = cluster(&spec);
        let (mut replaced, mut relabelled) = (0, 0);
        for event in events(&spec).take(20_000) {
            match &event {
                Event::PodGone(name) => {
                    assert!(cluster.pods.contains_key(name), "{name} is deleted, and was not there");
                    replaced += 1;
                }
                Event::Pod(pod) => {
                    let before = cluster.pods.get(&pod.name);
                    assert_ne!(before, Some(pod), "{} did not change", pod.name);
                    relabelled += usize::from(before.is_some_and(|p| p.labels != pod.labels));
                }
                other => panic!("{other:?} is about no pod"),
            }
            apply(&event, &mut cluster);
        }
        assert!(replaced > 1_000 && relabelled > 1_000, "{replaced} {relabelled}");
        assert!((250..600).contains(&cluster.pods.len()), "{} pods", cluster.pods.len());
        assert!(AddressBook::new(&cluster).conflicts().is_empty());
    }

    #[test]
    fn nothing_happens_without_pods() {
        assert_eq!(events(&Spec::realistic(0)).next(), None);
    }
}
