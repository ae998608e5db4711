//! A lock file, its signature and a key from a careless or hostile hand, with a
//! zero byte between them.
//!
//! Nothing may make the readers panic; what opens under the key survives its
//! own text, and any other text under the same signature is refused.
#![no_main]

use ksi_trust::{Key, Kind, Lock};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(input) = std::str::from_utf8(bytes) else { return };
    let mut parts = input.splitn(3, '\0');
    let [text, signature, key] = [(); 3].map(|()| parts.next().unwrap_or_default());
    if let Ok(lock) = Lock::parse(text) {
        assert_eq!(Lock::parse(&lock.to_text()), Ok(lock));
    }
    let Ok(key) = key.parse::<Key>() else { return };
    assert_eq!(key.to_string().parse(), Ok(key.clone()));
    for kind in [Kind::Models, Kind::Plugins] {
        if Lock::open(kind, text, signature, &key).is_ok() {
            let other = format!("{text}\n");
            assert!(Lock::open(kind, &other, signature, &key).is_err());
        }
    }
});
