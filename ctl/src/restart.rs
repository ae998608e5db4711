//! A new daemon in the place of the running one.
//!
//! The daemon does it itself (`system:restart`): the new process takes over
//! the socket, so nobody is turned away meanwhile. Here it is only asked for
//! and awaited. A daemon that cannot (an older release) is stopped and started.

use std::time::{Duration, Instant};

use ksi_client::{Client, Error};
use ksi_protocol::{Code, system::Health};
use serde_json::json;

use crate::{
    error::{Failure, Result},
    exit::Exit,
    invocation::{Invocation, encoded},
    start::{self, GRACE_UNKNOWN, Pauses, START_TIMEOUT, Started, Stopped, ready},
    time::whole_ms,
};

/// Time for which nobody at all may listen before this starts a daemon itself:
/// then the new one has died on the way.
const ABSENCE_MAX: Duration = Duration::from_secs(5);

/// How a restart went.
pub(crate) enum Restarted {
    /// There was none, or one that had to be stopped first.
    Started {
        /// What ran before.
        before: Stopped,
        /// What runs now.
        started: Started,
    },
    /// The new daemon has taken over.
    TookOver {
        /// Process id of the one before.
        before: u32,
        /// What the new one says of itself, where that may be read.
        health: Option<Health>,
        /// From the question until it was ready, or answered where that is all that
        /// is seen of it.
        took: Duration,
    },
}

/// Restarts the daemon, and returns when the new one is ready.
///
/// # Errors
///
/// Says why there is no new one; whether the old one still runs, `ksi status`
/// says.
pub(crate) async fn restart(at: &Invocation, grace: Option<Duration>) -> Result<Restarted> {
    let began = Instant::now();
    let client = match at.connect().await {
        Ok(client) => client,
        Err(failure) if failure.exit == Exit::NotRunning => return anew(at, grace).await,
        Err(failure) => return Err(failure),
    };
    let boot = client.welcome().boot;
    let before = start::pid(at, &client).await?;
    let patience = grace.unwrap_or(GRACE_UNKNOWN) + START_TIMEOUT;
    let deadline = began + at.timeout.unwrap_or(patience);
    let grace_ms = grace.map(whole_ms);
    let payload = encoded(&json!({ "grace_ms": grace_ms }))?;
    match client.request_raw("system:restart", payload, at.call_within(patience)).await {
        // It may go before its answer is read.
        Ok(_) | Err(Error::Lost(_)) => {}
        Err(Error::Refused(refusal)) if must_be_stopped(refusal.code) => {
            drop(client);
            return anew(at, grace).await;
        }
        Err(error) => return Err(error.into()),
    }
    drop(client);
    match awaited(at, &boot, deadline).await {
        Ok(Some(health)) => Ok(Restarted::TookOver { before, health: Some(health), took: began.elapsed() }),
        // Who may restart it need not be let read how it does; it is there.
        Err(failure) if failure.exit == Exit::Denied => {
            Ok(Restarted::TookOver { before, health: None, took: began.elapsed() })
        }
        Ok(None) => anew(at, grace).await,
        Err(failure) => Err(failure),
    }
}

/// Waits until a daemon of another boot is ready; `None` where nobody comes.
///
/// # Errors
///
/// Fails where the old one is still there at the deadline.
pub(crate) async fn awaited(at: &Invocation, boot: &str, deadline: Instant) -> Result<Option<Health>> {
    let Some(client) = successor(at, boot, deadline).await? else { return Ok(None) };
    ready(at, &client, deadline).await.map(Some)
}

/// Whether a refusal of `system:restart` means that stopping is the only way:
/// an older release does not know it, and one that is stopping cannot.
fn must_be_stopped(code: Code) -> bool {
    matches!(code, Code::UnknownEvent | Code::NoOwner | Code::ShuttingDown)
}

async fn anew(at: &Invocation, grace: Option<Duration>) -> Result<Restarted> {
    let before = start::stop(at, grace).await?;
    Ok(Restarted::Started { before, started: start::start(at).await? })
}

/// The connection to a daemon of another boot; `None` where nobody comes.
async fn successor(at: &Invocation, boot: &str, deadline: Instant) -> Result<Option<Client>> {
    let mut pauses = Pauses::new();
    let mut absent: Option<Instant> = None;
    loop {
        match at.connect().await {
            Ok(client) if client.welcome().boot != boot => return Ok(Some(client)),
            Err(failure) if failure.exit == Exit::NotRunning => {
                let since = *absent.get_or_insert_with(Instant::now);
                if since.elapsed() > ABSENCE_MAX {
                    return Ok(None);
                }
            }
            // The old one is still there, or the new one does not answer yet.
            Ok(_) | Err(_) => absent = None,
        }
        if Instant::now() > deadline {
            return Err(Failure::timeout("no new daemon has taken over").hint("see why: ksi logs"));
        }
        pauses.next().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_daemon_that_cannot_hand_over_is_stopped() {
        for (code, expected) in [
            (Code::UnknownEvent, true),
            (Code::ShuttingDown, true),
            (Code::Denied, false),
            (Code::Unavailable, false),
            (Code::Conflict, false),
        ] {
            assert_eq!(must_be_stopped(code), expected, "{code}");
        }
    }
}
