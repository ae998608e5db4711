//! `ask`: one question, one answer, streamed.

use std::{
    io::{self, IsTerminal},
    path::Path,
};

use serde_json::{Value, json};

use crate::{
    answer::{self, Printer, Question},
    args,
    error::{Failure, Result},
    input,
    invocation::Invocation,
    output::Report,
};

/// `ksi ask`.
///
/// # Errors
///
/// Fails as the daemon refuses.
pub(super) async fn ask(at: &Invocation, options: args::Ask) -> Result<()> {
    let question = Question {
        prompt: Some(prompt(options.prompt)?),
        priority: options.priority,
        fallbacks: options.fallback,
        response_format: options.schema.as_deref().map(response_format).transpose()?,
        ..Question::new(&options.sampling, at.timeout)
    };
    let client = at.connect().await?;
    // A person is shown JSON only as a whole, and only once it is known to fit.
    let whole = at.out.people() && options.schema.is_some();
    let mut printer = Printer::new(at.out);
    let pieces = |text: &str| if whole { Ok(()) } else { printer.chunk(text) };
    let answered = answer::stream(&client, &question, at.call(), pieces).await;
    printer.finish()?;
    let (end, completed) = answered?;
    if whole {
        at.out.print(&Report::text(&end, pretty(&completed.text)?)?)?;
    } else if !at.out.people() {
        at.out.print(&answer::report(at.out, end, &completed))?;
    }
    answer::tell(&completed, at.out, options.sampling.verbose);
    if let Some(note) = answer::toy_note(&completed) {
        at.out.warn(&note);
    }
    Ok(())
}

/// What a file with a JSON schema asks for.
fn response_format(file: &Path) -> Result<Value> {
    let name = file.display();
    let text = input::file(file)?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(schema)) => Ok(json!({ "json_schema": { "schema": schema } })),
        Ok(_) => Err(Failure::usage(format!("the schema {name} is not a JSON object"))
            .hint(r#"such as {"type":"object","properties":{"name":{"type":"string"}}}"#)),
        Err(error) => Err(Failure::usage(format!("the schema {name} is no JSON: {error}"))),
    }
}

fn pretty(text: &str) -> Result<String> {
    let value: Value = serde_json::from_str(text.trim())
        .map_err(|error| Failure::failed(format!("the answer is no JSON: {error}")))?;
    serde_json::to_string_pretty(&value)
        .map_err(|error| Failure::failed(format!("cannot be written as JSON: {error}")))
}

/// The question: the argument, or standard input where that is not a person.
fn prompt(argument: Option<String>) -> Result<String> {
    let prompt = match argument {
        Some(text) if text != "-" => text,
        None if io::stdin().is_terminal() => {
            return Err(Failure::usage("nothing was asked")
                .hint("ksi ask \"hello\", or pipe the question in: git log -5 | ksi ask"));
        }
        _ => input::standard()?,
    };
    if prompt.trim().is_empty() {
        return Err(Failure::usage("the question is empty").hint("ksi ask \"hello\""));
    }
    Ok(prompt)
}
