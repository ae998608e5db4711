//! A line from a hostile client of the JSON face, and the same bytes as a
//! payload on its way out.
//!
//! What a line carries must transcode back, and every answer must be one line.
#![no_main]

use ksi_protocol::json::{self, Heading, Verb};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(input) = json::parse(bytes) {
        if let Verb::Request { data, .. } | Verb::Emit { data, .. } = input.verb {
            let value = json::to_json(&data).expect("what was taken in can be shown");
            assert_eq!(json::from_json(&value).expect("and taken in again"), data);
        }
    }
    let heading = Heading { id: None, event: "a:b", correlation_id: "", at_ms: bytes.len() as u64 };
    assert!(!heading.reply(bytes).contains('\n'), "an answer is one line");
});
