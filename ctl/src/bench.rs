//! `bench`: what a running daemon can do, measured over its socket.
//!
//! Each test runs in a fresh runtime over fresh connections, so that none pays
//! for another. It measures and does not judge: the bars are ratios to other
//! programs, taken in one run by a script.

mod durable;
mod facts;
mod frozen;
mod infer;
mod requests;
mod tokens;

use std::time::Duration;

use ksi_client::Client;
use ksi_protocol::system::{Describe, EventInfo, PluginList};
use serde::Serialize;
use serde_json::json;
use tokio::runtime;

use crate::{
    args::{self, BenchTest},
    error::{Failure, Result},
    exit::Exit,
    invocation::Invocation,
    output::{Report, Table},
    verb::interruptible,
};

/// Text of every payload: 64 bytes, the size of a small request.
const TEXT: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// What one test has found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
struct Measured {
    test: &'static str,
    /// Half of all took no longer, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_us: Option<f64>,
    /// 99 of 100 took no longer, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_us: Option<f64>,
    /// Requests, round trips, deliveries or tokens in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    per_s: Option<f64>,
    /// How many were measured.
    n: usize,
    /// Events that were lost on the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<u64>,
    /// Time from one client to the other, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    one_way_us: Option<f64>,
    /// Where the plugin that answered runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    placement: Option<&'static str>,
    /// How many times the figure beside it in the same run, `against`.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<&'static str>,
    /// The daemon's share of the time of a token, percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    share_percent: Option<f64>,
    /// Why it was not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
}

impl Measured {
    /// Of the times of `n` things one after the other.
    fn of(test: &'static str, mut times: Vec<Duration>, took: Duration) -> Self {
        times.sort_unstable();
        Self {
            test,
            p50_us: percentile(&times, 50),
            p99_us: percentile(&times, 99),
            per_s: Some(rate(times.len(), took)),
            n: times.len(),
            ..Self::default()
        }
    }

    /// What else there is to say, in words.
    fn note(&self) -> String {
        let mut notes = Vec::new();
        if let Some(why) = &self.skipped {
            notes.push(format!("skipped: {why}"));
        }
        if let Some(placement) = self.placement {
            notes.push(placement.to_owned());
        }
        if let Some(us) = self.one_way_us {
            notes.push(format!("one way {us:.1} µs"));
        }
        if let (Some(ratio), Some(against)) = (self.ratio, self.against) {
            notes.push(format!("{ratio:.2} × {against}"));
        }
        if let Some(lost) = self.lost {
            notes.push(format!("{lost} lost"));
        }
        if let Some(share) = self.share_percent {
            notes.push(format!("the daemon's share of a token {share:.2} %"));
        }
        notes.join(", ")
    }
}

/// The time that `percent` of all do not exceed, microseconds; `times` are
/// sorted.
fn percentile(times: &[Duration], percent: usize) -> Option<f64> {
    let index = (times.len() * percent / 100).min(times.len().checked_sub(1)?);
    times.get(index).map(|time| rounded(time.as_secs_f64() * 1e6))
}

/// How many in a second.
fn rate(n: usize, took: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let n = n as f64;
    rounded(n / took.as_secs_f64().max(1e-9))
}

/// One digit behind the point: more would be noise.
fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// How many times the other it is.
fn over(value: Option<f64>, other: Option<f64>) -> Option<f64> {
    Some((value? / other.filter(|other| *other > 0.0)? * 100.0).round() / 100.0)
}

/// `ksi bench`.
///
/// # Errors
///
/// Fails where the daemon is not running, or the one test asked for cannot be
/// measured.
pub(crate) fn run(at: &Invocation, options: &args::Bench) -> Result<()> {
    const ALL: [BenchTest; 8] = [
        BenchTest::Rr,
        BenchTest::RrChild,
        BenchTest::ClientToClient,
        BenchTest::Pipelined,
        BenchTest::Fanout,
        BenchTest::Frozen,
        BenchTest::Ask,
        BenchTest::Durable,
    ];
    let mut results = Vec::new();
    if options.test == BenchTest::All {
        for test in ALL {
            let measured = measure(at, options, test).or_else(|failure| skipped(name(test), failure))?;
            for measured in &measured {
                at.out.note(&format!("{}: {}", measured.test, brief(measured)));
            }
            results.extend(measured);
        }
    } else {
        results = measure(at, options, options.test)?;
    }
    at.out.print(&report(&results)?)
}

fn name(test: BenchTest) -> &'static str {
    match test {
        BenchTest::Rr => "rr",
        BenchTest::RrChild => "rr-child",
        BenchTest::ClientToClient => "client-to-client",
        BenchTest::Pipelined => "pipelined",
        BenchTest::Fanout => "fanout",
        BenchTest::Frozen => "frozen",
        BenchTest::Ask => "ask",
        BenchTest::Durable => "durable",
        BenchTest::Infer => "infer",
        BenchTest::All => "all",
    }
}

fn brief(measured: &Measured) -> String {
    match measured.per_s {
        Some(rate) => format!("{rate:.0}/s"),
        None => measured.note(),
    }
}

/// A test among others is left out where the daemon lacks what it needs.
fn skipped(test: &'static str, failure: Failure) -> Result<Vec<Measured>> {
    match failure.exit {
        Exit::NotRunning | Exit::Interrupted => Err(failure),
        _ => Ok(vec![Measured { test, skipped: Some(failure.message), ..Measured::default() }]),
    }
}

fn measure(at: &Invocation, options: &args::Bench, test: BenchTest) -> Result<Vec<Measured>> {
    let count = |default: usize| options.count.unwrap_or(default).max(1);
    let one = match test {
        BenchTest::Rr => {
            let work = requests::one_by_one(at, "rr", &options.event, count(20_000));
            single()?.block_on(interruptible(work))
        }
        BenchTest::RrChild => {
            let work = requests::in_a_child(at, &options.child_event, count(20_000));
            single()?.block_on(interruptible(work))
        }
        BenchTest::Pipelined => {
            let work = requests::pipelined(at, &options.event, options.in_flight.max(1), count(200_000));
            single()?.block_on(interruptible(work))
        }
        BenchTest::ClientToClient => {
            single()?.block_on(interruptible(facts::client_to_client(at, count(20_000))))
        }
        BenchTest::Fanout => {
            let work = facts::fanout(at, options.subscribers.max(1), count(20_000));
            several()?.block_on(interruptible(work))
        }
        BenchTest::Frozen => {
            let work = frozen::frozen(at, options.readers.max(1), count(10_000));
            return single()?.block_on(interruptible(work));
        }
        BenchTest::Ask => {
            single()?.block_on(interruptible(tokens::ask(at, options.model.clone(), count(512))))
        }
        BenchTest::Durable => {
            let plan = durable::Plan {
                event: &options.durable_event,
                live_event: &options.event,
                disk: options.disk.as_deref().unwrap_or(&at.paths.state_dir),
                in_flight: options.in_flight.max(1),
                count: count(20_000),
            };
            return single()?.block_on(interruptible(durable::durable(at, &plan)));
        }
        BenchTest::Infer => {
            let work = infer::infer(at, options.model.clone(), options.against.as_deref());
            return single()?.block_on(interruptible(work));
        }
        BenchTest::All => Err(Failure::usage("`all` is not one test")),
    };
    Ok(vec![one?])
}

/// One thread: a wake-up inside it is the cheapest there is.
fn single() -> Result<runtime::Runtime> {
    built(runtime::Builder::new_current_thread())
}

/// A thread for each core, where many connections are read at once.
fn several() -> Result<runtime::Runtime> {
    built(runtime::Builder::new_multi_thread())
}

fn built(mut builder: runtime::Builder) -> Result<runtime::Runtime> {
    builder.enable_all().build().map_err(|error| Failure::failed(format!("cannot start: {error}")))
}

fn report(results: &[Measured]) -> Result<Report> {
    let mut table = Table::new(&["TEST", "P50 µs", "P99 µs", "PER SECOND", "N", "NOTE"]);
    let figure =
        |value: Option<f64>, digits: usize| value.map_or("-".into(), |value| format!("{value:.digits$}"));
    for measured in results {
        table.row([
            measured.test.into(),
            figure(measured.p50_us, 1),
            figure(measured.p99_us, 1),
            figure(measured.per_s, 0),
            measured.n.to_string(),
            measured.note(),
        ]);
    }
    let names = results.iter().map(|measured| measured.test.to_owned()).collect();
    Report::list(&json!({ "results": results }), "results", names, table)
}

/// Where the plugin that answers `event` runs, so that a figure says what it
/// is a figure of.
async fn placement(at: &Invocation, client: &Client, event: &str) -> Result<Option<&'static str>> {
    let payload = Describe { event: event.to_owned() };
    let info: EventInfo = at.ask(client, "system:describe", &payload).await?;
    let list: PluginList = at.ask(client, "plugin:list", &json!({})).await?;
    let owner = list.plugins.iter().find(|plugin| plugin.name == info.owner);
    Ok(owner.map(|plugin| plugin.placement.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Format, Output};

    #[test]
    fn percentiles_are_of_sorted_times() {
        let times = (1..=100).map(Duration::from_micros).collect();
        let measured = Measured::of("rr", times, Duration::from_secs(2));
        assert_eq!(measured.p50_us, Some(51.0));
        assert_eq!(measured.p99_us, Some(100.0));
        assert_eq!(measured.per_s, Some(50.0));
        assert_eq!(percentile(&[], 50), None);
        assert_eq!(percentile(&[Duration::from_micros(7)], 99), Some(7.0));
    }

    #[test]
    fn results_are_one_document_or_one_line_each() {
        let results = [
            Measured { test: "rr", p50_us: Some(40.5), per_s: Some(24_000.0), n: 1, ..Measured::default() },
            Measured { test: "rr-child", skipped: Some("no echo_child".into()), ..Measured::default() },
        ];
        let report = report(&results).unwrap();
        for (format, expected) in [
            (
                Format::Jsonl,
                "{\"n\":1,\"p50_us\":40.5,\"per_s\":24000.0,\"test\":\"rr\"}\n\
                 {\"n\":0,\"skipped\":\"no echo_child\",\"test\":\"rr-child\"}\n",
            ),
            (
                Format::Table,
                "TEST      P50 µs  P99 µs  PER SECOND  N  NOTE\n\
                 rr        40.5    -       24000       1\n\
                 rr-child  -       -       -           0  skipped: no echo_child\n",
            ),
        ] {
            let output = Output { format, headers: true, quiet: true, color: false };
            let mut out = Vec::new();
            output.render(&report, &mut out).unwrap();
            let text = String::from_utf8(out).unwrap();
            match format {
                Format::Jsonl => {
                    let parsed = |text: &str| -> Vec<serde_json::Value> {
                        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
                    };
                    assert_eq!(parsed(&text), parsed(expected));
                }
                _ => assert_eq!(text, expected),
            }
        }
    }

    #[test]
    fn a_test_that_cannot_be_measured_is_skipped_but_a_missing_daemon_is_not() {
        let measured = skipped("rr-child", Failure::not_found("event", "x:y")).unwrap();
        assert_eq!(measured[0].note(), "skipped: no event named `x:y`");
        assert!(skipped("rr", Failure::not_running("/s".as_ref())).is_err());
    }
}
