//! A stream of bytes from a hostile peer, split and decoded as a session does.
//!
//! What is decoded must survive encoding and decoding; after a malformed body
//! the framing must hold, so splitting goes on.
#![no_main]

use bytes::BytesMut;
use ksi_protocol::{Frame, frame::Error};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut buffer = BytesMut::from(bytes);
    loop {
        let before = buffer.len();
        match Frame::split(&mut buffer) {
            Ok(Some(frame)) => {
                let mut again = BytesMut::new();
                frame.encode(&mut again).expect("what came in fits on the way out");
                assert_eq!(Frame::split(&mut again).expect("our own frame"), Some(frame));
            }
            Ok(None) | Err(Error::TooLarge(_)) => {
                assert_eq!(buffer.len(), before, "nothing is taken before it is whole");
                break;
            }
            Err(_) => assert!(buffer.len() < before, "a malformed body is taken off"),
        }
    }
});
