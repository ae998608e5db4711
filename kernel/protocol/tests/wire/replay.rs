//! The fuzzing corpora, replayed: what the fuzzer has found once stays found.
//!
//! Every file of `fuzz/corpus/TARGET` goes through the same code as in
//! `fuzz/targets/TARGET.rs`, and the same properties are checked.

use std::{fs, path::PathBuf};

use bytes::BytesMut;
use ksi_protocol::{EventName, Frame, Pattern, frame::Error, json, token::Token};

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    assert!(files.len() >= 10, "the corpus of `{target}` is missing");
    files
}

#[test]
fn the_corpus_of_frames_is_decoded_or_refused() {
    let (mut decoded, mut refused) = (0, 0);
    for (path, bytes) in corpus("frame") {
        let mut buffer = BytesMut::from(&bytes[..]);
        loop {
            match Frame::split(&mut buffer) {
                Ok(Some(frame)) => {
                    let mut again = BytesMut::new();
                    frame.encode(&mut again).unwrap();
                    assert_eq!(Frame::split(&mut again).unwrap(), Some(frame), "{}", path.display());
                    decoded += 1;
                }
                Ok(None) => break,
                Err(Error::TooLarge(_)) => {
                    refused += 1;
                    break;
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(decoded > 20 && refused > 10, "{decoded} decoded, {refused} refused");
}

#[test]
fn the_corpus_of_lines_is_parsed_or_refused() {
    let (mut parsed, mut refused) = (0, 0);
    for (path, bytes) in corpus("json") {
        match json::parse(&bytes) {
            Ok(input) => {
                parsed += 1;
                if let json::Verb::Request { data, .. } | json::Verb::Emit { data, .. } = input.verb {
                    json::to_json(&data).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                }
            }
            Err(malformed) => {
                refused += 1;
                assert!(!malformed.refusal.message.is_empty(), "{}", path.display());
            }
        }
    }
    assert!(parsed > 5 && refused > 10, "{parsed} parsed, {refused} refused");
}

#[test]
fn the_corpus_of_patterns_is_matched_or_refused() {
    for (path, bytes) in corpus("pattern") {
        let Ok(text) = std::str::from_utf8(&bytes) else { continue };
        let (pattern, name) = text.split_once('\n').unwrap_or((text, "a:b"));
        let (Ok(pattern), Ok(name)) = (Pattern::parse(pattern), EventName::parse(name)) else { continue };
        let matches = pattern.matches(name.as_str());
        match pattern.exact() {
            Some(exact) => assert_eq!(matches, exact == name, "{}", path.display()),
            None if pattern.as_str() == "**" => assert!(matches, "{}", path.display()),
            None => {}
        }
    }
}

#[test]
fn the_corpus_of_tokens_is_taken_apart_or_is_none() {
    let mut tokens = 0;
    for (path, bytes) in corpus("token") {
        let Ok(text) = std::str::from_utf8(&bytes) else { continue };
        let token = Token::new(text);
        if let Some(id) = token.id() {
            let secret = &token.expose()["ksi_".len() + id.len() + 1..];
            assert_eq!(Token::of(id, secret), token, "{}", path.display());
            tokens += 1;
        }
        assert_eq!(format!("{token:?}"), "Token(***)");
    }
    assert!(tokens >= 2, "{tokens}");
}
