//! Real packets against the agent's own enforcer: the kernel must do what the reference evaluator says, and connections
//! must behave as policy promises, whatever becomes of them on the way.

mod bridge;
mod conformance;
mod connections;
mod denials;
mod packets;
mod plan;
mod shop;
#[path = "../support/mod.rs"]
mod support;
mod world;

use std::process::ExitCode;

use libtest_mimic::Failed;

fn main() -> ExitCode {
    support::run(
        "packets",
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
            ("counters_are_exact_and_the_record_is_a_sample", || {
                failed(denials::counters_are_exact_and_the_record_is_a_sample())
            }),
            ("a_scan_of_all_ports_stays_bounded", || {
                failed(denials::a_scan_of_all_ports_stays_bounded())
            }),
            ("entries_age", || failed(denials::entries_age())),
            ("audit_records_what_enforcing_does", || {
                failed(denials::audit_records_what_enforcing_does())
            }),
            ("a_rejected_sender_hears_of_it", || {
                failed(denials::a_rejected_sender_hears_of_it())
            }),
            ("a_revoked_connection_is_reset", || {
                failed(denials::a_revoked_connection_is_reset())
            }),
            ("the_command_tells_who_and_why", || {
                failed(denials::the_command_tells_who_and_why())
            }),
            ("the_agent_counts_and_rejects", || {
                failed(denials::the_agent_counts_and_rejects())
            }),
            ("audit_drops_nothing_and_counts", || {
                failed(packets::audit_drops_nothing_and_counts())
            }),
        ],
    )
}

fn failed(result: world::Result) -> Result<(), Failed> {
    result.map_err(|error| Failed::from(error.to_string()))
}
