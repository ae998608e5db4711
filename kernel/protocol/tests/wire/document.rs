//! `PROTOCOL.md` is complete: it has a section for every frame with all its
//! fields, one for every code, and a row with the right value for every limit.

use std::{collections::BTreeSet, time::Duration};

use ksi_protocol::{Code, PROTOCOL_VERSION, json, limits};
use serde_json::Value;

use crate::samples;

const DOCUMENT: &str = include_str!("../../PROTOCOL.md");
const LIMITS: &str = include_str!("../../src/limits.rs");

/// The text from the heading `### \`name\`` to the next heading.
fn section(name: &str) -> &'static str {
    let heading = format!("### `{name}`\n");
    let start = DOCUMENT.find(&heading).unwrap_or_else(|| panic!("PROTOCOL.md has no section `{name}`"));
    let text = &DOCUMENT[start + heading.len()..];
    text.find("\n#").map_or(text, |end| &text[..end])
}

#[test]
fn every_frame_has_a_section_with_all_its_fields() {
    for (sample, frame) in samples::all() {
        let mut buffer = bytes::BytesMut::new();
        frame.encode(&mut buffer).unwrap();
        let text = section(&samples::kind(&frame));
        let Value::Object(kinds) = json::to_json(&buffer[4..]).unwrap() else { continue };
        for field in kinds.values().flat_map(fields) {
            let named = [format!("`{field}`"), format!("\"{field}\"")];
            assert!(named.iter().any(|name| text.contains(name)), "{sample}: `{field}` is not described");
        }
    }
}

/// The names of all fields, also of maps in maps, but for what the page leaves to
/// others: payloads, schemas, and what has a section of its own.
fn fields(value: &Value) -> Vec<&str> {
    const OPAQUE: [&str; 9] =
        ["data", "config", "edit", "request", "reply", "chunk", "schema", "refusal", "refuse"];
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(name, value)| {
                let inner = if OPAQUE.contains(&name.as_str()) { Vec::new() } else { fields(value) };
                std::iter::once(name.as_str()).chain(inner)
            })
            .collect(),
        Value::Array(list) => list.iter().flat_map(fields).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn every_frame_has_its_place_among_those_that_may_be_sent() {
    let (_, table) = DOCUMENT.split_once("### Who may send what\n").unwrap();
    let (table, _) = table.split_once("\n#").unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| `")).collect();
    for (_, frame) in samples::all() {
        let kind = format!("`{}`", samples::kind(&frame));
        let found = rows.iter().filter(|row| row[1..].split('|').next().unwrap().contains(&kind)).count();
        assert_eq!(found, 1, "{kind} stands in {found} rows of the table");
    }
}

#[test]
fn every_code_has_a_paragraph() {
    for code in Code::ALL {
        assert!(section(code.as_str()).trim().len() > 80, "`{code}` has no paragraph");
    }
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}

#[test]
fn every_limit_has_a_row_with_its_value() {
    let rows = [
        ("FRAME_BYTES_MAX", limits::FRAME_BYTES_MAX.to_string()),
        ("HELLO_BYTES_MAX", limits::HELLO_BYTES_MAX.to_string()),
        ("NAME_BYTES_MAX", limits::NAME_BYTES_MAX.to_string()),
        ("NAME_SEGMENTS_MAX", limits::NAME_SEGMENTS_MAX.to_string()),
        ("CORRELATION_ID_BYTES_MAX", limits::CORRELATION_ID_BYTES_MAX.to_string()),
        ("IDEMPOTENCY_KEY_BYTES_MAX", limits::IDEMPOTENCY_KEY_BYTES_MAX.to_string()),
        ("LINE_ID_BYTES_MAX", limits::LINE_ID_BYTES_MAX.to_string()),
        ("DESCRIPTOR_BYTES_MAX", limits::DESCRIPTOR_BYTES_MAX.to_string()),
        ("DESCRIPTOR_REQUESTS_MAX", limits::DESCRIPTOR_REQUESTS_MAX.to_string()),
        ("DESCRIPTOR_LIST_MAX", limits::DESCRIPTOR_LIST_MAX.to_string()),
        ("DEPTH_MAX", limits::DEPTH_MAX.to_string()),
        ("IN_FLIGHT_MAX", limits::IN_FLIGHT_MAX.to_string()),
        ("SUBSCRIPTIONS_MAX", limits::SUBSCRIPTIONS_MAX.to_string()),
        ("LIVE_EVENTS_MAX", limits::LIVE_EVENTS_MAX.to_string()),
        ("LIVE_BYTES_MAX", limits::LIVE_BYTES_MAX.to_string()),
        ("REPLY_BYTES_MAX", limits::REPLY_BYTES_MAX.to_string()),
        ("REQUEST_TIMEOUT", seconds(limits::REQUEST_TIMEOUT)),
        ("REQUEST_TIMEOUT_MAX", seconds(limits::REQUEST_TIMEOUT_MAX)),
        ("HANDSHAKE_TIMEOUT", seconds(limits::HANDSHAKE_TIMEOUT)),
        ("WRITE_DEADLINE", seconds(limits::WRITE_DEADLINE)),
        ("SOCKET_PATH_BYTES_MAX", limits::SOCKET_PATH_BYTES_MAX.to_string()),
    ];
    let declared: BTreeSet<&str> =
        LIMITS.lines().filter_map(|line| line.strip_prefix("pub const ")?.split(':').next()).collect();
    assert_eq!(declared, rows.iter().map(|(name, _)| *name).collect(), "this test lists every limit");
    for (name, value) in rows {
        let row = format!("| `{name}` | {value} |");
        assert!(DOCUMENT.contains(&row), "PROTOCOL.md lacks the row {row}");
    }
}

#[test]
fn the_version_is_named() {
    assert!(DOCUMENT.contains(&format!("version **{PROTOCOL_VERSION}**")));
}

#[test]
fn the_annotated_example_is_the_golden_frame() {
    let golden: Vec<&str> = include_str!("../golden/request.hex").split_whitespace().collect();
    let (_, example) = DOCUMENT.split_once("```hex\n").expect("PROTOCOL.md has an annotated example");
    let (example, _) = example.split_once("```").expect("the example is closed");
    let bytes: Vec<&str> = example
        .lines()
        .flat_map(|line| line.split(';').next().unwrap_or_default().split_whitespace())
        .collect();
    assert_eq!(bytes, golden);
}
