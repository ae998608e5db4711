//! Kills the daemon again and again while clients give it durable work, and
//! checks the books at the end.
//!
//! Clients ask over JSON lines, several at a time, each request under a key of
//! its own; what was not answered when the daemon died is asked again under the
//! same key. Most of it is done, some of it fails, and a little is poison that
//! kills its plugin. The daemon is killed while it works, while it starts, while
//! it makes its first store (in a fresh home each), while it makes a checkpoint,
//! while it hands over to the next binary, and while it goes back to a checkpoint
//! (in a home of its own, since that takes work back). In the end everything that was accepted must have ended once, as
//! it had to, with the answer to what was asked, and the journal must be whole.

mod tally;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

pub use tally::Tally;

use crate::{DEADLINE, Daemon, Home, library, wait_until};

/// How long the killing goes on, and how.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How often the daemon is killed.
    pub kills: usize,
    /// Fresh homes whose first daemon is killed, and as many where one is that goes
    /// back to a checkpoint.
    pub births: usize,
    /// Clients that give it work all the while.
    pub clients: usize,
    /// Work that each of them may give between two kills.
    pub burst: usize,
    /// Where the moments of the kills come from.
    pub seed: u64,
}

/// Small figures that look random, the same for the same seed (xorshift64*,
/// Vigna 2016).
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

/// No model; and checkpoints as often as they can be had.
const CONFIG: &str = r#"
[plugins.llama]
enabled = false

[plugins.checkpoint.config]
checkpoint_bytes = 65536
memory_bytes_max = 1048576
segment_bytes = 262144
results_max = 10000000
crashes_per_minute = 1000000
"#;

/// What the poison is given to, and others beside it: it dies of the poison, and takes them with it.
fn poisoned() -> String {
    format!(
        r#"
[plugins.faulty]
library = "{}"
placement = "child"
may_call = []
emits = []
restart = {{ failures_max = 1000, backoff_min = "10ms", backoff_max = "20ms" }}

[events."faulty:swallow"]
delivery = "durable"
permission = "test.use"
repeat = true
retry = {{ attempts = 5, backoff_min = "10ms", backoff_max = "20ms" }}

[events."faulty:ok"]
delivery = "durable"
permission = "test.use"
"#,
        library("fixture_faulty").display()
    )
}

/// One of so many requests fails, and one of so many is poison.
const FAILS: usize = 10;
const POISONS: usize = 500;
/// One of so many is in the plugin that the poison kills, and is done all the same.
const BESIDE: usize = 25;

/// And one is there that may not be repeated.
const ONCE: usize = 40;

/// What is asked under a number, and how that must end; `once` is `done`, or `unknown` where somebody died over it.
fn question(number: usize, key: &str) -> (&'static str, Value, &'static str) {
    if number % POISONS == POISONS - 1 {
        ("faulty:swallow", json!({"poison": true}), "dead")
    } else if number % BESIDE == BESIDE - 2 {
        ("faulty:swallow", json!({}), "done")
    } else if number % ONCE == ONCE - 3 {
        ("faulty:ok", json!({}), "once")
    } else if number % FAILS == FAILS - 1 {
        // There is no such field.
        ("echo:keep", json!({"text": key, "loud": true}), "failed")
    } else {
        ("echo:keep", json!({"text": key}), "done")
    }
}

/// Requests that a client has open at once.
const WINDOW: usize = 8;

/// Name and position of what was accepted. More than one is a fault.
type Names = BTreeSet<(String, u64)>;

/// What one client was told.
#[derive(Debug, Default)]
struct History {
    /// How it must end and what was accepted, by key.
    accepted: BTreeMap<String, (&'static str, Names)>,
}

/// Carries a plan out.
///
/// # Panics
///
/// Where the daemon does not start again, or does not answer.
#[must_use]
pub fn carry_out(plan: Plan) -> Tally {
    let mut tally = Tally::default();
    let mut dice = Dice(plan.seed | 1);
    for _ in 0..plan.births {
        be_born(&mut dice, &mut tally);
        be_restored(&mut dice, &mut tally);
    }
    let mut home = Home::with_config(&format!("{CONFIG}{}", poisoned()));
    let allowed = Arc::new(AtomicUsize::new(0));
    let accepted = Arc::new(AtomicUsize::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..plan.clients)
        .map(|number| {
            let client = Client {
                number,
                socket: home.paths().socket,
                allowed: allowed.clone(),
                accepted: accepted.clone(),
                over: over.clone(),
                history: History::default(),
            };
            thread::spawn(move || client.run())
        })
        .collect();
    for _ in 0..plan.kills {
        allowed.fetch_add(plan.burst, Ordering::Relaxed);
        home = kill_once(home, &mut dice, &accepted, &mut tally);
    }
    let daemon = home.start();
    daemon.ready();
    over.store(true, Ordering::Relaxed);
    let mut history = History::default();
    for client in clients {
        history.accepted.extend(client.join().expect("a client ends well").accepted);
    }
    check(&daemon, &history, &mut tally);
    tally
}

fn kill_once(home: Home, dice: &mut Dice, accepted: &AtomicUsize, tally: &mut Tally) -> Home {
    // A third of them before it has begun to answer: a start takes about 10 ms.
    let early = dice.below(3) == 0;
    if early {
        tally.starting += 1;
        kill_start(&home, dice.below(25));
        return home;
    }
    let before = accepted.load(Ordering::Relaxed);
    let daemon = home.start();
    daemon.ready();
    // Counted in work rather than time, so that a slow machine does as much of it.
    let more = usize::try_from(dice.below(100)).unwrap_or(0);
    wait_until("work is accepted", || accepted.load(Ordering::Relaxed) >= before + more);
    pause(dice.below(20));
    match dice.below(6) {
        0 => {
            tally.checkpointing += 1;
            let _open = begin(&daemon, "checkpoint:create", &json!({}));
            pause(dice.below(20));
        }
        1 => {
            tally.restarting += 1;
            let _open = begin(&daemon, "system:restart", &json!({}));
            pause(dice.below(60));
        }
        _ => tally.working += 1,
    }
    daemon.kill()
}

/// Asks over a connection of its own, which has to stay for as long as the asking
/// is to go on. The answer does not come any more.
fn begin(daemon: &Daemon, event: &str, data: &Value) -> UnixStream {
    let mut socket = daemon.raw();
    let _ = writeln!(socket, "{}", json!({"event": event, "data": data}));
    socket
}

/// Starts a daemon, and kills it after so many milliseconds.
fn kill_start(home: &Home, ms: u64) {
    let mut child = crate::command("ksid", home.path())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("ksid runs");
    pause(ms);
    let _ = child.kill();
    let _ = child.wait();
}

/// Kills the first daemon of a fresh home, and some that come after it. The next
/// one must start unaided, and do what it is given.
fn be_born(dice: &mut Dice, tally: &mut Tally) {
    let home = Home::with_config(CONFIG);
    for _ in 0..=dice.below(3) {
        tally.newborn += 1;
        kill_start(&home, dice.below(41));
    }
    let daemon = home.start();
    daemon.ready();
    let accepted = daemon.ask("echo:keep", json!({"text": "the first"})).expect("it is accepted");
    tally.accepted += 1;
    let info = daemon.ask("work:wait", json!({"request_id": accepted["request_id"]})).expect("it is known");
    let state = info["state"].as_str().unwrap_or_default();
    *tally.ended.entry(state.to_owned()).or_default() += 1;
    tally.wrong += usize::from(info["result"]["text"] != "the first");
    tally.holes += holes(&daemon);
}

/// Kills a daemon that goes back to a checkpoint. What was done before it is there
/// whatever happens, and what came after it is there as a whole or not at all.
fn be_restored(dice: &mut Dice, tally: &mut Tally) {
    const EACH: usize = 5;
    let daemon = Home::with_config(CONFIG).start();
    daemon.ready();
    let give = |text: &str| {
        let accepted = daemon.ask("echo:keep", json!({"text": text})).expect("it is accepted");
        let ended = daemon.ask("work:wait", json!({"request_id": accepted["request_id"]}));
        assert_eq!(ended.expect("it is known")["result"]["text"], text);
        accepted["request_id"].clone()
    };
    let before: Vec<Value> = (0..EACH).map(|_| give("before")).collect();
    let made = daemon.ask("checkpoint:create", json!({})).expect("a checkpoint");
    let after: Vec<Value> = (0..EACH).map(|_| give("after")).collect();
    tally.restoring += 1;
    let _open = begin(&daemon, "checkpoint:restore", &json!({"id": made["id"]}));
    pause(dice.below(40));
    let daemon = daemon.kill().start();
    daemon.ready();
    let is_there = |name: &Value, text: &str| {
        let found = daemon.ask("work:get", json!({"request_id": name}));
        found.is_ok_and(|info| info["state"] == "done" && info["result"]["text"] == text)
    };
    let kept = before.iter().filter(|name| is_there(name, "before")).count();
    let later = after.iter().filter(|name| is_there(name, "after")).count();
    tally.accepted += EACH + later;
    *tally.ended.entry("done".to_owned()).or_default() += kept + later;
    tally.lost += EACH - kept;
    tally.wrong += usize::from(later != 0 && later != EACH);
    tally.holes += holes(&daemon);
}

/// What is not as it was written in the journal.
fn holes(daemon: &Daemon) -> usize {
    let found = daemon.ask("checkpoint:verify", json!({})).expect("the journal can be read");
    let problems = found["problems"].as_array().map_or(0, Vec::len);
    problems.max(usize::from(found["ok"] != true))
}

/// The moment of a kill is what is tested, so here a pause is no wait for a
/// condition.
fn pause(ms: u64) {
    let until = Instant::now() + Duration::from_millis(ms);
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
}

/// Gives work, and writes down what was accepted.
struct Client {
    number: usize,
    socket: PathBuf,
    /// How much work each client may have given so far.
    allowed: Arc<AtomicUsize>,
    /// How much all of them were told is accepted.
    accepted: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    history: History,
}

impl Client {
    fn run(mut self) -> History {
        let mut open: BTreeSet<usize> = BTreeSet::new();
        let mut given = 0;
        loop {
            let is_over = self.over.load(Ordering::Relaxed);
            if is_over && open.is_empty() {
                return self.history;
            }
            let Ok(socket) = UnixStream::connect(&self.socket) else {
                pause(2);
                continue;
            };
            self.serve(socket, &mut open, &mut given);
        }
    }

    /// Gives work on one connection until it ends.
    fn serve(&mut self, socket: UnixStream, open: &mut BTreeSet<usize>, given: &mut usize) {
        let _ = socket.set_read_timeout(Some(Duration::from_millis(20)));
        let Ok(mut writer) = socket.try_clone() else { return };
        let mut reader = BufReader::new(socket);
        let mut to_ask: Vec<usize> = open.iter().copied().collect();
        let mut line = String::new();
        loop {
            let more = !self.over.load(Ordering::Relaxed);
            while more && open.len() < WINDOW && *given < self.allowed.load(Ordering::Relaxed) {
                open.insert(*given);
                to_ask.push(*given);
                *given += 1;
            }
            for number in to_ask.drain(..) {
                let key = self.key(number);
                let (event, data, _) = question(number, &key);
                let ask = json!({"event": event, "id": number, "data": data, "idempotency_key": key});
                if writer.write_all(format!("{ask}\n").as_bytes()).is_err() {
                    return;
                }
            }
            if open.is_empty() && !more {
                return;
            }
            match reader.read_line(&mut line) {
                // A line without its end was cut by a kill.
                Ok(_) if !line.ends_with('\n') => return,
                Ok(_) => {
                    if let Some(again) = self.hear(&line, open) {
                        to_ask.push(again);
                        pause(5);
                    }
                    line.clear();
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }

    fn key(&self, number: usize) -> String {
        format!("client {} request {number}", self.number)
    }

    /// Takes one answer; returns what was refused and is to be asked again.
    fn hear(&mut self, line: &str, open: &mut BTreeSet<usize>) -> Option<usize> {
        let answer: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        let number =
            usize::try_from(answer["id"].as_u64().unwrap_or_else(|| panic!("without id: {line}"))).ok()?;
        if answer.get("refusal").is_some() {
            assert_eq!(answer["refusal"]["retryable"], true, "{line}");
            return Some(number);
        }
        let name =
            answer["accepted"]["request_id"].as_str().unwrap_or_else(|| panic!("not accepted: {line}"));
        let seq = answer["accepted"]["seq"].as_u64().expect("a position");
        let key = self.key(number);
        let (_, _, end) = question(number, &key);
        let (_, names) = self.history.accepted.entry(key).or_insert_with(|| (end, Names::new()));
        if names.is_empty() {
            self.accepted.fetch_add(1, Ordering::Relaxed);
        }
        names.insert((name.to_owned(), seq));
        open.remove(&number);
        None
    }
}

/// Compares what was accepted with the books of the last daemon.
fn check(daemon: &Daemon, history: &History, tally: &mut Tally) {
    tally.accepted += history.accepted.len();
    let books = books(daemon);
    let mut seqs = BTreeSet::new();
    for (key, (end, names)) in &history.accepted {
        tally.doubled += names.len() - 1;
        for (name, seq) in names {
            tally.doubled += usize::from(!seqs.insert(*seq));
            let Some(info) = books.get(name) else {
                tally.lost += 1;
                continue;
            };
            let state = info["state"].as_str().unwrap_or_default();
            *tally.ended.entry(state.to_owned()).or_default() += 1;
            let lives = ["accepted", "leased", "waiting"].contains(&state);
            tally.lost += usize::from(lives);
            let fits = state == *end || (*end == "once" && ["done", "unknown"].contains(&state));
            tally.wrong += usize::from(!lives && !fits);
            let again = info["attempts"].as_u64().unwrap_or_default().saturating_sub(1);
            tally.repeated += again;
            tally.wrong += usize::from(*end == "once" && again > 0);
            if state == "done" {
                let found = daemon.ask("work:get", json!({"request_id": name})).expect("it is in the books");
                let result = &found["result"];
                let fits = match info["event"].as_str() {
                    Some("echo:keep") => result["text"] == key.as_str(),
                    _ => *result == json!({"n": 0}),
                };
                tally.wrong += usize::from(!fits);
            }
        }
    }
    let known: BTreeSet<&String> =
        history.accepted.values().flat_map(|(_, names)| names).map(|(name, _)| name).collect();
    tally.holes += holes(daemon);
    tally.foreign = books.keys().filter(|name| !known.contains(name)).count();
}

/// Waits until nothing is open. What ran when a daemon died runs alone now, one
/// after the other, so this takes as long as it goes on.
fn settle(daemon: &Daemon) {
    let (mut least, mut deadline) = (u64::MAX, Instant::now() + DEADLINE);
    while least > 0 {
        let status = daemon.ask("checkpoint:status", json!({})).expect("a status");
        let pending = status["pending"].as_u64().expect("a number");
        if pending < least {
            (least, deadline) = (pending, Instant::now() + DEADLINE);
        }
        assert!(Instant::now() < deadline, "{pending} pieces of work do not end");
        pause(20);
    }
}

/// All that the daemon has in its books, by name, once nothing is open.
fn books(daemon: &Daemon) -> BTreeMap<String, Value> {
    settle(daemon);
    let mut books = BTreeMap::new();
    let mut after = Value::Null;
    loop {
        let ask = match &after {
            Value::Null => json!({"limit": 1000}),
            after => json!({"limit": 1000, "after": after}),
        };
        let page = daemon.ask("work:list", ask).expect("a list");
        for info in page["work"].as_array().expect("a page") {
            books.insert(info["request_id"].as_str().expect("a name").to_owned(), info.clone());
        }
        match page.get("next") {
            Some(next) if !next.is_null() => after = next.clone(),
            _ => return books,
        }
    }
}
