//! Exports that are whole, and every way in which one may not be.

use std::io::Cursor;

use minisign::KeyPair;
use proptest::prelude::*;

use super::*;

fn head(pair: &KeyPair, seq: u64, chain: Digest) -> Head {
    let message = Head::message(seq, chain, 7);
    let signature = minisign::sign(None, &pair.sk, Cursor::new(message), None, None).unwrap();
    Head { seq, chain, at_ms: 7, signature: signature.into_string() }
}

/// Lines of an export of records `first..first + count`, with a head after
/// every third one.
fn export(pair: &KeyPair, first: u64, count: u64) -> Vec<String> {
    let mut chain = Digest::of(b"before");
    let mut lines = vec![Line::Begin(Begin::new(first, chain, pair.pk.to_base64(), 1))];
    for seq in first..first + count {
        let record = format!("{{\"kind\": \"decision\",  \"n\":{seq}}}");
        chain = link(chain, seq, record.as_bytes());
        lines.push(Line::Entry(Entry { seq, chain, record: RawValue::from_string(record).unwrap() }));
        if seq % 3 == 0 {
            lines.push(Line::Head(head(pair, seq, chain)));
        }
    }
    lines.push(Line::End(End { last: first + count - 1, records: count }));
    lines.iter().map(|line| serde_json::to_string(line).unwrap()).collect()
}

fn pair() -> KeyPair {
    KeyPair::generate_unencrypted_keypair().unwrap()
}

fn check(lines: &[String], key: Option<&Key>) -> Result<Proof, Flaw> {
    verify(Cursor::new(lines.join("\n")), key)
}

#[test]
fn a_whole_export_proves_its_records_and_says_how_far_it_is_signed() {
    let pair = pair();
    let lines = export(&pair, 5, 6);
    let key: Key = pair.pk.to_base64().parse().unwrap();
    let proof = check(&lines, Some(&key)).unwrap();
    assert_eq!((proof.first_seq, proof.last_seq, proof.records), (5, 10, 6));
    assert_eq!((proof.heads, proof.signed_seq, proof.key_given), (2, 9, true));
    assert!(!check(&lines, None).unwrap().key_given);
    assert_eq!(check(&export(&pair, 1, 0), None).unwrap().records, 0);
    let other: Key = self::pair().pk.to_base64().parse().unwrap();
    assert!(check(&lines, Some(&other)).unwrap_err().what.contains("another key"));
}

#[test]
fn every_changed_byte_of_every_record_and_head_is_found_and_named() {
    let pair = pair();
    let lines = export(&pair, 1, 4);
    for (at, line) in lines.iter().enumerate().skip(1) {
        for byte in 0..line.len() {
            let mut changed = line.clone().into_bytes();
            changed[byte] ^= 1;
            let Ok(changed) = String::from_utf8(changed) else { continue };
            let mut all = lines.clone();
            all[at] = changed;
            // The first line of a signature is a comment that nobody trusts.
            if line.contains("\"head\"")
                && (line.find("untrusted").unwrap()..line.find("\\n").unwrap()).contains(&byte)
            {
                continue;
            }
            let flaw = check(&all, None).expect_err(&all[at]);
            assert!(flaw.line > at as u64, "{flaw}: {}", all[at]);
        }
    }
    let mut all = lines.clone();
    all[2] = all[2].replace("\"n\":2", "\"n\":3");
    let flaw = check(&all, None).unwrap_err();
    assert_eq!((flaw.line, flaw.seq), (3, Some(2)));
    assert!(flaw.to_string().contains("line 3, record 2: it, or what was before it, was changed"), "{flaw}");
}

#[test]
fn what_is_left_out_put_in_moved_or_cut_off_is_found() {
    let pair = pair();
    let lines = export(&pair, 1, 5);
    for at in 0..lines.len() {
        let mut without = lines.clone();
        without.remove(at);
        let is_head = lines[at].starts_with("{\"head\"");
        assert_eq!(check(&without, None).is_ok(), is_head, "without line {at}");
        let mut twice = lines.clone();
        twice.insert(at, lines[at].clone());
        assert_eq!(check(&twice, None).is_ok(), is_head, "line {at} twice");
        assert!(check(&lines[..at], None).is_err(), "cut off before line {at}");
    }
    for at in 1..lines.len() - 2 {
        let mut swapped = lines.clone();
        swapped.swap(at, at + 1);
        assert!(check(&swapped, None).is_err(), "lines {at} and the next swapped");
    }
}

#[test]
fn a_chain_that_was_made_anew_does_not_fit_its_heads() {
    let (pair, forger) = (pair(), pair());
    let mut forged = export(&forger, 1, 4);
    forged[0] = export(&pair, 1, 4)[0].clone();
    let flaw = check(&forged, None).unwrap_err();
    assert_eq!((flaw.line, flaw.seq), (5, Some(3)));
    assert!(flaw.what.contains("signed by another key"), "{flaw}");
    // Heads of another trail under the same key.
    let mut other = export(&pair, 1, 4);
    other[1] = other[1].replace("\"n\":1", "\"n\":9");
    assert!(check(&other, None).is_err());
}

#[test]
fn a_line_without_an_end_is_given_up_and_not_kept_in_memory() {
    let endless = io::Cursor::new(b"{\"begin\":\"").chain(io::repeat(b'a'));
    let flaw = verify(io::BufReader::new(endless), None).unwrap_err();
    assert!(flaw.what.contains("absurdly long"), "{flaw}");
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(lines in proptest::collection::vec("\\PC{0,80}", 0..6)) {
        let _ = verify(Cursor::new(lines.join("\n")), None);
    }
}
