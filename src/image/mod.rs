//! Executor images.
