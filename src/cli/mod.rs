//! cli
mod endpoint;
mod ports;
