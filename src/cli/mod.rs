//! cli
#![allow(dead_code)]
mod args;
mod compile;
mod describe;
mod endpoint;
mod ends;
mod matrix;
mod output;
mod pairs;
mod ports;
