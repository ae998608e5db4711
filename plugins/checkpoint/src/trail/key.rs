//! The key that signs heads: made at the first start, readable by its owner
//! alone, with no password, since the daemon must sign without anybody there.

use std::{
    fs::{self, OpenOptions},
    io::{self, Cursor, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use ksi_sdk::{
    prelude::{Code, Refusal},
    trust::{Digest, audit::Head},
};
use minisign::{KeyPair, PublicKey, SecretKey, SecretKeyBox};

/// Signs heads.
pub(super) struct Signer {
    secret: SecretKey,
    public: PublicKey,
}

impl Signer {
    /// The key of a directory; made where there is none.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let (path, public_path) = (dir.join("signing.key"), dir.join("signing.pub"));
        let secret = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(&path)?,
            Err(error) => return Err(error),
            Ok(metadata) if !metadata.is_file() || metadata.mode() & 0o077 != 0 => {
                return Err(io::Error::other(format!("others may read {}: chmod 600 it", path.display())));
            }
            Ok(_) => {
                let boxed =
                    SecretKeyBox::from_string(&fs::read_to_string(&path)?).map_err(io::Error::other)?;
                boxed.into_unencrypted_secret_key().map_err(io::Error::other)?
            }
        };
        let public = PublicKey::from_secret_key(&secret).map_err(io::Error::other)?;
        let text = public.to_box().map_err(io::Error::other)?.into_string();
        // Of use to people; what is signed with is the other one.
        if fs::read_to_string(&public_path).ok().as_deref() != Some(text.as_str()) {
            fs::write(&public_path, text)?;
        }
        Ok(Self { secret, public })
    }

    /// The public key, one line.
    pub(super) fn public_line(&self) -> String {
        self.public.to_base64()
    }

    /// Signs the chain's value after a record.
    pub(super) fn sign(&self, seq: u64, chain: Digest, at_ms: u64) -> Result<Head, Refusal> {
        let message = Cursor::new(Head::message(seq, chain, at_ms));
        let comment = format!("audit trail, record {seq}");
        let signed = minisign::sign(Some(&self.public), &self.secret, message, Some(&comment), Some("KSI"));
        let signed = signed
            .map_err(|error| Refusal::new(Code::Internal, format!("a head cannot be signed: {error}")))?;
        Ok(Head { seq, chain, at_ms, signature: signed.into_string() })
    }
}

fn make(path: &Path) -> io::Result<SecretKey> {
    let secret = KeyPair::generate_unencrypted_keypair().map_err(io::Error::other)?.sk;
    let text = secret.to_box(Some("key of the audit trail of KSI")).map_err(io::Error::other)?.into_string();
    let part = path.with_extension("part");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&part)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&part, path)?;
    Ok(secret)
}
