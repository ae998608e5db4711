//! The KSI monitor: what the daemon does, as it happens, on a terminal.
//!
//! `conn` asks and hears, `state` reduces what came to what is known, `view`
//! draws it, `input` says what keys mean, `term` holds the terminal, `once` is
//! the snapshot for scripts. The monitor only looks: it sends no request that
//! changes anything, starts no daemon, and is never waited for by one.
//!
//! # Invariants
//!
//! - The screen is drawn at most [`FRAMES_PER_SECOND`] times a second, and only
//!   when what it shows may have changed.

mod conn;
mod figures;
mod input;
mod once;
mod state;
mod term;
mod view;

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::Parser;
use crossterm::event::{Event, EventStream};
use futures_util::StreamExt;
use ksi_client::Options;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::{self, Receiver, Sender},
    time::Instant,
};

use state::{Ask, Input, State};
use term::Screen;

/// Most drawings in a second: more is not seen, and at a flood of events the
/// drawing is most of what the monitor costs.
const FRAMES_PER_SECOND: u32 = 10;

/// Inputs that wait between a connection and the screen. A full queue stops
/// the connection's reading, and so makes the daemon drop and count.
const INPUTS_MAX: usize = 16;

/// Questions that wait for the daemon.
const ASKS_MAX: usize = 8;

/// Watch the KSI daemon: health, rates, live events, plugins.
///
/// Without `--once` it waits for a daemon that is not there and reconnects to
/// one that was restarted. Keys are in the footer; `?` shows all.
#[derive(Debug, Parser)]
#[command(name = "ksi-monitor", version, after_help = EXIT_CODES)]
struct Args {
    /// The daemon's socket, where it is not at its usual place.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// A file with a token, to be shown to the daemon.
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// Print one snapshot and exit.
    #[arg(long)]
    once: bool,
    /// With --once: as JSON, on one line.
    #[arg(long, requires = "once")]
    json: bool,
}

const EXIT_CODES: &str = "Environment:\n  \
    KSI_SOCKET, KSI_HOME  where the daemon's socket is\n  \
    KSI_TOKEN, KSI_TOKEN_FILE  a token to show to the daemon, or a file with one\n  \
    NO_COLOR              no colours\n\n\
    Exit codes:\n  \
    0 ok, 1 failed, 2 usage; with --once also 3 not running, 7 timeout, 8 running but not ok";

fn main() -> ExitCode {
    let args = Args::parse();
    match run(args) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "ksi-monitor: {error:#}");
            ExitCode::from(once::FAILED)
        }
    }
}

fn run(args: Args) -> anyhow::Result<ExitCode> {
    // The monitor starts no daemon, and makes lost connections again itself,
    // because it shows what happens meanwhile.
    let options =
        args.socket.map_or_else(Options::from_env, Options::new).token_from_env().name(conn::CLIENT_NAME);
    let options = match args.token_file {
        Some(path) => options.token_file(path),
        None => options,
    };
    // One worker for the connection, so that a round trip is not measured
    // together with the drawing, which this thread does.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    if args.once {
        return Ok(ExitCode::from(runtime.block_on(once::print(options, args.json))));
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let _ = writeln!(io::stderr(), "ksi-monitor: not a terminal; `--once` prints a snapshot");
        return Ok(ExitCode::from(2));
    }
    let left = runtime.block_on(monitor(options));
    // The connection may be in the middle of a wait; nothing is lost with it.
    runtime.shutdown_background();
    left.map(|()| ExitCode::SUCCESS)
}

/// Connects and shows until the person or a signal ends it.
async fn monitor(options: Options) -> anyhow::Result<()> {
    let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut state = State::new(options.socket().display().to_string(), colour);
    let signals = Signals::catch().context("cannot catch signals")?;
    let (asks, asked) = mpsc::channel(ASKS_MAX);
    let (inputs, figures) = mpsc::channel(INPUTS_MAX);
    let (heard, events) = mpsc::channel(INPUTS_MAX);
    let screen = Screen::open().context("cannot use the terminal")?;
    state.apply(Input::Resized(screen.rows()));
    tokio::spawn(conn::watch(options.clone(), inputs, asked));
    conn::feed::start(options, heard).context("cannot start the thread that hears events")?;
    show(screen, state, Sources { figures, events, signals, asks }).await
}

/// Signals that end the monitor, with the terminal restored.
struct Signals {
    term: Signal,
    hup: Signal,
    int: Signal,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            hup: signal(SignalKind::hangup())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.hup.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// Where inputs come from, and where questions go.
struct Sources {
    figures: Receiver<Input>,
    events: Receiver<Input>,
    signals: Signals,
    asks: Sender<Ask>,
}

/// The loop: an input, a new state, now and then a frame.
async fn show(mut screen: Screen, mut state: State, mut sources: Sources) -> anyhow::Result<()> {
    let mut keys = EventStream::new();
    let mut next_frame = Instant::now();
    while !state.quit {
        let input = tokio::select! {
            () = tokio::time::sleep_until(next_frame), if state.dirty => {
                state.dirty = false;
                screen.draw(&state).context("cannot draw")?;
                next_frame = Instant::now() + Duration::from_secs(1) / FRAMES_PER_SECOND;
                continue;
            }
            event = keys.next() => match event {
                Some(Ok(Event::Key(key))) => Input::Key(key),
                Some(Ok(Event::Resize(_, rows))) => Input::Resized(rows),
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(error).context("cannot read the terminal"),
                None => return Ok(()),
            },
            input = sources.figures.recv() => input.context("the connection has ended")?,
            input = sources.events.recv() => input.context("the thread that hears events has ended")?,
            () = sources.signals.any() => return Ok(()),
        };
        if let Some(ask) = state.apply(input)
            && sources.asks.try_send(ask).is_err()
        {
            state.apply(Input::Notice("the daemon has not yet answered the questions before".into()));
        }
    }
    Ok(())
}
