//! A secret in a plugin's configuration.

use std::fmt;

use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

/// A value that must not be shown: an API key, a token, a password.
///
/// It can be read out of a configuration, and not written anywhere: it has no
/// `Display` and no `Serialize`, `Debug` prints `***`, and its memory is
/// cleared when it is dropped. Users write the name of a secret, and the plugin
/// gets its value; see `secret:NAME` in `events.toml`.
///
/// ```
/// use ksi_sdk::{Secret, prelude::*};
///
/// #[derive(Debug, Default, Deserialize)]
/// struct Config {
///     api_key: Secret,
/// }
///
/// let config: Config = serde_json::from_str(r#"{"api_key": "sk-123"}"#).unwrap();
/// assert_eq!(format!("{config:?}"), "Config { api_key: *** }");
/// assert_eq!(config.api_key.expose(), "sk-123");
/// ```
///
/// A secret cannot be serialized:
///
/// ```compile_fail
/// fn leak(secret: &ksi_sdk::Secret) -> String {
///     serde_json::to_string(secret).unwrap()
/// }
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The value itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(Zeroizing::new(value))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // What an error of serde would quote is the type that it found, and for
        // a text that is not the text itself.
        String::deserialize(deserializer).map(Self::from)
    }
}
