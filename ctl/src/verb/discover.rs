//! `discover` and `describe`: what can be asked and heard.

use ksi_protocol::system::{Describe, Discover, Discovery, EventInfo, EventKind};
use serde_json::Value;

use crate::{
    error::{Failure, Result},
    invocation::Invocation,
    output::{Report, Table, millis},
    schema::Fields,
};

/// `ksi discover`.
///
/// # Errors
///
/// Ends with 4 where the namespace has no events.
pub(super) async fn discover(at: &Invocation, namespace: Option<String>, detail: bool) -> Result<()> {
    let client = at.connect().await?;
    let payload = Discover { namespace: namespace.clone(), detail };
    let discovery: Discovery = at.ask(&client, "system:discover", &payload).await?;
    if let (true, Some(namespace)) = (discovery.events.is_empty(), namespace) {
        return Err(Failure::not_found("namespace", &namespace).hint("all events: ksi discover"));
    }
    at.out.print(&list(&discovery, detail)?)
}

fn list(discovery: &Discovery, detail: bool) -> Result<Report> {
    let titles: &[&str] = match detail {
        true => &["EVENT", "KIND", "OWNER", "DELIVERY", "TIMEOUT", "FIELDS", "ABOUT"],
        false => &["EVENT", "KIND", "OWNER", "+DELIVERY", "+TIMEOUT", "+FIELDS", "ABOUT"],
    };
    let mut table = Table::new(titles);
    for info in &discovery.events {
        let owner = if info.available { info.owner.clone() } else { format!("{} (down)", info.owner) };
        table.row([
            info.event.clone(),
            kind(info.kind).into(),
            owner,
            info.delivery.clone(),
            info.timeout_ms.map_or("-".into(), millis),
            field_names(info),
            first_sentence(&info.about),
        ]);
    }
    let names = discovery.events.iter().map(|info| info.event.clone()).collect();
    Report::list(discovery, "events", names, table)
}

fn kind(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Request => "request",
        EventKind::Stream => "stream",
        EventKind::Fact => "fact",
    }
}

/// The fields by name; those that may be left out in brackets.
fn field_names(info: &EventInfo) -> String {
    let Some(schema) = &info.request else { return "-".to_owned() };
    let fields = Fields::of(Some(schema)).known.into_iter();
    let names: Vec<_> =
        fields.map(|field| if field.required { field.name } else { format!("[{}]", field.name) }).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(" ") }
}

fn first_sentence(about: &str) -> String {
    let words = about.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.find(". ") {
        Some(end) => words[..end].to_owned(),
        None => words.trim_end_matches('.').to_owned(),
    }
}

/// `ksi describe`.
///
/// # Errors
///
/// Ends with 4 where there is no such event, naming those that are like it.
pub(super) async fn describe(at: &Invocation, event: &str) -> Result<()> {
    let client = at.connect().await?;
    let info: EventInfo = at.ask(&client, "system:describe", &Describe { event: event.to_owned() }).await?;
    at.out.print(&Report::text(&info, text(&info))?.named(vec![info.event.clone()]))
}

fn text(info: &EventInfo) -> String {
    let mut lines = vec![info.event.clone(), format!("  {}", info.about.trim()), String::new()];
    let availability = if info.available { "" } else { " (not available now)" };
    lines.push(format!("  kind      {}", kind(info.kind)));
    lines.push(format!("  owner     {}{availability}", info.owner));
    lines.push(format!("  delivery  {}", info.delivery));
    if !info.permission.is_empty() {
        lines.push(format!("  needs     permission {}", info.permission));
    }
    if let Some(ms) = info.timeout_ms {
        lines.push(format!("  timeout   {}", millis(ms)));
    }
    let payload = if info.kind == EventKind::Fact { "says" } else { "takes" };
    section(&mut lines, payload, info.request.as_ref());
    section(&mut lines, "streams", info.chunk.as_ref());
    section(&mut lines, "answers", info.reply.as_ref());
    lines.push(String::new());
    lines.push(match info.kind {
        EventKind::Fact => format!("  listen: ksi sub {}", info.event),
        EventKind::Request | EventKind::Stream => format!("  ask: {}", example(info)),
    });
    lines.join("\n")
}

fn section(lines: &mut Vec<String>, title: &str, schema: Option<&Value>) {
    let Some(schema) = schema else { return };
    let fields = Fields::of(Some(schema)).known;
    lines.push(String::new());
    if fields.is_empty() {
        lines.push(format!("  {title} nothing in particular"));
        return;
    }
    lines.push(format!("  {title}"));
    let name_width = fields.iter().map(|field| field.name.len()).max().unwrap_or_default();
    let kind_width = fields.iter().map(|field| field.kind.word().len()).max().unwrap_or_default().min(32);
    for field in fields {
        let mut line =
            format!("    {:name_width$}  {:kind_width$}  {}", field.name, field.kind.word(), field.doc);
        if field.required && title == "takes" {
            line.push_str(" [required]");
        }
        if let Some(default) = field.default {
            line.push_str(&format!(" [default: {default}]"));
        }
        lines.push(line.trim_end().to_owned());
    }
}

/// A command line with what cannot be left out.
fn example(info: &EventInfo) -> String {
    let required = Fields::of(info.request.as_ref()).known.into_iter().filter(|field| field.required);
    let flags = required.map(|field| format!(" --{} …", field.name)).collect::<String>();
    format!("ksi send {}{flags}", info.event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Format, Output};
    use serde_json::json;

    fn say() -> EventInfo {
        EventInfo {
            event: "echo:say".into(),
            owner: "echo".into(),
            kind: EventKind::Request,
            about: "Say something and get it back. Nothing more.".into(),
            available: true,
            delivery: "live".into(),
            permission: "echo.use".into(),
            timeout_ms: Some(60_000),
            request: Some(json!({"type": "object", "required": ["text"], "properties": {
                "text": {"type": "string", "description": "What to say."},
                "times": {"type": "integer", "default": 1}}})),
            reply: Some(json!({"type": "object", "properties": {"text": {"type": "string"}}})),
            chunk: None,
        }
    }

    #[test]
    fn an_event_is_described_with_its_fields_and_an_example() {
        let text = text(&say());
        for part in [
            "owner     echo",
            "needs     permission echo.use",
            "timeout   1m 0s",
            "text   text     What to say. [required]",
            "times  integer   [default: 1]",
            "ask: ksi send echo:say --text …",
        ] {
            assert!(text.contains(part), "no `{part}` in:\n{text}");
        }
    }

    #[test]
    fn the_list_parses_as_json_and_names_its_events() {
        let report = list(&Discovery { events: vec![say()] }, false).unwrap();
        for (format, expected) in [
            (Format::Name, "echo:say\n"),
            (
                Format::Wide,
                "EVENT     KIND     OWNER  DELIVERY  TIMEOUT  FIELDS        ABOUT\n\
                 echo:say  request  echo   live      1m 0s    text [times]  Say something and get it back\n",
            ),
        ] {
            let output = Output { format, headers: true, quiet: true, color: false };
            let mut out = Vec::new();
            output.render(&report, &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
        let output = Output { format: Format::Json, headers: true, quiet: true, color: false };
        let mut out = Vec::new();
        output.render(&report, &mut out).unwrap();
        let read: Discovery = serde_json::from_slice(&out).unwrap();
        assert_eq!(read.events[0].event, "echo:say");
    }
}
