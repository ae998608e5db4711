//! The fuzzing corpora of lock files and of exports, replayed: what the fuzzer has found once
//! stays found.

use std::{fs, io::Cursor, path::Path};

use ksi_trust::{Key, Kind, Lock, audit};

#[test]
fn the_corpus_of_locks_is_opened_or_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/lock");
    let (mut opened, mut parsed, mut refused) = (0, 0, 0);
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let Ok(input) = fs::read_to_string(&path) else { continue };
        let mut parts = input.splitn(3, '\0');
        let [text, signature, key] = [(); 3].map(|()| parts.next().unwrap_or_default());
        match Lock::parse(text) {
            Ok(lock) => {
                assert_eq!(Lock::parse(&lock.to_text()), Ok(lock), "{}", path.display());
                parsed += 1;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty(), "{}", path.display());
                refused += 1;
            }
        }
        let Ok(key) = key.parse::<Key>() else { continue };
        for kind in [Kind::Models, Kind::Plugins] {
            if Lock::open(kind, text, signature, &key).is_ok() {
                assert!(
                    Lock::open(kind, &format!("{text}\n"), signature, &key).is_err(),
                    "{}",
                    path.display()
                );
                opened += 1;
            }
        }
    }
    assert!(opened == 2 && parsed > 4 && refused > 8, "{opened} opened, {parsed} parsed, {refused} refused");
}

#[test]
fn the_corpus_of_exports_is_proved_or_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/audit");
    let (mut proved, mut refused) = (0, 0);
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        match audit::verify(Cursor::new(&bytes), None) {
            Ok(proof) => {
                assert_eq!(proof.first_seq + proof.records, proof.last_seq + 1, "{}", path.display());
                proved += 1;
            }
            Err(flaw) => {
                assert!(flaw.line > 0 && !flaw.what.is_empty(), "{}", path.display());
                refused += 1;
            }
        }
    }
    assert!(proved >= 5 && refused >= 15, "{proved} proved, {refused} refused");
}
