//! The sandbox of a child: its layers, what a plugin is granted in it, what is
//! in force, and what a probe of it has found.
//!
//! The daemon says in `setup` what a plugin is granted ([`Sandbox`]); the host
//! takes everything else from itself, tries whether it is gone, and tells what
//! holds ([`Report`]) before it loads a line of the plugin.

use serde::{Deserialize, Serialize};

/// One rung of the ladder, each stronger than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// L0: a process of its own, a clean environment, no foreign descriptors,
    /// death with the daemon.
    Process,
    /// L1: limits, no core dumps, no privileges and none to be gained.
    Limits,
    /// L2: a filter of system calls.
    Seccomp,
    /// L3: files, TCP ports and signals by grant.
    Landlock,
    /// L4: a user, a mount and where possible a network namespace of its own.
    Namespaces,
    /// L5: memory, processes and processor held by a control group, which also
    /// ends them all at once.
    Cgroup,
}

impl Layer {
    /// All, from the lowest.
    pub const ALL: [Self; 6] =
        [Self::Process, Self::Limits, Self::Seccomp, Self::Landlock, Self::Namespaces, Self::Cgroup];

    /// Its name on the wire and in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Limits => "limits",
            Self::Seccomp => "seccomp",
            Self::Landlock => "landlock",
            Self::Namespaces => "namespaces",
            Self::Cgroup => "cgroup",
        }
    }

    /// The level that is reached with this layer and all below it.
    #[must_use]
    pub const fn level(self) -> &'static str {
        match self {
            Self::Process => "L0",
            Self::Limits => "L1",
            Self::Seccomp => "L2",
            Self::Landlock => "L3",
            Self::Namespaces => "L4",
            Self::Cgroup => "L5",
        }
    }
}

/// What a plugin may do, and what it may use. What is not granted is denied
/// where a layer can deny it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sandbox {
    /// Files and directories that it may read, absolute; its own directory, its
    /// library and the system's libraries need not be granted.
    pub read: Vec<String>,
    /// Files and directories that it may also write.
    pub write: Vec<String>,
    /// What of the network it may reach.
    pub network: Network,
    /// TCP ports on which it may listen.
    pub listen: Vec<u16>,
    /// Whether it may open Unix sockets.
    pub unix: bool,
    /// Whether it may start programs.
    pub exec: bool,
    /// Whether it may use the graphics cards.
    pub gpu: bool,
    /// How much it may use.
    pub limits: Limits,
    /// Layers that the operator has switched off.
    pub disable: Vec<Layer>,
    /// The layer up to which all must be in force, or the plugin does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require: Option<Layer>,
    /// What any plugin may write, this one or another: a link that lies there may
    /// be a plugin's, and no grant is followed through it.
    pub writable: Vec<String>,
    /// Directories that it must not see even inside of what is granted.
    pub hide: Vec<String>,
    /// What the daemon has done for the last layer.
    pub cgroup: Cgroup,
}

/// How much a child may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Address space in bytes; with a control group also resident memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Open files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
    /// Largest file that may be written, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
    /// Processes and threads together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    /// Processor time in hundredths of one processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
}

/// What of the network a child may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Nothing.
    #[default]
    None,
    /// Itself: a loopback of its own, which nobody else is on.
    Loopback,
    /// These TCP ports, on any host. 53 also allows UDP, which names need.
    Ports(Vec<u16>),
}

/// The daemon's part of the last layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cgroup {
    /// The child was put into this group, a directory of the file system, which
    /// holds it to its limits.
    Holds(String),
    /// Why there is none that does.
    Off(String),
}

impl Default for Cgroup {
    fn default() -> Self {
        Self::Off("not asked for".into())
    }
}

/// Whether one layer is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Standing {
    /// Which.
    pub layer: Layer,
    /// Whether what it forbids was tried and denied.
    pub on: bool,
    /// Why it is not, or what it does not cover on this machine; empty
    /// otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// What is in force in a child.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Every layer, from the lowest.
    pub layers: Vec<Standing>,
}

impl Report {
    /// The highest layer that is in force with all below it.
    #[must_use]
    pub fn reached(&self) -> Option<Layer> {
        self.layers.iter().take_while(|standing| standing.on).last().map(|standing| standing.layer)
    }

    /// The level, `L4`; `none` where there is not even a process.
    #[must_use]
    pub fn level(&self) -> &'static str {
        self.reached().map_or("none", Layer::level)
    }

    /// What is missing or incomplete, as `layer: why`.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let telling = self.layers.iter().filter(|standing| !standing.why.is_empty());
        telling.map(|standing| format!("{}: {}", standing.layer.as_str(), standing.why)).collect()
    }

    /// Why less is in force than is required; `None` where it is enough.
    #[must_use]
    pub fn lacks(&self, require: Layer) -> Option<String> {
        if self.reached().is_some_and(|reached| reached >= require) {
            return None;
        }
        let missing = self.layers.iter().filter(|standing| standing.layer <= require && !standing.on);
        let missing: Vec<String> = missing
            .map(|standing| {
                let layer = standing.layer;
                format!("{} ({}: {})", layer.level(), layer.as_str(), standing.why)
            })
            .collect();
        Some(format!(
            "it requires sandbox {}, and {} can be had: {} is missing",
            require.level(),
            self.level(),
            missing.join(", ")
        ))
    }
}

/// What a probe is to try its strength on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    /// A directory of the daemon's that nobody has granted, with a file
    /// `canary` in it.
    pub outside: String,
    /// A TCP port of 127.0.0.1 on which the daemon listens meanwhile.
    pub port: u16,
    /// The control socket.
    pub socket: String,
    /// The daemon's process id.
    pub daemon: u32,
    /// The daemon's network, as `/proc/self/ns/net` names it.
    pub network: String,
}

/// Something that a plugin has no business doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// Read a file that is not granted.
    ReadOutside,
    /// Write a file that is not granted.
    WriteOutside,
    /// Change the mode of a file that is not granted.
    ModeOutside,
    /// Start a program.
    Exec,
    /// Connect to a TCP port of this machine.
    Connect,
    /// The same without `connect`: with the first bytes that are sent.
    ConnectBySending,
    /// Listen on a TCP port of this machine.
    Bind,
    /// The same without `bind`: on whatever port the system chooses.
    ListenUnbound,
    /// Find the control socket from a pair of sockets, which needs none of its
    /// own to send to any path.
    DatagramPair,
    /// Ask the daemon something through its control socket.
    ControlSocket,
    /// Trace the daemon.
    Ptrace,
    /// Signal the daemon.
    Signal,
    /// Have the system signal the daemon whenever something comes for a file.
    SignalByFile,
    /// Set up an `io_uring`.
    IoUring,
    /// Open a socket of the kernel's cryptography.
    AfAlg,
    /// Use more memory than granted.
    Memory,
    /// Start more processes than granted.
    Processes,
    /// Open more files than granted.
    Files,
}

impl Act {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 18] = [
        Self::ReadOutside,
        Self::WriteOutside,
        Self::ModeOutside,
        Self::Exec,
        Self::Connect,
        Self::ConnectBySending,
        Self::Bind,
        Self::ListenUnbound,
        Self::DatagramPair,
        Self::ControlSocket,
        Self::Ptrace,
        Self::Signal,
        Self::SignalByFile,
        Self::IoUring,
        Self::AfAlg,
        Self::Memory,
        Self::Processes,
        Self::Files,
    ];

    /// What it is, for people.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::ReadOutside => "read a file that is not granted",
            Self::WriteOutside => "write a file that is not granted",
            Self::ModeOutside => "change the mode of a file that is not granted",
            Self::Exec => "start a program",
            Self::Connect => "connect to a TCP port of this machine",
            Self::ConnectBySending => "connect to a TCP port with the first bytes (TCP Fast Open)",
            Self::Bind => "listen on a TCP port of this machine",
            Self::ListenUnbound => "listen on whatever TCP port the system chooses",
            Self::DatagramPair => "send to a Unix socket from a pair of sockets",
            Self::ControlSocket => "ask the daemon through its control socket",
            Self::Ptrace => "trace the daemon",
            Self::Signal => "signal the daemon",
            Self::SignalByFile => "have the system signal the daemon",
            Self::IoUring => "set up an io_uring",
            Self::AfAlg => "open a socket of the kernel's cryptography",
            Self::Memory => "use more memory than granted",
            Self::Processes => "start more processes than granted",
            Self::Files => "open more files than granted",
        }
    }
}

/// What came of one act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// What was tried.
    pub act: Act,
    /// Whether it was denied.
    pub denied: bool,
    /// By what, or how far it came.
    pub detail: String,
}

/// `plugin:probe`: what the sandbox of a plugin denies, tried from inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Probe {
    /// Name of the plugin.
    pub name: String,
    /// The level in force, `L4`.
    pub level: String,
    /// What is in force.
    pub layers: Vec<Standing>,
    /// What came of each act.
    pub acts: Vec<Finding>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(on: [bool; 6]) -> Report {
        let layers = Layer::ALL.into_iter().zip(on).map(|(layer, on)| Standing {
            layer,
            on,
            why: if on { String::new() } else { "not here".into() },
        });
        Report { layers: layers.collect() }
    }

    #[test]
    fn a_level_is_reached_only_with_all_below_it() {
        assert_eq!(report([true; 6]).level(), "L5");
        assert_eq!(report([true, true, true, true, true, false]).level(), "L4");
        assert_eq!(report([true, true, false, true, true, true]).level(), "L1");
        assert_eq!(report([false; 6]).level(), "none");
        assert_eq!(Report::default().level(), "none");
    }

    #[test]
    fn what_is_required_and_missing_is_named_with_its_reason() {
        let report = report([true, true, true, false, true, false]);
        assert_eq!(report.lacks(Layer::Seccomp), None);
        let why = report.lacks(Layer::Namespaces).unwrap();
        assert_eq!(why, "it requires sandbox L4, and L2 can be had: L3 (landlock: not here) is missing");
        assert_eq!(report.reasons(), ["landlock: not here", "cgroup: not here"]);
    }

    #[test]
    fn layers_and_acts_are_written_as_they_are_named() {
        for layer in Layer::ALL {
            assert_eq!(serde_json::to_value(layer).unwrap(), layer.as_str());
        }
        assert_eq!(serde_json::to_value(Act::AfAlg).unwrap(), "af_alg");
        assert!(Act::ALL.is_sorted(), "none is left out of its place");
    }
}
