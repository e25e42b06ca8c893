//! The node agent: a folder of manifests or an API server goes in, the kernel's nftables follow it.

pub mod announce;
mod backoff;
pub mod bridge;
pub mod denials;
pub mod enforcer;
pub mod folder;
pub mod http;
pub mod isolate;
pub mod links;
mod live;
mod logs;
pub mod metrics;
pub mod readiness;
pub mod reconcile;
mod run;
pub mod source;
pub mod status;
pub mod verified;

pub use enforcer::{Applied, ApplyError, Enforcer};
pub use run::{Cleaned, HTTP_ADDRESS, Options, Source, cleanup, run};
