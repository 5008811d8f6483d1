//! Cgroups.

use std::fs::File;
use std::io;

/// One sandbox's cgroup.
#[derive(Debug)]
pub struct Leaf {}

impl Leaf {
    /// Opens `cgroup.procs` of every hierarchy for writing.
    ///
    /// # Errors
    /// Those of opening.
    pub fn open_procs(&self) -> io::Result<Vec<File>> {
        Ok(Vec::new())
    }
}
