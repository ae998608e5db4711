//! What was said in one conversation, and the file that keeps it.

use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use ksi_provider::{Message, Role};
use serde_json::{Value, json};

use crate::error::{Failure, Result};

/// One conversation.
#[derive(Debug)]
pub(super) struct Transcript {
    dir: PathBuf,
    id: String,
    model: Option<String>,
    system: Option<String>,
    messages: Vec<Message>,
    saved: bool,
}

impl Transcript {
    /// A conversation in which nothing has been said.
    pub(super) fn new(dir: &Path, id: String) -> Self {
        Self { dir: dir.to_owned(), id, model: None, system: None, messages: Vec::new(), saved: false }
    }

    /// Reads a conversation from its file.
    ///
    /// # Errors
    ///
    /// Fails where there is none of this id, or its file is damaged.
    pub(super) fn load(dir: &Path, id: &str) -> Result<Self> {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if id.is_empty() || !id.bytes().all(known) {
            return Err(Failure::usage(format!("`{id}` is no id of a conversation")));
        }
        let mut transcript = Self::new(dir, id.to_owned());
        let path = transcript.path();
        let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Failure::not_found("conversation", id)
                .hint(format!("those that can be resumed lie in {}", dir.display())),
            _ => Failure::to_file("read", &path, &error),
        })?;
        transcript.fill(&text).ok_or_else(|| {
            Failure::failed(format!("{} is damaged", path.display())).hint("remove the file")
        })?;
        Ok(transcript)
    }

    fn fill(&mut self, text: &str) -> Option<()> {
        let data: Value = serde_json::from_str(text).ok()?;
        let string = |key: &str| data.get(key).and_then(Value::as_str).map(str::to_owned);
        self.model = string("model");
        self.system = string("system");
        for message in data.get("messages")?.as_array()? {
            let role = match message.get("role")?.as_str()? {
                "user" => Role::User,
                "assistant" => Role::Assistant,
                _ => return None,
            };
            self.messages.push(Message::new(role, message.get("content")?.as_str()?));
        }
        self.saved = true;
        Some(())
    }

    fn path(&self) -> PathBuf {
        self.dir.join(format!("{}.json", self.id))
    }

    /// Writes the conversation to its file, which only its user can read.
    ///
    /// # Errors
    ///
    /// Fails where that cannot be written; the old file then stays.
    pub(super) fn save(&mut self) -> Result<()> {
        let Self { id, model, system, messages, .. } = &*self;
        let data = json!({"conversation_id": id, "model": model, "system": system, "messages": messages});
        let path = self.path();
        let part = self.dir.join(format!(".{}.part", self.id));
        let written = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).and_then(|()| {
            let mut file =
                fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&part)?;
            file.write_all(data.to_string().as_bytes())?;
            fs::rename(&part, &path)
        });
        written.map_err(|error| Failure::to_file("write", &path, &error))?;
        self.saved = true;
        Ok(())
    }

    /// Its id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Whether it can be resumed.
    pub(super) fn is_saved(&self) -> bool {
        self.saved
    }

    /// All turns.
    pub(super) fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Adds a turn.
    pub(super) fn push(&mut self, message: Message) {
        self.messages.push(message);
    }

    /// Takes the last turn back.
    pub(super) fn pop(&mut self) {
        self.messages.pop();
    }

    /// Forgets all turns.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
    }

    /// Who shall answer.
    pub(super) fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// Changes who shall answer, where somebody is given.
    pub(super) fn set_model(&mut self, model: Option<String>) {
        self.model = model.or(self.model.take());
    }

    /// What the model shall be.
    pub(super) fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// Changes what the model shall be, where something is given.
    pub(super) fn set_system(&mut self, system: Option<String>) {
        self.system = system.or(self.system.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_conversation_survives_its_file_which_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let mut transcript = Transcript::new(dir.path(), "chat-1".into());
        transcript.set_system(Some("be kind".into()));
        transcript.push(Message::new(Role::User, "hi"));
        transcript.push(Message::new(Role::Assistant, "hello"));
        transcript.save().unwrap();
        let loaded = Transcript::load(dir.path(), "chat-1").unwrap();
        assert_eq!(loaded.messages(), transcript.messages());
        assert_eq!(loaded.system(), Some("be kind"));
        let mode = fs::metadata(dir.path().join("chat-1.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn an_unknown_or_damaged_conversation_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Transcript::load(dir.path(), "none").unwrap_err().exit as u8, 4);
        assert_eq!(Transcript::load(dir.path(), "../x").unwrap_err().exit as u8, 2);
        fs::write(dir.path().join("bad.json"), "{").unwrap();
        assert!(Transcript::load(dir.path(), "bad").unwrap_err().message.contains("damaged"));
    }
}
