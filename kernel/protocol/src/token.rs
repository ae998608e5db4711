//! Tokens: who shows one speaks as somebody with the capabilities that it was
//! made with.
//!
//! A token is `ksi_ID_SECRET`: eight hexadecimal digits that name it, and 64 that
//! nobody else knows. The daemon keeps a hash of it and nothing more.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Digits of the name.
pub const ID_DIGITS: usize = 8;
/// Digits of the secret: 256 bits.
pub const SECRET_DIGITS: usize = 64;

/// Variable of the environment in which a client finds a token. The daemon has no
/// use for it.
pub const VARIABLE: &str = "KSI_TOKEN";
/// ... and the one that names a file with a token.
pub const FILE_VARIABLE: &str = "KSI_TOKEN_FILE";

const PREFIX: &str = "ksi_";

/// A token as somebody shows it; whether it is one is for the daemon to say. No
/// `Debug` of anything shows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Token(Box<str>);

impl Token {
    /// A text that may be a token. Space around it is none of it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.trim().into())
    }

    /// The token of a name and a secret, each in hexadecimal digits.
    #[must_use]
    pub fn of(id: &str, secret: &str) -> Self {
        Self(format!("{PREFIX}{id}_{secret}").into())
    }

    /// Its name, where it has the form of a token.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        let (id, secret) = self.0.strip_prefix(PREFIX)?.split_once('_')?;
        (is_hex(id, ID_DIGITS) && is_hex(secret, SECRET_DIGITS)).then_some(id)
    }

    /// The whole text. It must not get into a log, an argument or an error.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Make a token. It can give what whoever asks holds, or less: never more, and for
/// no longer. It is shown this once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// What it is for, for people.
    pub name: String,
    /// Its capabilities: `completion.*`, `*.read`.
    pub can: Vec<String>,
    /// Whose data it sees; without it, the asker's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// How long it is valid, milliseconds, at least 1; without it, until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
}

/// A token that was made, for the one time that it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CreatedToken {
    /// To be kept where nobody else reads it.
    pub token: Token,
    /// What is known of it from now on.
    pub info: TokenInfo,
}

/// What is known of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TokenInfo {
    /// Names it in `token:revoke`; its principal is `token:ID`.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// Its capabilities, as far as whoever gave them still has them.
    pub can: Vec<String>,
    /// Whose data it sees.
    pub tenant: String,
    /// Who made it: `user:owner`, `token:k3f9`. It ends with that one.
    pub giver: String,
    /// When, milliseconds since 1970.
    pub created_ms: u64,
    /// From when on it is worth nothing, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
}

/// Tokens, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Tokens {
    /// Those that the asker has made, and those made with them; all of them for
    /// whoever holds `tenant.all`.
    pub tokens: Vec<TokenInfo>,
}

/// Take a token back, and all that were made with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RevokeToken {
    /// Its id, as `token:list` has it.
    pub id: String,
}

/// Tokens that were taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RevokedTokens {
    /// Their ids.
    pub revoked: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_the_form_of_a_token_has_a_name() {
        let secret = "0123456789abcdef".repeat(4);
        let good = Token::of("0a1b2c3d", &secret);
        assert_eq!(good.id(), Some("0a1b2c3d"));
        assert_eq!(Token::new(&format!(" {}\n", good.expose())), good);
        for text in [
            String::new(),
            "ksi_".into(),
            "ksi_0a1b2c3d".into(),
            format!("ksi_0a1b2c3d_{}", &secret[1..]),
            format!("ksi_0a1b2c3d_{secret}0"),
            format!("ksi_0A1B2C3D_{secret}"),
            format!("KSI_0a1b2c3d_{secret}"),
            format!("ksi_0a1b2c3_{secret}"),
            format!("ksi_0a1b2c3d__{}", &secret[1..]),
            format!("ksi_0a1b2c3d_é{}", &secret[2..]),
        ] {
            assert_eq!(Token::new(&text).id(), None, "{text:?}");
        }
    }

    #[test]
    fn no_debug_shows_a_token() {
        let token = Token::of("0a1b2c3d", &"5".repeat(64));
        assert!(!format!("{token:?}").contains("55"));
        let hello = crate::frame::Hello { token: Some(token), ..Default::default() };
        assert!(!format!("{hello:?}").contains("55"));
    }
}
