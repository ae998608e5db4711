//! Every limit of the wire, in one place, each with its reason.

use std::time::Duration;

/// Largest frame body in bytes. One less than 16 MiB, so that the first byte
/// of a length prefix is always 0 and never mistaken for the `{` of the JSON
/// face.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024 - 1;

/// Longest `hello` that shows a token, in bytes of its line or frame body: the
/// daemon looks at it before it knows who is to pay for it.
pub const HELLO_BYTES_MAX: usize = 4096;

/// Longest event name in bytes: fits a line of a terminal and a log.
pub const NAME_BYTES_MAX: usize = 128;

/// Most segments of an event name or pattern: bounds the work of matching.
pub const NAME_SEGMENTS_MAX: usize = 8;

/// Longest `correlation_id` in bytes: it goes with all that follows from one
/// cause, into records that nobody else pays for.
pub const CORRELATION_ID_BYTES_MAX: usize = 256;

/// Longest `idempotency_key` in bytes: it is kept for as long as its work.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;

/// Longest `id` of a JSON line in bytes, where it is a text: every answer has it.
pub const LINE_ID_BYTES_MAX: usize = 128;

/// Largest body in bytes of the frame in which a plugin describes itself: what
/// the daemon keeps of it, and shows whoever asks.
pub const DESCRIPTOR_BYTES_MAX: usize = 1024 * 1024;

/// Requests that a plugin may answer: each is an entry of the daemon's tables.
pub const DESCRIPTOR_REQUESTS_MAX: usize = 512;

/// Entries of every other list of a descriptor: all patterns of it are looked at
/// for what it sends, and for what it has a word on.
pub const DESCRIPTOR_LIST_MAX: usize = 256;

/// Most arrays and maps inside one another in a payload, or in the fields of a
/// frame with their own map counted: bounds the stack of whoever decodes it.
pub const DEPTH_MAX: usize = 64;

/// Requests that one connection may have in flight; more are refused `busy`.
pub const IN_FLIGHT_MAX: u32 = 4096;

/// Subscriptions that one connection may hold.
pub const SUBSCRIPTIONS_MAX: u32 = 16_384;

/// Live events waiting for one connection; the oldest is dropped beyond it,
/// and a gap says so.
pub const LIVE_EVENTS_MAX: usize = 16 * 1024;

/// Bytes of live events waiting for one connection.
pub const LIVE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of replies and chunks waiting for one connection. A client that asks
/// for more than it reads is cut off here.
pub const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How much of something bounded one may have while others have so much of it:
/// half of what they leave, so that whoever comes later finds room, if less each
/// time: for about as many as `most` has binary digits. The rule of dbus-broker's
/// accounts.
#[must_use]
pub fn fair_share(most: usize, others: usize) -> usize {
    most.saturating_sub(others).div_ceil(2)
}

/// Time that a request may take when neither its sender nor the manifest says
/// otherwise.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest time that a request may ask for: a day.
pub const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

/// Time a new connection has to say its first whole frame.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for which a peer may leave its socket unread while data waits, or send
/// nothing more of a frame or line of which it has sent much; then it is cut off.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// Longest path of a Unix socket on Linux, without its closing NUL.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
