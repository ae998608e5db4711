//! What an operator has ordered that outlasts the daemon: which plugins are
//! quarantined, and whether all is frozen.
//!
//! One small file. It is written anew and put in place whole, and synced before
//! an order counts as given, so that neither a crash nor a power cut takes one
//! back.
//!
//! # Failure
//!
//! An order that cannot be written down is not given. A file that cannot be
//! understood keeps the daemon from starting: what it forbids is not known.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use ksi_protocol::{Code, Refusal};
use serde::{Deserialize, Serialize};

/// Why the orders are not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the orders in {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file is there and makes no sense.
    #[error("cannot understand the orders in {}: {error}\n  hint: it says what is quarantined and frozen; correct it, or remove it to let everything run", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: serde_json::Error,
    },
}

/// One order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Why, one sentence.
    pub reason: String,
    /// Since when, milliseconds since 1970.
    pub since_ms: u64,
}

/// The content of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Book {
    /// By name of the plugin.
    quarantined: BTreeMap<String, Order>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frozen: Option<Order>,
}

/// All orders that are in force.
#[derive(Debug)]
pub struct Orders {
    path: PathBuf,
    book: Mutex<Book>,
}

impl Orders {
    /// Reads the orders that were given before.
    ///
    /// # Errors
    ///
    /// Where there is a file that cannot be read or understood.
    pub fn open(path: PathBuf) -> Result<Self, Error> {
        let book = match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|error| Error::Damaged { path: path.clone(), error })?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Book::default(),
            Err(error) => return Err(Error::Read { path, error }),
        };
        Ok(Self { path, book: Mutex::new(book) })
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why a plugin is quarantined, where it is.
    #[must_use]
    pub fn quarantined(&self, plugin: &str) -> Option<Order> {
        self.lock().quarantined.get(plugin).cloned()
    }

    /// Quarantines a plugin. Waits for the disk.
    ///
    /// # Errors
    ///
    /// Where that cannot be written down; then it is not.
    pub fn quarantine(&self, plugin: &str, order: Order) -> io::Result<()> {
        self.change(|book| {
            book.quarantined.insert(plugin.to_owned(), order);
        })
    }

    /// Takes a quarantine back. Waits for the disk.
    ///
    /// # Errors
    ///
    /// Where that cannot be written down; then it stays.
    pub fn release(&self, plugin: &str) -> io::Result<()> {
        self.change(|book| {
            book.quarantined.remove(plugin);
        })
    }

    /// Why all is frozen, where it is.
    #[must_use]
    pub fn frozen(&self) -> Option<Order> {
        self.lock().frozen.clone()
    }

    /// Freezes, or with `None` ends that. Waits for the disk.
    ///
    /// # Errors
    ///
    /// Where that cannot be written down; then it is as it was.
    pub fn freeze(&self, order: Option<Order>) -> io::Result<()> {
        self.change(|book| book.frozen = order)
    }

    fn change(&self, change: impl FnOnce(&mut Book)) -> io::Result<()> {
        let mut book = self.lock();
        let mut changed = book.clone();
        change(&mut changed);
        if changed != *book {
            write(&self.path, &changed)?;
            *book = changed;
        }
        Ok(())
    }
}

/// Gives an order on a thread that may wait for the disk.
///
/// # Errors
///
/// `unavailable` where it cannot be written down.
pub async fn given(give: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), Refusal> {
    let why = match tokio::task::spawn_blocking(give).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    Err(Refusal::new(Code::Unavailable, format!("the order cannot be written down: {why}"))
        .hint("see to the disk; what was ordered may hold until the daemon ends, and no longer"))
}

/// Puts the file in place whole.
fn write(path: &Path, book: &Book) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut text = serde_json::to_vec_pretty(book)?;
    text.push(b'\n');
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(reason: &str) -> Order {
        Order { reason: reason.into(), since_ms: 1 }
    }

    #[test]
    fn an_order_is_there_again_after_a_restart_until_it_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("orders.json");
        let orders = Orders::open(path.clone()).unwrap();
        assert_eq!(orders.quarantined("a"), None);
        orders.quarantine("a", order("it lies")).unwrap();
        orders.quarantine("b", order("so does it")).unwrap();
        let orders = Orders::open(path.clone()).unwrap();
        assert_eq!(orders.quarantined("a"), Some(order("it lies")));
        orders.release("a").unwrap();
        orders.release("never").unwrap();
        let orders = Orders::open(path).unwrap();
        assert_eq!((orders.quarantined("a"), orders.quarantined("b")), (None, Some(order("so does it"))));
    }

    #[test]
    fn an_order_that_cannot_be_written_down_is_not_given() {
        let dir = tempfile::tempdir().unwrap();
        let orders = Orders::open(dir.path().join("nowhere/orders.json")).unwrap();
        assert!(orders.quarantine("a", order("it lies")).is_err());
        assert_eq!(orders.quarantined("a"), None);
    }

    #[test]
    fn a_file_that_makes_no_sense_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("orders.json");
        for text in ["", "{", "[1]", r#"{"quarantined":{"a":{"reason":1}}}"#, r#"{"else":1}"#] {
            fs::write(&path, text).unwrap();
            let error = Orders::open(path.clone()).unwrap_err().to_string();
            assert!(error.contains("orders.json"), "{error}");
        }
    }

    #[test]
    fn what_a_crash_left_half_written_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("orders.json");
        fs::write(path.with_extension("new"), "{\"quar").unwrap();
        let orders = Orders::open(path.clone()).unwrap();
        orders.quarantine("a", order("it lies")).unwrap();
        assert!(Orders::open(path).unwrap().quarantined("a").is_some());
    }
}
