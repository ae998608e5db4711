//! A connection that speaks MessagePack frames, down to the byte.

use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use bytes::{Bytes, BytesMut};
use ksi_protocol::{
    EventName, Frame, PROTOCOL_VERSION, Pattern, Refusal,
    frame::{Class, Emit, Event, Hello, Id, Request, Subscribe, Welcome},
};
use serde_json::Value;

/// A connection that speaks frames.
#[derive(Debug)]
pub struct Frames {
    socket: UnixStream,
    input: BytesMut,
}

impl Frames {
    /// Over an open socket, before `hello`.
    #[must_use]
    pub fn new(socket: UnixStream) -> Self {
        Self { socket, input: BytesMut::new() }
    }

    /// Says `hello` and hears `welcome`.
    ///
    /// # Panics
    ///
    /// Where the daemon says something else.
    pub fn greet(&mut self) -> Welcome {
        let hello = Hello { version: PROTOCOL_VERSION, client: "test".into(), ..Hello::default() };
        self.send(&Frame::Hello(hello));
        match self.receive() {
            Frame::Welcome(welcome) => welcome,
            other => panic!("no welcome but {other:?}"),
        }
    }

    /// Sends a frame.
    ///
    /// # Panics
    ///
    /// Where the daemon does not take it.
    pub fn send(&mut self, frame: &Frame) {
        let bytes = encoded(frame);
        self.send_bytes(&bytes);
    }

    /// Sends a frame; whether the daemon still takes any.
    pub fn try_send(&mut self, frame: &Frame) -> bool {
        self.socket.write_all(&encoded(frame)).is_ok()
    }

    /// Sends bytes as they are.
    ///
    /// # Panics
    ///
    /// Where the daemon does not take them.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("the daemon takes bytes");
    }

    /// Sends a body behind its length.
    ///
    /// # Panics
    ///
    /// Where the daemon does not take it.
    pub fn send_body(&mut self, body: &[u8]) {
        let length = u32::try_from(body.len()).expect("a body of a test is short");
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend_from_slice(body);
        self.send_bytes(&bytes);
    }

    /// The next frame; `None` at the end.
    ///
    /// # Panics
    ///
    /// Where what comes is no frame, or none comes before the deadline.
    pub fn try_receive(&mut self) -> Option<Frame> {
        let mut window = vec![0; 256 * 1024];
        loop {
            match Frame::split(&mut self.input) {
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => {}
                Err(error) => panic!("the daemon sends no frame: {error}"),
            }
            match self.socket.read(&mut window) {
                Ok(0) => return None,
                Ok(got) => self.input.extend_from_slice(&window[..got]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no frame from the daemon: {error}"),
            }
        }
    }

    /// Takes what comes until the end, or until nothing comes in time.
    pub fn hear_out(&mut self) {
        let mut window = [0; 4096];
        while matches!(self.socket.read(&mut window), Ok(got) if got > 0) {}
    }

    /// The next frame.
    ///
    /// # Panics
    ///
    /// Where there is none.
    pub fn receive(&mut self) -> Frame {
        self.try_receive().expect("the daemon says something")
    }

    /// The next frame, which is a refusal, and what it refuses.
    ///
    /// # Panics
    ///
    /// Where it is something else.
    pub fn refused(&mut self) -> (Option<Id>, Refusal) {
        match self.receive() {
            Frame::Refusal { id, refusal } => (id, refusal),
            other => panic!("no refusal but {other:?}"),
        }
    }

    /// The next frame, which is an event.
    ///
    /// # Panics
    ///
    /// Where it is something else.
    pub fn event(&mut self) -> Event {
        match self.receive() {
            Frame::Event(event) => event,
            other => panic!("no event but {other:?}"),
        }
    }

    /// Asks, and hears the one answer or the refusal, as the next frame.
    ///
    /// # Errors
    ///
    /// The refusal.
    ///
    /// # Panics
    ///
    /// Where something else comes.
    pub fn ask(&mut self, id: Id, event: &str, data: &Value) -> Result<Value, Refusal> {
        self.send(&request(id, event, data));
        match self.receive() {
            Frame::Reply { id: of, data } if of == id => Ok(value(&data)),
            Frame::Refusal { id: of, refusal } if of == Some(id) => Err(refusal),
            other => panic!("no answer to {id} but {other:?}"),
        }
    }

    /// Subscribes, and hears that it is so.
    ///
    /// # Panics
    ///
    /// Where it is refused.
    pub fn subscribe(&mut self, id: Id, pattern: &str, class: Class) {
        self.try_subscribe(id, pattern, class).expect("a subscription is taken");
    }

    /// The same where it may be refused.
    ///
    /// # Errors
    ///
    /// The daemon's refusal.
    ///
    /// # Panics
    ///
    /// Where something else is answered.
    pub fn try_subscribe(&mut self, id: Id, pattern: &str, class: Class) -> Result<(), Refusal> {
        let pattern = Pattern::parse(pattern).expect("a test knows patterns");
        self.send(&Frame::Subscribe(Subscribe::new(id, pattern, class)));
        match self.receive() {
            Frame::Reply { id: of, .. } if of == id => Ok(()),
            Frame::Refusal { id: of, refusal } if of == Some(id) => Err(refusal),
            other => panic!("no answer to a subscription but {other:?}"),
        }
    }

    /// Ends the sending side.
    ///
    /// # Panics
    ///
    /// Where the socket is gone.
    pub fn half_close(&mut self) {
        self.socket.shutdown(Shutdown::Write).expect("the socket is there");
    }
}

/// A frame's bytes.
///
/// # Panics
///
/// Where the frame is too large.
#[must_use]
pub fn encoded(frame: &Frame) -> BytesMut {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes).expect("a frame of a test can be encoded");
    bytes
}

/// A request with nothing but what it needs.
#[must_use]
pub fn request(id: Id, event: &str, data: &Value) -> Frame {
    Frame::Request(plain(id, event, payload(data)))
}

/// The fields of such a request, to change.
///
/// # Panics
///
/// Where `event` is no name.
#[must_use]
pub fn plain(id: Id, event: &str, data: Bytes) -> Request {
    Request::new(id, EventName::parse(event).expect("a test knows names"), data)
}

/// An emission, counted where it has an id.
///
/// # Panics
///
/// Where `event` is no name.
#[must_use]
pub fn emit(id: Option<Id>, event: &str, data: &Value) -> Frame {
    let event = EventName::parse(event).expect("a test knows names");
    Frame::Emit(Emit { id, ..Emit::new(event, payload(data)) })
}

/// JSON as a payload.
///
/// # Panics
///
/// Where it is nested too deeply.
#[must_use]
pub fn payload(data: &Value) -> Bytes {
    ksi_protocol::json::from_json(data).expect("a test's data can be encoded")
}

/// A payload as JSON.
///
/// # Panics
///
/// Where it is no MessagePack.
#[must_use]
pub fn value(data: &[u8]) -> Value {
    ksi_protocol::json::to_json(data).expect("the daemon sends MessagePack")
}
