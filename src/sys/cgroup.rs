//! Cgroups: one exclusive leaf per sandbox in *every* mounted hierarchy (v1, v2 and hybrid).
//!
//! We make each leaf ourselves and read every limit back: runsc ignores all limits of a cgroup that
//! exists already, and says nothing. The same leaf is the handle by which a sandbox dies: frozen,
//! every process in it killed, thawed, until `cgroup.procs` is empty, with no help from runsc.

use crate::sys::process::{self, PidFd};
use crate::sys::processor;
use cgroups_rs::MaxValue;
use cgroups_rs::cpu::CpuController;
use cgroups_rs::freezer::FreezerController;
use cgroups_rs::memory::MemController;
use cgroups_rs::pid::PidController;
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// The directory, below the root of each hierarchy, in which all leaves lie.
pub const PARENT: &str = "tako-vm";

/// The period over which a CPU quota is counted, in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// `cpu.shares` of version 1 that nobody has changed, as `cpu.weight` 100 is in version 2.
const ORDINARY_SHARES: u64 = 1024;

/// How long processes may take to freeze before they are killed all the same.
const FREEZE_PATIENCE: Duration = Duration::from_millis(20);

/// How long a leaf may take to be frozen, or to run again. What is frozen has to get the CPU first, one
/// thread after the other, which takes long at a low weight on a busy host.
const SETTLE_PATIENCE: Duration = Duration::from_secs(2);

/// How long killed processes may take to die before whoever is left is killed again. Freezing them at
/// once would only hold them up.
const ROUND: Duration = Duration::from_millis(20);

/// How long the dead may take to become ours to bury. They are dead all the same.
const BURIAL: Duration = Duration::from_millis(200);

/// How long an emptied cgroup may refuse to be removed (the kernel is still letting go of it).
const REMOVE_PATIENCE: Duration = Duration::from_secs(2);

/// How often a parent directory may vanish under our hands: as many other processes as may end in the
/// microseconds between two system calls.
const MAX_TRIES: u32 = 100;

/// How often the kernel's lock is taken to keep it quick: well within a grace period.
const EXPEDITE_EVERY: Duration = Duration::from_millis(3);

/// Why a cgroup could not be made, limited, read, killed or removed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum CgroupError {
    #[error("the host offers no cgroup controller `{controller}`")]
    NoController { controller: &'static str },
    #[error("cannot {doing} `{}`", path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot set a limit in `{}`", path.display())]
    Limit {
        path: PathBuf,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("`{}` holds `{found}` after `{wanted}` was written", path.display())]
    NotHeld {
        path: PathBuf,
        wanted: String,
        found: String,
    },
    #[error(
        "`{}` passes no controllers on while processes are in that very cgroup, as in a container: \
         it needs the hierarchy of the host (`--cgroupns=host`)", path.display()
    )]
    Occupied { path: PathBuf, source: io::Error },
    #[error("the host has swap, and `{}` is missing to limit it", path.display())]
    SwapUnlimited { path: PathBuf },
    #[error("`{}` is not {wanted} after {waited:?}", path.display())]
    Unsettled {
        path: PathBuf,
        wanted: &'static str,
        waited: Duration,
    },
    #[error("{count} processes in `{}` outlived SIGKILL by {waited:?}", path.display())]
    Alive {
        path: PathBuf,
        count: usize,
        waited: Duration,
    },
}

impl CgroupError {
    fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            doing,
            path,
            source,
        }
    }

    fn limit(path: &Path) -> impl FnOnce(cgroups_rs::error::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Limit {
            path,
            source: Box::new(source),
        }
    }
}

type Result<T> = std::result::Result<T, CgroupError>;

/// The version of a cgroup hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy for each controller, or for some.
    V1,
    /// One hierarchy for all of them.
    V2,
}

/// A hierarchy as it is mounted on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Its version.
    pub version: Version,
    /// Where it is mounted.
    pub path: PathBuf,
    /// The controllers that it offers; none in one that only names groups.
    pub controllers: Vec<String>,
}

/// The hierarchies that are mounted, in the order of the mounts. Makes and changes nothing.
///
/// # Errors
/// Those of reading what is mounted, and what version 2 offers.
pub fn mounted() -> Result<Vec<Mounted>> {
    let known = read(Path::new("/proc/cgroups"))?;
    let is_controller = |name: &String| {
        let mut names = known
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        names.any(|other| other == name)
    };
    let describe = |hierarchy: Hierarchy| {
        let controllers = match hierarchy.version {
            // Other options of the mount stand beside them.
            Version::V1 => hierarchy
                .controllers
                .into_iter()
                .filter(is_controller)
                .collect(),
            Version::V2 => read(&hierarchy.mount.join("cgroup.controllers"))?
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
        };
        Ok(Mounted {
            version: hierarchy.version,
            path: hierarchy.mount,
            controllers,
        })
    };
    hierarchies()?.into_iter().map(describe).collect()
}

/// The versions of these hierarchies, in words.
pub fn versions(mounted: &[Mounted]) -> &'static str {
    let has = |version| mounted.iter().any(|one| one.version == version);
    match (has(Version::V1), has(Version::V2)) {
        (false, false) => "no hierarchy is mounted",
        (false, true) => "version 2",
        (true, false) => "version 1",
        (true, true) => "versions 1 and 2 (hybrid)",
    }
}

/// What [`Hierarchies::prepare`] would miss in these.
pub fn missing(mounted: &[Mounted]) -> Vec<&'static str> {
    let with = |name: &str| {
        let has = |one: &&Mounted| one.controllers.iter().any(|other| other == name);
        mounted.iter().find(has)
    };
    let any_v2 = mounted.iter().any(|one| one.version == Version::V2);
    let cpu_v2 = with("cpu").is_some_and(|one| one.version == Version::V2);
    // Version 2 counts CPU time with `cpu`, and freezes without any controller.
    let needed = [
        ("memory", true),
        ("pids", true),
        ("cpu", true),
        ("cpuacct", !cpu_v2),
        ("freezer", !any_v2),
    ];
    let absent =
        |(name, needed): (&'static str, bool)| (needed && with(name).is_none()).then_some(name);
    needed.into_iter().filter_map(absent).collect()
}

/// One mounted hierarchy, and the directory in it that belongs to us.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    /// `major:minor` of its file system, the same for every mount of it.
    device: String,
    /// What of it is mounted: `/` for all.
    root: String,
    version: Version,
    controllers: Vec<String>,
    mount: PathBuf,
}

/// The cgroup hierarchies of this host, with our parent directory made in each.
///
/// The directories are removed with the last clone, unless another process uses them.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    all: Arc<Parents>,
    memory: usize,
    pids: usize,
    cpu: usize,
    accounting: usize,
    freezer: usize,
    /// `cgroup.procs` of the cgroup that we are in ourselves.
    own: Option<PathBuf>,
}

#[derive(Debug)]
struct Parents(Vec<Hierarchy>);

impl Drop for Parents {
    fn drop(&mut self) {
        for hierarchy in &self.0 {
            // Another process has leaves in it, or has removed it.
            let removed = fs::remove_dir(hierarchy.parent());
            drop(removed);
        }
    }
}

/// What a leaf holds from its first process on. The CPU quota comes later: start-up is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafLimits {
    /// Bytes of memory, swap included; the kernel kills above it.
    pub memory_bytes: u64,
    /// Processes and threads on the host, the sandbox's own included.
    pub pids: u64,
    /// Who goes first where the CPU is short.
    pub urgency: Urgency,
}

/// Who goes first among our leaves where the CPU is short. It takes nothing away where it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Somebody waits for it: the kernel's own default weight.
    Job,
    /// Nobody waits for it yet: a fiftieth of that, enough to get ready in the end on a host that is
    /// never idle.
    Refill,
}

impl Urgency {
    /// `cpu.weight` of version 2.
    fn weight(self) -> u64 {
        match self {
            Self::Job => 100,
            Self::Refill => 2,
        }
    }

    /// `cpu.shares` of version 1.
    fn shares(self) -> u64 {
        match self {
            Self::Job => ORDINARY_SHARES,
            Self::Refill => 20,
        }
    }
}

impl Hierarchies {
    /// Finds what is mounted and makes our parent directory everywhere.
    ///
    /// # Errors
    /// [`CgroupError::NoController`] when memory, pids or cpu limits, CPU accounting or a freezer
    /// are not to be had: then nothing is run.
    pub fn prepare() -> Result<Self> {
        // Removed again on the way out if something is missing.
        let mut parents = Parents(hierarchies()?);
        for hierarchy in &mut parents.0 {
            hierarchy.prepare()?;
        }
        let all = &parents.0;
        let find = |controller: &'static str| {
            all.iter()
                .position(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
                .ok_or(CgroupError::NoController { controller })
        };
        let cpu = find("cpu")?;
        let v2 = |at: usize| all[at].version == Version::V2;
        // Version 2 counts CPU time with `cpu`, and freezes and kills without any controller.
        let accounting = if v2(cpu) { cpu } else { find("cpuacct")? };
        let freezer = find("freezer").or_else(|error| {
            all.iter()
                .position(|hierarchy| hierarchy.version == Version::V2)
                .ok_or(error)
        })?;
        let (memory, pids) = (find("memory")?, find("pids")?);
        let own = own_procs(&all[freezer]);
        Ok(Self {
            all: Arc::new(parents),
            memory,
            pids,
            cpu,
            accounting,
            freezer,
            own,
        })
    }

    /// Makes moves between cgroups quick while the answer is kept: see [`Expedited`].
    pub fn expedite(&self) -> Expedited {
        Expedited::start(self.own.as_deref())
    }

    /// Makes the leaf `name` in every hierarchy, sets its limits and reads them back.
    ///
    /// # Errors
    /// When a directory of that name exists, a limit does not hold, or a counter is missing (version 2
    /// has `memory.peak` since Linux 5.19). Nothing is left behind.
    pub fn create(&self, name: &str, limits: LeafLimits) -> Result<Leaf> {
        let mut leaf = Leaf {
            hierarchies: self.clone(),
            name: name.to_owned(),
            made: BTreeSet::new(),
        };
        // On an error the leaf's `Drop` takes back what was made.
        leaf.make()?;
        leaf.limit(limits)?;
        // What is asked for at the end has to be there before anything is run.
        leaf.memory_peak()?;
        leaf.oom_kills()?;
        leaf.cpu_time()?;
        Ok(leaf)
    }

    /// Whether a directory of that name is in any hierarchy.
    pub fn exists(&self, name: &str) -> bool {
        self.places(name).next().is_some()
    }

    /// The hierarchies in which there is a directory of that name.
    fn places(&self, name: &str) -> impl Iterator<Item = usize> {
        let all = self.all.0.iter().enumerate();
        all.filter(move |(_, one)| one.parent().join(name).is_dir())
            .map(|(at, _)| at)
    }

    /// The leaf `name` as its maker has left it, in whichever hierarchies it exists, if in any.
    ///
    /// Only for one who knows that its maker is gone: dropped, all that is inside dies.
    pub fn adopt(&self, name: &str) -> Leaf {
        Leaf {
            made: self.places(name).collect(),
            hierarchies: self.clone(),
            name: name.to_owned(),
        }
    }

    /// What the leaf `name` uses, while somebody else owns it.
    ///
    /// # Errors
    /// Those of reading the counters, which end with the leaf.
    pub fn usage(&self, name: &str) -> Result<Usage> {
        let mut leaf = self.adopt(name);
        let usage = leaf.usage();
        // Before anything else: dropped as it is, it would kill what is inside.
        leaf.abandon();
        usage
    }
}

/// What a leaf uses at a moment, the sandbox itself included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of memory that are charged to it.
    pub memory_bytes: u64,
    /// CPU time so far.
    pub cpu: Duration,
    /// The processes inside.
    pub processes: BTreeSet<i32>,
}

/// Names of the leaves in any hierarchy, and of whatever else lies beside them. Nothing is made to
/// find out.
///
/// # Errors
/// Those of reading the hierarchies.
pub fn leaves() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for hierarchy in hierarchies()? {
        let parent = hierarchy.parent();
        let entries = match fs::read_dir(&parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(CgroupError::file("read", &parent))?,
        };
        for entry in entries {
            let entry = entry.map_err(CgroupError::file("read", &parent))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                names.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
    }
    Ok(names)
}

impl Hierarchy {
    fn parent(&self) -> PathBuf {
        self.mount.join(PARENT)
    }

    /// Finds out what version 2 offers, and makes our parent directory.
    fn prepare(&mut self) -> Result<()> {
        if self.version == Version::V2 {
            let available = read(&self.mount.join("cgroup.controllers"))?;
            let needed = ["memory", "pids", "cpu"].into_iter();
            let offered = |name: &&str| available.split_whitespace().any(|other| other == *name);
            self.controllers = needed.filter(offered).map(str::to_owned).collect();
        }
        unless_removed(|| self.make_parent())
    }

    fn make_parent(&self) -> Result<()> {
        let parent = self.parent();
        if self.version == Version::V2 {
            // Each time: systemd takes back what no unit of its own needs, as long as we have no leaf.
            self.pass_controllers_on(&self.mount)?;
        }
        match fs::create_dir(&parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(CgroupError::file("make", &parent)(error));
            }
            _ => {}
        }
        match self.version {
            Version::V2 => self.pass_controllers_on(&parent),
            Version::V1 if self.has("cpuset") => inherit_cpuset(&self.mount, &parent),
            Version::V1 => Ok(()),
        }
    }

    /// Makes a leaf exclusively: one that exists is not ours, whatever its name says.
    fn make_leaf(&self, name: &str) -> Result<()> {
        let leaf = self.parent().join(name);
        unless_removed(|| {
            self.make_parent()?;
            fs::create_dir(&leaf).map_err(CgroupError::file("make", &leaf))
        })
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// Version 2: a controller works in a directory only if its parent passes it on.
    fn pass_controllers_on(&self, directory: &Path) -> Result<()> {
        let control = directory.join("cgroup.subtree_control");
        self.controllers.iter().try_for_each(|controller| {
            let passed = fs::write(&control, format!("+{controller}"));
            passed.map_err(|source| match source.kind() {
                // "No internal process constraint" of the kernel's cgroup-v2.rst: all but the root.
                io::ErrorKind::ResourceBusy => CgroupError::Occupied {
                    path: control.clone(),
                    source,
                },
                _ => CgroupError::file("pass controllers on in", &control)(source),
            })
        })
    }
}

/// Tries again when another process, the last to use our parent directory, removed it under our hands.
fn unless_removed(make: impl Fn() -> Result<()>) -> Result<()> {
    // A file that was opened before its directory went is no device any more when it is read (ENODEV).
    let is_gone = |error: &io::Error| {
        error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
    };
    let mut tries = 0;
    loop {
        tries += 1;
        match make() {
            Err(CgroupError::File { source, .. }) if is_gone(&source) && tries < MAX_TRIES => {}
            outcome => return outcome,
        }
    }
}

/// `cgroup.procs` of the cgroup of this very process (cgroups(7), `/proc/PID/cgroup`).
fn own_procs(hierarchy: &Hierarchy) -> Option<PathBuf> {
    let memberships = read(Path::new("/proc/self/cgroup")).ok()?;
    let path = memberships.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let here = match hierarchy.version {
            Version::V1 => {
                !controllers.is_empty() && controllers.split(',').all(|one| hierarchy.has(one))
            }
            Version::V2 => controllers.is_empty(),
        };
        here.then(|| path.trim_start_matches('/').to_owned())
    })?;
    Some(hierarchy.mount.join(path).join("cgroup.procs"))
}

/// While it lives, moving a process into a cgroup does not wait.
///
/// A move takes the kernel's `cgroup_threadgroup_rwsem` for writing, which waits for an RCU grace
/// period of some 10 ms, unless somebody has taken it a moment before. A sandbox start has three such
/// waits, ours and two of runsc's, one after the other. So a thread takes it every few milliseconds, by
/// moving us to where we are already; only the first time waits, while other things are being done.
/// Forks elsewhere on the host cost an atomic operation more meanwhile. Where it fails nothing is lost
/// but time.
#[derive(Debug)]
pub struct Expedited {
    stop: Arc<AtomicBool>,
    thread: Option<Thread>,
}

impl Expedited {
    fn start(own: Option<&Path>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let procs = own.and_then(|path| OpenOptions::new().write(true).open(path).ok());
        let stopped = Arc::clone(&stop);
        let thread = procs.and_then(|mut procs| {
            let again = move || {
                while !stopped.load(Ordering::Relaxed) && procs.write_all(b"0").is_ok() {
                    std::thread::park_timeout(EXPEDITE_EVERY);
                }
            };
            // There may be as many threads as may be.
            let spawned = std::thread::Builder::new().spawn(again).ok()?;
            Some(spawned.thread().clone())
        });
        Self { stop, thread }
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Not waited for: the kernel may have it wait, and it has nothing to say.
        if let Some(thread) = &self.thread {
            thread.unpark();
        }
    }
}

/// The hierarchies in the text of mountinfo(5), each once: the mount that shows most of it.
///
/// The same one may be mounted again elsewhere, for a container or in a `chroot`.
fn in_mountinfo(mountinfo: &str) -> Vec<Hierarchy> {
    let mut all: Vec<Hierarchy> = Vec::new();
    for found in mountinfo.lines().filter_map(parse_mount) {
        match all.iter_mut().find(|known| known.device == found.device) {
            Some(known) if found.root.len() < known.root.len() => *known = found,
            Some(_) => {}
            None => all.push(found),
        }
    }
    all
}

/// What is mounted, each once.
fn hierarchies() -> Result<Vec<Hierarchy>> {
    Ok(in_mountinfo(&read(Path::new("/proc/self/mountinfo"))?))
}

/// A line of mountinfo(5), if it is a cgroup mount.
fn parse_mount(line: &str) -> Option<Hierarchy> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut places = mount.split(' ').skip(2);
    let (device, root, mount_point) = (places.next()?, places.next()?, places.next()?);
    let mut fields = file_system.split(' ');
    let version = match fields.next()? {
        "cgroup" => Version::V1,
        "cgroup2" => Version::V2,
        _ => return None,
    };
    let controllers = fields.nth(1)?.split(',').map(str::to_owned).collect();
    Some(Hierarchy {
        device: device.to_owned(),
        root: root.to_owned(),
        version,
        controllers,
        mount: PathBuf::from(mount_point),
    })
}

/// A version 1 cpuset takes no process until it has CPUs and memory nodes.
fn inherit_cpuset(parent: &Path, child: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let path = child.join(file);
        if read(&path)?.is_empty() {
            let inherited = read(&parent.join(file))?;
            fs::write(&path, inherited).map_err(CgroupError::file("write", &path))?;
        }
    }
    Ok(())
}

/// The limits that the kernel holds for a leaf at this moment; `None` where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InForce {
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Thousandths of one CPU.
    pub millicpus: Option<u64>,
    /// Weight against other leaves where the CPU is short, in the unit of version 2: 100 is ordinary.
    pub cpu_weight: u64,
}

/// A leaf as anybody on the host can see it, while somebody else owns it.
#[derive(Debug, Clone)]
pub struct Outside {
    directories: Vec<PathBuf>,
    memory: PathBuf,
    pids: PathBuf,
    cpu: PathBuf,
    cpu_version: Version,
}

impl Outside {
    /// The processes inside, in any hierarchy.
    ///
    /// # Errors
    /// Those of reading `cgroup.procs`.
    pub fn processes(&self) -> Result<BTreeSet<i32>> {
        processes_in(self.directories.iter().cloned())
    }

    /// Reads from the kernel what limits are in force.
    ///
    /// # Errors
    /// Those of reading the files.
    pub fn limits(&self) -> Result<InForce> {
        let (quota, period) = match self.cpu_version {
            Version::V1 => (
                read(&self.cpu.join("cpu.cfs_quota_us"))?,
                read(&self.cpu.join("cpu.cfs_period_us"))?,
            ),
            Version::V2 => {
                let text = read(&self.cpu.join("cpu.max"))?;
                let (quota, period) = text.split_once(' ').unwrap_or_default();
                (quota.to_owned(), period.to_owned())
            }
        };
        let share = |(quota, period): (u64, u64)| (quota * 1000).checked_div(period);
        let cpu_weight = match self.cpu_version {
            // Rounded as the kernel does between the two units.
            Version::V1 => {
                let shares = number(&self.cpu.join("cpu.shares"))?;
                (shares.saturating_mul(100) + ORDINARY_SHARES / 2) / ORDINARY_SHARES
            }
            Version::V2 => number(&self.cpu.join("cpu.weight"))?,
        };
        Ok(InForce {
            memory_bytes: read(&self.memory)?.parse().ok(),
            pids: read(&self.pids)?.parse().ok(),
            millicpus: quota.parse().ok().zip(period.parse().ok()).and_then(share),
            cpu_weight,
        })
    }
}

/// One sandbox's cgroup: a directory of the same name in every hierarchy.
#[derive(Debug)]
pub struct Leaf {
    hierarchies: Hierarchies,
    name: String,
    /// The hierarchies in which the directory exists.
    made: BTreeSet<usize>,
}

impl Leaf {
    /// What `linux.cgroupsPath` has to say for runsc to join this leaf.
    pub fn cgroups_path(&self) -> String {
        format!("/{PARENT}/{}", self.name)
    }

    /// Opens `cgroup.procs` of every hierarchy for writing.
    ///
    /// # Errors
    /// Those of opening.
    pub fn open_procs(&self) -> io::Result<Vec<File>> {
        self.directories()
            .map(|directory| {
                OpenOptions::new()
                    .write(true)
                    .open(directory.join("cgroup.procs"))
            })
            .collect()
    }

    /// Limits CPU time: `millicpus` thousandths of one CPU, read back.
    ///
    /// # Errors
    /// When the quota does not hold.
    pub fn limit_cpu(&self, millicpus: u32) -> Result<()> {
        let (directory, v2) = self.place(self.hierarchies.cpu);
        let quota = u64::from(millicpus) * CPU_PERIOD_US / 1000;
        let limits = if v2 {
            vec![("cpu.max", format!("{quota} {CPU_PERIOD_US}"))]
        } else {
            vec![
                ("cpu.cfs_period_us", CPU_PERIOD_US.to_string()),
                ("cpu.cfs_quota_us", quota.to_string()),
            ]
        };
        let held =
            || (limits.iter()).try_for_each(|(file, limit)| holds(&directory.join(file), limit));
        // To set one takes the kernel longer: for the first of all it changes its own code.
        if held().is_ok() {
            return Ok(());
        }
        CpuController::new(directory.clone(), v2)
            .set_cfs_quota_and_period(quota.try_into().ok(), Some(CPU_PERIOD_US))
            .map_err(CgroupError::limit(&directory))?;
        held()
    }

    /// Says how urgent it is from now on, read back.
    ///
    /// # Errors
    /// When the weight does not hold.
    pub fn set_urgency(&self, urgency: Urgency) -> Result<()> {
        let (directory, v2) = self.place(self.hierarchies.cpu);
        let (file, weight) = if v2 {
            ("cpu.weight", urgency.weight())
        } else {
            ("cpu.shares", urgency.shares())
        };
        let (path, weight_text) = (directory.join(file), weight.to_string());
        if holds(&path, &weight_text).is_ok() {
            return Ok(());
        }
        // One file of two names in cgroups-rs, without conversion.
        CpuController::new(directory.clone(), v2)
            .set_shares(weight)
            .map_err(CgroupError::limit(&directory))?;
        holds(&path, &weight_text)
    }

    /// Stops all that is inside, and returns when none of it runs any more: it uses no CPU time then, and
    /// takes no signal. [`Leaf::kill`] kills it all the same.
    ///
    /// Waits for the kernel, as [`Leaf::thaw`] does: not for async threads.
    ///
    /// # Errors
    /// [`CgroupError::Unsettled`] when some of it still runs after two seconds; then all of it does again.
    pub fn freeze(&self) -> Result<()> {
        let (directory, v2) = self.place(self.hierarchies.freezer);
        let freezer = FreezerController::new(directory.clone(), v2);
        freezer.freeze().map_err(CgroupError::limit(&directory))?;
        let frozen = settled(&directory, v2, Frost::Frozen, SETTLE_PATIENCE);
        if frozen.is_err() {
            // Neither here nor there is no state to leave it in.
            freezer.thaw().map_err(CgroupError::limit(&directory))?;
        }
        frozen
    }

    /// Lets all that is inside go on.
    ///
    /// # Errors
    /// [`CgroupError::Unsettled`] when the kernel still calls it frozen after two seconds, because
    /// somebody has frozen all leaves, say.
    pub fn thaw(&self) -> Result<()> {
        let (directory, v2) = self.place(self.hierarchies.freezer);
        FreezerController::new(directory.clone(), v2)
            .thaw()
            .map_err(CgroupError::limit(&directory))?;
        settled(&directory, v2, Frost::Thawed, SETTLE_PATIENCE)
    }

    /// Whether nothing inside runs because it is frozen.
    ///
    /// # Errors
    /// Those of reading the state.
    pub fn is_frozen(&self) -> Result<bool> {
        let (directory, v2) = self.place(self.hierarchies.freezer);
        Frost::Frozen.is_there(&directory, v2)
    }

    /// Lets all threads inside run on this processor alone.
    ///
    /// Only while nobody inside can make threads end at will: the number of one that has ended may by
    /// then be that of a thread outside.
    ///
    /// # Errors
    /// Those of reading the threads, and of the kernel when it refuses.
    pub fn move_to(&self, number: usize) -> Result<()> {
        let (directory, v2) = self.place(self.hierarchies.freezer);
        let threads = directory.join(if v2 { "cgroup.threads" } else { "tasks" });
        let mut moved = BTreeSet::new();
        loop {
            let inside = read(&threads)?;
            let inside = inside.lines().filter_map(|line| line.parse::<i32>().ok());
            // Whom a thread has started before its own turn came is found in the next round.
            let new: BTreeSet<i32> = inside.filter(|thread| !moved.contains(thread)).collect();
            if new.is_empty() {
                return Ok(());
            }
            for &thread in &new {
                match processor::confine(thread, number) {
                    // It has ended; or the processor is gone, and then any will do.
                    Ok(()) | Err(Errno::ESRCH | Errno::EINVAL) => {}
                    Err(errno) => {
                        return Err(CgroupError::file("move the threads of", &threads)(
                            errno.into(),
                        ));
                    }
                }
            }
            moved.extend(new);
        }
    }

    /// What others can see of it.
    pub fn outside(&self) -> Outside {
        let (memory, v2) = self.place(self.hierarchies.memory);
        let limit = if v2 {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        let (cpu, _) = self.place(self.hierarchies.cpu);
        Outside {
            directories: self.directories().collect(),
            memory: memory.join(limit),
            pids: self.place(self.hierarchies.pids).0.join("pids.max"),
            cpu,
            cpu_version: self.hierarchies.all.0[self.hierarchies.cpu].version,
        }
    }

    /// How many processes the kernel killed because the memory limit was reached.
    ///
    /// # Errors
    /// Those of reading the counter.
    pub fn oom_kills(&self) -> Result<u64> {
        let (directory, v2) = self.place(self.hierarchies.memory);
        keyed(
            &directory.join(if v2 {
                "memory.events"
            } else {
                "memory.oom_control"
            }),
            "oom_kill",
        )
    }

    /// Memory charged at this moment, in bytes, the sandbox itself included.
    ///
    /// # Errors
    /// Those of reading the counter.
    pub fn memory_used(&self) -> Result<u64> {
        let (directory, v2) = self.place(self.hierarchies.memory);
        number(&directory.join(if v2 {
            "memory.current"
        } else {
            "memory.usage_in_bytes"
        }))
    }

    /// The most memory ever charged, in bytes, the sandbox itself included.
    ///
    /// # Errors
    /// Those of reading the counter; version 2 has it since Linux 5.19.
    pub fn memory_peak(&self) -> Result<u64> {
        let (directory, v2) = self.place(self.hierarchies.memory);
        number(&directory.join(if v2 {
            "memory.peak"
        } else {
            "memory.max_usage_in_bytes"
        }))
    }

    /// CPU time used so far, the sandbox itself included.
    ///
    /// # Errors
    /// Those of reading the counter.
    pub fn cpu_time(&self) -> Result<Duration> {
        let (directory, v2) = self.place(self.hierarchies.accounting);
        if v2 {
            Ok(Duration::from_micros(keyed(
                &directory.join("cpu.stat"),
                "usage_usec",
            )?))
        } else {
            Ok(Duration::from_nanos(number(
                &directory.join("cpuacct.usage"),
            )?))
        }
    }

    fn usage(&self) -> Result<Usage> {
        Ok(Usage {
            memory_bytes: self.memory_used()?,
            cpu: self.cpu_time()?,
            processes: self.processes()?,
        })
    }

    /// The processes inside, in any hierarchy.
    ///
    /// # Errors
    /// Those of reading `cgroup.procs`.
    pub fn processes(&self) -> Result<BTreeSet<i32>> {
        processes_in(self.directories())
    }

    /// Kills everything inside and proves it: returns once `cgroup.procs` is empty everywhere.
    ///
    /// Dead children of ours are buried, all but `keep`, whose status somebody else waits for. Returns
    /// the time from the beginning of the freeze until the proof.
    ///
    /// # Errors
    /// [`CgroupError::Alive`] when a process is still there after `patience`.
    pub fn kill(&self, patience: Duration, keep: Option<i32>) -> Result<Duration> {
        let started = Instant::now();
        self.lift_cpu_limits();
        let mut seen = BTreeSet::new();
        loop {
            let alive = self.kill_once()?;
            seen.extend(alive.iter().copied());
            if alive.is_empty() || self.await_empty()? {
                let time = started.elapsed();
                self.bury(&seen, keep);
                return Ok(time);
            }
            if started.elapsed() > patience {
                let (path, _) = self.place(self.hierarchies.freezer);
                return Err(CgroupError::Alive {
                    path,
                    count: alive.len(),
                    waited: patience,
                });
            }
        }
    }

    /// Dying takes CPU time as well, and what spun until now has used up its own; somebody waits for the
    /// end even of what nobody waited for.
    fn lift_cpu_limits(&self) {
        let (directory, v2) = self.place(self.hierarchies.cpu);
        let lifted = if v2 {
            fs::write(directory.join("cpu.max"), "max")
        } else {
            fs::write(directory.join("cpu.cfs_quota_us"), "-1")
        };
        let raised = self.set_urgency(Urgency::Job);
        // Where they stay, all inside die all the same, only later.
        drop((lifted, raised));
    }

    /// Leaves those that were killed a moment to die, undisturbed by the freezer; whether nobody is
    /// left inside.
    fn await_empty(&self) -> Result<bool> {
        let deadline = Instant::now() + ROUND;
        loop {
            if self.processes()?.is_empty() {
                return Ok(true);
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Buries all that died inside, all but `keep`.
    ///
    /// A process leaves its cgroup before it is a zombie, and becomes ours only when its parent has
    /// died as well: an empty cgroup is not the end of it. Those that ended before anybody saw them
    /// are known by their cgroup, which a zombie keeps in version 2 alone (cgroups(7)).
    fn bury(&self, seen: &BTreeSet<i32>, keep: Option<i32>) {
        let deadline = Instant::now() + BURIAL;
        loop {
            let ours = process::children().unwrap_or_default();
            let inside = ours.into_iter().filter(|pid| self.holds(*pid));
            let there = |pid: &i32| Path::new("/proc").join(pid.to_string()).exists();
            let mut left: BTreeSet<i32> = seen.iter().copied().filter(there).collect();
            left.extend(inside);
            left.retain(|pid| Some(*pid) != keep);
            for &pid in &left {
                process::reap(pid);
            }
            if left.is_empty() || Instant::now() > deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether a process, dead or alive, is in this leaf.
    fn holds(&self, pid: i32) -> bool {
        let path = self.cgroups_path();
        let memberships = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let own = |line: &str| line.splitn(3, ':').nth(2) == Some(path.as_str());
        memberships.lines().any(own)
    }

    /// One round; returns who was still inside before it.
    fn kill_once(&self) -> Result<BTreeSet<i32>> {
        let alive = self.processes()?;
        if alive.is_empty() {
            return Ok(alive);
        }
        if !self.made.contains(&self.hierarchies.freezer) {
            // Half made or half removed when its maker was killed: nothing forks in there.
            return self.signal_all().map(|()| alive);
        }
        let (directory, v2) = self.place(self.hierarchies.freezer);
        let freezer = FreezerController::new(directory.clone(), v2);
        // Frozen, nobody forks between the listing and the signal, and no pid is given anew.
        freezer.freeze().map_err(CgroupError::limit(&directory))?;
        // What the freezer cannot stop is killed on the run.
        let frozen = settled(&directory, v2, Frost::Frozen, FREEZE_PATIENCE);
        drop(frozen);
        let killed = self.signal_all();
        // Thawed whatever happened: on version 1 a frozen process does not even die.
        freezer.thaw().map_err(CgroupError::limit(&directory))?;
        killed.map(|()| alive)
    }

    fn signal_all(&self) -> Result<()> {
        self.processes()?.iter().try_for_each(|pid| kill(*pid))
    }

    /// Leaves it as it is: nothing inside dies when it is dropped.
    pub fn abandon(&mut self) {
        self.made.clear();
    }

    /// Removes the leaf from every hierarchy.
    ///
    /// # Errors
    /// When a directory is still in use after two seconds; the leaf can be removed again.
    pub fn remove(&mut self) -> Result<()> {
        let deadline = Instant::now() + REMOVE_PATIENCE;
        while let Some(&last) = self.made.last() {
            let (directory, _) = self.place(last);
            match fs::remove_dir(&directory) {
                Ok(()) => drop(self.made.pop_last()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => drop(self.made.pop_last()),
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(CgroupError::file("remove", &directory)(error)),
            }
        }
        Ok(())
    }

    fn make(&mut self) -> Result<()> {
        for (at, hierarchy) in self.hierarchies.all.0.iter().enumerate() {
            hierarchy.make_leaf(&self.name)?;
            self.made.insert(at);
            if hierarchy.version == Version::V1 && hierarchy.has("cpuset") {
                inherit_cpuset(&hierarchy.parent(), &hierarchy.parent().join(&self.name))?;
            }
        }
        Ok(())
    }

    fn limit(&self, limits: LeafLimits) -> Result<()> {
        self.limit_memory(limits.memory_bytes)?;
        let (directory, v2) = self.place(self.hierarchies.pids);
        let pids = i64::try_from(limits.pids).unwrap_or(i64::MAX);
        PidController::new(directory.clone(), v2)
            .set_pid_max(MaxValue::Value(pids))
            .map_err(CgroupError::limit(&directory))?;
        holds(&directory.join("pids.max"), &pids.to_string())?;
        self.set_urgency(limits.urgency)
    }

    fn limit_memory(&self, bytes: u64) -> Result<()> {
        let (directory, v2) = self.place(self.hierarchies.memory);
        let memory = MemController::new(directory.clone(), v2);
        let limit = i64::try_from(bytes).unwrap_or(i64::MAX);
        memory
            .set_limit(limit)
            .map_err(CgroupError::limit(&directory))?;
        let (limit_file, swap_file, swap_limit) = if v2 {
            ("memory.max", "memory.swap.max", 0)
        } else {
            (
                "memory.limit_in_bytes",
                "memory.memsw.limit_in_bytes",
                limit,
            )
        };
        holds(&directory.join(limit_file), &limit.to_string())?;
        let swap = directory.join(swap_file);
        if swap.exists() {
            memory
                .set_memswap_limit(swap_limit)
                .map_err(CgroupError::limit(&directory))?;
            return holds(&swap, &swap_limit.to_string());
        }
        if keyed(Path::new("/proc/meminfo"), "SwapTotal:")? > 0 {
            return Err(CgroupError::SwapUnlimited { path: swap });
        }
        Ok(())
    }

    fn directories(&self) -> impl Iterator<Item = PathBuf> {
        self.made.iter().map(|&at| self.place(at).0)
    }

    /// The leaf's directory in one hierarchy, and whether that is version 2.
    fn place(&self, hierarchy: usize) -> (PathBuf, bool) {
        let hierarchy = &self.hierarchies.all.0[hierarchy];
        (
            hierarchy.parent().join(&self.name),
            hierarchy.version == Version::V2,
        )
    }
}

impl Drop for Leaf {
    /// The backstop for a leaf that nobody removed: what is inside dies.
    fn drop(&mut self) {
        if !self.made.is_empty() {
            // Nobody is left to tell.
            let killed = self.kill(REMOVE_PATIENCE, None);
            let removed = self.remove();
            drop((killed, removed));
        }
    }
}

fn processes_in(directories: impl IntoIterator<Item = PathBuf>) -> Result<BTreeSet<i32>> {
    let mut pids = BTreeSet::new();
    for directory in directories {
        let procs = read(&directory.join("cgroup.procs"))?;
        pids.extend(procs.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    Ok(pids)
}

/// What the freezer can make of a leaf. On the way to it, it is neither.
#[derive(Debug, Clone, Copy)]
enum Frost {
    Frozen,
    Thawed,
}

impl Frost {
    fn is_there(self, directory: &Path, v2: bool) -> Result<bool> {
        if v2 {
            let frozen = keyed(&directory.join("cgroup.events"), "frozen")?;
            return Ok(matches!(
                (self, frozen),
                (Self::Frozen, 1) | (Self::Thawed, 0)
            ));
        }
        let state = read(&directory.join("freezer.state"))?;
        Ok(match self {
            Self::Frozen => state == "FROZEN",
            Self::Thawed => state == "THAWED",
        })
    }
}

/// Waits until the freezer has done what it was told.
fn settled(directory: &Path, v2: bool, wanted: Frost, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !wanted.is_there(directory, v2)? {
        if Instant::now() > deadline {
            return Err(CgroupError::Unsettled {
                path: directory.to_owned(),
                wanted: match wanted {
                    Frost::Frozen => "frozen",
                    Frost::Thawed => "thawed",
                },
                waited: patience,
            });
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

fn kill(pid: i32) -> Result<()> {
    let path = || PathBuf::from(format!("/proc/{pid}"));
    let handle = match PidFd::open(pid) {
        Ok(handle) => handle,
        // Gone by itself.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        Err(error) => return Err(CgroupError::file("open a handle on", &path())(error)),
    };
    handle.kill().map_err(CgroupError::file("kill", &path()))
}

/// The contents of a file, trimmed.
fn read(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).map_err(CgroupError::file("read", path))?;
    Ok(text.trim().to_owned())
}

fn number(path: &Path) -> Result<u64> {
    let text = read(path)?;
    text.parse()
        .map_err(|error| CgroupError::file("read", path)(io::Error::other(error)))
}

/// The number behind `key` in a file of lines "key number".
fn keyed(path: &Path, key: &str) -> Result<u64> {
    read(path)?
        .lines()
        .find_map(|line| {
            let mut fields = line.split_whitespace();
            (fields.next() == Some(key)).then(|| fields.next()?.parse().ok())?
        })
        .ok_or_else(|| {
            CgroupError::file("read", path)(io::Error::other(format!("no number for `{key}`")))
        })
}

/// Reads a limit back: the kernel rounds, clips and sometimes ignores what it is told.
fn holds(path: &Path, wanted: &str) -> Result<()> {
    let found = read(path)?;
    if found == wanted {
        return Ok(());
    }
    Err(CgroupError::NotHeld {
        path: path.to_owned(),
        wanted: wanted.to_owned(),
        found,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mounts_of_both_versions_are_found_and_others_are_not() {
        let v1 = "37 36 0:33 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory";
        let v2 = "36 35 0:32 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(
            parse_mount(v1),
            Some(Hierarchy {
                device: "0:33".to_owned(),
                root: "/".to_owned(),
                version: Version::V1,
                controllers: vec!["rw".to_owned(), "memory".to_owned()],
                mount: "/sys/fs/cgroup/memory".into()
            })
        );
        assert_eq!(parse_mount(v2).unwrap().version, Version::V2);
        assert_eq!(parse_mount("25 1 254:0 / / rw - ext4 /dev/vda rw"), None);
    }

    #[test]
    fn a_hierarchy_that_is_mounted_more_than_once_is_taken_once_and_whole() {
        let mountinfo = "\
35 25 0:32 /machine /var/lib/machine/cgroup rw - cgroup2 cgroup2 rw
36 35 0:32 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate
37 36 0:33 / /mnt/memory rw - cgroup cgroup rw,memory
38 36 0:32 / /mnt/sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate
";
        let found = in_mountinfo(mountinfo);
        let mounts: Vec<_> = found
            .iter()
            .map(|one| one.mount.to_str().unwrap())
            .collect();
        assert_eq!(mounts, ["/sys/fs/cgroup", "/mnt/memory"]);
    }

    #[test]
    fn what_is_missing_depends_on_the_version() {
        let mounted = |version, names: &str| Mounted {
            version,
            path: PathBuf::new(),
            controllers: names.split(' ').map(str::to_owned).collect(),
        };
        let v2 = mounted(Version::V2, "cpuset cpu io memory pids");
        assert!(missing(std::slice::from_ref(&v2)).is_empty());
        let named = mounted(Version::V2, "");
        let v1 = ["cpu", "memory", "pids"].map(|name| mounted(Version::V1, name));
        assert_eq!(missing(&v1), ["cpuacct", "freezer"]);
        let hybrid = [&v1[..], std::slice::from_ref(&named)].concat();
        assert_eq!(missing(&hybrid), ["cpuacct"], "version 2 freezes");
        assert_eq!(missing(&[]).len(), 5);
    }

    #[test]
    fn the_freezer_is_waited_for_and_no_longer_than_said() {
        let directory = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(directory.path().join(file), text).unwrap();
        let settled = |v2, wanted| settled(directory.path(), v2, wanted, Duration::from_millis(3));
        assert!(settled(false, Frost::Frozen).is_err(), "no such file");
        write("freezer.state", "FREEZING\n");
        write("cgroup.events", "populated 1\nfrozen 0\n");
        for (v2, wanted) in [
            (false, Frost::Frozen),
            (false, Frost::Thawed),
            (true, Frost::Frozen),
        ] {
            let error = settled(v2, wanted).unwrap_err();
            assert!(matches!(error, CgroupError::Unsettled { .. }), "{error}");
        }
        settled(true, Frost::Thawed).unwrap();
        write("freezer.state", "FROZEN\n");
        write("cgroup.events", "populated 1\nfrozen 1\n");
        settled(false, Frost::Frozen).unwrap();
        settled(true, Frost::Frozen).unwrap();
        let error = settled(false, Frost::Thawed).unwrap_err().to_string();
        assert!(error.ends_with("is not thawed after 3ms"), "{error}");
    }

    #[test]
    fn nobody_waits_for_a_move_that_the_kernel_lets_wait() {
        let directory = tempfile::tempdir().unwrap();
        let procs = directory.path().join("cgroup.procs");
        nix::unistd::mkfifo(&procs, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let full = options.open(&procs).unwrap();
        let size = nix::fcntl::fcntl(&full, nix::fcntl::FcntlArg::F_GETPIPE_SZ).unwrap();
        (&full)
            .write_all(&vec![0; usize::try_from(size).unwrap()])
            .unwrap();
        let expedited = Expedited::start(Some(&procs));
        std::thread::sleep(Duration::from_millis(20));
        let (dropped, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(expedited);
            dropped.send(()).unwrap();
        });
        ended.recv_timeout(Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn a_limit_that_did_not_take_hold_is_an_error_with_both_numbers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "max\n").unwrap();
        let error = holds(file.path(), "67108864").unwrap_err().to_string();
        assert!(
            error.contains("holds `max` after `67108864` was written"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn a_mount_is_read_as_it_was_written(
            line in ".*",
            mount in "/[a-z/,]{0,30}",
            options in "[a-z=]{1,8}(,[a-z=]{1,8}){0,4}",
            tags in prop::collection::vec("[a-z]+:[0-9]+", 0..3),
        ) {
            // Whatever it is, it is a mount or none.
            drop(parse_mount(&line));
            let tags = tags.join(" ");
            let line = format!("1 2 0:3 / {mount} rw {tags} - cgroup cgroup {options}");
            let hierarchy = parse_mount(&line).unwrap();
            prop_assert_eq!(hierarchy.mount, PathBuf::from(mount));
            prop_assert_eq!(hierarchy.controllers.join(","), options);
        }

        #[test]
        fn a_number_is_found_by_its_whole_key_alone(
            before in prop::collection::vec("oom_kill_?[a-z0-9]{1,5} [0-9]{1,5}", 0..4),
            number: u64,
            noise in ".*",
        ) {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), &noise).unwrap();
            drop(keyed(file.path(), "oom_kill"));
            let text = format!("{}\noom_kill {number}\n", before.join("\n"));
            fs::write(file.path(), text).unwrap();
            prop_assert_eq!(keyed(file.path(), "oom_kill").unwrap(), number);
        }
    }
}
