//! `send`: any event, with flags made from its schema.
//!
//! The daemon is asked what the event takes, and a command line is made from
//! that: help, types, nearest names. What the flags mean is in `schema`.

mod line;

use std::path::Path;

use clap::CommandFactory;
use ksi_client::{Accepted, CallOptions, Client, Part};
use ksi_protocol::system::{Describe, EventInfo, EventKind};
use serde_json::{Value, json};

use crate::{
    answer::Printer,
    args::{self, Cli, SendOptions},
    error::{Failure, Result},
    exit::Exit,
    input,
    invocation::{Invocation, readable},
    output::{Format, Output, Report},
    schema::Fields,
    verb::work,
};

use line::Line;

/// `ksi send`.
///
/// # Errors
///
/// Names every wrong field; else fails as the daemon refuses.
pub(super) async fn send(at: &Invocation, send: args::Send) -> Result<()> {
    let Some(event) = &send.event else {
        if send.help {
            return help();
        }
        return Err(Failure::usage("no event given").hint("ksi send EVENT --key value; events: ksi discover"));
    };
    let client = at.connect().await?;
    let info = match at.ask::<EventInfo>(&client, "system:describe", &Describe { event: event.clone() }).await
    {
        Ok(info) => info,
        // Whoever tells needs nobody's declaration.
        Err(failure) if failure.exit == Exit::NotFound && emits(&send) => undeclared(event, EventKind::Fact),
        // A token may be good for one event and not for reading about it.
        Err(failure) if failure.exit == Exit::Denied && !send.help => {
            undeclared(event, if emits(&send) { EventKind::Fact } else { EventKind::Request })
        }
        Err(failure) => return Err(failure),
    };
    let fields = Fields::of(info.request.as_ref());
    if send.help {
        return line::help(&info, &fields);
    }
    let Some(Line { options, at, given }) = line::read(at, &send, &info, &fields)? else { return Ok(()) };
    let payload = fields.payload(event, base(options.json.as_deref())?, &given)?;
    if options.emit || info.kind == EventKind::Fact {
        let delivered = client.emit_counted(event.as_str(), &payload).await?;
        let text = format!("told {delivered}");
        return at.out.print(&Report::text(&json!({"delivered": delivered}), text)?);
    }
    ask(&at, &client, &info, &options, &payload).await
}

/// Whether the words say `--emit`; before or after the event.
fn emits(send: &args::Send) -> bool {
    send.options.emit || send.fields.iter().any(|word| word == "--emit")
}

/// What is taken for granted of an event of which nothing can be read.
fn undeclared(event: &str, kind: EventKind) -> EventInfo {
    EventInfo {
        event: event.to_owned(),
        owner: String::new(),
        kind,
        about: "An event of which nothing is known; any field goes.".to_owned(),
        available: true,
        delivery: "live".to_owned(),
        permission: String::new(),
        timeout_ms: None,
        request: None,
        reply: None,
        chunk: None,
    }
}

/// The help of `send` itself.
fn help() -> Result<()> {
    let mut command = Cli::command();
    command.build();
    let help = command.find_subcommand_mut("send").map(clap::Command::render_long_help);
    Output::styled(&help.unwrap_or_default())
}

/// What `--json` says.
fn base(json: Option<&str>) -> Result<Value> {
    let Some(source) = json else { return Ok(Value::Null) };
    let (name, text) = match source.strip_prefix('@') {
        _ if source == "-" => ("standard input", input::standard()?),
        Some(file) => (file, input::file(Path::new(file))?),
        None => ("--json", source.to_owned()),
    };
    serde_json::from_str(&text).map_err(|error| {
        Failure::usage(format!("{name} is not JSON: {error}"))
            .hint(r#"for example --json '{"text":"hello"}', --json @file.json, --json -"#)
    })
}

async fn ask(
    at: &Invocation,
    client: &Client,
    info: &EventInfo,
    options: &SendOptions,
    payload: &Value,
) -> Result<()> {
    let call = CallOptions {
        idempotency_key: options.idempotency_key.clone(),
        expires_in: options.expires_in,
        correlation_id: options.correlation_id.clone(),
        ..at.call()
    };
    let people = at.out.people();
    // People see a stream as it comes; a program says so.
    let parts = options.stream || at.out.format == Format::Jsonl || people && info.kind == EventKind::Stream;
    let mut printer = Printer::new(at.out);
    let (mut texts, mut several) = (false, false);
    let mut stream = client.stream(info.event.as_str(), payload, call).await?;
    let outcome = loop {
        match stream.next().await {
            Some(Ok(Part::Chunk(chunk))) if parts => {
                let chunk = readable(&chunk)?;
                several |= is_of_another(&chunk);
                texts |= print_part(at, &mut printer, people, &chunk)?;
            }
            Some(Ok(Part::Chunk(_))) => {}
            Some(Ok(Part::Accepted { request_id, seq })) => {
                return accepted(at, options, &Accepted { request_id, seq }).await;
            }
            Some(Ok(Part::End(data))) => break Some((readable(&data)?, true)),
            Some(Ok(Part::Reply(data))) => break Some((readable(&data)?, false)),
            Some(Err(error)) => {
                printer.finish()?;
                return Err(error.into());
            }
            None => break None,
        }
    };
    printer.finish()?;
    match outcome {
        // The pieces of text were the answer, where there are no others.
        Some((_, true)) if texts && people && !several => Ok(()),
        Some((data, true)) if parts && at.out.machine() => {
            at.out.item(&Report::data(json!({"data": data, "end": true})))
        }
        Some((data, _)) => at.out.print(&Report::data(data)),
        None => Err(Failure::failed(format!("`{}` ended without an answer", info.event)).hint("ksi logs")),
    }
}

/// Durable work is safe: says what it is called and how to go on, or waits.
async fn accepted(at: &Invocation, options: &SendOptions, accepted: &Accepted) -> Result<()> {
    let id = &accepted.request_id;
    if options.wait {
        at.out.note(&format!("accepted as {id}"));
        return work::wait(at, id).await;
    }
    let report = Report::text(&json!({ "accepted": accepted }), format!("accepted: {id}"))?;
    at.out.print(&report.named(vec![id.clone()]))?;
    at.out.note(&format!("its result: ksi wait {id} · where it stands: ksi work get {id}"));
    Ok(())
}

/// Whether a piece belongs to another answer than the first, of several that were asked for.
fn is_of_another(chunk: &Value) -> bool {
    chunk.get("choice").and_then(Value::as_u64).is_some_and(|choice| choice > 0)
}

/// Prints a part of a stream; `true` where it was a piece of text.
fn print_part(at: &Invocation, printer: &mut Printer, people: bool, chunk: &Value) -> Result<bool> {
    match chunk.get("text").and_then(Value::as_str) {
        Some(_) if people && is_of_another(chunk) => Ok(false),
        Some(text) if people => printer.piece(text).map(|()| true),
        _ if people => at.out.line(chunk).map(|()| false),
        _ => at.out.item(&Report::data(json!({"chunk": chunk}))).map(|()| false),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn json_comes_from_the_argument_or_a_file() {
        assert_eq!(base(None).unwrap(), Value::Null);
        assert_eq!(base(Some(r#"{"a":1}"#)).unwrap(), json!({"a": 1}));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.json");
        fs::write(&file, "[1]").unwrap();
        assert_eq!(base(Some(&format!("@{}", file.display()))).unwrap(), json!([1]));
        for wrong in ["{", "@/nowhere.json"] {
            assert_eq!(base(Some(wrong)).unwrap_err().exit, Exit::Usage, "{wrong}");
        }
    }
}
