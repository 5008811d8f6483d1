//! Every flag that runsc is given, in one table: policy, reviewed by its golden test.
//!
//! Flags and their meaning as of gVisor 20240729; an unknown one stops runsc with status 2.

/// The flags of every command, beside `--root` and `--log`.
pub(super) const FLAGS: [&str; 13] = [
    "--log-format=json",
    // Needs neither KVM nor ptrace, and is what gVisor itself defaults to.
    "--platform=systrap",
    // Without it `linux.seccomp` is ignored with a warning in the log.
    "--oci-seccomp=true",
    // No network stack beyond a loopback device of the sandbox's own.
    "--network=none",
    "--net-raw=false",
    // The sentry runs as an unprivileged host user without capabilities.
    "--directfs=false",
    // The root is a read-only EROFS image; the default would write into a shared directory.
    "--overlay2=none",
    // No socket and no FIFO of the host can be opened from inside.
    "--host-uds=none",
    "--host-fifo=none",
    // Nobody else changes the files of a sandbox.
    "--file-access=exclusive",
    "--file-access-mounts=exclusive",
    "--rootless=false",
    // An annotation of the bundle can change none of these.
    "--allow-flag-override=false",
];
