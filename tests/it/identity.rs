//! Who may do what: tokens on both faces, every permission of the manifest,
//! revocation, what is forged, and tenants that see nothing of each other.

mod permissions;
mod tenants;
mod tokens;

use ksi_protocol::{
    Frame, PROTOCOL_VERSION,
    frame::Hello,
    token::{CreatedToken, Token},
};
use ksi_tests::{Daemon, Home, Lines, frames::Frames};
use serde_json::{Value, json};

const NO_MODEL: &str = "[plugins.llama]\nenabled = false\n";

fn ready() -> Daemon {
    let daemon = Home::with_config(NO_MODEL).start();
    daemon.ready();
    daemon
}

/// Has the owner make a token.
pub(crate) fn create(daemon: &Daemon, can: &[&str], tenant: Option<&str>) -> CreatedToken {
    let made = daemon.ask("token:create", json!({"name": "test", "can": can, "tenant": tenant}));
    serde_json::from_value(made.expect("the owner may")).expect("a token")
}

/// A JSON connection that speaks in the name of a token.
pub(crate) fn lines_as(daemon: &Daemon, token: &Token) -> Lines {
    let mut lines = daemon.lines();
    lines.send(&json!({"hello": {"token": token.expose()}}));
    let welcome = lines.receive();
    assert!(welcome["welcome"]["session"].is_string(), "{welcome}");
    lines
}

/// The same in frames.
pub(crate) fn frames_as(daemon: &Daemon, token: &Token) -> Frames {
    let mut frames = Frames::new(daemon.raw());
    let token = Some(token.clone());
    frames.send(&Frame::Hello(Hello {
        version: PROTOCOL_VERSION,
        client: "test".into(),
        token,
        ..Hello::default()
    }));
    let Frame::Welcome(_) = frames.receive() else { panic!("no welcome") };
    frames
}

fn code(answer: &Result<Value, Value>) -> &str {
    match answer {
        Ok(_) => "ok",
        Err(refusal) => refusal["code"].as_str().expect("a refusal has a code"),
    }
}
