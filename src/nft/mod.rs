//! From the compiled table of one node to the kernel: rendering (pure), transactions (values), and the one narrow trait by
//! which they are applied. Nothing outside the table `inet palisade` is read or written.

mod conntrack;
pub mod diff;
mod expressions;
pub mod fake;
mod generation;
pub mod kernel;
pub mod listing;
pub mod marks;
pub mod names;
mod numbering;
pub mod render;
mod render_base;
mod render_column;
pub mod ruleset;
mod schema;
mod settings;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
mod text;
pub mod tracer;
pub mod transaction;

pub use conntrack::{ClearError, Clearing};
pub use diff::{diff, replace};
pub use kernel::{Kernel, KernelError, Nft};
pub use marks::{MarkMask, Marks};
pub use render::render;
pub use ruleset::Ruleset;
pub use settings::{Mode, Settings};
pub use text::PRIORITY;
pub use transaction::Transaction;

/// So many denied connections are remembered in each record.
const RECORD_SIZE: u32 = 4096;
/// For so long after they were last seen.
const RECORD_SECONDS: u32 = 3600;
