//! Whether others want the processors that an engine computes on.
//!
//! The threads of an engine meet hundreds of times for each token. Whoever
//! comes first spins until the last one is there: to sleep and to be woken
//! takes longer than most of these waits, and costs a tenth of the tokens. But
//! where other programs want the processors too, the last one waits for its turn
//! behind a thread that only spins, and hardly anything is computed. So they
//! spin long while they are alone and briefly in a crowd. OpenMP chooses by
//! whether it has more threads than there are processors (`GOMP_SPINCOUNT` in
//! the manual of GNU libgomp), so in a crowd some are added that do nothing.
//!
//! A crowd shows by the time on processors that the threads get, as long as they
//! spin through all waits while they are alone: the daemon has them spin for longer
//! than any lasts (`GIVEN` in its `plugin/spawner.rs`). In a crowd
//! they sleep, so that its end does not show; it is found out by trying.

#![expect(unsafe_code, reason = "the safe crate has no way to OpenMP")]

use std::ffi::{c_uint, c_void};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// How long computations are looked at before anything is concluded.
const LOOK: Duration = Duration::from_millis(300);
/// The part of its processors' time that an engine gets which is alone: the
/// daemon and whoever reads the answer want some of it.
const ALONE: f64 = 0.85;
/// How long a crowd is believed to last at first, and at most.
const LASTS_MIN: Duration = Duration::from_secs(5);
const LASTS_MAX: Duration = Duration::from_secs(40);

/// Knows whether there is a crowd. Pure: times are arguments.
#[derive(Debug)]
struct Gauge {
    took: Duration,
    wanted: f64,
    got: f64,
    /// In a crowd: when to find out whether it has gone.
    until: Option<Instant>,
    lasts: Duration,
}

impl Gauge {
    fn new() -> Self {
        Self { took: Duration::ZERO, wanted: 0.0, got: 0.0, until: None, lasts: LASTS_MIN }
    }

    /// A computation of so many threads has taken so long, and got so much time
    /// on processors; whether there is a crowd.
    fn observe(&mut self, now: Instant, threads: u32, took: Duration, got: Duration) -> bool {
        match self.until {
            Some(until) if now < until => return true,
            Some(_) => *self = Self { lasts: self.lasts, ..Self::new() },
            None => {}
        }
        self.took += took;
        self.wanted += took.as_secs_f64() * f64::from(threads);
        self.got += got.as_secs_f64();
        if self.took < LOOK {
            return false;
        }
        let crowded = self.got < self.wanted * ALONE;
        *self = match crowded {
            true => {
                Self { until: Some(now + self.lasts), lasts: (self.lasts * 2).min(LASTS_MAX), ..Self::new() }
            }
            false => Self::new(),
        };
        crowded
    }
}

/// The crowd around an engine's computations.
pub(super) struct Crowd {
    gauge: Gauge,
    /// Threads that are enough to be more than there are processors.
    many: u32,
    idlers: Option<Idlers>,
}

/// A computation of so many threads under way.
pub(super) struct Computing {
    began: Instant,
    threads: u32,
    /// Not looked at where there is one thread, which waits for nobody.
    got: Duration,
}

impl Crowd {
    /// Nobody else, for an engine with so many threads.
    pub(super) fn new(threads: u32) -> Self {
        let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let processors = u32::try_from(processors).unwrap_or(u32::MAX);
        // One of them is the thread that adds them, which counts only once.
        let many = processors.saturating_sub(threads).saturating_add(2);
        Self { gauge: Gauge::new(), many, idlers: None }
    }

    /// A computation begins.
    pub(super) fn begin(&self, threads: u32) -> Computing {
        let got = if threads > 1 { on_processors() } else { Duration::ZERO };
        Computing { began: Instant::now(), threads, got }
    }

    /// It has ended: has the threads of the next one wait as it fits. How long it
    /// has taken.
    pub(super) fn end(&mut self, computing: &Computing) -> Duration {
        let now = Instant::now();
        let Computing { began, threads, got } = *computing;
        let took = now - began;
        if threads > 1 {
            let got = on_processors().saturating_sub(got);
            match (self.gauge.observe(now, threads, took, got), &self.idlers) {
                (true, None) => self.idlers = Idlers::start(self.many),
                (false, Some(_)) => self.idlers = None,
                _ => {}
            }
        }
        took
    }
}

/// Time on processors that this process has had; nothing where the system does
/// not tell, which looks like a crowd.
fn on_processors() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Threads of OpenMP that do nothing, until dropped.
struct Idlers {
    /// Dropped to end them.
    stay: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Idlers {
    /// None where the system has no threads left.
    fn start(count: u32) -> Option<Self> {
        let (stay, leave) = sync_channel::<()>(0);
        let idle = move || {
            have(count);
            // They count for as long as the thread lives that has asked for them.
            let _ = leave.recv();
        };
        let thread = thread::Builder::new().name("idlers".into()).spawn(idle).ok()?;
        Some(Self { stay: Some(stay), thread: Some(thread) })
    }
}

impl Drop for Idlers {
    fn drop(&mut self) {
        self.stay = None;
        if let Some(thread) = self.thread.take() {
            // It does nothing that could panic.
            let _ = thread.join();
        }
    }
}

/// Gives this thread a team of so many, which has nothing to do.
fn have(count: u32) {
    unsafe extern "C" {
        /// What a compiler makes of `#pragma omp parallel`.
        safe fn GOMP_parallel(
            run: extern "C" fn(*mut c_void),
            data: *mut c_void,
            threads: c_uint,
            flags: c_uint,
        );
    }
    extern "C" fn nothing(_: *mut c_void) {}
    GOMP_parallel(nothing, std::ptr::null_mut(), count, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(100);

    /// Whether there is a crowd after each of so many steps that got this part
    /// of two processors.
    fn steps(gauge: &mut Gauge, now: &mut Instant, parts: &[f64]) -> Vec<bool> {
        parts
            .iter()
            .map(|part| {
                *now += STEP;
                gauge.observe(*now, 2, STEP, (STEP * 2).mul_f64(*part))
            })
            .collect()
    }

    #[test]
    fn who_gets_less_than_it_wants_for_a_while_is_in_a_crowd() {
        let (mut gauge, mut now) = (Gauge::new(), Instant::now());
        assert_eq!(steps(&mut gauge, &mut now, &[0.9, 1.0, 0.9, 0.5, 1.0, 1.1]), [false; 6]);
        assert_eq!(steps(&mut gauge, &mut now, &[0.7, 0.9, 0.7]), [false, false, true]);
        assert_eq!(steps(&mut gauge, &mut now, &[1.0; 3]), [true; 3], "sleepers get little in any case");
    }

    #[test]
    fn a_crowd_is_looked_for_again_after_a_while_and_later_each_time_it_is_there() {
        let (mut gauge, mut now) = (Gauge::new(), Instant::now());
        for lasts in [5, 10, 20, 40, 40] {
            assert_eq!(steps(&mut gauge, &mut now, &[0.5; 3]), [false, false, true]);
            now += Duration::from_secs(lasts);
        }
        assert_eq!(steps(&mut gauge, &mut now, &[1.0; 3]), [false; 3]);
        assert_eq!(steps(&mut gauge, &mut now, &[0.5; 3]), [false, false, true]);
        assert_eq!(gauge.lasts, LASTS_MIN * 2, "a new one");
    }

    #[test]
    fn idlers_come_and_go() {
        // Those of OpenMP have the name of the thread that has asked for them.
        let threads = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            let names =
                tasks.map(|task| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default());
            names.filter(|name| name.trim() == "idlers").count()
        };
        let idlers = Idlers::start(3).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while threads() < 3 {
            assert!(Instant::now() < deadline, "they do not come");
            thread::yield_now();
        }
        drop(idlers);
        while threads() > 0 {
            assert!(Instant::now() < deadline, "they do not go");
            thread::yield_now();
        }
    }
}
