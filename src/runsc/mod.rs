//! The runsc binary.

pub mod provision;
