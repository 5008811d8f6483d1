//! The machine: made, switched on, watched, and gone.

use crate::disk::{self, Base};
use crate::report::Report;
use crate::say;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};
use tako_vm::sys::{place, process};

/// How long the machine may be on. It takes two to four minutes.
const PATIENCE: Duration = Duration::from_mins(10);

/// How much of the console is shown when something is wrong.
const CONSOLE_LINES: usize = 40;

/// What the kernel is told. It would take the emulator's clock for unreliable, and then ask an emulated
/// device for the time, which is slow enough to stop the machine.
const KERNEL: &str = "root=/dev/vda rw console=ttyS0 panic=-1 quiet tsc=reliable clocksource=tsc";

/// Swap of the machine.
const SWAP_BYTES: u64 = 512 << 20;

/// Runs the machine once.
///
/// # Errors
/// Why there is no report, with the end of the console.
pub(crate) fn report() -> Result<Report, String> {
    let state = std::env::var_os("TAKO_VM_STATE_DIR")
        .expect("TAKO_VM_STATE_DIR names no state directory: run these tests with `make test`");
    let state = PathBuf::from(state);
    let place = state.join("vm");
    place::directory(&place).unwrap();
    place::sweep(&place).unwrap();
    let base = Base::provide(&place);
    let run = place::partial_directory(&place).unwrap();
    disk::make_tests(run.path(), &state);
    make_swap(&run.path().join("swap"));
    say("the machine boots");
    let begun = Instant::now();
    let ended = Machine::start(&base, run.path()).wait(begun);
    let console = fs::read(run.path().join("console")).unwrap_or_default();
    let with_console = |why| format!("{why}\nthe console's end:\n{}", end_of(&console));
    let status = ended.map_err(with_console)?;
    say(&format!("the machine is off after {:?}", begun.elapsed()));
    if !status.success() {
        return Err(with_console(format!("qemu failed ({status})")));
    }
    let text = fs::read(run.path().join("report")).unwrap();
    Report::parse(&String::from_utf8_lossy(&text)).map_err(with_console)
}

fn make_swap(path: &Path) {
    fs::File::create(path).unwrap().set_len(SWAP_BYTES).unwrap();
    process::run(process::program("mkswap").arg(path)).unwrap();
}

fn end_of(console: &[u8]) -> String {
    let text = String::from_utf8_lossy(console);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
}

/// A machine that is on; dropped, it is off.
struct Machine {
    qemu: Child,
    report: PathBuf,
    /// Bytes of the report whose lines have been told.
    told: usize,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may be gone already.
        self.qemu.kill().ok();
        self.qemu.wait().ok();
    }
}

impl Machine {
    fn start(base: &Base, run: &Path) -> Self {
        let report = run.join("report");
        let disk =
            |path: &Path| format!("file={},format=raw,if=virtio,snapshot=on", path.display());
        let serial = |name: &str| format!("file:{}", run.join(name).display());
        // Without us it ends, however we end.
        let mut command = process::program("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]);
        command.args(["-smp", "2", "-m", "2G"]);
        command.args(["-nodefaults", "-no-reboot"]);
        command.args(["-display", "none", "-nic", "none"]);
        command.arg("-kernel").arg(base.kernel());
        command.arg("-initrd").arg(base.initrd());
        command.args(["-append", KERNEL]);
        command.args(["-drive", &disk(&base.root())]);
        command.args(["-drive", &disk(&run.join("tests.ext4"))]);
        command.args(["-drive", &disk(&run.join("swap"))]);
        command.args(["-serial", &serial("console"), "-serial", &serial("report")]);
        // Where `snapshot=on` keeps what is written.
        command.env("TMPDIR", run);
        Self {
            qemu: command
                .spawn()
                .expect("qemu starts (Debian package `qemu-system-x86`)"),
            report,
            told: 0,
        }
    }

    /// Waits until the machine switches itself off, telling what it reports meanwhile.
    fn wait(mut self, begun: Instant) -> Result<ExitStatus, String> {
        while begun.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(200));
            self.tell();
            if let Some(status) = self.qemu.try_wait().unwrap() {
                return Ok(status);
            }
        }
        let report = fs::read_to_string(&self.report).unwrap_or_default();
        Err(format!(
            "still on after {PATIENCE:?}; so far it reports:\n{report}"
        ))
    }

    /// Tells the lines that say what is going on.
    fn tell(&mut self) {
        let text = fs::read(&self.report).unwrap_or_default();
        let Some(end) = text.iter().rposition(|byte| *byte == b'\n') else {
            return;
        };
        let new = String::from_utf8_lossy(text.get(self.told..end).unwrap_or_default());
        for line in new.lines().map(str::trim) {
            if line.starts_with("== ") || line.starts_with("test ") {
                say(line);
            }
        }
        self.told = end + 1;
    }
}
