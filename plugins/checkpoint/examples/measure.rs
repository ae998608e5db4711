//! Measures the engine on the disk of a directory, and prints the figures:
//! commits a second with 256 in flight, a single commit against a bare append
//! with `fdatasync`, memory, openings, and disk use after a million overwrites.
//! Fails where an opening with 100,000 pieces of work that wait, or the disk
//! that the overwrites take, is beyond what is promised.
//!
//! `cargo run --release -p plugin-checkpoint --example measure -- DIRECTORY`

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::{
    cell::RefCell,
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Command, Stdio},
    rc::Rc,
    time::{Duration, Instant},
};

use futures_executor::block_on;
use futures_util::future::join_all;
use ksi_sdk::protocol::{Bytes, Code, EventName, Refusal, work::Policy};
use plugin_checkpoint::{
    engine::{Engine, Options},
    ledger::{Admission, Begun, Entry, Id, Ledger, Limits, Order},
    record::{Batch, keys},
};

/// Work that waits at an opening, and the time that it may take with it.
const PENDING: u64 = 100_000;
const OPEN_MAX: Duration = Duration::from_secs(2);
/// What the disk may hold in the end, against what lives.
const DISK_MAX: f64 = 5.0;

fn status(field: &str) -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("?").trim().to_owned()
}

fn put(key: u64, bytes: usize) -> Batch {
    let mut batch = Batch::new();
    batch.put(key.to_be_bytes().to_vec(), vec![key as u8; bytes]);
    batch
}

async fn commit(engine: &Engine, batch: Batch) -> Result<u64, Refusal> {
    loop {
        match engine.commit(batch.clone()) {
            // The disk has to catch up; the next checkpoint is waited for.
            Err(refusal) if refusal.code == Code::Busy => {
                engine.checkpoint().await?;
            }
            result => return result,
        }
    }
}

fn disk_bytes(dir: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // Files go while they are counted.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

fn p50(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn open(dir: &Path) -> Result<Rc<Engine>, Refusal> {
    let begun = Instant::now();
    let (engine, recovery) = block_on(Engine::open(dir.to_owned(), Options::default()))?;
    println!(
        "  open {:?}, replayed {}, VmRSS {}, threads {}",
        begun.elapsed(),
        recovery.replayed,
        status("VmRSS:"),
        status("Threads:")
    );
    Ok(engine)
}

fn single(dir: &Path, engine: &Engine) -> Result<(), Box<dyn std::error::Error>> {
    let mut file = fs::File::create(dir.join("bare"))?;
    file.write_all(&vec![0; 8 << 20])?;
    file.sync_all()?;
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    // In turns, so that both see the same disk.
    for number in 0..1000_u64 {
        let begun = Instant::now();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 256], number * 256)?;
        file.sync_data()?;
        bare.push(begun.elapsed());
        let begun = Instant::now();
        let seq = engine.commit(put(number, 200))?;
        block_on(engine.durable(seq))?;
        ours.push(begun.elapsed());
    }
    let (bare, ours) = (p50(bare), p50(ours));
    println!(
        "one at a time: bare append {bare:?}, commit {ours:?}, ratio {:.2}",
        ours.as_secs_f64() / bare.as_secs_f64()
    );
    Ok(())
}

fn many(engine: &Engine) -> Result<(), Refusal> {
    let next = RefCell::new(0_u64);
    let begun = Instant::now();
    let count = 200_000;
    let worker = async || -> Result<(), Refusal> {
        loop {
            let number = next.replace_with(|next| *next + 1);
            if number >= count {
                return Ok(());
            }
            let seq = commit(engine, put(number % 10_000, 200)).await?;
            engine.durable(seq).await?;
        }
    };
    for result in block_on(join_all((0..256).map(|_| worker()))) {
        result?;
    }
    println!("256 in flight: {:.0} durable commits a second", count as f64 / begun.elapsed().as_secs_f64());
    Ok(())
}

fn overwrites(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let engine = open(dir)?;
    let (keys, bytes, mut random, mut peak) = (16_384_u64, 1000, 88_172_645_463_325_252_u64, 0);
    let begun = Instant::now();
    for number in 0..1_000_000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        block_on(commit(&engine, put(random % keys, bytes)))?;
        if number % 20_000 == 0 && number > 100_000 {
            peak = peak.max(disk_bytes(dir)?);
        }
    }
    block_on(engine.checkpoint())?;
    let (live, disk, health) = (keys * (8 + bytes as u64), disk_bytes(dir)?, engine.health());
    let ratio = |bytes: u64| bytes as f64 / live as f64;
    println!(
        "a million overwrites of {live} bytes that live in {:?}: disk {:.2} x live (store {:.2}, journal {:.2}), peak {:.2}, VmRSS {}",
        begun.elapsed(),
        ratio(disk),
        ratio(health.store_bytes),
        ratio(health.journal_bytes),
        ratio(peak),
        status("VmRSS:")
    );
    block_on(engine.close())?;
    match ratio(disk) {
        held if held < DISK_MAX => Ok(()),
        held => Err(format!("the disk holds {held:.2} x what lives; {DISK_MAX} x is the most").into()),
    }
}

/// Work that waits for its turn, and none of which is begun.
fn accept(engine: &Engine) -> Result<(), Refusal> {
    let limits = Limits { in_flight: 0, ..Limits::default() };
    let mut ledger = Ledger::new(limits, engine.epoch(), 1);
    let mut last = 0;
    for number in 0..PENDING {
        let order = Order {
            id: Id::fresh(),
            seq: engine.next_seq(),
            event: EventName::parse("completion:async").expect("a name"),
            origin: "session:1".into(),
            principal: Some("user:owner".into()),
            tenant: None,
            correlation_id: None,
            policy: Policy::default(),
            key: None,
        };
        let payload = Bytes::from(vec![number as u8; 256]);
        if let Admission::New { step, .. } = ledger.accept(1, order, payload, None)? {
            last = block_on(commit(engine, step.batch))?;
        }
    }
    block_on(engine.durable(last))
}

/// The word for a process that accepts work and is to be killed then.
const ACCEPT: &str = "accept";

/// Has a process of its own accept the work, and kills it.
fn die(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut child = command.arg(dir).arg(ACCEPT).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    let mut words = BufReader::new(child.stdout.take().ok_or("its output is a pipe")?);
    while said.trim_end() != ACCEPT {
        said.clear();
        if words.read_line(&mut said)? == 0 {
            return Err("the process that accepts has ended by itself".into());
        }
    }
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// Opens what has so much work that waits, as the plugin does.
fn reopen(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let begun = Instant::now();
    let engine = open(dir)?;
    let mut ledger = Ledger::new(Limits { in_flight: 0, ..Limits::default() }, engine.epoch(), 1);
    let mut after: Option<Bytes> = None;
    loop {
        let page = block_on(engine.scan(&[keys::WORK], after.as_deref(), 1_000))?;
        for (key, value) in &page {
            ledger.load(Id::of_work_key(key).ok_or("a key that is none of work")?, Entry::decode(value)?);
        }
        match page.into_iter().next_back() {
            Some((key, _)) => after = Some(key),
            None => break,
        }
    }
    let _ = ledger.recover(1, &Begun::default());
    let took = begun.elapsed();
    assert_eq!(ledger.figures().pending as u64, PENDING);
    println!("  {PENDING} pieces of work that wait: {took:?}");
    block_on(engine.close())?;
    match took {
        took if took < OPEN_MAX => Ok(()),
        took => Err(format!("the opening took {took:?}; {OPEN_MAX:?} is the most").into()),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args_os().nth(1).ok_or("give a directory that may be filled")?;
    let dir = Path::new(&dir);
    fs::create_dir_all(dir)?;
    if std::env::args_os().nth(2).is_some_and(|word| word == ACCEPT) {
        let engine = open(&dir.join("full"))?;
        accept(&engine)?;
        println!("{ACCEPT}");
        // Until it is killed.
        std::io::stdin().read_to_end(&mut Vec::new())?;
        return Ok(());
    }
    println!("before: VmRSS {}", status("VmRSS:"));
    println!("an empty engine, the first time and again:");
    for _ in 0..2 {
        block_on(open(&dir.join("empty"))?.close())?;
    }
    println!("{PENDING} pieces of work that wait, after a death and after an end in order:");
    die(dir)?;
    for _ in 0..2 {
        reopen(&dir.join("full"))?;
    }
    let engine = open(&dir.join("rates"))?;
    single(dir, &engine)?;
    many(&engine)?;
    block_on(engine.close())?;
    drop(engine);
    overwrites(&dir.join("overwrites"))
}
