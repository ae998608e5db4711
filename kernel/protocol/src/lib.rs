//! The contract that every part of KSI agrees on: names, patterns, frames,
//! refusals, limits, and the shapes of what a plugin declares and the daemon
//! reports.
//!
//! Nothing here does I/O, reads a clock or keeps state. `PROTOCOL.md`, beside
//! this crate, describes every byte; `tests/golden` holds one of each frame.

use std::cell::Cell;

pub mod audit;
pub mod checkpoint;
pub mod clock;
pub mod descriptor;
mod extent;
pub mod fanout;
pub mod frame;
pub mod json;
pub mod limits;
pub mod meta;
pub mod name;
pub mod nearest;
pub mod paths;
pub mod pattern;
mod payload;
pub mod refusal;
pub mod sandbox;
pub mod secret;
pub mod space;
pub mod system;
pub mod token;
pub mod work;

pub use bytes::Bytes;
pub use descriptor::Descriptor;
pub use frame::Frame;
pub use name::EventName;
pub use pattern::Pattern;
pub use payload::Payload;
pub use refusal::{Code, Refusal};

/// Version of the wire protocol; `hello` and `welcome` carry it, and a peer
/// with another major version is refused with both numbers named.
pub const PROTOCOL_VERSION: u16 = 1;

/// The tenant of whoever is given no other: the owner, and users without one.
pub const LOCAL_TENANT: &str = "local";

/// Bytes that a thread keeps for the next value that it encodes; what is longer
/// is not copied.
const SCRATCH_MAX: usize = 4096;

/// Encodes a value as MessagePack with named fields, the form of every
/// payload.
///
/// # Errors
///
/// Fails only where a `Serialize` implementation does, or on a map whose
/// length is not known beforehand.
pub fn encode<T: serde::Serialize + ?Sized>(value: &T) -> Result<Bytes, rmp_serde::encode::Error> {
    thread_local! {
        /// Grows once, where a buffer of its own would grow with every value.
        static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    }
    // Whoever encodes within an encoding finds an empty one.
    let mut bytes = SCRATCH.take();
    rmp_serde::encode::write_named(&mut bytes, value)?;
    if bytes.len() > SCRATCH_MAX {
        return Ok(bytes.into());
    }
    let exact = Bytes::copy_from_slice(&bytes);
    bytes.clear();
    SCRATCH.set(bytes);
    Ok(exact)
}

/// Decodes a MessagePack payload into a typed value.
///
/// # Errors
///
/// Returns an `invalid_payload` refusal that names the path and what was
/// expected there. Bytes left over after the value are refused too.
pub fn decode<T: serde::de::DeserializeOwned>(payload: &[u8]) -> Result<T, Refusal> {
    match T::deserialize(&mut reader(payload)) {
        Ok(value) => one_value(payload).map(|()| value),
        // The path costs time, so only a payload that fails pays for it.
        Err(_) => serde_path_to_error::deserialize(&mut reader(payload)).map_err(|error| {
            let path = error.path().to_string();
            let refusal = Refusal::invalid_payload(error.inner().to_string());
            if path == "." { refusal } else { refusal.details(serde_json::json!({ "path": path })).at(&path) }
        }),
    }
}

/// Refuses a payload that goes on after its first value.
fn one_value(payload: &[u8]) -> Result<(), Refusal> {
    match extent::value_len(payload) {
        Some(length) if length == payload.len() => Ok(()),
        _ => Err(Refusal::invalid_payload("bytes left over after the MessagePack value")),
    }
}

/// A decoder that refuses the level of nesting after [`limits::DEPTH_MAX`];
/// its counter stops one short of what it is given.
fn reader(payload: &[u8]) -> rmp_serde::Deserializer<rmp_serde::decode::ReadRefReader<'_, [u8]>> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(payload);
    reader.set_max_depth(limits::DEPTH_MAX + 1);
    reader
}

/// The payload `{}`: an empty MessagePack map, what an event without data
/// carries.
#[must_use]
pub fn empty() -> Bytes {
    Bytes::from_static(&[0x80])
}
