//! A plugin host as the daemon starts it, with nothing to load: what of its
//! sandbox it says is in force, and what comes of its probe.

use std::{
    io::{Read, Write},
    net::TcpListener,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use ksi_protocol::{
    Frame, PROTOCOL_VERSION,
    frame::Setup,
    sandbox::{Act, Finding, Layer, Network, Report, Sandbox, Standing, Targets},
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};

/// Time that a host has for all that it says.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a host with such a sandbox until its probe is over.
fn probe(sandbox: Sandbox) -> (Report, Vec<Finding>) {
    let dir = tempfile::tempdir().expect("a directory");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let path = dir.path().join("control.sock");
    // It can be found, and takes nobody in.
    let control =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    bind(control.as_raw_fd(), &UnixAddr::new(&path).expect("a short path")).expect("a new path");
    let network = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    let targets = Targets {
        outside: dir.path().join("outside").display().to_string(),
        port: listener.local_addr().expect("it has one").port(),
        socket: path.display().to_string(),
        daemon: std::process::id(),
        network: network.display().to_string(),
    };
    let own = dir.path().join("own");
    std::fs::create_dir(&own).expect("a directory");
    let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let mut host = Command::new(env!("CARGO_BIN_EXE_ksi-plugin-host"))
        .arg(std::process::id().to_string())
        .current_dir(&own)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .expect("a host");
    ours.set_read_timeout(Some(PATIENCE)).expect("a socket takes that");
    let mut bytes = BytesMut::new();
    setup(sandbox, targets, &own).encode(&mut bytes).expect("it is small");
    ours.write_all(&bytes).expect("the host reads");
    let mut said = Vec::new();
    ours.read_to_end(&mut said).expect("the host ends");
    host.wait().expect("it is ours");
    let mut said = BytesMut::from(&*said);
    let mut next = || Frame::split(&mut said).expect("it says frames");
    let Some(Frame::Sandboxed { report }) = next() else { panic!("it says first what is in force") };
    let Some(Frame::Probed { findings }) = next() else { panic!("and then what came of the probe") };
    (report, findings)
}

fn setup(sandbox: Sandbox, targets: Targets, own: &Path) -> Frame {
    Frame::Setup(Setup {
        version: PROTOCOL_VERSION,
        name: "test".into(),
        library: "/nowhere.so".into(),
        sha256: None,
        dir: own.display().to_string(),
        sandbox: Box::new(sandbox),
        probe: Some(Box::new(targets)),
        config: Bytes::from_static(b"\x80"),
    })
}

fn standing(report: &Report, layer: Layer) -> &Standing {
    report.layers.iter().find(|standing| standing.layer == layer).expect("every layer is told of")
}

fn finding(findings: &[Finding], act: Act) -> &Finding {
    findings.iter().find(|finding| finding.act == act).expect("every act is tried")
}

#[test]
fn a_grant_of_ports_is_a_grant_of_no_other_way_to_be_on_the_network() {
    let disable = vec![Layer::Namespaces, Layer::Cgroup];
    let (report, findings) =
        probe(Sandbox { network: Network::Ports(vec![443, 53]), disable, ..Sandbox::default() });
    if standing(&report, Layer::Seccomp).on {
        for act in [Act::ConnectBySending, Act::ListenUnbound] {
            let finding = finding(&findings, act);
            assert!(finding.denied, "{finding:?}");
        }
    }
}

#[test]
fn a_pair_of_sockets_finds_nobody_else() {
    let disable = vec![Layer::Landlock, Layer::Namespaces, Layer::Cgroup];
    let (report, findings) = probe(Sandbox { disable, ..Sandbox::default() });
    if standing(&report, Layer::Seccomp).on {
        let finding = finding(&findings, Act::DatagramPair);
        assert!(finding.denied, "{finding:?}");
    }
}
