//! Where a path leads, step by step, and held on to.
//!
//! Who may write somewhere can put a link there, and whoever follows it goes
//! where that one wants. So each step is taken from the directory of the step
//! before, and of every link it is known where it lay. What comes of it is a
//! descriptor: what is mounted and ruled on later is what was looked at.

use std::{
    cell::Cell,
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, openat, readlinkat},
    io::{Errno, Result},
};

/// Links that one path may lead through, as for the system.
const LINKS_MAX: usize = 40;

/// Which file it is, by whatever name: device and number.
pub(super) type Identity = (u64, u64);

/// A file or directory.
#[derive(Debug)]
pub(super) struct Place {
    /// It itself, neither read nor written by this.
    pub(super) it: OwnedFd,
    /// Its path without links.
    pub(super) real: PathBuf,
    pub(super) identity: Identity,
    pub(super) kind: FileType,
    /// The links through which it was found.
    links: Vec<Link>,
    /// Whether something else was there when it was looked for again.
    exchanged: Cell<bool>,
}

#[derive(Debug)]
struct Link {
    path: PathBuf,
    /// The directories in which it lies.
    within: Vec<Identity>,
}

struct Step {
    name: OsString,
    it: OwnedFd,
    identity: Identity,
    kind: FileType,
}

impl Step {
    fn to(directory: impl std::os::fd::AsFd, name: &OsStr) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // A directory that is asked for as one is mounted where that is done on
        // demand.
        let it = match openat(&directory, name, flags | OFlags::DIRECTORY, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => openat(&directory, name, flags, Mode::empty())?,
            other => other?,
        };
        let found = fstat(&it)?;
        let kind = FileType::from_raw_mode(found.st_mode);
        Ok(Self { name: name.into(), it, identity: (found.st_dev, found.st_ino), kind })
    }
}

impl Place {
    /// Follows an absolute path.
    pub(super) fn find(path: &Path) -> Result<Self> {
        if !path.is_absolute() {
            return Err(Errno::INVAL);
        }
        let mut links: Vec<Link> = Vec::new();
        let mut steps = vec![Step::to(CWD, OsStr::new("/"))?];
        let mut ahead = names(path);
        while let Some(name) = ahead.pop() {
            if name == ".." {
                // Above the root is the root.
                steps.truncate((steps.len() - 1).max(1));
                continue;
            }
            let step = Step::to(&steps.last().ok_or(Errno::NOENT)?.it, &name)?;
            if step.kind != FileType::Symlink {
                steps.push(step);
                continue;
            }
            if links.len() == LINKS_MAX {
                return Err(Errno::LOOP);
            }
            let within = steps.iter().map(|step| step.identity).collect();
            links.push(Link { path: path_of(&steps).join(&name), within });
            let target = PathBuf::from(OsString::from_vec(readlinkat(&step.it, "", [])?.into_bytes()));
            if target.is_absolute() {
                steps.truncate(1);
            }
            ahead.extend(names(&target));
        }
        let real = path_of(&steps);
        let Step { it, identity, kind, .. } = steps.pop().ok_or(Errno::NOENT)?;
        Ok(Self { it, real, identity, kind, links, exchanged: Cell::new(false) })
    }

    /// Finds it again, in another mount namespace or another root: by a path that
    /// leads through no links any more.
    pub(super) fn again(&self, path: &Path) -> Result<OwnedFd> {
        let found = Self::find(path)?;
        let same = found.links.is_empty() && found.identity == self.identity;
        self.exchanged.set(self.exchanged.get() || !same);
        if same { Ok(found.it) } else { Err(Errno::STALE) }
    }

    /// Whether something else was there when it was looked for again.
    pub(super) fn is_exchanged(&self) -> bool {
        self.exchanged.get()
    }

    /// The first link on the way that lies in one of these directories, however
    /// deep.
    pub(super) fn link_in(&self, roots: &BTreeSet<Identity>) -> Option<&Path> {
        let lies_there = |link: &&Link| link.within.iter().any(|directory| roots.contains(directory));
        self.links.iter().find(lies_there).map(|link| &*link.path)
    }
}

/// The directories that these paths mean. One that is found only through a link
/// in another of them is a plugin's word and no place: what that plugin may write
/// is known without it.
pub(super) fn roots(paths: &[String]) -> BTreeSet<Identity> {
    let mut places: Vec<_> = paths.iter().filter_map(|path| Place::find(Path::new(path)).ok()).collect();
    // What is planted has one link more than what it lies in, also where that is behind an operator's link.
    places.sort_by_key(|place| place.links.len());
    let mut roots = BTreeSet::new();
    for place in places {
        if place.link_in(&roots).is_none() {
            roots.insert(place.identity);
        }
    }
    roots
}

/// What a path names, the last first.
fn names(path: &Path) -> Vec<OsString> {
    let named = |part: Component<'_>| match part {
        Component::Normal(_) | Component::ParentDir => Some(part.as_os_str().to_owned()),
        _ => None,
    };
    path.components().rev().filter_map(named).collect()
}

fn path_of(steps: &[Step]) -> PathBuf {
    steps.iter().map(|step| &step.name).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, symlink},
    };

    use super::*;

    fn identity(path: &Path) -> Identity {
        let found = path.metadata().unwrap();
        (found.dev(), found.ino())
    }

    fn text(path: &Path) -> String {
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_path_leads_where_the_system_says_that_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/b/file"), "").unwrap();
        symlink("b/../b", at("a/relative")).unwrap();
        symlink(at("a/relative"), at("absolute")).unwrap();
        symlink("../../../../../../../../../..", at("a/up")).unwrap();
        for name in [".", "a/b", "a/b/file", "a/relative/file", "absolute/../b/file", "a/up", "a/../absolute"]
        {
            let place = Place::find(&at(name)).unwrap();
            assert_eq!(place.real, at(name).canonicalize().unwrap(), "{name}");
            assert_eq!(place.identity, identity(&at(name)), "{name}");
        }
        for path in ["/", "/..", "/proc/self", "/dev/null"] {
            let real = Path::new(path).canonicalize().unwrap();
            assert_eq!(Place::find(Path::new(path)).unwrap().real, real, "{path}");
        }
        symlink("round", at("round")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        for (name, errno) in
            [("round", Errno::LOOP), ("dangling", Errno::NOENT), ("a/b/file/x", Errno::NOTDIR)]
        {
            assert_eq!(Place::find(&at(name)).unwrap_err(), errno, "{name}");
        }
        assert_eq!(Place::find(Path::new("relative")).unwrap_err(), Errno::INVAL);
    }

    #[test]
    fn a_link_is_known_by_where_it_lies_and_not_by_where_it_leads() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["written/deep", "kept"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        symlink(at("kept"), at("written/deep/planted")).unwrap();
        symlink(at("written"), at("operators")).unwrap();
        symlink(at("operators/deep/planted"), at("through_both")).unwrap();
        let written = BTreeSet::from([identity(&at("written"))]);
        let link_in = |name| Place::find(&at(name)).unwrap().link_in(&written).map(Path::to_owned);
        let planted = at("written/deep/planted").parent().unwrap().canonicalize().unwrap().join("planted");
        for name in ["written/deep/planted", "operators/deep/planted", "through_both"] {
            assert_eq!(link_in(name).as_ref(), Some(&planted), "{name}");
        }
        for name in ["operators/deep", "operators", "written/deep", "kept"] {
            assert_eq!(link_in(name), None, "{name}");
        }
    }

    #[test]
    fn what_is_exchanged_is_not_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("here")).unwrap();
        let place = Place::find(&at("here")).unwrap();
        assert!(place.again(&place.real).is_ok());
        fs::rename(at("here"), at("there")).unwrap();
        symlink("there", at("here")).unwrap();
        assert!(!place.is_exchanged());
        assert_eq!(place.again(&place.real).unwrap_err(), Errno::STALE, "it is there, behind a link");
        assert!(place.is_exchanged());
        fs::remove_file(at("here")).unwrap();
        fs::create_dir(at("here")).unwrap();
        assert_eq!(place.again(&place.real).unwrap_err(), Errno::STALE, "it is another one");
    }

    #[test]
    fn no_plugin_makes_a_root_of_what_it_links_to() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["written", "linked", "kept"] {
            fs::create_dir(at(name)).unwrap();
        }
        symlink("/", at("written/planted")).unwrap();
        symlink(at("linked"), at("operators")).unwrap();
        let paths = ["written/planted", "written", "operators", "nowhere"].map(|name| text(&at(name)));
        let expected = BTreeSet::from([identity(&at("written")), identity(&at("linked"))]);
        assert_eq!(roots(&paths), expected);
    }
}
