//! What lies on the host for a program to find or to change, and must be neither found nor changed.

use crate::host::{IMAGE, names_in, state_dir};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use tako_vm::image::Images;
use tempfile::TempDir;

/// Settings of the host that a program could be after.
const SETTINGS: [&str; 14] = [
    "/proc/modules",
    "/proc/swaps",
    "/proc/sys/fs/file-max",
    "/proc/sys/fs/suid_dumpable",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/domainname",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/randomize_va_space",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/vm/nr_hugepages",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/swappiness",
];

/// A decoy that anybody on the host can read and nobody in a sandbox may, listeners that nobody may
/// reach, and the settings of the host before.
pub(crate) struct Sentinels {
    directory: TempDir,
    secret: String,
    /// Open, and left to be inherited, as a careless parent would leave it.
    _inheritable: File,
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    unix: [UnixListener; 2],
    before: BTreeMap<String, String>,
}

impl Sentinels {
    pub(crate) fn plant() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("decoy-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir()
            .unwrap();
        let secret = hex::encode(rand::random::<[u8; 16]>());
        let decoy = directory.path().join("secret");
        fs::write(&decoy, format!("{secret}\n").repeat(100)).unwrap();
        let inheritable = File::open(&decoy).unwrap();
        fcntl(&inheritable, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let mut tcp = vec![TcpListener::bind("127.0.0.1:0").unwrap()];
        let mut udp = vec![UdpSocket::bind("127.0.0.1:0").unwrap()];
        // Where the host has IPv6.
        tcp.extend(TcpListener::bind("[::1]:0"));
        udp.extend(UdpSocket::bind("[::1]:0"));
        let name = SocketAddr::from_abstract_name(&secret).unwrap();
        let unix = [
            UnixListener::bind(directory.path().join("socket")).unwrap(),
            UnixListener::bind_addr(&name).unwrap(),
        ];
        Self {
            secret,
            _inheritable: inheritable,
            tcp,
            udp,
            unix,
            before: settings(directory.path()),
            directory,
        }
    }

    /// What must not be seen.
    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// The input of the hostile job: where it could look, so that it need not guess.
    pub(crate) fn targets(&self) -> String {
        let tcp = self.tcp.iter().map(TcpListener::local_addr);
        let udp = self.udp.iter().map(UdpSocket::local_addr);
        let port = |address: std::io::Result<std::net::SocketAddr>| address.unwrap().port();
        serde_json::json!({
            "decoy": self.directory.path().join("secret"),
            "socket": self.directory.path().join("socket"),
            "tcp": tcp.map(port).collect::<Vec<_>>(),
            "udp": udp.map(port).collect::<Vec<_>>(),
        })
        .to_string()
    }

    /// Checks that nothing was changed and nobody was reached.
    pub(crate) fn assert_untouched(&self, name: &str) {
        assert_eq!(settings(self.directory.path()), self.before, "{name}");
        let nobody = |reached: std::io::Result<()>| {
            let refused = reached.expect_err("nobody was to come");
            assert_eq!(refused.kind(), ErrorKind::WouldBlock, "{name}");
        };
        for listener in &self.tcp {
            listener.set_nonblocking(true).unwrap();
            nobody(listener.accept().map(drop));
        }
        for socket in &self.udp {
            socket.set_nonblocking(true).unwrap();
            nobody(socket.recv(&mut [0]).map(drop));
        }
        for listener in &self.unix {
            listener.set_nonblocking(true).unwrap();
            nobody(listener.accept().map(drop));
        }
    }
}

/// What a program could have changed, by name.
fn settings(decoys: &Path) -> BTreeMap<String, String> {
    let image = Images::at(&state_dir()).find(IMAGE).unwrap().path;
    let read = |path: &str| {
        // A kernel without modules or hugepages has no such file, before and after.
        let text = fs::read_to_string(path);
        (
            path.to_owned(),
            text.unwrap_or_else(|error| error.to_string()),
        )
    };
    let mut settings: BTreeMap<_, _> = SETTINGS.into_iter().map(read).collect();
    settings.insert("devices".to_owned(), names_in(Path::new("/dev")).join(" "));
    for path in [decoys, &decoys.join("secret"), &*image] {
        settings.insert(path.display().to_string(), state_of(path));
    }
    settings.insert("decoys".to_owned(), names_in(decoys).join(" "));
    settings
}

/// Everything that changes when a file is written, replaced or given other rights.
fn state_of(path: &Path) -> String {
    let state = fs::metadata(path).unwrap();
    format!(
        "{} {:o} {}:{} {} {}.{} {}.{}",
        state.ino(),
        state.mode(),
        state.uid(),
        state.gid(),
        state.size(),
        state.mtime(),
        state.mtime_nsec(),
        state.ctime(),
        state.ctime_nsec(),
    )
}
