//! What begins with `/` in a chat.

use crate::verb::chat::transcript::Transcript;

/// A line that is not for the model.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Leave.
    Exit,
    /// Say what there is.
    Help,
    /// Forget all turns.
    Clear,
    /// Say or change who answers.
    Model(Option<String>),
    /// Say or change what the model shall be.
    System(Option<String>),
    /// Nothing of the above.
    Unknown(String),
}

const HELP: &str = "\
/model [PROVIDER/NAME]  who answers
/system [TEXT]          what the model shall be
/clear                  forget all that was said
/exit                   leave (so does Ctrl-D)
Ctrl-C stops an answer. A line that shall begin with / is written with //.";

impl Command {
    /// Reads a line; `None` for what is said to the model.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let line = line.trim();
        let command = line.strip_prefix('/').filter(|rest| !rest.starts_with('/'))?;
        let (word, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = Some(rest.trim().to_owned()).filter(|rest| !rest.is_empty());
        Some(match word {
            "exit" | "quit" | "q" => Self::Exit,
            "help" | "h" | "?" => Self::Help,
            "clear" => Self::Clear,
            "model" => Self::Model(rest),
            "system" => Self::System(rest),
            other => Self::Unknown(other.to_owned()),
        })
    }

    /// Does it, and gives what to tell the person.
    pub(super) fn apply(self, transcript: &mut Transcript) -> String {
        match self {
            Self::Exit => String::new(),
            Self::Help => HELP.to_owned(),
            Self::Clear => {
                transcript.clear();
                "forgotten".to_owned()
            }
            Self::Model(model) => {
                transcript.set_model(model);
                format!("model: {}", transcript.model().unwrap_or("the default one"))
            }
            Self::System(system) => {
                transcript.set_system(system);
                format!("system: {}", transcript.system().unwrap_or("nothing"))
            }
            Self::Unknown(word) => format!("no command /{word}; /help shows what there is"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_a_slash_are_commands_and_all_others_are_said() {
        for (line, expected) in [
            ("hello", None),
            ("//etc is a path", None),
            ("/exit", Some(Command::Exit)),
            ("/model", Some(Command::Model(None))),
            (" /model llama/x ", Some(Command::Model(Some("llama/x".into())))),
            ("/system be kind", Some(Command::System(Some("be kind".into())))),
            ("/nope", Some(Command::Unknown("nope".into()))),
        ] {
            assert_eq!(Command::parse(line), expected, "{line}");
        }
    }

    #[test]
    fn commands_change_the_conversation() {
        let mut transcript = Transcript::new("/nowhere".as_ref(), "x".into());
        assert_eq!(Command::Model(Some("a/b".into())).apply(&mut transcript), "model: a/b");
        assert_eq!(Command::Model(None).apply(&mut transcript), "model: a/b");
        assert_eq!(transcript.model(), Some("a/b"));
        assert!(Command::Unknown("x".into()).apply(&mut transcript).contains("/help"));
    }
}
