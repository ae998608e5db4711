//! Tests of who finds room at the desk, and who is served when.

use super::*;
use crate::hub::testing::{self, OWNER_UID};

const READER: &str = "[identity.users.bob]\nuid = 1001\ncapabilities = [\"*.read\", \"token.use\"]\n";

fn identity() -> Identity {
    testing::identity(READER)
}

/// Asks for as much as there is room for; how much that was.
fn fill(desk: &Desk<&'static str>, payer: &'static str, administers: bool) -> usize {
    let of: Arc<str> = payer.into();
    (0..10 * ROOM).take_while(|_| desk.push(&of, administers, payer).is_ok()).count()
}

#[tokio::test]
async fn who_asks_without_end_waits_behind_nobody_but_himself() {
    let desk = Desk::new(&identity());
    fill(&desk, "greedy", false);
    let payers: [Arc<str>; 2] = ["one".into(), "two".into()];
    for payer in &payers {
        desk.push(payer, false, "modest").unwrap();
        desk.push(payer, false, "modest again").unwrap();
    }
    let mut served = Vec::new();
    for _ in 0..7 {
        served.push(desk.next().await);
    }
    let modest = ["greedy", "modest", "modest", "greedy", "modest again", "modest again", "greedy"];
    assert_eq!(served, modest);
}

#[tokio::test]
async fn nobody_takes_all_the_room_and_who_administers_has_some_when_all_of_it_is_taken() {
    let desk = Desk::new(&identity());
    assert_eq!([fill(&desk, "a", false), fill(&desk, "b", false)], [ROOM / 2, ROOM / 4]);
    let others = ["c", "d", "e", "f", "g", "h", "i"].map(|payer| fill(&desk, payer, false));
    assert_eq!(others.iter().sum::<usize>(), ROOM / 4);
    assert_eq!(fill(&desk, "late", false), 0);
    assert_eq!(fill(&desk, "owner", true), ROOM / 2);
    for _ in 0..ROOM + ROOM / 2 {
        desk.next().await;
    }
    let lines = desk.lock();
    assert!(lines.waiting == 0 && lines.of.is_empty() && lines.turns.is_empty());
}

#[tokio::test]
async fn who_administers_holds_the_right_to_and_not_only_that_to_read() {
    let hub = testing::hub_of(identity());
    for event in ["system:health", "plugin:list", "config:show", "token:list"] {
        let event = EventName::parse(event).unwrap();
        let administers = |uid| hub.administers(&hub.identity.of_user(uid).unwrap(), &event, hub.now_ms());
        assert!(administers(OWNER_UID) && !administers(1001), "{event}");
    }
    let owner = hub.identity.of_user(OWNER_UID).unwrap();
    assert!(!hub.administers(&owner, &EventName::parse("echo:say").unwrap(), hub.now_ms()));
}
