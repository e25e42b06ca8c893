//! What a chain is about, for people who list the table: whose connections come here, and which policies decided it.

use std::collections::BTreeSet;

use policy_compiler::policy::PolicyName;
use policy_compiler::table::{Origin, Table};

/// The comments of a column's chain.
pub(super) struct About {
    /// Who comes here: on the first rule.
    pub(super) peers: String,
    /// Why: on the last rule.
    pub(super) policies: String,
}

impl About {
    /// Of a class.
    pub(super) fn class(table: &Table, origin: Option<&Origin<'_>>) -> Self {
        const SHOWN: usize = 3;
        let none = Origin::default();
        let origin = origin.unwrap_or(&none);
        // A comment holds few of them, and a peer may be long.
        let mut shown: Vec<String> = origin.terms.iter().take(SHOWN).map(|peer| peer.to_string()).collect();
        if shown.is_empty() {
            shown.push("those that no selector names".to_owned());
        }
        let more = if origin.terms.len() > SHOWN { ", ..." } else { "" };
        About {
            peers: format!("peers: {}{more}", shown.join(", ")),
            policies: policies(table, origin.policies.iter().copied()),
        }
    }

    /// Of what every peer of a sort may reach.
    pub(super) fn default(table: &Table, peers: &str, policy_ids: impl Iterator<Item = u32>) -> Self {
        About {
            peers: peers.to_owned(),
            policies: policies(table, policy_ids),
        }
    }
}

fn policies(table: &Table, ids: impl Iterator<Item = u32>) -> String {
    const SHOWN: usize = 8;
    let mut names: BTreeSet<&PolicyName> = BTreeSet::new();
    for id in ids {
        names.insert(&table.policy(id).name);
        // One more than is shown says that there are more.
        if names.len() > SHOWN + 1 {
            names.pop_last();
        }
    }
    let more = if names.len() > SHOWN { ", ..." } else { "" };
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| name.to_string()).collect();
    format!("policies: {}{more}", shown.join(", "))
}
