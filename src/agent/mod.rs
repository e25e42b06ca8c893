//! The node agent: a folder of manifests goes in, the kernel's nftables follow it.

mod backoff;
pub mod enforcer;
pub mod folder;
pub mod http;
mod logs;
pub mod metrics;
pub mod readiness;
pub mod reconcile;
mod run;
pub mod verified;

pub use enforcer::{Applied, ApplyError, Enforcer};
pub use run::{Cleaned, Options, cleanup, run};
