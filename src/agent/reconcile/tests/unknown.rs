//! What the loop says about `--unknown-pods drop`.

use policy_compiler::cluster::Node;

use super::*;
use crate::agent::status::Status;

/// The cluster, whose only pod has 10.244.1.2, with a node of these ranges.
fn ranged(ranges: &[&str]) -> Cluster {
    let mut cluster = cluster(&["a"]);
    cluster.add_node(Node {
        name: "node-1".into(),
        labels: Labels::default(),
        addresses: Vec::new(),
        pod_cidrs: ranges.iter().map(|range| range.parse().expect("a range")).collect(),
    });
    cluster
}

fn dropping() -> Settings {
    Settings {
        unknown_pods: UnknownPods::Drop,
        ..Settings::default()
    }
}

#[tokio::test(start_paused = true)]
async fn where_it_has_no_effect_it_says_so_and_drops_nothing() {
    play_with(dropping(), cluster(&["a"]), 0, async |stage| {
        let without = "ready\nwarning: --unknown-pods drop is without effect: no Node node-1 with podCIDRs is known\n";
        let report = || stage.shared.readiness.report().expect("ready");
        assert_eq!(report(), without);
        assert!(!stage.shelf.table().contains("known4"), "{}", stage.shelf.table());

        stage.change(Ok(ranged(&["10.244.1.0/24"]))).await;
        assert_eq!(report(), "ready\n");
        assert!(
            stage
                .shelf
                .table()
                .contains("ip saddr 10.244.1.0/24 ip saddr != @known4 jump unknown")
        );

        stage.change(Ok(ranged(&["10.244.2.0/24", "fd00::/64"]))).await;
        let report_now = report();
        assert!(
            report_now.contains("covers only a part of the pods here: 1 of their addresses are outside"),
            "{report_now}"
        );

        // Without its Node nobody knows the range, and an address that was let pass is let pass again.
        stage.change(Ok(cluster(&["a"]))).await;
        assert_eq!(report(), without);
        assert!(!stage.shelf.table().contains("jump unknown"), "{}", stage.shelf.table());
        let enforced = Status::of(&stage.shared).enforced.expect("applied");
        assert_eq!(enforced.unknown_pods, "drop");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn by_default_nothing_is_said_or_asked() {
    play(ranged(&["10.244.2.0/24"]), 0, async |stage| {
        assert_eq!(stage.shared.readiness.report(), Ok("ready\n".to_owned()));
        assert!(!stage.shelf.table().contains("unknown"), "{}", stage.shelf.table());
    })
    .await;
}
