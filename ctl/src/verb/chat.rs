//! `chat`: a conversation in the terminal.
//!
//! The turns live here and in a file of their own, so that a conversation can
//! be resumed; each turn sends them all, under one `conversation_id`, and what
//! the model has no room for is left out, the oldest first, and told. A thread
//! reads lines, because a terminal cannot be read asynchronously; it reads only
//! when it is told to. A program that reads the output gets each answer as `ask`
//! gives it.

mod command;
mod prompt;
mod transcript;

use ksi_provider::{Message, Role, completion::Completed};
use serde_json::Value;

use crate::{
    answer::{self, Printer, Question},
    args,
    error::{Failure, Result},
    invocation::Invocation,
    time::now_ms,
    verb::interrupt,
};

use command::Command;
use prompt::{Line, Prompt};
use transcript::Transcript;

/// `ksi chat`.
///
/// # Errors
///
/// Fails where the daemon is not running at the start; later refusals are
/// shown, and the conversation goes on.
pub(super) async fn chat(at: &Invocation, options: args::Chat) -> Result<()> {
    let dir = at.paths.state_dir.join("chats");
    let mut transcript = match &options.resume {
        Some(id) => Transcript::load(&dir, id)?,
        None => Transcript::new(&dir, new_id()),
    };
    let args::Sampling { model, system, .. } = &options.sampling;
    transcript.set_model(model.clone());
    transcript.set_system(system.clone());
    at.connect().await?;
    let mut prompt = Prompt::start(at.paths.state_dir.join("chat_history"))?;
    at.out.note("/help shows what else there is; Ctrl-D leaves");
    loop {
        let line = tokio::select! {
            line = prompt.line("> ") => line?,
            failure = interrupt() => return Err(failure),
        };
        match line {
            Line::Text(text) => match Command::parse(&text) {
                Some(Command::Exit) => break,
                Some(command) => at.out.warn(&command.apply(&mut transcript)),
                None if text.trim().is_empty() => {}
                None => turn(at, &options.sampling, &mut transcript, said(text)).await?,
            },
            Line::Interrupted => at.out.note("/exit or Ctrl-D leaves"),
            Line::Eof => break,
        }
    }
    if transcript.is_saved() {
        at.out.note(&format!("go on later: ksi chat --resume {}", transcript.id()));
    }
    Ok(())
}

/// What is said: a second slash at the start only tells it from a command.
fn said(text: String) -> String {
    if text.starts_with("//") { text[1..].to_owned() } else { text }
}

/// One question and its answer. A failure of the model or the daemon is shown
/// and takes the question back; only a failing output ends the chat.
async fn turn(
    at: &Invocation,
    sampling: &args::Sampling,
    transcript: &mut Transcript,
    text: String,
) -> Result<()> {
    transcript.push(Message::new(Role::User, text));
    let question = Question {
        messages: Some(transcript.messages().to_vec()),
        trim: true,
        conversation_id: Some(transcript.id().to_owned()),
        model: transcript.model().map(str::to_owned),
        system: transcript.system().map(str::to_owned),
        ..Question::new(sampling, at.timeout)
    };
    let mut said = String::new();
    let mut printer = Printer::new(at.out);
    let answered = answered(at, &question, |piece| {
        said.push_str(piece);
        printer.chunk(piece)
    });
    let outcome = tokio::select! {
        outcome = answered => outcome,
        _ = interrupt() => Err(Failure::interrupted()),
    };
    printer.finish()?;
    match outcome {
        Ok((end, completed)) => {
            if !at.out.people() {
                at.out.item(&answer::report(at.out, end, &completed))?;
            }
            answer::tell(&completed, at.out, sampling.verbose);
            if let Some(note) = answer::toy_note(&completed).filter(|_| transcript.messages().len() == 1) {
                at.out.warn(&note);
            }
            said = if completed.text.is_empty() { said } else { completed.text };
        }
        Err(failure) if failure.silent && failure.exit == crate::exit::Exit::Interrupted => {
            at.out.note("(cancelled)");
        }
        Err(failure) => at.out.fail(&failure),
    }
    if said.is_empty() {
        transcript.pop();
        return Ok(());
    }
    transcript.push(Message::new(Role::Assistant, said));
    if let Err(failure) = transcript.save() {
        at.out.fail(&failure);
    }
    Ok(())
}

/// A connection for each turn: a daemon that was restarted in between does not
/// end the conversation.
async fn answered(
    at: &Invocation,
    question: &Question,
    on_text: impl FnMut(&str) -> Result<()>,
) -> Result<(Value, Completed)> {
    let client = at.connect().await?;
    answer::stream(&client, question, at.call(), on_text).await
}

/// An id that no other conversation of this user has.
fn new_id() -> String {
    format!("chat-{:x}-{:x}", now_ms(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubled_slash_is_said_as_one() {
        assert_eq!(said("//etc".into()), "/etc");
        assert_eq!(said("a //b".into()), "a //b");
    }
}
