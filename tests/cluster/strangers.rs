//! Who is not of the group gets nothing, and A's log says so.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use super::{carry, first, join, second, ticket, try_join};
use crate::harness::command::Cmd;
use crate::harness::namespaces::End;
use crate::harness::volume::{ON_CABLE, TestVolume};
use crate::harness::{SOON, noise, wait_for};

#[test]
fn a_ticket_is_good_once() {
    let (cable, a) = first();
    let once = ticket(&a, ["--role", "reader"]);
    let mut b = second(&cable);
    join(&mut b, &once);
    b.unmount();
    let thief = second(&cable);
    let refused = try_join(&thief, &once);
    assert!(refused.code() > 0, "a used ticket was accepted: {refused}");
    assert!(refused.err.contains("used"), "{refused}");
    wait_for("A's log tells of it", SOON, || a.log().contains("used"));
    assert!(!thief.state().join("device.key").exists() || !can_serve(&thief));
}

#[test]
#[ignore = "waits for as long as clocks may differ: only with --long"]
fn an_expired_ticket_is_refused() {
    let (cable, a) = first();
    let short = ticket(&a, ["--role", "reader", "--expires", "1s"]);
    std::thread::sleep(Duration::from_secs(dfs::keys::certificate::CLOCK_SKEW_SECS + 2));
    let b = second(&cable);
    let refused = try_join(&b, &short);
    assert!(refused.code() > 0 && refused.err.contains("expired"), "{refused}");
}

#[test]
fn an_altered_ticket_is_refused() {
    let (cable, a) = first();
    let good = ticket(&a, ["--role", "reader"]);
    let b = second(&cable);
    for at in [6, good.len() / 2, good.len() - 1] {
        let mut altered = good.clone().into_bytes();
        altered[at] = if altered[at] == b'a' { b'b' } else { b'a' };
        let refused = try_join(&b, &String::from_utf8(altered).unwrap());
        assert!(refused.code() > 0, "altered at {at}: {refused}");
        assert!(
            !refused.said().contains(&good[8..]),
            "a ticket is never repeated: {refused}"
        );
    }
}

#[test]
fn a_device_of_another_group_gets_nothing() {
    let (cable, a) = first();
    fs::write(a.at("secret"), noise(31, 1 << 20)).unwrap();
    let mut other = second(&cable);
    other.init();
    other.configure(&format!("{ON_CABLE}peers = [\"10.77.0.1:8080\"]\n"));
    other.mount();
    let content = b"its own files work".to_vec();
    fs::write(other.at("own"), &content).unwrap();
    carry(&a, &other, &["secret"]);
    assert_eq!(fs::read(other.at("secret")).unwrap_err().raw_os_error(), Some(5));
    assert_eq!(fs::read(other.at("own")).unwrap(), content);
    wait_for("A's log tells of a stranger", SOON, || tells_of_a_stranger(&a));
    fs::read(a.at("secret")).unwrap();
}

#[test]
fn a_device_without_its_certificate_gets_nothing() {
    let (cable, a) = first();
    let content = noise(32, 1 << 20);
    fs::write(a.at("secret"), &content).unwrap();
    let mut b = second(&cable);
    join(&mut b, &ticket(&a, ["--role", "reader"]));
    carry(&a, &b, &["secret"]);
    b.unmount();
    fs::remove_file(b.state().join("keys/certificate")).unwrap();
    let ran = b.try_mount([]);
    if ran.succeeded() {
        assert_eq!(fs::read(b.at("secret")).unwrap_err().raw_os_error(), Some(5));
    } else {
        assert!(ran.err.contains("certificate"), "{ran}");
    }
}

#[test]
fn garbage_on_the_port_costs_the_sender_its_connection_only() {
    let (cable, a) = first();
    let content = noise(33, 1 << 20);
    fs::write(a.at("file"), &content).unwrap();
    let script = r#"
for n in $(seq 20); do
  exec 3<>/dev/tcp/10.77.0.1/8080
  head -c 200000 /dev/urandom >&3 || true
  exec 3>&-
done 2>/dev/null || true
(for n in $(seq 200); do exec {fd}<>/dev/tcp/10.77.0.1/8080 || break; done; sleep 1) 2>/dev/null || true
"#;
    let path = cable.path(End::B);
    Cmd::within_namespace("bash", &path).args(["-c", script]).ok();
    let mut b = second(&cable);
    join(&mut b, &ticket(&a, ["--role", "reader"]));
    carry(&a, &b, &["file"]);
    assert!(fs::read(b.at("file")).unwrap() == content);
    let log = a.log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn the_control_socket_is_closed_to_other_users() {
    let volume = TestVolume::mounted();
    let socket = dfs::control::socket_path(Path::new("/run/dfs"), volume.state());
    assert!(socket.exists(), "{}", socket.display());
    let script = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])";
    let nobody = ["--reuid=54017", "--regid=54017", "--clear-groups"];
    Cmd::new("setpriv")
        .args(nobody)
        .args(["python3", "-c", script])
        .arg(&socket)
        .fails();
    let mut own = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    own.set_read_timeout(Some(SOON)).unwrap();
    own.write_all(b"this is no request\n").unwrap();
    let mut answer = String::new();
    own.read_to_string(&mut answer).ok();
    assert!(volume.status()["pid"].is_number(), "the daemon still answers");
}

fn can_serve(volume: &TestVolume) -> bool {
    volume
        .dfs(["status", "--json"])
        .arg(volume.folder())
        .run()
        .succeeded()
}

fn tells_of_a_stranger(a: &TestVolume) -> bool {
    let log = a.log();
    log.lines().any(|line| {
        ["WARN", "INFO"].iter().any(|level| line.contains(level))
            && ["certificate", "group", "member", "stranger"]
                .iter()
                .any(|word| line.contains(word))
            && [
                "refused",
                "dropped",
                "denied",
                "without",
                "not a member",
                "rejected",
            ]
            .iter()
            .any(|word| line.contains(word))
    })
}
