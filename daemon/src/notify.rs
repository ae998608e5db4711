//! Tells the service manager how the daemon fares: ready, reloading, stopping,
//! alive.
//!
//! Without a service manager (`NOTIFY_SOCKET` is not set) every function does
//! nothing. A message that cannot be sent is logged and forgotten: the daemon
//! serves its clients whether its manager listens or not.

use std::time::Duration;

use sd_notify::NotifyState;

/// The daemon serves. Also ends a reload.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// What the daemon is doing: one line, for `systemctl status`.
pub fn status(status: &str) {
    // A line break would begin another message.
    send(&[NotifyState::Status(&status.replace(['\n', '\r'], " "))]);
}

/// The configuration is read again; [`ready`] must follow, whether that
/// succeeds or not.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        // The manager fails a reload that has no time.
        Err(error) => {
            tracing::warn!(%error, "no monotonic clock, so the service manager is not told of the reload")
        }
    }
}

/// The daemon takes no new work and drains.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// The daemon is alive; to be sent every [`watchdog_interval`], by what would
/// stop if the daemon did.
pub fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// How often [`alive`] is due: half of what the manager allows. `None` where
/// it does not ask.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|allowed| allowed / 2).filter(|interval| !interval.is_zero())
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixDatagram, process::Command};

    use super::*;

    /// Set in the process that plays the daemon: the environment of this one
    /// cannot be changed safely.
    const ROLE: &str = "KSI_TEST_NOTIFIES";

    fn again(name: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &format!("notify::tests::{name}"), "--nocapture"]).env(ROLE, "1");
        command
    }

    #[test]
    fn the_manager_hears_of_every_state() {
        if std::env::var_os(ROLE).is_some() {
            status("loading\nREADY=1");
            ready();
            reloading();
            alive();
            stopping();
            assert_eq!(watchdog_interval(), Some(Duration::from_secs(15)));
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let output = again("the_manager_hears_of_every_state")
            .env("NOTIFY_SOCKET", dir.path().join("notify"))
            .env("WATCHDOG_USEC", "30000000")
            .env_remove("WATCHDOG_PID")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let hear = || {
            let mut bytes = [0; 512];
            let length = manager.recv(&mut bytes).unwrap();
            String::from_utf8(bytes[..length].to_vec()).unwrap()
        };
        assert_eq!(hear(), "STATUS=loading READY=1\n");
        assert_eq!(hear(), "READY=1\n");
        let reload = hear();
        assert!(reload.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reload}");
        assert_eq!(hear(), "WATCHDOG=1\n");
        assert_eq!(hear(), "STOPPING=1\n");
    }

    #[test]
    fn without_a_manager_or_with_one_that_is_gone_nothing_happens() {
        if std::env::var_os(ROLE).is_some() {
            ready();
            assert_eq!(watchdog_interval(), None);
            return;
        }
        let name = "without_a_manager_or_with_one_that_is_gone_nothing_happens";
        for socket in [None, Some("/nonexistent/notify")] {
            let mut command = again(name);
            command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC");
            if let Some(socket) = socket {
                command.env("NOTIFY_SOCKET", socket);
            }
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
    }
}
