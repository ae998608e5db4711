//! The C ABI between KSI and its plugins.
//!
//! Only integers, pointer-plus-length slices and MessagePack bytes cross. A
//! plugin library carries a [`Header`] in the ELF section [`SECTION`], read
//! from the file before any of its code can run, and exports one function,
//! [`SYMBOL`], that returns its [`PluginTable`]. The host passes a
//! [`HostTable`] in. Both tables begin with their size, so fields can be
//! added at the end.
//!
//! # Invariants
//!
//! - Whoever allocates frees: a [`Buffer`] carries its release function.
//! - No function of either table unwinds; each side catches its own panics.
//! - The host calls `deliver` and `poll` of one instance from one thread at a
//!   time. The plugin may call `send` and `wake` from any thread.
//! - A library is never unloaded.
//!
//! The layout is pinned by a golden test.
#![no_std]
#![expect(unsafe_code, reason = "this crate is the boundary; it holds types and one conversion")]

use core::ffi::c_void;

/// First bytes of a [`Header`].
pub const MAGIC: [u8; 8] = *b"KSIPLUG\x01";
/// Peers with another major version are refused.
pub const ABI_MAJOR: u16 = 1;
/// Peers may differ by one minor version.
pub const ABI_MINOR: u16 = 0;
/// ELF section that holds the [`Header`].
pub const SECTION: &str = ".ksi_plugin";
/// The one exported symbol, a [`PluginEntry`].
pub const SYMBOL: &str = "ksi_plugin_v1";

/// Feature bit: the plugin was built by the SDK, so its exports catch panics.
pub const FEATURE_PANIC_WALL: u64 = 1;
/// Feature bit: the plugin must run in a child process.
pub const FEATURE_CHILD_ONLY: u64 = 1 << 1;
/// All feature bits that this version knows; an unknown one is refused.
pub const FEATURES_KNOWN: u64 = FEATURE_PANIC_WALL | FEATURE_CHILD_ONLY;

/// What lies in the file's section, readable without running the plugin.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`ABI_MAJOR`] the plugin was built for.
    pub abi_major: u16,
    /// [`ABI_MINOR`] the plugin was built for.
    pub abi_minor: u16,
    /// Size of this struct.
    pub size: u32,
    /// Feature bits.
    pub features: u64,
    /// Name, UTF-8, padded with zeros.
    pub name: [u8; 64],
    /// Version, UTF-8, padded with zeros.
    pub version: [u8; 32],
}

impl Header {
    /// The header of a plugin of this ABI, for a `static`. Longer texts are
    /// cut.
    #[must_use]
    pub const fn new(name: &str, version: &str, features: u64) -> Self {
        Self {
            magic: MAGIC,
            abi_major: ABI_MAJOR,
            abi_minor: ABI_MINOR,
            size: size_of::<Self>() as u32,
            features,
            name: padded(name),
            version: padded(version),
        }
    }
}

const fn padded<const N: usize>(text: &str) -> [u8; N] {
    let bytes = text.as_bytes();
    let mut padded = [0; N];
    let mut i = 0;
    while i < bytes.len() && i < N {
        padded[i] = bytes[i];
        i += 1;
    }
    padded
}

/// Borrowed bytes, valid for the call that passes them.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Slice {
    /// May be null when `len` is 0.
    pub ptr: *const u8,
    /// Bytes.
    pub len: usize,
}

impl Slice {
    /// Borrows `bytes` for a call.
    #[must_use]
    pub const fn new(bytes: &[u8]) -> Self {
        Self { ptr: bytes.as_ptr(), len: bytes.len() }
    }

    /// No bytes.
    pub const EMPTY: Self = Self::new(&[]);

    /// The bytes.
    ///
    /// # Safety
    ///
    /// The peer that built the slice keeps its bytes alive and unchanged for
    /// `'a`, at most for the call that passed it.
    #[must_use]
    pub const unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: the caller vouches for the peer's slice, and it is not empty.
        unsafe { core::slice::from_raw_parts(self.ptr, self.len) }
    }
}

/// Owned bytes of the peer; whoever receives them calls `release` once.
#[repr(C)]
#[derive(Debug)]
pub struct Buffer {
    /// First byte.
    pub ptr: *mut u8,
    /// Bytes in use.
    pub len: usize,
    /// Whatever `release` needs.
    pub capacity: usize,
    /// Frees the bytes; `None` where there are none.
    pub release: Option<extern "C" fn(ptr: *mut u8, len: usize, capacity: usize)>,
}

impl Buffer {
    /// No bytes, nothing to free.
    pub const EMPTY: Self = Self { ptr: core::ptr::null_mut(), len: 0, capacity: 0, release: None };
}

/// What a [`Message`] means. Numbers are never reused.
///
/// To the plugin: `Request`, `Event`, `Cancel`, `Credit`, `Reply`, `Chunk`,
/// `End`, `Accepted`, `Refusal` (the last five answer requests of its own),
/// `Timer`, `Drain`, `Intercept`. From the plugin: `Reply`, `Chunk`, `End`,
/// `Accepted`, `Refusal` (to requests it got), `Request`, `Emit`, `Cancel`,
/// `Timer`, `Ready`, `Drained`, `Log`, `Verdict`, `Health`.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `id`, `name` event, `payload`, `meta` a map (origin,
    /// correlation id, idempotency key), `arg` milliseconds until the
    /// deadline (0: none). With `work` in `meta` it is durable work for the
    /// plugin that keeps it, with `at_ms` also a durable fact.
    Request = 1,
    /// `name` event, `payload`, `meta`; `id` is the index of the descriptor's
    /// `listens` that matched.
    Event = 2,
    /// `name` event, `payload`, `meta`: tell whoever listens.
    Emit = 3,
    /// `id` of a request; from the plugin also of a timer.
    Cancel = 4,
    /// `id`, `payload`.
    Reply = 5,
    /// `id`, `payload`.
    Chunk = 6,
    /// `id`, `payload`.
    End = 7,
    /// `id`, `payload` a refusal. From the plugin with `id` 0, before `Ready`:
    /// it cannot start; it is destroyed.
    Refusal = 8,
    /// `id`, `name` request id, `arg` journal position. From the plugin that
    /// keeps work it is the last answer.
    Accepted = 9,
    /// `id`, `arg` more chunks.
    Credit = 10,
    /// From the plugin: call back after `arg` milliseconds; to it: `id` is due.
    Timer = 11,
    /// The plugin can answer now.
    Ready = 12,
    /// Finish what is in flight, then say `Drained`.
    Drain = 13,
    /// Nothing is in flight any more.
    Drained = 14,
    /// `arg` 1 error to 5 trace, `payload` UTF-8 text.
    Log = 15,
    /// `id`, `name` event, `payload`, `meta`; `arg` is the index of the
    /// descriptor's `intercepts` that is asked.
    Intercept = 16,
    /// `id`, `arg` 0 pass, 1 edit (`payload`), 2 refuse (`payload` a refusal).
    Verdict = 17,
    /// From the plugin: `arg` 0 it is well, 1 it cannot do all that it is there
    /// for, `payload` UTF-8 text that says what.
    Health = 18,
}

impl Kind {
    /// The kind of a number from the other side; `None` for an unknown one.
    #[must_use]
    pub const fn from_u32(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Event,
            3 => Self::Emit,
            4 => Self::Cancel,
            5 => Self::Reply,
            6 => Self::Chunk,
            7 => Self::End,
            8 => Self::Refusal,
            9 => Self::Accepted,
            10 => Self::Credit,
            11 => Self::Timer,
            12 => Self::Ready,
            13 => Self::Drain,
            14 => Self::Drained,
            15 => Self::Log,
            16 => Self::Intercept,
            17 => Self::Verdict,
            18 => Self::Health,
            _ => return None,
        })
    }
}

/// One message across the boundary, either way.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Message {
    /// Size of this struct, as its builder knew it.
    pub size: u32,
    /// A [`Kind`].
    pub kind: u32,
    /// What it refers to.
    pub id: u64,
    /// A number; see [`Kind`].
    pub arg: u64,
    /// An event name.
    pub name: Slice,
    /// A MessagePack payload.
    pub payload: Slice,
    /// A MessagePack map of the rest, or empty.
    pub meta: Slice,
}

impl Message {
    /// A message of this kind about `id`, with nothing else in it.
    #[must_use]
    pub const fn new(kind: Kind, id: u64) -> Self {
        Self {
            size: size_of::<Self>() as u32,
            kind: kind as u32,
            id,
            arg: 0,
            name: Slice::EMPTY,
            payload: Slice::EMPTY,
            meta: Slice::EMPTY,
        }
    }
}

/// It worked.
pub const OK: u32 = 0;
/// The plugin panicked; the instance must not be called again.
pub const POISONED: u32 = 1;
/// `create` failed; the out buffer says why (a refusal).
pub const FAILED: u32 = 2;
/// The message was not understood or not allowed.
pub const INVALID: u32 = 3;
/// The queue on the other side is full.
pub const FULL: u32 = 4;

/// What a plugin gives the host.
#[repr(C)]
#[derive(Debug)]
pub struct PluginTable {
    /// Size of this struct, as the plugin knew it.
    pub size: u32,
    /// Reserved, 0.
    pub reserved: u32,
    /// Writes the descriptor (MessagePack) to `out`.
    pub describe: extern "C" fn(out: *mut Buffer) -> u32,
    /// Makes an instance. `host`, and what it points at, lives as long as the
    /// process. `config` is a MessagePack map, `dir` a path. On failure `error` holds a refusal.
    pub create: extern "C" fn(
        host: *const HostTable,
        config: Slice,
        dir: Slice,
        instance: *mut *mut c_void,
        error: *mut Buffer,
    ) -> u32,
    /// Hands one message to the instance and lets it run until it waits.
    pub deliver: extern "C" fn(instance: *mut c_void, message: *const Message) -> u32,
    /// Lets the instance run until it waits, after it called `wake`.
    pub poll: extern "C" fn(instance: *mut c_void) -> u32,
    /// Frees the instance; nothing may be called on it afterwards.
    pub destroy: extern "C" fn(instance: *mut c_void),
}

/// What the host gives an instance.
#[repr(C)]
#[derive(Debug)]
pub struct HostTable {
    /// Size of this struct, as the host knew it.
    pub size: u32,
    /// Reserved, 0.
    pub reserved: u32,
    /// Passed back in every call.
    pub context: *const c_void,
    /// Takes a message from the plugin, from any thread.
    pub send: extern "C" fn(context: *const c_void, message: *const Message) -> u32,
    /// Asks for a `poll` soon, from any thread.
    pub wake: extern "C" fn(context: *const c_void),
}

/// The exported function.
pub type PluginEntry = extern "C" fn() -> *const PluginTable;
