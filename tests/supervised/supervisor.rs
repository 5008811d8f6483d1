//! One supervisor for all tests, which ends with them.

use crate::host::state_dir;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tako_vm::sys::{account, process};

/// Starts the command, and ends it and takes its directory away when its own input ends: with us.
const LEASH: &str = r#""$@" & served=$!; read -r _; kill "$served"; wait "$served"; rm -rf "$0""#;

pub(crate) struct Supervisor {
    directory: PathBuf,
    _leash: Child,
}

/// The one with the state directory that the tests look at, and nothing ready in it.
pub(crate) fn supervisor() -> &'static Supervisor {
    static SUPERVISOR: OnceLock<Supervisor> = OnceLock::new();
    SUPERVISOR.get_or_init(|| {
        Supervisor::start(
            "supervisor:\n  max_jobs: 32\npool:\n  maximum: 0\n",
            &state_dir(),
        )
    })
}

impl Supervisor {
    /// One with this configuration.
    pub(crate) fn start(config: &str, state_dir: &Path) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("tako-vm-test-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .unwrap()
            .keep();
        fs::write(directory.join("config.yaml"), config).unwrap();
        // Where everybody may execute it; by `cp`, since a fork of ours could hold it open for writing.
        let mut copy = process::program("cp");
        copy.arg(env!("CARGO_BIN_EXE_tako-vm")).arg(&directory);
        process::run(&mut copy).unwrap();
        let mut leash = process::program("sh");
        leash.arg("-c").arg(LEASH).arg(&directory);
        leash.arg(directory.join("tako-vm")).arg("supervisor");
        leash.arg("--socket").arg(directory.join("socket"));
        leash.arg("--config").arg(directory.join("config.yaml"));
        leash.arg("--state-dir").arg(state_dir);
        leash.stdin(Stdio::piped()).stdout(Stdio::null());
        leash.stderr(File::create(directory.join("log")).unwrap());
        let supervisor = Self {
            _leash: leash.spawn().unwrap(),
            directory,
        };
        let begun = Instant::now();
        while !answers(&supervisor.socket()) {
            let log = || fs::read_to_string(supervisor.directory.join("log"));
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
        supervisor
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// The command, where everybody may execute it.
    pub(crate) fn binary(&self) -> PathBuf {
        self.directory.join("tako-vm")
    }
}

/// Whether a supervisor that has begun to serve is there. One that has not lets those who connect wait.
fn answers(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return false;
    };
    let patience = Duration::from_secs(20);
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.read_exact(&mut [0]).is_ok()
}

/// The group whose members may use a supervisor.
pub(crate) fn group() -> u32 {
    let group = account::group("tako-vm").unwrap();
    group.expect("there is the group `tako-vm`: run `make test`")
}
