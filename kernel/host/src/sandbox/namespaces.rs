//! L4: a user, a mount and an IPC namespace of its own, and a network of its
//! own where none outside is granted.
//!
//! The file system is built anew from what is granted: each grant is cloned,
//! made read-only unless it may be written, and put in its place in an empty
//! root; what was there before is let go. So what is not granted, the control
//! socket among it, has no path. What is mounted is what was found when the
//! grants were looked at, even where somebody exchanges it meanwhile. This holds
//! without Landlock as well, and inside the system calls that Landlock does not
//! know.
#![expect(unsafe_code, reason = "mount_setattr and the flags of an interface have no safe wrapper")]

use std::{
    fs,
    net::UdpSocket,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use ksi_protocol::sandbox::{Network, Sandbox};
use nix::{
    errno::Errno,
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::{chdir, getegid, geteuid, pivot_root},
};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::{
    Taken,
    place::Place,
    view::{Granted, View},
};

/// Whether the plugin has a network of its own: it needs no other.
pub(super) fn has_network(sandbox: &Sandbox) -> bool {
    !matches!(sandbox.network, Network::Ports(_)) && sandbox.listen.is_empty()
}

/// Enters them, and moves into a root of what is granted.
pub(super) fn enter(sandbox: &Sandbox, view: &View) -> Result<(), String> {
    let (user, group) = (geteuid(), getegid());
    let mut flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC;
    if has_network(sandbox) {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    unshare(flags).map_err(|errno| match errno {
        Errno::EPERM | Errno::EACCES => "not allowed on this machine".to_owned(),
        Errno::ENOSPC | Errno::EUSERS => "this machine allows no more of them".to_owned(),
        other => format!("unshare: {other}"),
    })?;
    // The same user inside as outside, and nobody else.
    for (file, text) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("{user} {user} 1")),
        ("/proc/self/gid_map", format!("{group} {group} 1")),
    ] {
        fs::write(file, text).map_err(|error| format!("{file}: {error}"))?;
    }
    if sandbox.network == Network::Loopback && has_network(sandbox) {
        raise_loopback().map_err(|errno| format!("loopback: {errno}"))?;
    }
    move_in(sandbox, view).map_err(|(path, error)| format!("{}: {error}", path.display()))
}

type Mounting<T> = Result<T, (PathBuf, Errno)>;

fn at(path: &Path) -> impl FnOnce(Errno) -> (PathBuf, Errno) {
    let path = path.to_owned();
    move |errno| (path, errno)
}

/// Moves into a root of what is granted, or stays where it is.
fn move_in(sandbox: &Sandbox, view: &View) -> Mounting<()> {
    let root = Path::new("/");
    mount(None::<&str>, root, None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(at(root))?;
    let mut clones = Vec::with_capacity(view.granted.len());
    for granted in view.places() {
        clones.push(clone(granted).map_err(at(granted.real()))?);
    }
    // The empty root lies over the plugin's own directory until it is the root.
    let own = &view.own;
    empty(own, "mode=755").map_err(at(own))?;
    let entered = furnish(sandbox, view, clones).and_then(|()| {
        chdir(own).map_err(at(own))?;
        pivot_root(".", ".").map_err(at(root))
    });
    if entered.is_err() {
        // What lies below it is needed again.
        let _ = umount2(own, MntFlags::MNT_DETACH);
    } else {
        umount2(".", MntFlags::MNT_DETACH).map_err(at(root))?;
    }
    chdir(own).map_err(at(own))?;
    entered
}

/// Puts all that is granted into the empty root.
fn furnish(sandbox: &Sandbox, view: &View, clones: Vec<OwnedFd>) -> Mounting<()> {
    let own = &view.own;
    for (granted, clone) in view.places().zip(clones) {
        place(granted, &clone, view).map_err(at(granted.real()))?;
    }
    for granted in view.granted.iter().filter(|granted| granted.named != granted.real()) {
        link(granted, own);
    }
    for hidden in sandbox.hide.iter().filter_map(|hidden| Path::new(hidden).canonicalize().ok()) {
        let inside = below(own, &hidden);
        if inside.is_dir() {
            empty(&inside, "mode=700,size=4k").map_err(at(&hidden))?;
        }
    }
    let root = fs::File::open(own).map_err(|error| at(own)(errno(&error)))?;
    restrict(&root.into(), false).map_err(at(own))
}

/// A detached copy of a granted tree, with no more rights than granted.
fn clone(granted: &Granted) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    // What was opened before belongs to the mounts that were left.
    let it = granted.place.again(granted.real()).map_err(of_rustix)?;
    let tree = open_tree(&it, "", flags).map_err(of_rustix)?;
    // What a device takes and gives is no matter of its mount; its mode, owner
    // and times, which are those of the whole machine, are.
    if !granted.write || granted.is_special() {
        restrict(&tree, true)?;
    }
    Ok(tree)
}

/// Makes a mount read-only, with all below it where that is wanted.
fn restrict(tree: &OwnedFd, recursive: bool) -> Result<(), Errno> {
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: a path that ends, and a structure of the size that is given; both
    // are only read.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(done).map(drop)
}

/// Mounts an empty file system.
fn empty(at: &Path, options: &str) -> Result<(), Errno> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some(options))
}

/// Puts a clone where it belongs in the new root. Something is made there only in
/// what is new itself, where nobody else is.
fn place(granted: &Granted, clone: &OwnedFd, view: &View) -> Result<(), Errno> {
    let root = &view.own;
    let target = below(root, granted.real());
    let spot = if view.lies_in_another(granted) {
        granted.place.again(&target).map_err(of_rustix)?
    } else {
        let made = if granted.is_directory() {
            fs::create_dir_all(&target)
        } else {
            fs::create_dir_all(target.parent().unwrap_or(root))
                .and_then(|()| fs::File::create(&target).map(drop))
        };
        made.map_err(|error| errno(&error))?;
        Place::find(&target).map_err(of_rustix)?.it
    };
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(clone, "", &spot, "", flags).map_err(of_rustix)
}

/// Lets a granted path be found under the name that it was granted by. Where it
/// cannot be made, it lies in something that is granted as a whole.
fn link(granted: &Granted, root: &Path) {
    let name = below(root, &granted.named);
    if name.symlink_metadata().is_err() {
        let _ = fs::create_dir_all(name.parent().unwrap_or(root));
        let _ = std::os::unix::fs::symlink(granted.real(), name);
    }
}

/// An absolute path in another root.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

fn of_rustix(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// Switches the loopback of a new network on.
fn raise_loopback() -> Result<(), Errno> {
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| errno(&error))?;
    // SAFETY: all zeros are a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed();
    request.ifr_name[1] = b'o'.cast_signed();
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    // SAFETY: the request names an interface and its flags, and lives for the
    // call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
        .map(drop)
}

/// Tries to find what is hidden, and a way out of the network.
pub(super) fn holds(sandbox: &Sandbox) -> Taken {
    for hidden in &sandbox.hide {
        if fs::read_dir(hidden).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(format!("{hidden} can be seen"));
        }
    }
    if has_network(sandbox) {
        // Nothing is sent: it is only asked whether there is a way, to a place
        // that nobody has.
        let way = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect("192.0.2.1:9"));
        if way.is_ok() {
            return Err("there is a way out of its network".into());
        }
        return Ok(String::new());
    }
    Ok("shares the network of this machine, as granted".into())
}
