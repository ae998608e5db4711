//! What the ledger costs. The figures are printed; what is asserted has a wide
//! margin, since the machine may be busy with other things.

use std::time::{Duration, Instant};

use ksi_sdk::protocol::{Bytes, EventName, work::Policy};

use crate::{
    ledger::{Admission, Begun, Effect, Entry, Id, Ledger, Limits, Order},
    record::{Batch, Change, keys},
};

fn order(number: u64) -> Order {
    Order {
        id: Id::from_u128(number.into()),
        seq: number,
        event: EventName::parse("completion:async").unwrap(),
        origin: "session:17".into(),
        principal: Some("user:owner".into()),
        tenant: Some("local".into()),
        correlation_id: None,
        policy: Policy::default(),
        key: None,
    }
}

fn accept(ledger: &mut Ledger, number: u64) -> (Id, Batch, Vec<Effect>) {
    match ledger.accept(1_000_000, order(number), Bytes::from_static(&[0; 256]), None).unwrap() {
        Admission::New { id, step } => (id, step.batch, step.effects),
        Admission::Same { .. } => panic!("no key was given"),
    }
}

#[test]
fn an_acceptance_with_its_end_costs_microseconds() {
    let mut ledger = Ledger::new(Limits::default(), 1, 1);
    let count = 100_000;
    let begin = Instant::now();
    let mut bytes = 0;
    for number in 1..=count {
        let (id, batch, effects) = accept(&mut ledger, number);
        assert_eq!(effects.len(), 1);
        bytes += batch.size();
        let step = ledger.outcome(1_000_001, id, 1, Ok(Bytes::from_static(b"\x81\xa4text\xa2ok")));
        bytes += step.batch.size();
    }
    let each = begin.elapsed() / u32::try_from(count).unwrap();
    println!("accept + done: {each:?} each, {} bytes of changes", bytes / usize::try_from(count).unwrap());
    assert!(each < Duration::from_micros(100), "{each:?}");
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4
}

#[test]
fn a_hundred_thousand_pending_entries_load_fast_and_take_little() {
    let mut ledger = Ledger::new(Limits { in_flight: 0, ..Limits::default() }, 1, 1);
    let mut stored = Vec::new();
    for number in 1..=100_000 {
        let (_, batch, _) = accept(&mut ledger, number);
        stored.extend(batch.into_iter().filter(|change| change.key[0] == keys::WORK));
    }
    // Its memory must not be there for the next one to use again.
    std::mem::forget(ledger);
    let (before, begin) = (resident_kib(), Instant::now());
    let mut ledger = Ledger::new(Limits { in_flight: 0, ..Limits::default() }, 2, 1);
    for Change { key, value } in &stored {
        let entry = Entry::decode(value.as_ref().unwrap()).unwrap();
        ledger.load(Id::of_work_key(key).unwrap(), entry);
    }
    let step = ledger.recover(1_000_002, &Begun::default());
    let took = begin.elapsed();
    println!(
        "100,000 pending: loaded in {took:?}, {} KiB of memory, {} bytes each",
        resident_kib().saturating_sub(before),
        size_of::<Entry>()
    );
    assert!(step.batch.is_empty() && ledger.figures().pending == 100_000);
    assert!(took < Duration::from_secs(5), "{took:?}");
}
