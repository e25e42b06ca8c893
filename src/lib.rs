//! Palisade.

pub mod agent;
pub mod cli;
pub mod demo;
pub mod manifests;
mod netlink;
pub mod nft;
mod plain;
pub mod preflight;
mod progress;
pub mod sandbox;
