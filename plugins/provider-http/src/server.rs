//! Where a provider is, how long it may take, and how much it may send.
//!
//! What cannot work is refused at the start, with what to change: a URL that is
//! none, a key that would travel in the clear, a port that the sandbox does not
//! let through.

use std::{
    fmt,
    io::ErrorKind,
    net::{Ipv4Addr, TcpStream, UdpSocket},
};

use ksi_sdk::{
    Secret,
    prelude::{Code, Deserialize, Duration, Refusal, json},
};
use reqwest::Url;

/// A group of IPv4 multicast. TCP cannot connect to one, and says so before it
/// sends anything; but the sandbox is asked first.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
/// Where names are looked up.
const DNS_PORT: u16 = 53;
/// Longest time that may be configured: a day.
const MS_MAX: u64 = 86_400_000;
/// Largest answer that may be configured: it must fit a frame of the wire, with
/// what is written around it.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long a server may take. 0 is not "for ever": everything has an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Until there is a connection, TLS included.
    pub connect_ms: u64,
    /// From then until the first byte of the answer: the time in which a model
    /// reads its input.
    pub first_byte_ms: u64,
    /// Silence in the middle of an answer.
    pub between_bytes_ms: u64,
    /// All together, whatever a request asks for.
    pub total_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect_ms: 10_000, first_byte_ms: 120_000, between_bytes_ms: 60_000, total_ms: 600_000 }
    }
}

/// How much a server may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest line of a stream, and largest event, in bytes.
    pub line_bytes: usize,
    /// Largest answer, with all that is around its text, in bytes.
    pub answer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { line_bytes: 1024 * 1024, answer_bytes: 16 * 1024 * 1024 }
    }
}

/// A server, as a plugin's configuration describes it.
#[derive(Debug, Clone)]
pub struct Server {
    /// The plugin, for messages and hints.
    pub plugin: &'static str,
    /// Where all paths begin, without a slash at the end.
    pub base_url: String,
    /// Headers that say who asks, by their names; secret.
    pub key: Option<(&'static str, Secret)>,
    /// Headers that every request has.
    pub headers: Vec<(&'static str, String)>,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// How much it may send.
    pub limits: Limits,
    /// A proxy that all requests go through; none is taken from the environment.
    pub proxy: Option<String>,
    /// Whether a key may go over plain HTTP to another machine.
    pub allow_http: bool,
}

/// What of the configuration is wrong, as a refusal to start.
#[must_use]
pub fn unusable(plugin: &str, key: &str, why: impl fmt::Display, hint: &str) -> Refusal {
    Refusal::new(Code::InvalidPayload, format!("{plugin}: `{key}` {why}"))
        .hint(hint)
        .details(json!({ "path": key }))
}

impl Server {
    /// Checks everything that can be known without asking the server.
    ///
    /// # Errors
    ///
    /// Names the key of the configuration and what to do.
    pub(crate) fn check(&self) -> Result<Url, Refusal> {
        let url = self.check_url("base_url", &self.base_url)?;
        let secure = url.scheme() == "https" || is_this_machine(&url) || self.allow_http;
        if self.key.is_some() && !secure {
            let hint = "use https, leave the key out, or set `allow_http = true` if you trust the network";
            let why = "is plain HTTP to another machine, and the key could be read on its way";
            return Err(unusable(self.plugin, "base_url", why, hint));
        }
        self.check_numbers()?;
        // What a connection is made to.
        let reached = match &self.proxy {
            Some(proxy) => self.check_url("proxy", proxy)?,
            None => url.clone(),
        };
        self.check_grants(&reached)?;
        Ok(url)
    }

    fn check_url(&self, key: &str, text: &str) -> Result<Url, Refusal> {
        let wrong = |why: &str| unusable(self.plugin, key, why, "write it as `https://HOST[:PORT][/PATH]`");
        let url = Url::parse(text).map_err(|error| wrong(&format!("is no URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong("is neither http nor https"));
        }
        // A key belongs where it can be kept out of sight.
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("has a user or a password in it"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("has a query or a fragment"));
        }
        Ok(url)
    }

    fn check_numbers(&self) -> Result<(), Refusal> {
        let Timeouts { connect_ms, first_byte_ms, between_bytes_ms, total_ms } = self.timeouts;
        let bytes = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
        let bytes_max = bytes(ANSWER_BYTES_MAX);
        for (key, value, min, max) in [
            ("timeouts.connect_ms", connect_ms, 1, MS_MAX),
            ("timeouts.first_byte_ms", first_byte_ms, 1, MS_MAX),
            ("timeouts.between_bytes_ms", between_bytes_ms, 1, MS_MAX),
            ("timeouts.total_ms", total_ms, 1, MS_MAX),
            ("limits.line_bytes", bytes(self.limits.line_bytes), 256, bytes_max),
            ("limits.answer_bytes", bytes(self.limits.answer_bytes), 256, bytes_max),
        ] {
            if !(min..=max).contains(&value) {
                let why = format!("is {value}; accepted is {min} to {max}");
                return Err(unusable(self.plugin, key, why, "`ksi config show` prints it with its source"));
            }
        }
        Ok(())
    }

    /// Whether the sandbox lets connections to this place through, where it can
    /// be tried without anybody's noticing.
    fn check_grants(&self, url: &Url) -> Result<(), Refusal> {
        let port = url.port_or_known_default().unwrap_or(443);
        let denied = TcpStream::connect((NOWHERE, port))
            .is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
        if denied {
            return Err(self.not_granted(port));
        }
        let by_name = url.domain().is_some_and(|name| name != "localhost");
        let mute = by_name
            && UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
                .is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
        if mute { Err(self.not_granted(DNS_PORT)) } else { Ok(()) }
    }

    fn not_granted(&self, port: u16) -> Refusal {
        let why = match port {
            DNS_PORT => "port 53, which looks up names, is not granted to the plugin".to_owned(),
            port => format!("port {port} is not granted to the plugin"),
        };
        Refusal::new(Code::Denied, format!("{}: {} cannot be reached: {why}", self.plugin, self.base_url))
            .hint(grant_hint(self.plugin, port))
            .details(json!({ "path": "base_url", "port": port }))
    }
}

/// How a port is granted.
pub(crate) fn grant_hint(plugin: &str, port: u16) -> String {
    format!(
        "in ksi.toml, under [plugins.{plugin}]: sandbox.network = [{port}], with the ports it has already"
    )
}

/// Whether a URL leads to this machine.
fn is_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl Timeouts {
    /// Time for a request that asks for one, or that its asker will not wait for
    /// beyond one.
    #[must_use]
    pub fn total(&self, asked_ms: Option<u64>, left: Option<Duration>) -> Duration {
        let most = Duration::from_millis(self.total_ms);
        let asked = asked_ms.map_or(most, Duration::from_millis);
        most.min(asked).min(left.unwrap_or(most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(base_url: &str) -> Server {
        Server {
            plugin: "openai",
            base_url: base_url.into(),
            key: Some(("authorization", Secret::from("k".to_owned()))),
            headers: Vec::new(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            proxy: None,
            allow_http: false,
        }
    }

    #[test]
    fn a_key_goes_in_the_clear_to_this_machine_only() {
        for url in ["https://api.example/v1", "http://localhost:1/v1", "http://127.0.0.1:1", "http://[::1]:1"]
        {
            assert!(server(url).check().is_ok(), "{url}");
        }
        for url in ["http://192.168.1.5:8000/v1", "http://example.org", "http://localhost.example.org"] {
            let refusal = server(url).check().unwrap_err();
            assert!(refusal.hint.contains("allow_http"), "{url}: {refusal}");
            assert!(Server { allow_http: true, ..server(url) }.check().is_ok(), "{url}");
            assert!(Server { key: None, ..server(url) }.check().is_ok(), "{url}");
        }
    }

    #[test]
    fn what_is_no_base_url_is_refused_with_its_key() {
        for url in ["", "api.example", "ftp://a", "https://u:p@a", "https://a?key=1", "https://a#b"] {
            let refusal = server(url).check().unwrap_err();
            assert_eq!(refusal.details.unwrap()["path"], "base_url", "{url}");
        }
        let proxied = Server { proxy: Some("socks5://a".into()), ..server("https://a") };
        assert_eq!(proxied.check().unwrap_err().details.unwrap()["path"], "proxy");
    }

    #[test]
    fn limits_have_their_ranges() {
        let timeouts = Timeouts { first_byte_ms: 0, ..Timeouts::default() };
        let refusal = Server { timeouts, ..server("https://a") }.check().unwrap_err();
        assert_eq!(refusal.details.unwrap()["path"], "timeouts.first_byte_ms");
        let limits = Limits { line_bytes: 1, ..Limits::default() };
        let refusal = Server { limits, ..server("https://a") }.check().unwrap_err();
        assert_eq!(refusal.details.unwrap()["path"], "limits.line_bytes");
    }

    #[test]
    fn the_shortest_time_counts() {
        let timeouts = Timeouts { total_ms: 1000, ..Timeouts::default() };
        let seconds = Duration::from_secs;
        assert_eq!(timeouts.total(None, None), seconds(1));
        assert_eq!(timeouts.total(Some(5000), Some(seconds(3))), seconds(1));
        assert_eq!(timeouts.total(Some(200), Some(seconds(3))), Duration::from_millis(200));
        assert_eq!(timeouts.total(Some(500), Some(Duration::from_millis(100))), Duration::from_millis(100));
    }
}
