//! Palisade.

pub mod manifests;
pub mod nft;
pub mod sandbox;
