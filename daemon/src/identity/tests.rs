use super::*;
use crate::config::Sources;

fn config(text: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ksi.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&Sources::file(&path)).unwrap_or_else(|errors| panic!("{errors}"))
}

const OWNER_UID: u32 = 1000;

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
    let identity = Identity::new(&config(USERS), OWNER_UID);
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
    let identity = Identity::new(&config(USERS), OWNER_UID);
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
    let identity = Identity::new(&config(USERS), OWNER_UID);
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
    let identity = Identity::new(&config(named), OWNER_UID);
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
    let identity = Identity::new(&config(&USERS.replace("echo.use", "model.use")), OWNER_UID);
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
    assert_eq!(kept(&identity, "plugin:completion", Some(("user:bob", Some("acme")))).2, true);
    assert_eq!(
        kept(&identity, "plugin:state", Some(("plugin:state", None))),
        is("plugin:state", false, false)
    );
}
