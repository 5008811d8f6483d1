//! Who may connect, and what of it only root may.

use crate::client::{frame, hello};
use crate::daemon::Daemon;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use tako_vm::sys::{account, process};

/// The user and the group `nobody` of Debian, who is in no group of ours.
const NOBODY: &str = "65534";

/// Sends bytes, and prints in hexadecimal what comes until the end.
const CLIENT: &str = r#"
$SIG{PIPE} = "IGNORE";
my $socket = IO::Socket::UNIX->new(Peer => $ARGV[0]) or do { print "no: $!"; exit };
syswrite $socket, pack("H*", $ARGV[1]);
while (sysread $socket, my $bytes, 65536) { print unpack("H*", $bytes) }
"#;

/// Everything but running a job: a greeting, figures, an order to drain, and something that is no frame
/// and so the end.
fn words() -> Vec<u8> {
    [hello(), frame('s', b""), frame('q', b""), frame('\0', b"")].concat()
}

/// What the supervisor answers to those words from a process with these ids.
fn answers(daemon: &Daemon, ids: &[&str]) -> Result<Vec<(char, Value)>, String> {
    let mut command = process::program("setpriv");
    command
        .args(ids)
        .args(["perl", "-MIO::Socket::UNIX", "-e", CLIENT])
        .arg(daemon.socket())
        .arg(hex::encode(words()));
    let printed = process::run(&mut command).unwrap().stdout;
    let bytes = hex::decode(printed.trim()).map_err(|_no_answer| printed)?;
    let mut rest = bytes.as_slice();
    let mut frames = Vec::new();
    while let [kind, a, b, c, d, behind @ ..] = rest {
        let length = u32::from_le_bytes([*a, *b, *c, *d]).try_into().unwrap();
        let (body, behind) = behind.split_at(length);
        frames.push((
            char::from(*kind),
            serde_json::from_slice(body).unwrap_or_default(),
        ));
        rest = behind;
    }
    assert!(rest.is_empty());
    Ok(frames)
}

fn group() -> String {
    let group = account::group("tako-vm").unwrap();
    group
        .expect("`tako-vm setup` has made the group")
        .to_string()
}

#[test]
#[ignore = "needs root and runsc"]
fn members_of_the_group_are_let_in_by_either_kind_of_membership_and_may_not_drain() {
    let daemon = Daemon::start();
    let socket = fs::metadata(daemon.socket()).unwrap();
    assert_eq!(socket.permissions().mode() & 0o7777, 0o660);
    assert_eq!((socket.uid(), socket.gid().to_string()), (0, group()));
    let group = group();
    for ids in [
        ["--reuid", NOBODY, "--regid", NOBODY, "--groups", &group],
        ["--reuid", NOBODY, "--regid", &group, "--groups", NOBODY],
    ] {
        let answers = answers(&daemon, &ids).unwrap();
        let kinds: String = answers.iter().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, "hsxx", "{answers:?}");
        assert_eq!(answers[1].1["draining"], false);
        assert_eq!(answers[2].1["code"], "forbidden");
        assert_eq!(answers[3].1["code"], "protocol");
    }
    assert_eq!(daemon.connect().stats()["draining"], false);
}

#[test]
#[ignore = "needs root and runsc"]
fn everybody_else_is_refused_by_the_mode_of_the_socket_and_were_it_open_by_the_supervisor() {
    let daemon = Daemon::start();
    let others: &[&str] = &["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"];
    let refused = answers(&daemon, others).unwrap_err();
    assert_eq!(refused, "no: Permission denied");
    fs::set_permissions(daemon.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    for ids in [
        others,
        // Root's group is not root.
        &["--reuid", NOBODY, "--regid", "0", "--groups", "0"],
    ] {
        let answers = answers(&daemon, ids).unwrap();
        let [('x', refusal)] = answers.as_slice() else {
            panic!("{answers:?}");
        };
        assert_eq!(refusal["code"], "forbidden");
    }
    daemon.assert_logs("refused the user 65534");
    assert_eq!(daemon.connect().stats()["connections"], json!(1));
}
