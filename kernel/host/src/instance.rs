//! One running instance of a plugin, driven by frames.
//!
//! Translates between the frames of the wire and the messages of the ABI, so
//! that the daemon handles a plugin in its own process and one in a child by
//! the same code.
#![expect(unsafe_code, reason = "this module is the host's side of the C ABI")]

use std::{
    ffi::c_void,
    path::Path,
    ptr,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use ksi_abi::{Buffer, FAILED, FULL, HostTable, INVALID, Kind, Message, OK, POISONED, PluginTable, Slice};
use ksi_protocol::{
    EventName, Frame, Refusal, encode,
    frame::{Emit, Request, Verdict},
    meta::Meta,
};

use crate::library::{Library, take};

/// What a plugin says to its host.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all of them are frames, and a box for each would cost more"
)]
pub enum Output {
    /// A frame for the daemon.
    Frame(Frame),
    /// A wish to be called back with [`Instance::fire`].
    Timer {
        /// Comes back.
        id: u64,
        /// When, in milliseconds from now.
        delay_ms: u64,
    },
}

/// Whoever hosts an instance. Both calls may come from any thread, also from
/// inside `deliver` and `poll`: they must not call the instance, only queue.
pub trait Host: Send + Sync {
    /// Takes what the plugin says; `false` where the queue is full.
    fn output(&self, output: Output) -> bool;
    /// Asks for a [`Instance::poll`] soon.
    fn wake(&self);
}

/// Why an instance must not be called again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It panicked, with this message where it told one.
    #[error("the plugin {0}")]
    Panicked(String),
    /// It returned a number that means nothing.
    #[error("the plugin broke its contract: status {0}")]
    Status(u32),
}

/// A running instance. Destroyed when dropped, unless it is poisoned.
pub struct Instance {
    table: &'static PluginTable,
    context: &'static HostContext,
    pointer: *mut c_void,
    poisoned: bool,
}

// SAFETY: the ABI lets the host call an instance from any thread, one at a
// time; `&mut self` on every call sees to the latter.
unsafe impl Send for Instance {}

/// What a `HostTable` points at. Leaked with the instance it belongs to, since
/// a thread of the plugin may outlive the instance and still call.
struct HostContext {
    host: Arc<dyn Host>,
    table: HostTable,
    /// What it logged about its own panic: the status of a call has no room
    /// for a text.
    panic: Mutex<Option<String>>,
}

/// How the log line of a plugin begins that has panicked.
const PANICKED: &str = "panicked: ";

impl Instance {
    /// Makes an instance.
    ///
    /// # Errors
    ///
    /// The plugin's own refusal to start, or that of its panic.
    pub fn create(
        library: &Library,
        host: Arc<dyn Host>,
        config: &[u8],
        dir: &Path,
    ) -> Result<Self, Refusal> {
        let context = Box::into_raw(Box::new(HostContext {
            host,
            panic: Mutex::default(),
            table: HostTable {
                size: size_of::<HostTable>() as u32,
                reserved: 0,
                context: ptr::null(),
                send: host_send,
                wake: host_wake,
            },
        }));
        // SAFETY: it was just made, is never freed, and nobody else knows it yet;
        // from here on it is only shared.
        let context: &'static HostContext = unsafe {
            (*context).table.context = context.cast_const().cast();
            &*context
        };
        let mut pointer = ptr::null_mut();
        let mut error = Buffer::EMPTY;
        let dir = dir.to_string_lossy();
        let status = (library.table.create)(
            &context.table,
            Slice::new(config),
            Slice::new(dir.as_bytes()),
            &mut pointer,
            &mut error,
        );
        let refusal = take(error);
        match status {
            OK if !pointer.is_null() => Ok(Self { table: library.table, context, pointer, poisoned: false }),
            FAILED => Err(ksi_protocol::decode(&refusal).unwrap_or_else(|refusal| refusal)),
            other => Err(Refusal::new(ksi_protocol::Code::Internal, format!("start returned {other}"))),
        }
    }

    /// Hands a frame to the plugin and lets it run until it waits. A frame
    /// that a plugin does not take is passed over.
    ///
    /// # Errors
    ///
    /// The instance is poisoned and must be dropped.
    pub fn deliver(&mut self, frame: &Frame) -> Result<(), Fault> {
        let mut meta = Bytes::new();
        let mut payload = Bytes::new();
        let mut message = Message::new(Kind::Request, 0);
        let facts = |meta: Meta| encode(&meta).unwrap_or_default();
        match frame {
            Frame::Request(request) => {
                message.id = request.id;
                message.arg = request.timeout_ms.unwrap_or(0);
                message.name = Slice::new(request.event.as_str().as_bytes());
                payload = request.data.clone();
                meta = facts(Meta {
                    origin: request.origin.clone(),
                    caller: request.caller.as_deref().cloned(),
                    correlation_id: request.correlation_id.clone(),
                    idempotency_key: request.idempotency_key.clone(),
                    credit: request.credit,
                    at_ms: request.at_ms,
                    chain: request.chain.clone(),
                    work: request.work.as_deref().copied(),
                    ..Meta::default()
                });
            }
            Frame::Event(event) => {
                message.kind = Kind::Event as u32;
                message.id = event.sub;
                message.name = Slice::new(event.event.as_str().as_bytes());
                payload = event.data.clone();
                meta = facts(Meta {
                    origin: Some(event.origin.to_string()),
                    tenant: event.tenant.clone(),
                    correlation_id: event.correlation_id.clone(),
                    at_ms: Some(event.at_ms),
                    chain: event.chain.clone(),
                    ..Meta::default()
                });
            }
            Frame::Intercept(intercept) => {
                message.kind = Kind::Intercept as u32;
                message.id = intercept.id;
                message.arg = u64::from(intercept.index);
                message.name = Slice::new(intercept.event.as_str().as_bytes());
                payload = intercept.data.clone();
                meta = facts(Meta {
                    origin: Some(intercept.origin.clone()),
                    caller: intercept.caller.as_deref().cloned(),
                    ..Meta::default()
                });
            }
            Frame::Cancel { id } => message = Message::new(Kind::Cancel, *id),
            Frame::Credit { id, n } => {
                message = Message { arg: u64::from(*n), ..Message::new(Kind::Credit, *id) };
            }
            Frame::Reply { id, data } => (message, payload) = (Message::new(Kind::Reply, *id), data.clone()),
            Frame::Chunk { id, data } => (message, payload) = (Message::new(Kind::Chunk, *id), data.clone()),
            Frame::End { id, data } => (message, payload) = (Message::new(Kind::End, *id), data.clone()),
            Frame::Accepted { id, request_id, seq } => {
                message = Message::new(Kind::Accepted, *id);
                message.arg = *seq;
                message.name = Slice::new(request_id.as_bytes());
            }
            Frame::Refusal { id: Some(id), refusal } => {
                message = Message::new(Kind::Refusal, *id);
                payload = encode(refusal).unwrap_or_default();
            }
            Frame::Drain => message = Message::new(Kind::Drain, 0),
            _ => return Ok(()),
        }
        message.payload = Slice::new(&payload);
        message.meta = Slice::new(&meta);
        self.call(&message)
    }

    /// Tells the plugin that a timer is due.
    ///
    /// # Errors
    ///
    /// As [`Instance::deliver`].
    pub fn fire(&mut self, timer: u64) -> Result<(), Fault> {
        self.call(&Message::new(Kind::Timer, timer))
    }

    /// Lets the plugin run until it waits.
    ///
    /// # Errors
    ///
    /// As [`Instance::deliver`].
    pub fn poll(&mut self) -> Result<(), Fault> {
        let status = if self.poisoned { POISONED } else { (self.table.poll)(self.pointer) };
        self.check(status)
    }

    fn call(&mut self, message: &Message) -> Result<(), Fault> {
        let status = if self.poisoned { POISONED } else { (self.table.deliver)(self.pointer, message) };
        self.check(status)
    }

    fn check(&mut self, status: u32) -> Result<(), Fault> {
        match status {
            // A message that the plugin did not understand is its loss alone.
            OK | INVALID => Ok(()),
            POISONED => {
                self.poisoned = true;
                let told = self.context.panic.lock().unwrap_or_else(PoisonError::into_inner).clone();
                Err(Fault::Panicked(told.unwrap_or_else(|| "panicked".into())))
            }
            other => {
                self.poisoned = true;
                Err(Fault::Status(other))
            }
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if !self.poisoned {
            (self.table.destroy)(self.pointer);
        }
    }
}

extern "C" fn host_send(context: *const c_void, message: *const Message) -> u32 {
    // SAFETY: the context is the leaked `HostContext` of `create`, and the
    // plugin keeps the message alive for this call.
    let (context, message) = unsafe { (&*context.cast::<HostContext>(), &*message) };
    // A panic of ours must not unwind into the plugin.
    let sent = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // SAFETY: as above for the slices of the message.
        let Some(output) = (unsafe { output(message) }) else { return INVALID };
        if let Output::Frame(Frame::Log { message, .. }) = &output
            && message.starts_with(PANICKED)
        {
            *context.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(message.clone());
        }
        if context.host.output(output) { OK } else { FULL }
    }));
    sent.unwrap_or(FAILED)
}

extern "C" fn host_wake(context: *const c_void) {
    // SAFETY: as in `host_send`.
    let context = unsafe { &*context.cast::<HostContext>() };
    // As in `host_send`; there is nobody to tell.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| context.host.wake()));
}

/// What a plugin's message means; `None` where it means nothing.
///
/// # Safety
///
/// The slices of the message are alive for the call.
unsafe fn output(message: &Message) -> Option<Output> {
    let Message { id, arg, .. } = *message;
    // SAFETY: the caller's promise.
    let (name, payload, meta) =
        unsafe { (message.name.bytes(), message.payload.bytes(), message.meta.bytes()) };
    let event = || EventName::parse(std::str::from_utf8(name).ok()?).ok();
    let data = || Bytes::copy_from_slice(payload);
    let meta = || -> Meta {
        if meta.is_empty() { Meta::default() } else { ksi_protocol::decode(meta).unwrap_or_default() }
    };
    Some(Output::Frame(match Kind::from_u32(message.kind)? {
        Kind::Timer => return Some(Output::Timer { id, delay_ms: arg }),
        Kind::Reply => Frame::Reply { id, data: data() },
        Kind::Chunk => Frame::Chunk { id, data: data() },
        Kind::End => Frame::End { id, data: data() },
        Kind::Accepted => {
            Frame::Accepted { id, request_id: std::str::from_utf8(name).ok()?.to_owned(), seq: arg }
        }
        // Requests are counted from 1: about none of them, it is about the start.
        Kind::Refusal => Frame::Refusal {
            id: (id > 0).then_some(id),
            refusal: ksi_protocol::decode(payload).unwrap_or_else(|refusal| refusal),
        },
        Kind::Request => {
            let meta = meta();
            Frame::Request(Request {
                timeout_ms: meta.timeout_ms,
                credit: meta.credit,
                correlation_id: meta.correlation_id,
                idempotency_key: meta.idempotency_key,
                expires_in_ms: meta.expires_in_ms,
                origin: meta.origin,
                caller: meta.caller.map(Box::new),
                on_behalf: meta.on_behalf,
                parent: meta.parent,
                chain: meta.chain,
                ..Request::new(id, event()?, data())
            })
        }
        Kind::Emit => {
            let Meta { correlation_id, parent, tenant, chain, .. } = meta();
            Frame::Emit(Emit { correlation_id, parent, tenant, chain, ..Emit::new(event()?, data()) })
        }
        Kind::Cancel => Frame::Cancel { id },
        Kind::Ready => Frame::Ready,
        Kind::Drained => Frame::Drained,
        Kind::Log => {
            Frame::Log { level: level(arg).into(), message: String::from_utf8_lossy(payload).into_owned() }
        }
        Kind::Health => {
            Frame::Health { degraded: (arg > 0).then(|| String::from_utf8_lossy(payload).into_owned()) }
        }
        Kind::Verdict => Frame::Verdict(match arg {
            0 => Verdict { id, edit: None, refuse: None },
            1 => Verdict { id, edit: Some(data()), refuse: None },
            _ => Verdict {
                id,
                edit: None,
                refuse: Some(ksi_protocol::decode(payload).unwrap_or_else(|refusal| refusal)),
            },
        }),
        _ => return None,
    }))
}

fn level(number: u64) -> &'static str {
    match number {
        1 => "error",
        2 => "warn",
        3 => "info",
        4 => "debug",
        _ => "trace",
    }
}
