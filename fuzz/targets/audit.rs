//! An export of the audit trail from a careless or hostile hand.
//!
//! Nothing may make the reader panic or hang; what is proved has as many
//! records as its positions say, and every flaw names its line.
#![no_main]

use std::io::Cursor;

use ksi_trust::audit;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match audit::verify(Cursor::new(bytes), None) {
        Ok(proof) => {
            assert_eq!(proof.first_seq + proof.records, proof.last_seq + 1);
            assert!(proof.signed_seq <= proof.last_seq);
        }
        Err(flaw) => assert!(flaw.line > 0 && !flaw.what.is_empty()),
    }
});
