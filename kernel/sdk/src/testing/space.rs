//! The state of a plugin under test, in memory.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use ksi_protocol::{
    Bytes, Code, Refusal, json,
    space::{
        Applied, Apply, BATCH_BYTES_MAX, Conflict, Entry, Get, Got, Page, SCAN_ENTRIES_MAX,
        STATE_VERSION_KEY, Scan, check_key,
    },
};
use serde_json::Value;

use crate::link::encode;

/// What a plugin keeps, where no daemon keeps it. Clones share it, so that a
/// test can look into it, and hand it to the next [`super::FakeHost`] of the
/// same plugin: a restart.
///
/// It answers `space:get`, `space:apply` and `space:scan` as the daemon does,
/// with versions, checks and limits.
#[derive(Clone, Default)]
pub struct FakeSpace(Rc<RefCell<Kept>>);

#[derive(Default)]
struct Kept {
    entries: BTreeMap<Bytes, (Bytes, u64)>,
    version: u64,
    refusal: Option<Refusal>,
    stalled: bool,
}

impl FakeSpace {
    /// A space with nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Refuses everything from now on, as while the keeper of the state is
    /// away; `None` ends that.
    pub fn refuse(&self, refusal: Option<Refusal>) {
        self.0.borrow_mut().refusal = refusal;
    }

    /// Answers nothing from now on, as while the disk is slow; `false` ends that,
    /// and what was asked meanwhile is answered with the next step.
    pub fn stall(&self, stalled: bool) {
        self.0.borrow_mut().stalled = stalled;
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.0.borrow().stalled
    }

    /// The value under a key.
    #[must_use]
    pub fn get(&self, key: impl AsRef<[u8]>) -> Option<Value> {
        let kept = self.0.borrow();
        let (value, _) = kept.entries.get(key.as_ref())?;
        Some(super::value(value))
    }

    /// Puts a value under a key, as an earlier start of the plugin may have
    /// done.
    ///
    /// # Panics
    ///
    /// On a value that MessagePack cannot hold.
    pub fn put(&self, key: impl AsRef<[u8]>, value: &Value) {
        let value = json::from_json(value).unwrap_or_else(|refusal| panic!("{refusal}"));
        let mut kept = self.0.borrow_mut();
        kept.version += 1;
        let version = kept.version;
        kept.entries.insert(Bytes::copy_from_slice(key.as_ref()), (value, version));
    }

    /// The keys in their order, the daemon's own left out.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let kept = self.0.borrow();
        let own = kept.entries.keys().filter(|key| *key != STATE_VERSION_KEY);
        own.map(|key| String::from_utf8_lossy(key).into_owned()).collect()
    }

    /// The version of the state; 0 where it has none.
    #[must_use]
    pub fn state_version(&self) -> u64 {
        self.get(STATE_VERSION_KEY).and_then(|version| version.as_u64()).unwrap_or(0)
    }

    /// Makes this the version of the state, as another release of the plugin
    /// has done.
    pub fn set_state_version(&self, version: u32) {
        self.put(STATE_VERSION_KEY, &version.into());
    }

    /// What is answered to a request of the plugin's.
    pub(super) fn answer(&self, event: &str, data: &[u8]) -> Result<Bytes, Refusal> {
        let mut kept = self.0.borrow_mut();
        if let Some(refusal) = &kept.refusal {
            return Err(refusal.clone());
        }
        match event {
            "space:get" => encode(&kept.read(&ksi_protocol::decode(data)?)?),
            "space:apply" => encode(&kept.apply(ksi_protocol::decode(data)?)?),
            "space:scan" => encode(&kept.scan(&ksi_protocol::decode(data)?)),
            _ => Err(Refusal::new(Code::UnknownEvent, format!("nobody declares `{event}`"))),
        }
    }
}

impl Kept {
    fn read(&self, Get { key }: &Get) -> Result<Got, Refusal> {
        check_key(key)?;
        let (value, version) = self.entries.get(key).cloned().unzip();
        Ok(Got { value, version: version.unwrap_or(0) })
    }

    fn apply(&mut self, apply: Apply) -> Result<Applied, Refusal> {
        apply.check_limits()?;
        for (place, check) in apply.checks.iter().enumerate() {
            let version = self.entries.get(&check.key).map_or(0, |(_, version)| *version);
            if version != check.version {
                return Err(Conflict { check: place, version }.refusal(check.version));
            }
        }
        self.version += 1;
        for change in apply.changes {
            match change.value {
                Some(value) => self.entries.insert(change.key, (value, self.version)),
                None => self.entries.remove(&change.key),
            };
        }
        Ok(Applied { version: self.version })
    }

    fn scan(&self, scan: &Scan) -> Page {
        let limit = if scan.limit == 0 { SCAN_ENTRIES_MAX } else { scan.limit.min(SCAN_ENTRIES_MAX) };
        let wanted = self
            .entries
            .range(scan.prefix.clone()..)
            .take_while(|(key, _)| key.starts_with(&scan.prefix))
            .filter(|(key, _)| scan.after.as_ref().is_none_or(|after| *key > after));
        let (mut page, mut bytes) = (Page::default(), 0);
        for (key, (value, version)) in wanted {
            bytes += key.len() + value.len();
            page.more = page.entries.len() >= limit as usize || bytes > BATCH_BYTES_MAX;
            if page.more {
                break;
            }
            page.entries.push(Entry { key: key.clone(), value: value.clone(), version: *version });
        }
        page
    }
}
