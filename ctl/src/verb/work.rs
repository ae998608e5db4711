//! `work …`, `wait` and `cancel`: durable work, by its id.
//!
//! What was accepted goes on whoever asks for it, so nothing here belongs to
//! the connection that submitted it.

use ksi_client::{Error, Outcome, WorkInfo, WorkState};
use ksi_protocol::{
    Pattern,
    json::timestamp,
    work::{ListWork, WorkName, WorkPage},
};
use serde_json::Value;

use crate::{
    args::{self, Work, WorkPart},
    error::{Failure, Result},
    exit::Exit,
    invocation::{Invocation, readable},
    output::{Report, Table, millis},
    time::now_ms,
};

/// Work that one question lists.
const PAGE: usize = 500;

/// Characters of a reason in a table.
const REASON_CHARS: usize = 60;

/// `ksi work …`.
///
/// # Errors
///
/// Fails as the daemon refuses.
pub(super) async fn run(at: &Invocation, work: Work) -> Result<()> {
    match work {
        Work::List(list) => self::list(at, "work:list", list.state, &list.part).await,
        Work::Dead(part) => self::list(at, "work:dead", Vec::new(), &part).await,
        Work::Get(name) => get(at, &name.request_id).await,
        Work::Wait(name) => wait(at, &name.request_id).await,
        Work::Cancel(name) => cancel(at, &name.request_id).await,
        Work::Retry(name) => change(at, "work:retry", name).await,
        Work::Drop(name) => drop(at, name).await,
    }
}

/// `ksi wait`.
///
/// # Errors
///
/// Ends with 7 when the time is over, with 4 where there is no such work, and
/// with 1 where the work has failed, as it did.
pub(super) async fn wait(at: &Invocation, request_id: &str) -> Result<()> {
    let client = at.connect_lasting().await?;
    match at.outliving(&client, client.wait(request_id, at.timeout)).await {
        Ok(outcome) => at.out.print(&report(&outcome)?),
        Err(Error::TimedOut { after }) => {
            Err(Failure::timeout(format!("{request_id} has not ended within {after:?}")).hint(format!(
                "it goes on; where it stands: ksi work get {request_id}; cancel it: ksi cancel {request_id}"
            )))
        }
        Err(error) => Err(error.into()),
    }
}

/// The answer's text for people, all of it for programs.
fn report(outcome: &Outcome) -> Result<Report> {
    let info = outcome.info();
    let result: ksi_protocol::Payload = outcome.decode().map_err(|error| match info.state {
        WorkState::Done => Failure::from(error),
        // Its own code says why; the exit code, that it was not this command that failed.
        _ => Failure { exit: Exit::Failed, ..Failure::from(error) },
    })?;
    let result = readable(&result.0)?;
    let text = result.get("text").and_then(Value::as_str).map(str::to_owned);
    match text {
        Some(text) => Report::text(&result, text),
        None => Ok(Report::data(result)),
    }
}

/// `ksi cancel`.
///
/// # Errors
///
/// Fails where there is no such work.
pub(super) async fn cancel(at: &Invocation, request_id: &str) -> Result<()> {
    let name = args::WorkName { request_id: request_id.to_owned() };
    change(at, "work:cancel", name).await
}

/// Asks for a change of one piece of work, and says how it stands then.
async fn change(at: &Invocation, event: &str, name: args::WorkName) -> Result<()> {
    let client = at.connect().await?;
    let info: WorkInfo = at.ask(&client, event, &WorkName { request_id: name.request_id }).await?;
    let id = &info.request_id;
    at.out.print(&Report::text(&info, format!("{id}: {}", info.state))?.named(vec![id.clone()]))
}

async fn drop(at: &Invocation, name: args::WorkName) -> Result<()> {
    let client = at.connect().await?;
    let info: WorkInfo = at.ask(&client, "work:drop", &WorkName { request_id: name.request_id }).await?;
    let id = &info.request_id;
    at.out.print(
        &Report::text(&info, format!("{id}: forgotten, it was {}", info.state))?.named(vec![id.clone()]),
    )
}

async fn get(at: &Invocation, request_id: &str) -> Result<()> {
    let client = at.connect().await?;
    let name = WorkName { request_id: request_id.to_owned() };
    let info: WorkInfo = at.ask(&client, "work:get", &name).await?;
    at.out.print(&Report::text(&info, described(&info, now_ms()))?.named(vec![info.request_id.clone()]))
}

/// One piece of work for a person, a line for each thing that is known.
fn described(info: &WorkInfo, now_ms: u64) -> String {
    let mut lines = vec![format!("{} {}", info.request_id, info.state)];
    let mut line = |name: &str, text: String| lines.push(format!("  {name:<12} {text}"));
    line("event", info.event.to_string());
    line(
        "accepted",
        format!("{} ago, at {}, as {}", age(info.accepted_ms, now_ms), at(info.accepted_ms), info.seq),
    );
    line("origin", info.origin.clone());
    line("attempts", info.attempts.to_string());
    if info.crashes > 0 {
        line("crashes", info.crashes.to_string());
    }
    if let Some(id) = &info.correlation_id {
        line("correlation", id.clone());
    }
    if let Some(key) = &info.idempotency_key {
        line("key", key.clone());
    }
    match (info.ended_ms, info.until_ms) {
        (Some(ended), _) => line("ended", format!("{} ago, at {}", age(ended, now_ms), at(ended))),
        (None, Some(until)) if info.state == WorkState::Waiting => {
            line("next", format!("in {}", age(now_ms, until)));
        }
        (None, Some(until)) => line("given up", format!("in {}", age(now_ms, until))),
        (None, None) => {}
    }
    if let Some(expires) = info.expires_ms.filter(|_| info.state != WorkState::Leased) {
        line("expires", format!("in {}", age(now_ms, expires)));
    }
    if let Some(refusal) = &info.refusal {
        line("refusal", format!("{}: {}", refusal.code, refusal.message));
        if !refusal.hint.is_empty() {
            line("hint", refusal.hint.clone());
        }
    }
    match &info.result {
        Some(result) => {
            let size = crate::output::bytes(result.0.len() as u64);
            line("result", format!("{size}; print it: ksi wait {}", info.request_id));
        }
        None if info.state == WorkState::Done => line("result", "it is not kept any more".to_owned()),
        None => {}
    }
    lines.join("\n")
}

/// `ksi work list` and `dead`: page after page until there are enough.
async fn list(at: &Invocation, list: &str, states: Vec<WorkState>, part: &WorkPart) -> Result<()> {
    let event = match &part.event {
        Some(text) => Some(Pattern::parse(text).map_err(|error| Failure::usage(error.to_string()))?),
        None => None,
    };
    let client = at.connect().await?;
    let mut found = WorkPage { work: Vec::new(), next: None };
    loop {
        let left = part.limit.saturating_sub(found.work.len());
        let limit = u32::try_from(left.min(PAGE)).unwrap_or(u32::MAX);
        if limit == 0 {
            break;
        }
        let question = ListWork {
            states: states.clone(),
            event: event.clone(),
            after: found.next.take(),
            limit: Some(limit),
        };
        let page: WorkPage = at.ask(&client, list, &question).await?;
        found.work.extend(page.work);
        found.next = page.next;
        if found.next.is_none() {
            break;
        }
    }
    let more = found.next.is_some();
    at.out.print(&listed(&found, now_ms())?)?;
    if more {
        at.out.note(&format!("there is more; show it: --limit {}", part.limit.saturating_mul(10)));
    }
    Ok(())
}

fn listed(page: &WorkPage, now_ms: u64) -> Result<Report> {
    let mut table =
        Table::new(&["ID", "EVENT", "STATE", "ATTEMPTS", "AGE", "+SEQ", "+ORIGIN", "+KEY", "REASON"]);
    for info in &page.work {
        let reason = info.refusal.as_ref().map_or("-".into(), |refusal| {
            let text = format!("{}: {}", refusal.code, refusal.message);
            match text.char_indices().nth(REASON_CHARS) {
                Some((end, _)) => format!("{}…", &text[..end]),
                None => text,
            }
        });
        table.row([
            info.request_id.clone(),
            info.event.to_string(),
            info.state.to_string(),
            info.attempts.to_string(),
            age(info.accepted_ms, now_ms),
            info.seq.to_string(),
            info.origin.clone(),
            info.idempotency_key.clone().unwrap_or_else(|| "-".into()),
            reason,
        ]);
    }
    let names = page.work.iter().map(|info| info.request_id.clone()).collect();
    Report::list(page, "work", names, table)
}

/// The time between two, for a person.
pub(super) fn age(from_ms: u64, to_ms: u64) -> String {
    millis(to_ms.saturating_sub(from_ms))
}

fn at(ms: u64) -> String {
    timestamp(ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Format, printed};
    use ksi_protocol::{Code, EventName, Payload, Refusal};
    use serde_json::json;

    fn info(state: WorkState) -> WorkInfo {
        WorkInfo {
            principal: None,
            tenant: None,
            request_id: "w-1".into(),
            seq: 42,
            event: EventName::parse("completion:async").unwrap(),
            state,
            attempts: 2,
            crashes: 0,
            origin: "session:1".into(),
            correlation_id: None,
            idempotency_key: Some("k".into()),
            accepted_ms: 1_000,
            expires_ms: Some(61_000),
            until_ms: None,
            ended_ms: None,
            result: None,
            refusal: None,
        }
    }

    #[test]
    fn a_list_shows_where_each_stands_and_why() {
        let refusal = Some(Refusal::new(Code::Unavailable, "no model is loaded"));
        let waiting = WorkInfo { refusal, ..info(WorkState::Waiting) };
        let page = WorkPage { work: vec![info(WorkState::Leased), waiting], next: None };
        let report = listed(&page, 3_500).unwrap();
        assert_eq!(
            printed(&report, Format::Table),
            "ID   EVENT             STATE    ATTEMPTS  AGE    REASON\n\
             w-1  completion:async  leased   2         2.5 s  -\n\
             w-1  completion:async  waiting  2         2.5 s  unavailable: no model is loaded\n"
        );
        assert_eq!(printed(&report, Format::Name), "w-1\nw-1\n");
        let first = printed(&report, Format::Jsonl);
        let first: Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
        assert_eq!((&first["state"], &first["seq"]), (&"leased".into(), &42.into()));
        assert!(printed(&report, Format::Wide).contains("session:1"));
    }

    #[test]
    fn one_piece_is_described_with_what_comes_next() {
        let waiting = WorkInfo { until_ms: Some(9_000), ..info(WorkState::Waiting) };
        let text = described(&waiting, 4_000);
        for part in ["w-1 waiting", "3.0 s ago", "next         in 5.0 s", "key          k", "attempts     2"]
        {
            assert!(text.contains(part), "no `{part}` in:\n{text}");
        }
        let result = Some(Payload(ksi_protocol::encode(&json!({"text": "hi"})).unwrap()));
        let done = WorkInfo { ended_ms: Some(5_000), result, ..info(WorkState::Done) };
        let text = described(&done, 6_000);
        for part in ["w-1 done", "ended        1.0 s ago", "ksi wait w-1"] {
            assert!(text.contains(part), "no `{part}` in:\n{text}");
        }
        let text = described(&WorkInfo { result: None, ..done }, 6_000);
        assert!(text.contains("result       it is not kept any more"), "{text}");
        assert!(!described(&waiting, 4_000).contains("result"));
    }
}
