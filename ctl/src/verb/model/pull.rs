//! `model pull`: a model from a server into the models directory.
//!
//! What has arrived lies in a part file beside its place, with a note of where
//! it is from. A pull that was cut goes on there, as long as the server still
//! has the same file; at last size and digest are compared, and only then does
//! the model appear.
//!
//! # Invariants
//!
//! - A model appears whole, and is what the server and `--sha256` say, or not at
//!   all.
//! - A token for a server goes to that server alone, and never over plain HTTP.

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use ksi_trust::Digest;
use reqwest::{
    Client, Method, Response, StatusCode, Url,
    header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LOCATION, RANGE},
    redirect::Policy,
};
use serde::{Deserialize, Serialize};

use super::shelf::{self, Entry, MAGIC};
use crate::{
    error::{Failure, Result},
    exit::Exit,
    http,
};

/// Where `hf:` leads, unless the environment variable HF_ENDPOINT says else.
const HUB: &str = "https://huggingface.co";
/// Redirects that are followed for one file.
const REDIRECTS_MAX: usize = 10;
/// Attempts that brought nothing, one after another, before it is given up.
const ATTEMPTS_MAX: u32 = 5;
/// Time to reach a server, and time for which it may be silent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// What is to be pulled.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Source {
    url: Url,
    /// What proves to that server who asks.
    token: Option<String>,
}

impl Source {
    /// Reads `https://…`, `http://…` or `hf:OWNER/REPO/FILE`, where
    /// `@REVISION` may follow the repository.
    ///
    /// # Errors
    ///
    /// Says what is accepted.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Failure::usage(format!("`{text}` names no model on a server"))
                .hint("write https://HOST/PATH.gguf or hf:OWNER/REPO/FILE.gguf")
        };
        let Some(path) = text.strip_prefix("hf:") else {
            let url = Url::parse(text).map_err(|_| wrong())?;
            let served = matches!(url.scheme(), "http" | "https") && url.has_host();
            return if served { Ok(Self { url, token: None }) } else { Err(wrong()) };
        };
        let mut parts = path.splitn(3, '/');
        let (Some(owner), Some(repo), Some(file)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong());
        };
        let (repo, revision) = repo.split_once('@').unwrap_or((repo, "main"));
        if [owner, repo, revision, file].iter().any(|part| part.is_empty()) {
            return Err(wrong());
        }
        let endpoint = std::env::var("HF_ENDPOINT").unwrap_or(HUB.into());
        let url = format!("{}/{owner}/{repo}/resolve/{revision}/{file}", endpoint.trim_end_matches('/'));
        let token = std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty());
        Ok(Self { url: Url::parse(&url).map_err(|_| wrong())?, token })
    }

    /// The name that the model gets where none is given.
    fn name(&self) -> String {
        let file = self.url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default();
        file.strip_suffix(".gguf").unwrap_or(file).to_owned()
    }
}

/// What is noted of a file that is on its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Note {
    /// Where it is from.
    url: String,
    /// Which version of it that was, as the server calls it.
    etag: Option<String>,
}

/// What a server says of a file.
#[derive(Debug, Default)]
struct Told {
    etag: Option<String>,
    size: Option<u64>,
    sha256: Option<Digest>,
}

impl Told {
    /// Adds what one answer says; those before it count more.
    fn add(&mut self, headers: &HeaderMap) {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        // A hub that keeps large files elsewhere says here what they are.
        let linked = text("x-linked-etag").map(|etag| etag.trim_matches('"'));
        self.sha256 = self.sha256.or_else(|| linked?.parse().ok());
        self.size = self.size.or_else(|| text("x-linked-size")?.parse().ok());
        let strong = headers.get(ETAG).and_then(|etag| etag.to_str().ok());
        self.etag = self.etag.take().or_else(|| {
            let etag = linked.map(|etag| format!("\"{etag}\"")).or(strong.map(str::to_owned))?;
            (!etag.starts_with("W/")).then_some(etag)
        });
    }
}

/// Why an attempt ended before all was there.
enum Ended {
    /// The connection, or the server for now: it may be tried again.
    Cut(String),
    For(Failure),
}

/// Pulls a model. `progress` hears of bytes done and all, where that is known.
///
/// # Errors
///
/// Refuses a name that is taken, what is no GGUF file, and what differs from
/// its size or digest.
pub(super) async fn pull(
    dir: &Path,
    source: &Source,
    name: Option<&str>,
    sha256: Option<Digest>,
    mut progress: impl FnMut(u64, Option<u64>),
) -> Result<Entry> {
    let name = name.map_or_else(|| source.name(), str::to_owned);
    shelf::check_free(dir, &name)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| Failure::to_file("create", dir, &error))?;
    let mut part = Part::open(dir, &name)?;
    let client = client()?;
    let mut told = Told::default();
    let mut idle = 0;
    loop {
        let before = part.length()?;
        match attempt(&client, source, &mut part, &mut told, &mut progress).await {
            Ok(()) => break,
            Err(Ended::For(failure)) => return Err(failure),
            Err(Ended::Cut(why)) => {
                idle = if part.length()? > before { 0 } else { idle + 1 };
                if idle >= ATTEMPTS_MAX {
                    return Err(Failure::failed(format!("{} cannot be reached: {why}", host(&source.url)))
                        .hint("the same command goes on where this one has ended"));
                }
                tokio::time::sleep(Duration::from_millis(250 << idle)).await;
            }
        }
    }
    let wanted = sha256.or(told.sha256);
    part.check(wanted)?;
    part.settle(dir, &name)
}

fn client() -> Result<Client> {
    http::client(|client| {
        client.redirect(Policy::none()).connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT)
    })
}

fn host(url: &Url) -> &str {
    url.host_str().unwrap_or("the server")
}

/// Asks for the rest of the file and writes what comes.
async fn attempt(
    client: &Client,
    source: &Source,
    part: &mut Part,
    told: &mut Told,
    progress: &mut impl FnMut(u64, Option<u64>),
) -> std::result::Result<(), Ended> {
    let note = Note { url: source.url.to_string(), etag: None };
    // What is there is of use only where the server can say that it is of the
    // same version.
    let known = part.note().filter(|known| known.url == note.url && known.etag.is_some());
    let from = if known.is_some() { part.length().map_err(Ended::For)? } else { 0 };
    let validator = known.and_then(|known| known.etag).filter(|_| from > 0);
    let mut response = follow(client, source, from, validator.as_deref(), told).await?;
    let status = response.status();
    let total = match status {
        StatusCode::PARTIAL_CONTENT => content_range(&response, from)?,
        StatusCode::OK => response.content_length(),
        // All of it is there already, or too much.
        StatusCode::RANGE_NOT_SATISFIABLE if told.size == Some(from) => return Ok(()),
        StatusCode::RANGE_NOT_SATISFIABLE => {
            part.restart(&note).map_err(Ended::For)?;
            return Err(Ended::Cut("it has less than what is here already".into()));
        }
        _ => return Err(refused(status, &source.url)),
    };
    let total = total.or(told.size);
    if status == StatusCode::OK {
        part.restart(&Note { etag: told.etag.clone(), ..note }).map_err(Ended::For)?;
    }
    told.size = told.size.or(total);
    let mut done = part.length().map_err(Ended::For)?;
    progress(done, total);
    loop {
        let chunk = response.chunk().await.map_err(|error| Ended::Cut(deepest(&error)))?;
        let Some(chunk) = chunk else { break };
        part.write(&chunk).map_err(Ended::For)?;
        done += chunk.len() as u64;
        if done >= MAGIC.len() as u64 {
            part.check_magic(&source.url).map_err(Ended::For)?;
        }
        progress(done, total);
    }
    match total {
        Some(total) if done < total => Err(Ended::Cut(format!("it ended {} bytes early", total - done))),
        Some(total) if done > total => {
            part.remove();
            Err(Ended::For(Failure::failed(format!("{} bytes came; {total} were announced", done))))
        }
        _ => Ok(()),
    }
}

/// Asks, and goes where the server sends it.
async fn follow(
    client: &Client,
    source: &Source,
    from: u64,
    validator: Option<&str>,
    told: &mut Told,
) -> std::result::Result<Response, Ended> {
    let mut url = source.url.clone();
    for _ in 0..=REDIRECTS_MAX {
        // Compressed, the bytes could not be counted.
        let mut request = client.request(Method::GET, url.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some(validator) = validator {
            request = request.header(RANGE, format!("bytes={from}-")).header(IF_RANGE, validator);
        }
        let own = url.origin() == source.url.origin() && url.scheme() == "https";
        if let Some(token) = source.token.as_ref().filter(|_| own) {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let response = request.send().await.map_err(|error| Ended::Cut(deepest(&error)))?;
        told.add(response.headers());
        if !response.status().is_redirection() {
            return Ok(response);
        }
        let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let next = location.and_then(|location| url.join(location).ok());
        let failed = |why: &str| Ended::For(Failure::failed(format!("{} {why}", host(&url))));
        let next = next.ok_or_else(|| failed("sends elsewhere, and does not say where"))?;
        if url.scheme() == "https" && next.scheme() != "https" {
            return Err(failed("sends to a place without encryption"));
        }
        url = next;
    }
    Err(Ended::For(Failure::failed(format!("{} sends in circles", host(&source.url)))))
}

/// The size of the whole file, of an answer that begins where it was asked to.
fn content_range(response: &Response, from: u64) -> std::result::Result<Option<u64>, Ended> {
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let parsed = range.and_then(|range| {
        let (bytes, total) = range.strip_prefix("bytes ")?.split_once('/')?;
        let (start, _) = bytes.split_once('-')?;
        Some((start.parse::<u64>().ok()?, total.parse::<u64>().ok()))
    });
    match parsed {
        Some((start, total)) if start == from => Ok(total),
        _ => {
            Err(Ended::For(Failure::failed("the server sends another part than the one that was asked for")))
        }
    }
}

fn refused(status: StatusCode, url: &Url) -> Ended {
    let host = host(url);
    match status.as_u16() {
        404 | 410 => {
            Ended::For(Failure::new(Exit::NotFound, "not_found", format!("{host} has no such file")))
        }
        401 | 403 => Ended::For(
            Failure::new(
                Exit::Denied,
                "denied",
                format!("{host} does not give the file to everyone ({status})"),
            )
            .hint("for a file of Hugging Face: put your token into HF_TOKEN"),
        ),
        429 | 500..=599 => Ended::Cut(format!("it answers {status}")),
        _ => Ended::For(Failure::failed(format!("{host} answers {status}"))),
    }
}

/// The cause that says most.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// A file on its way.
struct Part {
    file: File,
    path: PathBuf,
    note: PathBuf,
    /// Whether it was seen to be a GGUF file.
    magic: bool,
}

impl Part {
    fn open(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(format!(".{name}.pull"));
        let note = dir.join(format!(".{name}.pull.json"));
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
        let mut file = file.map_err(|error| Failure::to_file("write", &path, &error))?;
        if file.try_lock().is_err() {
            let message = format!("a model named `{name}` is being pulled already");
            return Err(Failure::new(Exit::Conflict, "conflict", message));
        }
        file.seek(SeekFrom::End(0)).map_err(|error| Failure::to_file("write", &path, &error))?;
        Ok(Self { file, path, note, magic: false })
    }

    fn failed(&self, error: &std::io::Error) -> Failure {
        Failure::to_file("write", &self.path, error)
    }

    fn length(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(|error| self.failed(&error))?.len())
    }

    fn note(&self) -> Option<Note> {
        serde_json::from_slice(&fs::read(&self.note).ok()?).ok()
    }

    /// Begins anew, with a note of what is coming.
    fn restart(&mut self, note: &Note) -> Result<()> {
        let begun = self.file.set_len(0).and_then(|()| self.file.rewind());
        let noted = begun.and_then(|()| fs::write(&self.note, serde_json::to_vec(note)?));
        self.magic = false;
        noted.map_err(|error| self.failed(&error))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| {
            self.failed(&error)
                .hint("what has arrived stays; the same command goes on where this one has ended")
        })
    }

    /// Refuses what is no model as soon as that can be seen.
    fn check_magic(&mut self, url: &Url) -> Result<()> {
        if self.magic {
            return Ok(());
        }
        let mut magic = [0; MAGIC.len()];
        std::os::unix::fs::FileExt::read_exact_at(&self.file, &mut magic, 0)
            .map_err(|error| self.failed(&error))?;
        if &magic != MAGIC {
            self.remove();
            return Err(Failure::failed(format!("what {} sends is no GGUF file", host(url)))
                .hint("models for KSI are files in the GGUF format of llama.cpp"));
        }
        self.magic = true;
        Ok(())
    }

    /// Compares the whole with its digest, where one is known.
    fn check(&mut self, sha256: Option<Digest>) -> Result<()> {
        self.file.sync_all().and_then(|()| self.file.rewind()).map_err(|error| self.failed(&error))?;
        let Some(wanted) = sha256 else { return Ok(()) };
        let (found, _) = Digest::read(std::io::BufReader::new(&self.file))
            .map_err(|error| Failure::to_file("read", &self.path, &error))?;
        if found == wanted {
            return Ok(());
        }
        self.remove();
        Err(Failure::failed(format!("the file has the digest {found}; expected is {wanted}"))
            .hint("pull it again; if that does not help, ask whoever publishes it"))
    }

    fn settle(self, dir: &Path, name: &str) -> Result<Entry> {
        let path = dir.join(format!("{name}.gguf"));
        let size = self.length()?;
        shelf::settle(&self.path, &path).map_err(|error| Failure::to_file("write", &path, &error))?;
        self.remove();
        Ok(Entry { name: name.to_owned(), path, link: false, size })
    }

    fn remove(&self) {
        // After a rename the first is gone.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.note);
    }
}

#[cfg(test)]
mod tests;
