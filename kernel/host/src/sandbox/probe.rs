//! Tries from inside of the sandbox what a plugin has no business doing, and
//! tells what was denied.
//!
//! Every act does no harm where it is let through: it reads a canary, gives it
//! the mode that it has, writes a file beside it, asks the daemon how it is, traces it without stopping it,
//! and signals it with nothing.
#![expect(unsafe_code, reason = "some of these acts are system calls that no wrapper would make")]

use std::{
    fs,
    io::{BufRead, BufReader, Error, ErrorKind, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixDatagram, UnixStream},
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use ksi_protocol::sandbox::{Act, Finding, Sandbox, Targets};
use nix::{
    errno::Errno,
    libc,
    sys::{
        ptrace,
        signal::{Signal, kill},
        socket::{AddressFamily, Backlog, SockFlag, SockType, listen, setsockopt, socket, sockopt},
        time::{TimeVal, TimeValLike},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, dup, fork, pause},
};

use super::limits::more_memory;

/// Time that the daemon and the network have for their answers.
const PATIENCE: Duration = Duration::from_secs(5);

/// Processes and files that are tried where there is no limit.
const TRIES: u64 = 64;
/// Processes that are tried in all.
const PROCESSES_MAX: u64 = 512;

/// A program that exists wherever programs do.
const PROGRAM: &str = "/bin/true";

/// Names the network of a process.
const NETWORK: &str = "/proc/self/ns/net";

/// How an act was denied, or how far it came.
type Outcome = Result<String, String>;

/// Tries everything.
#[must_use]
pub fn all(sandbox: &Sandbox, targets: &Targets) -> Vec<Finding> {
    let finding = |act| match attempt(act, sandbox, targets) {
        Ok(detail) => Finding { act, denied: false, detail },
        Err(detail) => Finding { act, denied: true, detail },
    };
    Act::ALL.into_iter().map(finding).collect()
}

fn attempt(act: Act, sandbox: &Sandbox, targets: &Targets) -> Outcome {
    let outside = Path::new(&targets.outside);
    let daemon = Pid::from_raw(i32::try_from(targets.daemon).unwrap_or(i32::MAX));
    match act {
        Act::ReadOutside => fs::read(outside.join("canary")).map(|_| "read".into()).map_err(say),
        Act::WriteOutside => fs::write(outside.join("written"), "x").map(|()| "written".into()).map_err(say),
        Act::ModeOutside => mode(&outside.join("canary")),
        Act::Exec => exec(),
        Act::Connect => connect(targets.port),
        Act::ConnectBySending => connect_by_sending(targets.port),
        Act::Bind => bind(sandbox, targets),
        Act::ListenUnbound => listen_unbound(targets),
        Act::DatagramPair => datagram(&targets.socket),
        Act::ControlSocket => ask(&targets.socket),
        Act::Ptrace => {
            ptrace::seize(daemon, ptrace::Options::empty()).map(|()| "traced".into()).map_err(name)
        }
        Act::Signal => kill(daemon, None).map(|()| "signalled".into()).map_err(name),
        Act::SignalByFile => own(daemon),
        Act::IoUring => io_uring(),
        Act::AfAlg => af_alg(),
        Act::Memory => memory(sandbox.limits.memory_bytes),
        Act::Processes => processes(sandbox.limits.processes),
        Act::Files => files(sandbox.limits.files),
    }
}

fn say(error: Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |raw| name(Errno::from_raw(raw)))
}

fn name(errno: Errno) -> String {
    format!("{errno:?}")
}

/// Gives a file the mode that it has.
fn mode(path: &Path) -> Outcome {
    let same = fs::metadata(path).map_err(say)?.permissions();
    fs::set_permissions(path, same).map(|()| "changed".into()).map_err(say)
}

/// Starts a program, and where no process can be made, tries to become one.
fn exec() -> Outcome {
    let mut command = Command::new(PROGRAM);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let failed = match command.status() {
        Ok(_) => return Ok(format!("{PROGRAM} ran")),
        Err(error) => error,
    };
    let nothing: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: a path and two lists that end; with an empty path it never
    // becomes anything.
    unsafe { libc::execve(c"".as_ptr(), nothing.as_ptr(), nothing.as_ptr()) };
    match Errno::last() {
        // Only as many processes as there are already, but this one may become
        // another program.
        Errno::ENOENT if failed.kind() == ErrorKind::WouldBlock => Ok("in place of this process".into()),
        Errno::ENOENT => Err(say(failed)),
        errno => Err(name(errno)),
    }
}

fn connect(port: u16) -> Outcome {
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    TcpStream::connect_timeout(&address.into(), PATIENCE).map(|_| "connected".into()).map_err(say)
}

fn connect_by_sending(port: u16) -> Outcome {
    let socket = tcp()?;
    let patience = TimeVal::seconds(PATIENCE.as_secs().cast_signed());
    setsockopt(&socket, sockopt::SendTimeout, &patience).map_err(name)?;
    // SAFETY: all zeros are a valid value of this plain structure.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = libc::AF_INET.cast_unsigned() as libc::sa_family_t;
    address.sin_port = port.to_be();
    address.sin_addr.s_addr = u32::from(Ipv4Addr::LOCALHOST).to_be();
    // SAFETY: a socket that is open, one byte and an address of their sizes, which
    // are only read.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            c"x".as_ptr().cast(),
            1,
            libc::MSG_FASTOPEN,
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    Errno::result(sent).map(|_| "connected".into()).map_err(name)
}

fn tcp() -> Result<OwnedFd, String> {
    socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(name)
}

/// Listens on a port that is granted, or else on any.
fn bind(sandbox: &Sandbox, targets: &Targets) -> Outcome {
    let port = sandbox.listen.first().copied().unwrap_or(0);
    match TcpListener::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => Ok("the port is in use".into()),
        Err(error) => Err(say(error)),
        Ok(_) => listening(targets),
    }
}

fn listen_unbound(targets: &Targets) -> Outcome {
    let socket = tcp()?;
    listen(&socket, Backlog::MAXALLOWABLE).map_err(name)?;
    listening(targets)
}

/// Where nobody can come by, to listen is as good as denied.
fn listening(targets: &Targets) -> Outcome {
    match fs::read_link(NETWORK) {
        Ok(ours) if ours != Path::new(&targets.network) => Err("only in a network of its own".into()),
        _ => Ok("listening".into()),
    }
}

/// Sends to another socket than the one that it is connected to. The control
/// socket takes no datagrams, so nothing arrives, but the error tells that it was
/// found.
fn datagram(socket: &str) -> Outcome {
    let (ours, _other) = UnixDatagram::pair().map_err(say)?;
    match ours.send_to(b"", socket) {
        Ok(_) => Ok("sent".into()),
        Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => Ok("the socket was found".into()),
        Err(error) => Err(say(error)),
    }
}

/// Asks the daemon how it is.
fn ask(socket: &str) -> Outcome {
    let answer = UnixStream::connect(socket).and_then(|mut link| {
        link.set_read_timeout(Some(PATIENCE))?;
        // Where it hangs up at once, it may have said why all the same.
        let _ = link.write_all(b"{\"event\":\"system:health\",\"data\":{}}\n");
        let mut line = String::new();
        BufReader::new(link).read_line(&mut line)?;
        Ok(line)
    });
    match answer {
        Err(error) => Err(say(error)),
        Ok(line) if line.is_empty() => Err("the daemon hung up".into()),
        Ok(line) if line.contains("\"refusal\"") => Err("the daemon refused".into()),
        Ok(_) => Ok("the daemon answered".into()),
    }
}

/// Makes a process the owner of a socket, without asking for signals to it.
fn own(process: Pid) -> Outcome {
    let (socket, _other) = UnixStream::pair().map_err(say)?;
    // SAFETY: a descriptor that is open, and two integers.
    let owned = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETOWN, process.as_raw()) };
    Errno::result(owned).map(|_| "it owns a socket of ours".into()).map_err(name)
}

fn io_uring() -> Outcome {
    // The kernel's `io_uring_params` has 120 bytes; zeros ask for nothing special.
    let mut parameters = [0_u64; 15];
    // SAFETY: one entry, and a structure of the right size that outlives the
    // call.
    let made = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    opened(made, "set up")
}

fn af_alg() -> Outcome {
    // SAFETY: three integers.
    let made = unsafe { libc::socket(libc::AF_ALG, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
    opened(made.into(), "opened")
}

fn opened(descriptor: libc::c_long, done: &str) -> Outcome {
    let descriptor = Errno::result(descriptor).map_err(name)?;
    if let Ok(descriptor) = i32::try_from(descriptor) {
        // Gone with the process at the latest.
        let _ = nix::unistd::close(descriptor);
    }
    Ok(done.into())
}

fn memory(limit: Option<u64>) -> Outcome {
    let Some(limit) = limit else { return Ok("there is no limit".into()) };
    if more_memory(limit) { Ok("mapped".into()) } else { Err(name(Errno::ENOMEM)) }
}

/// Starts one process more than granted, all of which only wait.
fn processes(limit: Option<u64>) -> Outcome {
    let most = limit.unwrap_or(TRIES).min(PROCESSES_MAX) + 1;
    let mut started = Vec::new();
    let denied = loop {
        if started.len() as u64 == most {
            break None;
        }
        // SAFETY: there is one thread, and the child does nothing but wait for
        // its end.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => loop {
                pause();
            },
            Ok(ForkResult::Parent { child }) => started.push(child),
            Err(errno) => break Some(errno),
        }
    };
    for child in &started {
        // They wait for nothing else.
        let _ = kill(*child, Signal::SIGKILL);
        let _ = waitpid(*child, None);
    }
    match denied {
        Some(errno) => Err(format!("{} after {}", name(errno), started.len())),
        None => Ok(format!("{} started", started.len())),
    }
}

fn files(limit: Option<u64>) -> Outcome {
    let most = usize::try_from(limit.unwrap_or(TRIES)).unwrap_or(usize::MAX);
    let mut open: Vec<OwnedFd> = Vec::new();
    while open.len() < most {
        match dup(std::io::stdin()) {
            Ok(descriptor) => open.push(descriptor),
            Err(errno) => return Err(format!("{} after {}", name(errno), open.len())),
        }
    }
    Ok(format!("{} opened", open.len()))
}
