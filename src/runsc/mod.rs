//! The runsc binary.
