//! The version of a plugin's state: read before the plugin opens, and raised
//! together with what its migration changes.

use ksi_protocol::{
    Bytes, Code, Refusal,
    space::{Change, Check, STATE_VERSION_KEY},
};

use crate::{link::encode, plugin::Plugin, state::State};

/// Brings the state to the version of the plugin.
///
/// # Errors
///
/// `conflict` where it was written by a newer release of the plugin, what the
/// migration says, or that the state cannot be had.
pub(crate) async fn settle<P: Plugin>(state: State) -> Result<(), Refusal> {
    let key = Bytes::from_static(STATE_VERSION_KEY);
    let found = state.read(key.clone()).await?;
    let stored: u32 = match &found.value {
        Some(value) => ksi_protocol::decode(value)?,
        None => 0,
    };
    if stored == P::STATE_VERSION {
        return Ok(());
    }
    if stored > P::STATE_VERSION {
        let message = format!(
            "the state of plugin {} is of version {stored}, and this release of the plugin knows versions up to {}",
            P::NAME,
            P::STATE_VERSION
        );
        return Err(Refusal::new(Code::Conflict, message)
            .hint("run the release that wrote it, or a newer one; restoring a checkpoint from before takes the state back"));
    }
    let mut batch = P::migrate(state, stored).await?;
    batch.apply.checks.push(Check { key: key.clone(), version: found.version });
    batch.apply.changes.push(Change { key, value: Some(encode(&P::STATE_VERSION)?) });
    batch.commit().await.map(drop)
}
