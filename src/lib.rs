//! Palisade.

pub mod agent;
pub mod cli;
pub mod demo;
pub mod manifests;
pub mod nft;
pub mod preflight;
pub mod sandbox;
