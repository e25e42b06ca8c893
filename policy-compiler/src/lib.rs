//! Turns Kubernetes NetworkPolicy into allow sets. Pure: no I/O, no clock, no async; it cannot fail. What is wrong with
//! the input comes back as diagnostics beside the result.

pub mod addresses;
pub mod cells;
pub mod changes;
pub mod cluster;
pub mod compile;
pub mod convert;
pub mod diagnostics;
pub mod evaluate;
#[cfg(feature = "generate")]
pub mod generate;
mod half;
pub mod labels;
mod matching;
pub mod policy;
mod population;
pub mod ports;
mod rules;
pub mod table;
#[cfg(feature = "testing")]
pub mod testing;
