//! Tokens: made, narrowed, kept, taken back, and a file that is not what it should be.

use std::{os::unix::fs::PermissionsExt as _, path::PathBuf};

use nix::unistd::geteuid;

use super::*;

fn info(name: &str) -> TokenInfo {
    TokenInfo {
        id: String::new(),
        name: name.into(),
        can: vec!["echo.*".into()],
        tenant: "local".into(),
        giver: "user:owner".into(),
        created_ms: 1,
        expires_ms: None,
    }
}

/// A file with one token.
fn kept() -> (tempfile::TempDir, PathBuf, Token) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state").join("tokens.json");
    let (record, token) = Record::fresh(info("one")).unwrap();
    Tokens::save(&path, vec![record]).unwrap();
    (dir, path, token)
}

fn load(path: &Path) -> Tokens {
    Tokens::load(path, geteuid().as_raw())
}

#[test]
fn a_token_is_kept_as_a_hash_in_a_file_that_nobody_else_reads() {
    let (_dir, path, token) = kept();
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains(token.expose()) && !text.contains(&token.expose()[13..]), "{text}");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
    let tokens = load(&path);
    let [record] = tokens.list() else { panic!("{:?}", tokens.trouble()) };
    assert!(record.is(&token) && Some(&*record.info.id) == token.id());
}

#[test]
fn only_the_very_token_is_taken() {
    let (_dir, path, token) = kept();
    let tokens = load(&path);
    let record = &tokens.list()[0];
    let text = token.expose();
    for at in 0..text.len() {
        let other = if text.as_bytes()[at] == b'0' { "1" } else { "0" };
        assert!(!record.is(&Token::new(&[&text[..at], other, &text[at + 1..]].concat())), "{at}");
    }
    for other in ["", "ksi_", &text[..text.len() - 1], &format!("{text}0"), &record.hash] {
        assert!(!record.is(&Token::new(other)), "{other}");
    }
}

#[test]
fn tokens_differ_in_every_part() {
    let made: Vec<_> = (0..100).map(|_| Record::fresh(info("x")).unwrap().1).collect();
    let ids: std::collections::HashSet<_> = made.iter().map(|token| token.id().unwrap().to_owned()).collect();
    let secrets: std::collections::HashSet<_> = made.iter().map(|token| &token.expose()[13..]).collect();
    assert_eq!((ids.len(), secrets.len()), (100, 100));
}

#[test]
fn a_file_that_others_may_use_is_not_believed() {
    for mode in [0o640, 0o604, 0o660, 0o602, 0o666, 0o700 | 0o010] {
        let (_dir, path, _) = kept();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let before = fs::read(&path).unwrap();
        let tokens = load(&path);
        let trouble = tokens.trouble().unwrap().to_owned();
        assert!(trouble.contains(&format!("{mode:o}")) && trouble.contains("tokens.json"), "{trouble}");
        assert!(tokens.list().is_empty());
        assert_eq!(tokens.believed().unwrap_err().code, Code::Unavailable);
        assert_eq!(fs::read(&path).unwrap(), before, "it is left as it is");
    }
}

#[test]
fn a_file_of_somebody_else_or_that_is_none_is_not_believed() {
    let (dir, path, _) = kept();
    let other = Tokens::load(&path, geteuid().as_raw() + 1);
    assert!(other.trouble().unwrap().contains("no file of the user"));
    let link = dir.path().join("link.json");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(load(&link).trouble().is_some(), "a link leads anywhere");
    assert!(load(dir.path()).trouble().is_some());
    assert!(load(&dir.path().join("not-there.json")).trouble().is_none());
}

#[test]
fn a_torn_file_is_not_believed_at_whatever_byte_it_ends() {
    let (_dir, path, _) = kept();
    let whole = fs::read(&path).unwrap();
    let end = whole.trim_ascii_end().len();
    for length in 0..end {
        fs::write(&path, &whole[..length]).unwrap();
        let tokens = load(&path);
        assert!(tokens.list().is_empty() && tokens.trouble().is_some(), "{length} bytes");
    }
    fs::write(&path, &whole[..end]).unwrap();
    assert_eq!(load(&path).list().len(), 1);
}

#[test]
fn what_no_release_has_written_is_not_believed() {
    let (_dir, path, _) = kept();
    let whole = fs::read_to_string(&path).unwrap();
    for (what, with) in [
        ("\"version\": 1", "\"version\": 2"),
        ("echo.*", "echo"),
        ("\"local\"", "\"../x\""),
        ("\"hash\": \"", "\"hash\": \"0"),
        ("\"id\": \"", "\"id\": \"/"),
        ("\"tokens\"", "\"admins\": [], \"tokens\""),
    ] {
        let changed = whole.replacen(what, with, 1);
        assert_ne!(changed, whole, "{what}");
        fs::write(&path, changed).unwrap();
        assert!(load(&path).trouble().is_some(), "{what} as {with}");
    }
}

#[test]
fn what_a_crash_has_left_beside_the_file_is_in_nobodys_way() {
    let (_dir, path, token) = kept();
    fs::write(path.with_extension("new"), "half a fi").unwrap();
    let (second, _) = Record::fresh(info("two")).unwrap();
    let records = [load(&path).list(), &[second]].concat();
    Tokens::save(&path, records).unwrap();
    let tokens = load(&path);
    assert_eq!(tokens.list().len(), 2);
    assert!(tokens.list()[0].is(&token) && !path.with_extension("new").exists());
}

#[test]
fn what_cannot_be_written_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let blocked = dir.path().join("file");
    fs::write(&blocked, "").unwrap();
    let path = blocked.join("tokens.json");
    let (record, _) = Record::fresh(info("one")).unwrap();
    let refusal = Tokens::save(&path, vec![record]).unwrap_err();
    assert!(refusal.code == Code::Unavailable && refusal.hint.contains("nothing has changed"), "{refusal}");
}

#[test]
fn there_is_a_limit() {
    let (_dir, path, _) = kept();
    let record = load(&path).list()[0].clone();
    let refusal = Tokens::save(&path, vec![record; TOKENS_MAX + 1]).unwrap_err();
    assert_eq!(refusal.code, Code::Busy);
    assert_eq!(load(&path).list().len(), 1);
}
