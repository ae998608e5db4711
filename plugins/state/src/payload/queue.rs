//! Payloads of the `state:*` events that have to do with queues.

use ksi_sdk::{
    prelude::{Deserialize, JsonSchema, Serialize, schemars},
    protocol::Payload,
};

use super::global;

/// Put an item at the end of a queue, which needs no making. It is safe when
/// this is answered.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Push {
    /// The namespace of the queue.
    #[serde(default = "global")]
    #[schemars(length(min = 1, max = 128))]
    pub namespace: String,
    /// The queue: any text, at most 512 bytes. May be written `key`.
    #[serde(alias = "key")]
    #[schemars(length(min = 1, max = 512))]
    pub queue: String,
    /// The item: anything; at most 1,024,000 bytes and 48 levels deep.
    pub data: Payload,
    /// The item is dropped if nobody has taken it after this time.
    #[schemars(range(min = 1, max = 315_360_000))]
    pub ttl_seconds: Option<i64>,
}

/// The item is in the queue.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct PushAnswer {
    /// Names the item in this queue.
    pub id: u64,
    /// Items in the queue now, those under a lease too.
    pub length: u64,
    /// When it will be dropped, milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
}

/// Take the oldest items of a queue. Without `lease_seconds` they are gone
/// with this: each is handed out at most once. With it they come back unless
/// `state:ack` says in time that they are done: each is handed out at least
/// once.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pop {
    /// The namespace of the queue.
    #[serde(default = "global")]
    #[schemars(length(min = 1, max = 128))]
    pub namespace: String,
    /// The queue. May be written `key`.
    #[serde(alias = "key")]
    #[schemars(length(min = 1, max = 512))]
    pub queue: String,
    /// How many at most; 1 if left out. Large items may make it fewer.
    #[schemars(range(min = 1, max = 100))]
    pub count: Option<i64>,
    /// Time to say that they are done, after which they come back.
    #[schemars(range(min = 1, max = 86_400))]
    pub lease_seconds: Option<i64>,
    /// How long to wait for an item where there is none.
    #[schemars(range(min = 0, max = 86_400_000))]
    pub wait_ms: Option<i64>,
    /// An item that was handed out so often and came back is set aside as dead instead.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_deliveries: Option<i64>,
}

/// What was taken; nothing where the queue had nothing.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct PopAnswer {
    /// The items, oldest first.
    pub items: Vec<Popped>,
    /// Names the lease, where one was asked for and there is something under it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<u64>,
    /// When the items come back, milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_until_ms: Option<u64>,
}

/// A taken item.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Popped {
    /// Names it in its queue.
    pub id: u64,
    /// What was pushed.
    pub data: Payload,
    /// How often it was handed out under a lease, this time too.
    pub deliveries: u64,
    /// When it was pushed, milliseconds since 1970.
    pub pushed_at_ms: u64,
}

/// Say that items are done: they leave the queue, dead ones too.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    /// The namespace of the queue.
    #[serde(default = "global")]
    #[schemars(length(min = 1, max = 128))]
    pub namespace: String,
    /// The queue. May be written `key`.
    #[serde(alias = "key")]
    #[schemars(length(min = 1, max = 512))]
    pub queue: String,
    /// The items.
    #[schemars(length(min = 1, max = 1000))]
    pub ids: Vec<u64>,
    /// Only those that are still under this lease: others may have been handed out again.
    pub lease: Option<u64>,
}

/// Give items back: they can be taken again at once, or after a while. A dead
/// one begins anew.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nack {
    /// The namespace of the queue.
    #[serde(default = "global")]
    #[schemars(length(min = 1, max = 128))]
    pub namespace: String,
    /// The queue. May be written `key`.
    #[serde(alias = "key")]
    #[schemars(length(min = 1, max = 512))]
    pub queue: String,
    /// The items.
    #[schemars(length(min = 1, max = 1000))]
    pub ids: Vec<u64>,
    /// Only those that are still under this lease: others may have been handed out again.
    pub lease: Option<u64>,
    /// Not before this time.
    #[schemars(range(min = 0, max = 86_400_000))]
    pub delay_ms: Option<i64>,
}

/// Which items it was done to.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct Settled {
    /// These.
    pub ids: Vec<u64>,
    /// Not these: they are not in the queue, or under another lease.
    pub missing: Vec<u64>,
}

/// Look at a queue without taking anything.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// The namespace of the queue.
    #[serde(default = "global")]
    #[schemars(length(min = 1, max = 128))]
    pub namespace: String,
    /// The queue. May be written `key`.
    #[serde(alias = "key")]
    #[schemars(length(min = 1, max = 512))]
    pub queue: String,
    /// Items to show, oldest first; 0, none, if left out. Large items may make it fewer.
    #[schemars(range(min = 0, max = 1000))]
    pub limit: Option<i64>,
    /// Only items after this one: `next` of the page before.
    pub after: Option<u64>,
}

/// What is in a queue. One that does not exist is empty.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct QueueAnswer {
    /// Items in the queue, but for dead ones.
    pub length: u64,
    /// Those that can be taken now.
    pub ready: u64,
    /// All others: under a lease, given back with a delay, or being handed out just now.
    pub leased: u64,
    /// Those set aside, having been handed out too often.
    pub dead: u64,
    /// Bytes of all.
    pub bytes: u64,
    /// When the oldest was pushed, milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_at_ms: Option<u64>,
    /// The items, where some were asked for.
    pub items: Vec<QueueItem>,
    /// Where the next page begins, for `after`; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// Where an item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ItemState {
    /// It can be taken.
    Ready,
    /// It is under a lease.
    Leased,
    /// It was given back with a delay.
    Delayed,
    /// It was handed out too often.
    Dead,
}

/// An item that is shown.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct QueueItem {
    /// Names it in its queue.
    pub id: u64,
    /// Where it stands.
    pub state: ItemState,
    /// What was pushed.
    pub data: Payload,
    /// How often it was handed out under a lease.
    pub deliveries: u64,
    /// When it was pushed, milliseconds since 1970.
    pub pushed_at_ms: u64,
    /// When it will be dropped, milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
    /// When it comes back, milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_until_ms: Option<u64>,
}

/// Remove everything that is in a queue now, items under a lease and dead ones
/// too.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Purge {
    /// The namespace of the queue.
    #[serde(default = "global")]
    #[schemars(length(min = 1, max = 128))]
    pub namespace: String,
    /// The queue. May be written `key`.
    #[serde(alias = "key")]
    #[schemars(length(min = 1, max = 512))]
    pub queue: String,
}

/// The queue was emptied.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct PurgeAnswer {
    /// Items that were removed.
    pub removed: u64,
}
