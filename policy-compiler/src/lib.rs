//! Turns Kubernetes NetworkPolicy into allow sets. Pure: no I/O, no clock, no async; it cannot fail. What is wrong with
//! the input comes back as diagnostics beside the result.

pub mod cluster;
pub mod labels;
pub mod policy;
pub mod ports;
