//! One run of `ksi`: where the daemon is, how to print, how long to wait.
//!
//! Every verb gets an [`Invocation`]. It opens connections and asks; it keeps
//! none open.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf, absolute},
    process::Command,
    time::Duration,
};

use bytes::Bytes;
use ksi_client::{CallOptions, Client, Options};
use ksi_protocol::{json, paths::Paths};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    args::Global,
    error::{Failure, Result},
    output::Output,
};

/// What all verbs need to know.
#[derive(Debug, Clone)]
pub(crate) struct Invocation {
    /// Where everything lies.
    pub(crate) paths: Paths,
    /// How to print.
    pub(crate) out: Output,
    /// `--timeout`.
    pub(crate) timeout: Option<Duration>,
    /// `--token-file`.
    pub(crate) token_file: Option<PathBuf>,
}

impl Invocation {
    /// Reads the environment and the global options.
    pub(crate) fn new(global: &Global) -> Self {
        let paths = places(global.socket.as_deref());
        let out = Output::new(global.output, !global.no_headers, global.quiet, global.color);
        Self { paths, out, timeout: global.timeout, token_file: global.token_file.clone() }
    }

    /// Opens a connection.
    ///
    /// # Errors
    ///
    /// Fails with "not running" where nobody listens.
    pub(crate) async fn connect(&self) -> Result<Client> {
        Ok(Client::connect(self.client_options()).await?)
    }

    /// Opens a connection that is made anew where it is lost: for what outlives
    /// the daemon.
    ///
    /// # Errors
    ///
    /// As [`Invocation::connect`].
    pub(crate) async fn connect_lasting(&self) -> Result<Client> {
        Ok(Client::connect(self.client_options().reconnect(true)).await?)
    }

    /// Does something that outlives the daemon, and tells a person meanwhile when that
    /// is gone and when it is back.
    pub(crate) async fn outliving<T>(&self, client: &Client, what: impl Future<Output = T>) -> T {
        let telling = async {
            loop {
                client.until_connected(false).await;
                self.out.note("the daemon is gone; this goes on when it is back (ksi start)");
                client.until_connected(true).await;
                self.out.note("connected again");
            }
        };
        tokio::select! {
            biased;
            done = what => done,
            () = telling => unreachable!("it has no end"),
        }
    }

    /// How the client library shall connect. Most verbs end with their
    /// connection.
    pub(crate) fn client_options(&self) -> Options {
        let options = Options::new(&self.paths.socket)
            .name(concat!("ksi ", env!("CARGO_PKG_VERSION")))
            .reconnect(false)
            .token_from_env();
        // What is said on the command line goes first.
        let options = match &self.token_file {
            Some(path) => options.token_file(path),
            None => options,
        };
        match self.timeout {
            Some(time) => options.connect_timeout(time),
            None => options,
        }
    }

    /// A program of KSI, to be run for the daemon of this run: what its environment
    /// says of places means the same in whatever directory it runs.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        for name in ["KSI_HOME", "KSI_EVENTS"] {
            // An empty one is as good as none, and has no absolute form.
            if let Some(path) = std::env::var_os(name).and_then(|path| absolute(path).ok()) {
                command.env(name, path);
            }
        }
        command.env("KSI_SOCKET", &self.paths.socket);
        command
    }

    /// Options of a request: `--timeout`.
    pub(crate) fn call(&self) -> CallOptions {
        CallOptions { timeout: self.timeout, ..CallOptions::default() }
    }

    /// Options of a request that has a time of its own, unless `--timeout`
    /// says otherwise.
    pub(crate) fn call_within(&self, time: Duration) -> CallOptions {
        CallOptions { timeout: Some(self.timeout.unwrap_or(time)), ..CallOptions::default() }
    }

    /// Asks one event and gives the reply as it came.
    ///
    /// # Errors
    ///
    /// Fails as the daemon refuses.
    pub(crate) async fn value(
        &self,
        client: &Client,
        event: &str,
        payload: &(impl Serialize + Sync),
    ) -> Result<Value> {
        let reply = client.request_raw(event, encoded(payload)?, self.call()).await?;
        readable(&reply)
    }

    /// Asks one event and gives the reply typed.
    ///
    /// # Errors
    ///
    /// Fails as the daemon refuses, or where the reply has another shape.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        client: &Client,
        event: &str,
        payload: &(impl Serialize + Sync),
    ) -> Result<T> {
        let reply = client.request_raw(event, encoded(payload)?, self.call()).await?;
        typed(event, &reply)
    }

    /// Asks one event and gives the reply as it came, for programs, and typed, for
    /// what people see of it.
    ///
    /// # Errors
    ///
    /// Fails as the daemon refuses, or where the reply has another shape.
    pub(crate) async fn ask_whole<T: DeserializeOwned>(
        &self,
        client: &Client,
        event: &str,
        payload: &(impl Serialize + Sync),
    ) -> Result<(Value, T)> {
        let reply = self.value(client, event, payload).await?;
        let typed = shaped(event, &reply)?;
        Ok((reply, typed))
    }
}

/// The places that the environment names, with the socket of `--socket`.
pub(crate) fn places(socket: Option<&Path>) -> Paths {
    let variable = |name: &str| match socket {
        Some(socket) if name == "KSI_SOCKET" => Some(OsString::from(socket)),
        _ => std::env::var_os(name),
    };
    // Without a current directory what is relative stays so, and leads nowhere.
    let current = std::env::current_dir().unwrap_or_default();
    Paths::resolve(variable, &current, nix::unistd::getuid().as_raw())
}

/// A payload as MessagePack.
///
/// # Errors
///
/// Fails where `payload` cannot be encoded.
pub(crate) fn encoded(payload: &impl Serialize) -> Result<Bytes> {
    ksi_protocol::encode(payload)
        .map_err(|error| Failure::failed(format!("the payload cannot be encoded: {error}")))
}

/// A payload as JSON.
///
/// # Errors
///
/// Fails where it is not MessagePack.
pub(crate) fn readable(payload: &[u8]) -> Result<Value> {
    json::to_json(payload).map_err(Failure::from)
}

/// A reply with a known shape.
///
/// # Errors
///
/// Names the event whose reply has another one.
pub(crate) fn typed<T: DeserializeOwned>(event: &str, payload: &[u8]) -> Result<T> {
    ksi_protocol::decode(payload).map_err(|refusal| other_shape(event, &refusal.message))
}

/// A reply as it came, with a known shape.
///
/// # Errors
///
/// Names the event whose reply has another one.
pub(crate) fn shaped<T: DeserializeOwned>(event: &str, reply: &Value) -> Result<T> {
    T::deserialize(reply).map_err(|error| other_shape(event, &error.to_string()))
}

/// Who answered is older than this `ksi`, or newer: most likely a daemon that has
/// not been restarted since an update. What is read wrong would be shown as if it
/// were so.
fn other_shape(event: &str, why: &str) -> Failure {
    Failure::failed(format!("`{event}` answered in a form that ksi does not know: {why}"))
        .hint("are ksi, ksid and its plugins of one version? see: ksi version; after an update: ksi restart")
}

/// A program of KSI: named by its variable, else beside this executable, else
/// on the `PATH`; from the root, so that it is the same one from every directory.
pub(crate) fn program(name: &str, variable: Option<&str>) -> Option<PathBuf> {
    let found = found(name, variable)?;
    Some(absolute(&found).unwrap_or(found))
}

fn found(name: &str, variable: Option<&str>) -> Option<PathBuf> {
    if let Some(path) = variable.and_then(std::env::var_os).filter(|value| !value.is_empty()) {
        return Some(path.into());
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(name)));
    beside.filter(|path| path.is_file()).or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
    })
}

/// A program of KSI that must be there.
///
/// # Errors
///
/// Says where it was looked for.
pub(crate) fn required_program(name: &str, variable: &str) -> Result<PathBuf> {
    program(name, Some(variable)).ok_or_else(|| {
        Failure::failed(format!("{name} was found neither beside ksi nor on the PATH"))
            .hint(format!("install it there, or name it: {variable}=/path/to/{name}"))
    })
}

/// A path for people: below the home directory it begins with `~`.
pub(crate) fn short(path: &Path) -> String {
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.components().count() > 1);
    match home.and_then(|home| Some(path.strip_prefix(home).ok()?.to_owned())) {
        Some(rest) => format!("~/{}", rest.display()),
        None => path.display().to_string(),
    }
}
