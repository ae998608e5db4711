//! Starting a daemon that does not run.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use ksi_client::{Client, Error, Options};

use crate::fake::{Fake, within};

/// A program that stands for `ksi`.
fn script(directory: &tempfile::TempDir, text: &str) -> PathBuf {
    let file = directory.path().join("ksi");
    fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

#[tokio::test]
async fn a_daemon_that_does_not_run_is_started() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::bind();
    let socket = directory.path().join("ksid.sock");
    // The socket appears where the client expects it only when the program
    // runs with the right argument and environment.
    let program =
        script(&directory, &format!("test \"$1\" = start && mv {} \"$KSI_SOCKET\"", fake.socket().display()));
    let options = Options::new(&socket).auto_start(true).starter(program);
    let (client, mut peer) = tokio::join!(within(Client::connect(options)), fake.accept());
    peer.barrier(&client.unwrap()).await;
}

#[tokio::test]
async fn a_daemon_that_runs_is_not_started() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::bind();
    let ran = directory.path().join("ran");
    let program = script(&directory, &format!("touch {}", ran.display()));
    let (_client, _peer) = fake.connect_with(fake.options().auto_start(true).starter(program)).await;
    assert!(!ran.exists());
}

#[tokio::test]
async fn a_start_that_fails_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let options = || Options::new(directory.path().join("ksid.sock")).auto_start(true);
    let program = script(&directory, "echo 'ksi.toml:3: bad value' >&2; exit 2");
    let error = within(Client::connect(options().starter(program))).await.unwrap_err();
    assert!(matches!(error, Error::Start(_)), "{error}");
    assert!(error.to_string().contains("ksi.toml:3: bad value"), "{error}");

    let missing = directory.path().join("no-such-program");
    let error = within(Client::connect(options().starter(missing))).await.unwrap_err();
    assert!(error.to_string().contains("no-such-program cannot be run"), "{error}");
}

#[tokio::test]
async fn a_start_that_brings_no_daemon_is_not_awaited_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let program = script(&directory, "true");
    let options = Options::new(directory.path().join("ksid.sock"))
        .auto_start(true)
        .starter(program)
        .start_timeout(Duration::from_millis(200));
    let error = within(Client::connect(options)).await.unwrap_err();
    assert!(error.to_string().contains("no daemon answered"), "{error}");
}

#[tokio::test]
async fn a_daemon_that_keeps_its_starters_standard_error_is_not_awaited() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::bind();
    let held = directory.path().join("held");
    // The process in the background holds standard error until somebody opens
    // the pipe for writing.
    let program = script(
        &directory,
        &format!(
            "mkfifo {held}; (read line <{held}) & mv {socket} \"$KSI_SOCKET\"",
            held = held.display(),
            socket = fake.socket().display()
        ),
    );
    let options = Options::new(directory.path().join("ksid.sock")).auto_start(true).starter(program);
    let (client, mut peer) = tokio::join!(within(Client::connect(options)), fake.accept());
    peer.barrier(&client.unwrap()).await;
    let release = tokio::task::spawn_blocking(move || fs::OpenOptions::new().write(true).open(held));
    within(release).await.unwrap().unwrap();
}
