//! The other face of the socket: a connection that speaks JSON, line by line.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
};

use serde_json::{Value, json};

/// A connection that speaks JSON lines.
#[derive(Debug)]
pub struct Lines {
    reader: BufReader<UnixStream>,
}

impl Lines {
    /// Over an open socket.
    #[must_use]
    pub fn new(socket: UnixStream) -> Self {
        Self { reader: BufReader::new(socket) }
    }

    /// Sends a line.
    ///
    /// # Panics
    ///
    /// Where the daemon does not take it.
    pub fn send(&mut self, line: &Value) {
        self.send_text(&line.to_string());
    }

    /// Sends a line to a peer that may be gone.
    pub fn try_send(&mut self, line: &Value) -> bool {
        self.reader.get_mut().write_all(format!("{line}\n").as_bytes()).is_ok()
    }

    /// Sends a text and a newline.
    ///
    /// # Panics
    ///
    /// Where the daemon does not take it.
    pub fn send_text(&mut self, line: &str) {
        self.reader.get_mut().write_all(format!("{line}\n").as_bytes()).expect("the daemon takes a line");
    }

    /// The next line; `None` at the end.
    ///
    /// # Panics
    ///
    /// Where the line is no JSON, or does not come before the deadline.
    pub fn try_receive(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no line from the daemon: {error}"),
        }
    }

    /// The next line.
    ///
    /// # Panics
    ///
    /// Where there is none.
    pub fn receive(&mut self) -> Value {
        self.try_receive().expect("the daemon says something")
    }

    /// One request: its data, or what `accepted` says, or its refusal.
    ///
    /// # Errors
    ///
    /// The refusal, as JSON.
    ///
    /// # Panics
    ///
    /// Where the daemon does not answer.
    pub fn ask(&mut self, event: &str, data: Value) -> Result<Value, Value> {
        self.send(&json!({"event": event, "data": data}));
        loop {
            let mut answer = self.receive();
            if answer.get("chunk").is_some() {
                continue;
            }
            if let Some(refusal) = answer.get_mut("refusal") {
                return Err(refusal.take());
            }
            let part = if answer.get("accepted").is_some() { "accepted" } else { "data" };
            return Ok(answer[part].take());
        }
    }

    /// Whether something has come that was not taken yet.
    ///
    /// # Panics
    ///
    /// Where the socket is gone.
    pub fn has_come(&mut self) -> bool {
        self.reader.get_ref().set_nonblocking(true).expect("a socket can be asked without waiting");
        let came = self.reader.fill_buf().is_ok_and(|bytes| !bytes.is_empty());
        self.reader.get_ref().set_nonblocking(false).expect("and with");
        came
    }

    /// Ends the sending side, as `nc -N` does.
    ///
    /// # Panics
    ///
    /// Where the socket is gone.
    pub fn half_close(&mut self) {
        self.reader.get_mut().shutdown(std::net::Shutdown::Write).expect("the socket is there");
    }

    /// Everything until the end, raw.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // What came before a reset still counts.
        let _ = self.reader.read_to_end(&mut rest);
        rest
    }
}
