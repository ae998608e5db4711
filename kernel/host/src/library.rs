//! A loaded plugin library: its table and its descriptor.
#![expect(unsafe_code, reason = "this module calls the dynamic linker and the plugin's exports")]

use std::{
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
};

use ksi_abi::{Buffer, OK, PluginEntry, PluginTable, SYMBOL, Slice};
use ksi_protocol::{Code, Descriptor, Refusal};
use libloading::os::unix::{Library as Dynamic, RTLD_LOCAL, RTLD_NOW};

use crate::image::{Error, Image};

/// A library that was loaded, for good.
#[derive(Debug)]
pub struct Library {
    pub(crate) table: &'static PluginTable,
    /// What the plugin says of itself.
    pub descriptor: Descriptor,
}

impl Library {
    /// Loads a checked file and asks it for its descriptor.
    ///
    /// # Errors
    ///
    /// Where the dynamic linker refuses, the entry point is missing, or the
    /// plugin's own registration panics.
    pub fn load(image: &Image) -> Result<Self, Refusal> {
        let failed = |why: String| Error::Load { path: image.path.clone(), why };
        // The dynamic linker knows a library by the path it was loaded under,
        // and takes whatever comes under the same path later for the same
        // library. So the descriptor that the path names is never used again.
        let file = image.reopened().map_err(|error| failed(error.to_string()))?;
        // SAFETY: loading runs the library's constructors. The file is a KSI
        // plugin by its header, and the operator has put it into the manifest
        // or named it himself; a plugin that is not trusted is loaded only in
        // a child.
        let library = unsafe { Dynamic::open(Some(path_of(&file)), RTLD_NOW | RTLD_LOCAL) }
            .map_err(|error| failed(error.to_string()))?;
        // SAFETY: the header says that this major version of the ABI holds,
        // which fixes the type of the one exported symbol.
        let entry = unsafe { library.get::<PluginEntry>(SYMBOL.as_bytes()) }
            .map_err(|error| failed(error.to_string()))?;
        let table = entry();
        // The library stays for ever, so the table does as well, and the name.
        std::mem::forget((library, file));
        if table.is_null() {
            return Err(failed("its entry point returned nothing".into()).into());
        }
        // SAFETY: a plugin of this ABI returns its static table, and a table of
        // any version begins with its size.
        let size = unsafe { table.cast::<u32>().read() };
        if (size as usize) < size_of::<PluginTable>() {
            return Err(failed(format!("its table has {size} bytes")).into());
        }
        // SAFETY: as above, and it is as large as this host's idea of it.
        let table: &'static PluginTable = unsafe { &*table };
        let mut out = Buffer::EMPTY;
        let status = (table.describe)(&mut out);
        let bytes = take(out);
        if status != OK {
            return Err(ksi_protocol::decode(&bytes).unwrap_or_else(|refusal| refusal));
        }
        let wrong = |why: String| {
            let message = format!("descriptor of {} in {}: {why}", image.name, image.path.display());
            Refusal::new(Code::InvalidPayload, message)
        };
        let descriptor: Descriptor =
            ksi_protocol::decode(&bytes).map_err(|refusal| wrong(refusal.message))?;
        if descriptor.name != image.name {
            return Err(wrong(format!("it calls itself {}", descriptor.name)));
        }
        Ok(Self { table, descriptor })
    }
}

/// A path under which the dynamic linker finds exactly the file that was
/// checked.
fn path_of(file: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Copies the bytes of a plugin's buffer and gives it back.
pub(crate) fn take(buffer: Buffer) -> Vec<u8> {
    let Some(release) = buffer.release else { return Vec::new() };
    let filled = Slice { ptr: buffer.ptr.cast_const(), len: buffer.len };
    // SAFETY: the plugin filled the buffer in the call that just returned, and
    // it stays valid until `release`, which is called once, here.
    let bytes = unsafe { filled.bytes() }.to_vec();
    release(buffer.ptr, buffer.len, buffer.capacity);
    bytes
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_buffer_is_given_back_once_also_where_nothing_is_in_it() {
        static RELEASED: AtomicUsize = AtomicUsize::new(0);
        extern "C" fn release(_: *mut u8, len: usize, capacity: usize) {
            RELEASED.fetch_add(10 * len + capacity, Ordering::Relaxed);
        }
        let nothing = || Buffer { capacity: 1, release: Some(release), ..Buffer::EMPTY };
        assert_eq!(take(nothing()), b"");
        assert_eq!(RELEASED.load(Ordering::Relaxed), 1);
        let mut bytes = *b"ab";
        assert_eq!(take(Buffer { ptr: bytes.as_mut_ptr(), len: 2, ..nothing() }), b"ab");
        assert_eq!(RELEASED.load(Ordering::Relaxed), 22);
        assert_eq!(take(Buffer::EMPTY), b"");
    }
}
