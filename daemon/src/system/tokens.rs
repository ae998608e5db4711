//! `token:*`, which read and write a file: on a thread that may wait for it.

use std::sync::Arc;

use ksi_identity::Principal;
use ksi_protocol::{
    Code, Refusal,
    system::Nothing,
    token::{CreateToken, CreatedToken, RevokeToken, RevokedTokens, Tokens},
};

use super::System;
use crate::identity::Identity;

impl System {
    pub(super) async fn create_token(
        self: Arc<Self>,
        asker: Arc<Principal>,
        ask: CreateToken,
    ) -> Result<CreatedToken, Refusal> {
        self.with_file(move |identity, now_ms| identity.create(&asker, ask, now_ms)).await
    }

    pub(super) async fn list_tokens(
        self: Arc<Self>,
        asker: Arc<Principal>,
        Nothing {}: Nothing,
    ) -> Result<Tokens, Refusal> {
        let tokens = self.with_file(move |identity, now_ms| identity.list(&asker, now_ms)).await?;
        Ok(Tokens { tokens })
    }

    pub(super) async fn revoke_token(
        self: Arc<Self>,
        asker: Arc<Principal>,
        ask: RevokeToken,
    ) -> Result<RevokedTokens, Refusal> {
        let revoked =
            self.with_file(move |identity, now_ms| identity.revoke(&asker, &ask.id, now_ms)).await?;
        self.hub.end_revoked();
        Ok(revoked)
    }

    async fn with_file<A: Send + 'static>(
        &self,
        work: impl FnOnce(&Identity, u64) -> Result<A, Refusal> + Send + 'static,
    ) -> Result<A, Refusal> {
        let hub = self.hub.clone();
        let done = tokio::task::spawn_blocking(move || work(&hub.identity, hub.now_ms())).await;
        done.unwrap_or_else(|_| Err(Refusal::new(Code::Internal, "it panicked; the log says more")))
    }
}
