//! Has a plugin in a child fail in every way, again and again, and checks what
//! is left after each: the daemon lives, whoever waited was told, the next
//! request is answered soon after, and no process is left behind.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{DEADLINE, Daemon, Home, Lines, library, wait_until};

/// Longest time from a death to the first good answer of the next generation.
pub const BACK: Duration = Duration::from_millis(250);

/// What a fault does to its plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Costs {
    /// It dies, and whoever asked is refused.
    Life,
    /// It answers, and dies afterwards.
    LifeLater,
    /// Nothing: it answers, and goes on.
    Nothing,
}

/// A shell that becomes two, each of which becomes two, and so on: a thousand
/// processes, unless something stops them.
const FORK_BOMB: &str =
    r#"{"command": "f() { [ $1 = 0 ] || { f $(($1 - 1)) & f $(($1 - 1)) & }; sleep NAP; }; f 8"}"#;

/// Lines that the log takes of one babble, at most: it is far less than what is said.
const BABBLE_MAX: usize = 2000;

/// How long what the fork bomb starts sleeps, in seconds: nobody else does for so long.
fn nap() -> String {
    format!("9{:08}", std::process::id())
}

/// Every fault: its event, its payload, what it costs.
const FAULTS: [(&str, &str, Costs); 14] = [
    ("faulty:panic", "{}", Costs::Life),
    ("faulty:abort", "{}", Costs::Life),
    ("faulty:segv", "{}", Costs::Life),
    ("faulty:stack", "{}", Costs::Life),
    ("faulty:leak", r#"{"mb": 1024}"#, Costs::Life),
    ("faulty:hang", "{}", Costs::Life),
    ("faulty:hang_later", "{}", Costs::LifeLater),
    ("faulty:sleep_blocking", "{}", Costs::Life),
    ("faulty:run", FORK_BOMB, Costs::Nothing),
    ("faulty:flood", r#"{"n": 5000}"#, Costs::Nothing),
    ("faulty:babble", r#"{"n": 5000}"#, Costs::Nothing),
    ("faulty:dead_reply", "{}", Costs::Nothing),
    ("faulty:garbage", "{}", Costs::Life),
    // Last, since what follows must do without files; the first one can.
    ("faulty:open", r#"{"n": 10000}"#, Costs::Nothing),
];

/// What came of it.
#[derive(Debug, Default)]
pub struct Tally {
    /// Faults in all.
    pub faults: usize,
    /// Faults that cost the plugin its life.
    pub deaths: usize,
    /// What went wrong, one sentence each.
    pub broken: Vec<String>,
    /// Times from a death to the first good answer of the next generation, by
    /// what it died of; and to the next good answer from what it survived.
    pub back: BTreeMap<&'static str, Vec<Duration>>,
}

impl Tally {
    /// The time within which the plugin was back after this share of deaths.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        let deadly = FAULTS.iter().filter(|(_, _, costs)| *costs != Costs::Nothing);
        let back = deadly.filter_map(|(event, ..)| self.back.get(event)).flatten();
        quantile(back.copied().collect(), share)
    }

    /// Faults after which the plugin was late more often than not: a machine that
    /// is busy makes any of them late now and then.
    #[must_use]
    pub fn late(&self) -> Vec<&'static str> {
        let late = self.back.iter().filter(|(_, back)| quantile(back.to_vec(), 0.5) > BACK);
        late.map(|(event, _)| *event).collect()
    }
}

fn quantile(mut times: Vec<Duration>, share: f64) -> Duration {
    times.sort();
    let at = (times.len() as f64 * share).ceil() as usize;
    times.get(at.saturating_sub(1)).copied().unwrap_or_default()
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [half, most, all] = [0.5, 0.99, 1.0].map(|share| self.quantile(share).as_millis());
        write!(
            f,
            "faults {}, deaths {}, broken {}; from death to answer p50 {half} ms, p99 {most} ms, max {all} ms",
            self.faults,
            self.deaths,
            self.broken.len()
        )?;
        for (event, back) in &self.back {
            let [half, all] = [0.5, 1.0].map(|share| quantile(back.clone(), share).as_millis());
            write!(f, "\n  {event} p50 {half} ms, max {all} ms")?;
        }
        self.broken.iter().try_for_each(|broken| write!(f, "\n  {broken}"))
    }
}

fn config() -> String {
    format!(
        r#"
        [plugins.llama]
        enabled = false
        [plugins.completion]
        enabled = false
        [plugins.faulty]
        library = "{}"
        may_call = []
        emits = ["faulty:*"]
        limits = {{ memory_mb = 512, processes = 256 }}
        sandbox = {{ exec = true }}
        [plugins.faulty.restart]
        hang = "700ms"
        backoff_min = "1ms"
        backoff_max = "1ms"
        failures_max = 1000
        window = "1s"
        "#,
        library("fixture_faulty").display()
    )
}

/// Has the plugin fail this often, in every way in turn.
///
/// # Panics
///
/// Where the daemon does not start, or stops to answer.
#[must_use]
pub fn carry_out(faults: usize) -> Tally {
    let mut daemon = Home::with_config(&config()).start();
    daemon.ready();
    let mut facts = daemon.lines();
    facts.send(&json!({"id": 1, "subscribe": "plugin:*"}));
    let mut tally = Tally::default();
    for (event, data, costs) in FAULTS.into_iter().cycle().take(faults) {
        tally.faults += 1;
        let data: Value = serde_json::from_str(&data.replace("NAP", &nap())).expect("it is JSON");
        let babbled = babbled(&daemon);
        let answer = daemon.ask(event, data);
        let told = match (costs, &answer) {
            (Costs::Life, Err(refusal)) => refusal["code"] == "plugin_restarted",
            (Costs::Life, Ok(_)) | (_, Err(_)) => false,
            _ => true,
        };
        if !told {
            tally.broken.push(format!("{event} was answered {answer:?}"));
            answers(&daemon);
            continue;
        }
        let logged = self::babbled(&daemon).saturating_sub(babbled);
        if logged > BABBLE_MAX {
            tally.broken.push(format!("of {event} the log took {logged} lines"));
        }
        if event == "faulty:run" {
            wait_until("the fork bomb has gone off", || sleepers() > 50);
        }
        if costs == Costs::LifeLater {
            // Only what has work is watched; and it may be quick enough to do
            // some before it hangs.
            while daemon.ask("faulty:ok", json!({})).is_ok() {}
        }
        let back = if costs == Costs::Nothing {
            let since = Instant::now();
            if let Err(refusal) = daemon.ask("faulty:ok", json!({})) {
                tally.broken.push(format!("after {event} it was refused: {refusal}"));
            }
            since.elapsed()
        } else {
            tally.deaths += 1;
            comes_back(&daemon, &mut facts)
        };
        tally.back.entry(event).or_default().push(back);
        if !daemon.is_alive() {
            tally.broken.push(format!("{event} cost the daemon its life"));
            return tally;
        }
    }
    // What it has started goes with it, and nobody is left uncollected.
    wait_until("the daemon has one child", || children(daemon.pid()) == 1);
    daemon.ask("plugin:unload", json!({"name": "faulty"})).expect("it stops");
    wait_until("nothing of the fork bomb is left", || sleepers() == 0);
    tally
}

/// How many lines of a babble are in the log.
fn babbled(daemon: &Daemon) -> usize {
    daemon.log().matches("babble").count()
}

/// How many processes of the fork bomb there are.
fn sleepers() -> usize {
    let entries = std::fs::read_dir("/proc").expect("processes can be looked at").flatten();
    let commands = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let ours = format!("sleep\0{}\0", nap());
    commands.filter(|command| command == ours.as_bytes()).count()
}

/// How many children a process has, dead ones too.
fn children(parent: u32) -> usize {
    let entries = std::fs::read_dir("/proc").expect("processes can be looked at").flatten();
    let parent = format!("PPid:\t{parent}");
    let is_child = |status: &String| status.lines().any(|line| line == parent);
    let statuses = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok());
    statuses.filter(is_child).count()
}

/// Waits for the next death of the plugin, and for the first good answer after
/// it.
fn comes_back(daemon: &Daemon, facts: &mut Lines) -> Duration {
    loop {
        let line = facts.receive();
        if line["event"] == "plugin:died" && line["data"]["name"] == "faulty" {
            break;
        }
    }
    answers(daemon)
}

/// Waits until the plugin answers; how long that took.
fn answers(daemon: &Daemon) -> Duration {
    let since = Instant::now();
    while daemon.ask("faulty:ok", json!({})).is_err() {
        assert!(since.elapsed() < DEADLINE, "the plugin does not come back");
        std::thread::park_timeout(Duration::from_millis(1));
    }
    since.elapsed()
}
