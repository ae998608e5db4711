//! Golden frames: one file of bytes and one of JSON for every kind of frame.
//!
//! `tests/golden/NAME.hex` holds a whole frame as it is on the wire, length
//! prefix first; `NAME.json` the same frame for readers, payloads decoded.
//! Encoding must give these bytes and decoding these frames, so a change of
//! the wire cannot happen unnoticed. With `KSI_BLESS=1` the files are written
//! instead; read the difference before committing it.

use std::{collections::BTreeSet, fs, path::PathBuf};

use bytes::BytesMut;
use ksi_protocol::{
    Bytes, Code, Frame, Refusal,
    frame::{Gap, Welcome},
    json,
};
use serde_json::{Value, json};

use crate::samples;

fn golden(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

fn blessing() -> bool {
    std::env::var_os("KSI_BLESS").is_some()
}

fn read(file: &str) -> String {
    fs::read_to_string(golden(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn wire(frame: &Frame) -> BytesMut {
    let mut buffer = BytesMut::new();
    frame.encode(&mut buffer).unwrap();
    buffer
}

fn hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    bytes.chunks(24).map(line).collect::<Vec<_>>().join("\n") + "\n"
}

fn unhex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

/// The frame for readers: its fields, with payloads decoded in place.
fn readable(body: &[u8]) -> Value {
    let mut value = json::to_json(body).unwrap();
    if let Some(fields) = value.as_object_mut().and_then(|kinds| kinds.values_mut().next()) {
        for name in ["data", "config", "edit"] {
            if let Some(payload) = fields.get_mut(name) {
                let bytes: Vec<u8> = serde_json::from_value(payload.clone()).unwrap();
                *payload = json::to_json(&bytes).unwrap();
            }
        }
    }
    value
}

#[test]
fn every_sample_is_encoded_as_its_golden_bytes_and_decoded_from_them() {
    for (name, frame) in samples::all() {
        let (bytes, file) = (wire(&frame), format!("{name}.hex"));
        if blessing() {
            fs::write(golden(&file), hex(&bytes)).unwrap();
        }
        let golden = unhex(&read(&file));
        assert_eq!(hex(&bytes), hex(&golden), "{name}: encoding has changed");
        let mut buffer = BytesMut::from(&golden[..]);
        let decoded = Frame::split(&mut buffer).unwrap().expect("a golden file holds a whole frame");
        assert_eq!(decoded, frame, "{name}: decoding has changed");
        assert!(buffer.is_empty(), "{name}: bytes after the frame");
    }
}

#[test]
fn every_golden_frame_reads_as_its_json() {
    for (name, frame) in samples::all() {
        let (value, file) = (readable(&wire(&frame)[4..]), format!("{name}.json"));
        if blessing() {
            fs::write(golden(&file), serde_json::to_string_pretty(&value).unwrap() + "\n").unwrap();
        }
        assert_eq!(value, serde_json::from_str::<Value>(&read(&file)).unwrap(), "{name}");
    }
}

#[test]
fn every_kind_of_frame_has_a_golden_file_and_no_file_is_without_a_sample() {
    let names: BTreeSet<String> = samples::all().into_iter().map(|(name, _)| name.to_owned()).collect();
    let covered: BTreeSet<&str> = names.iter().filter_map(|name| name.split('-').next()).collect();
    let kinds: BTreeSet<&str> = samples::kinds().iter().copied().collect();
    assert_eq!(covered, kinds, "a sample is named KIND or KIND-VARIETY");
    for (name, frame) in samples::all() {
        assert_eq!(name.split('-').next(), Some(samples::kind(&frame).as_str()), "{name} is misnamed");
    }
    for entry in fs::read_dir(golden("")).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let stem = file.split('.').next().unwrap_or_default();
        assert!(stem == "lines" || names.contains(stem), "{file} belongs to no sample");
    }
}

/// One line of each shape that the JSON face answers with.
fn lines() -> Vec<String> {
    let id = json!("q1");
    let heading = json::Heading { id: Some(&id), event: "echo:say", correlation_id: "c-1", at_ms: 1_000 };
    let bare = json::Heading { id: None, ..heading };
    let data = ksi_protocol::encode(&json!({"text": "hi"})).unwrap();
    let refusal = Refusal::new(Code::Busy, "too many requests").retry_after_ms(250);
    let welcome = Welcome {
        version: 1,
        server: "ksid 0.1.0".into(),
        features: vec![],
        session: "session:2".into(),
        boot: "6f1c".into(),
    };
    let gap = Gap { sub: 3, missed: 2, from_seq: 5, to_seq: 6 };
    vec![
        heading.reply(&data),
        bare.reply(&Bytes::from_static(&[0x80])),
        heading.chunk(&data),
        heading.end(&data),
        heading.accepted("r-9", 41),
        heading.refusal(&refusal),
        bare.event(&json!(3), 7, "session:2", &data),
        json::gap_line(&json!(3), &gap),
        json::refusal_line(Some(&id), &refusal),
        json::refusal_line(None, &refusal),
        json::welcome_line(Some(&id), &welcome),
        bare.reply(&[0xc1]),
    ]
}

#[test]
fn every_answer_of_the_json_face_reads_as_its_golden_line() {
    if blessing() {
        fs::write(golden("lines.jsonl"), lines().join("\n") + "\n").unwrap();
    }
    let parse = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    let golden: Vec<Value> = read("lines.jsonl").lines().map(parse).collect();
    assert_eq!(lines().iter().map(|line| parse(line)).collect::<Vec<_>>(), golden);
    assert!(lines().iter().all(|line| !line.contains('\n')), "a line is one line");
}
