//! A scripted daemon. It does nothing by itself: each test says what it reads
//! and sends.

use std::{future::Future, path::PathBuf, time::Duration};

use bytes::{Bytes, BytesMut};
use ksi_client::{Class, Client, Options, Subscription};
use ksi_protocol::{
    EventName, Frame, PROTOCOL_VERSION,
    frame::{Event, Id, Request, Subscribe, Welcome},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

/// Waits for what must happen, but not for ever.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it happens in time")
}

/// A text as a payload.
pub(crate) fn text(text: &str) -> Bytes {
    ksi_protocol::encode(text).unwrap()
}

/// The listening socket.
pub(crate) struct Fake {
    directory: tempfile::TempDir,
    listener: Option<UnixListener>,
    /// What `welcome` says.
    pub(crate) boot: String,
}

impl Fake {
    pub(crate) fn bind() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("ksid.sock")).unwrap();
        Self { directory, listener: Some(listener), boot: "first".into() }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("ksid.sock")
    }

    /// Without a second connection, which the test would have to expect.
    pub(crate) fn options(&self) -> Options {
        Options::new(self.socket()).reconnect(false)
    }

    /// Listens no more; the socket file goes.
    pub(crate) fn stop(&mut self) {
        self.listener = None;
        std::fs::remove_file(self.socket()).unwrap();
    }

    /// Listens again.
    pub(crate) fn restart(&mut self) {
        self.listener = Some(UnixListener::bind(self.socket()).unwrap());
    }

    /// A connection on which nothing was said yet.
    pub(crate) async fn accept_silent(&self) -> Peer {
        let listener = self.listener.as_ref().unwrap();
        let (stream, _) = within(listener.accept()).await.unwrap();
        Peer { stream, buffer: BytesMut::new() }
    }

    pub(crate) fn welcome(&self) -> Frame {
        Frame::Welcome(Welcome {
            version: PROTOCOL_VERSION,
            server: "fake 1.0".into(),
            features: Vec::new(),
            session: "session:1".into(),
            boot: self.boot.clone(),
        })
    }

    /// A connection that was greeted.
    pub(crate) async fn accept(&self) -> Peer {
        let mut peer = self.accept_silent().await;
        let hello = peer.next().await;
        assert!(matches!(hello, Frame::Hello(_)), "{hello:?}");
        peer.send(&self.welcome()).await;
        peer
    }

    /// A client and the daemon's end of its connection.
    pub(crate) async fn connect(&self) -> (Client, Peer) {
        self.connect_with(self.options()).await
    }

    pub(crate) async fn connect_with(&self, options: Options) -> (Client, Peer) {
        let (client, peer) = tokio::join!(within(Client::connect(options)), self.accept());
        (client.unwrap(), peer)
    }
}

/// The daemon's end of a connection.
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
    buffer: BytesMut,
}

impl Peer {
    /// The next frame, or `None` where the client has closed its side.
    pub(crate) async fn read(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = Frame::split(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            if within(self.stream.read_buf(&mut self.buffer)).await.unwrap() == 0 {
                assert!(self.buffer.is_empty(), "the client sends whole frames");
                return None;
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Frame {
        self.read().await.expect("another frame")
    }

    pub(crate) async fn request(&mut self) -> Request {
        match self.next().await {
            Frame::Request(request) => request,
            other => panic!("a request should come, not {other:?}"),
        }
    }

    pub(crate) async fn subscribe(&mut self) -> Subscribe {
        match self.next().await {
            Frame::Subscribe(subscribe) => subscribe,
            other => panic!("a subscription should come, not {other:?}"),
        }
    }

    /// The id that is cancelled next.
    pub(crate) async fn cancelled(&mut self) -> Id {
        match self.next().await {
            Frame::Cancel { id } => id,
            other => panic!("a cancel should come, not {other:?}"),
        }
    }

    pub(crate) async fn send(&mut self, frame: &Frame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes).unwrap();
        self.send_bytes(&bytes).await;
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        within(self.stream.write_all(bytes)).await.unwrap();
    }

    pub(crate) async fn reply(&mut self, id: Id, data: Bytes) {
        self.send(&Frame::Reply { id, data }).await;
    }

    /// Answers requests with their own payload until the client goes.
    pub(crate) async fn echo(mut self) {
        while let Some(frame) = self.read().await {
            if let Frame::Request(request) = frame {
                self.reply(request.id, request.data).await;
            }
        }
    }

    /// Waits until the client has read all that was sent before: asks for
    /// nothing, answers one request of the client.
    pub(crate) async fn barrier(&mut self, client: &Client) {
        let asked = client.request::<_, String>("test:barrier", "here");
        let answer = async {
            let request = self.request().await;
            self.reply(request.id, request.data).await;
        };
        let (here, ()) = tokio::join!(within(asked), answer);
        assert_eq!(here.unwrap(), "here");
    }
}

/// A confirmed subscription and its id.
pub(crate) async fn subscribed(
    client: &Client,
    peer: &mut Peer,
    pattern: &str,
    class: Class,
) -> (Subscription, Id) {
    let confirm = async {
        let id = peer.subscribe().await.id;
        peer.reply(id, ksi_protocol::empty()).await;
        id
    };
    let (subscription, id) = tokio::join!(within(client.subscribe(pattern, class)), confirm);
    (subscription.unwrap(), id)
}

/// An event frame.
pub(crate) fn event(sub: Id, seq: u64, name: &str) -> Event {
    Event {
        sub,
        seq,
        event: EventName::parse(name).unwrap(),
        data: text("facts"),
        origin: "session:9".into(),
        at_ms: 1_700_000_000_000 + seq,
        correlation_id: seq.is_multiple_of(2).then(|| format!("cause-{seq}")),
        tenant: None,
        chain: None,
    }
}
