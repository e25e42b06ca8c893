//! Snapshots and events in, transactions out, with an in-memory kernel that fails when it is told to.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use policy_compiler::cluster::Node;
use policy_compiler::compile::compile;
use policy_compiler::labels::Labels;
use policy_compiler::testing;
use proptest::prelude::*;

use super::*;
use crate::nft::fake::Fake;
use crate::nft::listing::Listing;
use crate::nft::transaction::Operation;
use crate::nft::{Mode, render};

/// Remembers the transactions that were tried, and fails as often as it is told to.
#[derive(Default)]
struct Witness {
    kernel: Fake,
    failures: Cell<u32>,
    tried: RefCell<Vec<Transaction>>,
}

impl Kernel for Witness {
    fn apply(&self, transaction: &Transaction) -> Result<(), KernelError> {
        self.tried.borrow_mut().push(transaction.clone());
        if self.failures.get() > 0 {
            self.failures.set(self.failures.get() - 1);
            return Err(KernelError::Refused("as the test says".to_owned()));
        }
        self.kernel.apply(transaction)
    }

    fn check(&self, transaction: &Transaction) -> Result<(), KernelError> {
        self.kernel.check(transaction)
    }

    fn read(&self) -> Result<Option<Listing>, KernelError> {
        self.kernel.read()
    }

    fn delete(&self) -> Result<(), KernelError> {
        self.kernel.delete()
    }
}

impl Witness {
    /// Whether the last transaction made the whole table anew.
    fn replaced(&self) -> bool {
        let tried = self.tried.borrow();
        let operations = tried.iter().next_back().into_iter().flat_map(|t| t.steps().flatten());
        operations
            .into_iter()
            .any(|operation| *operation == Operation::DeleteTable)
    }
}

fn enforcer() -> Enforcer<Witness> {
    Enforcer::new("node-1".into(), Mode::Enforce, Witness::default())
}

/// How many chains, sets and elements a ruleset has: what numbering cannot change.
fn size(ruleset: &Ruleset) -> (usize, usize, usize) {
    let elements = ruleset.sets.values().map(|elements| elements.len()).sum();
    (ruleset.chains.len(), ruleset.sets.len(), elements)
}

/// Whether a table has the sets that are wanted, and no chain that is not.
fn only_rules_differ(found: &Listing, wanted: &Listing) -> bool {
    found.sets == wanted.sets
        && found.definitions == wanted.definitions
        && found.chains.keys().all(|name| wanted.chains.contains_key(name))
}

/// What was worked out pod by pod against the whole cluster.
fn summary(cluster: &Cluster) -> (usize, usize, bool) {
    let live: Vec<_> = cluster.pods.values().filter(|pod| !pod.ended).collect();
    let here = |pod: &Pod| pod.node.as_deref() == Some("node-1");
    (
        live.len(),
        live.iter().filter(|pod| here(pod) && !pod.host_network).count(),
        cluster.nodes.contains_key("node-1") || cluster.pods.values().any(|pod| here(pod)),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Events and snapshots in turn, while the kernel fails now and then: nothing is lost, and nothing is replaced that need not be.
    #[test]
    fn the_kernel_holds_what_is_wanted(
        (start, events) in testing::history(40),
        turns in proptest::collection::vec((1..4usize, any::<bool>(), prop::bool::weighted(0.2)), 40),
    ) {
        let mut enforcer = enforcer();
        let mut cluster = start;
        enforcer.load(&cluster).expect("a fake that is not told to fail");
        prop_assert!(enforcer.kernel.replaced());
        let (mut rest, mut failed) = (events.as_slice(), false);
        for (size_of_batch, by_snapshot, fails) in turns {
            let (batch, later) = rest.split_at(size_of_batch.min(rest.len()));
            rest = later;
            batch.iter().for_each(|event| event.clone().apply_to(&mut cluster));
            let tried = enforcer.kernel.tried.borrow().len();
            let found = enforcer.kernel.read().expect("a fake can be read").expect("a table was loaded");
            enforcer.kernel.failures.set(u32::from(fails));
            let result = match by_snapshot {
                true => enforcer.apply(&cluster),
                false => enforcer.follow(batch.iter().cloned()),
            };
            enforcer.kernel.failures.set(0);
            let transactions = enforcer.kernel.tried.borrow().len() - tried;
            prop_assert_eq!(enforcer.is_held(), result.is_ok());
            let wanted = enforcer.wanted().expect("a snapshot was loaded");
            if failed {
                // Only rules, where nothing else can be wrong; the whole otherwise, or when the kernel refuses that.
                let rules_only = only_rules_differ(&found, &Listing::of(wanted));
                prop_assert_eq!(transactions, if rules_only && fails { 2 } else { 1 });
                prop_assert_eq!(enforcer.kernel.replaced(), fails || !rules_only);
            } else {
                prop_assert!(transactions <= 1);
                prop_assert!(transactions == 0 || !enforcer.kernel.replaced(), "the whole only after a failure");
            }
            failed = result.is_err();
            let node = Subjects::Node("node-1".into());
            prop_assert_eq!(size(wanted), size(&render(&compile(&cluster, &node), Settings::default())));
            if !failed {
                prop_assert!(enforcer.kernel.kernel.content().as_ref() == Some(wanted));
            }
            let told = enforcer.summary();
            prop_assert_eq!((told.pods, told.node_pods, told.node_known), summary(&cluster));
        }
        if failed {
            enforcer.resync().expect("a fake that is not told to fail");
            prop_assert!(enforcer.kernel.kernel.content().as_ref() == enforcer.wanted());
        }
    }
}

#[test]
fn events_before_any_snapshot_are_those_of_an_empty_cluster() {
    let mut enforcer = enforcer();
    let node = Node {
        name: "node-1".into(),
        labels: Labels::default(),
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
    };
    let applied = enforcer.follow([Event::Node(Arc::new(node))]).expect("a fake");
    assert!(applied.changed && enforcer.kernel.replaced() && enforcer.summary().node_known);
    assert!(!enforcer.follow([]).expect("a fake").changed, "nothing happened");
}
