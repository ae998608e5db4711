//! Who is on the other end: a server whose certificate nobody vouches for is
//! told nothing, one that the operator trusts is.
#![expect(clippy::unwrap_used, reason = "tests, with functions of their own")]

use std::{
    io::{Read, Write},
    net::TcpListener,
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
};

use ksi_provider::Failure;
use ksi_provider_http::{Client, Limits, Server, Timeouts, Worker};
use ksi_sdk::{Secret, prelude::Refusal};
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};
use tempfile::NamedTempFile;

/// A server with a certificate of its own, which answers one request; what it
/// was told, and its certificate.
fn server() -> (u16, JoinHandle<String>, String) {
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let pem = own.cert.pem();
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), stream);
        let mut told = Vec::new();
        let mut piece = [0; 1024];
        while !told.ends_with(b"\r\n\r\n") {
            match stream.read(&mut piece) {
                Ok(length) if length > 0 => told.extend_from_slice(&piece[..length]),
                _ => return String::from_utf8(told).unwrap(),
            }
        }
        let answer =
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 8\r\n\r\n{\"x\": 1}";
        stream.write_all(answer.as_bytes()).unwrap();
        stream.conn.send_close_notify();
        stream.flush().unwrap();
        String::from_utf8(told).unwrap()
    });
    (port, thread, pem)
}

fn client(port: u16, ca_file: Option<PathBuf>) -> Result<Client, Refusal> {
    Client::new(&Server {
        plugin: "test",
        base_url: format!("https://localhost:{port}/v1/"),
        key: Some(("authorization", Secret::from("Bearer sk-test-0123456789".to_owned()))),
        headers: Vec::new(),
        timeouts: Timeouts::default(),
        limits: Limits::default(),
        proxy: None,
        allow_http: false,
        ca_file,
    })
}

fn get(client: Client) -> Result<serde_json::Value, Refusal> {
    let worker = Worker::start("test")?;
    futures_executor::block_on(worker.run(async move { client.get("/models").await }))
}

#[test]
fn a_server_that_nobody_vouches_for_is_told_nothing() {
    let (port, told, _) = server();
    match client(port, None) {
        Ok(client) => {
            let refusal = get(client).unwrap_err();
            assert_eq!((Failure::of(&refusal), refusal.retryable), (Some(Failure::Unreachable), false));
            assert!(refusal.hint.contains("ca_file"), "{refusal:?}");
        }
        // A machine without any certificates trusts nobody at all.
        Err(refusal) => {
            assert!(refusal.hint.contains("certificates"), "{refusal:?}");
            drop(std::net::TcpStream::connect(("127.0.0.1", port)).unwrap());
        }
    }
    assert_eq!(told.join().unwrap(), "");
}

#[test]
fn a_server_that_the_operator_trusts_is_asked() {
    let (port, told, pem) = server();
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(pem.as_bytes()).unwrap();
    let answer = get(client(port, Some(file.path().to_owned())).unwrap());
    assert_eq!(answer.unwrap()["x"], 1);
    let told = told.join().unwrap();
    assert!(told.starts_with("GET /v1/models HTTP/1.1\r\n"), "{told}");
    assert!(told.contains("authorization: Bearer sk-test-0123456789\r\n"), "{told}");
}

#[test]
fn what_holds_no_certificates_is_refused() {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(b"nothing of the kind").unwrap();
    for file in [PathBuf::from("/no/such/file"), file.path().to_owned()] {
        let refusal = client(443, Some(file)).unwrap_err();
        assert_eq!(refusal.details.unwrap()["path"], "ca_file");
        assert!(refusal.hint.contains("sandbox.read"), "{}", refusal.hint);
    }
}
