//! The daemon from start to stop.
//!
//! Start: configuration, lock and socket (in `main`), hub, plugins, sessions,
//! ready. Stop: no new requests, those in flight finish within the grace,
//! plugins drain, sessions are written and closed, the socket goes. A second
//! signal skips all waiting.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use ksi_host::Image;
use ksi_kernel::Quota;
use ksi_protocol::{
    Refusal, limits,
    paths::Paths,
    system::{Placement, Reason, Started},
};
use nix::unistd::geteuid;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, Current},
    hub::Hub,
    identity::Identity,
    instance::Instance,
    memory, notify,
    orders::Orders,
    own,
    plugin::{
        actor::{Watchdog, apart},
        cgroup::Cgroups,
        fleet::{Fleet, Places},
        grants::Writable,
        offspring::Offspring,
        runner::{Means, Policies},
        spawner::Spawner,
    },
    secrets::Secrets,
    session::{Limits, Sessions},
    system::{Apply, Parts, Reread, Stop, System, frozen, is_starting},
    takeover::{Program, Takeover},
    trail::Trail,
    trust::Trust,
};

/// File of tokens, in the state directory.
const TOKENS: &str = "tokens.json";

/// Parent of the plugins' own directories, in the state directory.
const PLUGINS: &str = "plugins";

/// The program that runs one plugin, beside this one.
const HOST: &str = "ksi-plugin-host";

/// Time that sessions have to be written and closed.
const SESSIONS_GRACE: Duration = Duration::from_secs(5);

/// Time that what was decided has to get into the audit trail.
const TRAIL_GRACE: Duration = Duration::from_secs(2);

/// What the daemon is started with.
pub struct Options {
    /// Where everything lies.
    pub paths: Paths,
    /// The configuration in force.
    pub config: Config,
    /// Reads it again.
    pub reread: Reread,
    /// Carries a new one to the log.
    pub apply: Apply,
    /// Opens the log anew, after something else has moved it.
    pub reopen: Box<dyn Fn() + Send + Sync>,
    /// What is executed at a restart.
    pub program: Arc<Program>,
}

/// Runs the daemon until it is told to stop; what the next program gets, where
/// there is to be one.
///
/// # Errors
///
/// Where a part cannot be started.
pub async fn run(options: Options, instance: Instance) -> anyhow::Result<Option<Takeover>> {
    let Options { paths, config, reread, apply, reopen, program } = options;
    let listener = instance.listen()?;
    // Held over a restart, so that clients can connect at any time.
    let socket = listener.try_clone().context("cannot hold the socket")?;
    let config = Arc::new(config);
    let current: Current = Arc::new(Mutex::new(config.clone()));
    let runtime = tokio::runtime::Handle::current();
    let identity = Identity::new(&config, geteuid().as_raw(), paths.state_dir.join(TOKENS));
    let hub = Hub::new(runtime.clone(), identity, config.daemon.chains);
    let (stop_sender, mut stops) = mpsc::channel(4);
    signals(&stop_sender, reopen, program.clone())?;
    let offspring = adopt_orphans()?;
    let means = means(&hub, spawner(offspring.clone(), runtime)?, &paths, &current)?;
    let trail = trail(&hub, &config);
    let fleet = Arc::new(Fleet::new(means, places(&paths)?, current.clone()));
    let sessions = Sessions::new(hub.clone(), session_limits(&config), offspring);
    let (stopping_sender, stopping) = watch::channel(false);
    let system = System::new(Parts {
        hub: hub.clone(),
        fleet: fleet.clone(),
        sessions: sessions.clone(),
        config: current,
        reread,
        apply,
        socket: paths.socket.clone(),
        state_dir: paths.state_dir.clone(),
        stop: stop_sender,
        program,
        stopping,
        trail: trail.clone(),
    })?;
    let deadlines = tokio::spawn(apart(hub.clone().keep_deadlines()));
    let auditing = tokio::spawn(apart(trail.clone().run(hub.clone())));
    let answering = tokio::spawn(apart(system.clone().run()));
    fleet.start();
    let no_more = CancellationToken::new();
    sessions.clone().accept(listener, no_more.clone()).context("cannot let clients in")?;
    hub.tell(own::STARTED, &Started { boot: hub.boot.clone() });
    tracing::info!(socket = %paths.socket.display(), boot = hub.boot, "accepting clients");
    let watching = tokio::spawn(watch_over(system.clone(), fleet.clone(), sessions.clone()));
    let ending = tokio::spawn(apart(fleet.clone().end_orphans()));

    let nobody = || Stop { reason: "nobody is left".into(), grace: None, again: false };
    let Stop { reason, grace, mut again } = stops.recv().await.unwrap_or_else(nobody);
    tracing::info!("stopping: {reason}");
    if again {
        notify::reloading()
    } else {
        notify::stopping()
    }
    stopping_sender.send_replace(true);
    hub.tell(own::STOPPING, &Reason { reason });
    no_more.cancel();
    let grace = grace.unwrap_or(config.daemon.shutdown_grace);
    tokio::select! {
        () = orderly_stop(&hub, &fleet, &sessions, &trail, grace) => tracing::info!("stopped"),
        hurry = stops.recv() => {
            let hurry = hurry.unwrap_or_else(nobody);
            tracing::warn!("hurried: {}", hurry.reason);
            again &= hurry.again;
            fleet.stop(Duration::ZERO).await;
        }
    }
    for task in [deadlines, answering, watching, ending, auditing] {
        task.abort();
    }
    hub.lanes.end();
    if again { Ok(Some(instance.hand_over(socket)?)) } else { Ok(None) }
}

/// What all runners of plugins share.
fn means(hub: &Arc<Hub>, spawner: Spawner, paths: &Paths, current: &Current) -> anyhow::Result<Means> {
    let config = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(Means {
        hub: hub.clone(),
        spawner,
        cgroups: Cgroups::prepare(),
        writable: Writable::new(current.clone(), paths.state_dir.join(PLUGINS)),
        orders: orders(paths, hub)?,
        watchdog: Watchdog::start().context("cannot start a thread")?,
        changed: Arc::new(Notify::new()),
        lost: Arc::new(Notify::new()),
        policies: policies(hub.clone(), current.clone()),
        trust: Trust::new(current.clone(), paths),
        secrets: Secrets::new(paths, &config),
    })
}

/// Where decisions are written down; without a plugin that keeps them there is
/// none to show them to.
fn trail(hub: &Hub, config: &Config) -> Arc<Trail> {
    let trail = Arc::new(Trail::default());
    if config.plugins.values().any(|plugin| plugin.enabled && plugin.keeps_work) {
        hub.kernel.show(trail.clone());
    }
    trail
}

/// All that would keep the daemon from starting with this configuration, as far
/// as that can be known without starting it.
///
/// # Errors
///
/// Where this program's own place cannot be found out.
pub fn check(paths: &Paths, config: &Config) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    let host = beside_us()?.join(HOST);
    let enabled = || config.plugins.values().filter(|plugin| plugin.enabled);
    if enabled().any(|plugin| plugin.placement == Placement::Child) && !host.is_file() {
        problems.push(format!("{} is missing, which runs plugins in processes of their own", host.display()));
    }
    if let Err(error) = Orders::open(orders_file(paths)) {
        problems.push(error.to_string());
    }
    let places = places(paths)?;
    let trust = Trust::new(Arc::new(Mutex::new(Arc::new(config.clone()))), paths);
    for plugin in enabled() {
        let image = Image::open(&places.find(&plugin.library)).map_err(Refusal::from);
        if let Err(refusal) = image.and_then(|image| trust.check(&image)) {
            problems.push(format!("plugin {}: {}", plugin.name, refusal.message));
        }
    }
    Ok(problems)
}

/// The orders of an operator from before this start; a freeze is in force from
/// here on.
fn orders(paths: &Paths, hub: &Hub) -> anyhow::Result<Arc<Orders>> {
    let orders = Orders::open(orders_file(paths))?;
    if let Some(order) = orders.frozen() {
        tracing::warn!("frozen since before this start: {}", order.reason);
        hub.kernel.freeze(Some(frozen(&order.reason)));
    }
    Ok(Arc::new(orders))
}

/// Where the operator's orders are written down.
fn orders_file(paths: &Paths) -> PathBuf {
    paths.state_dir.join("orders.json")
}

/// Lets requests in flight finish within the grace, then plugins drain and
/// sessions be written.
async fn orderly_stop(hub: &Hub, fleet: &Fleet, sessions: &Sessions, trail: &Trail, grace: Duration) {
    hub.close();
    if tokio::time::timeout(grace, hub.idle.notified()).await.is_err() {
        tracing::warn!(in_flight = hub.kernel.in_flight(), "the grace is over; what is left is refused");
        hub.refuse_clients();
    }
    // What is decided from now on is about plugins that are being stopped.
    trail.flush(TRAIL_GRACE).await;
    fleet.stop(grace.max(Duration::from_secs(1))).await;
    // A session whose task is lost in a plugin that hangs never closes.
    if tokio::time::timeout(SESSIONS_GRACE, sessions.close()).await.is_err() {
        tracing::warn!(open = sessions.count(), "sessions that do not close are cut off");
    }
}

/// SIGTERM and SIGINT stop the daemon; a second one hurries. SIGHUP opens the
/// log anew, as those who rotate logs expect. SIGUSR2 restarts the daemon, as
/// `system:restart` does.
fn signals(
    stop: &mpsc::Sender<Stop>,
    reopen: Box<dyn Fn() + Send + Sync>,
    program: Arc<Program>,
) -> anyhow::Result<()> {
    for (kind, name) in [(SignalKind::terminate(), "SIGTERM"), (SignalKind::interrupt(), "SIGINT")] {
        let mut signal = signal(kind).context("cannot handle signals")?;
        let stop = stop.clone();
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                // Where the channel is full, enough has been said.
                let _ = stop.try_send(Stop { reason: format!("got {name}"), grace: None, again: false });
            }
        });
    }
    let mut upgrade = signal(SignalKind::user_defined2()).context("cannot handle signals")?;
    let stop = stop.clone();
    tokio::spawn(async move {
        while upgrade.recv().await.is_some() {
            if let Err(refusal) = program.check().await {
                tracing::error!("not restarted: {refusal}");
                continue;
            }
            let _ = stop.try_send(Stop { reason: "got SIGUSR2".into(), grace: None, again: true });
        }
    });
    // A write beyond a limit on the size of files fails like any other; unhandled, this would end the daemon.
    let beyond = SignalKind::from_raw(nix::sys::signal::Signal::SIGXFSZ as i32);
    drop(signal(beyond).context("cannot handle signals")?);
    let mut hangup = signal(SignalKind::hangup()).context("cannot handle signals")?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            reopen();
        }
    });
    Ok(())
}

fn spawner(offspring: Offspring, runtime: tokio::runtime::Handle) -> anyhow::Result<Spawner> {
    Spawner::start(beside_us()?.join(HOST), offspring, runtime).context("cannot start a thread")
}

/// Takes on what loses its plugin host, and ends it whenever a child has ended.
fn adopt_orphans() -> anyhow::Result<Offspring> {
    let adopted = Offspring::adopt().context("cannot collect orphans")?;
    let offspring = adopted.clone();
    let mut ended = signal(SignalKind::child()).context("cannot handle signals")?;
    tokio::spawn(async move {
        while ended.recv().await.is_some() {
            let offspring = offspring.clone();
            // Reads as many files as there are processes.
            let _ = tokio::task::spawn_blocking(move || offspring.collect()).await;
        }
    });
    Ok(adopted)
}

/// Tells the service manager that the daemon is ready, and then that it lives.
async fn watch_over(system: Arc<System>, fleet: Arc<Fleet>, sessions: Arc<Sessions>) {
    loop {
        let changed = fleet.changed();
        if !fleet.list().iter().any(is_starting) {
            let health = system.health();
            tracing::info!(
                ready = health.plugins_ready,
                total = health.plugins_total,
                after_ms = health.uptime_ms,
                "ready"
            );
            break;
        }
        changed.await;
    }
    notify::ready();
    tokio::spawn(memory::give_back(async move || sessions.left().await));
    let Some(interval) = notify::watchdog_interval() else { return };
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        notify::alive();
    }
}

/// The policies of whichever configuration is in force when they are asked for.
fn policies(hub: Arc<Hub>, current: Current) -> Arc<Policies> {
    Arc::new(move |name, declared| {
        let config = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        hub.identity.declared(&config, name, declared)
    })
}

fn session_limits(config: &Config) -> Limits {
    Limits {
        connections: config.daemon.connections_max as usize,
        quota: Quota {
            in_flight: config.daemon.in_flight_max,
            subscriptions: config.daemon.subscriptions_max,
            holding: limits::IN_FLIGHT_MAX,
            // All connections of one user are counted together.
            per_second: None,
        },
        share: config.limits,
        handshake_timeout: config.daemon.handshake_timeout,
        write_deadline: config.daemon.write_deadline,
    }
}

fn beside_us() -> anyhow::Result<PathBuf> {
    let ours = std::env::current_exe().context("cannot find this program's own path")?;
    Ok(ours.parent().context("this program has no directory")?.to_owned())
}

fn places(paths: &Paths) -> anyhow::Result<Places> {
    let ours = beside_us()?;
    let mut libraries: Vec<PathBuf> = std::env::var_os("KSI_PLUGIN_DIR")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .into_iter()
        .collect();
    libraries.extend([ours.clone(), ours.join("../lib/ksi/plugins")]);
    Ok(Places {
        libraries,
        state: paths.state_dir.join(PLUGINS),
        models: paths.models_dir(),
        runtime: paths.runtime_dir.clone(),
        socket: paths.socket.clone(),
    })
}
