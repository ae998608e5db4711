//! A trail that is written, signed, read, exported, let go and tampered with.

use std::{fs, io::BufReader, ops::Range, os::unix::fs::PermissionsExt, path::PathBuf};

use ksi_sdk::{
    prelude::Code,
    protocol::audit::{Decision, Lost, Query, Verified},
    trust::audit as proof,
};

use super::*;

const NOW: u64 = 1_800_000_000_000;
/// Small, so that a test has many files.
const SEGMENT: u64 = 8 << 10;

struct Place {
    dir: tempfile::TempDir,
    trail: Trail,
}

impl Place {
    fn new() -> Self {
        Self::keeping(Retention::default())
    }

    fn keeping(retention: Retention) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let trail = Trail::with_segments(dir.path().join("audit"), retention, SEGMENT);
        Self { dir, trail }
    }

    /// The same directory, opened again.
    fn again(self) -> Self {
        let retention = self.trail.0.retention;
        self.trail.close(NOW).unwrap();
        let trail = Trail::with_segments(self.dir.path().join("audit"), retention, SEGMENT);
        Self { trail, ..self }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("audit").join(name)
    }

    fn append(&self, numbers: Range<u64>) {
        self.append_at(numbers, NOW);
    }

    fn append_at(&self, numbers: Range<u64>, now_ms: u64) {
        let records = numbers.map(|number| decision(number).line()).collect();
        self.trail.append(records, now_ms).unwrap();
    }

    fn verify(&self) -> Verified {
        self.trail.verify(NOW).unwrap()
    }

    fn segments(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            fs::read_dir(self.path("records")).unwrap().map(|file| file.unwrap().path()).collect();
        files.retain(|file| file.extension().is_some_and(|kind| kind == "journal"));
        files.sort();
        files
    }
}

fn decision(n: u64) -> Record {
    Record::Decision(Decision {
        at_ms: NOW + n,
        principal: format!("user{}", n % 3),
        tenant: None,
        origin: format!("session:{n}"),
        behalf: None,
        event: if n.is_multiple_of(2) { "state:set" } else { "plugin:load" }.into(),
        emitted: false,
        permission: "state.write".into(),
        allowed: !n.is_multiple_of(5),
        correlation_id: Some(format!("cause-{n}")),
        sha256: Digest::of(&n.to_le_bytes()).to_string(),
        size: 8,
    })
}

/// Changes one byte of a record's payload, on the disk.
fn change(place: &Place, part: &str) {
    let part = part.as_bytes();
    for path in place.segments() {
        let mut bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(part.len()).position(|window| window == part) {
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            return;
        }
    }
    panic!("nothing has {part:?}");
}

#[test]
fn what_was_appended_is_proved_signed_and_found_again() {
    let place = Place::new();
    place.append(0..40);
    let found = place.verify();
    assert!(found.ok, "{found:?}");
    assert_eq!((found.records, found.first_seq, found.last_seq, found.heads), (40, 1, 40, 0));
    // Not yet, and then within its time.
    assert_eq!(place.trail.tick(NOW + 1).unwrap(), Some(HEAD_MS - 1));
    assert_eq!(place.trail.tick(NOW + HEAD_MS).unwrap(), None);
    let found = place.verify();
    assert_eq!((found.heads, found.signed_seq, found.ok), (1, 40, true));
    let place = place.again();
    place.append(40..1100);
    let found = place.verify();
    assert_eq!((found.records, found.heads, found.signed_seq, found.ok), (1100, 2, 1100, true));
    assert_eq!(place.trail.tick(NOW).unwrap(), None);
    let mode = fs::metadata(place.path("signing.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_record_that_is_too_long_is_refused_for_good_and_the_next_is_written() {
    let place = Place::new();
    let long = "x".repeat(journal::PAYLOAD_MAX + 1);
    let refusal = place.trail.append(vec![decision(1).line(), long], NOW).unwrap_err();
    assert_eq!((refusal.code, refusal.retryable), (Code::TooLarge, false));
    place.append(0..3);
    assert_eq!(place.verify().records, 3, "nothing of the batch that was refused");
}

#[test]
fn a_query_filters_and_goes_on_page_by_page() {
    let place = Place::new();
    place.append(0..100);
    let lost = Record::Lost(Lost { at_ms: NOW, allowed: 3, denied: 1 });
    place.trail.append(vec![lost.line()], NOW).unwrap();
    let ask = |query: Query| place.trail.query(&query, NOW).unwrap();
    let of = |query: Query| ask(query).records.iter().map(|entry| entry.seq).collect::<Vec<_>>();
    let denied = of(Query { allowed: Some(false), event: Some("plugin:*".into()), ..Query::default() });
    assert_eq!(denied, [6, 16, 26, 36, 46, 56, 66, 76, 86, 96]);
    let one = of(Query { principal: Some("user1".into()), until_ms: Some(NOW + 8), ..Query::default() });
    assert_eq!(one, [2, 5, 8]);
    assert_eq!(of(Query { since_ms: Some(NOW + 97), ..Query::default() }), [98, 99, 100]);
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = ask(Query { after_seq: after, limit: Some(7), ..Query::default() });
        all.extend(page.records.iter().map(|entry| entry.seq));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(all, (1..=101).collect::<Vec<_>>());
    for wrong in [
        Query { limit: Some(0), ..Query::default() },
        Query { event: Some("a b".into()), ..Query::default() },
    ] {
        assert_eq!(place.trail.query(&wrong, NOW).unwrap_err().code, Code::InvalidPayload);
    }
}

#[test]
fn one_changed_byte_is_found_and_its_record_is_named() {
    let place = Place::new();
    place.append(0..60);
    change(&place, "\"cause-41\"");
    let found = place.verify();
    assert!(!found.ok);
    assert_eq!(found.problems[0].seq, Some(42), "{found:?}");
    // An export of it would prove nothing, and is not made.
    let refusal = place.trail.export(&place.dir.path().join("out.jsonl"), NOW).unwrap_err();
    assert!(refusal.message.contains("record"), "{refusal}");
    // The same after a start, with the file put aside.
    let place = place.again();
    let notes = place.trail.open(NOW).unwrap();
    assert!(!notes.is_empty());
    assert_eq!(place.verify().problems[0].seq, Some(42));
}

#[test]
fn a_trail_that_was_written_anew_with_a_right_chain_does_not_fit_its_heads() {
    let place = Place::new();
    place.append(0..50);
    place.trail.close(NOW).unwrap();
    // Somebody who can write these files, but has not the key.
    fs::remove_dir_all(place.path("records")).unwrap();
    place.append(1..51);
    let found = place.verify();
    assert!(!found.ok);
    assert_eq!(found.problems[0].seq, Some(50));
    assert!(found.problems[0].what.contains("something was changed"), "{found:?}");
}

#[test]
fn a_cut_off_end_is_found_where_a_head_has_seen_it_and_a_forged_head_is_told_from_a_real_one() {
    let place = Place::new();
    place.append(0..50);
    place.trail.close(NOW).unwrap();
    let heads = fs::read_to_string(place.path("heads.jsonl")).unwrap();
    fs::remove_dir_all(place.path("records")).unwrap();
    place.append(0..20);
    let found = place.verify();
    assert_eq!(found.problems[0].seq, Some(21), "{found:?}");
    assert!(found.problems[0].what.contains("missing at the end"), "{found:?}");
    place.trail.close(NOW).unwrap();
    fs::write(place.path("heads.jsonl"), heads.replace("\"seq\":50", "\"seq\":20")).unwrap();
    let found = place.verify();
    assert!(found.problems[0].what.contains("not to be believed"), "{found:?}");
}

#[test]
fn old_files_go_with_a_word_and_the_rest_stays_proved() {
    let place = Place::keeping(Retention { days: 365, bytes: 6 * SEGMENT, days_min: 0 });
    for block in 0..30 {
        place.append_at(block * 100..block * 100 + 100, NOW + block);
    }
    place.trail.close(NOW).unwrap();
    let found = place.verify();
    assert!(found.ok && found.first_seq > 1, "{found:?}");
    assert!(place.segments().len() < 12, "{:?}", place.segments());
    let query = Query { limit: Some(1000), after_seq: Some(found.first_seq), ..Query::default() };
    let mut page = place.trail.query(&query, NOW).unwrap();
    let mut told = Vec::new();
    loop {
        told.extend(page.records.iter().filter_map(|entry| match entry.record {
            Record::Retired(retired) => Some(retired.before_seq),
            _ => None,
        }));
        let Some(next) = page.next else { break };
        page = place.trail.query(&Query { after_seq: Some(next), ..query.clone() }, NOW).unwrap();
    }
    assert!(told.last().is_some_and(|before| *before >= found.first_seq), "{told:?}");
    // Without such a word it is damage.
    place.trail.close(NOW).unwrap();
    for oldest in &place.segments()[..3] {
        fs::remove_file(oldest).unwrap();
    }
    let found = place.again().verify();
    assert!(found.problems.iter().any(|problem| problem.what.contains("none says")), "{found:?}");
}

#[test]
fn what_is_young_does_not_go_because_much_is_written() {
    let keeping =
        |segments: u64| Place::keeping(Retention { days: 365, bytes: segments * SEGMENT, days_min: 7 });
    let first = |place: &Place, now_ms| {
        for block in 0..6 {
            place.append_at(block * 500..block * 500 + 500, now_ms);
        }
        place.trail.verify(now_ms).unwrap().first_seq
    };
    let place = keeping(60);
    assert_eq!(first(&place, NOW), 1);
    assert!(first(&place, NOW + 8 * DAY_MS) > 1, "a week later its size counts");
    assert!(first(&keeping(3), NOW) > 1, "it does not grow beyond four times its size");
}

#[test]
fn an_export_proves_itself_without_the_trail_and_ends_with_a_head() {
    let place = Place::new();
    place.append(0..1200);
    let path = place.dir.path().join("out.jsonl");
    let beside = place.dir.path().join("out.jsonl.part");
    fs::write(&beside, "mine").unwrap();
    let exported = place.trail.export(&path, NOW).unwrap();
    assert_eq!(fs::read(beside).unwrap(), b"mine");
    assert_eq!((exported.records, exported.first_seq, exported.last_seq), (1200, 1, 1200));
    let key = exported.public_key.parse().unwrap();
    let proof = proof::verify(BufReader::new(fs::File::open(&path).unwrap()), Some(&key)).unwrap();
    assert_eq!((proof.records, proof.signed_seq), (1200, 1200));
    let text = fs::read_to_string(&path).unwrap();
    let changed = text.replacen("\"session:7\"", "\"session:8\"", 1);
    let flaw = proof::verify(changed.as_bytes(), Some(&key)).unwrap_err();
    assert_eq!(flaw.seq, Some(8), "{flaw}");
    assert_eq!(place.trail.export(&path, NOW).unwrap_err().code, Code::Conflict);
    let empty = Place::new();
    let exported = empty.trail.export(&empty.dir.path().join("made/out.jsonl"), NOW).unwrap();
    let file = fs::File::open(&exported.path).unwrap();
    assert_eq!(proof::verify(BufReader::new(file), None).unwrap().records, 0);
}

#[test]
fn a_trail_that_is_let_go_is_free_at_once_and_one_in_use_is_refused() {
    let place = Place::new();
    place.append(0..3);
    let other = Trail::with_segments(place.path(""), Retention::default(), SEGMENT);
    assert_eq!(other.open(NOW).unwrap_err().code, Code::Unavailable);
    place.trail.abandon();
    other.open(NOW).unwrap();
    assert_eq!(place.trail.append(vec![decision(1).line()], NOW).unwrap_err().code, Code::Unavailable);
    assert_eq!(other.verify(NOW).unwrap().records, 3);
}
