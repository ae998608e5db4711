//! The daemon's side of a plugin host's link, played by a test: what the host
//! makes of first frames, of garbage and of an end.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread::JoinHandle,
};

use bytes::{Bytes, BytesMut};
use ksi_host::child::{Error, run};
use ksi_protocol::{Code, Frame, PROTOCOL_VERSION, frame::Setup};

/// A host that runs, and the daemon's end.
fn host() -> (UnixStream, JoinHandle<Result<(), Error>>) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    (ours, std::thread::spawn(move || run(theirs)))
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
        config: Bytes::from_static(b"\x80"),
    })
}

/// What the host says, and how it ends.
fn after(bytes: &[u8]) -> (Option<Frame>, Result<(), Error>) {
    let (mut ours, host) = host();
    ours.write_all(bytes).expect("the host reads");
    ours.shutdown(std::net::Shutdown::Write).expect("it is open");
    let mut said = Vec::new();
    ours.read_to_end(&mut said).expect("the host ends");
    let said = Frame::split(&mut BytesMut::from(&*said)).expect("it says frames");
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
