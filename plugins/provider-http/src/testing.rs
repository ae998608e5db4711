//! A server for tests, on this machine and as badly behaved as a test wishes.
//!
//! It speaks just enough HTTP to be asked: each connection brings one request,
//! which is kept, and is answered by the next script, byte for byte. Scripts are
//! taken in the order of the connections; beyond the last one, connections are
//! refused.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use serde_json::Value;

/// How long a test waits for what must happen.
const DEADLINE: Duration = Duration::from_secs(30);
/// Requests and endings that may wait to be looked at.
const QUEUE: usize = 256;
/// Largest request that is read.
const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One thing that the server does.
#[derive(Debug, Clone)]
pub enum Act {
    /// Sends these bytes, in a packet of their own where the system plays along.
    Send(Vec<u8>),
    /// Sends these bytes again and again until the client has gone.
    Forever(Vec<u8>),
    /// Says nothing until the client has gone.
    Silence,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Method, path and headers, as they were sent.
    pub head: String,
    /// What was sent after them.
    pub body: Vec<u8>,
}

impl Asked {
    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// The body as JSON; null where it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// The server. It ends with its scripts, or when it is dropped.
#[derive(Debug)]
pub struct FakeServer {
    port: u16,
    asked: Receiver<Asked>,
    gone: Receiver<()>,
    /// The connection that is being answered.
    current: Arc<Mutex<Option<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeServer {
    /// Starts it on a port of its own.
    ///
    /// # Panics
    ///
    /// Where the system has no port or no thread.
    #[must_use]
    pub fn start(scripts: Vec<Vec<Act>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("this machine can talk to itself");
        let port = listener.local_addr().expect("it is bound").port();
        let (ask, asked) = sync_channel(QUEUE);
        let (go, gone) = sync_channel(QUEUE);
        let current = Arc::new(Mutex::new(None));
        let shared = current.clone();
        let thread = std::thread::Builder::new().name("fake server".into()).spawn(move || {
            for script in scripts {
                let Ok((stream, _)) = listener.accept() else { return };
                let copy = stream.try_clone().ok();
                *shared.lock().unwrap_or_else(PoisonError::into_inner) = copy;
                if serve(stream, script, &ask, &go).is_none() {
                    // The test has ended.
                    return;
                }
            }
        });
        Self { port, asked, gone, current, thread: Some(thread.expect("a thread can be started")) }
    }

    /// A server whose every answer is one script.
    #[must_use]
    pub fn answering(script: Vec<Act>) -> Self {
        Self::start(vec![script])
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The next request.
    ///
    /// # Panics
    ///
    /// Where none comes in time.
    #[must_use]
    pub fn asked(&self) -> Asked {
        self.asked.recv_timeout(DEADLINE).expect("the server was asked")
    }

    /// Whether there is a request that was not looked at.
    #[must_use]
    pub fn was_asked(&self) -> Option<Asked> {
        self.asked.try_recv().ok()
    }

    /// Waits until a client has gone that was kept waiting.
    ///
    /// # Panics
    ///
    /// Where it does not go in time.
    pub fn wait_until_gone(&self) {
        self.gone.recv_timeout(DEADLINE).expect("the client closed its connection");
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        if let Some(stream) = self.current.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It may have been closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        // One that waits for somebody is let go; nobody reads what it has heard.
        drop(std::mem::replace(&mut self.asked, sync_channel(1).1));
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            // A script that failed has shown in the test by now.
            let _ = thread.join();
        }
    }
}

/// Reads one request and answers it; `None` once nobody wants to know.
fn serve(
    mut stream: TcpStream,
    script: Vec<Act>,
    ask: &SyncSender<Asked>,
    go: &SyncSender<()>,
) -> Option<()> {
    // A client may go at any time; that is for the test to see.
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(DEADLINE));
    let Some(asked) = read(&mut stream) else { return Some(()) };
    ask.send(asked).ok()?;
    for act in script {
        match act {
            Act::Send(bytes) => {
                if stream.write_all(&bytes).and_then(|()| stream.flush()).is_err() {
                    break;
                }
            }
            Act::Forever(bytes) => {
                while stream.write_all(&bytes).is_ok() {}
                let _ = go.send(());
            }
            Act::Silence => {
                let mut byte = [0];
                // Until there is an end, orderly or not; a timeout is none.
                let ended = match stream.read(&mut byte) {
                    Ok(_) => true,
                    Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                };
                if ended {
                    let _ = go.send(());
                }
            }
        }
    }
    // The copy by which a test can end it must not keep it open.
    let _ = stream.shutdown(Shutdown::Both);
    Some(())
}

fn read(stream: &mut TcpStream) -> Option<Asked> {
    let mut read = Vec::new();
    let mut piece = [0; 4096];
    let head_end = loop {
        if let Some(at) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break at + 4;
        }
        match stream.read(&mut piece) {
            Ok(length) if length > 0 && read.len() < REQUEST_BYTES_MAX => {
                read.extend_from_slice(&piece[..length])
            }
            _ => return None,
        }
    };
    let mut body = read.split_off(head_end);
    let asked = Asked { head: String::from_utf8_lossy(&read).into_owned(), body: Vec::new() };
    let length = asked.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0_usize);
    while body.len() < length.min(REQUEST_BYTES_MAX) {
        match stream.read(&mut piece) {
            Ok(length) if length > 0 => body.extend_from_slice(&piece[..length]),
            _ => return None,
        }
    }
    Some(Asked { body, ..asked })
}

/// The head of an answer that ends with the connection.
#[must_use]
pub fn head(status: &str, content_type: &str) -> Act {
    head_with(status, content_type, "")
}

/// The same with more headers, each with its `\r\n`.
#[must_use]
pub fn head_with(status: &str, content_type: &str, more: &str) -> Act {
    let head =
        format!("HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\nconnection: close\r\n{more}\r\n");
    Act::Send(head.into_bytes())
}

/// The head of a stream of events in chunks: it is whole only with
/// [`last_chunk`].
#[must_use]
pub fn chunked_stream() -> Act {
    head_with("200 OK", "text/event-stream", "transfer-encoding: chunked\r\n")
}

/// A piece of such a stream.
#[must_use]
pub fn chunk(bytes: &[u8]) -> Act {
    Act::Send([format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat())
}

/// Its end.
#[must_use]
pub fn last_chunk() -> Act {
    Act::Send(b"0\r\n\r\n".to_vec())
}

/// A whole answer.
#[must_use]
pub fn answer(status: &str, content_type: &str, body: &str) -> Vec<Act> {
    answer_with(status, content_type, "", body)
}

/// The same with more headers, each with its `\r\n`.
#[must_use]
pub fn answer_with(status: &str, content_type: &str, more: &str, body: &str) -> Vec<Act> {
    let length = format!("content-length: {}\r\n{more}", body.len());
    vec![head_with(status, content_type, &length), Act::Send(body.as_bytes().to_vec())]
}
