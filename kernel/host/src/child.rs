//! The loop of a plugin host: frames from the daemon to the plugin, and back.
//!
//! One thread drives the plugin; it waits on the socket, on the plugin's
//! wake-ups and on its timers at once. Threads of the plugin write their
//! answers themselves. A full socket blocks them: the daemon always reads, so
//! this is how a flood is slowed down.

use std::{
    collections::{BTreeSet, HashMap},
    io::{Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::ThreadId,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use ksi_protocol::{Code, Frame, PROTOCOL_VERSION, Refusal, frame::Setup, sandbox::Report};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::{
    image::Image,
    instance::{Fault, Host, Instance, Output},
    library::Library,
    sandbox::probe,
};

/// Bytes that are collected before they are written during one turn.
const FLUSH_BYTES: usize = 256 * 1024;

/// Why a host ends; the daemon reads it as last words.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon closed the link.
    #[error("the link to the daemon failed: {0}")]
    Link(#[from] std::io::Error),
    /// The daemon said something that makes no sense.
    #[error("the daemon sent a bad frame: {0}")]
    Frame(#[from] ksi_protocol::frame::Error),
    /// The sandbox could not be entered, or the plugin not loaded or started.
    #[error("{0}")]
    Start(Refusal),
    /// The plugin panicked.
    #[error("{0}")]
    Fault(#[from] Fault),
}

/// The way out, shared by the driving thread and the plugin's own.
struct Link {
    driver: ThreadId,
    out: Mutex<Out>,
    woken: AtomicBool,
    wakeup: EventFd,
    /// The plugin's refusal to start, where it came after its creation.
    refused: Mutex<Option<Refusal>>,
}

struct Out {
    socket: UnixStream,
    buffer: BytesMut,
    timers: BTreeSet<(Instant, u64)>,
    /// When each timer is due, so that one that is given up is found.
    due: HashMap<u64, Instant>,
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, frame: &Frame) -> bool {
        let mut out = self.lock();
        if frame.encode(&mut out.buffer).is_err() {
            return refuse_oversized(frame, &mut out.buffer);
        }
        // The driving thread writes once at the end of its turn.
        if std::thread::current().id() != self.driver || out.buffer.len() > FLUSH_BYTES {
            return out.flush().is_ok();
        }
        true
    }
}

/// An answer that fits no frame becomes a refusal, so that its asker does not
/// wait for ever.
fn refuse_oversized(frame: &Frame, buffer: &mut BytesMut) -> bool {
    let (Frame::Reply { id, .. } | Frame::Chunk { id, .. } | Frame::End { id, .. }) = frame else {
        return false;
    };
    let refusal = Refusal::new(Code::TooLarge, "the plugin's answer is larger than a frame may be");
    Frame::Refusal { id: Some(*id), refusal }.encode(buffer).is_ok()
}

impl Out {
    fn add_timer(&mut self, due: Instant, id: u64) {
        self.timers.insert((due, id));
        self.due.insert(id, due);
    }

    /// Gives up a timer; `false` where the id is none of one that is pending.
    fn forget_timer(&mut self, id: u64) -> bool {
        self.due.remove(&id).is_some_and(|due| self.timers.remove(&(due, id)))
    }

    /// The first timer that is due.
    fn take_timer(&mut self, now: Instant) -> Option<u64> {
        let &(due, id) = self.timers.first().filter(|(due, _)| *due <= now)?;
        self.timers.remove(&(due, id));
        self.due.remove(&id);
        Some(id)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.socket.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

impl Host for Link {
    fn output(&self, output: Output) -> bool {
        match output {
            Output::Frame(Frame::Cancel { id }) if self.lock().forget_timer(id) => true,
            Output::Frame(frame) => {
                if let Frame::Refusal { id: None, refusal } = &frame {
                    *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal.clone());
                }
                self.send(&frame)
            }
            Output::Timer { id, delay_ms } => {
                // A timer beyond the end of time never fires.
                if let Some(due) = Instant::now().checked_add(Duration::from_millis(delay_ms)) {
                    self.lock().add_timer(due, id);
                    if std::thread::current().id() != self.driver {
                        self.wake();
                    }
                }
                true
            }
        }
    }

    fn wake(&self) {
        // A full counter cannot happen: the flag lets one write through for
        // each time it is taken.
        if !self.woken.swap(true, Ordering::AcqRel) && std::thread::current().id() != self.driver {
            let _ = self.wakeup.write(1);
        }
    }
}

/// Runs the host on its end of the link until the daemon closes it. `enter` puts
/// the process into its sandbox, before anything of the plugin is looked at.
///
/// # Errors
///
/// Why it ended early.
pub fn run(
    mut socket: UnixStream,
    enter: impl FnOnce(&Setup) -> Result<Report, String>,
) -> Result<(), Error> {
    let mut input = BytesMut::with_capacity(64 * 1024);
    let Some(Frame::Setup(setup)) = read_frame(&mut socket, &mut input)? else {
        return Err(Error::Start(Refusal::new(Code::InvalidFrame, "the first frame must be `setup`")));
    };
    let report = match enter(&setup) {
        Ok(report) => report,
        Err(why) => {
            let refusal = Refusal::new(Code::Unavailable, format!("cannot enter the sandbox: {why}"));
            let mut said = BytesMut::new();
            Frame::Refusal { id: None, refusal: refusal.clone() }.encode(&mut said)?;
            socket.write_all(&said)?;
            return Err(Error::Start(refusal));
        }
    };
    let lacking = setup.sandbox.require.and_then(|require| report.lacks(require));
    let link = Arc::new(Link {
        driver: std::thread::current().id(),
        out: Mutex::new(Out {
            socket: socket.try_clone()?,
            buffer: BytesMut::new(),
            timers: BTreeSet::new(),
            due: HashMap::new(),
        }),
        woken: AtomicBool::new(true),
        wakeup: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(std::io::Error::from)?,
        refused: Mutex::default(),
    });
    link.send(&Frame::Sandboxed { report });
    if let Some(targets) = &setup.probe {
        link.send(&Frame::Probed { findings: probe::all(&setup.sandbox, targets) });
        return Ok(link.lock().flush()?);
    }
    let started = match lacking {
        Some(why) => Err(Refusal::new(Code::Unavailable, why).hint(
            "`ksi plugin probe NAME` shows what is denied; plugins.NAME.require says how much must be",
        )),
        None => start(&setup, &link),
    };
    let mut instance = match started {
        Ok(instance) => instance,
        Err(refusal) => {
            link.send(&Frame::Refusal { id: None, refusal: refusal.clone() });
            link.lock().flush()?;
            return Err(Error::Start(refusal));
        }
    };
    let ended = serve(&mut socket, &mut input, &link, &mut instance);
    // What the plugin said before it failed still counts; a link that is gone
    // has nobody to hear it.
    let _ = link.lock().flush();
    if ended.is_err() {
        // Destructors of a failed plugin may hang; the process ends anyway.
        std::mem::forget(instance);
    }
    ended
}

fn start(setup: &Setup, link: &Arc<Link>) -> Result<Instance, Refusal> {
    if setup.version != PROTOCOL_VERSION {
        let message = format!("daemon speaks protocol {}, plugin host {PROTOCOL_VERSION}", setup.version);
        return Err(Refusal::new(Code::Conflict, message).hint("install ksid and ksi-plugin-host together"));
    }
    let image = Image::open(Path::new(&setup.library))?;
    if let Some(expected) = &setup.sha256 {
        image.must_be(expected)?;
    }
    let library = Library::load(&image)?;
    link.send(&Frame::Described { descriptor: Box::new(library.descriptor.clone()) });
    Instance::create(&library, link.clone(), &setup.config, Path::new(&setup.dir))
}

fn serve(
    socket: &mut UnixStream,
    input: &mut BytesMut,
    link: &Arc<Link>,
    instance: &mut Instance,
) -> Result<(), Error> {
    loop {
        while link.woken.swap(false, Ordering::AcqRel) {
            instance.poll()?;
        }
        fire_timers(link, instance)?;
        if let Some(refusal) = link.refused.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(Error::Start(refusal));
        }
        link.lock().flush()?;
        if link.woken.load(Ordering::Acquire) {
            continue;
        }
        if !wait(socket, link)? {
            continue;
        }
        if !read_some(socket, input)? {
            return Ok(());
        }
        while let Some(frame) = Frame::split(input)? {
            if let Frame::Ping { id } = frame {
                link.send(&Frame::Pong { id });
            } else {
                instance.deliver(&frame)?;
            }
        }
    }
}

/// Waits for the socket, a wake-up or a timer; whether the socket has input.
fn wait(socket: &UnixStream, link: &Link) -> Result<bool, Error> {
    let next = link.lock().timers.first().map(|(due, _)| *due);
    let timeout = match next {
        None => PollTimeout::NONE,
        Some(due) => {
            // Rounded up, so that the timer is due when the wait is over.
            let left = due.saturating_duration_since(Instant::now()).as_millis() + 1;
            PollTimeout::try_from(i32::try_from(left).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
        }
    };
    let mut fds =
        [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(link.wakeup.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::Error::EINTR) => {}
        Err(errno) => return Err(Error::Link(errno.into())),
    }
    let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
    if ready(&fds[1]) {
        let _ = link.wakeup.read();
    }
    Ok(ready(&fds[0]))
}

/// Fires what is due by now; what becomes due meanwhile comes after what has
/// arrived by then.
fn fire_timers(link: &Link, instance: &mut Instance) -> Result<(), Error> {
    let now = Instant::now();
    loop {
        let Some(id) = link.lock().take_timer(now) else { return Ok(()) };
        instance.fire(id)?;
    }
}

/// Reads once; `false` at the end.
fn read_some(socket: &mut UnixStream, input: &mut BytesMut) -> Result<bool, Error> {
    let mut chunk = [0; 64 * 1024];
    loop {
        match socket.read(&mut chunk) {
            Ok(0) => return Ok(false),
            Ok(n) => {
                input.extend_from_slice(&chunk[..n]);
                return Ok(true);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn read_frame(socket: &mut UnixStream, input: &mut BytesMut) -> Result<Option<Frame>, Error> {
    loop {
        if let Some(frame) = Frame::split(input)? {
            return Ok(Some(frame));
        }
        if !read_some(socket, input)? {
            return Ok(None);
        }
    }
}
