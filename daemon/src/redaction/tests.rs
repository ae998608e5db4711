//! Every form of a secret is found, and nothing else.

use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use super::*;

const SECRET: &str = "p/s+w\"örd?of \\ the=day";

fn redactor(values: &[&str]) -> Redactor {
    Redactor::new(values.iter().map(|value| (*value).to_owned()).collect())
}

fn redacted(redactor: &Redactor, text: &str) -> String {
    String::from_utf8(redactor.redact(text.as_bytes()).into_owned()).unwrap()
}

#[test]
fn a_secret_is_found_in_every_form_in_which_programs_write_it() {
    let redactor = redactor(&[SECRET]);
    let hex: String = SECRET.bytes().map(|byte| format!("{byte:02x}")).collect();
    let url = |plain: &[u8], space: &str| -> String {
        let coded = |byte: u8| match byte {
            b' ' => space.to_owned(),
            byte if byte.is_ascii_alphanumeric() || plain.contains(&byte) => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        };
        SECRET.bytes().map(coded).collect()
    };
    let all: String = SECRET.bytes().map(|byte| format!("%{byte:02x}")).collect();
    for form in [
        SECRET.to_owned(),
        format!("{SECRET:?}").trim_matches('"').to_owned(),
        hex.to_uppercase(),
        hex,
        url(b"-_.~", "%20"),
        url(b"-_.*", "+"),
        all.to_uppercase(),
        all,
    ] {
        assert_eq!(redacted(&redactor, &format!("key is {form}.")), format!("key is {MASK}."), "{form}");
    }
    assert_eq!(redacted(&redactor, &serde_json::json!({"key": SECRET}).to_string()), r#"{"key":"***"}"#);
}

#[test]
fn a_secret_is_found_in_base64_whatever_stands_around_it() {
    let redactor = redactor(&[SECRET]);
    for before in ["", "u", "us", "use", "user:", "a longer one:"] {
        for after in ["", "x", "xy", "xyz"] {
            for engine in [&STANDARD, &URL_SAFE] {
                let coded = engine.encode(format!("{before}{SECRET}{after}"));
                let line = redacted(&redactor, &format!("Authorization: {coded}"));
                assert!(line.contains(MASK), "{before} {after}: {line}");
                // A few characters of its ends may stay, which say nothing.
                assert!(line.len() < "Authorization: ".len() + MASK.len() + 30, "{line}");
            }
        }
    }
}

#[test]
fn words_about_secrets_stay_and_so_does_a_line_without_one() {
    let redactor = redactor(&[SECRET, "hunter2-hunter2"]);
    for line in [
        "max_tokens = 128, tokens_per_second=20, api_key is set, the secret `openai` has no password",
        "risk-assessment-of-the-whole-department, ask-me-anything-about-whatever-it-is",
        "model sk-tiny loaded; Bearer token missing; AKIA; eyJ",
        "hunter2-hunter",
        "",
    ] {
        assert!(matches!(redactor.redact(line.as_bytes()), Cow::Borrowed(_)), "{line}");
    }
    assert_eq!(redacted(&redactor, "max_tokens=5 token=hunter2-hunter2!"), "max_tokens=5 token=***!");
}

#[test]
fn what_has_the_shape_of_a_credential_is_cut_off_behind_what_gives_it_away() {
    let redactor = redactor(&[]);
    let long = "A1b2C3d4E5f6G7h8I9j0K1l2";
    for (line, expected) in [
        (format!("key sk-{long}, next"), "key sk-***, next"),
        (format!("sk-proj-{long}"), "sk-***"),
        (format!("Authorization: Bearer {long}\n"), "Authorization: Bearer ***\n"),
        (format!("'ghp_{long}' \"xoxb-{long}\""), "'ghp_***' \"xoxb-***\""),
        ("id AKIAIOSFODNN7EXAMPLE".to_owned(), "id AKIA***"),
        (format!("jwt eyJ{long}.eyJ{long}.{long} end"), "jwt eyJ*** end"),
    ] {
        assert_eq!(redacted(&redactor, &line), expected);
    }
}

#[test]
fn of_a_url_it_is_not_shown_in_whose_name_it_is_asked_for() {
    let redactor = redactor(&["hunter2-hunter2"]);
    for (line, expected) in [
        ("see https://user:p4sswordlong@host/x?y=a@b.", "see https://***@host/x?y=a@b."),
        ("\"https://0123abcd@host\" is used", "\"https://***@host\" is used"),
        ("http://a:b@c@host:80, ftp://x@y", "http://***@host:80, ftp://***@y"),
        ("https://host/hunter2-hunter2", "https://host/***"),
        ("https://u:hunter2-hunter2@host", "https://***@host"),
        ("http://", "http://"),
    ] {
        assert_eq!(redacted(&redactor, line), expected);
    }
    for line in ["https://host/a@b", "https://host?to=a@b", "http://@host", "a@b", "https://host 'a@b'"] {
        assert!(matches!(redactor.redact(line.as_bytes()), Cow::Borrowed(_)), "{line}");
    }
}

#[test]
fn of_a_secret_of_several_lines_each_line_is_one() {
    let key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSjAgEAAoIB\n-----END KEY-----\n";
    let redactor = redactor(&[key]);
    assert_eq!(redacted(&redactor, "stderr: MIIEvQIBADANBgkqhkiG9w0B"), "stderr: ***");
    assert_eq!(redacted(&redactor, &format!("{key}end")), "***end");
}

#[test]
fn what_the_process_learns_holds_for_log_lines_words_and_refusals() {
    let value = "learned-by-the-tests-of-redaction";
    learn([value.to_owned(), "short".to_owned()]);
    learn([value.to_owned()]);
    assert_eq!(&*bytes(format!("a {value}\nb\n").as_bytes()), b"a ***\nb\n");
    assert_eq!(text(format!("short {value}")), "short ***");
    let told = Refusal::new(ksi_protocol::Code::Internal, format!("401 for {value}"))
        .hint(format!("is {value} right?"))
        .details(serde_json::json!({"header": [value], "n": 1}));
    let told = refusal(told);
    assert_eq!((told.message.as_str(), told.hint.as_str()), ("401 for ***", "is *** right?"));
    assert_eq!(told.details, Some(serde_json::json!({"header": ["***"], "n": 1})));
}
