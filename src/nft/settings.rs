//! What an operator chooses about the rules, beside the policies.

use std::fmt;

use super::marks::MarkMask;

/// What happens to a packet that no policy admits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It is counted, recorded and dropped.
    #[default]
    Enforce,
    /// It is counted and recorded, and passes.
    Audit,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Enforce => "enforce",
            Mode::Audit => "audit",
        })
    }
}

/// What a denied packet's sender hears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DenyAction {
    /// Nothing.
    #[default]
    Drop,
    /// A TCP reset, or for any other protocol the ICMP error "administratively prohibited".
    Reject,
}

impl fmt::Display for DenyAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DenyAction::Drop => "drop",
            DenyAction::Reject => "reject",
        })
    }
}

/// What becomes of a packet from or to an address of this node's pod ranges that no known pod has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownPods {
    /// It is judged like one of any other address.
    #[default]
    Allow,
    /// It is counted, recorded and dropped; in audit mode it passes.
    Drop,
}

impl fmt::Display for UnknownPods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UnknownPods::Allow => "allow",
            UnknownPods::Drop => "drop",
        })
    }
}

/// How the rules are rendered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `--mode`.
    pub mode: Mode,
    /// `--deny-action`.
    pub deny_action: DenyAction,
    /// `--verified-mark`: bits of the connection mark to keep verdicts in; without effect in audit mode.
    pub verified: Option<MarkMask>,
    /// `--unknown-pods`.
    pub unknown_pods: UnknownPods,
}

impl Settings {
    /// The bits to keep verdicts in. None in audit mode: what passes there is not what is allowed.
    pub fn marks(&self) -> Option<MarkMask> {
        self.verified.filter(|_| self.mode == Mode::Enforce)
    }
}

impl From<Mode> for Settings {
    fn from(mode: Mode) -> Self {
        Settings {
            mode,
            ..Settings::default()
        }
    }
}
