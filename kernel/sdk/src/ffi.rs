//! The exports of a plugin library: the panic wall, and the way between the C
//! ABI and an instance.
//!
//! Nothing unwinds out of here. After a panic the instance is poisoned: every
//! later call answers `POISONED` without touching it.
#![expect(unsafe_code, reason = "this module is the plugin's side of the C ABI")]

use std::{
    ffi::c_void,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, PoisonError},
};

use ksi_abi::{
    ABI_MAJOR, Buffer, FAILED, FEATURE_CHILD_ONLY, FEATURE_PANIC_WALL, HostTable, INVALID, Kind, Message, OK,
    POISONED, PluginTable, Slice,
};
use ksi_protocol::{Bytes, Code, Refusal};

use crate::{
    core::Will,
    instance::{self, Instance},
    link::{Link, Outgoing, encode},
    plugin::Plugin,
    register::Register,
};

const _: () = assert!(ABI_MAJOR == 1, "the entry point is named after the major version");

/// The feature bits of a plugin.
#[must_use]
pub const fn features<P: Plugin>() -> u64 {
    FEATURE_PANIC_WALL | if P::CHILD_ONLY { FEATURE_CHILD_ONLY } else { 0 }
}

/// The version of the plugin's own package, as the export macro saw it. The
/// table has no room for it, and there is one plugin in a library.
static VERSION: std::sync::OnceLock<&'static str> = std::sync::OnceLock::new();

/// The table of a plugin.
#[must_use]
pub fn table<P: Plugin>(version: &'static str) -> *const PluginTable {
    VERSION.get_or_init(|| version);
    const { &Exports::<P>::TABLE }
}

struct Exports<P>(std::marker::PhantomData<P>);

impl<P: Plugin> Exports<P> {
    const TABLE: PluginTable = PluginTable {
        size: size_of::<PluginTable>() as u32,
        reserved: 0,
        describe: describe::<P>,
        create: create::<P>,
        deliver: deliver::<P>,
        poll: poll::<P>,
        destroy: destroy::<P>,
    };
}

/// The host's table, seen from an instance.
struct HostLink(*const HostTable);

// SAFETY: the host promises that `send` and `wake` may be called from any
// thread, and that the table lives as long as the process.
unsafe impl Send for HostLink {}
// SAFETY: as above.
unsafe impl Sync for HostLink {}

impl Link for HostLink {
    fn send(&self, message: &Outgoing<'_>) -> u32 {
        // SAFETY: the host keeps the table alive as long as the process, since
        // threads and wakers may outlive the instance.
        let host = unsafe { &*self.0 };
        let message = Message {
            arg: message.arg,
            name: Slice::new(message.name.as_bytes()),
            payload: Slice::new(message.payload),
            meta: Slice::new(message.meta),
            ..Message::new(message.kind, message.id)
        };
        (host.send)(host.context, &message)
    }

    fn wake(&self) {
        // SAFETY: as in `send`.
        let host = unsafe { &*self.0 };
        (host.wake)(host.context);
    }
}

/// An instance, or what is left of it after a panic.
struct Slot<P> {
    instance: Option<Instance<P>>,
    link: Arc<dyn Link>,
    will: Will,
}

extern "C" fn describe<P: Plugin>(out: *mut Buffer) -> u32 {
    walled(|| {
        let version = VERSION.get().copied().unwrap_or_default();
        encode(&Register::<P>::descriptor(version))
    })
    .map_or_else(
        |refusal| {
            give(out, &encode(&refusal).unwrap_or_default());
            FAILED
        },
        |bytes| {
            give(out, &bytes);
            OK
        },
    )
}

extern "C" fn create<P: Plugin>(
    host: *const HostTable,
    config: Slice,
    dir: Slice,
    instance: *mut *mut c_void,
    error: *mut Buffer,
) -> u32 {
    let link: Arc<dyn Link> = Arc::new(HostLink(host));
    let started = walled(|| {
        // SAFETY: the host keeps both slices alive for this call.
        let (config, dir) = unsafe { (Bytes::copy_from_slice(config.bytes()), dir.bytes()) };
        let dir = PathBuf::from(String::from_utf8_lossy(dir).into_owned());
        Instance::<P>::start(link.clone(), config, dir)
    });
    match started {
        Ok(started) => {
            let slot = Box::new(Slot { will: started.will(), instance: Some(started), link });
            // SAFETY: the host passes a pointer that it may be written to.
            unsafe { *instance = Box::into_raw(slot).cast() };
            OK
        }
        Err(refusal) => {
            give(error, &encode(&refusal).unwrap_or_default());
            FAILED
        }
    }
}

extern "C" fn deliver<P: Plugin>(instance: *mut c_void, message: *const Message) -> u32 {
    // SAFETY: the host passes a message that lives for this call.
    let message = unsafe { &*message };
    let Some(kind) = Kind::from_u32(message.kind) else { return INVALID };
    // SAFETY: as above, and so do its slices.
    let (name, payload, meta) =
        unsafe { (message.name.bytes(), message.payload.bytes(), message.meta.bytes()) };
    let Ok(name) = std::str::from_utf8(name) else { return INVALID };
    let message = instance::Message {
        kind,
        id: message.id,
        arg: message.arg,
        name: name.to_owned(),
        payload: Bytes::copy_from_slice(payload),
        meta: Bytes::copy_from_slice(meta),
    };
    // SAFETY: the host passes what `create` gave it, from one thread at a time.
    with(unsafe { slot::<P>(instance) }, |instance| instance.deliver(message))
}

extern "C" fn poll<P: Plugin>(instance: *mut c_void) -> u32 {
    // SAFETY: as in `deliver`.
    with(unsafe { slot::<P>(instance) }, |instance| {
        instance.run();
        OK
    })
}

extern "C" fn destroy<P: Plugin>(instance: *mut c_void) {
    // SAFETY: the host passes what `create` gave it, once, as the last call.
    let slot = unsafe { Box::from_raw(instance.cast::<Slot<P>>()) };
    // A panic in a destructor has nobody to be told to.
    let _ = catch_unwind(AssertUnwindSafe(move || drop(slot)));
}

/// # Safety
///
/// `instance` comes from `create` of the same plugin, is not destroyed, and is
/// used by one thread at a time.
unsafe fn slot<'a, P>(instance: *mut c_void) -> &'a mut Slot<P> {
    // SAFETY: the caller's promise.
    unsafe { &mut *instance.cast::<Slot<P>>() }
}

fn with<P: Plugin>(slot: &mut Slot<P>, run: impl FnOnce(&mut Instance<P>) -> u32) -> u32 {
    let Some(instance) = &mut slot.instance else { return POISONED };
    match catch_unwind(AssertUnwindSafe(|| run(instance))) {
        Ok(status) => status,
        Err(panic) => {
            // Its state may be half changed, so even its destructors do not run.
            std::mem::forget(slot.instance.take());
            let text = format!("panicked: {}", panic_text(&*panic));
            let will = slot.will.lock().unwrap_or_else(PoisonError::into_inner).take();
            // One that panics as well has done what it could.
            let _ = catch_unwind(AssertUnwindSafe(|| will.map(|act| act())));
            slot.link.send(&Outgoing { arg: 1, payload: text.as_bytes(), ..Outgoing::new(Kind::Log, 0) });
            POISONED
        }
    }
}

fn walled<T>(run: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        Err(Refusal::new(Code::Internal, format!("panicked at start: {}", panic_text(&*panic))))
    })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

fn give(out: *mut Buffer, bytes: &[u8]) {
    extern "C" fn release(ptr: *mut u8, len: usize, capacity: usize) {
        // SAFETY: the host passes back, once, what `give` took apart.
        drop(unsafe { Vec::from_raw_parts(ptr, len, capacity) });
    }
    let mut bytes = std::mem::ManuallyDrop::new(bytes.to_vec());
    let buffer = Buffer {
        ptr: bytes.as_mut_ptr(),
        len: bytes.len(),
        capacity: bytes.capacity(),
        release: Some(release),
    };
    // SAFETY: the host passes a pointer that it may be written to.
    unsafe { *out = buffer };
}

#[cfg(test)]
mod tests {
    use std::{
        ptr,
        rc::Rc,
        sync::atomic::{AtomicU32, Ordering},
    };

    use super::*;
    use crate::context::Ctx;

    static DONE: AtomicU32 = AtomicU32::new(0);

    struct Fragile;

    impl Plugin for Fragile {
        const NAME: &'static str = "fragile";
        const ABOUT: &'static str = "Panics when it is to finish";

        fn start(ctx: &Ctx) -> Result<Self, Refusal> {
            ctx.at_panic(|| panic!("replaced, so never called"));
            ctx.at_panic(|| assert_eq!(DONE.fetch_add(1, Ordering::Relaxed), 0));
            Ok(Self)
        }

        async fn drain(self: Rc<Self>, _: Ctx) {
            panic!("as planned");
        }

        fn register(_: &mut Register<Self>) {}
    }

    extern "C" fn send(_: *const c_void, _: *const Message) -> u32 {
        OK
    }

    extern "C" fn wake(_: *const c_void) {}

    #[test]
    fn after_a_panic_the_last_will_is_carried_out_once_and_nothing_else() {
        let size = size_of::<HostTable>() as u32;
        let host = HostTable { size, reserved: 0, context: ptr::null(), send, wake };
        let table = Exports::<Fragile>::TABLE;
        let (mut instance, mut error) = (ptr::null_mut(), Buffer::EMPTY);
        let (config, dir) = (Slice::new(&[0x80]), Slice::new(b"/"));
        assert_eq!((table.create)(&host, config, dir, &mut instance, &mut error), OK);
        let drain = Message::new(Kind::Drain, 0);
        assert_eq!((table.deliver)(instance, &drain), POISONED);
        assert_eq!((table.poll)(instance), POISONED);
        assert_eq!(DONE.load(Ordering::Relaxed), 1);
    }
}
