//! The profile is in force inside the guest.
//!
//! gVisor would grant most of these calls, or refuse them with another error: each test fails when
//! `--oci-seccomp` goes.

use crate::host::{Host, job};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn system_calls_that_the_profile_does_not_name_are_refused() {
    let ran = Host::new()
        .run(&job(r"
import ctypes, errno, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *map(ctypes.c_long, arguments))
    return errno.errorcode[ctypes.get_errno()] if result == -1 else 'granted'
def attempt(action, *arguments):
    try:
        action(*arguments)
        return 'granted'
    except OSError as error:
        return errno.errorcode[error.errno]
NEWUSER = 0x10000000
path = ctypes.create_string_buffer(b'/tmp/device')
print(json.dumps({
    'unshare a user namespace': call(272, NEWUSER),
    'setns': call(308, 0, 0),
    'trace oneself': call(101, 0, 0, 0, 0),
    'netlink socket': attempt(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, 0),
    'packet socket': attempt(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0),
    'keyring': call(250, 0, -3, 0),
    'add a key': call(248, 0, 0, 0, 0, 0),
    'block device': attempt(os.mknod, '/tmp/b', 0o60600, os.makedev(8, 0)),
    'character device': attempt(os.mknod, '/tmp/c', 0o20600, os.makedev(1, 1)),
    'clone with a user namespace': call(56, NEWUSER | 17, 0, 0, 0, 0),
    'mount': call(165, 0, 0, 0, 0, 0),
    'pivot_root': call(155, 0, 0),
    'chroot': attempt(os.chroot, '/tmp'),
    'bpf': call(321, 0, 0, 0),
    'perf_event_open': call(298, 0, 0, 0, 0, 0),
    'io_uring_setup': call(425, 1, 0),
    'userfaultfd': call(323, 0),
    'read the memory of another': call(310, 1, 0, 0, 0, 0, 0),
    'shmget': call(29, 0, 4096, 0o1600),
    'message queue': call(240, 0, 0, 0, 0),
    'personality': call(135, 0xffffffff),
    'set the clock': call(227, 0, 0),
    'set the host name': call(170, 0, 0),
    'reboot': call(169, 0, 0, 0, 0),
}))
"))
        .await;
    let answers = ran.json();
    let answers = answers.as_object().unwrap();
    assert_eq!(answers.len(), 24);
    let granted: Vec<_> = answers
        .iter()
        .filter(|(_, answer)| **answer != json!("EPERM"))
        .collect();
    assert!(granted.is_empty(), "{granted:?}");
}

/// `clone3` takes its flags from memory, where no profile can look: whatever they are, there is no
/// such call, and glibc makes its threads with `clone`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn clone3_makes_no_user_namespace_and_nothing_else() {
    let ran = Host::new()
        .run(&job(r"
import ctypes, errno, json, os
libc = ctypes.CDLL(None, use_errno=True)
def clone3(flags):
    arguments = (ctypes.c_uint64 * 11)(flags, 0, 0, 0, 17)
    child = libc.syscall(435, arguments, ctypes.c_long(ctypes.sizeof(arguments)))
    if child == 0:
        os._exit(0)
    return errno.errorcode[ctypes.get_errno()] if child == -1 else 'granted'
print(json.dumps([clone3(flags) for flags in (0, 0x10000000, 0x20000000)]))
"))
        .await;
    assert_eq!(ran.json(), json!(["ENOSYS", "ENOSYS", "ENOSYS"]));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn the_mode_is_a_filter_in_every_process_and_thread() {
    let ran = Host::new()
        .run(&job(r"
import json, subprocess, threading
def mode(path):
    return [line.split()[1] for line in open(path) if line.startswith('Seccomp:')]
modes = [mode('/proc/self/status')]
thread = threading.Thread(target=lambda: modes.append(mode('/proc/thread-self/status')))
thread.start()
thread.join()
child = subprocess.check_output(['cat', '/proc/self/status'], text=True)
modes.append([line.split()[1] for line in child.splitlines() if line.startswith('Seccomp:')])
modes.append(mode('/proc/1/status'))
print(json.dumps(modes))
"))
        .await;
    assert_eq!(ran.json(), json!([["2"], ["2"], ["2"], ["2"]]));
}
