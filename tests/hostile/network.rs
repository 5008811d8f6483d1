//! Group D: nothing reaches the host's network, nor comes from it.
//!
//! That the host sees no packet is shown by what could be reached: the listeners of every attack
//! (TCP and UDP on both loopbacks, a socket file, an abstract socket) are never come to, and the
//! interface counters of the sentry's own network namespace stay at zero.

use crate::attack::{Attack, SUCCEEDED};
use crate::golden::assert_golden;
use crate::host::Part;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn d1_to_d8_nothing_can_be_reached_and_every_attempt_fails_at_once() {
    // It prints when all was tried.
    let (ended, counters) = Attack::new("D", include_str!("programs/network.py"))
        .seconds(60)
        .observed(&SUCCEEDED, async |sandbox, _| {
            let sentry = sandbox.parts(Part::Sentry)[0];
            fs::read_to_string(format!("/proc/{sentry}/net/dev")).unwrap()
        })
        .await;
    // One interface, a loopback that is down, through which nothing went.
    let lines: Vec<&str> = counters.lines().skip(2).collect();
    assert_eq!(lines.len(), 1, "{counters}");
    let fields: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(fields[0], "lo:");
    assert!(fields[1..].iter().all(|count| *count == "0"), "{counters}");
    assert_golden(
        "golden/network.json",
        include_str!("golden/network.json"),
        &ended.json(),
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runsc"]
async fn d7_what_listens_inside_cannot_be_reached_from_the_host() {
    let program = "
import json, socket, sys, time
servers = [socket.create_server(('0.0.0.0', 0)), socket.create_server(('127.0.0.1', 0)),
           socket.create_server(('::', 0), family=socket.AF_INET6)]
print(json.dumps([server.getsockname()[1] for server in servers]), flush=True)
for server in servers: server.settimeout(0.5)
reached = 0
for server in servers:
    try:
        server.accept()
        reached += 1
    except TimeoutError: pass
with open('/output/result.json', 'w') as file: file.write(str(reached))
";
    let (ended, reached) = Attack::new("D7", program)
        .observed(&SUCCEEDED, async |_, printed| {
            let ports: Vec<u16> = serde_json::from_slice(printed).unwrap();
            let reached = ports.into_iter().filter(|port| {
                let address = SocketAddr::from(([127, 0, 0, 1], *port));
                TcpStream::connect_timeout(&address, Duration::from_millis(100)).is_ok()
            });
            reached.collect::<Vec<_>>()
        })
        .await;
    assert!(reached.is_empty(), "{reached:?}");
    assert_eq!(ended.record["output"], 0);
}
