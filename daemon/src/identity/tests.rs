//! Principals out of the configuration and out of tokens, and what the owner keeps.

use super::*;
use crate::config::Sources;

fn config(text: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ksi.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&Sources::file(&path)).unwrap_or_else(|errors| panic!("{errors}"))
}

const OWNER_UID: u32 = 1000;

fn identity(text: &str) -> Identity {
    Identity::new(&config(text), OWNER_UID, "/nowhere/tokens.json".into())
}

const USERS: &str = r#"
[daemon]
allow_uids = [1003]
[identity.users.bob]
uid = 1001
tenant = "acme"
roles = ["reader"]
capabilities = ["echo.use"]
[identity.users.eve]
uid = 1002
"#;

fn holds(identity: &Identity, uid: u32, permission: &str) -> bool {
    identity.of_user(uid).unwrap().holds(identity.permission(permission).bit, 1)
}

#[test]
fn the_owner_holds_everything_and_others_what_the_configuration_gives_them() {
    let identity = identity(USERS);
    assert!(holds(&identity, OWNER_UID, "system.admin") && holds(&identity, OWNER_UID, "tenant.all"));
    assert!(holds(&identity, 1001, "echo.use") && holds(&identity, 1001, "state.read"));
    assert!(!holds(&identity, 1001, "state.write") && !holds(&identity, 1001, "system.admin"));
    for uid in [1002, 1003] {
        assert!(!holds(&identity, uid, "system.read"), "{uid} was given nothing");
    }
    let name = |uid| identity.of_user(uid).unwrap().name.clone();
    assert_eq!([OWNER_UID, 1001, 1003].map(name).map(String::from), ["user:owner", "user:bob", "uid:1003"]);
    assert_eq!(identity.of_user(1001).unwrap().tenant.as_deref(), Some("acme"));
}

#[test]
fn whom_nobody_has_allowed_may_not_enter_not_even_root() {
    let identity = identity(USERS);
    for uid in [0, 1004, 65534] {
        let refusal = identity.of_user(uid).unwrap_err();
        assert_eq!(refusal.code, Code::Denied);
        assert!(
            refusal.message.contains(&uid.to_string()) && refusal.hint.contains("[identity.users]"),
            "{refusal}"
        );
    }
}

#[test]
fn a_reload_changes_what_connections_that_are_open_may_do() {
    let identity = identity(USERS);
    let bob = identity.of_user(1001).unwrap();
    let bit = identity.permission("echo.use").bit;
    assert!(bob.holds(bit, 1));
    identity.configure(&config(&USERS.replace("[\"echo.use\"]", "[]")));
    assert!(!bob.holds(bit, 1) && Arc::ptr_eq(&bob, &identity.of_user(1001).unwrap()));
    identity.configure(&config(""));
    assert!(!bob.holds(identity.permission("state.read").bit, 1));
    assert!(identity.of_user(1001).is_err());
}

#[test]
fn the_owner_may_be_given_a_name_and_less() {
    let named = "[identity.users.ann]\nuid = 1000\ncapabilities = [\"system.*\"]\n";
    let identity = identity(named);
    assert!(holds(&identity, OWNER_UID, "system.read") && !holds(&identity, OWNER_UID, "state.read"));
    let found = |name| identity.find(name).map(|found| found.name.clone().into_string());
    assert_eq!(found("user:owner").as_deref(), Some("user:ann"), "work of before is still the owner's");
    assert_eq!(found("user:nobody"), None);
}

fn kept(identity: &Identity, origin: &str, caller: Option<(&str, Option<&str>)>) -> (String, bool, bool) {
    let event = EventName::parse("llama:generate").unwrap();
    let request = Request {
        origin: Some(origin.into()),
        caller: caller.map(|(principal, tenant)| {
            let (principal, tenant) = (principal.to_owned(), tenant.map(str::to_owned));
            Box::new(ksi_protocol::frame::Caller { principal, tenant, every_tenant: true })
        }),
        ..Request::new(1, event, ksi_protocol::empty())
    };
    let (caller, vouched) = identity.kept(&request);
    let principal = caller.unwrap().principal.clone();
    (principal.name.clone().into(), principal.holds(identity.permission("model.use").bit, 1), vouched)
}

#[test]
fn work_that_was_kept_has_the_rights_that_its_asker_has_now() {
    let identity = identity(&USERS.replace("echo.use", "model.use"));
    let is = |name: &str, holds, vouched| (name.to_owned(), holds, vouched);
    assert_eq!(kept(&identity, "session:1", Some(("user:bob", Some("acme")))), is("user:bob", true, false));
    // Another tenant's, or gone: then it holds nothing, whatever was written down.
    assert_eq!(kept(&identity, "session:1", Some(("user:bob", Some("local")))), is("user:bob", false, false));
    assert_eq!(
        kept(&identity, "session:1", Some(("user:gone", Some("acme")))),
        is("user:gone", false, false)
    );
    // Of before there were principals.
    assert_eq!(kept(&identity, "session:1", None), is("user:owner", true, false));
    // A plugin has what it may call.
    assert!(kept(&identity, "plugin:completion", Some(("user:bob", Some("acme")))).2);
    assert_eq!(
        kept(&identity, "plugin:state", Some(("plugin:state", None))),
        is("plugin:state", false, false)
    );
}

/// An identity that keeps tokens.
fn keeping(dir: &std::path::Path, text: &str) -> Identity {
    let owner = nix::unistd::geteuid().as_raw();
    let text = text.replace("uid = 1001", &format!("uid = {}", owner + 1));
    Identity::new(&config(&text), owner, dir.join("tokens.json"))
}

fn asked(can: &[&str]) -> CreateToken {
    CreateToken {
        name: "ci".into(),
        can: can.iter().map(|&text| text.into()).collect(),
        ..CreateToken::default()
    }
}

fn owner(identity: &Identity) -> Arc<Principal> {
    identity.find(OWNER).unwrap()
}

fn may(identity: &Identity, token: &Token, permission: &str, now_ms: u64) -> bool {
    let bit = identity.permission(permission).bit;
    identity.of_token(token, now_ms).is_ok_and(|principal| principal.holds(bit, now_ms))
}

#[test]
fn a_token_gives_what_it_was_made_with_over_restarts_too() {
    let dir = tempfile::tempdir().unwrap();
    let identity = keeping(dir.path(), "");
    let made = identity.create(&owner(&identity), asked(&["echo.*", "*.read"]), 5).unwrap();
    for identity in [&identity, &keeping(dir.path(), "")] {
        assert!(may(identity, &made.token, "echo.use", 9) && may(identity, &made.token, "state.read", 9));
        assert!(!may(identity, &made.token, "state.write", 9));
        let principal = identity.of_token(&made.token, 9).unwrap();
        assert_eq!(&*principal.name, format!("token:{}", made.info.id));
        assert!(
            Arc::ptr_eq(&principal, &identity.of_token(&made.token, 9).unwrap()),
            "one for all connections"
        );
    }
    let list = identity.list(&owner(&identity), 9).unwrap();
    assert_eq!((list.len(), list[0].giver.as_str(), list[0].created_ms), (1, OWNER, 5));
}

#[test]
fn no_token_can_give_more_than_its_maker_holds() {
    let dir = tempfile::tempdir().unwrap();
    let identity = keeping(dir.path(), "");
    let _ = ["echo.use", "echo.say", "state.read", "model.use"].map(|name| identity.permission(name));
    let first = identity.create(&owner(&identity), asked(&["echo.use", "token.use"]), 1).unwrap();
    let asker = identity.of_token(&first.token, 1).unwrap();
    for can in ["*", "echo.*", "*.use", "state.read", "system.admin", "*.read"] {
        let refusal = identity.create(&asker, asked(&[can]), 1).unwrap_err();
        assert_eq!(refusal.code, Code::Denied, "{can}");
        assert_eq!(refusal.details.unwrap()["principal"], *asker.name);
    }
    let second = identity.create(&asker, asked(&["echo.use"]), 1).unwrap();
    assert!(may(&identity, &second.token, "echo.use", 1) && !may(&identity, &second.token, "token.use", 1));
    // Nor may it speak for another tenant.
    let elsewhere = CreateToken { tenant: Some("acme".into()), ..asked(&["echo.use"]) };
    assert_eq!(identity.create(&asker, elsewhere.clone(), 1).unwrap_err().code, Code::Denied);
    let elsewhere = identity.create(&owner(&identity), elsewhere, 1).unwrap();
    assert_eq!(identity.of_token(&elsewhere.token, 1).unwrap().tenant.as_deref(), Some("acme"));
}

#[test]
fn a_permission_named_later_is_given_only_as_far_as_the_maker_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let identity = keeping(dir.path(), "");
    let _ = identity.permission("echo.use");
    let first = identity.create(&owner(&identity), asked(&["echo.use", "token.use"]), 1).unwrap();
    let asker = identity.of_token(&first.token, 1).unwrap();
    for unknown in ["later.*", "later.use", "*.later"] {
        let refusal = identity.create(&asker, asked(&[unknown]), 1).unwrap_err();
        assert_eq!(refusal.details.unwrap()["permission"], unknown);
    }
    // Who holds whatever that may be can give it, and be given it.
    let held = identity.create(&owner(&identity), asked(&["later.*", "token.use"]), 1).unwrap();
    let asker = identity.of_token(&held.token, 1).unwrap();
    let second = identity.create(&asker, asked(&["later.use"]), 1).unwrap();
    assert!(may(&identity, &second.token, "later.use", 1) && !may(&identity, &second.token, "later.read", 1));
    assert_eq!(identity.create(&asker, asked(&["*.later"]), 1).unwrap_err().code, Code::Denied);
}

#[test]
fn who_is_called_owner_is_whoever_runs_the_daemon() {
    let own = nix::unistd::geteuid().as_raw();
    let identity = Identity::new(
        &config(&format!("[identity.users.owner]\nuid = {own}\ncapabilities = [\"echo.use\"]\n")),
        own,
        "/nowhere/tokens.json".into(),
    );
    let found = identity.find(OWNER).unwrap();
    assert!(Arc::ptr_eq(&found, &identity.of_user(own).unwrap()) && identity.is_owners(&found));
}

#[test]
fn nobody_who_comes_waits_for_a_token_to_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let identity = keeping(dir.path(), "");
    let made = identity.create(&owner(&identity), asked(&["echo.use"]), 1).unwrap();
    let (own, seen) = (owner(&identity), nix::unistd::geteuid().as_raw());
    // While the file is being written, as far as anybody can tell.
    let changed = identity.change(|records| {
        std::thread::scope(|scope| {
            let looks = scope.spawn(|| {
                let token = identity.of_token(&made.token, 1).is_ok();
                let user = identity.of_user(seen).is_ok_and(|found| identity.is_owners(&found));
                token && user && identity.list(&own, 1).unwrap().len() == 1 && identity.trouble().is_none()
            });
            assert!(looks.join().unwrap());
        });
        records.clear();
        Ok(())
    });
    changed.unwrap();
    assert!(
        identity.of_token(&made.token, 1).is_err() && keeping(dir.path(), "").lock().tokens.list().is_empty()
    );
}

#[test]
fn what_is_revoked_is_gone_on_open_connections_with_all_that_was_made_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let identity = keeping(dir.path(), "");
    let [bit, _] = ["echo.use", "token.use"].map(|name| identity.permission(name).bit);
    let top = identity.create(&owner(&identity), asked(&["echo.use", "token.use"]), 1).unwrap();
    let asker = identity.of_token(&top.token, 1).unwrap();
    let below = identity.create(&asker, asked(&["echo.use", "token.use"]), 1).unwrap();
    let under = identity.of_token(&below.token, 1).unwrap();
    let last = identity.create(&under, asked(&["echo.use"]), 1).unwrap();
    let beside = identity.create(&owner(&identity), asked(&["echo.use"]), 1).unwrap();
    let open = [&below, &last].map(|made| identity.of_token(&made.token, 1).unwrap());
    // Nobody revokes what he has not made.
    assert_eq!(identity.revoke(&under, &top.info.id, 1).unwrap_err().code, Code::NotFound);
    assert_eq!(identity.revoke(&under, &beside.info.id, 1).unwrap_err().code, Code::NotFound);
    let revoked = identity.revoke(&asker, &below.info.id, 1).unwrap().revoked;
    assert_eq!(revoked, [below.info.id.as_str(), &last.info.id]);
    assert!(open.iter().all(|principal| !principal.holds(bit, 1)));
    assert!(asker.holds(bit, 1) && may(&identity, &beside.token, "echo.use", 1));
    for made in [&below, &last] {
        assert_eq!(identity.of_token(&made.token, 1).unwrap_err().code, Code::Denied);
    }
    let again = keeping(dir.path(), "");
    assert!(again.of_token(&last.token, 1).is_err() && again.of_token(&top.token, 1).is_ok());
}

#[test]
fn a_token_ends_when_it_expires_and_nothing_made_with_it_lasts_longer() {
    let dir = tempfile::tempdir().unwrap();
    let identity = keeping(dir.path(), "");
    let _ = ["echo.use", "token.use"].map(|name| identity.permission(name));
    let lasting = |time| CreateToken { expires_in_ms: Some(time), ..asked(&["echo.use", "token.use"]) };
    let short = identity.create(&owner(&identity), lasting(100), 1_000).unwrap();
    assert_eq!(short.info.expires_ms, Some(1_100));
    let asker = identity.of_token(&short.token, 1_099).unwrap();
    let long = identity.create(&asker, lasting(100_000), 1_050).unwrap();
    assert_eq!(long.info.expires_ms, Some(1_100));
    assert!(may(&identity, &long.token, "echo.use", 1_099));
    for made in [&short, &long] {
        assert_eq!(identity.of_token(&made.token, 1_100).unwrap_err().code, Code::Denied);
    }
    assert!(!asker.holds(identity.permission("echo.use").bit, 1_100), "also on a connection that is open");
    // What has expired is forgotten when another is made.
    identity.create(&owner(&identity), asked(&["echo.use"]), 2_000).unwrap();
    assert_eq!(identity.list(&owner(&identity), 2_000).unwrap().len(), 1);
}

#[test]
fn a_token_loses_what_the_user_who_made_it_loses() {
    let dir = tempfile::tempdir().unwrap();
    let identity = keeping(dir.path(), USERS);
    let bob = identity.find("user:bob").unwrap();
    let made = identity.create(&bob, asked(&["echo.use", "*.read"]), 1).unwrap();
    assert_eq!(made.info.tenant, "acme");
    assert!(may(&identity, &made.token, "echo.use", 1));
    let owner = nix::unistd::geteuid().as_raw();
    let less = USERS.replace("[\"echo.use\"]", "[]").replace("uid = 1001", &format!("uid = {}", owner + 1));
    identity.configure(&config(&less));
    assert!(!may(&identity, &made.token, "echo.use", 1) && may(&identity, &made.token, "state.read", 1));
    identity.configure(&config(""));
    assert!(!may(&identity, &made.token, "state.read", 1), "nor is there anything without him");
}

#[test]
fn what_is_no_token_is_refused_and_what_cannot_be_made_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let identity = keeping(dir.path(), "");
    let made = identity.create(&owner(&identity), asked(&["echo.use"]), 1).unwrap();
    let forged = Token::of(&made.info.id, &"0".repeat(64));
    for token in [Token::new(""), Token::new("ksi_"), Token::new("*"), forged] {
        let refusal = identity.of_token(&token, 1).unwrap_err();
        assert_eq!(refusal.code, Code::Denied);
        assert!(!refusal.to_string().contains("000"), "{refusal}");
    }
    let create = |ask| identity.create(&owner(&identity), ask, 1).unwrap_err().code;
    let can = || asked(&["echo.use"]);
    for ask in [
        CreateToken { name: String::new(), ..can() },
        CreateToken { name: "x".repeat(65), ..can() },
        CreateToken { name: "a\nb".into(), ..can() },
        asked(&[]),
        asked(&["echo"]),
        asked(&["echo.use", ""]),
        CreateToken { tenant: Some("../x".into()), ..can() },
        CreateToken { tenant: Some(String::new()), ..can() },
        CreateToken { expires_in_ms: Some(0), ..can() },
    ] {
        assert_eq!(create(ask.clone()), Code::InvalidPayload, "{ask:?}");
    }
    let plugin = Principal::new("plugin:agent", None, u64::MAX);
    assert_eq!(identity.create(&plugin, can(), 1).unwrap_err().code, Code::Denied);
}

#[test]
fn while_the_file_is_not_believed_no_token_is_taken_and_health_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let identity = keeping(dir.path(), "");
    let made = identity.create(&owner(&identity), asked(&["echo.use"]), 1).unwrap();
    let path = dir.path().join("tokens.json");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..40]).unwrap();
    identity.configure(&config(""));
    assert!(identity.trouble().unwrap().contains("tokens.json"));
    for refusal in [
        identity.of_token(&made.token, 1).unwrap_err(),
        identity.create(&owner(&identity), asked(&["echo.use"]), 1).unwrap_err(),
        identity.list(&owner(&identity), 1).unwrap_err(),
        identity.revoke(&owner(&identity), &made.info.id, 1).unwrap_err(),
    ] {
        assert!(refusal.code == Code::Unavailable && refusal.hint.contains("ksi reload"), "{refusal}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), &whole[..40], "it is left as it is");
    std::fs::write(&path, &whole).unwrap();
    identity.configure(&config(""));
    assert!(identity.trouble().is_none() && may(&identity, &made.token, "echo.use", 1));
}

#[test]
fn one_who_makes_tokens_without_end_leaves_room_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let identity = keeping(dir.path(), "");
    let owner = owner(&identity);
    let greedy = identity.create(&owner, asked(&["token.use"]), 5).unwrap();
    let modest = identity.create(&owner, asked(&["token.use"]), 5).unwrap();
    // As if it had made them one by one, half of them with others of them.
    let many = identity.change(|records| {
        let mut giver = name_of(&greedy.info.id);
        for n in 0..TOKENS_MAX / 2 - 1 {
            let (record, _) = Record::fresh(TokenInfo { giver, ..greedy.info.clone() })?;
            giver = name_of(if n % 2 == 0 { &record.info.id } else { &greedy.info.id });
            records.push(record);
        }
        Ok(())
    });
    many.unwrap();
    let made = |token: &Token| {
        let asker = identity.of_token(token, 9).unwrap();
        identity.create(&asker, asked(&["token.use"]), 9)
    };
    let refusal = made(&greedy.token).unwrap_err();
    assert_eq!(refusal.code, Code::Busy);
    assert!(refusal.message.contains(&greedy.info.id), "{refusal}");
    made(&modest.token).expect("another has room");
    identity.create(&owner, asked(&["token.use"]), 9).expect("and whoever sees every tenant");
}
