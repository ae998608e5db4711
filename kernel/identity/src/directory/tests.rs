//! Who holds what, after every kind of change.

use proptest::prelude::*;

use super::*;
use crate::is_tenant;

fn member(name: &str, capabilities: &str) -> Member {
    let capabilities = capabilities.split(' ').filter(|text| !text.is_empty());
    Member {
        name: name.into(),
        tenant: Some("local".into()),
        expires_ms: u64::MAX,
        capabilities: capabilities.map(|text| Capability::parse(text).unwrap()).collect(),
        giver: None,
    }
}

fn given(giver: &str, name: &str, capabilities: &str) -> Member {
    Member { giver: Some(giver.into()), ..member(name, capabilities) }
}

fn holds(directory: &Directory, name: &str, permission: &str) -> bool {
    directory.find(name).is_some_and(|found| found.holds(directory.permission(permission).bit, 1))
}

#[test]
fn a_member_holds_what_its_capabilities_give_also_of_permissions_named_later() {
    let directory = Directory::default();
    directory.appoint(vec![member("user:a", "echo.* *.read"), member("user:b", "")]);
    for (permission, expected) in [
        ("echo.use", true),
        ("state.read", true),
        ("state.write", false),
        ("system.admin", false),
        ("tenant.all", false),
    ] {
        assert_eq!(holds(&directory, "user:a", permission), expected, "{permission}");
        assert!(!holds(&directory, "user:b", permission), "{permission}");
    }
}

#[test]
fn nobody_holds_what_is_for_plugins_only() {
    let directory = Directory::default();
    directory.appoint(vec![member("user:a", "* plugins.only plugins.*")]);
    assert!(!holds(&directory, "user:a", "plugins.only"));
    assert!(holds(&directory, "user:a", "system.admin"));
}

#[test]
fn what_nobody_knows_yet_is_given_by_those_alone_who_hold_whatever_it_may_be() {
    let directory = Directory::default();
    let _ = directory.permission("echo.use");
    directory.appoint(vec![
        member("user:a", "*"),
        member("user:b", "*.read echo.use"),
        given("user:a", "token:1", "later.* echo.use"),
        given("user:b", "token:2", "later.*"),
        // Nobody gave it that, so nobody knows what it holds.
        given("token:3", "token:3", "later.*"),
    ]);
    let lacks = |name: &str, capability: &str| {
        let principal = directory.find(name).unwrap();
        let lacking = directory.lacks(&principal, &Capability::parse(capability).unwrap());
        lacking.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    for (name, capability, lacking) in [
        ("user:a", "later.use", ""),
        ("user:a", "*.later", ""),
        ("user:b", "later.read", ""),
        ("user:b", "later.*", "later.*"),
        ("user:b", "*.later", "*.later"),
        ("token:1", "later.use", ""),
        ("token:1", "other.use", "other.use"),
        ("token:2", "later.use", "later.use"),
        ("token:2", "later.read", ""),
        ("token:3", "later.use", "later.use"),
        ("user:b", "system.admin", "system.admin"),
        ("user:b", "*.use", ""),
    ] {
        let expected: Vec<String> = lacking.split_whitespace().map(str::to_owned).collect();
        assert_eq!(lacks(name, capability), expected, "{name} {capability}");
    }
}

#[test]
fn connections_that_are_open_lose_what_is_taken_away() {
    let directory = Directory::default();
    directory.appoint(vec![member("user:a", "*"), member("user:b", "*")]);
    let (bit, [a, b]) = (
        directory.permission("echo.use").bit,
        ["user:a", "user:b"].map(|name| directory.find(name).unwrap()),
    );
    directory.appoint(vec![member("user:a", "state.*")]);
    assert!(!a.holds(bit, 1) && a.holds(directory.permission("state.read").bit, 1));
    assert!(Arc::ptr_eq(&a, &directory.find("user:a").unwrap()), "and it is the same one");
    assert!(!b.holds(bit, 1) && directory.find("user:b").is_none());
    directory.appoint(vec![member("user:a", "*"), member("user:b", "*")]);
    assert!(a.holds(bit, 1), "what is given again is there again");
    assert!(!b.holds(bit, 1), "who was gone is not the one who came");
}

#[test]
fn who_moves_to_another_tenant_is_another() {
    let directory = Directory::default();
    directory.appoint(vec![member("user:a", "*")]);
    let before = directory.find("user:a").unwrap();
    directory.appoint(vec![Member { tenant: Some("other".into()), ..member("user:a", "*") }]);
    assert!(!before.holds(0, 1));
    assert!(directory.find("user:a").unwrap().holds(0, 1));
    let sees = |tenant| directory.find("user:a").unwrap().sees(tenant, 1);
    assert!(sees(Some("other")) && sees(None) && sees(Some("local")), "it holds tenant.all");
}

#[test]
fn only_its_own_tenant_is_seen_without_the_permission_for_all() {
    let directory = Directory::default();
    directory.appoint(vec![member("user:a", "echo.*")]);
    let sees = |tenant| directory.find("user:a").unwrap().sees(tenant, 1);
    assert!(sees(Some("local")) && sees(None));
    for other in ["", "Local", "local ", "loca", "local2"] {
        assert!(!sees(Some(other)), "{other:?}");
    }
}

#[test]
fn what_was_given_ends_with_the_giver() {
    let directory = Directory::default();
    let line = |top: &str| {
        vec![member("user:a", top), given("user:a", "token:1", "*"), given("token:1", "token:2", "echo.*")]
    };
    directory.appoint(line("echo.use state.*"));
    assert!(holds(&directory, "token:2", "echo.use") && holds(&directory, "token:1", "state.read"));
    assert!(!holds(&directory, "token:2", "echo.say") && !holds(&directory, "token:1", "system.admin"));
    directory.appoint(line("state.*"));
    assert!(!holds(&directory, "token:2", "echo.use") && holds(&directory, "token:1", "state.read"));
    directory.appoint(line("").split_off(1));
    assert!(!holds(&directory, "token:1", "state.read"), "a giver who is gone gives nothing");
}

#[test]
fn what_was_given_in_a_tenant_ends_when_the_giver_sees_it_no_more() {
    let directory = Directory::default();
    let of = |tenant: &str, member| Member { tenant: Some(tenant.into()), ..member };
    let line = |tenant: &str, top: &str| {
        vec![
            of(tenant, member("user:a", top)),
            of("acme", given("user:a", "token:1", "echo.*")),
            of("acme", given("token:1", "token:2", "echo.*")),
            of("local", given("user:a", "token:3", "echo.*")),
        ]
    };
    let held = || ["token:1", "token:2", "token:3"].map(|name| holds(&directory, name, "echo.use"));
    directory.appoint(line("local", "*"));
    let open = directory.find("token:1").unwrap();
    assert_eq!(held(), [true, true, true]);
    directory.appoint(line("local", "echo.*"));
    assert_eq!(held(), [false, false, true]);
    let (bit, later) = (directory.permission("echo.use").bit, directory.permission("echo.later").bit);
    assert!(!open.holds(bit, 1) && !open.holds(later, 1), "nor on connections that are open");
    directory.appoint(line("acme", "echo.*"));
    assert_eq!(held(), [true, true, false]);
    directory.appoint(line("local", "echo.* tenant.all"));
    assert_eq!(held(), [true, true, true]);
}

#[test]
fn nothing_lives_longer_than_its_giver_and_nothing_is_held_after_the_end() {
    let directory = Directory::default();
    let until = |expires_ms, member| Member { expires_ms, ..member };
    directory.appoint(vec![
        until(100, member("user:a", "*")),
        until(500, given("user:a", "token:1", "*")),
        given("token:1", "token:2", "*"),
    ]);
    let last = directory.find("token:2").unwrap();
    assert!(last.holds(0, 99) && !last.holds(0, 100));
}

#[test]
fn a_giver_that_comes_later_or_is_the_member_itself_gives_nothing() {
    let directory = Directory::default();
    directory.appoint(vec![
        given("token:2", "token:1", "*"),
        given("token:1", "token:2", "*"),
        given("token:3", "token:3", "*"),
    ]);
    for name in ["token:1", "token:2", "token:3"] {
        assert!(!holds(&directory, name, "echo.use"), "{name}");
    }
}

#[test]
fn of_two_with_one_name_the_first_is_meant() {
    let directory = Directory::default();
    directory.appoint(vec![member("user:a", "echo.*"), member("user:a", "*")]);
    assert!(holds(&directory, "user:a", "echo.use") && !holds(&directory, "user:a", "state.read"));
}

#[test]
fn permissions_beyond_the_last_bit_are_held_by_nobody() {
    let directory = Directory::default();
    directory.appoint(vec![member("user:a", "*")]);
    for n in 0..PERMISSIONS_MAX {
        let permission = directory.permission(&format!("p.{n}"));
        let held = directory.find("user:a").unwrap().holds(permission.bit, 1);
        assert_eq!(held, usize::from(permission.bit) < PERMISSIONS_MAX, "{n}");
        assert_eq!(&*permission.name, format!("p.{n}"));
    }
    assert!(!holds(&directory, "user:a", "one.more"));
    assert!(holds(&directory, "user:a", "p.0"));
}

#[test]
fn what_cannot_be_passed_on_is_named() {
    let directory = Directory::default();
    let _ = ["echo.use", "state.read", "state.write"].map(|name| directory.permission(name));
    directory.appoint(vec![member("user:a", "echo.* state.read")]);
    let a = directory.find("user:a").unwrap();
    let lacks = |text: &str| directory.lacks(&a, &Capability::parse(text).unwrap()).join(" ");
    assert_eq!(lacks("echo.*"), "");
    assert_eq!(lacks("state.*"), "state.write");
    assert_eq!(lacks("*.read"), "");
    assert_eq!(lacks("*"), "system.admin tenant.all state.write");
}

#[test]
fn a_tenant_has_a_name_that_cannot_lead_anywhere() {
    let long = "é".repeat(33);
    for name in ["a", "a-b", "a_b", "acme.example", "Zürich", "租户", "a@b", "0"] {
        assert!(is_tenant(name), "{name}");
    }
    for name in ["", ".", "..", "../x", "a/b", "a b", "a\0b", "a\n", "a:b", ".hidden", "a\\b", &long] {
        assert!(!is_tenant(name), "{name:?}");
    }
}

#[test]
fn a_token_is_charged_to_its_maker_unless_that_one_answers_for_every_tenant() {
    let directory = Directory::default();
    let given = |name: &str, giver: &str| Member { giver: Some(giver.into()), ..member(name, "*") };
    directory.appoint(vec![
        member("user:a", "*"),
        given("token:1", "user:a"),
        given("token:2", "token:1"),
        given("token:3", "token:2"),
        given("token:4", "user:a"),
        member("user:b", "*.use"),
        given("token:5", "user:b"),
        given("token:6", "token:5"),
    ]);
    let names = ["user:a", "token:1", "token:2", "token:3", "token:4", "user:b", "token:5", "token:6"];
    let payers = names.map(|name| directory.find(name).expect("it was appointed").payer.to_string());
    let expected = ["user:a", "token:1", "token:1", "token:1", "token:4", "user:b", "user:b", "user:b"];
    assert_eq!(payers, expected);
}

proptest! {
    /// Whatever is given and taken, nobody ever holds what its giver does not.
    #[test]
    fn nobody_holds_more_than_its_giver(
        rounds in prop::collection::vec(
            prop::collection::vec((0..6usize, "(\\*|[ab]\\.[xy*]|\\*\\.[xy])", prop::option::of(0..6usize)), 0..8),
            1..4,
        ),
    ) {
        let directory = Directory::default();
        let names = ["a.x", "a.y", "b.x", "b.y"];
        for round in rounds {
            let members: Vec<Member> = round
                .iter()
                .map(|(name, capability, giver)| Member {
                    giver: giver.map(|giver| format!("m:{giver}")),
                    ..member(&format!("m:{name}"), capability)
                })
                .collect();
            directory.appoint(members.clone());
            let mut seen = std::collections::HashSet::new();
            for member in members.iter().filter(|member| seen.insert(member.name.clone())) {
                for name in names.iter().filter(|name| holds(&directory, &member.name, name)) {
                    prop_assert!(member.capabilities.iter().any(|capability| capability.gives(name)));
                    prop_assert!(member.giver.as_ref().is_none_or(|giver| holds(&directory, giver, name)));
                }
            }
        }
    }
}
