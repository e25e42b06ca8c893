//! Real packets against the agent's own enforcer: the kernel must do what the reference evaluator says, and connections
//! must behave as policy promises, whatever becomes of them on the way.

mod bridge;
mod conformance;
mod connections;
mod packets;
mod plan;
mod shop;
#[path = "../support/mod.rs"]
mod support;
mod verified;
mod world;

use std::process::ExitCode;

use libtest_mimic::{Failed, Trial};
use palisade::nft::MarkMask;

fn main() -> ExitCode {
    let tests: Vec<support::Test> = {
        vec![
            ("scenarios_of_the_upstream_suite", || failed(conformance::group("e2e"))),
            ("recipes", || failed(conformance::group("recipes"))),
            ("traps", || failed(conformance::group("traps"))),
            ("a_change_stops_an_open_connection", || {
                failed(connections::a_change_stops_an_open_connection())
            }),
            ("a_change_stops_a_connection_within_a_node", || {
                failed(connections::a_change_stops_a_connection_within_a_node())
            }),
            ("a_connection_older_than_the_agent_is_judged", || {
                failed(connections::a_connection_older_than_the_agent_is_judged())
            }),
            ("a_connection_older_than_tracking_must_be_opened_anew", || {
                failed(connections::a_connection_older_than_tracking_must_be_opened_anew())
            }),
            ("replies_pass_and_the_reverse_does_not", || {
                failed(connections::replies_pass_and_the_reverse_does_not())
            }),
            ("a_lost_connection_is_not_picked_up_midway", || {
                failed(connections::a_lost_connection_is_not_picked_up_midway())
            }),
            ("a_pod_reaches_itself_through_its_service", || {
                failed(connections::a_pod_reaches_itself_through_its_service())
            }),
            ("fragments_follow_their_datagram", || {
                failed(packets::fragments_follow_their_datagram())
            }),
            ("errors_of_an_allowed_connection_pass", || {
                failed(packets::errors_of_an_allowed_connection_pass())
            }),
            ("tcp_learns_of_a_narrow_link", || {
                failed(packets::tcp_learns_of_a_narrow_link())
            }),
            ("a_change_stops_datagrams_both_ways", || {
                failed(packets::a_change_stops_datagrams_both_ways())
            }),
            ("echo_needs_a_rule_without_ports", || {
                failed(packets::echo_needs_a_rule_without_ports())
            }),
            ("untracked_packets_are_denied_to_isolated_pods", || {
                failed(packets::untracked_packets_are_denied_to_isolated_pods())
            }),
            ("neighbours_are_found_whatever_the_policy", || {
                failed(packets::neighbours_are_found_whatever_the_policy())
            }),
            ("a_pod_and_its_node_reach_each_other", || {
                failed(packets::a_pod_and_its_node_reach_each_other())
            }),
            ("pods_on_a_bridge_find_each_other", || {
                failed(bridge::pods_on_a_bridge_find_each_other())
            }),
            ("audit_drops_nothing_and_counts", || {
                failed(packets::audit_drops_nothing_and_counts())
            }),
        ]
    };
    // Everything once more with verdicts kept in marks. Two bits are three generations: these come round all the time.
    let again = tests.clone().into_iter().map(|(name, test)| {
        let again = move || world::with_marks(MarkMask::new(0x0003_0000).ok(), test);
        Trial::test(format!("verified::{name}"), again)
    });
    #[rustfmt::skip] // a table
    let marks: Vec<support::Test> = vec![
        ("judged_connections_pass_by_their_mark", || failed(verified::judged_connections_pass_by_their_mark())),
        ("a_change_needs_nothing_after_its_transaction", || failed(verified::a_change_needs_nothing_after_its_transaction())),
        ("a_number_that_comes_round_revives_nothing", || failed(verified::a_number_that_comes_round_revives_nothing())),
        ("a_new_agent_trusts_no_mark", || failed(verified::a_new_agent_trusts_no_mark())),
        ("other_bits_are_left_alone", || failed(verified::other_bits_are_left_alone())),
        ("an_expected_connection_is_judged", || failed(verified::an_expected_connection_is_judged())),
    ];
    let again = again.chain(
        marks
            .into_iter()
            .map(|(name, test)| Trial::test(format!("verified::{name}"), test)),
    );
    let plain = tests.into_iter().map(|(name, test)| Trial::test(name, test));
    support::run_trials("packets", plain.chain(again).collect())
}

fn failed(result: world::Result) -> Result<(), Failed> {
    result.map_err(|error| Failed::from(error.to_string()))
}
