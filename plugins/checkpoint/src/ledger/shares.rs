//! Shares: how much of the work that has not ended is whose, in number and in
//! bytes of what was asked.

use std::collections::HashMap;

use ksi_sdk::protocol::{Code, Refusal, limits::fair_share};

use super::{Limits, entry::Entry};

/// All of it, and by principal; nobody with none.
#[derive(Debug, Default)]
pub(super) struct Shares {
    all: Share,
    of: HashMap<Box<str>, Share>,
}

/// So much work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Share {
    count: usize,
    bytes: usize,
}

impl Share {
    fn add(&mut self, bytes: usize) {
        self.count += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.count -= 1;
        self.bytes -= bytes;
    }
}

impl Shares {
    /// Whether one may have one more, of so many bytes. Work of releases without
    /// principals is nobody's.
    ///
    /// # Errors
    ///
    /// `busy` where too much waits, of all or of one's own.
    pub(super) fn admit(
        &self,
        limits: &Limits,
        principal: Option<&str>,
        bytes: usize,
    ) -> Result<(), Refusal> {
        let own = principal.and_then(|name| self.of.get(name)).copied().unwrap_or_default();
        let Share { count, bytes: held } = self.all;
        if count >= limits.pending {
            return Err(busy(format!("{count} pieces of work wait, and that is the limit")));
        }
        if own.count >= fair_share(limits.pending, count - own.count) {
            return Err(busy(format!("{} pieces of your work wait; the rest is for others", own.count)));
        }
        if held + bytes > limits.pending_bytes {
            let most = limits.pending_bytes;
            return Err(busy(format!("work with payloads of {held} bytes waits, and {most} is the limit")));
        }
        if own.bytes + bytes > fair_share(limits.pending_bytes, held - own.bytes) {
            let held = own.bytes;
            let message = format!("your work with payloads of {held} bytes waits; the rest is for others");
            return Err(busy(message));
        }
        Ok(())
    }

    /// One has one more.
    pub(super) fn add(&mut self, entry: &Entry) {
        let bytes = entry.payload_bytes as usize;
        self.all.add(bytes);
        let Some(name) = &entry.principal else { return };
        match self.of.get_mut(name) {
            Some(own) => own.add(bytes),
            None => drop(self.of.insert(name.clone(), Share { count: 1, bytes })),
        }
    }

    /// One has one less.
    pub(super) fn remove(&mut self, entry: &Entry) {
        let bytes = entry.payload_bytes as usize;
        self.all.remove(bytes);
        let Some(name) = &entry.principal else { return };
        if let Some(own) = self.of.get_mut(name) {
            own.remove(bytes);
            if own.count == 0 {
                self.of.remove(name);
            }
        }
    }

    /// Bytes of all payloads.
    pub(super) fn bytes(&self) -> usize {
        self.all.bytes
    }
}

fn busy(message: String) -> Refusal {
    Refusal::new(Code::Busy, message).retry_after_ms(1_000).hint("`ksi work list` shows what waits")
}
