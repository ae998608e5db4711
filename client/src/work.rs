//! Durable work: waiting for its end, and what it came to.
//!
//! To wait only reads, so it is the one request that is asked again by itself
//! when the connection or the daemon goes away.

use std::time::Duration;

use ksi_protocol::{
    Code, Refusal,
    work::{WaitWork, WorkInfo, WorkState},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use crate::{
    CallOptions, Client, Error,
    client::decode,
    connection::{BACKOFF, BACKOFF_MAX, jittered},
    options::millis,
};

/// Longest time for which one question waits in the daemon.
const ROUND: Duration = Duration::from_secs(600);

/// By how much the limit of a question comes after the time that it waits in
/// the daemon.
const MARGIN: Duration = Duration::from_secs(1);

/// Time without any answer after which the daemon, or the plugin that keeps
/// work, counts as gone.
const AWAY_MAX: Duration = Duration::from_secs(60);

/// How a piece of durable work ended, from [`Client::wait`].
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    info: WorkInfo,
}

impl Outcome {
    /// All that is known of the work; its state is an end.
    #[must_use]
    pub fn info(&self) -> &WorkInfo {
        &self.info
    }

    /// What its handler answered.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] where the work has not ended well, with the refusal
    /// that it ended with, or where its result is no longer kept;
    /// [`Error::Decode`] where the result is not an `R`.
    pub fn decode<R: DeserializeOwned>(&self) -> Result<R, Error> {
        match (&self.info.result, self.info.state) {
            (Some(result), WorkState::Done) => decode(self.info.event.as_str(), &result.0),
            _ => Err(Error::Refused(self.refusal())),
        }
    }

    /// Why there is no result.
    fn refusal(&self) -> Refusal {
        let WorkInfo { request_id: id, refusal, state, .. } = &self.info;
        if let Some(refusal) = refusal {
            return refusal.clone();
        }
        match state {
            WorkState::Expired => {
                Refusal::new(Code::Timeout, format!("work `{id}` expired before it was done"))
            }
            WorkState::Cancelled => Refusal::new(Code::Cancelled, format!("work `{id}` was cancelled")),
            WorkState::Dead => {
                Refusal::new(Code::PluginRestarted, format!("the handler of work `{id}` crashed each time"))
                    .hint(format!("mend the cause, then: ksi work retry {id}"))
            }
            WorkState::Unknown => {
                Refusal::new(Code::Unknown, format!("whether work `{id}` was done is not known"))
                    .hint(format!("look; if it may be done again: ksi work retry {id}"))
            }
            WorkState::Done => {
                Refusal::new(Code::NotFound, format!("work `{id}` is done, and its result is no longer kept"))
                    .hint("results are kept for a limited time, and while there is room: fetch them sooner")
            }
            _ => Refusal::new(Code::Internal, format!("work `{id}` failed, and nothing says why")),
        }
    }
}

/// See [`Client::wait`].
pub(crate) async fn wait(
    client: &Client,
    request_id: &str,
    timeout: Option<Duration>,
) -> Result<Outcome, Error> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let over = || Error::TimedOut { after: timeout.unwrap_or_default() };
    let left = || deadline.map_or(ROUND, |at| at.saturating_duration_since(Instant::now()));
    let mut pause = BACKOFF;
    let mut answered = Instant::now();
    loop {
        let round = left().min(ROUND);
        let asked = ask(client, request_id, round);
        // Without a connection the question would wait for one instead.
        let asked = match deadline {
            Some(deadline) => {
                tokio::time::timeout_at(deadline + MARGIN, asked).await.unwrap_or_else(|_| Err(over()))
            }
            None => asked.await,
        };
        match asked {
            Ok(info) if info.state.is_end() => return Ok(Outcome { info }),
            Ok(_) => (pause, answered) = (BACKOFF, Instant::now()),
            Err(error) if !error.may_pass() || !client.core().options.reconnect => return Err(error),
            Err(error) if answered.elapsed() > AWAY_MAX + round => return Err(error),
            Err(_) => {
                sleep(jittered(pause).min(left())).await;
                pause = (pause * 2).min(BACKOFF_MAX);
            }
        }
        if left().is_zero() {
            return Err(over());
        }
    }
}

/// Asks once where the work stands when it ends, or after `round`.
async fn ask(client: &Client, request_id: &str, round: Duration) -> Result<WorkInfo, Error> {
    let timeout_ms = millis(round);
    let payload = WaitWork { request_id: request_id.to_owned(), timeout_ms: Some(timeout_ms) };
    client.request_with("work:wait", &payload, CallOptions::timeout(round + MARGIN)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use ksi_protocol::{EventName, Payload};

    fn outcome(state: WorkState) -> Outcome {
        let info = WorkInfo {
            principal: None,
            tenant: None,
            request_id: "w-1".into(),
            seq: 1,
            event: EventName::parse("a:b").unwrap(),
            state,
            attempts: 1,
            crashes: 0,
            origin: "session:1".into(),
            correlation_id: None,
            idempotency_key: None,
            expires_ms: None,
            accepted_ms: 0,
            until_ms: None,
            ended_ms: Some(1),
            result: None,
            refusal: None,
        };
        Outcome { info }
    }

    #[test]
    fn every_end_says_what_it_came_to() {
        let mut done = outcome(WorkState::Done);
        assert_eq!(done.decode::<u8>().unwrap_err().refusal().unwrap().code, Code::NotFound);
        done.info.result = Some(Payload(ksi_protocol::encode(&7).unwrap()));
        assert_eq!(done.decode::<u8>().unwrap(), 7);
        assert!(matches!(done.decode::<String>(), Err(Error::Decode { .. })));
        for (state, code) in [
            (WorkState::Failed, Code::Internal),
            (WorkState::Expired, Code::Timeout),
            (WorkState::Cancelled, Code::Cancelled),
            (WorkState::Dead, Code::PluginRestarted),
            (WorkState::Unknown, Code::Unknown),
        ] {
            let mut ended = outcome(state);
            assert_eq!(ended.decode::<u8>().unwrap_err().refusal().unwrap().code, code, "{state}");
            ended.info.refusal = Some(Refusal::new(Code::Denied, "no"));
            assert_eq!(ended.decode::<u8>().unwrap_err().refusal().unwrap().code, Code::Denied, "{state}");
        }
    }
}
