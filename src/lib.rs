//! Palisade.

pub mod manifests;
pub mod sandbox;
