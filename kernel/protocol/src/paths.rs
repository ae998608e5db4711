//! Where everything lies: one pure function from the environment to paths,
//! shared by the daemon and by all who look for it.
//!
//! `KSI_HOME` moves everything below one directory. Otherwise the XDG base
//! directories hold: configuration in `ksi/ksi.toml`, state in `ksi/`, the
//! socket in `ksi/ksid.sock` of the runtime directory, or where there is none
//! in `/tmp/ksi-UID`. `KSI_SOCKET` names the socket alone.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

/// Places of one daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Configuration, keys, secrets and the lock of plugins.
    pub config_dir: PathBuf,
    /// The user's configuration file; may be absent.
    pub config_file: PathBuf,
    /// Logs, plugin state, models.
    pub state_dir: PathBuf,
    /// Lock and socket; mode 0700.
    pub runtime_dir: PathBuf,
    /// The socket.
    pub socket: PathBuf,
}

impl Paths {
    /// Resolves the places from environment variables, the current directory and
    /// the user's id. A relative path in a variable of the XDG is ignored, as its
    /// specification demands; one in `KSI_HOME` or `KSI_SOCKET` begins at `current`,
    /// so that it means the same to a process that was started elsewhere.
    #[must_use]
    pub fn resolve(variable: impl Fn(&str) -> Option<OsString>, current: &Path, uid: u32) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let absolute = |name: &str| set(name).filter(|path| path.is_absolute());
        // Its components leave out every `.`.
        let from_here = |path: PathBuf| current.join(path).components().collect::<PathBuf>();
        let mut paths = match set("KSI_HOME") {
            Some(home) => Self::below(&from_here(home)),
            None => {
                let home = absolute("HOME").unwrap_or_else(|| PathBuf::from("/"));
                let config = absolute("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config")).join("ksi");
                let state = absolute("XDG_STATE_HOME").unwrap_or_else(|| home.join(".local/state"));
                let runtime = absolute("XDG_RUNTIME_DIR")
                    .map_or_else(|| PathBuf::from(format!("/tmp/ksi-{uid}")), |dir| dir.join("ksi"));
                Self {
                    config_file: config.join("ksi.toml"),
                    config_dir: config,
                    state_dir: state.join("ksi"),
                    socket: runtime.join("ksid.sock"),
                    runtime_dir: runtime,
                }
            }
        };
        if let Some(socket) = set("KSI_SOCKET") {
            paths.socket = from_here(socket);
        }
        paths
    }

    /// A place whose name is no text, where there is one. It can be used, but not told
    /// of: answers and configuration are JSON. So whoever tells of places refuses it,
    /// and takes no other in its stead.
    #[must_use]
    pub fn nameless(&self) -> Option<&Path> {
        let Self { config_dir, config_file, state_dir, runtime_dir, socket } = self;
        let places = [config_dir, config_file, state_dir, runtime_dir, socket];
        places.into_iter().map(PathBuf::as_path).find(|path| path.to_str().is_none())
    }

    /// Everything below one directory.
    #[must_use]
    pub fn below(home: &Path) -> Self {
        Self {
            config_dir: home.to_owned(),
            config_file: home.join("ksi.toml"),
            state_dir: home.join("state"),
            runtime_dir: home.join("run"),
            socket: home.join("run/ksid.sock"),
        }
    }

    /// The log of the daemon.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.state_dir.join("ksid.log")
    }

    /// The lock that the running daemon holds; its content is a [`Holder`].
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.runtime_dir.join("ksid.lock")
    }

    /// The directory of the user's models.
    #[must_use]
    pub fn models_dir(&self) -> PathBuf {
        self.state_dir.join("models")
    }

    /// The lock of models; it lies among them, so that whoever may read them
    /// may read it.
    #[must_use]
    pub fn models_lock(&self) -> PathBuf {
        self.models_dir().join("models.lock")
    }

    /// The lock of plugins.
    #[must_use]
    pub fn plugins_lock(&self) -> PathBuf {
        self.config_dir.join("plugins.lock")
    }

    /// The public key under a lock, `models` or `plugins`, where the
    /// configuration has none.
    #[must_use]
    pub fn public_key(&self, kind: &str) -> PathBuf {
        self.config_dir.join(format!("{kind}.pub"))
    }

    /// The secret half of that key, where it lies on this machine.
    #[must_use]
    pub fn secret_key(&self, kind: &str) -> PathBuf {
        self.config_dir.join(format!("{kind}.key"))
    }

    /// The secrets that plugins are given by name.
    #[must_use]
    pub fn keyring(&self) -> PathBuf {
        self.config_dir.join("secrets.toml")
    }

    /// The directory that one plugin may call its own.
    #[must_use]
    pub fn plugin_dir(&self, plugin: &str) -> PathBuf {
        self.state_dir.join("plugins").join(plugin)
    }
}

/// The daemon that a lock file names: its process id in the first line, its
/// socket in the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Where it listens, where the file says so.
    pub socket: Option<PathBuf>,
}

impl Holder {
    /// Reads the content of a lock file; `None` where it names no process.
    #[must_use]
    pub fn parse(content: &[u8]) -> Option<Self> {
        let mut lines = content.splitn(2, |byte| *byte == b'\n');
        let pid = std::str::from_utf8(lines.next()?).ok()?.trim().parse().ok()?;
        let rest = lines.next().unwrap_or_default();
        let socket = rest.strip_suffix(b"\n").unwrap_or(rest);
        let socket = (!socket.is_empty()).then(|| OsStr::from_bytes(socket).into());
        Some(Self { pid, socket })
    }

    /// The content of the lock file.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        let mut content = format!("{}\n", self.pid).into_bytes();
        if let Some(socket) = &self.socket {
            content.extend(socket.clone().into_os_string().into_vec());
            content.push(b'\n');
        }
        content
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(variables: &[(&str, &OsStr)]) -> Paths {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        Paths::resolve(find, Path::new("/here"), 1000)
    }

    fn socket(variables: &[(&str, &str)]) -> String {
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, OsStr::new(value))).collect();
        resolved(&variables).socket.display().to_string()
    }

    #[test]
    fn the_socket_is_found_from_the_environment() {
        assert_eq!(socket(&[("KSI_HOME", "/h")]), "/h/run/ksid.sock");
        assert_eq!(socket(&[("XDG_RUNTIME_DIR", "/run/user/1000")]), "/run/user/1000/ksi/ksid.sock");
        assert_eq!(socket(&[("XDG_RUNTIME_DIR", "relative")]), "/tmp/ksi-1000/ksid.sock");
        assert_eq!(socket(&[]), "/tmp/ksi-1000/ksid.sock");
        assert_eq!(socket(&[("KSI_HOME", "/h"), ("KSI_SOCKET", "/s")]), "/s");
        assert_eq!(socket(&[("KSI_SOCKET", "")]), "/tmp/ksi-1000/ksid.sock");
    }

    #[test]
    fn a_relative_home_or_socket_begins_at_the_current_directory() {
        assert_eq!(socket(&[("KSI_HOME", "h")]), "/here/h/run/ksid.sock");
        assert_eq!(socket(&[("KSI_HOME", "h"), ("KSI_SOCKET", "./s")]), "/here/s");
        assert_eq!(socket(&[("KSI_HOME", ".")]), "/here/run/ksid.sock");
        assert_eq!(resolved(&[("KSI_HOME", OsStr::new("h"))]).state_dir, Path::new("/here/h/state"));
    }

    #[test]
    fn a_home_that_is_no_text_is_not_taken_for_none() {
        let home = OsStr::from_bytes(b"/h\xff");
        let paths = resolved(&[("KSI_HOME", home)]);
        assert_eq!((paths.config_dir.as_path(), paths.nameless()), (Path::new(home), Some(Path::new(home))));
        let socket = resolved(&[("KSI_SOCKET", OsStr::from_bytes(b"\xff"))]);
        assert_eq!(socket.nameless(), Some(socket.socket.as_path()));
        assert_eq!(resolved(&[]).nameless(), None);
    }

    #[test]
    fn a_lock_names_its_daemon_and_any_socket() {
        let holder = |pid, socket: Option<&[u8]>| Holder {
            pid,
            socket: socket.map(|socket| OsStr::from_bytes(socket).into()),
        };
        for holder in
            [holder(7, None), holder(7, Some(b"/run/ksid.sock")), holder(u32::MAX, Some(b"/a\nb\xff\n"))]
        {
            assert_eq!(Holder::parse(&holder.content()), Some(holder));
        }
        assert_eq!(Holder::parse(b"7"), Some(holder(7, None)));
        for other in [&b""[..], b"\n", b"no pid\n/s\n", b"\xff\n", b"-1\n/s\n"] {
            assert_eq!(Holder::parse(other), None);
        }
    }
}
