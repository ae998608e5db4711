//! Frames to bytes and back.
//!
//! Encoding appends to a buffer, length prefix first; decoding takes slices of
//! the buffer that the frame arrived in and copies no payload. It neither
//! reads nor writes a socket.
//!
//! # Failure
//!
//! Whatever a peer sends is a frame, "more is needed", or an [`Error`] that
//! says whether the connection can go on; nothing panics, and a length alone
//! reserves next to nothing.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::{
    extent::value_len,
    frame::{Emit, Error, Event, Frame, Intercept, Request, Setup, Verdict},
    limits::{DESCRIPTOR_BYTES_MAX, FRAME_BYTES_MAX},
};

/// Most that is reserved ahead of what has arrived: a length prefix alone, which
/// costs its sender four bytes, must not cost the receiver 16 MiB.
const RESERVE_BYTES_MAX: usize = 64 * 1024;

/// A payload during decoding: a slice of the buffer.
struct Slice<'a>(&'a [u8]);

impl<'a> From<&'a [u8]> for Slice<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl Frame {
    /// Decodes the body of one frame (without its length prefix). Payloads
    /// are slices of `body`; nothing is copied.
    ///
    /// # Errors
    ///
    /// Says what is malformed. The framing itself is intact, so a session can
    /// refuse and go on.
    pub fn decode(body: &Bytes) -> Result<Self, Error> {
        check_shape(body)?;
        let frame = Frame::<Slice<'_>>::deserialize(&mut crate::reader(body))?;
        let rest = body.len() - value_len(body).unwrap_or(body.len());
        if rest > 0 {
            return Err(Error::Trailing(rest));
        }
        Ok(frame.map(&|slice: Slice<'_>| body.slice_ref(slice.0)))
    }

    /// Appends the frame to `buffer`, length prefix first.
    ///
    /// # Errors
    ///
    /// Refuses a frame over [`FRAME_BYTES_MAX`]; `buffer` is then unchanged.
    pub fn encode(&self, buffer: &mut BytesMut) -> Result<(), Error> {
        let start = buffer.len();
        buffer.put_u32(0);
        let mut serializer = rmp_serde::Serializer::new(buffer.writer()).with_struct_map();
        if let Err(error) = self.serialize(&mut serializer) {
            serializer.into_inner().into_inner().truncate(start);
            return Err(error.into());
        }
        let body = buffer.len() - start - 4;
        match u32::try_from(body) {
            Ok(length) if body <= FRAME_BYTES_MAX => {
                buffer[start..start + 4].copy_from_slice(&length.to_be_bytes());
                Ok(())
            }
            _ => {
                buffer.truncate(start);
                Err(Error::TooLarge(body))
            }
        }
    }

    /// Takes the first whole frame off `buffer`, or `None` where more bytes
    /// are needed.
    ///
    /// # Errors
    ///
    /// A frame over the limit is refused from its prefix alone, without being
    /// buffered; the connection cannot go on after that ([`Error::TooLarge`]).
    /// A malformed body is taken off, and the connection can go on.
    pub fn split(buffer: &mut BytesMut) -> Result<Option<Self>, Error> {
        let Some(prefix) = buffer.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(Error::TooLarge(length));
        }
        if buffer.len() < 4 + length {
            buffer.reserve((4 + length - buffer.len()).min(RESERVE_BYTES_MAX));
            return Ok(None);
        }
        let body = buffer.split_to(4 + length).freeze().slice(4..);
        Self::decode(&body).map(Some)
    }
}

/// Refuses what serde would take beside the one specified form: kinds by their
/// number and fields by their position, which would tie the wire to the order
/// of declarations here. Also what would be too much before it is looked at.
fn check_shape(body: &[u8]) -> Result<(), Error> {
    let malformed = |why| Err(Error::Malformed(serde::de::Error::custom(why)));
    let kind_at = match body.first() {
        Some(0x81) => 1,
        Some(0xa0..=0xbf) => return Ok(()),
        _ => return malformed("a frame is a map of one entry, or the name of a kind without fields"),
    };
    let Some(kind @ 0xa0..=0xbf) = body.get(kind_at) else {
        return malformed("the kind of a frame is a text of at most 31 bytes");
    };
    let fields_at = kind_at + 1 + usize::from(kind & 0x1f);
    if body.len() > DESCRIPTOR_BYTES_MAX && body.get(kind_at + 1..fields_at) == Some(b"described") {
        return malformed("a descriptor is longer than 1 MiB");
    }
    match body.get(fields_at) {
        Some(0x80..=0x8f | 0xde | 0xdf) => Ok(()),
        _ => malformed("the fields of a frame are a map from name to value"),
    }
}

impl<P> Frame<P> {
    /// The same frame with its payload held differently.
    #[expect(clippy::too_many_lines, reason = "it names every field of every frame")]
    pub fn map<Q>(self, f: &impl Fn(P) -> Q) -> Frame<Q> {
        match self {
            Self::Hello(hello) => Frame::Hello(hello),
            Self::Welcome(welcome) => Frame::Welcome(welcome),
            Self::Request(r) => Frame::Request(Request {
                id: r.id,
                event: r.event,
                data: f(r.data),
                timeout_ms: r.timeout_ms,
                credit: r.credit,
                correlation_id: r.correlation_id,
                idempotency_key: r.idempotency_key,
                expires_in_ms: r.expires_in_ms,
                origin: r.origin,
                caller: r.caller,
                on_behalf: r.on_behalf,
                parent: r.parent,
                work: r.work,
                at_ms: r.at_ms,
                chain: r.chain,
            }),
            Self::Emit(e) => Frame::Emit(Emit {
                id: e.id,
                event: e.event,
                data: f(e.data),
                correlation_id: e.correlation_id,
                parent: e.parent,
                tenant: e.tenant,
                chain: e.chain,
            }),
            Self::Subscribe(subscribe) => Frame::Subscribe(subscribe),
            Self::Unsubscribe { id } => Frame::Unsubscribe { id },
            Self::Cancel { id } => Frame::Cancel { id },
            Self::Credit { id, n } => Frame::Credit { id, n },
            Self::Reply { id, data } => Frame::Reply { id, data: f(data) },
            Self::Chunk { id, data } => Frame::Chunk { id, data: f(data) },
            Self::End { id, data } => Frame::End { id, data: f(data) },
            Self::Accepted { id, request_id, seq } => Frame::Accepted { id, request_id, seq },
            Self::Refusal { id, refusal } => Frame::Refusal { id, refusal },
            Self::Event(e) => Frame::Event(Event {
                sub: e.sub,
                seq: e.seq,
                event: e.event,
                data: f(e.data),
                origin: e.origin,
                at_ms: e.at_ms,
                correlation_id: e.correlation_id,
                tenant: e.tenant,
                chain: e.chain,
            }),
            Self::Gap(gap) => Frame::Gap(gap),
            Self::Setup(s) => Frame::Setup(Setup {
                version: s.version,
                name: s.name,
                library: s.library,
                sha256: s.sha256,
                dir: s.dir,
                sandbox: s.sandbox,
                probe: s.probe,
                config: f(s.config),
            }),
            Self::Sandboxed { report } => Frame::Sandboxed { report },
            Self::Probed { findings } => Frame::Probed { findings },
            Self::Described { descriptor } => Frame::Described { descriptor },
            Self::Ready => Frame::Ready,
            Self::Drain => Frame::Drain,
            Self::Drained => Frame::Drained,
            Self::Log { level, message } => Frame::Log { level, message },
            Self::Health { degraded } => Frame::Health { degraded },
            Self::Ping { id } => Frame::Ping { id },
            Self::Pong { id } => Frame::Pong { id },
            Self::Intercept(i) => Frame::Intercept(Intercept {
                id: i.id,
                index: i.index,
                stage: i.stage,
                event: i.event,
                data: f(i.data),
                origin: i.origin,
                caller: i.caller,
            }),
            Self::Verdict(v) => Frame::Verdict(Verdict { id: v.id, edit: v.edit.map(f), refuse: v.refuse }),
        }
    }
}

/// Payloads as MessagePack `bin`, borrowed from the buffer they arrived in.
pub(super) mod payload {
    use std::{fmt, marker::PhantomData};

    use serde::{Deserializer, Serializer, de::Visitor};

    struct Bin<P>(PhantomData<P>);

    impl<'de, P: From<&'de [u8]>> Visitor<'de> for Bin<P> {
        type Value = P;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a payload: MessagePack of its own inside a `bin`")
        }

        fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<P, E> {
            Ok(bytes.into())
        }
    }

    pub(in crate::frame) fn serialize<P: AsRef<[u8]>, S: Serializer>(
        data: &P,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(data.as_ref())
    }

    pub(in crate::frame) fn deserialize<'de, P: From<&'de [u8]>, D: Deserializer<'de>>(
        d: D,
    ) -> Result<P, D::Error> {
        d.deserialize_bytes(Bin(PhantomData))
    }
}

/// The same for a payload that may be absent.
pub(super) mod payload_option {
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(transparent, bound(deserialize = "P: From<&'de [u8]>"))]
    struct Present<P>(#[serde(with = "super::payload")] P);

    pub(in crate::frame) fn serialize<P: AsRef<[u8]>, S: Serializer>(
        data: &Option<P>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        match data {
            Some(data) => s.serialize_bytes(data.as_ref()),
            None => s.serialize_none(),
        }
    }

    pub(in crate::frame) fn deserialize<'de, P: From<&'de [u8]>, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<P>, D::Error> {
        Ok(Option::<Present<P>>::deserialize(d)?.map(|present| present.0))
    }
}
