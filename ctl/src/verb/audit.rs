//! `audit …`: who was let do what, and the proof that nobody has changed it.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::BufReader,
    path::Path,
};

use ksi_client::Client;
use ksi_protocol::audit::{Entry, Export, Exported, Page, Query, Record, Verified};
use ksi_trust::{Key, audit as proof};
use serde_json::json;

use super::export::Wanted;
use crate::{
    args,
    error::{Failure, Result},
    exit::Exit,
    invocation::{Invocation, short},
    output::{Report, Table, bytes},
    time::{now_ms, unix_ms, whole_ms},
};

/// Records that are asked for at once.
const PAGE: u32 = 1_000;

/// `ksi audit …`.
///
/// # Errors
///
/// Fails as the daemon refuses; `verify` ends with 8 where something was
/// changed.
pub(super) async fn run(at: &Invocation, audit: args::Audit) -> Result<()> {
    match audit {
        args::Audit::Query(ask) => query(at, &ask).await,
        args::Audit::Verify { file: Some(file), key } => verify_file(at, &file, key.as_deref()),
        args::Audit::Verify { file: None, key } => verify(at, key.as_deref()).await,
        args::Audit::Export { path } => export(at, path.as_deref()).await,
        args::Audit::Key => key(at).await,
    }
}

/// `30m` ago, or a time as RFC 3339 has it; milliseconds since 1970.
fn moment(text: &str, now_ms: u64) -> Result<u64> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(now_ms.saturating_sub(whole_ms(ago)));
    }
    let time = humantime::parse_rfc3339_weak(text).map_err(|error| {
        Failure::usage(format!("`{text}` is no time: {error}")).hint("2h, or 2026-01-31T08:00:00Z")
    })?;
    Ok(unix_ms(time))
}

async fn query(at: &Invocation, ask: &args::AuditQuery) -> Result<()> {
    let now_ms = now_ms();
    let time = |text: &Option<String>| text.as_deref().map(|text| moment(text, now_ms)).transpose();
    let mut query = Query {
        since_ms: time(&ask.since)?,
        until_ms: time(&ask.until)?,
        principal: ask.principal.clone(),
        event: ask.event.clone(),
        allowed: match (ask.allowed, ask.denied) {
            (true, false) => Some(true),
            (false, true) => Some(false),
            _ => None,
        },
        after_seq: None,
        limit: Some(PAGE),
    };
    let client = at.connect().await?;
    let mut newest = VecDeque::new();
    loop {
        let page: Page = at.ask(&client, "audit:query", &query).await?;
        newest.extend(page.records);
        while newest.len() > ask.limit {
            newest.pop_front();
        }
        match page.next {
            Some(next) => query.after_seq = Some(next),
            None => break,
        }
    }
    at.out.print(&listed(newest.make_contiguous())?)
}

fn listed(records: &[Entry]) -> Result<Report> {
    let mut table = Table::new(&[
        "SEQ",
        "TIME",
        "PRINCIPAL",
        "EVENT",
        "PERMISSION",
        "DECISION",
        "+ORIGIN",
        "+BEHALF",
        "+SIZE",
        "+SHA-256",
        "+CORRELATION",
    ]);
    let dash = || "-".to_owned();
    let short = |[seq, time, principal, event, permission, decision]: [String; 6]| {
        [seq, time, principal, event, permission, decision, dash(), dash(), dash(), dash(), dash()]
    };
    for entry in records {
        let time = ksi_protocol::json::timestamp(entry.record.at_ms());
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(dash);
        match &entry.record {
            Record::Decision(decision) => table.row([
                entry.seq.to_string(),
                time,
                decision.principal.clone(),
                decision.event.clone(),
                decision.permission.clone(),
                if decision.allowed { "allowed" } else { "DENIED" }.into(),
                decision.origin.clone(),
                or_dash(&decision.behalf),
                bytes(decision.size),
                decision.sha256.chars().take(16).collect(),
                or_dash(&decision.correlation_id),
            ]),
            Record::Repeated(repeated) => table.row(short([
                entry.seq.to_string(),
                time,
                repeated.principal.clone(),
                repeated.event.clone(),
                repeated.permission.clone(),
                match repeated.denied {
                    0 => format!("allowed {} times more", repeated.allowed),
                    denied => format!("DENIED {denied} times more"),
                },
            ])),
            Record::Lost(lost) => {
                let what =
                    format!("{} allowed and {} denied were not written down", lost.allowed, lost.denied);
                table.row(short([entry.seq.to_string(), time, dash(), what, dash(), "LOST".into()]));
            }
            Record::Retired(retired) => {
                let what = format!("records before {} were let go", retired.before_seq);
                table.row(short([entry.seq.to_string(), time, dash(), what, dash(), "retired".into()]));
            }
        }
    }
    let names = records.iter().map(|entry| entry.seq.to_string()).collect();
    Report::list(&json!({ "records": records }), "records", names, table)
}

async fn verify(at: &Invocation, key: Option<&str>) -> Result<()> {
    let client = at.connect().await?;
    let found = verified(at, &client).await?;
    if let Some(key) = key.map(read_key).transpose()?
        && key.to_string() != found.public_key
    {
        let message = format!("heads are signed with another key: {}", found.public_key);
        return Err(
            Failure::new(Exit::Degraded, "untrusted", message).hint("find out who has changed the key")
        );
    }
    at.out.print(&Report::text(&found, described(&found))?)?;
    if found.ok { Ok(()) } else { Err(Failure::quietly(Exit::Degraded)) }
}

async fn verified(at: &Invocation, client: &Client) -> Result<Verified> {
    at.ask(client, "audit:verify", &json!({})).await
}

fn described(found: &Verified) -> String {
    let mut text = match found.records {
        0 => "the audit trail is empty".to_owned(),
        records => format!("{records} records, {} to {}", found.first_seq, found.last_seq),
    };
    text.push_str(if found.ok { ": as they were written" } else { ": DAMAGED" });
    text.push_str(&signed_to(found.heads, found.signed_seq, found.last_seq));
    for problem in &found.problems {
        let place = problem.seq.map_or(String::new(), |seq| format!("record {seq}: "));
        text.push_str(&format!("\n  {place}{}", problem.what));
    }
    text.push_str(&format!("\n  key  {}", found.public_key));
    text
}

fn signed_to(heads: u64, signed: u64, last: u64) -> String {
    match signed {
        0 => "\n  no head is signed yet; one is within a minute".into(),
        signed if signed < last => {
            format!("\n  {heads} signed heads, up to record {signed}; the rest is not signed yet")
        }
        signed => format!("\n  {heads} signed heads, up to record {signed}"),
    }
}

fn verify_file(at: &Invocation, path: &Path, key: Option<&str>) -> Result<()> {
    let key = key.map(read_key).transpose()?;
    let file = File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::not_found("file", &path.display().to_string()),
        _ => Failure::to_file("read", path, &error),
    })?;
    let proof = proof::verify(BufReader::new(file), key.as_ref()).map_err(|flaw| Failure {
        details: Some(Box::new(json!(flaw))),
        ..Failure::new(Exit::Degraded, "damaged", format!("{}: {flaw}", path.display()))
            .hint("it is not what the daemon has written; get it again: ksi audit export")
    })?;
    let mut text = format!(
        "{} records, {} to {}: as they were written{}\n  key  {}",
        proof.records,
        proof.first_seq,
        proof.last_seq,
        signed_to(proof.heads, proof.signed_seq, proof.last_seq),
        proof.public_key
    );
    if !proof.key_given {
        text.push_str("\n  that is the file's own key; whose it is, only you can say: --key KEY");
    }
    at.out.print(&Report::text(&proof, text)?)
}

/// A key on the command line, or the file of one.
fn read_key(text: &str) -> Result<Key> {
    text.parse().or_else(|_| {
        let path = Path::new(text);
        let file = fs::read_to_string(path).map_err(|error| Failure::to_file("read", path, &error))?;
        file.parse().map_err(|error| Failure::usage(format!("{text}: {error}")))
    })
}

async fn export(at: &Invocation, path: Option<&Path>) -> Result<()> {
    let wanted = path.map(Wanted::at).transpose()?;
    let client = at.connect().await?;
    let mut made: Exported = at.ask(&client, "audit:export", &Export::default()).await?;
    if let Some(wanted) = wanted {
        made.path = wanted.fetch(made.path.as_ref())?;
    }
    let written = short(made.path.as_ref());
    let text =
        format!("{} records, {} in {written}\n  key  {}", made.records, bytes(made.bytes), made.public_key);
    at.out.print(&Report::text(&made, text)?.named(vec![made.path.clone()]))?;
    at.out.note(&format!("Next: ksi audit verify {written} --key {}", made.public_key));
    Ok(())
}

async fn key(at: &Invocation) -> Result<()> {
    let client = at.connect().await?;
    let found = verified(at, &client).await?;
    let data = json!({"public_key": found.public_key});
    at.out.print(&Report::text(&data, found.public_key.clone())?.named(vec![found.public_key]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_so_long_ago_or_a_time() {
        assert_eq!(moment("2s", 5_000).unwrap(), 3_000);
        assert_eq!(moment("1970-01-01T00:00:07Z", 5_000).unwrap(), 7_000);
        assert_eq!(moment("yesterday", 5_000).unwrap_err().exit, Exit::Usage);
    }
}
