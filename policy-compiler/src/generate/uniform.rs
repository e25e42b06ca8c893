//! The shape of Antrea's controller benchmark: namespaces that are all alike.

use super::Spec;
use super::policies::{peer, policy, rule};
use super::roles::Kind;
use super::world::World;
use crate::cluster::Namespace;
use crate::labels::{Labels, Name, Selector};
use crate::policy::{NamespaceScope, Ports};

/// Fills every namespace with its even share of the pods and policies.
pub(super) fn fill(world: &mut World, spec: &Spec) {
    let namespaces = spec.namespaces.max(1);
    let share = |total: usize, index: usize| (index + 1) * total / namespaces - index * total / namespaces;
    for index in 0..namespaces {
        let name = Name::from(format!("ns-{}-{index}", world.random.letters(8)));
        let labels: Labels = [("app", &*name)].into_iter().collect();
        world.cluster.add_namespace(Namespace::new(name.clone(), labels));
        let (pods, policies) = (share(spec.pods, index), share(spec.policies, index));
        // Each label has a policy of its own; the one that is over denies everything.
        let apps = policies.saturating_sub(1).max(1);
        let label = |app: usize| (format!("app-{app}"), format!("scale-{app}"));
        for app in 0..apps.min(pods) {
            let (key, value) = label(app);
            let controller = world.add_controller(&name, Kind::Deployment, &key, &[(&key, &value)], &[]);
            for _ in (0..pods).filter(|pod| pod * apps.min(pods) / pods == app) {
                world.add_pod(controller, None);
            }
        }
        for number in 0..policies {
            world.cluster.add_policy(match number {
                0 => policy(
                    &name,
                    "default-deny-all",
                    Selector::everything(),
                    Some(Vec::new()),
                    Some(Vec::new()),
                ),
                _ => {
                    let selector = Selector::labels([label(number - 1)]);
                    let own = peer(NamespaceScope::Named(name.clone()), selector.clone());
                    let ingress = vec![rule([own], Ports::All)];
                    policy(
                        &name,
                        &format!("np-{number}"),
                        selector,
                        Some(ingress),
                        Some(Vec::new()),
                    )
                }
            });
        }
    }
}
