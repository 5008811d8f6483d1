//! The queue and the history on a real PostgreSQL of the test's own.
#![expect(
    clippy::unwrap_used,
    reason = "a test reports by panicking, and so do the functions it is written with"
)]

mod audit;
mod bucket;
mod claims;
mod cluster;
mod conformance;
mod described;
mod files;
mod jobs;
mod model;
mod objects;
mod tls;
mod together;
mod usage;
