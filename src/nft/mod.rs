//! From the compiled table of one node to the kernel: rendering (pure), transactions (values), and the one narrow trait by
//! which they are applied. Nothing outside the table `inet palisade` is read or written, but for the names that `foreign` lists.

mod conntrack;
pub mod denials;
mod draft;
mod expressions;
pub mod fake;
pub mod foreign;
mod generation;
mod interim;
pub mod kernel;
pub mod listing;
pub mod marks;
pub mod monitor;
pub mod names;
mod nfnetlink;
mod numbering;
pub mod render;
mod render_base;
mod render_column;
mod render_side;
mod render_words;
pub mod rules;
pub mod ruleset;
mod schema;
mod settings;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
mod text;
pub mod tracer;
pub mod transaction;
mod unknown;
mod whole;

pub use conntrack::{ClearError, Clearing};
pub use denials::{Count, Denial};
pub use kernel::{Kernel, KernelError, Nft};
pub use marks::{MarkMask, Marks};
pub use render::{Renderer, render};
pub use ruleset::Ruleset;
pub use settings::{DenyAction, Mode, Settings, UnknownPods};
pub use text::PRIORITY;
pub use transaction::Transaction;
pub use whole::{replace, restore};

/// So many denied packets that begin a connection are recorded in a second, and as many of running ones; a scan must not
/// cost more than it is worth.
const RECORDS_PER_SECOND: u32 = 100;
/// Of each of the two, so many of one source, ...
const SHARE_PER_SECOND: u32 = 10;
/// ... and so many at once: nobody takes all.
const SHARE_AT_ONCE: u32 = 50;
/// So many sources are told apart; what others send is only bounded by what is left to all.
const SOURCES: u32 = 4096;
/// For so long after they were last denied something. By then its share is whole again.
const SOURCE_SECONDS: u32 = 60;
/// So many denied connections are remembered in each record.
pub(crate) const RECORD_SIZE: u32 = 4096;
/// For so long after they were last seen.
pub(crate) const RECORD_SECONDS: u32 = 3600;
