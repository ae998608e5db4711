//! Durable requests: what it costs that accepted work is never lost.
//!
//! The reference is the least that any program can do to be as safe: append a
//! record to a file and wait for the disk. The file has its full length from the
//! start, as the journal's segments have, which is several times as fast as one
//! that grows. Both take turns in one run, on one disk, so that its mood shows in
//! both. Whoever keeps work for others has to be asked and to answer besides, so
//! the same append is also measured behind a socket, by a thread that does nothing
//! else: what is beyond that is the daemon's own. The other question is what others
//! pay: live requests are measured alone and beside durable ones.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ksi_client::{CallOptions, Client, Error};
use serde_json::json;

use super::{
    Measured, TEXT, over,
    requests::{run, timed},
    single,
};
use crate::{
    error::{Failure, Result},
    invocation::{Invocation, encoded},
};

/// Turns that each pair of measurements takes.
const TURNS: usize = 5;

/// Bytes of a bare record: about what the journal writes for an accepted
/// request with the payload of these measurements.
const RECORD_BYTES: usize = 320;

/// Durable requests in flight beside live ones: enough for the journal to be
/// busy all the time, too few to fill a core.
const BESIDE: usize = 8;

/// Live requests in all, alone and beside.
const LIVE: usize = 5_000;

/// What to measure.
pub(super) struct Plan<'a> {
    /// The durable event.
    pub(super) event: &'a str,
    /// The live one.
    pub(super) live_event: &'a str,
    /// Where the journal's disk is.
    pub(super) disk: &'a Path,
    pub(super) in_flight: usize,
    /// Accepts with many in flight.
    pub(super) count: usize,
}

/// Measures all of it.
///
/// # Errors
///
/// Fails where the event is not durable or not answered, or nothing can be
/// written to the disk.
pub(super) async fn durable(at: &Invocation, plan: &Plan<'_>) -> Result<Vec<Measured>> {
    let client = at.connect().await?;
    let payload = encoded(&json!({ "text": TEXT }))?;
    accepted(&client, plan.event, &payload).await?;
    let mut results = one_by_one(&client, plan, &payload).await?;
    results.push(in_flight(&client, plan, &payload).await?);
    results.extend(beside(at, &client, plan, &payload).await?);
    Ok(results)
}

/// The first one; says where the event is not durable.
async fn accepted(client: &Client, event: &str, payload: &Bytes) -> Result<()> {
    match client.submit_raw(event, payload.clone(), CallOptions::default()).await {
        Ok(_) => Ok(()),
        Err(error @ Error::NotDurable { .. }) => Err(Failure::failed(error.to_string())
            .hint("another one: --durable-event NS:EVENT; which are: ksi discover --detail")),
        Err(error) => Err(error.into()),
    }
}

/// Bare appends, those behind a socket, and single accepts, in turns.
async fn one_by_one(client: &Client, plan: &Plan<'_>, payload: &Bytes) -> Result<Vec<Measured>> {
    let each = (plan.count / 50).clamp(20, 1_000).div_ceil(TURNS);
    let mut bare = Bare::create(plan.disk, each * TURNS + 1)?;
    let mut served = Served::start(Bare::create(plan.disk, each * TURNS + 1)?)?;
    let mut spent = [Duration::ZERO; 3];
    let (mut appends, mut asked, mut accepts) = (Vec::new(), Vec::new(), Vec::new());
    // The first of each wakes the disk and the way to it.
    bare.append()?;
    served.append()?;
    timed(client, plan.event, payload).await?;
    for _ in 0..TURNS {
        let began = Instant::now();
        for _ in 0..each {
            appends.push(bare.append()?);
        }
        spent[0] += began.elapsed();
        let began = Instant::now();
        for _ in 0..each {
            asked.push(served.append()?);
        }
        spent[1] += began.elapsed();
        let began = Instant::now();
        for _ in 0..each {
            accepts.push(timed(client, plan.event, payload).await?);
        }
        spent[2] += began.elapsed();
    }
    let append = Measured::of("append-bare", appends, spent[0]);
    let asked = Measured::of("append-served", asked, spent[1]);
    let accept = Measured::of("durable-single", accepts, spent[2]);
    let against = |it: Measured| Measured {
        ratio: over(it.p50_us, append.p50_us),
        against: Some("a bare append"),
        ..it
    };
    let (asked, accept) = (against(asked), against(accept));
    Ok(vec![append, asked, accept])
}

async fn in_flight(client: &Client, plan: &Plan<'_>, payload: &Bytes) -> Result<Measured> {
    let each = plan.count.div_ceil(plan.in_flight);
    run(client, plan.event, payload, plan.in_flight, (each / 20).max(1)).await?;
    let began = Instant::now();
    let times = run(client, plan.event, payload, plan.in_flight, each).await?;
    Ok(Measured::of("durable-pipelined", times, began.elapsed()))
}

/// Live requests alone and beside durable ones, in turns.
async fn beside(at: &Invocation, client: &Client, plan: &Plan<'_>, payload: &Bytes) -> Result<[Measured; 2]> {
    let each = plan.count.min(LIVE).div_ceil(TURNS);
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let mut spent = [Duration::ZERO; 2];
    for _ in 0..TURNS {
        let began = Instant::now();
        for _ in 0..each {
            alone.push(timed(client, plan.live_event, payload).await?);
        }
        spent[0] += began.elapsed();
        let traffic = Traffic::start(at, plan.event, payload)?;
        let began = Instant::now();
        for _ in 0..each {
            beside.push(timed(client, plan.live_event, payload).await?);
        }
        spent[1] += began.elapsed();
        traffic.stop()?;
    }
    let alone = Measured::of("live-alone", alone, spent[0]);
    let beside = Measured::of("live-beside-durable", beside, spent[1]);
    let ratio = over(beside.p50_us, alone.p50_us);
    Ok([alone, Measured { ratio, against: Some("alone"), ..beside }])
}

/// A file that is filled record by record, and nothing else.
struct Bare {
    file: File,
    record: [u8; RECORD_BYTES],
}

impl Bare {
    fn create(disk: &Path, records: usize) -> Result<Self> {
        // It has no name, so nothing is left of it however this ends.
        let file = nix::fcntl::open(
            disk,
            nix::fcntl::OFlag::O_TMPFILE | nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::from_bits_truncate(0o600),
        );
        let file = file.map_err(|errno| {
            Failure::to_file("write to", disk, &errno.into()).hint("another directory: --disk DIR")
        })?;
        let mut file = File::from(file);
        let filled = file
            .write_all(&vec![0; records * RECORD_BYTES])
            .and_then(|()| file.sync_all())
            .and_then(|()| file.seek(SeekFrom::Start(0)));
        filled.map_err(|error| Failure::to_file("write to", disk, &error))?;
        Ok(Self { file, record: [b'x'; RECORD_BYTES] })
    }

    /// Appends a record and waits for the disk.
    fn append(&mut self) -> Result<Duration> {
        let began = Instant::now();
        let written = self.file.write_all(&self.record).and_then(|()| self.file.sync_data());
        written.map_err(|error| Failure::failed(format!("cannot append and sync: {error}")))?;
        Ok(began.elapsed())
    }
}

/// The same behind a socket: whoever appends is asked to and answers once the disk
/// has it. Ends with its thread when it is dropped.
struct Served {
    socket: UnixStream,
}

impl Served {
    fn start(mut bare: Bare) -> Result<Self> {
        let failed = |error: io::Error| Failure::failed(format!("cannot serve appends: {error}"));
        let (socket, mut other) = UnixStream::pair().map_err(failed)?;
        std::thread::spawn(move || {
            let mut record = [0; RECORD_BYTES];
            while other.read_exact(&mut record).is_ok() && bare.append().is_ok() {
                if other.write_all(b"k").is_err() {
                    break;
                }
            }
        });
        Ok(Self { socket })
    }

    fn append(&mut self) -> Result<Duration> {
        let began = Instant::now();
        let asked = self.socket.write_all(&[b'x'; RECORD_BYTES]);
        let answered = asked.and_then(|()| self.socket.read_exact(&mut [0]));
        answered.map_err(|error| Failure::failed(format!("cannot append and sync: {error}")))?;
        Ok(began.elapsed())
    }
}

/// Durable requests from a thread of their own, so that only the daemon is
/// shared with what is measured.
struct Traffic {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Traffic {
    fn start(at: &Invocation, event: &str, payload: &Bytes) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let (at, event, payload) = (at.clone(), event.to_owned(), payload.clone());
        let runtime = single()?;
        let thread = std::thread::spawn({
            let over = Arc::clone(&over);
            move || {
                runtime.block_on(async {
                    let client = at.connect().await?;
                    while !over.load(Ordering::Relaxed) {
                        run(&client, &event, &payload, BESIDE, 4).await?;
                    }
                    Ok(())
                })
            }
        });
        Ok(Self { over, thread })
    }

    fn stop(self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| Failure::failed("the durable traffic ended with a panic"))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_append_takes_the_time_of_the_disk_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut bare = Bare::create(dir.path(), 2).unwrap();
        for _ in 0..2 {
            assert!(bare.append().unwrap() > Duration::ZERO);
        }
        let mut served = Served::start(Bare::create(dir.path(), 1).unwrap()).unwrap();
        assert!(served.append().unwrap() > Duration::ZERO);
        assert_eq!(bare.file.metadata().unwrap().len(), 2 * RECORD_BYTES as u64);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(Bare::create("/nowhere".as_ref(), 1).is_err());
    }

    #[test]
    fn a_ratio_needs_both_figures() {
        assert_eq!(over(Some(130.0), Some(100.0)), Some(1.3));
        assert_eq!(over(Some(1.0), Some(0.0)), None);
        assert_eq!(over(None, Some(1.0)), None);
    }
}
