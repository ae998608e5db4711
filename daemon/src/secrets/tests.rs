//! Names become values, in one configuration, and what is wrong is said
//! without them.

use std::{fs, fs::Permissions, os::unix::fs::PermissionsExt};

use serde_json::json;

use super::*;

const VALUE: &str = "value-of-the-secret";

struct Place {
    dir: tempfile::TempDir,
    secrets: Secrets,
}

fn place(keyring: Option<(&str, u32)>) -> Place {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secrets.toml");
    if let Some((text, mode)) = keyring {
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    Place { secrets: Secrets { keyring: path }, dir }
}

fn refused(place: &Place, config: Json) -> String {
    let mut given = config;
    let refusal = place.secrets.hand_out("x", &mut given).unwrap_err();
    assert!(!refusal.to_string().contains(VALUE), "{refusal}");
    refusal.message
}

#[test]
fn a_name_becomes_its_value_wherever_it_stands() {
    let place = place(Some((&format!("open-ai = \"{VALUE}\"\n"), 0o600)));
    let mut config = json!({
        "api_key": "secret:open-ai", "list": [{"token": "secret:open-ai"}, 1],
        "prompt": "secret: what is it?", "max_tokens": 5
    });
    place.secrets.hand_out("x", &mut config).unwrap();
    assert_eq!(
        config,
        json!({
            "api_key": VALUE, "list": [{"token": VALUE}, 1],
            "prompt": "secret: what is it?", "max_tokens": 5
        })
    );
}

#[test]
fn a_variable_or_a_file_that_is_named_becomes_its_content() {
    let place = place(None);
    let file = place.dir.path().join("key");
    fs::write(&file, format!("{VALUE}\n")).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    // What every test has in its environment.
    let variable = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let mut config = json!({
        "api_key_file": file, "inner": {"token_env": "CARGO_MANIFEST_DIR"}, "log_file": "/tmp/x"
    });
    place.secrets.hand_out("x", &mut config).unwrap();
    assert_eq!(config, json!({"api_key": VALUE, "inner": {"token": variable}, "log_file": "/tmp/x"}));
    fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
    assert!(refused(&place, json!({"api_key_file": file})).contains("others may write it"));
    assert!(refused(&place, json!({"api_key_env": "NO_SUCH_VARIABLE"})).contains("NO_SUCH_VARIABLE"));
    assert!(refused(&place, json!({"api_key_env": "PATH", "api_key": "x"})).contains("leave one"));
}

#[test]
fn a_keyring_that_others_may_read_or_that_is_damaged_is_not_used() {
    let good = format!("open-ai = \"{VALUE}\"\n");
    let damaged = format!("open-ai = {VALUE}\n");
    let nested = format!("[open-ai]\nkey = \"{VALUE}\"\n");
    let short = "open-ai = \"short\"\n";
    for (text, mode, part) in [
        (good.as_str(), 0o640, "others may read it"),
        (&good, 0o604, "others may read it"),
        (&damaged, 0o600, "is damaged"),
        (&nested, 0o600, "is damaged"),
        (&format!("\"a b\" = \"{VALUE}\"\n"), 0o600, "is damaged"),
        (short, 0o600, "has 8 to 16384 bytes"),
        ("", 0o600, "no secret `open-ai`"),
    ] {
        let message = refused(&place(Some((text, mode))), json!({"api_key": "secret:open-ai"}));
        assert!(message.contains(part) && message.contains("plugins.x.config.api_key"), "{message}");
    }
    let place = place(Some((&good, 0o600)));
    let link = place.dir.path().join("link.toml");
    std::os::unix::fs::symlink(&place.secrets.keyring, &link).unwrap();
    let linked = Place { secrets: Secrets { keyring: link }, dir: place.dir };
    assert!(refused(&linked, json!({"api_key": "secret:open-ai"})).contains("is not used"));
}

#[test]
fn who_needs_no_secret_is_not_stopped_by_a_bad_keyring() {
    let place = place(Some(("not TOML", 0o666)));
    let mut config = json!({"slots": 4});
    place.secrets.hand_out("x", &mut config).unwrap();
    assert_eq!(config, json!({"slots": 4}));
}
