//! Palisade.

pub mod manifests;
