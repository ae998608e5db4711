//! HTTP, for the verbs that speak to other servers than the daemon.

use reqwest::{Client, ClientBuilder};

use crate::error::{Failure, Result};

/// A client with this program's name, and with what else is `configured`.
///
/// # Errors
///
/// Fails where the system has nothing by which servers are trusted.
pub(crate) fn client(configured: impl FnOnce(ClientBuilder) -> ClientBuilder) -> Result<Client> {
    // Whoever runs first installs it; a second attempt finds it there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = Client::builder().user_agent(concat!("ksi/", env!("CARGO_PKG_VERSION")));
    configured(builder).build().map_err(|error| {
        Failure::failed(format!("no way to a server: {error}"))
            .hint("install your system's CA certificates (the package is mostly called `ca-certificates`)")
    })
}
