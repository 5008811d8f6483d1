//! Collecting `/output`, by a process of its own that has the program's uid and no capability.
//!
//! It walks by descriptor, never follows a link, opens nothing but regular files, and is bounded in
//! files, depth, bytes and time. Nobody else is alive, so nothing changes under it.

use crate::{InitError, PROGRAM_ID, host::Host};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstatat};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use tako_guest::{Buffer, INIT_PATH, Limits, MAX_CHUNK, MAX_FILE_NAME, SkipReason, ToHost, encode};

/// The argument that makes `tako-init` the collector.
pub(crate) const ARGUMENT: &str = "collect";

pub(crate) const OUTPUT: &str = "/output";

/// Collected first, so that no other file can use up the limits before it.
const RESULT: &str = "result.json";

/// Files collected at most.
const MAX_FILES: u64 = 1000;

/// Directory entries looked at, at most: bounds the walk when most are not files.
const MAX_ENTRIES: u64 = 20_000;

/// Directories inside one another, `/output` not counted.
const MAX_DEPTH: usize = 8;

/// Left-out files that are named; further ones are counted.
const MAX_SKIPPED_NAMED: u64 = 16;

/// For the whole collection.
const TIME: Duration = Duration::from_secs(2);

/// Runs the collector and passes its frames on; returns how many entries were left out.
pub(crate) fn forward(host: &mut Host, limits: &Limits) -> Result<u64, InitError> {
    if is_empty()? {
        return Ok(0);
    }
    // The program's end does not wait for its files.
    host.flush()?;
    let mut collector = spawn(limits).map_err(InitError::system("start the collector"))?;
    let passed = pass_on(host, &mut collector);
    collector
        .kill()
        .map_err(InitError::system("end the collector"))?;
    collector
        .wait()
        .map_err(InitError::system("wait for the collector"))?;
    passed
}

/// `/output` before there is a program, when it is empty: when an entry was made or removed last.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Untouched {
    seconds: i64,
    nanoseconds: i64,
}

impl Untouched {
    pub(crate) fn look() -> Result<Self, InitError> {
        let output = fs::metadata(OUTPUT).map_err(InitError::system("look at `/output`"))?;
        Ok(Self {
            seconds: output.mtime(),
            nanoseconds: output.mtime_nsec(),
        })
    }

    /// Whether nothing has ever been made in it. The kernel counts nanoseconds, and a program that does
    /// not own the directory can set the time to none but the present.
    pub(crate) fn still(self) -> Result<bool, InitError> {
        Ok(Self::look()? == self)
    }
}

/// Whether there is nothing to collect, which saves a process. Listing the directory is safe, it is
/// init's own.
pub(crate) fn is_empty() -> Result<bool, InitError> {
    let mut entries = fs::read_dir(OUTPUT).map_err(InitError::system("list `/output`"))?;
    Ok(entries.next().is_none())
}

fn spawn(limits: &Limits) -> io::Result<Child> {
    #[expect(clippy::disallowed_methods, reason = "the guest has no `sys`")]
    Command::new(INIT_PATH)
        .arg(ARGUMENT)
        .arg(limits.artifact_bytes.to_string())
        .arg(limits.artifacts_total_bytes.to_string())
        .env_clear()
        .current_dir(OUTPUT)
        .uid(PROGRAM_ID)
        .gid(PROGRAM_ID)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

/// Sends whole frames only, so that a collector that is cut off cannot break the stream.
fn pass_on(host: &mut Host, collector: &mut Child) -> Result<u64, InitError> {
    let deadline = Instant::now() + TIME;
    let Some(mut pipe) = collector.stdout.take() else {
        return Ok(1);
    };
    let mut buffer = Buffer::new();
    let mut in_file = false;
    while wait_readable(&pipe, deadline)? {
        let count = buffer
            .fill(&mut pipe)
            .map_err(InitError::system("read from the collector"))?;
        if count == 0 {
            break;
        }
        while let Some(frame) = buffer
            .next::<ToHost>()
            .map_err(|source| InitError::Protocol { source })?
        {
            match frame {
                ToHost::Done { skipped } => return Ok(skipped),
                ToHost::File { .. } => in_file = true,
                ToHost::FileEnd { .. } => in_file = false,
                _ => {}
            }
            host.send(&frame)?;
        }
    }
    // Time was up, or the collector died: at least one entry is missing.
    if in_file {
        host.send(&ToHost::FileEnd { complete: false })?;
    }
    Ok(1)
}

fn wait_readable(pipe: &impl AsFd, deadline: Instant) -> Result<bool, InitError> {
    let wait = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
    match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(true),
        Err(errno) => Err(InitError::system("poll the collector")(errno)),
    }
}

/// The collector process.
pub(crate) fn main() -> ExitCode {
    let mut numbers = std::env::args()
        .skip(2)
        .map(|argument| argument.parse::<u64>());
    let (Some(Ok(file_bytes)), Some(Ok(total_bytes))) = (numbers.next(), numbers.next()) else {
        return ExitCode::from(2);
    };
    match Collector::open(file_bytes, total_bytes).and_then(Collector::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

struct Collector {
    to_init: File,
    file_bytes: u64,
    bytes_left: u64,
    files: u64,
    entries: u64,
    skipped: u64,
}

/// A directory on the way: its descriptor and the names still to visit, last one first.
struct Level {
    directory: OwnedFd,
    names: Vec<String>,
    path: String,
}

impl Collector {
    fn open(file_bytes: u64, total_bytes: u64) -> io::Result<Self> {
        let to_init = io::stdout().as_fd().try_clone_to_owned()?.into();
        Ok(Self {
            to_init,
            file_bytes,
            bytes_left: total_bytes,
            files: 0,
            entries: 0,
            skipped: 0,
        })
    }

    fn run(mut self) -> io::Result<()> {
        let root = open_directory(nix::fcntl::AT_FDCWD, OUTPUT)?;
        let mut names = self.list(&root, "")?;
        if let Some(at) = names.iter().position(|name| name == RESULT) {
            let result = names.remove(at);
            names.push(result);
        }
        let mut levels = vec![Level {
            directory: root,
            names,
            path: String::new(),
        }];
        while let Some(mut level) = levels.pop() {
            let Some(name) = level.names.pop() else {
                continue;
            };
            let path = join(&level.path, &name);
            let deeper = self.visit(&level.directory, &name, &path, levels.len())?;
            levels.push(level);
            levels.extend(deeper);
        }
        self.send(&ToHost::Done {
            skipped: self.skipped,
        })
    }

    /// One entry: sends a file, returns a directory to walk, reports anything else.
    fn visit(
        &mut self,
        parent: &OwnedFd,
        name: &str,
        path: &str,
        depth: usize,
    ) -> io::Result<Option<Level>> {
        let Ok(stat) = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) else {
            self.skip(path, SkipReason::Unreadable)?;
            return Ok(None);
        };
        let refused = if path.len() > MAX_FILE_NAME {
            Some(SkipReason::BadName)
        } else {
            match kind(&stat) {
                SFlag::S_IFREG => self.refuse_file(&stat),
                SFlag::S_IFDIR if depth >= MAX_DEPTH => Some(SkipReason::LimitReached),
                SFlag::S_IFDIR => None,
                _ => Some(SkipReason::NotRegular),
            }
        };
        if let Some(reason) = refused {
            self.skip(path, reason)?;
            return Ok(None);
        }
        let Ok(descriptor) = open_own(parent, name, &stat) else {
            self.skip(path, SkipReason::Unreadable)?;
            return Ok(None);
        };
        if kind(&stat) == SFlag::S_IFREG {
            self.send_file(descriptor.into(), path, size(&stat))?;
            return Ok(None);
        }
        let names = self.list(&descriptor, path)?;
        Ok(Some(Level {
            directory: descriptor,
            names,
            path: path.to_owned(),
        }))
    }

    fn refuse_file(&self, stat: &FileStat) -> Option<SkipReason> {
        if size(stat) > self.file_bytes {
            Some(SkipReason::TooLarge)
        } else if size(stat) > self.bytes_left || self.files >= MAX_FILES {
            Some(SkipReason::LimitReached)
        } else {
            None
        }
    }

    /// The names in a directory, sorted backwards. Hidden ones are not collected, by contract.
    fn list(&mut self, directory: &OwnedFd, path: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        let mut entries = Dir::from_fd(directory.try_clone()?)?;
        for entry in entries.iter() {
            let Ok(entry) = entry else { break };
            let name = entry.file_name();
            if name.to_bytes().starts_with(b".") {
                continue;
            }
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                self.skip(&join(path, "…"), SkipReason::LimitReached)?;
                break;
            }
            match name.to_str() {
                Ok(name) if !name.chars().any(char::is_control) => names.push(name.to_owned()),
                _ => {
                    let shown = name.to_string_lossy().escape_debug().to_string();
                    self.skip(&join(path, &shown), SkipReason::BadName)?;
                }
            }
        }
        names.sort_unstable_by(|one, other| other.cmp(one));
        Ok(names)
    }

    fn send_file(&mut self, mut file: File, name: &str, size: u64) -> io::Result<()> {
        self.files += 1;
        self.bytes_left -= size;
        self.send(&ToHost::File { name, size })?;
        let mut left = size;
        let mut chunk = [0; MAX_CHUNK];
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(MAX_CHUNK).min(MAX_CHUNK);
            let Ok(count @ 1..) = file.read(&mut chunk[..wanted]) else {
                break;
            };
            left -= count as u64;
            self.send(&ToHost::Data(&chunk[..count]))?;
        }
        self.send(&ToHost::FileEnd {
            complete: left == 0,
        })
    }

    fn skip(&mut self, name: &str, reason: SkipReason) -> io::Result<()> {
        self.skipped += 1;
        if self.skipped > MAX_SKIPPED_NAMED {
            return Ok(());
        }
        let shown = &name[..name.floor_char_boundary(MAX_FILE_NAME)];
        self.send(&ToHost::Skipped {
            name: shown,
            reason,
        })
    }

    fn send(&mut self, frame: &ToHost) -> io::Result<()> {
        let mut wire = Vec::new();
        encode(frame, &mut wire).map_err(io::Error::other)?;
        self.to_init.write_all(&wire)
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}/{name}")
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn size(stat: &FileStat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn open_directory(parent: impl AsFd, name: impl AsRef<Path>) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(parent, name.as_ref(), flags, Mode::empty())?)
}

/// Opens what the program owns, making it readable first when the program left it unreadable.
fn open_own(parent: &OwnedFd, name: &str, stat: &FileStat) -> io::Result<OwnedFd> {
    let (needed, kind_flag) = match kind(stat) {
        SFlag::S_IFDIR => (Mode::S_IRUSR | Mode::S_IXUSR, OFlag::O_DIRECTORY),
        _ => (Mode::S_IRUSR, OFlag::empty()),
    };
    let mode = Mode::from_bits_truncate(stat.st_mode);
    if !mode.contains(needed) {
        fchmodat(parent, name, mode | needed, FchmodatFlags::FollowSymlink)?;
    }
    // O_NONBLOCK: were it a FIFO after all, the open must not wait for a writer.
    let flags =
        OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | kind_flag;
    Ok(openat(parent, name, flags, Mode::empty())?)
}
