//! What the verbs do: one file for each group, and the table that picks one.

mod ask;
mod audit;
mod chat;
mod checkpoint;
mod completion;
mod config;
mod discover;
mod doctor;
mod export;
mod key;
mod lifecycle;
mod logs;
mod model;
mod plugin;
mod secret;
mod send;
mod shell;
mod sign;
mod status;
mod sub;
mod token;
mod work;

use std::{future::Future, io};

use crate::{
    args::Verb,
    bench,
    error::{Failure, Result},
    invocation::Invocation,
    start,
};

/// Does what the command line asks.
///
/// # Errors
///
/// Says what, why and what next.
pub(crate) fn run(at: &Invocation, verb: Option<Verb>) -> Result<()> {
    if let Some(place) = at.paths.nameless() {
        let message = format!("{} is not text in UTF-8, and so no place for KSI", place.display());
        return Err(Failure::usage(message).hint("KSI_HOME, KSI_SOCKET and the XDG variables name places"));
    }
    match verb {
        Some(Verb::Start(start)) if start.foreground => Err(start::foreground(at)),
        Some(Verb::Up | Verb::Start(_) | Verb::Restart(_)) => {
            start::let_go_of_inherited();
            runtime()?.block_on(interruptible(dispatch(at, verb)))
        }
        Some(Verb::Top { arguments }) => Err(shell::top(at, &arguments)),
        Some(Verb::Bench(options)) => bench::run(at, &options),
        Some(Verb::Completions { shell }) => shell::completions(&shell),
        Some(Verb::Man { dir }) => shell::man(at, dir.as_deref()),
        Some(Verb::Chat(options)) => runtime()?.block_on(chat::chat(at, options)),
        verb => runtime()?.block_on(interruptible(dispatch(at, verb))),
    }
}

async fn dispatch(at: &Invocation, verb: Option<Verb>) -> Result<()> {
    // The futures of large verbs are boxed, so that this one stays small.
    match verb {
        None => status::overview(at).await,
        Some(Verb::Up) => Box::pin(lifecycle::up(at)).await,
        Some(Verb::Start(_)) => Box::pin(lifecycle::start(at)).await,
        Some(Verb::Stop(stop)) => lifecycle::stop(at, &stop).await,
        Some(Verb::Restart(stop)) => Box::pin(lifecycle::restart(at, &stop)).await,
        Some(Verb::Status) => status::status(at).await,
        Some(Verb::Health) => status::health(at).await,
        Some(Verb::Freeze { reason }) => lifecycle::freeze(at, true, reason).await,
        Some(Verb::Thaw) => lifecycle::freeze(at, false, None).await,
        Some(Verb::Reload) => config::reload(at).await,
        Some(Verb::Doctor(options)) => doctor::doctor(at, options).await,
        Some(Verb::Ask(ask)) => Box::pin(ask::ask(at, ask)).await,
        Some(Verb::Completion(completion)) => completion::run(at, completion).await,
        Some(Verb::Send(send)) => Box::pin(send::send(at, send)).await,
        Some(Verb::Sub(sub)) => Box::pin(sub::sub(at, &sub)).await,
        Some(Verb::Wait(name)) => Box::pin(work::wait(at, &name.request_id)).await,
        Some(Verb::Cancel(name)) => work::cancel(at, &name.request_id).await,
        Some(Verb::Work(work)) => Box::pin(work::run(at, work)).await,
        Some(Verb::Checkpoint(checkpoint)) => Box::pin(checkpoint::run(at, checkpoint)).await,
        Some(Verb::Audit(audit)) => Box::pin(audit::run(at, audit)).await,
        Some(Verb::Token(token)) => token::run(at, token).await,
        Some(Verb::Discover { namespace, detail }) => discover::discover(at, namespace, detail).await,
        Some(Verb::Describe { event }) => discover::describe(at, &event).await,
        Some(Verb::Secret(secret)) => secret::run(at, &secret),
        Some(Verb::Key(key)) => key::run(at, key),
        Some(Verb::Plugin(plugin)) => Box::pin(plugin::run(at, plugin)).await,
        Some(Verb::Model(model)) => Box::pin(model::run(at, model)).await,
        Some(Verb::Config(config)) => Box::pin(config::run(at, config)).await,
        Some(Verb::Logs(logs)) => logs::logs(at, &logs).await,
        Some(Verb::Version) => shell::version(at).await,
        Some(
            Verb::Chat(_) | Verb::Top { .. } | Verb::Bench(_) | Verb::Completions { .. } | Verb::Man { .. },
        ) => {
            unreachable!("`run` has taken these")
        }
    }
}

/// A verb is a task of one thread: nothing it does is worth more.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))
}

/// Ends the work at Ctrl-C. Dropping it cancels its requests, and closing the
/// connection does so again, should the cancel frame not get out any more.
pub(crate) async fn interruptible<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        interrupt = interrupt() => Err(interrupt),
    }
}

/// Waits for Ctrl-C.
pub(crate) async fn interrupt() -> Failure {
    let interrupt: io::Result<()> = tokio::signal::ctrl_c().await;
    match interrupt {
        Ok(()) => Failure::interrupted(),
        Err(error) => Failure::failed(format!("cannot listen for Ctrl-C: {error}")),
    }
}
