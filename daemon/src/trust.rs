//! Which files may be loaded where signatures are required.
//!
//! `[security] require_signed` decides; it is looked at whenever a plugin is
//! started. The lock is read and its signature verified each time, so a plugin
//! that is signed while the daemon runs can be loaded at once; the digests of
//! files are remembered as long as these do not change.
//!
//! A plugin that loads models gets the public key with its configuration, and
//! checks their lock itself, since it alone opens them. The key comes from here
//! and nowhere else.
//!
//! # Failure
//!
//! Whatever is missing, a key, a lock, a signature, means no. It refuses with
//! what was found, what was expected, and the command that mends it.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, PoisonError},
};

use ksi_host::Image;
use ksi_protocol::{Code, Refusal, paths::Paths};
use ksi_trust::{Digest, Digests, Key, Kind, Lock, is_guarded};
use nix::unistd::geteuid;
use serde_json::Value as Json;

use crate::config::{Current, Security};

/// Checks files against their locks.
#[derive(Debug)]
pub struct Trust {
    config: Current,
    paths: Paths,
    digests: Digests,
}

impl Trust {
    /// By the configuration in force when something is checked.
    #[must_use]
    pub fn new(config: Current, paths: &Paths) -> Arc<Self> {
        Arc::new(Self { config, paths: paths.clone(), digests: Digests::default() })
    }

    fn security(&self) -> Security {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).security.clone()
    }

    /// Whether a plugin may be loaded: `None` where any may, otherwise the
    /// digest that the loaded file must have. Reads the file and belongs on a
    /// thread that may block.
    ///
    /// # Errors
    ///
    /// `denied`, with the digest that was found.
    pub fn check(&self, image: &Image) -> Result<Option<Digest>, Refusal> {
        let security = self.security();
        if !security.require_signed {
            return Ok(None);
        }
        let (found, size) = image.digest(&self.digests)?;
        let file = image.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let metadata = image.metadata()?;
        if !is_guarded(&metadata) || ![0, geteuid().as_raw()].contains(&metadata.uid()) {
            let message =
                format!("others than its owner may write {}, whose digest is {found}", image.path.display());
            return Err(Refusal::new(Code::Denied, message).hint(format!(
                "signatures are required, so it must be yours or root's: chmod go-w {}",
                image.path.display()
            )));
        }
        let key = self.key(Kind::Plugins, security.plugins_key)?;
        let lock = Lock::load(Kind::Plugins, &self.paths.plugins_lock(), &key).map_err(|unusable| {
            let message = format!("{file}, whose digest is {found}, cannot be checked: {unusable}");
            Refusal::new(Code::Denied, message).hint("`ksi plugin sign --all` signs the plugins there are")
        })?;
        lock.check(&file, size, found).map_err(|mistrust| {
            Refusal::new(Code::Denied, mistrust.to_string())
                .hint(format!("if you know where it comes from: ksi plugin sign {}", image.path.display()))
        })?;
        Ok(Some(found))
    }

    /// [`Trust::check`] on a thread that may block.
    ///
    /// # Errors
    ///
    /// The same.
    pub async fn vouch(self: &Arc<Self>, image: Image) -> Result<(Image, Option<Digest>), Refusal> {
        if !self.security().require_signed {
            return Ok((image, None));
        }
        let trust = self.clone();
        let checked = tokio::task::spawn_blocking(move || trust.check(&image).map(|digest| (image, digest)));
        checked.await.map_err(|_| Refusal::new(Code::Internal, "checking the file panicked"))?
    }

    /// Tells a plugin that has models how to check them, by its configuration.
    /// What stands there already has no say.
    pub fn instruct(&self, config: &mut Json) {
        let security = self.security();
        let Some(table) = config.as_object_mut().filter(|table| table.contains_key("models_dir")) else {
            return;
        };
        if security.require_signed {
            let key = self.key(Kind::Models, security.models_key).map(|key| key.to_string());
            table.insert("require_signed".to_owned(), true.into());
            // Without a key the plugin has the model that is built in, and says
            // of all others why not.
            table.insert("models_key".to_owned(), key.ok().into());
        }
    }

    fn key(&self, kind: Kind, configured: Option<Key>) -> Result<Key, Refusal> {
        if let Some(key) = configured {
            return Ok(key);
        }
        let path = self.paths.public_key(kind.as_str());
        read_key(&path).map_err(|why| {
            let message = format!("signatures are required, and there is no key of {kind}: {why}");
            Refusal::new(Code::Denied, message).hint(format!(
                "set security.{kind}_key, or make one: ksi key create {kind}; then `{}`",
                kind.sign_command()
            ))
        })
    }
}

fn read_key(path: &Path) -> Result<Key, String> {
    let text = fs::read_to_string(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("{} does not exist", path.display()),
        _ => format!("{}: {error}", path.display()),
    })?;
    text.parse().map_err(|error| format!("{}: {error}", path.display()))
}
