//! Accounts: windows, limits, reservations.

use ksi_sdk::prelude::Code;
use serde_json::{Value, json};

use super::*;

const HOUR_MS: u64 = 3_600_000;

fn rule(config: Value) -> Rule {
    Rule::new("b", &serde_json::from_value(config).unwrap())
}

fn amounts(calls: u64, tokens: u64, nanos: u64) -> Amounts {
    Amounts { calls, tokens, nanos }
}

fn who(principal: &str, tenant: Option<&str>, agent: Option<&str>) -> Who {
    Who {
        tenant: tenant.map(str::to_owned),
        principal: principal.into(),
        agent: agent.map(str::to_owned),
        conversation: None,
    }
}

#[test]
fn an_account_admits_up_to_its_limit_with_what_is_reserved() {
    for (limits, used, reserved, expected, fits) in [
        (json!({"calls": 2}), amounts(1, 0, 0), amounts(0, 0, 0), amounts(1, 9, 9), true),
        (json!({"calls": 2}), amounts(1, 0, 0), amounts(1, 0, 0), amounts(1, 0, 0), false),
        (json!({"tokens": 100}), amounts(9, 50, 0), amounts(0, 30, 0), amounts(1, 20, 0), true),
        (json!({"tokens": 100}), amounts(9, 50, 0), amounts(0, 30, 0), amounts(1, 21, 0), false),
        (json!({"money": 1.0}), amounts(9, 9, 999_999_999), amounts(0, 0, 0), amounts(1, 1, 1), true),
        (json!({"money": 1.0}), amounts(9, 9, 1_000_000_000), amounts(0, 0, 0), amounts(1, 1, 1), false),
        (json!({"money": 1.0}), amounts(9, 9, 5_000_000_000), amounts(0, 0, 0), amounts(1, 1, 0), true),
    ] {
        let rule = rule(limits.clone());
        let mut account = Account::default();
        account.add(&used);
        account.reserve(&reserved);
        assert_eq!(
            account.admits(&rule, &expected).is_ok(),
            fits,
            "{limits} {used:?} {reserved:?} {expected:?}"
        );
    }
}

#[test]
fn a_window_starts_over_and_what_is_reserved_stays() {
    let rule = rule(json!({"calls": 1, "window_s": 3600}));
    let mut account = Account::default();
    account.turn(&rule, HOUR_MS + 5);
    account.add(&amounts(1, 0, 0));
    let one = amounts(1, 0, 0);
    let refusal = account.admits(&rule, &one).unwrap_err().refusal(&rule, HOUR_MS + 1000);
    assert_eq!((refusal.code, refusal.retry_after_ms), (Code::Busy, Some(HOUR_MS - 1000)));
    let details = refusal.details.unwrap();
    assert_eq!((&details["what"], &details["used"]["calls"]), (&json!("calls"), &json!(1)));
    account.turn(&rule, 2 * HOUR_MS - 1);
    assert!(account.admits(&rule, &one).is_err());
    account.turn(&rule, 2 * HOUR_MS);
    assert!(account.admits(&rule, &one).is_ok());
    account.reserve(&one);
    account.turn(&rule, 3 * HOUR_MS);
    assert!(account.admits(&rule, &one).is_err(), "what is under way counts for the window that it ends in");
}

#[test]
fn a_budget_that_never_starts_over_is_denied_for_good() {
    let rule = rule(json!({"money": 0.5}));
    let mut account = Account::default();
    account.add(&amounts(1, 1, 600_000_000));
    let refusal = account.admits(&rule, &amounts(1, 1, 1)).unwrap_err().refusal(&rule, HOUR_MS);
    assert_eq!((refusal.code, refusal.retryable), (Code::Denied, false));
    assert!(refusal.message.contains("0.5000") && refusal.message.contains("0.6000"), "{refusal}");
}

#[test]
fn what_requests_under_way_hold_is_worth_waiting_for() {
    for config in [json!({"tokens": 100}), json!({"tokens": 100, "window_s": 3600})] {
        let rule = rule(config);
        let mut account = Account::default();
        account.add(&amounts(1, 50, 0));
        account.reserve(&amounts(1, 30, 0));
        let refusal = account.admits(&rule, &amounts(1, 21, 0)).unwrap_err().refusal(&rule, HOUR_MS);
        assert_eq!((refusal.code, refusal.retry_after_ms), (Code::Busy, Some(1000)));
        assert!(refusal.message.contains("50 are used, and requests under way hold 30"), "{refusal}");
        let refusal = account.admits(&rule, &amounts(1, 51, 0)).unwrap_err().refusal(&rule, HOUR_MS);
        assert_ne!(refusal.retry_after_ms, Some(1000), "what is used stays so");
    }
}

#[test]
fn each_has_an_account_of_their_own_and_no_tenant_meets_another() {
    let scope = |per: &str, of: &Who| rule(json!({"per": per, "calls": 1})).scope(of);
    let (ann, bob) = (who("user:ann", Some("a"), Some("x")), who("user:bob", Some("b"), Some("x")));
    assert_eq!(scope("all", &ann), scope("all", &bob));
    for per in ["tenant", "principal", "agent"] {
        assert_ne!(scope(per, &ann), scope(per, &bob), "{per}");
    }
    assert_eq!(scope("conversation", &ann), None, "there is none");
    let only = rule(json!({"only": "token:*", "calls": 1}));
    assert_eq!((only.scope(&ann), only.scope(&who("token:k", None, None)).is_some()), (None, true));
}

#[test]
fn prices_are_for_a_million_tokens() {
    assert_eq!(cost(1_000_000, Some(2.5)), 2_500_000_000);
    assert_eq!(cost(1, Some(0.15)), 150);
    assert_eq!(cost(1, Some(0.0001)), 1, "a part of the smallest coin is a coin");
    assert_eq!(cost(1000, None), 0);
}
