//! One copy of every name: fifty thousand pods carry a few hundred different labels.

use std::collections::HashSet;

use policy_compiler::cluster::{ContainerPort, Pod, PodName, Workload};
use policy_compiler::labels::{Labels, Name};

/// The pool is swept when it has grown to twice what the last sweep left, and to this at least.
const SWEEP_AT_LEAST: usize = 4096;

/// Names in use.
#[derive(Debug)]
pub(super) struct Pool {
    names: HashSet<Name>,
    sweep_at: usize,
}

impl Default for Pool {
    fn default() -> Self {
        Pool {
            names: HashSet::new(),
            sweep_at: SWEEP_AT_LEAST,
        }
    }
}

impl Pool {
    /// The pool's copy of a name.
    pub(super) fn name(&mut self, name: &Name) -> Name {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        if self.names.len() >= self.sweep_at {
            self.names.retain(|name| Name::strong_count(name) > 1);
            self.sweep_at = (self.names.len() * 2).max(SWEEP_AT_LEAST);
        }
        self.names.insert(name.clone());
        name.clone()
    }

    /// The same pod, made of the pool's names. A pod's own name is nobody else's, and stays out of it.
    pub(super) fn pod(&mut self, pod: Pod) -> Pod {
        let labels: Labels = pod.labels.iter().map(|(k, v)| (self.name(k), self.name(v))).collect();
        let ports = pod.ports.into_iter().map(|port| ContainerPort {
            name: port.name.map(|name| self.name(&name)),
            ..port
        });
        let mut ports: Vec<ContainerPort> = ports.collect();
        ports.shrink_to_fit();
        let mut addresses = pod.addresses;
        addresses.shrink_to_fit();
        Pod {
            name: PodName {
                namespace: self.name(&pod.name.namespace),
                name: pod.name.name,
            },
            labels,
            ports,
            addresses,
            node: pod.node.map(|node| self.name(&node)),
            workload: pod.workload.map(|workload| Workload {
                kind: self.name(&workload.kind),
                name: self.name(&workload.name),
            }),
            ..pod
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_one_and_unused_ones_go() {
        let mut pool = Pool::default();
        let first = pool.name(&"app".into());
        let second = pool.name(&"app".into());
        assert!(Name::ptr_eq(&first, &second));
        for at in 0..3 * SWEEP_AT_LEAST {
            pool.name(&at.to_string().into());
        }
        assert!(pool.names.len() <= SWEEP_AT_LEAST, "{}", pool.names.len());
        assert!(Name::ptr_eq(&first, &pool.name(&"app".into())));
    }
}
