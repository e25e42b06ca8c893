//! Real packets against the agent's own enforcer: the kernel must do what the reference evaluator says, and connections
//! must behave as policy promises, whatever becomes of them on the way. Which test holds which path of a packet stands in
//! `docs/semantics.md`.
//!
//! With verdicts kept in marks (`--verified-mark`) only that is played once more in which a kept verdict could go wrong: connections
//! that live through changes, are lost, half open, translated or related; one group of scenarios and the random clusters; a
//! thousand changes under traffic; audited policies; and pods that nobody knows ([`UNDER_MARKS`]). What marks alone can break has its tests in `verified`.

mod bridge;
mod bridge_agent;
mod conformance;
mod connections;
mod crowded;
mod cutoff;
mod damage;
mod denials;
#[path = "../support/environment.rs"]
mod environment;
mod faults;
mod flood;
mod large;
mod packets;
mod paths;
mod plan;
mod process;
mod random;
mod scan;
mod services;
mod shop;
#[path = "../support/mod.rs"]
mod support;
mod unknown;
mod verified;
mod ways;
mod world;

use std::process::ExitCode;

use libtest_mimic::{Failed, Trial};
use palisade::nft::MarkMask;
use palisade::sandbox::Wiring;

/// What is played once more with verdicts kept in marks.
const UNDER_MARKS: [&str; 20] = [
    "recipes",
    "random_clusters",
    "a_change_stops_an_open_connection",
    "a_change_stops_a_connection_within_a_node",
    "a_connection_older_than_the_agent_is_judged",
    "a_connection_older_than_tracking_must_be_opened_anew",
    "replies_pass_and_the_reverse_does_not",
    "a_lost_connection_is_not_picked_up_midway",
    "a_pod_reaches_itself_through_its_service",
    "fragments_follow_their_datagram",
    "errors_of_an_allowed_connection_pass",
    "a_change_stops_datagrams_both_ways",
    "an_association_is_opened_by_an_init",
    "a_cluster_ip_stands_for_its_back_ends",
    "a_half_open_connection_is_judged",
    "a_thousand_changes_lose_and_leak_nothing",
    "audit_records_what_enforcing_does",
    "a_revoked_connection_is_reset",
    "an_unknown_pod_passes_nothing",
    "a_pod_that_is_gone_stops_at_once",
];

fn main() -> ExitCode {
    let tests: Vec<support::Test> = {
        vec![
            ("scenarios_of_the_upstream_suite", || {
                failed(conformance::group("e2e", Wiring::Routed))
            }),
            ("scenarios_of_the_upstream_suite_over_an_overlay", || {
                failed(conformance::group("e2e", Wiring::Overlay))
            }),
            ("recipes", || failed(conformance::group("recipes", Wiring::Routed))),
            ("recipes_over_a_bridge", || {
                failed(conformance::group("recipes", Wiring::Bridge))
            }),
            ("traps", || failed(conformance::group("traps", Wiring::Routed))),
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
            ("a_change_stops_datagrams_both_ways", || {
                failed(packets::a_change_stops_datagrams_both_ways())
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
            ("a_shared_link_is_closed_while_a_pod_is_isolated", || {
                failed(bridge::a_shared_link_is_closed_while_a_pod_is_isolated())
            }),
            ("a_cluster_ip_stands_for_its_back_ends", || {
                failed(services::a_cluster_ip_stands_for_its_back_ends())
            }),
            ("a_pod_reaches_itself_without_masquerade_too", || {
                failed(services::a_pod_reaches_itself_without_masquerade_too())
            }),
            ("a_node_port_with_masquerade_shows_the_node", || {
                failed(services::a_node_port_with_masquerade_shows_the_node())
            }),
            ("a_kept_client_address_is_what_policy_sees", || {
                failed(services::a_kept_client_address_is_what_policy_sees())
            }),
            ("endpoints_outside_are_judged_by_their_address", || {
                failed(services::endpoints_outside_are_judged_by_their_address())
            }),
            ("an_ingress_controller_reaches_its_back_ends", || {
                failed(services::an_ingress_controller_reaches_its_back_ends())
            }),
            ("egress_to_dns_and_to_a_part_of_the_outside", || {
                failed(services::egress_to_dns_and_to_a_part_of_the_outside())
            }),
            ("an_overlay_carries_pods_between_nodes", || {
                failed(paths::an_overlay_carries_pods_between_nodes())
            }),
            ("host_network_pods_are_their_node", || {
                failed(paths::host_network_pods_are_their_node())
            }),
            ("every_protocol_needs_its_rule", || {
                failed(paths::every_protocol_needs_its_rule())
            }),
            ("a_pod_reaches_its_own_node_and_no_other", || {
                failed(paths::a_pod_reaches_its_own_node_and_no_other())
            }),
            ("containers_of_a_pod_reach_each_other", || {
                failed(paths::containers_of_a_pod_reach_each_other())
            }),
            ("masqueraded_egress_is_judged_before", || {
                failed(paths::masqueraded_egress_is_judged_before())
            }),
            ("a_change_stops_what_is_running_on_every_wiring", || {
                failed(paths::a_change_stops_what_is_running_on_every_wiring())
            }),
            ("a_half_open_connection_is_judged", || {
                failed(paths::a_half_open_connection_is_judged())
            }),
            ("the_agent_has_bridges_meet_the_rules", || {
                failed(bridge_agent::the_agent_has_bridges_meet_the_rules())
            }),
            ("an_agent_on_a_bridge_that_escapes_is_not_ready", || {
                failed(bridge_agent::an_agent_on_a_bridge_that_escapes_is_not_ready())
            }),
            ("a_bridge_without_pods_is_left_alone", || {
                failed(bridge_agent::a_bridge_without_pods_is_left_alone())
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
            ("counters_are_exact_and_the_record_is_a_sample", || {
                failed(denials::counters_are_exact_and_the_record_is_a_sample())
            }),
            ("a_scan_of_all_ports_stays_bounded", || {
                failed(scan::a_scan_of_all_ports_stays_bounded())
            }),
            ("an_answered_scan_stays_bounded", || {
                failed(scan::an_answered_scan_stays_bounded())
            }),
            ("a_scanner_hides_nobody", || failed(scan::a_scanner_hides_nobody())),
            ("scanners_make_room_for_others", || {
                failed(scan::scanners_make_room_for_others())
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
            ("an_unknown_pod_is_let_pass_by_default", || {
                failed(unknown::an_unknown_pod_is_let_pass_by_default())
            }),
            ("an_unknown_pod_passes_nothing", || {
                failed(unknown::an_unknown_pod_passes_nothing())
            }),
            ("a_pod_that_is_gone_stops_at_once", || {
                failed(unknown::a_pod_that_is_gone_stops_at_once())
            }),
            ("audit_lets_unknown_pods_pass_and_tells", || {
                failed(unknown::audit_lets_unknown_pods_pass_and_tells())
            }),
            ("without_a_range_nothing_is_dropped", || {
                failed(unknown::without_a_range_nothing_is_dropped())
            }),
            ("audit_drops_nothing_and_counts", || {
                failed(packets::audit_drops_nothing_and_counts())
            }),
        ]
    };
    // Two bits are three generations: these come round all the time.
    let again = tests.clone().into_iter().filter(|(name, _)| UNDER_MARKS.contains(name));
    let again = again.map(|(name, test)| {
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
