//! `ksid`: the KSI daemon. Stays in the foreground; `ksi start` puts it into
//! the background.
#![expect(clippy::print_stderr, clippy::print_stdout, reason = "before the log exists, a person is told")]

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context;
use clap::Parser;
use ksi_protocol::{paths::Paths, system::Placement};
use ksid::{
    config::{self, Config},
    instance::Instance,
    log,
    plugin::actor::apart,
    server,
    takeover::Program,
};
use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

/// The KSI daemon: routes events between clients and plugins.
#[derive(Debug, Parser)]
#[command(version, about, after_help = "`ksi up` starts it in the background and tells what to do next.")]
struct Args {
    /// Log to the terminal as well.
    #[arg(long)]
    foreground: bool,
    /// Socket instead of the usual one.
    #[arg(long, env = "KSI_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Configuration file instead of the usual one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Manifest instead of the shipped one.
    #[arg(long, env = "KSI_EVENTS", value_name = "FILE")]
    events: Option<PathBuf>,
    /// A value over all other sources: daemon.log_level=debug.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Check the configuration and end.
    #[arg(long)]
    check_config: bool,
    /// Check whether the daemon could start, configuration and plugins, and end.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    ksi_host::memory::map_large();
    ksi_host::memory::share_arenas();
    if let Err(errno) = keep_memory_private() {
        eprintln!("error: cannot keep this process from being dumped: {errno}");
        return ExitCode::FAILURE;
    }
    // The file may be replaced while it runs.
    let program = Program::of_process();
    if let Ok(program) = &program
        && let Err(error) = program.without_token()
    {
        eprintln!("error: cannot start without the token in the environment: {error}");
        return ExitCode::FAILURE;
    }
    let args = Args::parse();
    // Without a current directory what is relative stays so, and leads nowhere.
    let current = std::env::current_dir().unwrap_or_default();
    let uid = nix::unistd::geteuid().as_raw();
    let variable = |name: &str| match &args.socket {
        Some(socket) if name == "KSI_SOCKET" => Some(socket.into()),
        _ => std::env::var_os(name),
    };
    let mut paths = Paths::resolve(variable, &current, uid);
    if let Some(file) = args.config {
        paths.config_file = file;
    }
    if let Some(place) = paths.nameless() {
        eprintln!("error: {} is not text in UTF-8, and so no place for KSI", place.display());
        return ExitCode::from(2);
    }
    let sources = config::Sources::of_process(&paths, args.events, args.set);
    let config = match Config::load(&sources) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(2);
        }
    };
    if args.check_config {
        println!("configuration is valid");
        return ExitCode::SUCCESS;
    }
    if args.check {
        return check(&paths, &config);
    }
    let served = program
        .context("cannot find this program's own path")
        .and_then(|program| serve(paths, config, sources, args.foreground, program));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Secrets and prompts lie in this memory: nothing of it is written to a core
/// dump, and no other process of the user may look into it.
fn keep_memory_private() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)
}

/// Says what would keep the daemon from starting.
fn check(paths: &Paths, config: &Config) -> ExitCode {
    match server::check(paths, config) {
        Ok(problems) if problems.is_empty() => {
            println!("the daemon can start");
            ExitCode::SUCCESS
        }
        Ok(problems) => {
            eprintln!("{}", problems.join("\n"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(
    paths: Paths,
    config: Config,
    sources: config::Sources,
    foreground: bool,
    program: Program,
) -> anyhow::Result<()> {
    let program = Arc::new(program);
    let instance = Instance::acquire(&paths)?;
    std::fs::create_dir_all(&paths.state_dir)
        .with_context(|| format!("cannot make {}", paths.state_dir.display()))?;
    let log = Arc::new(log::init(&log::Options {
        file: paths.log_file(),
        level: config.daemon.log_level.clone(),
        format: config.daemon.log_format,
        bytes_max: config.daemon.log_bytes_max,
        files: config.daemon.log_files,
        stderr: foreground,
    })?);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(config.daemon.threads.unwrap_or_else(|| threads(&config)));
    let runtime = runtime.enable_all().build().context("cannot start the runtime")?;
    let (level, file) = (log.clone(), log.clone());
    let options = server::Options {
        paths,
        config,
        reread: Box::new(move || Config::load(&sources).map_err(|errors| errors.to_string())),
        apply: Box::new(move |config| {
            // A level of a valid configuration is one.
            let _ = level.set_level(&config.daemon.log_level);
        }),
        reopen: Box::new(move || file.reopen()),
        program: program.clone(),
    };
    let ended = runtime.block_on(apart(server::run(options, instance)));
    // A thread that hangs in a plugin must not keep the daemon.
    runtime.shutdown_background();
    // Tasks that are left over hold the log too, so its last lines do not wait
    // for its last owner. A disk that hangs may keep them.
    let _ = log.flush();
    match ended? {
        None => Ok(()),
        Some(takeover) => Err(takeover.execute(&program)).context("cannot execute the daemon anew"),
    }
}

/// Threads where nothing else is configured: one for each processor, but one
/// more than the plugins in this process can lose by hanging.
fn threads(config: &Config) -> usize {
    let in_process =
        config.plugins.values().filter(|plugin| plugin.enabled && plugin.placement == Placement::InProcess);
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    processors.max(in_process.count() + 1)
}
