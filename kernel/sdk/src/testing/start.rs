//! How a plugin under test begins, and begins again.

use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    sync::Arc,
};

use ksi_abi::Kind;
use ksi_protocol::{Refusal, json};
use serde_json::Value;

use super::{
    FakeHost, FakeSpace,
    wire::{FakeLink, Sent},
};
use crate::{instance::Instance, plugin::Plugin};

/// The plugin's directory, removed with the last host that has it where it was
/// made for the test.
pub(super) struct Dir {
    path: PathBuf,
    ours: bool,
}

impl Dir {
    fn fresh(name: &str) -> Self {
        use std::hash::{BuildHasher, RandomState};
        let unique = RandomState::new().hash_one(std::time::SystemTime::now());
        let path = std::env::temp_dir().join(format!("ksi-{name}-{unique:x}"));
        std::fs::create_dir_all(&path)
            .unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
        Self { path, ours: true }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if self.ours {
            // A directory that cannot be removed is the temporary directory's.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

impl<P: Plugin> FakeHost<P> {
    /// Starts the plugin with this configuration, in a fresh directory of its
    /// own that goes with the host, with nothing in its state.
    ///
    /// # Errors
    ///
    /// The refusal of the plugin's `start`, `migrate` or `open`.
    ///
    /// # Panics
    ///
    /// Where no directory can be made, or the plugin does not open by itself.
    pub fn start(config: Value) -> Result<Self, Refusal> {
        Self::start_on(&FakeSpace::new(), config)
    }

    /// The same with this state.
    ///
    /// # Errors
    ///
    /// As [`FakeHost::start`].
    pub fn start_on(space: &FakeSpace, config: Value) -> Result<Self, Refusal> {
        Self::begin(space, config)?.opened()
    }

    /// The same in a directory that the test keeps.
    ///
    /// # Errors
    ///
    /// As [`FakeHost::start`].
    pub fn start_in(dir: &Path, config: Value) -> Result<Self, Refusal> {
        let dir = Dir { path: dir.to_owned(), ours: false };
        Self::create(dir, &FakeSpace::new(), &config, FakeLink::default())?.opened()
    }

    /// Starts the plugin and leaves it while it opens: for one that waits for
    /// the time, or for answers that the test gives. [`FakeHost::is_ready`]
    /// tells how it goes.
    ///
    /// # Errors
    ///
    /// The refusal of the plugin's `start`.
    pub fn begin(space: &FakeSpace, config: Value) -> Result<Self, Refusal> {
        Self::create(Dir::fresh(P::NAME), space, &config, FakeLink::default())
    }

    /// Ends the plugin without a word, as a crash does, and starts it again in
    /// its directory and with its state.
    ///
    /// # Errors
    ///
    /// As [`FakeHost::start`].
    pub fn restart(self, config: Value) -> Result<Self, Refusal> {
        let Self { dir, space, instance, link, .. } = self;
        drop(instance);
        Self::create(dir, &space, &config, link.after())?.opened()
    }

    fn create(dir: Dir, space: &FakeSpace, config: &Value, link: FakeLink) -> Result<Self, Refusal> {
        let link = Arc::new(link);
        let config = json::from_json(config)?;
        let instance = Instance::start(link.clone(), config, dir.path.clone())?;
        Ok(Self {
            instance: RefCell::new(instance),
            link,
            next: Cell::new(1),
            space: space.clone(),
            scripts: RefCell::default(),
            dir,
        })
    }

    fn opened(self) -> Result<Self, Refusal> {
        let sent = self.wait(is_start).unwrap_or_else(|| {
            panic!("the plugin did not open; where it waits for the test, use `FakeHost::begin`")
        });
        started(&sent).map(|()| self)
    }

    /// Whether the plugin has opened by now. Says so once.
    ///
    /// # Errors
    ///
    /// The refusal of the plugin's `migrate` or `open`.
    pub fn is_ready(&self) -> Result<bool, Refusal> {
        self.run();
        self.link.take(is_start).map_or(Ok(false), |sent| started(&sent).map(|()| true))
    }

    /// What the plugin keeps.
    pub fn space(&self) -> FakeSpace {
        self.space.clone()
    }

    /// The directory that the plugin calls its own.
    pub fn dir(&self) -> &Path {
        &self.dir.path
    }
}

/// Whether this is how a start ends.
fn is_start(sent: &Sent) -> bool {
    sent.kind == Kind::Ready || (sent.kind == Kind::Refusal && sent.id == 0)
}

fn started(sent: &Sent) -> Result<(), Refusal> {
    match sent.kind {
        Kind::Ready => Ok(()),
        _ => Err(ksi_protocol::decode(&sent.payload).unwrap_or_else(|refusal| refusal)),
    }
}
