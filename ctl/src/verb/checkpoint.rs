//! `checkpoint …`: what is kept durably, as a whole.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    time::Instant,
};

use ksi_protocol::checkpoint::{
    Checkpoint, Checkpoints, Consumer, Consumers, Create, Export, Exported, Forget, Restore, Restored,
    Verified,
};
use serde_json::json;

use super::{export::Wanted, work::age};
use crate::{
    args,
    error::{Failure, Result},
    exit::Exit,
    invocation::{Invocation, short},
    output::{Report, Table, bytes, elapsed},
    restart,
    start::START_TIMEOUT,
    time::now_ms,
};

/// `ksi checkpoint …`.
///
/// # Errors
///
/// Fails as the daemon refuses; `verify` ends with 8 where something is
/// damaged.
pub(super) async fn run(at: &Invocation, checkpoint: args::Checkpoint) -> Result<()> {
    match checkpoint {
        args::Checkpoint::Create { label } => create(at, label).await,
        args::Checkpoint::List => list(at).await,
        args::Checkpoint::Restore { checkpoint, yes } => restore(at, &checkpoint, yes).await,
        args::Checkpoint::Verify => verify(at).await,
        args::Checkpoint::Export { path } => export(at, path.as_deref()).await,
        args::Checkpoint::Consumers => consumers(at).await,
        args::Checkpoint::Forget { consumer, tenant } => forget(at, consumer, tenant).await,
    }
}

async fn create(at: &Invocation, label: Option<String>) -> Result<()> {
    let client = at.connect().await?;
    let made: Checkpoint = at.ask(&client, "checkpoint:create", &Create { label }).await?;
    let keys = made.keys.map_or(String::new(), |keys| format!("{keys} keys, "));
    let path = short(made.path.as_ref());
    let text = format!("checkpoint {}: {keys}{}, up to {}, in {path}", made.id, bytes(made.bytes), made.seq);
    at.out.print(&Report::text(&made, text)?.named(vec![made.id.clone()]))
}

async fn list(at: &Invocation) -> Result<()> {
    let client = at.connect().await?;
    let list: Checkpoints = at.ask(&client, "checkpoint:list", &json!({})).await?;
    at.out.print(&listed(&list, now_ms())?)
}

/// Checkpoints, and below them what they are made of.
fn listed(list: &Checkpoints, now_ms: u64) -> Result<Report> {
    let mut table = Table::new(&["ID", "AGE", "SIZE", "SEQ", "NOTE", "+PATH"]);
    for checkpoint in &list.checkpoints {
        table.row([
            checkpoint.id.clone(),
            age(checkpoint.at_ms, now_ms),
            bytes(checkpoint.bytes),
            checkpoint.seq.to_string(),
            checkpoint.label.clone().unwrap_or_else(|| "-".into()),
            checkpoint.path.clone(),
        ]);
    }
    let Checkpoints { journal, store, .. } = list;
    let dash = || "-".to_owned();
    let span = format!("{}..{}", journal.first_seq, journal.last_seq);
    let segments = format!("{} segments", journal.segments);
    table.row(["(journal)".into(), dash(), bytes(journal.bytes), span, segments, dash()]);
    table.row(["(store)".into(), dash(), bytes(store.bytes), dash(), format!("{} keys", store.keys), dash()]);
    let names = list.checkpoints.iter().map(|checkpoint| checkpoint.id.clone()).collect();
    Report::list(list, "checkpoints", names, table)
}

async fn restore(at: &Invocation, checkpoint: &str, yes: bool) -> Result<()> {
    let restore = named(checkpoint)?;
    if !yes && !confirmed(checkpoint)? {
        return Err(Failure::failed("all stays as it is"));
    }
    let client = at.connect().await?;
    let boot = client.welcome().boot;
    let restored: Restored = at.ask(&client, "checkpoint:restore", &restore).await?;
    drop(client);
    let Restored { seq, keys, replaced } = restored;
    let text = format!("{checkpoint} restored: {keys} keys in the place of {replaced}, as {seq}");
    at.out.print(&Report::text(&restored, text)?.named(vec![checkpoint.to_owned()]))?;
    // Whoever has read anything before must read it again, so the daemon starts
    // itself anew.
    let began = Instant::now();
    let deadline = began + at.timeout.unwrap_or(START_TIMEOUT);
    let again = "put the restored state in force: ksi restart";
    match restart::awaited(at, &boot, deadline).await {
        Ok(Some(health)) => {
            let took = elapsed(began.elapsed());
            at.out.note(&format!("ksid has started anew with it in {took}: pid {}", health.pid));
            Ok(())
        }
        Ok(None) => {
            Err(Failure::failed("restored, but the daemon has not come back").hint("start it: ksi up"))
        }
        Err(failure) => Err(failure.hint(again)),
    }
}

/// An id has no slash, and a path that is meant has one or is there.
fn named(checkpoint: &str) -> Result<Restore> {
    let path = Path::new(checkpoint);
    if !checkpoint.contains('/') && !path.exists() {
        return Ok(Restore { id: Some(checkpoint.to_owned()), path: None });
    }
    let absolute = path.canonicalize().map_err(|error| Failure::to_file("read", path, &error))?;
    Ok(Restore { id: None, path: Some(text(&absolute)?) })
}

/// Asks a person, and never a pipe.
fn confirmed(checkpoint: &str) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("nobody is there to confirm it").hint("add --yes"));
    }
    write!(anstream::stderr(), "put {checkpoint} in the place of all that is kept now? [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

async fn verify(at: &Invocation) -> Result<()> {
    let client = at.connect().await?;
    let found: Verified = at.ask(&client, "checkpoint:verify", &json!({})).await?;
    at.out.print(&verified(&found)?)?;
    if found.ok {
        return Ok(());
    }
    at.out.warn("what is damaged is kept aside and never cut; go back to a checkpoint: ksi checkpoint list");
    Err(Failure::quietly(Exit::Degraded))
}

fn verified(found: &Verified) -> Result<Report> {
    let Verified { records, segments, first_seq, last_seq, problems, ok, .. } = found;
    let size = bytes(found.bytes);
    let state = if *ok { "whole" } else { "DAMAGED" };
    let mut text = format!(
        "the journal is {state}: {records} records, {first_seq} to {last_seq}, in {segments} segments, {size}"
    );
    for problem in problems {
        let record = problem.seq.map(|seq| format!("record {seq}"));
        let segment = Some(problem.segment.clone()).filter(|segment| !segment.is_empty());
        let place: Vec<_> = segment.into_iter().chain(record).collect();
        let place = if place.is_empty() { String::new() } else { format!("{}: ", place.join(", ")) };
        text.push_str(&format!("\n  {place}{}", problem.what));
    }
    Ok(Report::text(found, text)?.named(vec![if *ok { "ok" } else { "damaged" }.to_owned()]))
}

async fn export(at: &Invocation, path: Option<&Path>) -> Result<()> {
    let wanted = path.map(Wanted::at).transpose()?;
    let client = at.connect().await?;
    let mut done: Exported = at.ask(&client, "checkpoint:export", &Export::default()).await?;
    if let Some(wanted) = wanted {
        done.path = wanted.fetch(done.path.as_ref())?;
    }
    let Exported { path, keys, sha256, .. } = &done;
    let text = format!("{keys} keys, {}, in {}\nsha256 {sha256}", bytes(done.bytes), short(path.as_ref()));
    at.out.print(&Report::text(&done, text)?.named(vec![path.clone()]))
}

async fn consumers(at: &Invocation) -> Result<()> {
    let client = at.connect().await?;
    let known: Consumers = at.ask(&client, "checkpoint:consumers", &json!({})).await?;
    at.out.print(&consumed(&known, now_ms())?)
}

fn consumed(known: &Consumers, now_ms: u64) -> Result<Report> {
    let mut table = Table::new(&["CONSUMER", "SEQ", "SEEN", "FOLLOWED", "PRINCIPAL", "+TENANT"]);
    let dash = || "-".to_owned();
    for consumer in &known.consumers {
        table.row([
            consumer.consumer.clone(),
            consumer.seq.to_string(),
            consumer.seen_ms.map_or_else(dash, |seen_ms| age(seen_ms, now_ms)),
            if consumer.followed { "yes" } else { "no" }.into(),
            consumer.principal.clone().unwrap_or_else(dash),
            consumer.tenant.clone().unwrap_or_else(dash),
        ]);
    }
    let names = known.consumers.iter().map(|consumer| consumer.consumer.clone()).collect();
    Report::list(known, "consumers", names, table)
}

async fn forget(at: &Invocation, consumer: String, tenant: Option<String>) -> Result<()> {
    let client = at.connect().await?;
    let was: Consumer = at.ask(&client, "checkpoint:forget", &Forget { consumer, tenant }).await?;
    let name = &was.consumer;
    let text = format!("{name}: forgotten, it had dealt with all up to {}", was.seq);
    at.out.print(&Report::text(&was, text)?.named(vec![name.clone()]))
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| Failure::usage(format!("{} is not UTF-8", path.display())))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Format, printed};
    use ksi_protocol::checkpoint::{Journal, Problem, Store};

    #[test]
    fn a_list_has_sizes_and_ages_of_all_there_is() {
        let checkpoint = Checkpoint {
            id: "c-1".into(),
            path: "/s/c-1".into(),
            seq: 900,
            bytes: 12_000,
            keys: None,
            at_ms: 1_000,
            label: Some("before".into()),
        };
        let list = Checkpoints {
            checkpoints: vec![checkpoint],
            journal: Journal { segments: 2, bytes: 64_000_000, first_seq: 100, last_seq: 1_000 },
            store: Store { keys: 30, bytes: 1_000 },
        };
        let report = listed(&list, 61_000).unwrap();
        assert_eq!(
            printed(&report, Format::Table),
            "ID         AGE    SIZE     SEQ        NOTE\n\
             c-1        1m 0s  12.0 kB  900        before\n\
             (journal)  -      64.0 MB  100..1000  2 segments\n\
             (store)    -      1.0 kB   -          30 keys\n"
        );
        assert_eq!(printed(&report, Format::Name), "c-1\n");
        let json: serde_json::Value = serde_json::from_str(&printed(&report, Format::Json)).unwrap();
        assert_eq!((&json["journal"]["segments"], &json["store"]["keys"]), (&2.into(), &30.into()));
    }

    #[test]
    fn consumers_are_listed_with_how_far_they_are_and_whose() {
        let one = Consumer {
            consumer: "billing".into(),
            tenant: Some("local".into()),
            seq: 42,
            seen_ms: Some(1_000),
            principal: Some("user:a".into()),
            followed: true,
        };
        let old = Consumer {
            consumer: "old".into(),
            seen_ms: None,
            principal: None,
            followed: false,
            ..one.clone()
        };
        let report = consumed(&Consumers { consumers: vec![one, old] }, 61_000).unwrap();
        assert_eq!(
            printed(&report, Format::Table),
            "CONSUMER  SEQ  SEEN   FOLLOWED  PRINCIPAL\n\
             billing   42   1m 0s  yes       user:a\n\
             old       42   -      no        -\n"
        );
        assert_eq!(printed(&report, Format::Name), "billing\nold\n");
    }

    #[test]
    fn a_name_is_an_id_unless_it_is_a_path() {
        assert_eq!(named("c-1").unwrap(), Restore { id: Some("c-1".into()), path: None });
        assert_eq!(named("/nowhere/x").unwrap_err().exit, Exit::Failed);
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(named(path).unwrap(), Restore { id: None, path: Some(path.into()) });
    }

    #[test]
    fn damage_is_named_record_by_record() {
        let problem = Problem { segment: "1.log".into(), seq: Some(7), what: "checksum is wrong".into() };
        let store = Problem { segment: String::new(), seq: None, what: "the store is damaged".into() };
        let found = Verified {
            records: 9,
            segments: 1,
            bytes: 900,
            first_seq: 1,
            last_seq: 9,
            ok: false,
            problems: vec![problem, store],
        };
        let text = printed(&verified(&found).unwrap(), Format::Table);
        assert!(
            text.contains("DAMAGED") && text.contains("\n  1.log, record 7: checksum is wrong"),
            "{text}"
        );
        assert!(text.contains("\n  the store is damaged"), "{text}");
    }
}
