//! The public half of a minisign key.

use std::{fmt, str::FromStr};

use minisign_verify::{PublicKey, Signature};

/// A public key, as one line of base64 or as the two lines of a `.pub` file.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    inner: PublicKey,
    line: String,
}

/// Why a text is no public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no minisign public key, which is one line of 56 letters that begins with RW")]
pub struct NotAKey;

/// Why a text is not what the holder of a key has signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unverified {
    /// The signature has not the form of one.
    #[error("the signature has not the form of a minisign signature")]
    Form,
    /// Another key has signed.
    #[error("it is signed by another key")]
    OtherKey,
    /// The text or the signature was changed.
    #[error("the signature does not fit: the text or the signature was changed")]
    Changed,
}

impl Key {
    /// Whether the holder of the key has signed this text.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the signature. One in minisign's old form,
    /// without a hash of the text, is not taken.
    pub fn verify(&self, text: &[u8], signature: &str) -> Result<(), Unverified> {
        let signature = Signature::decode(signature).map_err(|_| Unverified::Form)?;
        self.inner.verify(text, &signature, false).map_err(|error| match error {
            minisign_verify::Error::UnexpectedKeyId => Unverified::OtherKey,
            minisign_verify::Error::InvalidSignature => Unverified::Changed,
            _ => Unverified::Form,
        })
    }
}

impl FromStr for Key {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let mut lines = text.trim().lines().map(str::trim);
        let line = match (lines.next(), lines.next(), lines.next()) {
            (Some(line), None, _) => line,
            (Some(comment), Some(line), None) if comment.starts_with("untrusted comment:") => line,
            _ => return Err(NotAKey),
        };
        let inner = PublicKey::from_base64(line).map_err(|_| NotAKey)?;
        Ok(Self { inner, line: line.to_owned() })
    }
}

/// The one line.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}
