//! The committer: batches, order, wakes, and what happens after an error.

use std::{
    io,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use super::{super::committer::SWIFT, *};
use crate::disk::{Directory, Disk, Lock, sim::Fault};

const DEADLINE: Duration = Duration::from_secs(60);

/// Counts wakes, and lets a test wait for a condition that they bring about.
#[derive(Default)]
struct Bell {
    rung: Mutex<u64>,
    changed: Condvar,
}

impl Bell {
    fn waker(self: &Arc<Self>) -> Box<dyn Fn() + Send + Sync> {
        let bell = self.clone();
        Box::new(move || {
            *bell.rung.lock().unwrap() += 1;
            bell.changed.notify_all();
        })
    }

    fn wait(&self, done: impl Fn() -> bool) {
        self.wait_for(|_| done());
    }

    /// Waits until it has rung so often. What a wake tells of is there before it rings.
    fn rings(&self, times: u64) {
        self.wait_for(|rung| rung >= times);
    }

    fn wait_for(&self, done: impl Fn(u64) -> bool) {
        let rung = self.rung.lock().unwrap();
        let (_rung, timeout) = self.changed.wait_timeout_while(rung, DEADLINE, |rung| !done(*rung)).unwrap();
        assert!(!timeout.timed_out(), "waited in vain");
    }

    fn rung(&self) -> u64 {
        *self.rung.lock().unwrap()
    }
}

/// A disk whose syncs of files wait for the test.
struct GatedDisk {
    inner: SimDisk,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    /// Syncs that may go, and that have come.
    state: Mutex<(u64, u64)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.changed.notify_all();
        let number = state.1;
        let state = self.changed.wait_timeout_while(state, DEADLINE, |(open, _)| *open < number).unwrap();
        assert!(!state.1.timed_out());
    }

    fn open(&self, more: u64) {
        self.state.lock().unwrap().0 += more;
        self.changed.notify_all();
    }

    fn came(&self) -> u64 {
        self.state.lock().unwrap().1
    }

    fn wait_for(&self, came: u64) {
        let state = self.state.lock().unwrap();
        let (_state, timeout) =
            self.changed.wait_timeout_while(state, DEADLINE, |(_, there)| *there < came).unwrap();
        assert!(!timeout.timed_out());
    }
}

struct GatedFile(Box<dyn File>, Arc<Gate>);

impl File for GatedFile {
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.pass();
        self.0.sync()
    }
}

impl Disk for GatedDisk {
    fn place(&self) -> String {
        self.inner.place()
    }
    fn lock(&self) -> io::Result<Box<dyn Lock>> {
        self.inner.lock()
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(GatedFile(self.inner.create(name)?, self.gate.clone())))
    }
    fn open(&self, name: &str, write: bool) -> io::Result<Box<dyn File>> {
        Ok(Box::new(GatedFile(self.inner.open(name, write)?, self.gate.clone())))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn protect(&self, name: &str) -> io::Result<()> {
        self.inner.protect(name)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
}

/// A committer whose syncs wait for the gate, all but that of its opening.
fn gated(options: Options) -> (Arc<Gate>, Arc<Bell>, Committer) {
    let gate = Arc::new(Gate::default());
    gate.open(1);
    let disk = GatedDisk { inner: SimDisk::default(), gate: gate.clone() };
    let (journal, _) = Journal::open(Arc::new(disk), Options { segment_bytes: 1 << 20, ..options }).unwrap();
    let bell = Arc::new(Bell::default());
    let committer = Committer::start(journal, bell.waker()).unwrap();
    (gate, bell, committer)
}

#[test]
fn what_gathers_during_a_sync_is_one_batch_with_one_wake() {
    let (gate, bell, committer) = gated(Options::default());
    let opened = gate.came();
    assert_eq!(committer.submit(&b"first"[..]).unwrap(), 1);
    gate.wait_for(opened + 1);
    for seq in 2..=300 {
        assert_eq!(committer.submit(vec![7; 100]).unwrap(), seq);
    }
    assert_eq!((committer.synced(), bell.rung()), (0, 0), "nothing is told before the sync");
    gate.open(1);
    bell.rings(1);
    gate.wait_for(opened + 2);
    assert_eq!((committer.synced(), bell.rung()), (1, 1));
    gate.open(1);
    bell.rings(2);
    assert_eq!((committer.synced(), gate.came()), (300, opened + 2), "299 records, one sync, one wake");
    assert_eq!(committer.queued_bytes(), 0);
    committer.close().unwrap();
}

#[test]
fn what_nobody_waits_for_is_written_soon_all_the_same() {
    let (journal, _) = open_with(&SimDisk::default(), 1 << 20).unwrap();
    let bell = Arc::new(Bell::default());
    let committer = Committer::start(journal, bell.waker()).unwrap();
    // Nobody can wait for what is not there.
    committer.hurry(Seq::MAX, 1);
    for last in [1, 2, 30] {
        while committer.next_seq() <= last {
            committer.submit(vec![7; 100]).unwrap();
        }
        bell.wait(|| committer.synced() == last);
    }
    committer.close().unwrap();
}

#[test]
fn what_waits_is_bounded_and_goes_on_after_the_next_wake() {
    let (gate, bell, committer) = gated(Options { queue_bytes: 3000, ..Options::default() });
    assert_eq!(
        committer.submit(vec![1; 5000]).unwrap(),
        1,
        "one that is longer than the limit is taken alone"
    );
    let busy = committer.submit(vec![1; 10]).unwrap_err();
    assert!(matches!(busy, SubmitError::Busy(5068)), "{busy}");
    gate.open(1000);
    bell.wait(|| committer.synced() == 1);
    assert_eq!(committer.submit(vec![1; 10]).unwrap(), 2, "what was refused has no position");
    let large = committer.submit(vec![0; PAYLOAD_MAX + 1]).unwrap_err();
    assert!(matches!(large, SubmitError::TooLarge { .. }), "{large}");
    committer.close().unwrap();
}

#[test]
fn many_threads_share_syncs_and_every_record_is_where_it_was_said_to_be() {
    const THREADS: u64 = 16;
    const EACH: u64 = 60;
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let disk = Arc::new(Directory::new(dir.path()).unwrap());
        Journal::open(disk, Options { segment_bytes: 60_000, ..Options::default() }).unwrap()
    };
    let bell = Arc::new(Bell::default());
    let committer = Committer::start(open().0, bell.waker()).unwrap();
    let newest = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (committer, bell, newest) = (&committer, &bell, &newest);
            scope.spawn(move || {
                for number in 0..EACH {
                    let payload = [thread.to_le_bytes(), number.to_le_bytes()].concat();
                    let seq = committer.submit(payload.clone()).unwrap();
                    bell.wait(|| committer.synced() >= seq);
                    newest.fetch_max(seq, Ordering::Relaxed);
                    let (there, read) = committer.archive().read(seq).next().unwrap().unwrap();
                    assert_eq!((there, read.to_vec()), (seq, payload));
                }
            });
        }
    });
    assert_eq!(newest.into_inner(), THREADS * EACH);
    assert!(bell.rung() < THREADS * EACH / 3, "{} syncs for {} records", bell.rung(), THREADS * EACH);
    committer.close().unwrap();
    let (journal, opened) = open();
    assert_eq!((opened.last, opened.damage.len(), opened.torn_bytes), (THREADS * EACH, 0, 0));
    let mut next = [0; THREADS as usize];
    for item in journal.archive().read(1) {
        let (_, payload) = item.unwrap();
        let [thread, number] = [0, 8].map(|at| u64::from_le_bytes(payload[at..at + 8].try_into().unwrap()));
        let next = &mut next[usize::try_from(thread).unwrap()];
        assert_eq!(number, *next, "the order of one thread's calls");
        *next += 1;
    }
    assert_eq!(next, [EACH; THREADS as usize]);
}

#[test]
fn segments_are_prepared_beside_the_commits() {
    let disk = SimDisk::default();
    let (journal, _) = open_with(&disk, 30_000).unwrap();
    let bell = Arc::new(Bell::default());
    let committer = Committer::start(journal, bell.waker()).unwrap();
    for seq in 1..=200 {
        committer.submit(vec![1; 900]).unwrap();
        bell.wait(|| committer.synced() == seq);
    }
    let stat = committer.archive().stat();
    assert_eq!((stat.segments.len(), stat.last), (7, 200));
    committer.close().unwrap();
    disk.power_cycle(0);
    let (journal, opened) = open_with(&disk, 30_000).unwrap();
    assert_eq!((opened.last, opened.damage.len()), (200, 0));
    assert_eq!(journal.archive().verify(&mut || {}).unwrap().records, 200);
}

#[test]
fn after_an_error_nothing_is_acknowledged_and_the_next_open_goes_on() {
    for fault in [Fault::Io, Fault::Full] {
        // The write, and the sync after it.
        for step in [1, 2] {
            let disk = SimDisk::default();
            let (journal, _) = open_with(&disk, 1 << 20).unwrap();
            let bell = Arc::new(Bell::default());
            let committer = Committer::start(journal, bell.waker()).unwrap();
            committer.submit(&b"safe"[..]).unwrap();
            bell.wait(|| committer.synced() == 1);
            disk.fail_at(disk.steps() + step, fault);
            let seq = committer.submit(&b"lost"[..]).unwrap();
            bell.wait(|| committer.stopped().is_some());
            assert_eq!((seq, committer.synced(), bell.rung()), (2, 1, 2), "one wake tells that it stopped");
            let SubmitError::Stopped(first) = committer.submit(&b"more"[..]).unwrap_err() else { panic!() };
            assert!(Arc::ptr_eq(&first, &committer.stopped().unwrap()), "the first error stays the reason");
            assert_eq!(matches!(*first, JournalError::Full { .. }), fault == Fault::Full, "{first}");
            let refusal = first.refusal();
            assert!(
                refusal.retryable && !refusal.hint.is_empty() && refusal.message.contains("journal"),
                "{refusal:?}"
            );
            let steps = disk.steps();
            assert!(committer.close().is_err());
            assert_eq!(disk.steps(), steps, "a disk that failed is asked for nothing more");
            let (mut journal, opened) = open_with(&disk, 1 << 20).unwrap();
            assert_eq!(opened.damage, []);
            let seq = journal.append(&[Bytes::from_static(b"again")], NOW).unwrap();
            let (records, _) = all(&journal.archive());
            assert_eq!(records[0], (1, Bytes::from_static(b"safe")));
            assert_eq!(records.last().unwrap(), &(seq, Bytes::from_static(b"again")));
        }
    }
}

#[test]
fn closing_writes_what_waits_and_a_closed_one_takes_nothing() {
    let disk = SimDisk::default();
    let (journal, _) = open_with(&disk, 1 << 20).unwrap();
    let committer = Committer::start(journal, Box::new(|| {})).unwrap();
    for _ in 0..50 {
        committer.submit(vec![3; 40]).unwrap();
    }
    committer.close().unwrap();
    disk.power_cycle(0);
    let (_, opened) = open_with(&disk, 1 << 20).unwrap();
    assert_eq!(opened.last, 50);
}

#[test]
fn a_thread_that_panics_stops_the_journal_instead_of_leaving_all_to_wait() {
    let disk = SimDisk::default();
    let (journal, _) = open_with(&disk, 1 << 20).unwrap();
    let (sender, told) = mpsc::sync_channel(2);
    let first = AtomicU64::new(0);
    let wake = move || {
        sender.send(()).unwrap();
        assert!(first.fetch_add(1, Ordering::Relaxed) > 0, "the first wake panics");
    };
    let committer = Committer::start(journal, Box::new(wake)).unwrap();
    committer.submit(&b"one"[..]).unwrap();
    told.recv_timeout(DEADLINE).unwrap();
    told.recv_timeout(DEADLINE).unwrap();
    assert!(matches!(*committer.stopped().unwrap(), JournalError::Panicked));
    assert!(matches!(*committer.close().unwrap_err(), JournalError::Panicked));
}

/// Submits until one is written on this thread: what the thread of the journal writes on a busy machine may take long.
fn written_here(committer: &Committer, bell: &Bell, payloads: &mut impl Iterator<Item = Vec<u8>>) -> Seq {
    loop {
        let seq = committer.submit(payloads.next().expect("one of many is written here")).unwrap();
        if committer.desk().write_here() {
            assert_eq!(committer.synced(), seq, "all that was in line");
            return seq;
        }
        committer.hurry(seq, 1);
        bell.wait(|| committer.synced() == seq);
    }
}

#[test]
fn whoever_submits_may_write_by_himself_while_the_thread_has_nothing_to_do() {
    let disk = SimDisk::default();
    let (journal, _) = open_with(&disk, 40_000).unwrap();
    let bell = Arc::new(Bell::default());
    let committer = Committer::start(journal, bell.waker()).unwrap();
    assert!(!committer.desk().write_here(), "there is nothing to write");
    let mut number = 0_u64;
    let mut payloads = std::iter::repeat_with(|| {
        number += 1;
        [number.to_le_bytes(); 20].concat()
    });
    for _ in 0..300 {
        // Some in line that nobody waits for, and that the thread may take any time.
        for payload in payloads.by_ref().take(2) {
            committer.submit(payload).unwrap();
        }
        let rung = bell.rung();
        written_here(&committer, &bell, &mut payloads);
        assert!(bell.rung() > rung, "it is told like any other");
    }
    let last = committer.next_seq() - 1;
    committer.close().unwrap();
    disk.power_cycle(0);
    let (journal, _) = open_with(&disk, 40_000).unwrap();
    let (records, damage) = all(&journal.archive());
    assert_eq!((records.len() as Seq, damage.len()), (last, 0));
    for (seq, payload) in records {
        assert_eq!(payload[..8], seq.to_le_bytes(), "the order of submissions");
    }
}

#[test]
fn nobody_writes_by_himself_beside_the_thread_nor_much_nor_after_a_slow_write() {
    let (gate, bell, committer) = gated(Options::default());
    let opened = gate.came();
    committer.submit(&b"first"[..]).unwrap();
    assert!(!committer.desk().write_here(), "how long a write takes is not known yet");
    gate.wait_for(opened + 1);
    committer.submit(&b"second"[..]).unwrap();
    assert!(!committer.desk().write_here(), "the thread is at it");
    let begun = Instant::now();
    while begun.elapsed() <= SWIFT {
        std::hint::spin_loop();
    }
    gate.open(1);
    bell.wait(|| committer.synced() == 1);
    assert!(!committer.desk().write_here(), "the disk is slow");
    gate.open(1000);
    committer.hurry(2, 1);
    bell.wait(|| committer.synced() == 2);
    written_here(&committer, &bell, &mut std::iter::repeat_with(|| vec![7; 100]).take(10_000));
    let seq = committer.submit(vec![7; 100_000]).unwrap();
    assert!(!committer.desk().write_here(), "that is much");
    bell.wait(|| committer.synced() == seq);
    committer.close().unwrap();
}

#[test]
fn an_error_of_who_writes_by_himself_stops_the_journal_for_all() {
    let disk = SimDisk::default();
    let (journal, _) = open_with(&disk, 1 << 20).unwrap();
    let bell = Arc::new(Bell::default());
    let committer = Committer::start(journal, bell.waker()).unwrap();
    let mut payloads = std::iter::repeat_with(|| vec![7; 100]).take(10_000);
    let synced = written_here(&committer, &bell, &mut payloads);
    disk.fail_at(disk.steps() + 1, Fault::Io);
    let rung = bell.rung();
    committer.submit(&b"lost"[..]).unwrap();
    if !committer.desk().write_here() {
        committer.hurry(synced + 1, 1);
    }
    bell.wait(|| committer.stopped().is_some());
    assert_eq!((committer.synced(), bell.rung()), (synced, rung + 1));
    assert!(matches!(committer.submit(&b"more"[..]).unwrap_err(), SubmitError::Stopped(_)));
    assert!(!committer.desk().write_here());
    assert!(committer.close().is_err());
}

/// A disk on which the making of a second segment takes until a third is begun, or a while.
struct SlowMaking {
    inner: SimDisk,
    /// Segments begun.
    begun: Arc<(Mutex<u64>, Condvar)>,
}

struct SlowFile(Box<dyn File>, Option<Arc<(Mutex<u64>, Condvar)>>);

impl File for SlowFile {
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Some(begun) = self.1.as_ref().filter(|_| offset == 0) {
            let count = begun.0.lock().unwrap();
            drop(begun.1.wait_timeout_while(count, Duration::from_millis(300), |count| *count < 3).unwrap());
        }
        self.0.write_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

impl Disk for SlowMaking {
    fn place(&self) -> String {
        self.inner.place()
    }
    fn lock(&self) -> io::Result<Box<dyn Lock>> {
        self.inner.lock()
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let count = {
            let mut begun = self.begun.0.lock().unwrap();
            *begun += 1;
            *begun
        };
        self.begun.1.notify_all();
        let slow = (count == 2).then(|| self.begun.clone());
        Ok(Box::new(SlowFile(self.inner.create(name)?, slow)))
    }
    fn open(&self, name: &str, write: bool) -> io::Result<Box<dyn File>> {
        self.inner.open(name, write)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn protect(&self, name: &str) -> io::Result<()> {
        self.inner.protect(name)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
}

#[test]
fn a_segment_that_is_needed_while_it_is_made_is_waited_for_and_not_made_twice() {
    let sim = SimDisk::default();
    let begun: Arc<(Mutex<u64>, Condvar)> = Arc::default();
    let disk = SlowMaking { inner: sim.clone(), begun: begun.clone() };
    let (journal, _) =
        Journal::open(Arc::new(disk), Options { segment_bytes: 30_000, ..Options::default() }).unwrap();
    let bell = Arc::new(Bell::default());
    let committer = Committer::start(journal, bell.waker()).unwrap();
    // The first makes its own segment, the second has the next one made, the fourth needs it.
    for seq in 1..=4 {
        committer.submit(vec![1; 9_000]).unwrap();
        bell.wait(|| committer.synced() == seq);
        assert!(committer.stopped().is_none());
    }
    assert_eq!(*begun.0.lock().unwrap(), 2);
    committer.close().unwrap();
    sim.power_cycle(0);
    let (_, opened) = open_with(&sim, 30_000).unwrap();
    assert_eq!((opened.last, opened.damage.len()), (4, 0));
}

#[test]
fn a_segment_that_cannot_be_made_ahead_is_not_tried_again_with_every_write() {
    let disk = SimDisk::default();
    let (mut journal, _) = open_with(&disk, 30_000).unwrap();
    journal.append(&[vec![1; 9_000].into()], NOW).unwrap();
    let index = journal.preparation().expect("it is time for one").head.index;
    journal.prepared(index, None);
    assert!(journal.preparation().is_none());
    journal.append(&[vec![1; 9_000].into()], NOW).unwrap();
    assert!(journal.preparation().is_none());
    journal.append(&[vec![1; 20_000].into()], NOW).unwrap();
    assert_eq!(journal.preparation().expect("the next one is due").head.index, index + 1);
}
