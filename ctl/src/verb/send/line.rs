//! The command line of one event: made from its schema, read by the same
//! parser as all others.

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches,
    error::{ContextKind, ErrorKind},
    parser::ValueSource,
};
use ksi_protocol::system::EventInfo;

use crate::{
    args::{self, Global, SendOptions},
    error::{Failure, Result},
    invocation::Invocation,
    output::Output,
    schema::{Field, Fields, Kind},
};

/// What the words behind the event say.
pub(super) struct Line {
    /// Options of `send`.
    pub(super) options: SendOptions,
    /// The invocation, with the global options that came behind the event.
    pub(super) at: Invocation,
    /// Fields and their words.
    pub(super) given: Vec<(String, Vec<String>)>,
}

/// Prefix of the argument ids of fields: a field may be called like an option.
const FIELD: &str = "field:";

/// The command of an event. `extra` are fields that no schema names.
fn command(info: &EventInfo, fields: &Fields, extra: &[String]) -> Command {
    let options = SendOptions::augment_args(Command::new("send").next_help_heading("Options of send"));
    let base = Global::augment_args(options);
    let taken: Vec<_> = base.get_arguments().filter_map(Arg::get_long).map(str::to_owned).collect();
    let unnamed = extra.iter().filter_map(|name| fields.get(name));
    let arguments = fields.known.iter().cloned().chain(unnamed).enumerate();
    let arguments: Vec<_> = arguments.map(|(order, field)| argument(&field, &taken, order)).collect();
    let help = Arg::new("help").short('h').long("help").action(ArgAction::Help).help("Show this help");
    // Fields come first: they are what is asked for.
    Command::new("send")
        .bin_name(format!("ksi send {}", info.event))
        .no_binary_name(true)
        .max_term_width(100)
        .disable_help_flag(true)
        .args(arguments)
        .args(base.get_arguments().cloned())
        .arg(help.help_heading("Global options"))
        .about(info.about.clone())
}

fn argument(field: &Field, taken: &[String], order: usize) -> Arg {
    let reserved = |name: &str| name == "help" || taken.iter().any(|taken| taken == name);
    let name = &field.name;
    let long = if reserved(name) { format!("data-{name}") } else { name.clone() };
    let dashed = long.replace('_', "-");
    let mut help = field.doc.clone();
    if let Some(default) = &field.default {
        help.push_str(&format!(" [default: {default}]"));
    }
    if field.required {
        help.push_str(" [required]");
    }
    let value = if field.kind == Kind::Boolean { "true|false".to_owned() } else { field.kind.word() };
    let mut argument = Arg::new(format!("{FIELD}{name}"))
        .help(help.trim().to_owned())
        .value_name(value)
        .action(ArgAction::Append)
        .allow_negative_numbers(true)
        .display_order(order)
        .help_heading("Fields");
    if dashed != long && !reserved(&dashed) {
        argument = argument.alias(dashed);
    }
    if field.kind == Kind::Boolean {
        argument = argument.num_args(0..=1).default_missing_value("true");
    }
    argument.long(long)
}

/// Prints the help of an event.
///
/// # Errors
///
/// Fails where standard output does.
pub(super) fn help(info: &EventInfo, fields: &Fields) -> Result<()> {
    Output::styled(&command(info, fields, &[]).render_help())
}

/// Reads the words behind the event; `None` where they asked for help, which
/// is then printed.
///
/// # Errors
///
/// Says which word makes no sense, and which one is like it.
pub(super) fn read(
    at: &Invocation,
    send: &args::Send,
    info: &EventInfo,
    fields: &Fields,
) -> Result<Option<Line>> {
    let extra = if fields.open { unnamed(&send.fields) } else { Vec::new() };
    let mut command = command(info, fields, &extra);
    let matches = match command.try_get_matches_from_mut(&send.fields) {
        Ok(matches) => matches,
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            help(info, fields)?;
            return Ok(None);
        }
        Err(error) => return Err(mistake(&error, &info.event)),
    };
    let wrong = |error: clap::Error| mistake(&error, &info.event);
    let options = merged(&send.options, SendOptions::from_arg_matches(&matches).map_err(wrong)?);
    let global = Global::from_arg_matches(&matches).map_err(wrong)?;
    let at = with_globals(at, &global, &matches)?;
    let mut given = Vec::new();
    for id in matches.ids() {
        if let Some(name) = id.as_str().strip_prefix(FIELD)
            && let Some(words) = matches.get_many::<String>(id.as_str())
        {
            given.push((name.to_owned(), words.cloned().collect()));
        }
    }
    Ok(Some(Line { options, at, given }))
}

/// The names of all `--name` words; those of options are sorted out later.
fn unnamed(words: &[String]) -> Vec<String> {
    let own = Global::augment_args(SendOptions::augment_args(Command::new("send")));
    let own: Vec<_> = own.get_arguments().filter_map(Arg::get_long).collect();
    let mut names = Vec::new();
    for word in words {
        let Some(name) = word.strip_prefix("--").map(|word| word.split('=').next().unwrap_or_default())
        else {
            continue;
        };
        let name = name.strip_prefix("data-").unwrap_or(name).to_owned();
        let option = own.contains(&name.as_str()) && !word.starts_with("--data-");
        if !name.is_empty() && name != "help" && !option && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Options before the event, and those behind it on top.
fn merged(before: &SendOptions, behind: SendOptions) -> SendOptions {
    SendOptions {
        json: behind.json.or_else(|| before.json.clone()),
        stream: behind.stream || before.stream,
        emit: behind.emit || before.emit,
        wait: behind.wait || before.wait,
        idempotency_key: behind.idempotency_key.or_else(|| before.idempotency_key.clone()),
        expires_in: behind.expires_in.or(before.expires_in),
        correlation_id: behind.correlation_id.or_else(|| before.correlation_id.clone()),
    }
}

fn with_globals(at: &Invocation, global: &Global, matches: &ArgMatches) -> Result<Invocation> {
    let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    if given("socket") {
        return Err(Failure::usage("--socket comes before the event: its flags are asked from that socket"));
    }
    let mut at = at.clone();
    if given("color") {
        at.out = Output::new(at.out.format, at.out.headers, at.out.quiet, global.color);
    }
    if given("output") {
        at.out.format = global.output;
    }
    at.out.quiet |= global.quiet;
    at.out.headers &= !global.no_headers;
    at.timeout = global.timeout.or(at.timeout);
    Ok(at)
}

/// The parser's words, without the usage that it appends.
fn mistake(error: &clap::Error, event: &str) -> Failure {
    let hint = format!("its fields: ksi send {event} --help");
    let word = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
    if error.kind() == ErrorKind::UnknownArgument {
        if !word.starts_with('-') {
            return Failure::usage(format!("`{event}` takes fields as --key value, not `{word}`")).hint(hint);
        }
        let near = error.get(ContextKind::SuggestedArg).map(ToString::to_string);
        let near = near.map_or(String::new(), |near| format!("; did you mean {near}?"));
        return Failure::usage(format!("`{event}` has no field {word}{near}")).hint(hint);
    }
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    Failure::usage(first.strip_prefix("error: ").unwrap_or(first)).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use ksi_protocol::system::EventKind;
    use serde_json::{Value, json};

    fn info(request: Option<Value>) -> EventInfo {
        EventInfo {
            event: "echo:say".into(),
            owner: "echo".into(),
            kind: EventKind::Request,
            about: "Say something and get it back.".into(),
            available: true,
            delivery: "live".into(),
            permission: "echo.use".into(),
            timeout_ms: None,
            request,
            reply: None,
            chunk: None,
        }
    }

    fn say() -> Option<Value> {
        Some(json!({
            "type": "object",
            "properties": {
                "text": {"type": "string", "description": "What to say."},
                "max_tokens": {"type": "integer"},
                "loud": {"type": "boolean"},
                "timeout": {"type": "number", "description": "Clashes with an option."}
            },
            "required": ["text"], "additionalProperties": false
        }))
    }

    /// The payload that a command line makes, or what it fails with.
    fn payload(request: Option<Value>, line: &str) -> Result<Value> {
        let cli = args::Cli::try_parse_from(line.split_whitespace()).unwrap();
        let at = Invocation::new(&cli.global);
        let Some(args::Verb::Send(send)) = cli.verb else { panic!("not send") };
        let info = info(request);
        let fields = Fields::of(info.request.as_ref());
        let read = read(&at, &send, &info, &fields)?.unwrap();
        fields.payload(&info.event, Value::Null, &read.given)
    }

    #[test]
    fn flags_are_the_fields_of_the_schema() {
        let line = "ksi send echo:say --text hi --max-tokens -3 --loud --data-timeout 1.5 --timeout 9s";
        assert_eq!(
            payload(say(), line).unwrap(),
            json!({"text": "hi", "max_tokens": -3, "loud": true, "timeout": 1.5})
        );
        assert_eq!(
            payload(say(), "ksi send echo:say --text=--x --max_tokens 2 --loud false").unwrap(),
            json!({"text": "--x", "max_tokens": 2, "loud": false})
        );
    }

    #[test]
    fn an_unknown_flag_is_a_usage_error_with_the_nearest_field() {
        let failure = payload(say(), "ksi send echo:say --txt hi").unwrap_err();
        assert_eq!(failure.exit as u8, 2);
        assert_eq!(failure.message, "`echo:say` has no field --txt; did you mean --text?");
    }

    #[test]
    fn a_stray_word_is_a_usage_error() {
        let failure = payload(say(), "ksi send echo:say hi").unwrap_err();
        assert_eq!(failure.message, "`echo:say` takes fields as --key value, not `hi`");
    }

    #[test]
    fn without_a_schema_any_flag_goes_and_options_stay_options() {
        assert_eq!(
            payload(None, "ksi send a:b --n 5 --t=x -o json --stream --data-json 7").unwrap(),
            json!({"n": 5, "t": "x", "json": 7})
        );
    }

    #[test]
    fn options_behind_the_event_win_over_those_before_it() {
        let line = "ksi -o yaml send --json {} echo:say --text hi -o json --timeout 5s --json []";
        let cli = args::Cli::try_parse_from(line.split_whitespace()).unwrap();
        let at = Invocation::new(&cli.global);
        let Some(args::Verb::Send(send)) = cli.verb else { panic!("not send") };
        let info = info(say());
        let line = read(&at, &send, &info, &Fields::of(info.request.as_ref())).unwrap().unwrap();
        assert_eq!(line.at.out.format, crate::output::Format::Json);
        assert_eq!(line.at.timeout, Some(std::time::Duration::from_secs(5)));
        assert_eq!(line.options.json.as_deref(), Some("[]"));
    }

    #[test]
    fn the_help_of_an_event_shows_types_and_documentation() {
        let info = info(say());
        let help = command(&info, &Fields::of(info.request.as_ref()), &[]).render_help().to_string();
        for part in [
            "Say something and get it back.",
            "--text <text>",
            "What to say. [required]",
            "--data-timeout",
            "--json",
        ] {
            assert!(help.contains(part), "no `{part}` in:\n{help}");
        }
    }
}
