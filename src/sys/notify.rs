//! What a service tells the service manager that started it (`sd_notify(3)`): nothing where there is
//! none, that is, without `NOTIFY_SOCKET` in the environment.
//!
//! The variable stays in our own environment, since taking it out is not safe beside threads. No program
//! that we start sees it: `sys::process` gives each an environment of its own.

use sd_notify::NotifyState;
use std::io;
use std::time::Duration;

/// Says that the service does its work now.
///
/// # Errors
/// When there is a service manager that cannot be told.
pub fn ready(status: &str) -> io::Result<()> {
    tell(&[NotifyState::Ready, NotifyState::Status(&line(status))])
}

/// Says, for people, what the service is at.
///
/// # Errors
/// As [`ready`].
pub fn status(status: &str) -> io::Result<()> {
    tell(&[NotifyState::Status(&line(status))])
}

/// Says that the service comes to its end, and why or how far it is.
///
/// # Errors
/// As [`ready`].
pub fn stopping(status: &str) -> io::Result<()> {
    tell(&[NotifyState::Stopping, NotifyState::Status(&line(status))])
}

/// Says that the service is alive. Only for what would not come to say so if it were stuck.
///
/// # Errors
/// As [`ready`].
pub fn alive() -> io::Result<()> {
    tell(&[NotifyState::Watchdog])
}

/// How often to say [`alive`]: in half of the time after which the service manager takes us for dead
/// (`WatchdogSec=`), as `sd_watchdog_enabled(3)` has it. `None` where nobody waits for it.
pub fn watchdog_interval() -> Option<Duration> {
    let limit = sd_notify::watchdog_enabled()?;
    // 0 µs is how systemd writes that there is none.
    (!limit.is_zero()).then_some(limit / 2)
}

fn tell(states: &[NotifyState<'_>]) -> io::Result<()> {
    sd_notify::notify(states)
}

/// One line: what comes behind a line break would be an assignment of its own.
fn line(text: &str) -> String {
    text.replace(['\n', '\r', '\0'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process;
    use std::os::unix::net::UnixDatagram;

    /// Says to a test that it runs in the process that was made for it, and what is expected there.
    const EXPECTED: &str = "TAKO_VM_TEST_EXPECTED";

    /// What is expected in the process that was made for a test, if this is the one.
    fn expected() -> Option<String> {
        std::env::var_os(EXPECTED).map(|text| text.into_string().unwrap())
    }

    /// Runs the test of this name again in a process of its own, with these variables: changing our own
    /// is not safe beside other tests.
    fn run_with(name: &str, expected: &str, variables: &[(&str, &str)]) {
        let mut command = process::program(std::env::current_exe().unwrap());
        command
            .args(["--exact", "--include-ignored"])
            .arg(format!("sys::notify::tests::{name}"))
            .envs(variables.iter().copied())
            .env(EXPECTED, expected);
        let printed = process::run(&mut command).unwrap().stdout;
        assert!(printed.contains("1 passed"), "{printed}");
    }

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_service_manager_is_told_and_no_child_inherits_its_socket() {
        if expected().is_some() {
            ready("2 ready").unwrap();
            status("two lines\nMAINPID=1").unwrap();
            alive().unwrap();
            stopping("1 job runs").unwrap();
            let inherited = process::run(&mut process::program("env")).unwrap().stdout;
            assert!(!inherited.contains("NOTIFY_SOCKET"), "{inherited}");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let variables = [("NOTIFY_SOCKET", path.to_str().unwrap())];
        run_with(
            "a_service_manager_is_told_and_no_child_inherits_its_socket",
            "told",
            &variables,
        );
        assert_eq!(receive(&socket), "READY=1\nSTATUS=2 ready\n");
        assert_eq!(receive(&socket), "STATUS=two lines MAINPID=1\n");
        assert_eq!(receive(&socket), "WATCHDOG=1\n");
        assert_eq!(receive(&socket), "STOPPING=1\nSTATUS=1 job runs\n");
    }

    #[test]
    fn no_service_manager_is_no_error_and_one_that_is_gone_is() {
        let name = "no_service_manager_is_no_error_and_one_that_is_gone_is";
        match expected().as_deref() {
            Some("none") => [ready(""), status(""), alive(), stopping("")]
                .into_iter()
                .for_each(Result::unwrap),
            Some(_) => drop(ready("").unwrap_err()),
            None => {
                run_with(name, "none", &[]);
                run_with(name, "gone", &[("NOTIFY_SOCKET", "/nonexistent/notify")]);
            }
        }
    }

    #[test]
    fn the_watchdog_is_answered_in_half_of_its_time() {
        let name = "the_watchdog_is_answered_in_half_of_its_time";
        if let Some(expected) = expected() {
            assert_eq!(format!("{:?}", watchdog_interval()), expected);
            return;
        }
        run_with(name, "Some(1.5s)", &[("WATCHDOG_USEC", "3000000")]);
        run_with(name, "None", &[]);
        run_with(name, "None", &[("WATCHDOG_USEC", "0")]);
        run_with(name, "None", &[("WATCHDOG_USEC", "soon")]);
        // It is meant for another process.
        let of_another = [("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "1")];
        run_with(name, "None", &of_another);
    }
}
