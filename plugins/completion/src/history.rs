//! Conversations that are remembered: on the disk, each tenant's own.
//!
//! | key, under the tenant | value |
//! |---|---|
//! | `head/NAME` | a [`Head`] |
//! | `said/LENGTH:NAME/NUMBER` | a message |
//!
//! # Invariants
//!
//! - A conversation answers one request at a time, so nobody else writes it
//!   meanwhile.
//! - A request that is carried out again takes the place of what it had added.

use ksi_provider::Message;
use ksi_sdk::{
    State,
    prelude::{Bytes, Code, Ctx, Deserialize, Refusal, Serialize},
};

/// Most messages of a conversation that are kept; the oldest go first.
const MESSAGES_MAX: u64 = 400;
/// Largest message that is kept.
const MESSAGE_BYTES_MAX: usize = 512 * 1024;

/// What is known of a conversation.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Head {
    /// Number of the oldest message that is kept, and of the next one.
    first: u64,
    next: u64,
    /// Who added last, and from which number on.
    request: String,
    from: u64,
}

/// A conversation that is remembered.
pub(crate) struct History {
    state: State,
    name: String,
    head: Head,
    /// All that was said before.
    pub(crate) messages: Vec<Message>,
}

fn said(name: &str) -> String {
    format!("said/{}:{name}/", name.len())
}

fn head(name: &str) -> String {
    format!("head/{name}")
}

impl History {
    /// Reads a conversation, up to what this request may have added before.
    pub(crate) async fn read(
        ctx: &Ctx,
        tenant: Option<&str>,
        name: &str,
        request_id: &str,
    ) -> Result<Self, Refusal> {
        let state = ctx.state().of_tenant(tenant);
        let mut found: Head = state.get(head(name)).await?.map(|kept| kept.value).unwrap_or_default();
        if found.request == request_id {
            found.next = found.from;
        }
        let mut messages = Vec::new();
        let mut after: Option<Bytes> = None;
        loop {
            let page = state.scan::<Message>(said(name), after.as_deref(), 1000).await?;
            let last = page.entries.last().map(|entry| entry.key.clone());
            messages.extend(page.entries.into_iter().map(|entry| entry.value));
            match last {
                Some(last) if page.more => after = Some(last),
                _ => break,
            }
        }
        let count = found.next.saturating_sub(found.first);
        messages.truncate(usize::try_from(count).unwrap_or(usize::MAX));
        Ok(Self { state, name: name.to_owned(), head: found, messages })
    }

    /// Adds what was said, and forgets the oldest beyond the limit.
    pub(crate) async fn add(&self, request_id: &str, said_now: &[Message]) -> Result<(), Refusal> {
        if said_now.iter().any(|message| message.bytes() > MESSAGE_BYTES_MAX) {
            let message =
                format!("a message is longer than the {MESSAGE_BYTES_MAX} bytes that are remembered");
            return Err(Refusal::new(Code::TooLarge, message));
        }
        let Head { first, next, .. } = self.head;
        let end = next + said_now.len() as u64;
        let keep_from = end.saturating_sub(MESSAGES_MAX).max(first);
        let key = |number: u64| format!("{}{number:016}", said(&self.name));
        let mut batch = self.state.batch();
        for (number, message) in (next..end).zip(said_now) {
            if number >= keep_from {
                batch = batch.put(key(number), message);
            }
        }
        for number in first..keep_from {
            batch = batch.delete(key(number));
        }
        let now = Head { first: keep_from, next: end, request: request_id.into(), from: next };
        batch.put(head(&self.name), &now).commit().await.map(drop)
    }
}

/// Forgets a conversation; how many messages there were.
pub(crate) async fn forget(ctx: &Ctx, tenant: Option<&str>, name: &str) -> Result<usize, Refusal> {
    let history = History::read(ctx, tenant, name, "").await?;
    let Head { first, next, .. } = history.head;
    let mut batch = history.state.batch().delete(head(name));
    for number in first..next {
        batch = batch.delete(format!("{}{number:016}", said(name)));
    }
    batch.commit().await?;
    Ok(history.messages.len())
}
