//! Real packets against the agent's own enforcer: the kernel must do what the reference evaluator says, and connections
//! must behave as policy promises, whatever becomes of them on the way.

mod bridge;
mod conformance;
mod connections;
mod crowded;
mod cutoff;
mod damage;
mod faults;
mod flood;
mod large;
mod packets;
mod plan;
mod process;
mod random;
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
            ("random_clusters", || failed(random::clusters())),
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
            ("an_association_is_opened_by_an_init", || {
                failed(packets::an_association_is_opened_by_an_init())
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
            ("a_hundred_whole_tables_lose_and_leak_nothing", || {
                failed(faults::a_hundred_whole_tables_lose_and_leak_nothing())
            }),
            ("replacing_the_table_leaks_nothing", || {
                failed(faults::replacing_the_table_leaks_nothing())
            }),
            ("a_thousand_changes_lose_and_leak_nothing", || {
                failed(faults::a_thousand_changes_lose_and_leak_nothing())
            }),
            ("an_apply_may_end_after_any_step", || {
                failed(cutoff::an_apply_may_end_after_any_step())
            }),
            ("the_agent_may_be_killed_at_any_document", || {
                failed(cutoff::the_agent_may_be_killed_at_any_document())
            }),
            ("the_agent_may_be_killed_at_any_moment", || {
                failed(cutoff::the_agent_may_be_killed_at_any_moment())
            }),
            (
                "nft_may_fail_die_or_hang",
                || failed(cutoff::nft_may_fail_die_or_hang()),
            ),
            ("damage_is_undone_under_traffic", || {
                failed(damage::damage_is_undone_under_traffic())
            }),
            ("a_restart_and_an_upgrade_let_nothing_pass", || {
                failed(damage::a_restart_and_an_upgrade_let_nothing_pass())
            }),
            ("a_refused_policy_is_closed_and_the_others_apply", || {
                failed(damage::a_refused_policy_is_closed_and_the_others_apply())
            }),
            ("fifty_thousand_peers_are_judged", || {
                failed(large::fifty_thousand_peers_are_judged())
            }),
            ("a_full_connection_table_lets_nothing_pass", || {
                failed(crowded::a_full_connection_table_lets_nothing_pass())
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
