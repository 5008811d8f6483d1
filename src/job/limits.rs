//! Limits of one job.

use std::time::Duration;

/// Below this a sandbox cannot start reliably: sentry, interpreter and a little for the program.
pub const MIN_MEMORY_BYTES: u64 = 64 << 20;

/// The granularity of a memory limit; the kernel rounds anything else and the read-back would differ.
const PAGE_BYTES: u64 = 4096;

/// The ceilings one job runs under, already checked against the operator's maxima.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Bytes of memory, the sandbox itself included; the kernel kills above it.
    pub memory_bytes: u64,
    /// Thousandths of one CPU.
    pub millicpus: u32,
    /// Processes and threads of the program alive at once (`RLIMIT_NPROC` in the guest).
    pub processes: u32,
    /// Open files of one process (`RLIMIT_NOFILE`).
    pub open_files: u32,
    /// Bytes of one file that the program writes (`RLIMIT_FSIZE`).
    pub file_bytes: u64,
    /// Size of `/tmp`, in bytes.
    pub tmp_bytes: u64,
    /// From the start of the interpreter until it is up.
    pub startup: Duration,
    /// From there until the program is told to end.
    pub execution: Duration,
    /// Bytes of stdout kept in the record; what comes after is counted and passed on live.
    pub stdout_bytes: u64,
    /// Bytes of stderr kept in the record.
    pub stderr_bytes: u64,
    /// Bytes of stdout and stderr together, above which the program is killed.
    pub output_bytes: u64,
    /// Bytes of one collected file.
    pub artifact_bytes: u64,
    /// Bytes of all collected files.
    pub artifacts_total_bytes: u64,
}

impl Default for Limits {
    /// Those of Tako VM's built-in job type `default`.
    fn default() -> Self {
        Self {
            memory_bytes: 512 << 20,
            millicpus: 1000,
            processes: 50,
            open_files: 256,
            file_bytes: 100 << 20,
            tmp_bytes: 100 << 20,
            startup: Duration::from_mins(2),
            execution: Duration::from_secs(30),
            stdout_bytes: 64 << 10,
            stderr_bytes: 64 << 10,
            output_bytes: 1 << 30,
            artifact_bytes: 10 << 20,
            artifacts_total_bytes: 50 << 20,
        }
    }
}

impl Limits {
    /// Thousandths of a CPU in one.
    pub const ONE_CPU: u32 = 1000;

    /// What of them is fixed once a sandbox is started, and the defaults for all that is told with a
    /// job. Sandboxes that were started with the same can take one another's jobs.
    #[must_use]
    pub fn at_start(&self) -> Self {
        Self {
            memory_bytes: self.memory_bytes,
            processes: self.processes,
            open_files: self.open_files,
            file_bytes: self.file_bytes,
            tmp_bytes: self.tmp_bytes,
            artifacts_total_bytes: self.artifacts_total_bytes,
            // All that matters before there is a job: whether it may use more than one.
            millicpus: self.millicpus.clamp(Self::ONE_CPU, Self::ONE_CPU + 1),
            ..Self::default()
        }
    }

    /// Processes on the host that the program's own bound can lead to.
    ///
    /// Every guest process costs the sentry up to three host threads, and an idle sandbox some 25:
    /// the guest's bound must be the one that is met first, hitting this one would be our defect.
    pub fn host_processes(&self) -> u64 {
        64 + 4 * u64::from(self.processes)
    }
}

/// Why a number with a unit is not a size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum LimitError {
    #[error("`{text}` is not a size: write a whole number with `k`, `m` or `g`, such as `512m`")]
    NotASize { text: String },
}

/// Parses a size such as `512m`, `2g` or `67108864`, rounded down to whole pages.
///
/// # Errors
/// [`LimitError::NotASize`] for anything else, and for what does not fit 64 bits.
pub fn parse_bytes(text: &str) -> Result<u64, LimitError> {
    let not_a_size = || LimitError::NotASize {
        text: text.to_owned(),
    };
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let unit = match &lower[digits.len()..] {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => return Err(not_a_size()),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(not_a_size());
    }
    let bytes = digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit));
    bytes.map(whole_pages).ok_or_else(not_a_size)
}

/// The number of bytes, rounded down to whole pages.
pub(super) fn whole_pages(bytes: u64) -> u64 {
    bytes - bytes % PAGE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_with_their_units_and_nothing_else_is() {
        assert_eq!(parse_bytes("512m"), Ok(512 << 20));
        assert_eq!(parse_bytes("2G"), Ok(2 << 30));
        assert_eq!(parse_bytes("67108865"), Ok(67_108_864));
        for bad in [
            "",
            "m",
            "-1m",
            "1.5g",
            "12 apples",
            "99999999999999999999",
            "18446744073709551615g",
        ] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_size_in_whole_pages_or_none(text in ".*", number in 0..=u64::MAX >> 30) {
            if let Ok(bytes) = parse_bytes(&text) {
                prop_assert_eq!(bytes % PAGE_BYTES, 0);
            }
            prop_assert_eq!(parse_bytes(&format!("{number}g")), Ok(number << 30));
        }
    }
}
