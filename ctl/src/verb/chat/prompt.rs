//! The thread that reads lines for a chat.
//!
//! It waits for a prompt, shows it, reads one line and hands it over. Both
//! ways hold one item: there is never more than one question open.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
};

use rustyline::{Behavior, Config, DefaultEditor, error::ReadlineError};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::error::{Failure, Result};

/// What a person did at the prompt.
pub(super) enum Line {
    /// A line.
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D, or the end of a pipe.
    Eof,
}

/// Handle on the thread. The thread ends with it, or with the process while
/// it still reads.
pub(super) struct Prompt {
    prompts: Sender<&'static str>,
    lines: Receiver<Result<Line>>,
}

impl Prompt {
    /// Starts the thread. `history` is read, and every line is appended to it.
    ///
    /// # Errors
    ///
    /// Fails where the terminal cannot be read or no thread can be had.
    pub(super) fn start(history: PathBuf) -> Result<Self> {
        // Where the answers go to a program, the prompt does not go with them.
        let piped = io::stdin().is_terminal() && !io::stdout().is_terminal();
        let behavior = if piped { Behavior::PreferTerm } else { Behavior::Stdio };
        let mut editor = DefaultEditor::with_config(Config::builder().behavior(behavior).build())
            .map_err(|error| Failure::failed(format!("cannot read the terminal: {error}")))?;
        // A history that is not there yet, or cannot be read, is just empty.
        let _ = editor.load_history(&history);
        let (prompts, asked) = channel(1);
        let (answer, lines) = channel(1);
        std::thread::Builder::new()
            .name("prompt".into())
            .spawn(move || read(editor, &history, asked, &answer))
            .map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
        Ok(Self { prompts, lines })
    }

    /// Shows a prompt and waits for a line.
    ///
    /// # Errors
    ///
    /// Fails where the terminal does.
    pub(super) async fn line(&mut self, prompt: &'static str) -> Result<Line> {
        let gone = || Failure::failed("the terminal can no longer be read");
        self.prompts.send(prompt).await.map_err(|_| gone())?;
        self.lines.recv().await.unwrap_or_else(|| Err(gone()))
    }
}

fn read(
    mut editor: DefaultEditor,
    history: &PathBuf,
    mut asked: Receiver<&'static str>,
    answer: &Sender<Result<Line>>,
) {
    while let Some(prompt) = asked.blocking_recv() {
        let line = match editor.readline(prompt) {
            Ok(text) => {
                // The conversation matters more than its history.
                let _ = editor.add_history_entry(text.as_str()).and_then(|_| editor.append_history(history));
                Ok(Line::Text(text))
            }
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::Eof),
            Err(error) => Err(Failure::failed(format!("cannot read the terminal: {error}"))),
        };
        if answer.blocking_send(line).is_err() {
            return;
        }
    }
}
