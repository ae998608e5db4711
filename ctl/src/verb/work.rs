//! `wait` and `cancel`: requests that were accepted, by their id.

use ksi_client::{Class, Item};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    error::{Failure, Result},
    exit::Exit,
    invocation::{Invocation, readable},
    output::Report,
};

/// `completion:get`.
#[derive(Debug, Deserialize)]
struct Found {
    state: String,
    #[serde(default)]
    result: Option<Value>,
    #[serde(default)]
    refusal: Option<ksi_protocol::Refusal>,
}

/// `ksi wait`.
///
/// # Errors
///
/// Fails as the request did, or with a timeout.
pub(super) async fn wait(at: &Invocation, request_id: &str) -> Result<()> {
    let ended = ended(at, request_id);
    let outcome = match at.timeout {
        None => ended.await?,
        Some(time) => tokio::time::timeout(time, ended).await.map_err(|_| {
            Failure::timeout(format!("{request_id} has not ended within {time:?}"))
                .hint(format!("it goes on; cancel it: ksi cancel {request_id}"))
        })??,
    };
    at.out.print(&report(outcome)?)
}

/// The answer's text for people, all of it for programs.
fn report(result: Value) -> Result<Report> {
    let text = result.get("text").and_then(Value::as_str).map(str::to_owned);
    match text {
        Some(text) => Report::text(&result, text),
        None => Ok(Report::data(result)),
    }
}

async fn ended(at: &Invocation, request_id: &str) -> Result<Value> {
    let client = at.connect().await?;
    // Listening comes first: what ends between the two is heard.
    let mut facts = client.subscribe("completion:*", Class::Live).await?;
    loop {
        let found: Found = at.ask(&client, "completion:get", &json!({"request_id": request_id})).await?;
        if let Some(outcome) = outcome(found, request_id) {
            return outcome;
        }
        // A fact of the end, or a gap that may have held it: ask again.
        loop {
            match facts.next().await {
                Some(Item::Event(event)) if is_end(event.event.as_str()) => {
                    if readable(&event.data)?.get("request_id").and_then(Value::as_str) == Some(request_id) {
                        break;
                    }
                }
                Some(Item::Event(_)) => {}
                Some(Item::Gap(_) | Item::Reconnected { .. }) => break,
                None => {
                    return Err(Failure::new(Exit::NotRunning, "not_running", "the daemon has stopped")
                        .hint("start it, then ask again: ksi up"));
                }
            }
        }
    }
}

fn is_end(event: &str) -> bool {
    matches!(event, "completion:result" | "completion:error" | "completion:cancelled")
}

/// How it ended, or `None` where it has not.
fn outcome(found: Found, request_id: &str) -> Option<Result<Value>> {
    match found {
        Found { result: Some(result), .. } => Some(Ok(result)),
        Found { refusal: Some(refusal), .. } => Some(Err(refusal.into())),
        Found { state, .. } if state == "cancelled" => {
            Some(Err(Failure::new(Exit::Failed, "cancelled", format!("{request_id} was cancelled"))))
        }
        Found { .. } => None,
    }
}

/// `ksi cancel`.
///
/// # Errors
///
/// Fails where there is no such request.
pub(super) async fn cancel(at: &Invocation, request_id: &str) -> Result<()> {
    let client = at.connect().await?;
    let reply = at.value(&client, "completion:cancel", &json!({"request_id": request_id})).await?;
    let status = reply.get("status").and_then(Value::as_str).unwrap_or("cancelled");
    let text = format!("{request_id}: {status}");
    at.out.print(&Report::text(&reply, text)?.named(vec![request_id.to_owned()]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ksi_protocol::{Code, Refusal};

    fn found(state: &str) -> Found {
        Found { state: state.into(), result: None, refusal: None }
    }

    #[test]
    fn a_request_ends_with_its_result_its_refusal_or_its_cancellation() {
        assert!(outcome(found("queued"), "r").is_none());
        let done = Found { result: Some(json!({"text": "x"})), ..found("done") };
        assert_eq!(outcome(done, "r").unwrap().unwrap()["text"], "x");
        let refused = Found { refusal: Some(Refusal::new(Code::Timeout, "late")), ..found("failed") };
        assert_eq!(outcome(refused, "r").unwrap().unwrap_err().exit, Exit::Timeout);
        assert_eq!(outcome(found("cancelled"), "r").unwrap().unwrap_err().code, "cancelled");
    }
}
