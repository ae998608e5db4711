//! Locks that are honest, changed, foreign and malformed.

use std::io::Cursor;

use minisign::KeyPair;
use proptest::prelude::*;

use super::*;
use crate::NotAKey;

fn keys() -> (KeyPair, Key) {
    let pair = KeyPair::generate_unencrypted_keypair().unwrap();
    let key = pair.pk.to_base64().parse().unwrap();
    (pair, key)
}

fn sign(pair: &KeyPair, text: &str) -> String {
    minisign::sign(Some(&pair.pk), &pair.sk, Cursor::new(text), None, None).unwrap().into_string()
}

fn lock() -> Lock {
    let entry = Entry {
        name: "echo".into(),
        size: 3,
        sha256: Digest::of(b"abc"),
        signed: "2026-01-01T00:00:00.000Z".into(),
    };
    let mut lock = Lock::new(Kind::Plugins);
    lock.files.insert("libplugin_echo.so".into(), entry);
    lock
}

#[test]
fn a_signed_lock_is_believed_and_says_what_may_be_loaded() {
    let (pair, key) = keys();
    let text = lock().to_text();
    let opened = Lock::open(Kind::Plugins, &text, &sign(&pair, &text), &key).unwrap();
    assert_eq!(opened, lock());
    assert_eq!(opened.check("libplugin_echo.so", 3, Digest::of(b"abc")), Ok(()));
    let other = opened.check("libplugin_echo.so", 3, Digest::of(b"abd")).unwrap_err().to_string();
    for digest in [Digest::of(b"abc"), Digest::of(b"abd")] {
        assert!(other.contains(&digest.to_string()), "{other}");
    }
    let size = opened.check("libplugin_echo.so", 4, Digest::of(b"abc"));
    assert!(matches!(size, Err(Mistrust::Other { .. })), "{size:?}");
    let unlisted = opened.check("libplugin_other.so", 3, Digest::of(b"abc")).unwrap_err().to_string();
    assert!(unlisted.contains(&Digest::of(b"abc").to_string()), "{unlisted}");
}

#[test]
fn every_changed_byte_of_lock_or_signature_is_noticed() {
    let (pair, key) = keys();
    let text = lock().to_text();
    let signature = sign(&pair, &text);
    for at in 0..text.len() {
        let mut changed = text.clone().into_bytes();
        changed[at] ^= 1;
        let Ok(changed) = String::from_utf8(changed) else { continue };
        assert_eq!(
            Lock::open(Kind::Plugins, &changed, &signature, &key),
            Err(LockError::Unverified(Unverified::Changed)),
            "byte {at}"
        );
    }
    // The first line is a comment that nobody trusts; all else counts.
    let trusted = signature.find('\n').unwrap() + 1;
    for at in trusted..signature.trim_end().len() {
        let mut changed = signature.clone().into_bytes();
        changed[at] ^= 1;
        let Ok(changed) = String::from_utf8(changed) else { continue };
        let opened = Lock::open(Kind::Plugins, &text, &changed, &key);
        assert!(matches!(opened, Err(LockError::Unverified(_))), "byte {at}: {opened:?}");
    }
}

#[test]
fn a_lock_of_another_key_or_kind_is_not_believed() {
    let ((pair, key), (_, other)) = (keys(), keys());
    let text = lock().to_text();
    let signature = sign(&pair, &text);
    let opened = Lock::open(Kind::Plugins, &text, &signature, &other);
    assert_eq!(opened, Err(LockError::Unverified(Unverified::OtherKey)));
    let opened = Lock::open(Kind::Models, &text, &signature, &key);
    assert_eq!(opened, Err(LockError::Kind(Kind::Plugins)));
}

#[test]
fn what_is_signed_and_makes_no_sense_is_refused_all_the_same() {
    let (pair, key) = keys();
    let good = lock().to_text();
    for (text, part) in [
        ("".to_owned(), "version"),
        (good.replace("version = 1", "version = 2"), "version 2"),
        (good.replace("version = 1", "version = 1\nmore = 1"), "more"),
        (good.replace("libplugin_echo.so", "../x"), "no name of a file"),
        (good.replace("ba7816bf", "BA7816BF"), "64 hexadecimal"),
        (good.replace("size = 3", "size = -3"), ""),
        ("x".repeat(LOCK_BYTES_MAX + 1), "larger"),
    ] {
        let error = Lock::open(Kind::Plugins, &text, &sign(&pair, &text), &key).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_model_is_known_by_its_path_and_an_old_lock_is_read_by_the_names_in_it() {
    let entry = |name: &str| Entry {
        name: name.into(),
        size: 3,
        sha256: Digest::of(name.as_bytes()),
        signed: "2026-01-01T00:00:00.000Z".into(),
    };
    let mut lock = Lock::new(Kind::Models);
    for (file, name) in [("x.gguf", "x"), ("a/x.gguf", "a/x"), ("y.gguf", "b/c/y"), ("z.gguf", "../z")] {
        lock.files.insert(file.into(), entry(name));
    }
    let read = Lock::parse(&lock.to_text()).unwrap();
    let places: Vec<_> =
        read.files.iter().map(|(file, entry)| (file.as_str(), entry.name.as_str())).collect();
    assert_eq!(places, [("a/x.gguf", "a/x"), ("b/c/y.gguf", "b/c/y"), ("x.gguf", "x"), ("z.gguf", "../z")]);
    let digest = |name: &str| Digest::of(name.as_bytes());
    assert_eq!(read.check("x.gguf", 3, digest("x")), Ok(()));
    assert!(matches!(read.check("x.gguf", 3, digest("a/x")), Err(Mistrust::Other { .. })));
    assert!(matches!(read.check("d/x.gguf", 3, digest("x")), Err(Mistrust::Unlisted { .. })));
    for file in ["/x", "a//x", "../x", "a/./x", "a/", ""] {
        let mut lock = Lock::new(Kind::Models);
        lock.files.insert(file.into(), entry("x"));
        assert!(matches!(Lock::parse(&lock.to_text()), Err(LockError::Form(_))), "{file}");
    }
    let text = lock.to_text().replace("models", "plugins");
    assert!(matches!(Lock::parse(&text), Err(LockError::Form(_))), "libraries lie in no directories");
}

#[test]
fn a_lock_on_the_disk_is_believed_with_its_signature_beside_it_and_not_without() {
    let (pair, key) = keys();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plugins.lock");
    let why = || Lock::load(Kind::Plugins, &path, &key).unwrap_err();
    assert_eq!(why().why, LockError::Absent("lock"));
    let text = lock().to_text();
    std::fs::write(&path, &text).unwrap();
    assert_eq!(why().why, LockError::Absent("signature"));
    assert!(why().to_string().contains("plugins.lock"));
    std::fs::write(signature_path(&path), sign(&pair, &text)).unwrap();
    assert_eq!(Lock::load(Kind::Plugins, &path, &key), Ok(lock()));
    std::fs::write(&path, text + "\n").unwrap();
    assert_eq!(why().why, LockError::Unverified(Unverified::Changed));
    std::fs::write(&path, [0xff]).unwrap();
    assert!(matches!(why().why, LockError::Unreadable { what: "lock", .. }));
}

#[test]
fn a_key_is_a_line_or_a_file() {
    let (pair, key) = keys();
    let file = pair.pk.to_box().unwrap().into_string();
    assert_eq!(file.parse::<Key>(), Ok(key.clone()));
    assert_eq!(key.to_string().parse::<Key>(), Ok(key.clone()));
    let long = format!("{key}\n{key}");
    for wrong in ["", "RWabc", "untrusted comment: x", &long, &format!("{file}\nmore")] {
        assert_eq!(wrong.parse::<Key>(), Err(NotAKey), "{wrong}");
    }
}

proptest! {
    #[test]
    fn any_lock_survives_its_own_text(files in proptest::collection::btree_map("[^/\0]{3,20}(/[^/\0]{3,20})?", ("[a-zA-Zäöü .-]{0,20}", 0..=i64::MAX as u64, any::<[u8; 32]>()), 0..5)) {
        let mut lock = Lock::new(Kind::Models);
        for (file, (name, size, digest)) in files {
            lock.files.insert(file, Entry { name, size, sha256: digest.into(), signed: "now".into() });
        }
        prop_assert_eq!(Lock::parse(&lock.to_text()), Ok(lock));
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,300}", signature in "\\PC{0,300}") {
        let _ = Lock::parse(&text);
        let key: Key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3".parse().unwrap();
        let _ = Lock::open(Kind::Models, &text, &signature, &key);
    }
}
