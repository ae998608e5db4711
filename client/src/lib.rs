//! The async Rust client of the KSI daemon.
//!
//! A [`Client`] is one connection to the daemon's Unix socket. It asks
//! ([`Client::request`]), asks for a stream ([`Client::stream`]), tells
//! ([`Client::emit`]) and listens ([`Client::subscribe`]); any number of these
//! may be under way at once, from any number of tasks, and an answer may
//! overtake another. A clone is another handle on the same connection. What
//! must not be lost is submitted and waited for ([`Client::submit`],
//! [`Client::wait`]) and followed ([`Client::follow`]).
//!
//! A connection that is lost is made anew ([`Options::reconnect`]).
//!
//! What it refuses to do: repeat a request by itself. A request whose
//! connection breaks ends with [`Error::Lost`], because nobody knows whether it
//! was done; a key makes it safe to submit durable work again.
//!
//! ```
//! # use ksi_client::{Client, Error, Options, testing::Echo};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Say {
//!     text: String,
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Error> {
//! # let daemon = Echo::start()?;
//! # let options = Options::new(daemon.socket());
//! // let options = Options::from_env();
//! let client = Client::connect(options).await?;
//! let said: Say = client.request("echo:say", &Say { text: "hello".into() }).await?;
//! assert_eq!(said.text, "hello");
//! # Ok(())
//! # }
//! ```
//!
//! # Invariants
//!
//! - Dropping tells the daemon: a dropped request future or [`Stream`] cancels,
//!   a dropped [`Subscription`] unsubscribes.
//! - A consumer that is slow never holds up another: each stream and
//!   subscription has a bounded queue of its own, and the task that reads the
//!   socket never waits for any of them.
//!
//! # Failure
//!
//! The daemon's "no" is [`Error::Refused`]; every other variant means that no
//! answer came. [`Error::is_retryable`] says whether the same call may succeed
//! later.

mod client;
mod connection;
mod error;
mod follow;
mod incoming;
mod options;
mod output;
mod pending;
mod start;
mod stream;
mod subscription;
#[doc(hidden)]
pub mod testing;
mod work;

pub use client::{Client, Empty};
pub use error::{Error, Fault, Loss};
pub use follow::{FollowOptions, Follower};
pub use ksi_protocol::{
    Bytes, Code, EventName, Pattern, Refusal,
    frame::{Class, Event, Gap, Welcome},
    work::{Accepted, WorkInfo, WorkState},
};
pub use options::{CallOptions, Options};
pub use start::StartFailure;
pub use stream::{Part, Stream};
pub use subscription::{Item, Subscription};
pub use work::Outcome;

/// Locks; a poisoned lock is taken as it is, because every critical section of
/// this crate leaves its data whole at each step that could panic.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Puts the waker of `cx` in `place`. An old one is handed back, to be dropped
/// outside the lock: dropping a waker may run foreign code.
fn keep_waker(place: &mut Option<std::task::Waker>, cx: &std::task::Context<'_>) -> Option<std::task::Waker> {
    match place {
        Some(waker) if waker.will_wake(cx.waker()) => None,
        _ => place.replace(cx.waker().clone()),
    }
}
