//! The vocabulary of jobs: what is asked for, under which limits, and how it ended. No I/O.

mod causes;
mod exception;
mod limits;
mod record;
mod spec;
mod termination;

pub use causes::one_line;
pub use exception::error_type;
pub use limits::{LimitError, Limits, MIN_MEMORY_BYTES, parse_bytes};
pub use record::{
    Artifact, Captured, ErrorReport, Outcome, Payload, RESULT_FILE, Record, ResourceUsage, Skipped,
    Start, Status, Timing, canonical, check_result, milliseconds, timestamp, timestamp_if_any,
};
pub use spec::{InputFile, JobRequest, JobSpec, MAX_FILES, MAX_VARIABLES, Maxima, SpecError};
pub use termination::{Ending, Evidence, Exception, Killed, Phase, Termination};
