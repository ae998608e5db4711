//! Asking a server: one request, one answer or one stream of events.
//!
//! Every failure is a refusal of `ksi_provider::failure`. A connection that is
//! kept from an earlier request is used again; nothing is sent twice.
//!
//! # Failure
//!
//! No redirect is followed: the key must not reach a host that nobody named.

use std::{error::Error, io, path::Path, time::SystemTime};

use ksi_provider::failure::{Failure, with_status};
use ksi_sdk::prelude::{Code, Duration, Refusal};
use reqwest::{
    Certificate, Proxy, RequestBuilder, Response, StatusCode, Url,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION},
};
use serde_json::Value;
use tokio::time::timeout;

use crate::{
    problem::{Problem, invalid},
    retry_after,
    server::{Limits, Server, Timeouts, grant_hint, unusable},
    sse::{Decoder, Event, Flaw},
};

/// How much of an answer that is an error is read.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// Connections that are kept for the next request, and for how long.
const IDLE_CONNECTIONS_MAX: usize = 8;
const IDLE_TIME: Duration = Duration::from_secs(60);
const STREAM: &str = "text/event-stream";
const JSON: &str = "application/json";
const STREAM_OR_JSON: &str = "text/event-stream, application/json;q=0.5";

/// Asks one server. Cheap to clone; its connections are shared.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    asking: Asking,
    base_url: String,
}

/// What is needed wherever something may go wrong.
#[derive(Debug, Clone, Copy)]
struct Asking {
    plugin: &'static str,
    port: u16,
    timeouts: Timeouts,
    limits: Limits,
}

impl Client {
    /// A client for this server; nothing is sent yet.
    ///
    /// # Errors
    ///
    /// Refuses a server that cannot be asked, with the key of the configuration.
    pub fn new(server: &Server) -> Result<Self, Refusal> {
        let url = server.check()?;
        let asking = Asking {
            plugin: server.plugin,
            port: reached(server, &url).port_or_known_default().unwrap_or(443),
            timeouts: server.timeouts,
            limits: server.limits,
        };
        // Whoever loads this has no other; a second instance finds it there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("ksi/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers(server)?)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(Duration::from_millis(server.timeouts.connect_ms))
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .pool_idle_timeout(IDLE_TIME)
            .tcp_nodelay(true)
            .no_proxy();
        if let Some(proxy) = &server.proxy {
            let hint = "write it as `http://HOST:PORT`";
            http = http.proxy(
                Proxy::all(proxy).map_err(|error| unusable(server.plugin, "proxy", deepest(&error), hint))?,
            );
        }
        if url.scheme() == "http" && server.proxy.is_none() {
            // A machine without certificates can still ask itself.
            http = http.tls_certs_only([]);
        }
        if let Some(file) = &server.ca_file {
            http = http.tls_certs_merge(certificates(server, file)?);
        }
        let hint = "install your system's CA certificates (the package is mostly called `ca-certificates`)";
        let http =
            http.build().map_err(|error| unusable(server.plugin, "base_url", deepest(&error), hint))?;
        Ok(Self { http, asking, base_url: server.base_url.trim_end_matches('/').to_owned() })
    }

    /// Asks for what is at a path.
    ///
    /// # Errors
    ///
    /// The server's error, or what kept it from answering.
    pub async fn get(&self, path: &str) -> Result<Value, Refusal> {
        let request = self.http.get(self.url(path)).header(ACCEPT, JSON);
        let mut response = self.asking.send(request).await?;
        match is_of_type(&response, JSON) {
            true => self.asking.document(&mut response).await,
            false => Err(self.asking.foreign(&mut response).await),
        }
    }

    /// Sends a request whose answer is a stream of events.
    ///
    /// # Errors
    ///
    /// The server's error, or what kept it from answering.
    pub async fn stream(&self, path: &str, body: &Value) -> Result<Events, Refusal> {
        let response = self.post(path, body, STREAM).await?;
        self.events(response).await
    }

    /// The same of a server that may answer with one JSON document all the same.
    ///
    /// # Errors
    ///
    /// The server's error, or what kept it from answering.
    pub async fn stream_or_document(&self, path: &str, body: &Value) -> Result<Answered, Refusal> {
        let mut response = self.post(path, body, STREAM_OR_JSON).await?;
        match is_of_type(&response, JSON) {
            true => self.asking.document(&mut response).await.map(Answered::Document),
            false => Ok(Answered::Events(Box::new(self.events(response).await?))),
        }
    }

    async fn post(&self, path: &str, body: &Value, accepted: &'static str) -> Result<Response, Refusal> {
        let request = self.http.post(self.url(path)).header(ACCEPT, accepted).header(CONTENT_TYPE, JSON);
        self.asking.send(request.body(body.to_string())).await
    }

    async fn events(&self, mut response: Response) -> Result<Events, Refusal> {
        if !is_of_type(&response, STREAM) {
            return Err(self.asking.foreign(&mut response).await);
        }
        Ok(Events {
            response,
            decoder: Decoder::new(self.asking.limits.line_bytes),
            asking: self.asking,
            read_bytes: 0,
        })
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base_url)
    }
}

/// An answer to a request for a stream.
#[derive(Debug)]
pub enum Answered {
    /// The stream.
    Events(Box<Events>),
    /// The whole of it in one.
    Document(Value),
}

/// The events of an answer. Dropping it closes the connection.
#[derive(Debug)]
pub struct Events {
    response: Response,
    decoder: Decoder,
    asking: Asking,
    read_bytes: usize,
}

impl Events {
    /// The next event; `None` where the server has ended its answer.
    ///
    /// # Errors
    ///
    /// Whatever is not a stream of events within its limits.
    pub async fn next(&mut self) -> Result<Option<Event>, Refusal> {
        loop {
            let event = self.decoder.take().map_err(|flaw| match flaw {
                Flaw::TooLong(bytes) => self.asking.too_large("line_bytes", bytes),
                Flaw::NotText => invalid(self.asking.plugin, flaw),
            })?;
            if event.is_some() {
                return Ok(event);
            }
            let first = self.read_bytes == 0;
            let Some(bytes) = self.asking.read(&mut self.response, first).await? else { return Ok(None) };
            self.read_bytes += bytes.len();
            if self.read_bytes > self.asking.limits.answer_bytes {
                return Err(self.asking.too_large("answer_bytes", self.asking.limits.answer_bytes));
            }
            self.decoder.push(&bytes);
        }
    }

    /// The refusal of an answer that ended before it was whole.
    #[must_use]
    pub fn cut(&self) -> Refusal {
        self.asking.cut("it ended before it was whole")
    }
}

impl Asking {
    /// Sends a request, and waits for an answer that is no error.
    async fn send(&self, request: RequestBuilder) -> Result<Response, Refusal> {
        let wait = self.timeouts.connect_ms.saturating_add(self.timeouts.first_byte_ms);
        let mut response = match timeout(Duration::from_millis(wait), request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(self.not_sent(&error)),
            Err(_) => return Err(self.late("did not begin to answer", wait)),
        };
        match response.status() {
            status if status.is_success() => Ok(response),
            status if status.is_redirection() => Err(self.redirected(&response, status)),
            status => Err(self.error(&mut response, status).await),
        }
    }

    /// The next bytes of an answer.
    async fn read(
        &self,
        response: &mut Response,
        first: bool,
    ) -> Result<Option<ksi_sdk::prelude::Bytes>, Refusal> {
        let (wait, what) = match first {
            true => (self.timeouts.first_byte_ms, "did not begin to answer"),
            false => (self.timeouts.between_bytes_ms, "fell silent in the middle of its answer"),
        };
        match timeout(Duration::from_millis(wait), response.chunk()).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) => Err(self.cut(deepest(&error))),
            Err(_) => Err(self.late(what, wait)),
        }
    }

    /// An answer that is not a stream. One that is too large is refused, or only
    /// its beginning is read.
    async fn body(&self, response: &mut Response, bytes_max: usize, whole: bool) -> Result<Vec<u8>, Refusal> {
        let mut body = Vec::new();
        while let Some(bytes) = self.read(response, body.is_empty()).await? {
            if body.len() + bytes.len() > bytes_max {
                if whole {
                    return Err(self.too_large("answer_bytes", bytes_max));
                }
                break;
            }
            body.extend_from_slice(&bytes);
        }
        Ok(body)
    }

    /// An answer that is one JSON document, and no error.
    async fn document(&self, response: &mut Response) -> Result<Value, Refusal> {
        let body = self.body(response, self.limits.answer_bytes, true).await?;
        let document: Value = serde_json::from_slice(&body)
            .map_err(|error| invalid(self.plugin, format!("its JSON cannot be read: {error}")))?;
        match Problem::read(&document) {
            Some(problem) => Err(problem.refusal(self.plugin, Failure::InvalidAnswer)),
            None => Ok(document),
        }
    }

    /// An answer with the status of an error.
    async fn error(&self, response: &mut Response, status: StatusCode) -> Refusal {
        let retry_after = retry_after::read(response.headers(), SystemTime::now());
        let otherwise = Failure::of_status(status.as_u16()).unwrap_or(Failure::InvalidAnswer);
        // An error whose text is cut or slow is the same error.
        let body = self.body(response, ERROR_BYTES_MAX, false).await.unwrap_or_default();
        let problem = serde_json::from_slice(&body).ok().as_ref().and_then(Problem::read);
        let refusal = problem.unwrap_or_default().refusal(self.plugin, otherwise);
        with_status(refusal, status.as_u16(), retry_after)
    }

    /// A good status with something else than was asked for.
    async fn foreign(&self, response: &mut Response) -> Refusal {
        let body = self.body(response, ERROR_BYTES_MAX, false).await.unwrap_or_default();
        if let Some(problem) = serde_json::from_slice(&body).ok().as_ref().and_then(Problem::read) {
            return problem.refusal(self.plugin, Failure::InvalidAnswer);
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.map_or("no type".to_owned(), |kind| format!("`{}`", kind.escape_debug()));
        invalid(self.plugin, format!("it is of {kind}, and not what was asked for"))
    }

    fn redirected(&self, response: &Response, status: StatusCode) -> Refusal {
        let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or_default();
        // Without what may be secret in it.
        let to = response.url().join(to).ok().map(|to| to.origin().ascii_serialization());
        let message = format!(
            "provider `{}` sends us on to {}, and redirects are not followed",
            self.plugin,
            to.as_deref().unwrap_or("somewhere")
        );
        let hint = format!("put the right URL into `base_url` under [plugins.{}.config]", self.plugin);
        with_status(Failure::InvalidAnswer.refusal(message).hint(hint), status.as_u16(), None)
    }

    /// What became of a request that was not answered.
    fn not_sent(&self, error: &reqwest::Error) -> Refusal {
        if !error.is_connect() {
            return self.cut(format!("the connection was closed before it began ({})", deepest(error)));
        }
        if error.is_timeout() {
            return self.late("could not be connected to", self.timeouts.connect_ms);
        }
        let refusal = Failure::Unreachable.refusal(format!(
            "provider `{}` cannot be reached: {}",
            self.plugin,
            deepest(error)
        ));
        if is_denied(error) {
            // Nothing gets better by itself.
            let hint = grant_hint(self.plugin, self.port);
            return Refusal { code: Code::Denied, retryable: false, ..refusal }.hint(hint);
        }
        if is_untrusted(error) {
            let hint = format!(
                "is this the right server? One with a certificate of its own is trusted by `ca_file` under \
                 [plugins.{}.config]",
                self.plugin
            );
            return Refusal { retryable: false, ..refusal }.hint(hint);
        }
        refusal
            .hint(format!("is `base_url` under [plugins.{}.config] right, and the network up?", self.plugin))
    }

    fn late(&self, what: &str, ms: u64) -> Refusal {
        Failure::Timeout
            .refusal(format!("provider `{}` {what} within {ms} ms", self.plugin))
            .hint(format!("`timeouts` under [plugins.{}.config] say how long is waited", self.plugin))
    }

    fn cut(&self, why: impl std::fmt::Display) -> Refusal {
        Failure::Cut.refusal(format!("the answer of provider `{}` was cut off: {why}", self.plugin))
    }

    fn too_large(&self, limit: &str, bytes: usize) -> Refusal {
        let message =
            format!("provider `{}` sent more than the {bytes} bytes of `limits.{limit}`", self.plugin);
        Refusal { code: Code::TooLarge, ..Failure::InvalidAnswer.refusal(message) }
            .hint(format!("raise it under [plugins.{}.config] if that is no mistake", self.plugin))
    }
}

/// Where connections are made to.
fn reached(server: &Server, url: &Url) -> Url {
    server.proxy.as_deref().and_then(|proxy| Url::parse(proxy).ok()).unwrap_or_else(|| url.clone())
}

/// The certificates of a file.
fn certificates(server: &Server, file: &Path) -> Result<Vec<Certificate>, Refusal> {
    let unreadable = |why: String| {
        let hint = format!("it must be PEM, and granted: under [plugins.{}], sandbox.read", server.plugin);
        unusable(server.plugin, "ca_file", format!("cannot be read: {why}"), &hint)
    };
    let text = std::fs::read(file).map_err(|error| unreadable(error.to_string()))?;
    let certificates = Certificate::from_pem_bundle(&text).map_err(|error| unreadable(deepest(&error)))?;
    if certificates.is_empty() { Err(unreadable("it holds no certificate".into())) } else { Ok(certificates) }
}

fn headers(server: &Server) -> Result<HeaderMap, Refusal> {
    let mut headers = HeaderMap::new();
    for (name, value) in &server.headers {
        let value = HeaderValue::from_str(value)
            .map_err(|_| unusable(server.plugin, name, "has characters that no header may have", ""))?;
        headers.insert(HeaderName::from_static(name), value);
    }
    if let Some((name, key)) = &server.key {
        let mut value = HeaderValue::from_str(key.expose()).map_err(|_| {
            let hint = "a key is one line of plain ASCII";
            unusable(server.plugin, "api_key", "has characters that no key has", hint)
        })?;
        value.set_sensitive(true);
        headers.insert(HeaderName::from_static(name), value);
    }
    Ok(headers)
}

fn is_of_type(response: &Response, wanted: &str) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(wanted)
}

/// The innermost cause, which says what really happened; the outer ones name
/// the URL.
fn deepest(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Whether the system did not let us.
fn is_denied(error: &reqwest::Error) -> bool {
    any_io(error, |error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// Whether the server could not prove who it is.
fn is_untrusted(error: &reqwest::Error) -> bool {
    any_io(error, |error| {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
    })
}

/// Whether any cause is an error of the system that is wanted. Such errors hold
/// others that they do not name as their source.
fn any_io(error: &(dyn Error + 'static), wanted: impl Fn(&io::Error) -> bool) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(&wanted) {
            return true;
        }
        next = match io.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}
