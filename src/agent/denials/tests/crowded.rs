//! A record that grows full: room is made, in time and set by set.

use super::*;
use crate::nft::RECORD_SIZE;
use crate::nft::fake::Refused;
use crate::nft::names::SetName;
use crate::nft::transaction::Operation;

#[tokio::test(start_paused = true)]
async fn a_scan_leaves_room_for_others() {
    let mut scene = Scene::new();
    let recorded = |scene: &Scene| scene.enforcer.kernel().denials().expect("read").expect("a table");
    scene.send("10.0.0.4", "10.0.0.1", 80);
    scene.look();
    assert_eq!(scene.lines().len(), 1);
    // As fast as the rules record, for longer than the record could hold.
    let ports: Vec<u16> = (1..=RECORD_SIZE as u16 * 5 / 4).collect();
    for ports in ports.chunks(600) {
        ports.iter().for_each(|port| scene.send("10.0.0.3", "10.0.0.1", *port));
        advance(LOOK_EVERY).await;
        scene.look();
        assert!(recorded(&scene).len() <= RECORD_SIZE as usize / 2);
    }
    assert!(
        recorded(&scene).iter().any(|d| d.from.to_string() == "10.0.0.4"),
        "what was there"
    );
    advance(QUIET).await;
    scene.look();
    scene.lines();
    scene.send("10.0.0.5", "10.0.0.2", 80);
    advance(LOOK_EVERY).await;
    scene.look();
    assert!(recorded(&scene).iter().any(|d| d.from.to_string() == "10.0.0.5"));
    assert!(scene.lines()[0].starts_with(" INFO denied from=10.0.0.5 to=shop/web-2 (10.0.0.2) port=\"80/TCP\""));
}

#[test]
fn a_look_that_takes_long_does_not_come_too_late() {
    for (crowded, seconds, pause) in [
        (false, 0, 5),
        (true, 0, 5),
        (false, 3, 60),
        (true, 3, LOOK_WITHIN.as_secs()),
    ] {
        let denials = Denials {
            crowded,
            ..Denials::default()
        };
        let found = denials.pause(Duration::from_secs(seconds));
        assert_eq!(found, Duration::from_secs(pause), "{crowded} {seconds}");
    }
    // Three quarters of a set at the rate of the rules, and half of one.
    assert!(READ_EVERY.as_secs() * 200 <= u64::from(RECORD_SIZE) * 3 / 4);
    assert!(LOOK_WITHIN.as_secs() * 200 <= u64::from(RECORD_SIZE) / 2);
}

#[tokio::test(start_paused = true)]
async fn where_room_is_not_ample_the_record_is_read_with_each_look() {
    let mut scene = Scene::new();
    scene.look();
    // None of it is counted for any pod.
    (0..=RECORD_SIZE as u16 / 4).for_each(|port| scene.send("fe80::2", "fe80::1", port));
    advance(READ_EVERY).await;
    scene.look();
    scene.lines();
    scene.send("fe80::3", "fe80::1", 80);
    advance(LOOK_EVERY).await;
    scene.look();
    let lines = scene.lines();
    assert!(lines.len() == 1 && lines[0].contains("from=fe80::3 "), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn a_set_that_is_refused_keeps_no_other_full() {
    let (cluster, metrics) = (cluster(), Metrics::default());
    let mut enforcer = Enforcer::new("here".into(), Settings::default(), Fake::default());
    enforcer.load(&cluster).expect("applied");
    for port in 0..=RECORD_SIZE as u16 / 2 {
        enforcer
            .kernel()
            .send(&packet("10.0.0.3", "10.0.0.1", port))
            .expect("traced");
        enforcer
            .kernel()
            .send(&packet("fe80::2", "fe80::1", port))
            .expect("traced");
    }
    let (full, kept) = (RECORD_SIZE as usize / 2 + 1, RECORD_SIZE as usize * 3 / 8);
    let (four, six) = (SetName::Denied(Family::V4), SetName::Denied(Family::V6));
    let mut denials = Denials::default();
    // Entries are not taken out of one of the sets.
    let stubborn: Refused = |operation| matches!(operation, Operation::Forget(SetName::Denied(Family::V4), _));
    for (refused, left) in [(Some(stubborn), [full, kept]), (None, [kept, kept])] {
        enforcer.kernel().refuse(refused);
        logged(&Lines::default(), || denials.look(&mut enforcer, &cluster, &metrics));
        let record = enforcer.kernel().denials().expect("read").expect("a table");
        let of = |set| record.iter().filter(|d| d.set() == set).count();
        assert_eq!([of(four), of(six)], left);
        // What is still there is no news.
        let known: BTreeSet<_> = denials.recorded.keys().cloned().collect();
        assert_eq!(known, record.iter().map(key).collect());
        advance(LOOK_EVERY).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_made_room_is_news_when_it_comes_again() {
    let mut scene = Scene::new();
    let ports = || 1..=RECORD_SIZE as u16 / 2 + 1;
    ports().for_each(|port| scene.send("10.0.0.3", "10.0.0.1", port));
    scene.look();
    let left = scene.enforcer.kernel().denials().expect("read").expect("a table");
    let gone = ports()
        .find(|port| left.iter().all(|d| d.port != Some(*port)))
        .expect("one that made room");
    advance(QUIET).await;
    scene.look();
    scene.lines();
    scene.send("10.0.0.3", "10.0.0.1", gone);
    advance(LOOK_EVERY).await;
    scene.look();
    let lines = scene.lines();
    assert!(
        lines.len() == 1 && lines[0].contains(&format!("port=\"{gone}/TCP\" packets=1 ")),
        "{lines:?}"
    );
}
