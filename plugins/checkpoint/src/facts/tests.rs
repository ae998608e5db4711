//! Followers over a real engine in a directory of its own, seen through the
//! fake host.

use std::{path::Path, rc::Rc, time::Duration};

use ksi_sdk::{
    Plugin, Register,
    protocol::{EventName, frame::Caller, meta::Meta},
    testing::{Answer, Call, FakeHost, refused},
};
use serde_json::{Value, json};

use super::*;
use crate::{engine::Options, record::Batch, testing::block_on};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long consumers are kept.
const KEEP: Duration = Duration::from_secs(90 * 24 * 3600);

/// A plugin that does nothing but keep facts.
struct Keeper {
    engine: Rc<Engine>,
    facts: Facts,
}

/// Keep a fact.
#[derive(serde::Deserialize, JsonSchema)]
#[schemars(crate = "ksi_sdk::prelude::schemars")]
struct Keep {
    event: String,
    number: u64,
}

impl Plugin for Keeper {
    const NAME: &'static str = "checkpoint";
    const ABOUT: &'static str = "Keeps facts";

    fn start(ctx: &Ctx) -> Result<Self, Refusal> {
        let options = Options { segment_bytes: 16 << 10, keep_facts_bytes: 40 << 10, ..Options::default() };
        let opened = block_on(Engine::open(ctx.dir().join("kept"), options));
        Ok(Self { engine: opened?.0, facts: Facts::default() })
    }

    fn register(on: &mut Register<Self>) {
        on.request("checkpoint:keep", Self::keep);
        on.stream("checkpoint:follow", Self::follow);
        on.request("checkpoint:ack", Self::ack);
        on.request("checkpoint:create", Self::checkpoint);
        on.request("checkpoint:sweep", Self::sweep);
        on.request("checkpoint:age", Self::age);
        on.request("checkpoint:consumers", Self::consumers);
        on.request("checkpoint:forget", Self::forget);
    }
}

impl Keeper {
    async fn keep(self: Rc<Self>, _: Ctx, keep: Keep) -> Result<Acknowledged, Refusal> {
        let seq = self.engine.next_seq();
        self.facts.keep(&self.engine, fact(&keep.event, keep.number)).await?;
        Ok(Acknowledged { seq })
    }

    async fn follow(
        self: Rc<Self>,
        ctx: Ctx,
        ask: Follow,
        out: Chunks<Followed>,
    ) -> Result<Unfollowed, Refusal> {
        self.facts.follow(&self.engine, &ctx, ask, &out).await
    }

    async fn ack(self: Rc<Self>, ctx: Ctx, ask: Ack) -> Result<Acknowledged, Refusal> {
        self.facts.ack(&self.engine, &ctx, ask).await
    }

    async fn consumers(self: Rc<Self>, ctx: Ctx, _: Value) -> Result<Consumers, Refusal> {
        self.facts.list(&self.engine, &ctx).await
    }

    async fn forget(self: Rc<Self>, ctx: Ctx, ask: Forget) -> Result<Consumer, Refusal> {
        self.facts.forget(&self.engine, &ctx, ask).await
    }

    /// Walks once; answers how many consumers are left.
    async fn sweep(self: Rc<Self>, ctx: Ctx, _: Value) -> Result<Acknowledged, Refusal> {
        self.facts.sweep_once(&self.engine, KEEP, &ctx).await?;
        let left = cursor::all(&self.engine).await?;
        let mut shares = Shares::default();
        left.iter().for_each(|(_, cursor)| shares.add(cursor.principal.as_deref()));
        let known = self.facts.known.borrow();
        assert!(known.as_ref().is_none_or(|known| *known == shares), "{known:?} and not {shares:?}");
        Ok(Acknowledged { seq: left.len() as u64 })
    }

    /// Writes a cursor as earlier releases did; that of the beginning, where no other is named.
    async fn age(self: Rc<Self>, _: Ctx, at: Value) -> Result<Acknowledged, Refusal> {
        let mut batch = Batch::new();
        let at = at["seq"].as_u64().unwrap_or_default();
        batch.put(cursor::key(None, "old")?, at.to_le_bytes().to_vec());
        let seq = self.engine.commit(batch)?;
        self.engine.durable(seq).await?;
        Ok(Acknowledged { seq })
    }

    async fn checkpoint(self: Rc<Self>, _: Ctx, _: Value) -> Result<Acknowledged, Refusal> {
        let report = self.engine.checkpoint().await?;
        Ok(Acknowledged { seq: report.seq })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // The next one in the directory needs its lock.
        let _ = block_on(self.engine.close());
    }
}

fn fact(event: &str, number: u64) -> Fact {
    Fact {
        at_ms: 1_700_000_000_000 + number,
        event: EventName::parse(event).unwrap(),
        origin: "session:1".into(),
        correlation_id: Some(correlation_id(number)),
        tenant: None,
        data: ksi_sdk::protocol::encode(&json!({ "number": number, "filler": "x".repeat(500) })).unwrap(),
    }
}

/// Long enough to be found in a file among digests.
fn correlation_id(number: u64) -> String {
    format!("correlation {number}.")
}

fn host(dir: &Path) -> FakeHost<Keeper> {
    FakeHost::start_in(dir, json!({})).unwrap()
}

fn keep(host: &FakeHost<Keeper>, event: &str, number: u64) -> u64 {
    let answer = host.request("checkpoint:keep", json!({ "event": event, "number": number })).unwrap();
    answer["seq"].as_u64().unwrap()
}

/// Follows, past the position that comes first.
fn follow(host: &FakeHost<Keeper>, ask: Value) -> Call {
    follow_from(host, ask).0
}

fn follow_from(host: &FakeHost<Keeper>, ask: Value) -> (Call, u64) {
    let call = host.open("checkpoint:follow", ask);
    let position = position(host, &call);
    (call, position)
}

/// An empty gap.
fn position(host: &FakeHost<Keeper>, call: &Call) -> u64 {
    let part = part(host, call);
    let Followed::Gap(gap) = serde_json::from_value(part.clone()).unwrap() else { panic!("{part}") };
    assert_eq!(gap.to_seq + 1, gap.from_seq);
    gap.from_seq
}

fn part(host: &FakeHost<Keeper>, call: &Call) -> Value {
    match host.next(call) {
        Answer::Chunk(part) => part,
        other => panic!("{other:?}"),
    }
}

fn number(host: &FakeHost<Keeper>, call: &Call) -> u64 {
    let part = part(host, call);
    let Followed::Fact(fact) = serde_json::from_value(part.clone()).unwrap() else { panic!("{part}") };
    let data: Value = ksi_sdk::protocol::decode(&fact.data).unwrap();
    let number = data["number"].as_u64().unwrap();
    assert_eq!(fact.correlation_id, Some(correlation_id(number)));
    number
}

#[test]
fn a_follower_gets_what_was_before_and_what_comes_in_order_and_only_what_matches() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let first = keep(&host, "a:one", 1);
    keep(&host, "b:other", 2);
    keep(&host, "a:two", 3);
    let call = follow(&host, json!({ "pattern": "a:*", "since_seq": first }));
    assert_eq!((number(&host, &call), number(&host, &call)), (1, 3));
    for more in 4..80 {
        keep(&host, if more % 2 == 0 { "a:x" } else { "b:x" }, more);
    }
    for more in (4..80).step_by(2) {
        assert_eq!(number(&host, &call), more);
    }
    assert_eq!(host.try_next(&call), None);
    let (fresh, position) = follow_from(&host, json!({ "pattern": "*" }));
    assert_eq!(host.try_next(&fresh), None, "without a position it begins with what comes");
    assert_eq!(keep(&host, "b:x", 80), position, "and it was told where that is");
    assert_eq!(number(&host, &fresh), 80);
}

#[test]
fn a_follower_gets_no_more_than_it_has_room_for() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    for each in 1..=10 {
        keep(&host, "a:x", each);
    }
    let meta = Meta { credit: Some(3), ..Meta::default() };
    let call = host.open_as("checkpoint:follow", json!({ "pattern": "*", "since_seq": 1 }), &meta);
    assert_eq!(position(&host, &call), 1);
    host.credit(&call, 1);
    assert_eq!([1, 2, 3].map(|_| number(&host, &call)), [1, 2, 3]);
    assert_eq!(host.try_next(&call), None);
    host.credit(&call, 2);
    assert_eq!([4, 5].map(|_| number(&host, &call)), [4, 5]);
    assert_eq!(host.try_next(&call), None);
}

#[test]
fn a_consumer_goes_on_after_what_it_has_acknowledged_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let ask = || json!({ "pattern": "a:*", "consumer": "reader" });
    {
        let host = host(dir.path());
        keep(&host, "a:x", 1);
        let call = follow(&host, ask());
        let seq = keep(&host, "a:x", 2);
        assert_eq!(number(&host, &call), 2, "a new consumer begins with what comes");
        host.cancel(&call);
        keep(&host, "a:x", 3);
        let call = follow(&host, ask());
        assert_eq!((number(&host, &call), number(&host, &call)), (2, 3), "it misses nothing from then on");
        let ack = |seq| host.request("checkpoint:ack", json!({ "consumer": "reader", "seq": seq }));
        assert_eq!(ack(seq).unwrap()["seq"], seq);
        assert_eq!(ack(1).unwrap()["seq"], seq, "a cursor never goes back");
        assert_eq!(ack(1_000_000).unwrap_err().code, Code::InvalidPayload);
    }
    let host = host(dir.path());
    let call = follow(&host, ask());
    assert_eq!(number(&host, &call), 3);
    assert_eq!(host.try_next(&call), None);
    let again = follow(&host, json!({ "pattern": "a:*", "since_seq": 1 }));
    assert_eq!([1, 2, 3].map(|_| number(&host, &again)), [1, 2, 3]);
}

#[test]
fn the_newest_follower_has_a_consumers_name_and_the_one_before_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let ask = || json!({ "pattern": "*", "consumer": "reader" });
    let old = follow(&host, ask());
    let other = follow(&host, json!({ "pattern": "*", "consumer": "else" }));
    let new = follow(&host, ask());
    let (code, message) = refused(host.next(&old));
    assert_eq!(code, Code::Conflict);
    assert!(message.contains("`reader`"), "{message}");
    keep(&host, "a:x", 1);
    assert_eq!((number(&host, &new), number(&host, &other)), (1, 1));
    host.cancel(&new);
    let newest = follow(&host, ask());
    assert_eq!(number(&host, &newest), 1);
    assert_eq!(host.try_next(&other), None);
}

/// As somebody of a tenant.
fn of(principal: &str, tenant: &str, every_tenant: bool) -> Meta {
    let caller = Caller { principal: principal.into(), tenant: Some(tenant.into()), every_tenant };
    Meta { caller: Some(caller), ..Meta::default() }
}

/// Asks something as somebody.
fn ask_as(host: &FakeHost<Keeper>, who: &Meta, event: &str, data: Value) -> Result<Value, Refusal> {
    match host.next(&host.open_as(event, data, who)) {
        Answer::Reply(value) => Ok(value),
        Answer::Refusal(refusal) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nobody_has_more_consumers_than_half_of_what_others_leave() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["user:a", "user:b"].map(|name| of(name, "local", false));
    let fill = |host: &FakeHost<Keeper>, name: usize| {
        ask_as(host, &a, "checkpoint:ack", json!({ "consumer": name.to_string(), "seq": 0 }))
    };
    let most = shares::CONSUMERS_MAX / 2;
    {
        let host = host(dir.path());
        (0..most).for_each(|name| drop(fill(&host, name).unwrap()));
        let refusal = fill(&host, most).unwrap_err();
        assert!(refusal.code == Code::Busy && refusal.message.contains("yours"), "{refusal}");
        let call = host.open_as("checkpoint:follow", json!({ "pattern": "*", "consumer": "more" }), &a);
        assert_eq!(refused(host.next(&call)).0, Code::Busy);
        fill(&host, 0).unwrap();
        ask_as(&host, &b, "checkpoint:ack", json!({ "consumer": "more", "seq": 0 })).unwrap();
    }
    // It is known after a restart, and a name that is given back is room.
    let host = host(dir.path());
    assert_eq!(fill(&host, most).unwrap_err().code, Code::Busy);
    for name in ["0", "1"] {
        ask_as(&host, &b, "checkpoint:forget", json!({ "consumer": name })).unwrap();
    }
    fill(&host, most).unwrap();
    assert_eq!(swept(&host), most as u64);
}

#[test]
fn consumers_are_shown_and_forgotten_by_whoever_sees_them() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let [a, b, owner] = [("user:a", "a", false), ("user:b", "b", false), ("user:o", "o", true)]
        .map(|(p, t, all)| of(p, t, all));
    let follow =
        |who: &Meta| host.open_as("checkpoint:follow", json!({ "pattern": "*", "consumer": "c" }), who);
    let (first, other) = (follow(&a), follow(&b));
    assert_eq!([&first, &other].map(|call| position(&host, call) > 0), [true; 2]);
    let shown = |who: &Meta| {
        let known = ask_as(&host, who, "checkpoint:consumers", json!({})).unwrap();
        let known: Consumers = serde_json::from_value(known).unwrap();
        known.consumers.into_iter().map(|one| (one.tenant.unwrap(), one.principal.unwrap(), one.followed))
    };
    let [of_a, of_b] = ["a", "b"].map(|name| (name.to_owned(), format!("user:{name}"), true));
    assert!(shown(&a).eq([of_a.clone()]) && shown(&b).eq([of_b.clone()]));
    assert!(shown(&owner).eq([of_a, of_b.clone()]));

    let forget = |who: &Meta, ask: Value| ask_as(&host, who, "checkpoint:forget", ask);
    let theirs = || json!({ "consumer": "c", "tenant": "b" });
    for (who, ask) in [(&a, theirs()), (&a, json!({ "consumer": "d" })), (&owner, json!({ "consumer": "c" }))]
    {
        assert_eq!(forget(who, ask).unwrap_err().code, Code::NotFound);
    }
    assert_eq!(forget(&a, json!({ "consumer": "c" })).unwrap()["followed"], true);
    let (code, message) = refused(host.next(&first));
    assert!(code == Code::NotFound && message.contains("`c` was forgotten"), "{message}");
    assert!(shown(&a).eq([]) && shown(&owner).eq([of_b]));
    host.cancel(&other);
    assert_eq!(forget(&owner, theirs()).unwrap()["followed"], false);
    assert_eq!((shown(&owner).count(), swept(&host)), (0, 0));
}

/// Consumers that are left after a walk.
fn swept(host: &FakeHost<Keeper>) -> u64 {
    host.request("checkpoint:sweep", json!({})).unwrap()["seq"].as_u64().unwrap()
}

#[test]
fn a_consumer_is_forgotten_when_nothing_was_heard_of_it_for_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let ask = || json!({ "pattern": "*", "consumer": "reader" });
    host.cancel(&follow(&host, ask()));
    keep(&host, "a:x", 1);
    // To follow, and to acknowledge even what is acknowledged, is to be heard of.
    host.advance(KEEP - DAY);
    assert_eq!(swept(&host), 1);
    let call = follow(&host, ask());
    assert_eq!(number(&host, &call), 1);
    host.cancel(&call);
    host.advance(KEEP - DAY);
    assert_eq!(swept(&host), 1);
    host.request("checkpoint:ack", json!({ "consumer": "reader", "seq": 0 })).unwrap();
    host.advance(KEEP - DAY);
    assert_eq!(swept(&host), 1);
    host.advance(DAY);
    assert_eq!(swept(&host), 0);
    let (call, position) = follow_from(&host, ask());
    assert_eq!(host.try_next(&call), None, "it begins anew");
    assert!(position > 1);
}

#[test]
fn a_consumer_that_follows_is_not_forgotten_however_silent_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let ask = || json!({ "pattern": "*", "consumer": "reader" });
    let call = follow(&host, ask());
    host.advance(KEEP * 2);
    assert_eq!(swept(&host), 1);
    host.cancel(&call);
    host.advance(KEEP - DAY);
    assert_eq!(swept(&host), 1, "its time begins when it goes");
    host.advance(DAY);
    assert_eq!(swept(&host), 0);
}

#[test]
fn a_cursor_of_an_earlier_release_gets_its_time_with_the_next_walk() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    host.request("checkpoint:age", json!({})).unwrap();
    keep(&host, "a:x", 1);
    host.advance(KEEP * 2);
    assert_eq!(swept(&host), 1);
    host.advance(KEEP - DAY);
    assert_eq!(swept(&host), 1);
    let call = follow(&host, json!({ "pattern": "*", "consumer": "old" }));
    assert_eq!(number(&host, &call), 1, "it is where it was");
    host.cancel(&call);
    host.advance(KEEP);
    assert_eq!(swept(&host), 0);
}

#[test]
fn names_that_are_none_are_refused_with_the_rule() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    for name in ["", "a\nb", &"x".repeat(129)] {
        let call = host.open("checkpoint:follow", json!({ "pattern": "*", "consumer": name }));
        let (code, message) = refused(host.next(&call));
        assert_eq!(code, Code::InvalidPayload);
        assert!(message.contains("1 to 128 bytes"), "{message}");
        let ack = host.request("checkpoint:ack", json!({ "consumer": name, "seq": 0 }));
        assert_eq!(ack.unwrap_err().code, Code::InvalidPayload);
    }
}

#[test]
fn positions_that_are_not_kept_any_more_are_told_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    for each in 1..=300 {
        keep(&host, "a:x", each);
    }
    host.request("checkpoint:create", json!({})).unwrap();
    let call = follow(&host, json!({ "pattern": "*", "since_seq": 1 }));
    let gap = part(&host, &call);
    let Followed::Gap(gap) = serde_json::from_value(gap.clone()).unwrap() else { panic!("{gap}") };
    assert_eq!(gap.from_seq, 1);
    let first = number(&host, &call);
    assert!(first > 1 && first < 300, "{first}");
    let next = follow(&host, json!({ "pattern": "*", "since_seq": gap.to_seq + 1 }));
    assert_eq!(number(&host, &next), first, "nothing is missing after the gap");
    for each in first + 1..=300 {
        assert_eq!(number(&host, &call), each);
    }
}

#[test]
fn positions_that_are_damaged_are_told_exactly_in_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let seqs: Vec<u64> = {
        let host = host(dir.path());
        (1..=20).map(|number| keep(&host, "a:x", number)).collect()
    };
    let journal = dir.path().join("kept/journal");
    let file = std::fs::read_dir(journal).unwrap().map(|entry| entry.unwrap().path());
    let file = file.filter(|file| file.extension().is_some_and(|ending| ending == "journal")).min().unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    for lost in [7, 8, 15] {
        let id = correlation_id(lost);
        let place = bytes.windows(id.len()).position(|seen| seen == id.as_bytes()).unwrap();
        bytes[place] ^= 1;
    }
    std::fs::write(&file, bytes).unwrap();
    let host = host(dir.path());
    let call = follow(&host, json!({ "pattern": "*", "since_seq": seqs[0] }));
    let gap = || {
        let part = part(&host, &call);
        let Followed::Gap(gap) = serde_json::from_value(part.clone()).unwrap() else { panic!("{part}") };
        (gap.from_seq, gap.to_seq)
    };
    (1..7).for_each(|expected| assert_eq!(number(&host, &call), expected));
    assert_eq!(gap(), (seqs[6], seqs[7]));
    (9..15).for_each(|expected| assert_eq!(number(&host, &call), expected));
    assert_eq!(gap(), (seqs[14], seqs[14]));
    (16..=20).for_each(|expected| assert_eq!(number(&host, &call), expected));
    keep(&host, "a:x", 21);
    assert_eq!(number(&host, &call), 21);
}

#[test]
fn nobody_waits_at_a_position_that_is_not_of_this_journal() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let first = keep(&host, "agent:spawned", 1);
    let call = host.open("checkpoint:follow", json!({ "pattern": "*", "since_seq": first + 2 }));
    let (code, message) = refused(host.next(&call));
    assert_eq!(code, Code::InvalidPayload);
    assert!(message.contains(&format!("the last position is {first}")), "{message}");
    // What comes next is the last that may be asked for.
    let (next, position) = follow_from(&host, json!({ "pattern": "*", "since_seq": first + 1 }));
    assert_eq!(position, first + 1);

    // A cursor may have come with a keyspace: its consumer has seen nothing of what is here.
    host.request("checkpoint:age", json!({ "seq": 1_000_000 })).unwrap();
    let (call, position) = follow_from(&host, json!({ "pattern": "*", "consumer": "old" }));
    assert_eq!(position, 1);
    assert_eq!(number(&host, &call), 1);
    keep(&host, "agent:spawned", 2);
    assert_eq!((number(&host, &call), number(&host, &next)), (2, 2));
    host.cancel(&call);
    let told = host.request("checkpoint:ack", json!({ "consumer": "old", "seq": first })).unwrap();
    assert_eq!(told["seq"], first);
    let (_, position) = follow_from(&host, json!({ "pattern": "*", "consumer": "old" }));
    assert_eq!(position, first + 1);
}
