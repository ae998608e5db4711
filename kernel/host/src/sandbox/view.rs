//! What of the file system a plugin needs and is granted: one list for those
//! who enforce it.
//!
//! Every path is followed to what it really is, since that is what the kernel
//! checks. What does not exist cannot be granted and is passed over. What leads
//! through a link where a plugin may write is not granted, and nothing is with
//! it: the plugin would choose what it, or another one, can reach.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use ksi_protocol::{frame::Setup, sandbox::Network};
use rustix::fs::FileType;

use super::place::{Identity, Place, roots};

/// What every program needs: libraries, the clock's place, figures of this
/// machine and of the process itself.
const READ: [&str; 20] = [
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/nix/store",
    "/gnu/store",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/loadavg",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system",
];

/// What names and certificates take.
const READ_FOR_NETWORK: [&str; 7] = [
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/ssl",
    "/etc/pki",
    "/usr/share/ca-certificates",
];

/// What programs that it starts take; each of them has a `/proc/self` of its
/// own.
const READ_FOR_PROGRAMS: [&str; 4] = ["/usr", "/bin", "/sbin", "/proc"];

/// What drivers of graphics cards are found by: their libraries where these are
/// not with the system's, the cards on their bus, and lists of drivers. What is
/// on the bus lies below `/sys/devices`, see [`View::of`].
const READ_FOR_GPU: [&str; 16] = [
    "/usr/local/cuda",
    "/usr/local/nvidia",
    "/opt/cuda",
    "/opt/rocm",
    "/proc/devices",
    "/proc/driver/nvidia",
    "/proc/modules",
    "/proc/sys/vm/mmap_min_addr",
    "/sys/bus/pci",
    "/sys/dev/char",
    "/sys/devices/virtual/kfd",
    "/sys/module/amdgpu",
    "/sys/module/nvidia",
    "/sys/module/nvidia_uvm",
    "/etc/vulkan",
    "/usr/share/vulkan",
];

/// Devices that harm nobody.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// AMD's device for computing, and what NVIDIA's driver writes the names of its
/// threads to: it gives up where it cannot.
const WRITE_FOR_GPU: [&str; 2] = ["/dev/kfd", "/proc/self/task"];

/// A granted path.
#[derive(Debug)]
pub(super) struct Granted {
    /// As it was named.
    pub(super) named: PathBuf,
    /// Where it leads.
    pub(super) place: Place,
    /// Whether it may be changed.
    pub(super) write: bool,
    /// Whether it lies in what is granted the same anyway.
    pub(super) covered: bool,
}

impl Granted {
    /// Its path without links.
    pub(super) fn real(&self) -> &Path {
        &self.place.real
    }

    /// Whether it is a directory.
    pub(super) fn is_directory(&self) -> bool {
        self.place.kind == FileType::Directory
    }

    /// Whether it is a device, a pipe or a socket.
    pub(super) fn is_special(&self) -> bool {
        !matches!(self.place.kind, FileType::Directory | FileType::RegularFile)
    }
}

/// All that is granted.
#[derive(Debug)]
pub(super) struct View {
    /// The directory that the plugin may call its own, in which the host
    /// works.
    pub(super) own: PathBuf,
    /// Which directory that is, whatever lies over it later.
    identity: Identity,
    /// Parents before what lies in them.
    pub(super) granted: Vec<Granted>,
}

impl View {
    pub(super) fn of(setup: &Setup) -> Result<Self, String> {
        let own = std::env::current_dir().map_err(|error| format!("own directory: {error}"))?;
        let sandbox = &setup.sandbox;
        let mut read: Vec<PathBuf> = READ.map(PathBuf::from).into();
        if sandbox.network != Network::None || !sandbox.listen.is_empty() {
            read.extend(READ_FOR_NETWORK.map(PathBuf::from));
        }
        if sandbox.gpu {
            read.extend(READ_FOR_GPU.map(PathBuf::from));
            read.extend(found(Path::new("/sys/devices"), |name| name.starts_with("pci")));
        }
        if sandbox.exec {
            read.extend(READ_FOR_PROGRAMS.map(PathBuf::from));
        }
        read.push(setup.library.clone().into());
        // Read where a panic is told with its backtrace.
        read.extend(std::env::current_exe());
        read.extend(std::env::var_os("LD_LIBRARY_PATH").iter().flat_map(std::env::split_paths));
        read.extend(sandbox.read.iter().map(PathBuf::from));
        let mut write: Vec<PathBuf> = DEVICES.map(PathBuf::from).into();
        if sandbox.gpu {
            write.extend(WRITE_FOR_GPU.map(PathBuf::from));
            write.extend(found(Path::new("/dev"), is_nvidias));
            // What computes, and not what shows something on a screen.
            write.extend(found(Path::new("/dev/dri"), |name| name.starts_with("renderD")));
        }
        write.push(own.clone());
        // The same, as the plugin is told it.
        write.push(setup.dir.clone().into());
        write.extend(sandbox.write.iter().map(PathBuf::from));
        let writable = roots(&sandbox.writable);
        let mut granted = Vec::new();
        let named = [(read, false), (write, true)].into_iter();
        for (named, write) in
            named.flat_map(|(paths, write)| paths.into_iter().map(move |path| (path, write)))
        {
            let Ok(place) = Place::find(&named) else { continue };
            if let Some(link) = place.link_in(&writable) {
                return Err(planted(&named, link));
            }
            granted.push(Granted { named, place, write, covered: false });
        }
        let identity = identity(&own)?;
        let told = granted.iter().find(|granted| granted.named == Path::new(&setup.dir));
        if told.is_none_or(|told| told.place.identity != identity) {
            return Err(format!("{} is not where the host works", setup.dir));
        }
        Ok(Self { own, identity, granted: in_order(granted) })
    }

    /// Whether the plugin's own directory is still what it was: what is kept
    /// there must not end in something that goes with the process.
    pub(super) fn check(&self) -> Result<(), String> {
        let found = [identity(&self.own)?, identity(Path::new("."))?];
        if found != [self.identity; 2] {
            return Err("the own directory is another one".into());
        }
        // Whoever may exchange what another one is granted must not take its sandbox away with that.
        match self.granted.iter().find(|granted| granted.place.is_exchanged()) {
            Some(granted) => Err(format!(
                "{} was exchanged while it was granted; the next start looks again",
                granted.real().display()
            )),
            None => Ok(()),
        }
    }

    /// What is granted, each place once, parents before what lies in them.
    pub(super) fn places(&self) -> impl Iterator<Item = &Granted> {
        self.granted.iter().filter(|granted| !granted.covered)
    }

    /// Whether a place lies in one that is granted in another way, and so is there
    /// already when it is.
    pub(super) fn lies_in_another(&self, granted: &Granted) -> bool {
        let above =
            |other: &Granted| other.real() != granted.real() && granted.real().starts_with(other.real());
        self.places().any(above)
    }
}

/// Why a grant is none, and what helps.
fn planted(named: &Path, link: &Path) -> String {
    format!(
        "{} is granted and leads through the link {}, which lies where a plugin may write, so a plugin may \
         have put it there: remove the link, or grant the place itself",
        named.display(),
        link.display()
    )
}

/// Whether a device is one of NVIDIA's that computing needs: the cards, and what
/// manages them and their memory.
fn is_nvidias(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("nvidia") else { return false };
    matches!(rest, "ctl" | "-uvm" | "-uvm-tools")
        || (!rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

/// What there is in a directory under such names.
fn found(directory: &Path, is_wanted: fn(&str) -> bool) -> impl Iterator<Item = PathBuf> {
    let entries = directory.read_dir().into_iter().flatten().flatten();
    entries.filter(move |entry| entry.file_name().to_str().is_some_and(is_wanted)).map(|entry| entry.path())
}

/// Device and number of a directory.
fn identity(dir: &Path) -> Result<Identity, String> {
    let found = dir.metadata().map_err(|error| format!("own directory: {error}"))?;
    Ok((found.dev(), found.ino()))
}

/// Parents before what lies in them, and what is granted by its parent marked
/// so.
fn in_order(mut granted: Vec<Granted>) -> Vec<Granted> {
    granted.sort_by_key(|granted| (granted.real().components().count(), granted.write));
    for at in 0..granted.len() {
        let (before, this) = (&granted[..at], &granted[at]);
        let nearest =
            before.iter().rev().find(|above| !above.covered && this.real().starts_with(above.real()));
        granted[at].covered = nearest.is_some_and(|above| above.write == this.write);
    }
    granted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(path: &str, write: bool) -> Granted {
        let mut place = Place::find(Path::new("/")).unwrap();
        place.real = path.into();
        Granted { named: path.into(), place, write, covered: false }
    }

    #[test]
    fn the_devices_of_nvidia_that_compute_and_no_others_are_found() {
        let dev = tempfile::tempdir().unwrap();
        for name in ["nvidia0", "nvidia12", "nvidiactl", "nvidia-uvm", "nvidia-modeset", "nvidia", "nvme0"] {
            std::fs::write(dev.path().join(name), "").unwrap();
        }
        std::fs::create_dir(dev.path().join("nvidia-caps")).unwrap();
        let mut names: Vec<_> = found(dev.path(), is_nvidias)
            .map(|path| path.strip_prefix(dev.path()).unwrap().display().to_string())
            .collect();
        names.sort();
        assert_eq!(names, ["nvidia-uvm", "nvidia0", "nvidia12", "nvidiactl"]);
        assert_eq!(found(Path::new("/nowhere"), is_nvidias).count(), 0);
    }

    #[test]
    fn each_place_is_granted_once_and_its_own_right_wins_over_its_parents() {
        let granted = in_order(vec![
            granted("/usr/lib/x", false),
            granted("/state/own/deep", true),
            granted("/usr/lib", false),
            granted("/state", false),
            granted("/state/own", true),
            granted("/usr/library", false),
            granted("/usr/lib", false),
        ]);
        let view = View { own: "/state/own".into(), identity: (0, 0), granted };
        let places: Vec<_> =
            view.places().map(|place| (place.real().to_str().unwrap(), place.write)).collect();
        let expected =
            [("/state", false), ("/usr/lib", false), ("/usr/library", false), ("/state/own", true)];
        assert_eq!(places, expected);
    }

    #[test]
    fn a_place_in_another_grant_is_there_already() {
        let granted = in_order(vec![granted("/a", false), granted("/a/b", true), granted("/ab", true)]);
        let view = View { own: "/a/b".into(), identity: (0, 0), granted };
        let inside: Vec<_> = view.places().map(|place| view.lies_in_another(place)).collect();
        assert_eq!(inside, [false, false, true]);
    }
}
