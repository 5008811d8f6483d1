//! What the kernel says of this host: facts, and no verdict on them.

use nix::sys::statvfs::{FsFlags, statvfs};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// The version of the kernel, as far as its features follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// The 6 of `6.1.0-44-cloud-amd64`.
    pub major: u32,
    /// The 1 of it.
    pub minor: u32,
}

/// The version that a kernel's release begins with.
pub fn kernel_version(release: &str) -> Option<KernelVersion> {
    let digits = |text: &str| {
        let end = text.find(|letter: char| !letter.is_ascii_digit());
        text[..end.unwrap_or(text.len())].parse().ok()
    };
    let mut parts = release.split('.');
    Some(KernelVersion {
        major: digits(parts.next()?)?,
        minor: digits(parts.next()?)?,
    })
}

/// A setting of the kernel, below `/proc/sys` or `/sys`; `None` where this kernel has none of the name.
///
/// # Errors
/// Those of reading; some are for root alone.
pub fn setting(path: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A file system, as seen from a directory in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that are free for users other than root.
    pub free_bytes: u64,
    /// Files that can still be made; `None` where the file system does not count them.
    pub free_files: Option<u64>,
    /// Nothing can be written.
    pub read_only: bool,
    /// Nothing can be executed.
    pub no_exec: bool,
}

/// What is free around a directory (statvfs(3)).
///
/// # Errors
/// Those of statvfs(3).
pub fn space(directory: &Path) -> io::Result<Space> {
    let found = statvfs(directory)?;
    let flags = found.flags();
    Ok(Space {
        free_bytes: found
            .blocks_available()
            .saturating_mul(found.fragment_size()),
        free_files: (found.files() > 0).then(|| found.files_available()),
        read_only: flags.contains(FsFlags::ST_RDONLY),
        no_exec: flags.contains(FsFlags::ST_NOEXEC),
    })
}

/// The places that the kernel swaps to, and their sizes in bytes (`proc_swaps(5)`).
///
/// # Errors
/// Those of reading `/proc/swaps`; a kernel without swapping has none, and then there are none.
pub fn swaps() -> io::Result<Vec<(String, u64)>> {
    Ok(parse_swaps(&setting("/proc/swaps")?.unwrap_or_default()))
}

fn parse_swaps(text: &str) -> Vec<(String, u64)> {
    let place = |line: &str| {
        let mut fields = line.split_whitespace();
        let (name, size) = (fields.next()?, fields.nth(1)?);
        Some((name.to_owned(), size.parse::<u64>().ok()? << 10))
    };
    text.lines().skip(1).filter_map(place).collect()
}

/// What the processor calls itself; the architecture where it does not.
///
/// # Errors
/// Those of reading `/proc/cpuinfo`.
pub fn cpu_model() -> io::Result<String> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    Ok(field(&text, "model name")
        .unwrap_or(std::env::consts::ARCH)
        .to_owned())
}

/// What the first processor is and can do, as Linux says it: model and flags of `/proc/cpuinfo`.
///
/// # Errors
/// Those of reading `/proc/cpuinfo`.
pub fn cpu_features() -> io::Result<String> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let told = |line: &&str| {
        let name = line.split(':').next().unwrap_or_default().trim();
        [
            "vendor_id",
            "cpu family",
            "model",
            "model name",
            "stepping",
            "flags",
        ]
        .contains(&name)
    };
    let first = text.split("\n\n").next().unwrap_or_default();
    Ok(first.lines().filter(told).collect::<Vec<_>>().join("\n"))
}

/// Bytes of memory that this host has (`MemTotal`).
///
/// # Errors
/// Those of reading `/proc/meminfo`.
pub fn memory_bytes() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kibibytes = field(&text, "MemTotal").and_then(|value| {
        let number = value.split_whitespace().next()?;
        number.parse::<u64>().ok()
    });
    kibibytes
        .map(|kibibytes| kibibytes << 10)
        .ok_or_else(|| io::Error::other("it has no `MemTotal`"))
}

/// What stands behind the first `name:` of a file in `/proc`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_once(':')?.1.trim())
}

/// The load averages of the last 1, 5 and 15 minutes.
///
/// # Errors
/// Those of reading `/proc/loadavg`.
pub fn load() -> io::Result<Vec<f64>> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let averages = text.split_whitespace().take(3);
    Ok(averages.filter_map(|word| word.parse().ok()).collect())
}

/// The time that all processors of this host have worked since it was started: for programs, for the
/// kernel and for interrupts, in steps of 10 ms (`proc_stat(5)`).
///
/// # Errors
/// Those of reading `/proc/stat`.
pub fn busy() -> io::Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    parse_busy(&text).ok_or_else(|| io::Error::other("`/proc/stat` does not begin with `cpu`"))
}

fn parse_busy(text: &str) -> Option<Duration> {
    let mut fields = text.lines().next()?.split_whitespace();
    if fields.next() != Some("cpu") {
        return None;
    }
    let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    // All but those who only wait, and the guests, who are counted as programs already.
    let [
        user,
        nice,
        system,
        _idle,
        _iowait,
        interrupts,
        soft_interrupts,
        ..,
    ] = ticks.as_slice()
    else {
        return None;
    };
    let busy = user + nice + system + interrupts + soft_interrupts;
    Some(Duration::from_millis(busy * 10)) // USER_HZ is 100 on every Linux
}

/// Whether somebody keeps the system's clock right (`adjtimex(2)`, `STA_UNSYNC`).
///
/// # Errors
/// Those of adjtimex(2).
pub fn clock_is_synchronised() -> io::Result<bool> {
    // SAFETY: a `timex` is plain numbers, for which all zeroes is a value.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: adjtimex(2) writes one `timex`; with no mode set it changes nothing.
    let answer = unsafe { libc::adjtimex(&raw mut state) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(answer != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0)
}

/// What protects this machine's processors from one another's programs, and what does not: the names
/// of known weaknesses that the kernel calls vulnerable.
///
/// # Errors
/// Those of reading `/sys/devices/system/cpu/vulnerabilities`.
pub fn vulnerabilities() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/sys/devices/system/cpu/vulnerabilities")? {
        let entry = entry?;
        if fs::read_to_string(entry.path())?.starts_with("Vulnerable") {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_all_sorts_begin_with_a_version() {
        let version = |major, minor| Some(KernelVersion { major, minor });
        assert_eq!(kernel_version("6.1.0-44-cloud-amd64"), version(6, 1));
        assert_eq!(kernel_version("5.10-rc3"), version(5, 10));
        assert_eq!(kernel_version("6.18.44"), version(6, 18));
        assert!(version(5, 19) < version(6, 0) && version(5, 9) < version(5, 11));
        for text in ["", "6", "six.one", "6.x"] {
            assert_eq!(kernel_version(text), None, "{text}");
        }
    }

    #[test]
    fn places_to_swap_to_are_found_with_their_sizes() {
        let text = "Filename\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                    /dev/vdb2                               partition\t1048572\t\t0\t\t-2\n\
                    /swap\\040file                          file\t\t2048\t\t0\t\t-3\n";
        let expected = [
            ("/dev/vdb2".to_owned(), 1_073_737_728),
            ("/swap\\040file".to_owned(), 2 << 20),
        ];
        assert_eq!(parse_swaps(text), expected);
        assert!(parse_swaps("Filename Type Size Used Priority\n").is_empty());
        assert!(parse_swaps("").is_empty());
    }

    #[test]
    fn the_time_of_processors_at_work_leaves_out_waiting() {
        let text = "cpu  100 20 30 99999 88888 4 5 6 100 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(parse_busy(text), Some(Duration::from_millis(1590)));
        assert_eq!(parse_busy("cpu0 1 2 3 4 5 6 7"), None);
        assert_eq!(parse_busy("cpu 1 2"), None);
        assert_eq!(parse_busy(""), None);
    }

    #[test]
    fn a_field_is_what_stands_behind_its_colon() {
        let text = "processor\t: 0\nmodel name\t: Some CPU: fast\nMemTotal:  24 kB\n";
        assert_eq!(field(text, "model name"), Some("Some CPU: fast"));
        assert_eq!(field(text, "MemTotal"), Some("24 kB"));
        assert_eq!(field(text, "flags"), None);
    }

    #[test]
    fn this_host_answers() {
        let release = setting("/proc/sys/kernel/osrelease").unwrap().unwrap();
        assert!(kernel_version(&release).is_some(), "{release}");
        assert_eq!(setting("/proc/sys/no/such/setting").unwrap(), None);
        assert!(setting("/proc/sys/kernel/core_pattern").unwrap().is_some());
        assert!(!space(Path::new("/proc/self")).unwrap().read_only);
        clock_is_synchronised().unwrap();
        assert!(!cpu_model().unwrap().is_empty());
        assert!(memory_bytes().unwrap() > 16 << 20);
        assert_eq!(load().unwrap().len(), 3);
        assert!(busy().unwrap() > Duration::ZERO);
    }
}
