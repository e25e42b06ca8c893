//! The same loop with verdicts kept in connection marks.

use super::*;

/// The settings of an agent that keeps verdicts in marks, and what the table says when it does with a generation.
fn marking() -> Settings {
    Settings {
        verified: MarkMask::new(0xff00).ok(),
        ..Settings::default()
    }
}

fn accepts(table: &str, generation: u32) -> bool {
    table.contains(&format!("ct mark & 0x0000ff00 == {:#010x} ", generation << 8))
}

#[tokio::test(start_paused = true)]
async fn a_change_takes_marks_out_of_force_and_the_next_number_follows() {
    play_with(marking(), cluster(&["a"]), 0, async |stage| {
        sleep(CHECK_EVERY * 3).await;
        assert!(accepts(&stage.shelf.table(), 1), "{}", stage.shelf.table());
        assert!(stage.metric("verified_marks 1"));
        assert_eq!(stage.shared.readiness.report(), Ok("ready\n".to_owned()));
        let before = stage.shelf.tried();

        stage.change(Ok(cluster(&[]))).await;
        assert!(accepts(&stage.shelf.table(), 2), "{}", stage.shelf.table());
        let tried = stage.shelf.world().tried.split_off(before);
        let [change, raise] = tried.as_slice() else {
            panic!("{} transactions", tried.len())
        };
        let (change, raise) = (change.to_string(), raise.to_string());
        assert!(change.contains("flush chain inet palisade forward\n") && !change.contains("ct mark & 0x0000ff00 =="));
        assert!(
            change.contains("delete element") && !raise.contains("element"),
            "{change}\n{raise}"
        );
        sleep(CHECK_EVERY * 5).await;
        assert_eq!(stage.shelf.tried(), before, "our own transactions are no drift");
        assert!(stage.metric("drift_repairs_total 0"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nft_that_refuses_marks_leaves_a_node_that_is_ready_and_judges() {
    play_with(marking(), cluster(&["a"]), 0, async |stage| {
        stage.shelf.world().failures = 1;
        sleep(CHECK_EVERY * 3).await;
        let report = stage.shared.readiness.report().expect("ready");
        assert!(
            report.contains("warning: --verified-mark is without effect"),
            "{report}"
        );
        assert!(!stage.shelf.table().contains("ct mark"));
        assert!(stage.metric("verified_marks 0"));
        stage.change(Ok(cluster(&[]))).await;
        assert!(stage.shared.readiness.is_ready());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn marks_that_may_or_may_not_be_in_force_go_with_all_rules() {
    play_with(marking(), cluster(&["a"]), 0, async |stage| {
        sleep(CHECK_EVERY * 3).await;
        let before = stage.shelf.tried();
        stage.shelf.world().hanging = true;
        // The change itself succeeds, and what follows it does not.
        stage.shelf.world().passes = 1;
        stage.shelf.world().failures = 1;
        stage.shelf.world().manifests = Some(Ok(cluster(&[])));
        stage.events.try_send(()).expect("room");
        while stage.shared.readiness.is_ready() {
            sleep(Duration::from_millis(1)).await;
        }
        stage.not_ready("did not finish");
        assert!(!stage.shelf.table().contains("ct mark & 0x0000ff00 =="));
        sleep(Duration::from_secs(10)).await;
        let anew = stage.shelf.world().tried[before + 2].to_string();
        assert!(
            anew.contains("flush chain inet palisade forward\n") && !anew.contains("ct mark"),
            "{anew}"
        );
        assert!(stage.shared.readiness.is_ready());
        assert!(accepts(&stage.shelf.table(), 1), "{}", stage.shelf.table());
    })
    .await;
}
