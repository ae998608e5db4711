//! The client: what a program calls.

use std::{future::Future, path::Path, pin::Pin, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use ksi_protocol::{
    EventName, Frame, Pattern,
    frame::{self, Class, Id, Subscribe, Welcome},
    work::Accepted,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    CallOptions, Error, FollowOptions, Follower, Options, Outcome, Stream, Subscription,
    connection::{self, Core, Handle},
    lock,
    options::millis,
    pending::{Answered, Open, Request, Subscribed},
    stream::Queue,
    subscription::{announce, ring::Ring},
};

/// By how much the client's own limit comes after the daemon's: time for the
/// daemon's `timeout` refusal, which says more, to arrive.
pub(crate) const GUARD: Duration = Duration::from_millis(500);

/// A connection to the daemon. Cheap to clone; all clones share it. It is
/// closed when the last clone, stream and subscription is dropped.
///
/// Needs a tokio runtime with I/O and time.
#[derive(Debug, Clone)]
pub struct Client {
    handle: Arc<Handle>,
}

/// The payload without fields: what an event that needs nothing takes. As the
/// type of an answer it stands for "whatever it says".
///
/// ```
/// # use ksi_client::{Client, Empty, Error, Options, testing::Echo};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// # let daemon = Echo::start()?;
/// # let client = Client::connect(Options::new(daemon.socket())).await?;
/// let Empty {} = client.request("echo:say", &Empty {}).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// What the daemon answers to an `emit` with an id.
#[derive(Deserialize)]
struct Delivered {
    delivered: u64,
}

impl Client {
    /// Connects, and exchanges `hello` and `welcome`.
    ///
    /// ```
    /// # use ksi_client::{Client, Error, Options};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let options = Options::new("/nowhere/ksid.sock").name("my-tool 1.0");
    /// match Client::connect(options).await {
    ///     Err(Error::NotRunning { socket }) => assert_eq!(socket.as_os_str(), "/nowhere/ksid.sock"),
    ///     other => panic!("there is no such daemon, but: {other:?}"),
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`], [`Error::PathTooLong`], [`Error::NotASocket`] or
    /// [`Error::Connect`] when nobody can be reached, [`Error::Start`] when a
    /// daemon should be started and could not, [`Error::Version`] when it
    /// speaks another version, [`Error::Protocol`] when it is no KSI daemon,
    /// [`Error::Refused`] when it takes no more clients,
    /// [`Error::TimedOut`] when it does not answer.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        let handle = Box::pin(connection::open(options)).await?;
        Ok(Self { handle: Arc::new(handle) })
    }

    /// Asks, and waits for the answer. Dropping the future cancels the request
    /// in the daemon. Of an event that streams, the answer is its summary; of
    /// one that is durable it is an [`Accepted`], see [`Client::submit`].
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when the daemon says no, [`Error::Decode`] when the
    /// answer is not an `R`, [`Error::Lost`] when the connection breaks.
    pub async fn request<T, R>(&self, event: &str, payload: &T) -> Result<R, Error>
    where
        T: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        self.request_with(event, payload, CallOptions::default()).await
    }

    /// The same, with options.
    ///
    /// ```
    /// # use std::{collections::HashMap, time::Duration};
    /// # use ksi_client::{CallOptions, Client, Error, Options, testing::Echo};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # let daemon = Echo::start()?;
    /// # let client = Client::connect(Options::new(daemon.socket())).await?;
    /// let options = CallOptions {
    ///     timeout: Some(Duration::from_secs(2)),
    ///     idempotency_key: Some("greeting-1".into()),
    ///     ..CallOptions::default()
    /// };
    /// let say = HashMap::from([("text", "hello")]);
    /// let said: HashMap<String, String> = client.request_with("echo:say", &say, options).await?;
    /// assert_eq!(said["text"], "hello");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Client::request`], and [`Error::TimedOut`] when neither an answer
    /// nor the daemon's `timeout` refusal comes in time.
    pub async fn request_with<T, R>(&self, event: &str, payload: &T, options: CallOptions) -> Result<R, Error>
    where
        T: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let data = encode(event, payload)?;
        let answer = self.request_raw(event, data, options).await?;
        decode(event, &answer)
    }

    /// The same with payloads that are MessagePack already. The answer is a
    /// slice of the buffer that it arrived in.
    ///
    /// # Errors
    ///
    /// As [`Client::request_with`].
    pub async fn request_raw(&self, event: &str, data: Bytes, options: CallOptions) -> Result<Bytes, Error> {
        match self.call(event, data, options).await? {
            Answered::Reply(data) => Ok(data),
            Answered::Accepted(accepted) => encode(event, &accepted),
        }
    }

    pub(crate) async fn call(
        &self,
        event: &str,
        data: Bytes,
        options: CallOptions,
    ) -> Result<Answered, Error> {
        let name = EventName::parse(event)?;
        let timeout = options.timeout.or(self.core().options.timeout);
        self.ask(timeout, |id| request_frame(id, name, data, options, timeout)).await
    }

    /// Hands durable work to the daemon. When this returns, the work is written
    /// down and synced: it ends as done or failed even if the daemon is killed
    /// now, and [`Client::wait`] gives its result, on any connection. Two
    /// requests with one `key` are one request; with a key of its own a request
    /// that ended with [`Error::Lost`] can be submitted again.
    ///
    /// ```
    /// # use std::{collections::HashMap, time::Duration};
    /// # use ksi_client::{Client, Error, Options, testing::Echo};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # let daemon = Echo::start()?;
    /// # let client = Client::connect(Options::new(daemon.socket())).await?;
    /// let text = HashMap::from([("text", "hello")]);
    /// let accepted = client.submit("echo:keep", &text, Some("greeting-1")).await?;
    /// let outcome = client.wait(&accepted.request_id, Some(Duration::from_secs(5))).await?;
    /// let said: HashMap<String, String> = outcome.decode()?;
    /// assert_eq!(said["text"], "hello");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Client::request`]; [`Error::NotDurable`] where the event is
    /// answered at once.
    pub async fn submit<T: Serialize + ?Sized>(
        &self,
        event: &str,
        payload: &T,
        key: Option<&str>,
    ) -> Result<Accepted, Error> {
        let options = CallOptions { idempotency_key: key.map(str::to_owned), ..CallOptions::default() };
        self.submit_raw(event, encode(event, payload)?, options).await
    }

    /// The same with options, and a payload that is MessagePack already.
    ///
    /// # Errors
    ///
    /// As [`Client::submit`].
    pub async fn submit_raw(
        &self,
        event: &str,
        data: Bytes,
        options: CallOptions,
    ) -> Result<Accepted, Error> {
        match self.call(event, data, options).await? {
            Answered::Accepted(accepted) => Ok(accepted),
            Answered::Reply(_) => Err(Error::NotDurable { event: event.to_owned() }),
        }
    }

    /// Waits until durable work has ended, for `timeout` or without a limit.
    /// Where the connection is lost meanwhile, this asks again on the next one:
    /// to wait changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] when the time is over, [`Error::Refused`] where no
    /// such work is known, and as [`Client::request`] where the daemon stays
    /// away. Work that has failed is no error here: see [`Outcome::decode`].
    pub async fn wait(&self, request_id: &str, timeout: Option<Duration>) -> Result<Outcome, Error> {
        crate::work::wait(self, request_id, timeout).await
    }

    /// Sends the frame that `frame` makes for a new request, and waits for its
    /// answer.
    async fn ask(
        &self,
        timeout: Option<Duration>,
        frame: impl FnOnce(Id) -> Frame,
    ) -> Result<Answered, Error> {
        let core = self.core();
        core.ready().await?;
        let id = lock(&core.pending).insert(Open::Request(Request::default()))?;
        let answer = Answer { core, id, done: false };
        if let Err(error) = core.output.send(&frame(id)) {
            answer.withdraw();
            return Err(error);
        }
        match timeout {
            None => answer.await,
            Some(after) => {
                tokio::time::timeout(after + GUARD, answer).await.unwrap_or(Err(Error::TimedOut { after }))
            }
        }
    }

    /// Asks for a streamed answer. Returns once the request is sent; a refusal
    /// comes as the first item. See [`Stream`] for an example.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] or [`Error::NotRunning`] without a connection; what
    /// concerns only this request comes through the stream.
    pub async fn stream<T: Serialize + ?Sized>(
        &self,
        event: &str,
        payload: &T,
        options: CallOptions,
    ) -> Result<Stream, Error> {
        self.stream_raw(event, encode(event, payload)?, options).await
    }

    /// The same with a payload that is MessagePack already.
    ///
    /// # Errors
    ///
    /// As [`Client::stream`].
    pub async fn stream_raw(&self, event: &str, data: Bytes, options: CallOptions) -> Result<Stream, Error> {
        let name = EventName::parse(event)?;
        let core = self.core();
        core.ready().await?;
        let queue = Arc::new(Queue::default());
        let open = Open::Stream { queue: Arc::clone(&queue) };
        let id = lock(&core.pending).insert(open)?;
        let timeout = options.timeout.or(core.options.timeout);
        let window = options.credit;
        if let Err(error) = core.output.send(&request_frame(id, name, data, options, timeout)) {
            lock(&core.pending).remove(id);
            return Err(error);
        }
        let deadline = timeout.map(|after| (Box::pin(tokio::time::sleep(after + GUARD)), after));
        Ok(Stream::new(Arc::clone(&self.handle), id, queue, window, deadline))
    }

    /// Tells whoever listens. Returns when the event is on its way, not when it
    /// was heard; waits only where the daemon does not keep up.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] or [`Error::NotRunning`] without a connection,
    /// [`Error::Name`], [`Error::Encode`] or [`Error::TooLarge`] where there is
    /// nothing to send. What the daemon thinks of it is not known: for that,
    /// see [`Client::emit_counted`].
    pub async fn emit<T: Serialize + ?Sized>(&self, event: &str, payload: &T) -> Result<(), Error> {
        self.emit_raw(event, encode(event, payload)?).await
    }

    /// The same with a payload that is MessagePack already.
    ///
    /// # Errors
    ///
    /// As [`Client::emit`].
    pub async fn emit_raw(&self, event: &str, data: Bytes) -> Result<(), Error> {
        let event = EventName::parse(event)?;
        let emit = frame::Emit::new(event, data);
        self.core().send(&Frame::Emit(emit)).await
    }

    /// Tells whoever listens, and returns how many were told.
    ///
    /// # Errors
    ///
    /// As [`Client::request`].
    pub async fn emit_counted<T: Serialize + ?Sized>(&self, event: &str, payload: &T) -> Result<u64, Error> {
        let name = EventName::parse(event)?;
        let data = encode(event, payload)?;
        let timeout = self.core().options.timeout;
        let emit = |id| Frame::Emit(frame::Emit { id: Some(id), ..frame::Emit::new(name, data) });
        match self.ask(timeout, emit).await? {
            Answered::Reply(data) => decode(event, &data).map(|Delivered { delivered }| delivered),
            Answered::Accepted(_) => Err(Error::unexpected("`accepted` for an emit")),
        }
    }

    /// Listens to the events that match `pattern`: `*` is one segment, `**` any
    /// number of them, a lone `*` everything. Returns when the daemon has
    /// confirmed it: all that is emitted from then on is heard.
    ///
    /// One of [`Class::Durable`] loses nothing as long as its connection lives,
    /// and ends with it; [`Client::follow`] goes on after that.
    ///
    /// ```
    /// # use std::collections::HashMap;
    /// # use ksi_client::{Class, Client, Error, Item, Options, testing::Echo};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # let daemon = Echo::start()?;
    /// # let client = Client::connect(Options::new(daemon.socket())).await?;
    /// let mut heard = client.subscribe("agent:*", Class::Live).await?;
    /// let told = client.emit_counted("agent:spawned", &HashMap::from([("name", "ada")])).await?;
    /// assert_eq!(told, 1);
    /// let Some(Item::Event(event)) = heard.next().await else { panic!("an event was emitted") };
    /// assert_eq!(event.event.as_str(), "agent:spawned");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Name`] when it is no pattern, [`Error::Refused`] when the
    /// daemon refuses it, [`Error::Lost`] when the connection breaks.
    pub async fn subscribe(&self, pattern: &str, class: Class) -> Result<Subscription, Error> {
        let wish = Subscribe::new(0, Pattern::parse(pattern)?, class);
        let window = u32::try_from(self.core().options.event_queue).unwrap_or(u32::MAX);
        let credit = (class == Class::Durable).then_some(window);
        self.listen(Subscribe { credit, ..wish }).await
    }

    /// Follows the durable facts that match `pattern`: from a position in the
    /// journal, from where a consumer has left off, or from now on. Nothing is
    /// lost and nothing comes twice, however often the connection is lost or
    /// the daemon restarted. See [`Follower`] for an example.
    ///
    /// # Errors
    ///
    /// As [`Client::subscribe`].
    pub async fn follow(&self, pattern: &str, options: FollowOptions) -> Result<Follower, Error> {
        Follower::start(self.clone(), Pattern::parse(pattern)?, options).await
    }

    /// Asks for a subscription and waits for the daemon's word on it.
    pub(crate) async fn listen(&self, wish: Subscribe) -> Result<Subscription, Error> {
        let core = self.core();
        let window = wish.credit;
        let ring = Arc::new(Ring::new(wish.class, core.options.event_queue));
        let subscribed = Subscribed { wish, ring: Arc::clone(&ring), told: 0, confirmed: None, waker: None };
        let id = lock(&core.pending).insert(Open::Subscription(Box::new(subscribed)))?;
        // From here on, dropping it takes back what was done.
        let subscription = Subscription::new(Arc::clone(&self.handle), id, ring, window);
        announce(&self.handle, id).await?;
        match core.options.timeout {
            None => subscription.confirmed().await?,
            Some(after) => tokio::time::timeout(after + GUARD, subscription.confirmed())
                .await
                .unwrap_or(Err(Error::TimedOut { after }))?,
        }
        Ok(subscription)
    }

    /// What the daemon said of itself when it was connected to last.
    #[must_use]
    pub fn welcome(&self) -> Welcome {
        self.core().welcome().as_ref().clone()
    }

    /// Whether there is a connection now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.core().output.is_up()
    }

    /// Waits until there is a connection, or with `false` until there is none: for who
    /// tells a person why nothing happens. Without [`crate::Options::reconnect`] none
    /// comes after the first.
    pub async fn until_connected(&self, connected: bool) {
        self.core().output.until(connected).await;
    }

    /// The daemon's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.core().options.socket()
    }

    /// Closes the connection, for all clones: writes what waits, ends requests
    /// and subscriptions with [`Error::Closed`], and returns when the daemon has
    /// closed its side too. A client that is merely dropped does the same in the
    /// background, for which a program that ends may leave no time.
    pub async fn close(&self) {
        self.core().close().await;
    }

    pub(crate) fn core(&self) -> &Core {
        &self.handle.core
    }

    /// Asks without waiting for the answer; whether it was sent.
    pub(crate) fn tell(&self, event: EventName, data: Bytes) -> bool {
        let core = self.core();
        let Ok(id) = lock(&core.pending).insert(Open::Request(Request::default())) else { return false };
        let sent = core.output.send(&Frame::Request(frame::Request::new(id, event, data))).is_ok();
        // The answer will meet nobody, for the id is not given again.
        lock(&core.pending).remove(id);
        sent
    }
}

pub(crate) fn encode<T: Serialize + ?Sized>(event: &str, payload: &T) -> Result<Bytes, Error> {
    ksi_protocol::encode(payload)
        .map_err(|error| Error::Encode { event: event.to_owned(), source: Arc::new(error) })
}

pub(crate) fn decode<R: DeserializeOwned>(event: &str, answer: &[u8]) -> Result<R, Error> {
    ksi_protocol::decode(answer)
        .map_err(|refusal| Error::Decode { event: event.to_owned(), reason: refusal.message })
}

fn request_frame(
    id: Id,
    event: EventName,
    data: Bytes,
    options: CallOptions,
    timeout: Option<Duration>,
) -> Frame {
    Frame::Request(frame::Request {
        timeout_ms: timeout.map(|timeout| millis(timeout).max(1)),
        credit: options.credit,
        correlation_id: options.correlation_id,
        idempotency_key: options.idempotency_key,
        expires_in_ms: options.expires_in.map(millis),
        ..frame::Request::new(id, event, data)
    })
}

/// Waits for the answer to one request; dropped before, cancels it.
struct Answer<'a> {
    core: &'a Core,
    id: Id,
    done: bool,
}

impl Answer<'_> {
    /// The request was not sent after all.
    fn withdraw(mut self) {
        self.done = true;
        lock(&self.core.pending).remove(self.id);
    }
}

impl Future for Answer<'_> {
    type Output = Result<Answered, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        let (answer, old) = lock(&self.core.pending).poll_answer(self.id, cx);
        drop(old);
        self.done = answer.is_ready();
        answer
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.core.give_up(self.id);
        }
    }
}
