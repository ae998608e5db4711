//! What a session does with a bare socket, before and beside its face: wait for
//! the first byte, read, and notice that the peer is gone.

use std::{
    future::pending,
    io,
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use ksi_protocol::{Code, Refusal, json};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::{io::Interest, net::UnixStream};

/// Bytes that one read may bring. One batch of requests is what one read
/// brought.
pub(super) const READ_BYTES: usize = 64 * 1024;

/// Room that a read finds at least. Payloads are slices of what was read and
/// keep it alive while they wait somewhere, so a buffer is filled before there
/// is another: what waits costs little more than it holds.
const ROOM_BYTES: usize = 8 * 1024;

/// Waits for the first byte that is not white space.
pub(super) async fn first_byte(stream: &UnixStream, input: &mut BytesMut) -> Option<u8> {
    loop {
        while let Some(&byte) = input.first() {
            if !byte.is_ascii_whitespace() {
                return Some(byte);
            }
            input.advance(1);
        }
        if read(stream, input).await.ok()? == 0 {
            return None;
        }
    }
}

/// Tells a client that speaks something else, HTTP for example, what is spoken
/// here.
pub(super) async fn foreign(stream: &UnixStream, first: u8) {
    let message = format!(
        "this socket speaks JSON lines or length-delimited MessagePack, \
         and not what begins with byte {first:#04x}"
    );
    let refusal =
        Refusal::new(Code::InvalidFrame, message).hint(r#"try {"event":"system:health"} and a newline"#);
    let line = format!("{}\n", json::refusal_line(None, &refusal));
    // A few bytes into an empty socket: they fit, or the peer is gone.
    let _ = stream.try_write(line.as_bytes());
    hear_out(stream).await;
}

/// Gives a peer that is cut off a moment to read why: closing a socket with
/// unread input would destroy what it has not read yet.
pub(super) async fn hear_out(stream: &UnixStream) {
    let _ = nix::sys::socket::shutdown(stream.as_raw_fd(), nix::sys::socket::Shutdown::Write);
    let mut waste = BytesMut::new();
    let reading = async {
        while read(stream, &mut waste).await.is_ok_and(|n| n > 0) {
            waste.clear();
        }
    };
    // A peer that goes on sending does not matter any more.
    let _ = tokio::time::timeout(Duration::from_secs(1), reading).await;
}

pub(super) async fn read(stream: &UnixStream, input: &mut BytesMut) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        if input.capacity() - input.len() < ROOM_BYTES {
            input.reserve(READ_BYTES);
        }
        let mut window = bytes::BufMut::limit(&mut *input, READ_BYTES);
        match stream.try_read_buf(&mut window) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

/// Until the client has closed both sides. Watches a second descriptor of the
/// same socket, so that the readiness that writers rely on is not consumed.
pub(super) async fn gone(socket: &UnixStream) {
    let second = socket.as_fd().try_clone_to_owned().map(|fd| UnixStream::from_std(fd.into()));
    // Without a descriptor to spare, it is noticed when something is written.
    let Ok(Ok(second)) = second else { return pending().await };
    loop {
        if second.ready(Interest::WRITABLE).await.is_err() || hung_up(socket) {
            return;
        }
        // Nothing is written here; this asks to be told of the next change.
        let _ = second.try_io(Interest::WRITABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
}

pub(super) fn hung_up(socket: &UnixStream) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(_) => fds[0].revents().is_some_and(|got| got.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)),
        Err(_) => true,
    }
}
