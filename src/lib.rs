//! Palisade.

pub mod agent;
pub mod manifests;
pub mod nft;
pub mod sandbox;
