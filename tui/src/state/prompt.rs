//! The line that is being typed: a filter (`/`) or a command (`:`).
//!
//! A filter holds while it is typed, so its effect is seen at once; esc brings
//! the former one back. A command is done on enter.

use crossterm::event::KeyCode;

use super::{PROMPT_BYTES_MAX, State, View, filter::Filter};

/// What the line is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// `/`: show only what matches.
    Filter,
    /// `:`: go to a view, or quit.
    Command,
}

/// A line that is being typed.
#[derive(Debug)]
pub(crate) struct Prompt {
    /// What it is for.
    pub(crate) purpose: Purpose,
    /// What was typed so far.
    pub(crate) text: String,
    /// Why the text is not yet in force.
    pub(crate) error: Option<String>,
    /// The filter that held before.
    before: String,
}

impl Prompt {
    /// An empty line; `before` comes back on esc.
    pub(crate) fn new(purpose: Purpose, before: String) -> Self {
        Self { purpose, text: String::new(), error: None, before }
    }
}

impl State {
    /// One key of the line.
    pub(super) fn typed(&mut self, code: KeyCode) {
        let Some(mut prompt) = self.prompt.take() else { return };
        match code {
            KeyCode::Esc => {
                if prompt.purpose == Purpose::Filter {
                    self.set_filter(&prompt.before);
                }
                return;
            }
            KeyCode::Enter => {
                match prompt.purpose {
                    Purpose::Filter => self.notice = prompt.error,
                    Purpose::Command => self.command(prompt.text.trim()),
                }
                return;
            }
            KeyCode::Backspace => {
                prompt.text.pop();
            }
            KeyCode::Char(c) if prompt.text.len() + c.len_utf8() <= PROMPT_BYTES_MAX && !c.is_control() => {
                prompt.text.push(c);
            }
            _ => {}
        }
        if prompt.purpose == Purpose::Filter {
            prompt.error = None;
            if self.view == View::Events
                && let Err(error) = Filter::parse(&prompt.text)
            {
                prompt.error = Some(error);
            } else {
                let text = prompt.text.clone();
                self.set_filter(&text);
            }
        }
        self.prompt = Some(prompt);
    }

    /// The filter of the current view, as it was typed.
    pub(super) fn filter_text(&self) -> String {
        match self.view {
            View::Overview => String::new(),
            View::Events => self.events.filter().to_string(),
            View::Plugins => self.plugins.filter.to_string(),
        }
    }

    /// Puts a filter in force in the current view. A text that is none (its
    /// author is still typing) changes nothing.
    pub(super) fn set_filter(&mut self, text: &str) {
        match self.view {
            View::Overview => {}
            View::Events => {
                if let Ok(filter) = Filter::parse(text) {
                    self.events.set_filter(filter);
                }
            }
            View::Plugins => self.plugins.filter = Filter::text(text),
        }
    }

    /// Does a command: the name of a view or the beginning of one, `help`, or
    /// `q`.
    fn command(&mut self, text: &str) {
        let text = text.to_ascii_lowercase();
        let means = |name: &str| !text.is_empty() && name.to_ascii_lowercase().starts_with(&text);
        if text.is_empty() {
        } else if let Some(view) = View::ALL.into_iter().find(|view| means(view.name())) {
            self.view = view;
            self.help = false;
        } else if means("quit") || text == "exit" {
            self.quit = true;
        } else if means("help") {
            self.help = true;
        } else {
            self.notice = Some(format!("no command `{text}`: overview, events, plugins, help or q"));
        }
    }
}
