//! The daemon's side of a plugin host's link, played by a test: what the host
//! makes of first frames, of garbage and of an end.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread::JoinHandle,
};

use bytes::{Bytes, BytesMut};
use ksi_host::child::{Error, run};
use ksi_protocol::{
    Code, Frame, PROTOCOL_VERSION,
    frame::Setup,
    sandbox::{Layer, Report, Sandbox, Standing},
};

/// A host that runs, and the daemon's end.
fn host() -> (UnixStream, JoinHandle<Result<(), Error>>) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    (ours, std::thread::spawn(move || run(theirs, |_| Ok(Report::default()))))
}

fn encoded(frame: &Frame) -> BytesMut {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes).expect("it is small");
    bytes
}

fn setup(version: u16, library: &str) -> Frame {
    Frame::Setup(Setup {
        version,
        name: "test".into(),
        library: library.into(),
        sha256: None,
        dir: "/".into(),
        sandbox: Box::default(),
        probe: None,
        config: Bytes::from_static(b"\x80"),
    })
}

/// What the host says besides what its sandbox is, and how it ends.
fn after(bytes: &[u8]) -> (Option<Frame>, Result<(), Error>) {
    let (mut ours, host) = host();
    ours.write_all(bytes).expect("the host reads");
    ours.shutdown(std::net::Shutdown::Write).expect("it is open");
    let mut said = Vec::new();
    ours.read_to_end(&mut said).expect("the host ends");
    let mut said = BytesMut::from(&*said);
    let mut next = || Frame::split(&mut said).expect("it says frames");
    let said = match next() {
        Some(Frame::Sandboxed { .. }) => next(),
        other => other,
    };
    (said, host.join().expect("a host does not panic"))
}

#[test]
fn a_link_that_ends_at_once_ends_the_host() {
    let (said, ended) = after(b"");
    assert_eq!(said, None);
    assert!(matches!(ended, Err(Error::Start(_))), "{ended:?}");
}

#[test]
fn another_first_frame_than_a_setup_ends_the_host() {
    let (_, ended) = after(&encoded(&Frame::Drain));
    let Err(Error::Start(refusal)) = ended else { panic!("{ended:?}") };
    assert_eq!(refusal.code, Code::InvalidFrame);
}

#[test]
fn garbage_ends_the_host() {
    for garbage in [&b"\x00\x00\x00\x02\xc1\xc1"[..], b"\x00\x00\x00\x01\xa5", b"GET / HTTP/1.1\r\n\r\n"] {
        let (said, ended) = after(garbage);
        assert_eq!(said, None);
        assert!(matches!(ended, Err(Error::Frame(_))), "{ended:?}");
    }
}

#[test]
fn another_protocol_is_refused_with_both_versions() {
    let (said, ended) = after(&encoded(&setup(PROTOCOL_VERSION + 7, "/nowhere.so")));
    let Some(Frame::Refusal { id: None, refusal }) = said else { panic!("{said:?}") };
    assert_eq!(refusal.code, Code::Conflict);
    assert!(refusal.message.contains(&(PROTOCOL_VERSION + 7).to_string()), "{refusal}");
    assert!(ended.is_err());
}

#[test]
fn a_library_that_is_none_is_refused_to_the_daemon() {
    let (said, ended) = after(&encoded(&setup(PROTOCOL_VERSION, "/nowhere.so")));
    let Some(Frame::Refusal { id: None, refusal }) = said else { panic!("{said:?}") };
    assert_eq!(refusal.code, Code::NotFound);
    assert!(refusal.message.contains("/nowhere.so"), "{refusal}");
    assert_eq!(ended.expect_err("there is nothing to run").to_string(), refusal.message);
}

#[test]
fn a_sandbox_below_what_is_required_is_refused_before_the_library_is_looked_at() {
    let sandbox = Sandbox { require: Some(Layer::Landlock), ..Sandbox::default() };
    let Frame::Setup(setup) = setup(PROTOCOL_VERSION, "/nowhere.so") else { unreachable!("it is one") };
    let setup = Frame::Setup(Setup { sandbox: Box::new(sandbox), ..setup });
    let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let on = |layer| Standing { layer, on: true, why: String::new() };
    let off = |layer| Standing { layer, on: false, why: "this kernel has none".into() };
    let report = Report {
        layers: vec![on(Layer::Process), on(Layer::Limits), on(Layer::Seccomp), off(Layer::Landlock)],
    };
    let host = std::thread::spawn(move || run(theirs, |_| Ok(report)));
    ours.write_all(&encoded(&setup)).expect("the host reads");
    let refusal = host.join().expect("a host does not panic").expect_err("it is refused").to_string();
    for part in ["requires sandbox L3", "L2 can be had", "landlock: this kernel has none"] {
        assert!(refusal.contains(part), "no `{part}` in: {refusal}");
    }
}
