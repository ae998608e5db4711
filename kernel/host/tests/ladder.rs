//! A plugin host as the daemon starts it, with nothing to load: what of its
//! sandbox it says is in force, and what comes of its probe; on this machine, and
//! on one whose kernel has no such system call, or one that does nothing.

#[path = "../../../tests/it/skipped.rs"]
mod skipped;

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
use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket},
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use skipped::skipped;

/// Why a test does nothing here.
const WITHOUT: &str = "this machine lets nobody set a filter of system calls";

/// What the layers that a machine may lack begin with.
const FILTERS: &[libc::c_long] = &[libc::SYS_seccomp];
const RULES: &[libc::c_long] =
    &[libc::SYS_landlock_create_ruleset, libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self];

/// Time that a host has for all that it says.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a host with such a sandbox until its probe is over.
fn probe(sandbox: Sandbox) -> (Report, Vec<Finding>) {
    let dir = tempfile::tempdir().expect("a directory");
    probed(&mut said(dir.path(), sandbox))
}

/// What a host says of its sandbox and of its probe.
fn probed(said: &mut BytesMut) -> (Report, Vec<Finding>) {
    let mut next = || Frame::split(said).expect("it says frames");
    let Some(Frame::Sandboxed { report }) = next() else { panic!("it says first what is in force") };
    let Some(Frame::Probed { findings }) = next() else { panic!("and then what came of the probe") };
    (report, findings)
}

/// All that a host says that is to probe such a sandbox, with its own directory
/// and its targets in this one.
fn said(dir: &Path, sandbox: Sandbox) -> BytesMut {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let path = dir.join("control.sock");
    // It can be found, and takes nobody in.
    let control =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    bind(control.as_raw_fd(), &UnixAddr::new(&path).expect("a short path")).expect("a new path");
    let network = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    let targets = Targets {
        outside: dir.join("outside").display().to_string(),
        port: listener.local_addr().expect("it has one").port(),
        socket: path.display().to_string(),
        daemon: std::process::id(),
        network: network.display().to_string(),
    };
    let own = dir.join("own");
    for new in [&own, &dir.join("outside")] {
        std::fs::create_dir(new).expect("a directory");
    }
    std::fs::write(dir.join("outside/canary"), "alive").expect("a file");
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
    BytesMut::from(&*said)
}

/// The same where system calls only come back with an error, 0 for none; nothing
/// where that cannot be had.
fn probe_where(calls: &[libc::c_long], errno: i32, sandbox: Sandbox) -> Option<(Report, Vec<Finding>)> {
    let arch = std::env::consts::ARCH.try_into().expect("a machine that filters know");
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let action = SeccompAction::Errno(errno.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch).expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a program");
    // In force for the thread that has entered it, and for what that starts.
    let tried = std::thread::spawn(move || {
        apply_filter(&program).ok()?;
        Some(probe(sandbox))
    });
    tried.join().expect("the host does what it is to do")
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
    if !standing(&report, Layer::Seccomp).on {
        return skipped(WITHOUT);
    }
    for act in [Act::ConnectBySending, Act::ListenUnbound] {
        let finding = finding(&findings, act);
        assert!(finding.denied, "{finding:?}");
    }
}

#[test]
fn a_pair_of_sockets_finds_nobody_else() {
    let disable = vec![Layer::Landlock, Layer::Namespaces, Layer::Cgroup];
    let (report, findings) = probe(Sandbox { disable, ..Sandbox::default() });
    if !standing(&report, Layer::Seccomp).on {
        return skipped(WITHOUT);
    }
    let finding = finding(&findings, Act::DatagramPair);
    assert!(finding.denied, "{finding:?}");
}

#[test]
fn what_is_known_of_a_file_that_is_not_granted_cannot_be_changed_at_any_level() {
    let without = |layers: &[Layer]| Sandbox { disable: layers.into(), ..Sandbox::default() };
    for disable in [&[Layer::Namespaces, Layer::Cgroup][..], &[Layer::Seccomp], &[]] {
        let (report, findings) = probe(without(disable));
        if standing(&report, Layer::Seccomp).on || standing(&report, Layer::Namespaces).on {
            let finding = finding(&findings, Act::ModeOutside);
            assert!(finding.denied, "without {disable:?}: {finding:?}");
        }
    }
    let all = [Layer::Seccomp, Layer::Landlock, Layer::Namespaces, Layer::Cgroup];
    let (_, findings) = probe(without(&all));
    assert!(!finding(&findings, Act::ModeOutside).denied, "nothing is there to deny it");
}

#[test]
fn a_kernel_without_filters_and_rules_leaves_what_it_has_and_each_layer_says_why() {
    let missing = [FILTERS, RULES, &[libc::SYS_unshare]].concat();
    let Some((report, findings)) = probe_where(&missing, libc::ENOSYS, Sandbox::default()) else {
        return skipped(WITHOUT);
    };
    assert_eq!(report.level(), "L1", "{report:?}");
    for (layer, why) in [
        (Layer::Seccomp, "not implemented"),
        (Layer::Landlock, "this kernel has none"),
        (Layer::Namespaces, "ENOSYS"),
    ] {
        let standing = standing(&report, layer);
        assert!(!standing.on && standing.why.contains(why), "{standing:?}");
    }
    let lacks = report.lacks(Layer::Landlock).expect("it is less than that");
    assert!(lacks.starts_with("it requires sandbox L3, and L1 can be had: L2 (seccomp: "), "{lacks}");
    for act in [Act::Exec, Act::Bind, Act::Signal, Act::SignalByFile] {
        let finding = finding(&findings, act);
        assert!(!finding.denied, "nothing is there to deny it: {finding:?}");
    }
}

#[test]
fn a_layer_that_is_missing_takes_no_other_with_it() {
    let (whole, _) = probe(Sandbox::default());
    for (missing, calls) in [(Layer::Seccomp, FILTERS), (Layer::Landlock, RULES)] {
        let Some((report, _)) = probe_where(calls, libc::ENOSYS, Sandbox::default()) else {
            return skipped(WITHOUT);
        };
        for (before, now) in whole.layers.iter().zip(&report.layers) {
            assert_eq!(now.on, before.on && now.layer != missing, "without {missing:?}: {now:?}");
        }
    }
}

#[test]
fn a_layer_whose_system_calls_say_yes_and_do_nothing_is_not_in_force() {
    let enter_rules = &[libc::SYS_landlock_restrict_self];
    for (layer, calls, act) in
        [(Layer::Seccomp, FILTERS, Act::SignalByFile), (Layer::Landlock, enter_rules, Act::Signal)]
    {
        let others = Layer::ALL.into_iter().filter(|other| *other > Layer::Limits && *other != layer);
        let sandbox = Sandbox { disable: others.collect(), ..Sandbox::default() };
        let Some((report, findings)) = probe_where(calls, 0, sandbox) else { return skipped(WITHOUT) };
        let standing = standing(&report, layer);
        assert!(!standing.on && !standing.why.is_empty(), "{standing:?}");
        assert!(!finding(&findings, act).denied, "nothing is in force");
    }
}

#[test]
fn no_grant_is_followed_through_a_link_that_a_plugin_may_have_put_there() {
    let named = |path: &Path| path.display().to_string();
    for disable in [&[][..], &[Layer::Namespaces]] {
        let dir = tempfile::tempdir().expect("a directory");
        let (shared, kept) = (dir.path().join("shared"), dir.path().join("kept"));
        for new in [&shared, &kept] {
            std::fs::create_dir(new).expect("a directory");
        }
        let (planted, operators) = (shared.join("out"), dir.path().join("link"));
        std::os::unix::fs::symlink(&kept, &planted).expect("a link");
        std::os::unix::fs::symlink(&shared, &operators).expect("a link");
        let sandbox = |read: &[&Path], write: &[&Path]| Sandbox {
            read: read.iter().map(|path| named(path)).collect(),
            write: write.iter().map(|path| named(path)).collect(),
            writable: vec![named(&shared), named(&planted)],
            disable: disable.into(),
            ..Sandbox::default()
        };
        let through = operators.join("out");
        for sandbox in
            [sandbox(&[], &[&shared, &planted]), sandbox(&[&planted], &[]), sandbox(&[&through], &[])]
        {
            let dir = tempfile::tempdir().expect("a directory");
            let first = Frame::split(&mut said(dir.path(), sandbox)).expect("it says a frame");
            let Some(Frame::Refusal { id: None, refusal }) = first else { panic!("it starts: {first:?}") };
            assert!(refusal.message.contains(&named(&planted)), "{}", refusal.message);
            assert!(refusal.message.contains("remove the link"), "{}", refusal.message);
        }
        // A link of the operator's own, and a real directory in another grant.
        std::fs::remove_file(&planted).expect("it is there");
        std::fs::create_dir(&planted).expect("a directory");
        let (report, _) = probed(&mut said(dir.path(), sandbox(&[&planted], &[&operators])));
        let (plain, _) = probe(sandbox(&[], &[]));
        assert_eq!(report, plain, "it has the same layers");
    }
}
