//! A text that somebody shows as a token.
//!
//! What has the form of one is made of its parts again, and no `Debug` shows it.
#![no_main]

use ksi_protocol::token::Token;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let token = Token::new(text);
    if let Some(id) = token.id() {
        let secret = &token.expose()["ksi_".len() + id.len() + 1..];
        assert_eq!(Token::of(id, secret), token);
    }
    assert_eq!(format!("{token:?}"), "Token(***)");
});
