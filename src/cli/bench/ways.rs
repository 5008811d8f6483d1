//! The ways to run the same program: ours, and those that it is compared with.

use super::service;
use super::subject::{OUTPUT, Run, Subject};
use super::tools::{Place, Tool, Workshop};
use crate::cli::{one_line, output};
use crate::client;
use crate::image::ImageError;
use crate::runsc::provision::ProvisionError;
use crate::sys::mount::MountError;
use crate::sys::process::ProcessError;
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// A way to run a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    /// [`Sandbox::run`](client::Sandbox::run): a supervisor has the sandboxes, where there is one.
    Library,
    /// `tako-vm run`, from the start of the process to its end.
    Command,
    /// The library without a supervisor, beside one: every sandbox starts cold.
    Cold,
    /// The command without a supervisor, beside one.
    ColdCommand,
    /// `runsc run` with its default flags on a directory root.
    Runsc,
    /// `runc run` on the mounted image.
    Runc,
    /// `crun run` on the mounted image.
    Crun,
    /// `bwrap` on a directory root.
    Bwrap,
    /// The interpreter of this host.
    Native,
}

/// What there is to compare with, in the order of the first round.
const COMPARED: [Way; 8] = [
    Way::Command,
    Way::Cold,
    Way::ColdCommand,
    Way::Runsc,
    Way::Runc,
    Way::Crun,
    Way::Bwrap,
    Way::Native,
];

impl Way {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Library => "tako-vm, library",
            Self::Command => "tako-vm run",
            Self::Cold => "library in process",
            Self::ColdCommand => "tako-vm run in process",
            Self::Runsc => "plain runsc run",
            Self::Runc => "runc run",
            Self::Crun => "crun run",
            Self::Bwrap => "bwrap",
            Self::Native => "native python3",
        }
    }

    /// Whether it is only there to be beside what a supervisor does.
    fn is_beside(self) -> bool {
        matches!(self, Self::Cold | Self::ColdCommand)
    }
}

/// Why a way did not run the program.
#[derive(Debug, thiserror::Error)]
pub(super) enum WayError {
    #[error("`{program}` is not installed: install the package `{package}`")]
    NotInstalled {
        program: &'static str,
        package: &'static str,
    },
    #[error("there is no runsc of ours")]
    Runsc { source: ProvisionError },
    #[error("there is no image to give it")]
    Image { source: ImageError },
    #[error("cannot extract the image: install the package `erofs-utils`")]
    Extract { source: ProcessError },
    #[error("cannot mount the image")]
    Mount { source: MountError },
    #[error("cannot write a bundle")]
    Bundle { source: io::Error },
    #[error("cannot find this program's own file")]
    Own { source: io::Error },
    #[error(transparent)]
    Program(ProcessError),
    #[error(transparent)]
    Client(client::Error),
    #[error("the program printed {found:?} instead of {OUTPUT:?}")]
    Output { found: String },
    #[error("the program did not succeed: {why}")]
    Unsuccessful { why: String },
}

/// Runs that did not go as they should.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Failures {
    pub(super) count: u64,
    pub(super) first: Option<String>,
}

impl Failures {
    pub(super) fn take(&mut self, error: &WayError) {
        self.count += 1;
        let text = || output::visible(&one_line(error));
        self.first.get_or_insert_with(text);
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.count += other.count;
        if self.first.is_none() {
            self.first.clone_from(&other.first);
        }
    }
}

/// A way that cannot be compared with here.
#[derive(Debug, Serialize)]
pub(super) struct LeftOut {
    pub(super) way: Way,
    pub(super) why: String,
}

/// All ways that run here. Clones share what was prepared.
#[derive(Debug, Clone)]
pub(super) struct Contest {
    subject: Subject,
    others: Arc<Others>,
}

#[derive(Debug)]
struct Others {
    tools: Vec<(Way, Tool)>,
    /// Where the supervisor listens whose pool is to be full before another is measured.
    socket: Option<PathBuf>,
    /// For names that were not used yet.
    runs: AtomicU64,
    _scratch: Option<TempDir>,
}

impl Contest {
    /// Ours alone.
    pub(super) fn alone(subject: Subject, place: &Place<'_>) -> Self {
        let others = Others {
            tools: Vec::new(),
            socket: place.socket.map(Path::to_owned),
            runs: AtomicU64::new(0),
            _scratch: None,
        };
        Self {
            subject,
            others: Arc::new(others),
        }
    }

    /// Every way that is installed here and runs the program; what does not is named with the reason.
    pub(super) async fn prepare(
        subject: Subject,
        place: &Place<'_>,
        cancel: &CancellationToken,
    ) -> io::Result<(Self, Vec<LeftOut>)> {
        let scratch = tempfile::Builder::new()
            .prefix("tako-vm-bench-")
            .tempdir()?;
        let shop = Workshop::new(place, &subject.code, scratch.path());
        let (mut tools, mut left_out) = (Vec::new(), Vec::new());
        // Without a supervisor there is nothing that would be beside it.
        let beside = |way: &Way| place.socket.is_some() || !way.is_beside();
        for way in COMPARED.into_iter().filter(beside) {
            let tool = tokio::task::block_in_place(|| shop.tool(way));
            let tried = match tool {
                Ok(tool) => try_out(&subject, way, tool, cancel).await,
                Err(error) => Err(error),
            };
            match tried {
                Ok(tool) => tools.push((way, tool)),
                Err(error) => left_out.push(LeftOut {
                    way,
                    why: output::visible(&one_line(&error)),
                }),
            }
        }
        let others = Others {
            tools,
            socket: place.socket.map(Path::to_owned),
            runs: AtomicU64::new(0),
            _scratch: Some(scratch),
        };
        let contest = Self {
            subject,
            others: Arc::new(others),
        };
        Ok((contest, left_out))
    }

    /// The ways that run here.
    pub(super) fn ways(&self) -> Vec<Way> {
        let others = self.others.tools.iter().map(|(way, _)| *way);
        std::iter::once(Way::Library).chain(others).collect()
    }

    /// Waits until the pool of ready sandboxes is full again: its refill is not to be on another's time.
    pub(super) async fn settle(&self, cancel: &CancellationToken) {
        if let Some(socket) = &self.others.socket {
            service::settled(socket, cancel).await;
        }
    }

    /// Runs the program once; nothing when it is cancelled.
    pub(super) async fn run(
        &self,
        way: Way,
        cancel: &CancellationToken,
    ) -> Result<Option<Run>, WayError> {
        let found = self.others.tools.iter().find(|(other, _)| *other == way);
        let Some((_, tool)) = found else {
            return self.subject.run(cancel).await;
        };
        let id = format!(
            "bench-{}-{}",
            std::process::id(),
            self.others.runs.fetch_add(1, Ordering::Relaxed)
        );
        tool.run(&self.subject, &id, cancel).await
    }
}

/// Once before anything is measured: it fills the caches, too.
async fn try_out(
    subject: &Subject,
    way: Way,
    tool: Tool,
    cancel: &CancellationToken,
) -> Result<Tool, WayError> {
    let id = format!("bench-{}-{way:?}", std::process::id()).to_lowercase();
    tool.run(subject, &id, cancel).await?;
    Ok(tool)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_kept_and_all_are_counted() {
        let mut failures = Failures::default();
        let failed = |why: &str| WayError::Unsuccessful {
            why: why.to_owned(),
        };
        failures.take(&failed("first\u{1b}[2J"));
        failures.take(&failed("second"));
        let mut sum = Failures::default();
        sum.add(&failures);
        sum.add(&failures);
        assert_eq!(sum.count, 4);
        let first = sum.first.unwrap();
        assert_eq!(first, "the program did not succeed: first\\u{1b}[2J");
    }
}
