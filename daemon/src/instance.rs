//! One daemon for one runtime directory: the directory itself, the lock, and
//! the socket to listen on.
//!
//! The lock is what says that a daemon runs; the kernel lets go of it with the
//! process, however that ends. A pid in a file or a socket that nobody answers
//! is a left-over and never in the way. What is not ours is never removed: a
//! file or directory in the socket's place is refused, not deleted.
//!
//! # Invariants
//!
//! * Nobody but the owner can reach the socket, at no time: its directory is
//!   0700, and it is made under a umask of 077.
//! * The socket goes before the lock does, and only if it still is ours.
//!
//! # Failure
//!
//! Every error names the path and what to do. The umask belongs to the whole
//! process, so [`Instance::listen`] is for the start, before other threads
//! make files.

mod lock;

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, ErrorKind},
    os::{
        fd::AsRawFd as _,
        unix::{
            ffi::OsStrExt as _,
            fs::{
                DirBuilderExt as _, FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
                PermissionsExt as _,
            },
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread::park_timeout,
    time::{Duration, Instant},
};

use ksi_host::descriptor::copy_of;
use ksi_protocol::{
    limits::SOCKET_PATH_BYTES_MAX,
    paths::{Holder, Paths},
};
use nix::{
    errno::Errno,
    libc,
    sys::{
        socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt},
        stat::{Mode, umask},
    },
    unistd::geteuid,
};

use crate::takeover::Takeover;

/// How long a start waits for what a daemon that is no more still has, and how
/// often it looks.
const LEAVING: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);

/// Waits between two looks.
fn pause() {
    park_timeout(LOOK);
}

/// Why this process cannot be the daemon.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime directory cannot be made or looked at.
    #[error("cannot use the runtime directory {}: {error}\n  hint: KSI_HOME or XDG_RUNTIME_DIR can name another place", path.display())]
    Dir {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The runtime directory is a link, which may be turned elsewhere later.
    #[error("the runtime directory {} is a symbolic link\n  hint: remove the link, or let KSI_HOME name the directory that it leads to", path.display())]
    Symlink {
        /// The link.
        path: PathBuf,
    },
    /// Something else lies where the runtime directory should.
    #[error("the runtime directory {} is no directory\n  hint: move it away", path.display())]
    NotDirectory {
        /// What lies there.
        path: PathBuf,
    },
    /// The runtime directory is another user's.
    #[error("the runtime directory {} belongs to user {owner}, not to user {uid} who starts the daemon\n  hint: KSI_HOME or XDG_RUNTIME_DIR can name another place", path.display())]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        uid: u32,
    },
    /// Others can enter or read the runtime directory.
    #[error("the runtime directory {} is open to others (mode {mode:04o})\n  hint: chmod 700 {}", path.display(), path.display())]
    OpenToOthers {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The lock file cannot be opened, locked or written.
    #[error("cannot lock {}: {error}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another daemon holds the lock.
    #[error("ksid is running already, pid {pid}, socket {}\n  hint: `ksi status` asks it, `ksi stop` ends it", socket.display())]
    Running {
        /// Its pid, as the lock file says it.
        pid: u32,
        /// Its socket.
        socket: PathBuf,
    },
    /// The lock is held, and its daemon does not run.
    #[error("the lock {} is held by another process, and {}\n  hint: `fuser {}` shows which one it is", path.display(), pid.map_or_else(|| "names no daemon".into(), |pid| format!("its daemon, pid {pid}, does not run any more")), path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// The daemon that it names.
        pid: Option<u32>,
    },
    /// Linux takes no socket path of this length.
    #[error("the socket path {} has {bytes} bytes, and {SOCKET_PATH_BYTES_MAX} are possible\n  hint: KSI_SOCKET can name a shorter one", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// Something that is no socket lies in its place.
    #[error("{} is in the place of the socket and is no socket\n  hint: move it away, or let KSI_SOCKET name another place", path.display())]
    NotSocket {
        /// What lies there.
        path: PathBuf,
    },
    /// Somebody answers on the socket without holding our lock.
    #[error("another program listens on {}\n  hint: it may be a daemon with another KSI_HOME; KSI_SOCKET can name another place", path.display())]
    Answered {
        /// The socket.
        path: PathBuf,
    },
    /// Others could put a socket of their own in the place of ours.
    #[error("the directory {} of the socket can be written by others (mode {mode:04o})\n  hint: chmod go-w {}, or let KSI_SOCKET name another place", path.display(), path.display())]
    SocketDir {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}: {error}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The service manager handed over something else than one socket.
    #[error(
        "cannot use the socket of the service manager: {reason}\n  hint: the socket unit needs one ListenStream= with a path, and Accept=no"
    )]
    Activation {
        /// What is wrong with it.
        reason: String,
    },
}

/// This process is the daemon of a runtime directory, as long as this lives.
#[derive(Debug)]
pub struct Instance {
    /// Held, never read: the lock goes with the open file.
    lock: File,
    socket: PathBuf,
    /// Device and inode of the socket that we made.
    made: Mutex<Option<(u64, u64)>>,
    /// From the program that ran in this process before: its socket, and
    /// whether it had made that.
    inherited: Mutex<Option<(UnixListener, bool)>>,
}

impl Instance {
    /// Makes the runtime directory where it is missing, and takes its lock.
    ///
    /// # Errors
    ///
    /// Refuses a directory that is not ours alone, and where another daemon
    /// runs.
    pub fn acquire(paths: &Paths) -> Result<Self, Error> {
        Self::acquire_pausing(paths, pause)
    }

    /// [`Instance::acquire`] with what is done between two looks.
    fn acquire_pausing(paths: &Paths, pause: impl FnMut()) -> Result<Self, Error> {
        private_dir(&paths.runtime_dir)?;
        let path = paths.lock_file();
        let failed = |error| Error::Lock { path: path.clone(), error };
        let (lock, inherited) = match Takeover::inherited().map_err(failed)? {
            Some(Takeover { listener, lock, own }) => (lock, Some((listener, own))),
            None => (lock::take(&path, &paths.socket, pause)?, None),
        };
        // One that was handed over is not at its beginning.
        let holder = Holder { pid: std::process::id(), socket: Some(paths.socket.clone()) };
        let written = lock.set_len(0).and_then(|()| lock.write_all_at(&holder.content(), 0));
        // Whether that can be written or not, the lock is what counts: on a full
        // disk the daemon still starts.
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "cannot write pid and socket into the lock file");
        }
        Ok(Self {
            lock,
            socket: paths.socket.clone(),
            made: Mutex::default(),
            inherited: Mutex::new(inherited),
        })
    }

    /// Hands lock and socket to the program that takes over.
    ///
    /// # Errors
    ///
    /// Where there is no descriptor left.
    pub fn hand_over(self, listener: UnixListener) -> io::Result<Takeover> {
        let lock = self.lock.try_clone()?;
        let own = self.made.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        // What it would remove stays.
        std::mem::forget(self);
        Ok(Takeover { listener, lock, own })
    }

    /// The socket to accept clients from, non-blocking: the one that the
    /// service manager has opened, or else one made here with mode 0600.
    ///
    /// # Errors
    ///
    /// Refuses a path that is too long, taken by something that is no socket,
    /// or answered by somebody.
    pub fn listen(&self) -> Result<UnixListener, Error> {
        let path = self.socket.clone();
        let handed = self.inherited.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((listener, own)) = handed {
            if own {
                self.remember(&path).map_err(|error| Error::Listen { path, error })?;
            }
            return Ok(listener);
        }
        if let Some(listener) = inherited()? {
            return Ok(listener);
        }
        let bytes = path.as_os_str().as_bytes().len();
        if bytes > SOCKET_PATH_BYTES_MAX {
            return Err(Error::PathTooLong { path, bytes });
        }
        check_socket_dir(&path)?;
        clear(&path)?;
        let failed = |error| Error::Listen { path: path.clone(), error };
        let listener = bind(&path).map_err(failed)?;
        self.remember(&path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(listener)
    }

    /// The socket is ours to remove.
    fn remember(&self, path: &Path) -> io::Result<()> {
        let metadata = fs::symlink_metadata(path)?;
        let made = (metadata.dev(), metadata.ino());
        self.made.lock().unwrap_or_else(PoisonError::into_inner).replace(made);
        Ok(())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let made = self.made.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(made), Ok(found)) = (made, fs::symlink_metadata(&self.socket))
            && (found.dev(), found.ino()) == made
        {
            // It may be gone in this very moment; then all is well too.
            let _ = fs::remove_file(&self.socket);
        }
        // An empty file says that no daemon runs. It stays where it is: if it
        // were removed, two daemons could lock two files of the same name.
        let _ = self.lock.set_len(0);
    }
}

/// Makes a directory of mode 0700, or makes sure that it is one of ours.
fn private_dir(path: &Path) -> Result<(), Error> {
    let failed = |error| Error::Dir { path: path.to_owned(), error };
    let absent = fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound);
    if absent {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    }
    // Looked at through a descriptor, so that it cannot be swapped meanwhile.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path);
    let dir = match opened {
        Ok(dir) => dir,
        Err(error) => {
            return Err(match fs::symlink_metadata(path) {
                Ok(found) if found.is_symlink() => Error::Symlink { path: path.to_owned() },
                Ok(found) if !found.is_dir() => Error::NotDirectory { path: path.to_owned() },
                _ => failed(error),
            });
        }
    };
    let metadata = dir.metadata().map_err(failed)?;
    let (owner, uid) = (metadata.uid(), geteuid().as_raw());
    if owner != uid {
        return Err(Error::Owner { path: path.to_owned(), owner, uid });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Error::OpenToOthers { path: path.to_owned(), mode });
    }
    Ok(())
}

/// The socket may lie elsewhere than the lock (`KSI_SOCKET`); then its
/// directory must at least not let others replace it.
fn check_socket_dir(socket: &Path) -> Result<(), Error> {
    let dir = match socket.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let metadata = fs::metadata(dir).map_err(|error| Error::Listen { path: socket.to_owned(), error })?;
    let mode = metadata.mode() & 0o7777;
    let (writable, sticky) = (mode & 0o022 != 0, mode & 0o1000 != 0);
    if writable && !sticky {
        return Err(Error::SocketDir { path: dir.to_owned(), mode });
    }
    Ok(())
}

/// Removes a socket that nobody answers, and nothing else.
fn clear(path: &Path) -> Result<(), Error> {
    let failed = |error| Error::Listen { path: path.to_owned(), error };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::NotSocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    // Whoever still has the socket of a daemon that is no more lets it go with
    // its lock, a moment after it.
    let patience = Instant::now() + LEAVING;
    loop {
        match probe(path) {
            // With its backlog full, connecting would block: somebody is there.
            Ok(()) | Err(Errno::EAGAIN) if Instant::now() > patience => {
                return Err(Error::Answered { path: path.to_owned() });
            }
            Ok(()) | Err(Errno::EAGAIN) => pause(),
            Err(Errno::ECONNREFUSED) => {
                return match fs::remove_file(path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(error)),
                    _ => Ok(()),
                };
            }
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

/// Connects without ever waiting.
fn probe(path: &Path) -> Result<(), Errno> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let client = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(client.as_raw_fd(), &UnixAddr::new(path)?)
}

/// The umask belongs to the process; two binds at once must not restore each
/// other's.
static UMASK: Mutex<()> = Mutex::new(());

fn bind(path: &Path) -> io::Result<UnixListener> {
    let guard = UMASK.lock().unwrap_or_else(PoisonError::into_inner);
    let before = umask(Mode::S_IRWXG | Mode::S_IRWXO);
    let bound = UnixListener::bind(path);
    umask(before);
    drop(guard);
    let listener = bound?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// The listening socket that the service manager has opened for us; `None`
/// where it has not.
fn inherited() -> Result<Option<UnixListener>, Error> {
    let failed = |reason: String| Error::Activation { reason };
    let mut descriptors = sd_notify::listen_fds().map_err(|error| failed(error.to_string()))?;
    let number = match descriptors.len() {
        0 => return Ok(None),
        1 => descriptors.next().expect("one was counted"),
        count => return Err(failed(format!("there are {count} of them"))),
    };
    // A number becomes an owned descriptor by asking the kernel for a copy of
    // it. The one with the number stays open until the end, closed on exec.
    let copy = copy_of(number).map_err(|error| failed(format!("descriptor {number}: {error}")))?;
    let kind = socket::getsockopt(&copy, sockopt::SockType);
    let listens = socket::getsockopt(&copy, sockopt::AcceptConn);
    if !matches!(kind, Ok(SockType::Stream)) || !matches!(listens, Ok(true)) {
        return Err(failed(format!("descriptor {number} is no listening stream socket")));
    }
    let listener = UnixListener::from(copy);
    // Asks for the family too: an address that is none of a Unix socket fails.
    listener.local_addr().map_err(|error| failed(format!("descriptor {number}: {error}")))?;
    listener.set_nonblocking(true).map_err(|error| failed(error.to_string()))?;
    Ok(Some(listener))
}

#[cfg(test)]
mod tests;
