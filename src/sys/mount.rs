//! A read-only image as the root file system of one program, and of nobody else; and a file system in
//! memory that this process and what it starts see alone.
//!
//! The mount of an image is made detached, and attached in a mount namespace of that program's own. The host
//! never has it in its tree; it ends with the last process that sees it, however that ends.

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, mount_change,
    move_mount,
};
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the image appears to the program.
///
/// Every Linux has this directory, nothing that a runtime needs lies below it, and anybody may pass
/// those above it: the root of a container, which is not root here, has to.
pub const POINT: &str = "/sys/firmware";

/// How often a free loop device may be taken by somebody else before it is ours.
const MAX_TRIES: u32 = 100;

/// Bytes of one file that are read in advance: several times the largest that the shipped image has.
const MAX_PRELOADED: u64 = 64 << 20;

/// Why an image cannot be mounted.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages document the variants")]
pub enum MountError {
    #[error("this kernel has no EROFS: load the module `erofs` or take a kernel that has it")]
    NoErofs { source: io::Error },
    #[error("cannot mount `{}`", image.display())]
    Mount { image: PathBuf, source: io::Error },
    #[error("cannot attach `{}` to a loop device", image.display())]
    Loop { image: PathBuf, source: io::Error },
    #[error("cannot have a mount namespace of its own")]
    Namespace { source: io::Error },
    #[error("cannot mount a file system in huge pages at `{}`", at.display())]
    HugePages { at: PathBuf, source: io::Error },
}

/// Whether the program sees the host's cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cgroups {
    /// As the host has them.
    Visible,
    /// An empty directory instead.
    Hidden,
}

/// Moves this process into a mount namespace of its own: what it mounts from now on is seen by itself
/// and what it starts, and is gone with the last of them. What the host mounts still appears.
///
/// For a process of one thread; others would stay where they are (unshare(2)).
///
/// # Errors
/// [`MountError::Namespace`].
pub fn leave_namespace() -> Result<(), MountError> {
    let failed = |source: io::Error| MountError::Namespace { source };
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| failed(errno.into()))?;
    let propagation = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", propagation).map_err(|errno| failed(errno.into()))
}

/// Mounts an empty file system of at most `bytes` at a directory, in memory, in huge pages, for root
/// alone.
///
/// # Errors
/// [`MountError::HugePages`], also where the kernel has no huge pages for it.
pub fn huge_pages(at: &Path, bytes: u64) -> Result<(), MountError> {
    let options = CString::new(format!("huge=always,mode=0700,size={bytes}"));
    let mounted = options.map_err(io::Error::from).and_then(|options| {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        Ok(mount("tmpfs", at, "tmpfs", flags, options.as_c_str())?)
    });
    mounted.map_err(|source| MountError::HugePages {
        at: at.to_owned(),
        source,
    })
}

/// Mounts an EROFS image read-only, in nobody's tree: it is gone when the descriptor is closed, unless
/// it was attached.
///
/// # Errors
/// When the kernel has no EROFS, or the image cannot be mounted.
pub fn detached(image: &Path) -> Result<OwnedFd, MountError> {
    let failed = |source: Errno| MountError::Mount {
        image: image.to_owned(),
        source: source.into(),
    };
    // Loads the module if it is not there.
    let has_erofs = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC);
    drop(has_erofs.map_err(|source| MountError::NoErofs {
        source: source.into(),
    })?);
    match mount_erofs(image) {
        // Linux mounts files themselves since 6.12, and only if it is configured to.
        Err(Errno::NOTBLK) => {
            let device = LoopDevice::attach(image).map_err(|source| MountError::Loop {
                image: image.to_owned(),
                source,
            })?;
            mount_erofs(&device.path).map_err(failed)
        }
        mounted => mounted.map_err(failed),
    }
}

fn mount_erofs(source: &Path) -> Result<OwnedFd, Errno> {
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", source)?;
    fsconfig_set_flag(&context, "ro")?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Reads files of a detached mount, so that their pages are in memory and charged to this process.
///
/// What is not there, or no file, is left out, and of a file no more is read than [`MAX_PRELOADED`];
/// nothing but time is lost by that.
pub fn preload(root: &OwnedFd, files: &[&str]) {
    for file in files {
        let opened = openat2(
            root,
            *file,
            // Without waiting: a FIFO would otherwise hold us up until somebody writes to it.
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        );
        if let Ok(opened) = opened.map(File::from)
            && opened.metadata().is_ok_and(|found| found.is_file())
        {
            let read = io::copy(&mut opened.take(MAX_PRELOADED), &mut io::sink());
            drop(read);
        }
    }
}

/// Has a program start in a mount namespace of its own, in which `root` lies at [`POINT`].
pub fn give_root(command: &mut Command, root: OwnedFd, cgroups: Cgroups) {
    let enter = move || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        // What is mounted from here on shall not reach the host.
        mount_change(
            c"/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )?;
        let unnamed = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&root, c"", CWD, POINT, unnamed)?;
        if cgroups == Cgroups::Hidden {
            let nothing = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
            mount(c"tmpfs", c"/sys/fs/cgroup", c"tmpfs", nothing, None)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls may run; the closure makes system
    // calls alone, with constant strings short enough to need no allocation, on a descriptor that it
    // owns.
    unsafe { command.pre_exec(enter) };
}

/// A block device over a file, read-only. It goes when the last who has it open closes it.
struct LoopDevice {
    path: PathBuf,
    _open: File,
}

/// `struct loop_config` of `linux/loop.h`; all that is not named is zero.
#[repr(C)]
struct LoopConfig {
    descriptor: u32,
    block_size: u32,
    numbers: [u64; 5],
    encryption: [u32; 3],
    flags: u32,
    names_keys_and_reserved: [u64; 30],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);

/// `LO_FLAGS_READ_ONLY` and `LO_FLAGS_AUTOCLEAR`.
const READ_ONLY_UNTIL_CLOSED: u32 = 1 | 4;

/// Requests of `linux/loop.h`; `LOOP_CONFIGURE` since Linux 5.8.
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;

impl LoopDevice {
    fn attach(image: &Path) -> io::Result<Self> {
        let file = File::open(image)?;
        let config = LoopConfig {
            descriptor: file.as_raw_fd().unsigned_abs(),
            block_size: 0,
            numbers: [0; 5],
            encryption: [0; 3],
            flags: READ_ONLY_UNTIL_CLOSED,
            names_keys_and_reserved: [0; 30],
        };
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")?;
        let mut tries = 0;
        loop {
            tries += 1;
            // SAFETY: LOOP_CTL_GET_FREE takes no argument, and returns a number.
            let free = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            let free = nix::errno::Errno::result(free)?;
            let path = PathBuf::from(format!("/dev/loop{free}"));
            let device = File::open(&path)?;
            // SAFETY: LOOP_CONFIGURE reads a `struct loop_config`, which this is: its layout is that
            // of the header, and its size is checked above.
            let configured =
                unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
            match nix::errno::Errno::result(configured) {
                Ok(_) => {
                    return Ok(Self {
                        path,
                        _open: device,
                    });
                }
                // Somebody else was given the same number, and was quicker.
                Err(nix::errno::Errno::EBUSY) if tries < MAX_TRIES => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process;
    use std::fs;

    /// An EROFS image of one directory with one file.
    fn image(directory: &Path) -> PathBuf {
        let tree = directory.join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("file"), "there").unwrap();
        let image = directory.join("image.erofs");
        process::run(process::program("mkfs.erofs").arg(&image).arg(&tree)).unwrap();
        image
    }

    /// What a program says that finds `root` at its place.
    fn seen(root: OwnedFd, cgroups: Cgroups, script: &str) -> String {
        let mut command = process::program("sh");
        command.args(["-c", script]);
        give_root(&mut command, root, cgroups);
        process::run(&mut command).unwrap().stdout
    }

    #[test]
    #[ignore = "needs root and runsc"]
    fn an_image_is_seen_by_one_program_alone_and_cannot_be_changed() {
        let directory = tempfile::tempdir().unwrap();
        let image = image(directory.path());
        let device = LoopDevice::attach(&image).unwrap();
        for source in [&image, &device.path] {
            // By whichever way this kernel can: the other is tried by name.
            let root = match mount_erofs(source) {
                Err(Errno::NOTBLK) if source == &image => detached(source).unwrap(),
                root => root.unwrap(),
            };
            let script = format!(
                "cat {POINT}/file; touch {POINT}/file || grep ' {POINT} ' /proc/self/mounts"
            );
            let seen = seen(root, Cgroups::Visible, &script);
            assert!(seen.starts_with("there"), "{seen}");
            assert!(seen.contains("erofs ro,nosuid,nodev"), "{seen}");
            let host = fs::read_to_string("/proc/self/mounts").unwrap();
            assert!(!host.contains(&format!(" {POINT} ")), "{host}");
        }
        let name = device.path.file_name().unwrap().to_owned();
        drop(device);
        let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
        // The last mount goes a moment after the last process.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        let ours = || fs::read_to_string(&backing).is_ok_and(|text| text.contains("image.erofs"));
        while ours() {
            assert!(
                std::time::Instant::now() < deadline,
                "{}",
                backing.display()
            );
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    #[test]
    #[ignore = "needs root and runsc"]
    fn cgroups_can_be_hidden() {
        let directory = tempfile::tempdir().unwrap();
        let image = image(directory.path());
        let list = "ls -A /sys/fs/cgroup | wc -l";
        let hidden = seen(detached(&image).unwrap(), Cgroups::Hidden, list);
        assert_eq!(hidden, "0\n");
        let visible = seen(detached(&image).unwrap(), Cgroups::Visible, list);
        assert_ne!(visible, "0\n");
    }

    #[test]
    fn preloading_waits_for_no_fifo_and_reads_no_more_than_its_bound() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // With a writer that says nothing, a read would wait too.
        let writer = OpenOptions::new().read(true).write(true).open(&fifo);
        let endless = File::create(directory.path().join("endless")).unwrap();
        endless.set_len(1 << 42).unwrap();
        let root = OwnedFd::from(File::open(directory.path()).unwrap());
        let (sender, done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            preload(&root, &["fifo", "missing", ".", "endless"]);
            sender.send(()).unwrap();
        });
        done.recv_timeout(std::time::Duration::from_secs(20))
            .unwrap();
        drop(writer.unwrap());
    }

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = detached(file.path()).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot mount `") || error.contains("loop device"),
            "{error}"
        );
    }
}
