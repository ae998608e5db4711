//! The reading side of one session: it runs until its client is gone, and serves what
//! was read, in batches. How that is cut and parsed is in `lines` and `frames`, what
//! comes of it in `verbs` and `subscriptions`.

mod frames;
mod lines;
mod subscriptions;
mod verbs;

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::BytesMut;
use ksi_identity::Principal;
use ksi_protocol::{Code, Refusal, limits, token::Token};
use tokio::{net::UnixStream, runtime, time::Instant};

use self::subscriptions::keep_up;
use super::{
    Sessions,
    account::Connection,
    face::{Face, Lines},
    greeting,
    outbox::Outbox,
    socket::{READ_BYTES, first_byte, foreign, gone, hear_out, hung_up, read},
    unfinished::Unfinished,
};
use crate::{
    hub::{Handle, Hub, Port},
    wire::{Flushed, write_when_full},
};

/// Time that a client may take to read what it was told before the daemon
/// ended.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// Input beyond which its buffer is not kept.
const LARGE_BYTES: usize = 4 * READ_BYTES;

/// Lines or frames of one turn where other users are connected, too: so few
/// that another's request waits behind them for no longer than it takes itself.
const TURN_MAX: usize = 32;

/// How a session goes on after a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Read,
    /// There is more in what was read, and others are to have a turn first.
    Yield,
    /// The peer broke the framing: what was said to it is written, then it is
    /// cut off.
    Close,
}

/// Serves one client until it is gone, or the daemon closes.
pub(super) async fn run(
    sessions: &Arc<Sessions>,
    stream: UnixStream,
    number: u64,
    principal: Arc<Principal>,
    connection: Connection,
) {
    let greeting = Instant::now() + sessions.limits.handshake_timeout;
    let mut input = BytesMut::new();
    let first = first_byte(&stream, &mut input);
    let first = tokio::select! {
        first = tokio::time::timeout_at(greeting, first) => first.ok().flatten(),
        () = sessions.closing.cancelled() => None,
    };
    let Some(first) = first else { return };
    let json = match first {
        0 => false,
        b'{' => true,
        _ => return foreign(&stream, first).await,
    };
    let token = tokio::select! {
        token = tokio::time::timeout_at(greeting, greeting::token(&stream, &mut input, json)) => token,
        () = sessions.closing.cancelled() => Ok(None),
    };
    let Ok(token) = token else { return };
    let mut client = Client { number, user: principal, shown: None, connection, greeting, input, json };
    let here = runtime::Handle::current();
    let mut threads = here.clone();
    match token.map(|token| sessions.of_token(&token)) {
        None => {}
        Some(Err(refusal)) => client.shown = Some(Err(refusal)),
        Some(Ok((principal, connection))) => {
            threads = sessions.threads_of(&principal, &connection.0);
            // Nothing was charged to whoever paid until now.
            client.connection = connection;
            client.shown = Some(Ok(principal));
        }
    }
    if threads.id() == here.id() {
        return Box::pin(serve(sessions, stream, client)).await;
    }
    let (sessions, Ok(stream)) = (sessions.clone(), stream.into_std()) else { return };
    let elsewhere = threads.spawn(async move {
        // Where the system has no descriptor left, the client finds the connection closed.
        if let Ok(stream) = UnixStream::from_std(stream) {
            serve(&sessions, stream, client).await;
        }
    });
    // A panic was told where it happened.
    let _ = elsewhere.await;
}

/// A client whose first word was looked at.
struct Client {
    number: u64,
    /// Who is at the other end, as the system says.
    user: Arc<Principal>,
    /// Whose token the first word shows, or why it is not taken.
    shown: Option<Result<Arc<Principal>, Refusal>>,
    /// Who is charged for the connection.
    connection: Connection,
    /// By when the first word must have been said.
    greeting: Instant,
    /// What was read so far.
    input: BytesMut,
    json: bool,
}

/// Serves one client on the threads that it is to be served by.
async fn serve(sessions: &Arc<Sessions>, stream: UnixStream, client: Client) {
    let Client { number, user, shown, connection, greeting, mut input, json } = client;
    let face = if json { Face::Json(Lines::default()) } else { Face::Frames };
    let account = connection.0.clone();
    let outbox = Arc::new(Outbox::new(stream, face, account, sessions.hub.dropped.clone()));
    let seat = Seat { sessions, number, user, shown, outbox: &outbox, port: OnceLock::new() };
    let mut session = Session {
        hub: &sessions.hub,
        outbox: &outbox,
        seat: &seat,
        json,
        greeted: false,
        greeting,
        searched: 0,
        unfinished: Unfinished::new(outbox.account().clone()),
        patience: sessions.limits.write_deadline,
    };
    let follows = keep_up(&sessions.hub, &seat, &outbox);
    let writing =
        write_when_full(&outbox.socket, &outbox.writer, sessions.limits.write_deadline, || outbox.resume());
    tokio::pin!(writing, follows);
    let half_closed = tokio::select! {
        half_closed = session.serve(&mut input) => half_closed,
        never = &mut follows => match never {},
        unread = &mut writing => {
            if unread {
                tracing::warn!(session = number, "cut off: it does not read what it asked for");
            }
            false
        }
        () = outbox.closing.notified() => false,
        () = sessions.closing.cancelled() => {
            // Everything that was promised has been said; it only has to be
            // written.
            let _ = tokio::time::timeout(FLUSH_LIMIT, flushed(&outbox, &mut writing)).await;
            false
        }
    };
    if half_closed {
        tokio::select! {
            () = answered(&outbox, &mut writing) => {}
            never = &mut follows => match never {},
            () = gone(&outbox.socket) => {}
            () = outbox.closing.notified() => {}
            () = sessions.closing.cancelled() => {
                let _ = tokio::time::timeout(FLUSH_LIMIT, flushed(&outbox, &mut writing)).await;
            }
        }
    }
    outbox.kill();
    let mut turn = sessions.hub.turn();
    if let Some(port) = seat.port.get() {
        turn.detach(port, &Refusal::new(Code::Cancelled, "the client has disconnected"));
    }
    turn.end();
}

/// Until everything that was said is written. The writer task goes on
/// meanwhile.
async fn flushed(outbox: &Outbox, writing: &mut (impl Future<Output = bool> + Unpin)) {
    loop {
        let relief = outbox.relief();
        if outbox.flush() != Flushed::Blocked {
            return;
        }
        tokio::select! {
            _ = &mut *writing => return,
            () = relief => {}
        }
    }
}

/// After the client's end of file: until nothing is owed to it.
async fn answered(outbox: &Outbox, writing: &mut (impl Future<Output = bool> + Unpin)) {
    loop {
        let relief = outbox.relief();
        if outbox.is_owed_nothing() {
            return;
        }
        tokio::select! {
            _ = &mut *writing => return,
            () = relief => {}
        }
    }
}

/// A client's place at the kernel. It is taken with the first word, when it is
/// known in whose name the client speaks, and then stays the same.
struct Seat<'a> {
    sessions: &'a Sessions,
    number: u64,
    /// Who is at the other end, as the system says.
    user: Arc<Principal>,
    /// Whose token the first word shows, or why it is not taken.
    shown: Option<Result<Arc<Principal>, Refusal>>,
    outbox: &'a Arc<Outbox>,
    port: OnceLock<Arc<Port>>,
}

impl Seat<'_> {
    /// The client's port; that of its user, where it has shown no token before.
    fn port(&self) -> &Arc<Port> {
        self.port.get_or_init(|| self.attach(self.user.clone()))
    }

    /// Takes the place, in the name of a token where the client shows one.
    fn take(&self, token: Option<&Token>) -> Result<&Arc<Port>, Refusal> {
        if self.port.get().is_some() {
            let message = "`hello` is the first word, and something was said before";
            return Err(Refusal::new(Code::InvalidFrame, message).hint("connect anew"));
        }
        match (token, &self.shown) {
            (None, _) => Ok(self.port()),
            (Some(_), Some(Ok(principal))) => Ok(self.port.get_or_init(|| self.attach(principal.clone()))),
            (Some(_), Some(Err(refusal))) => Err(refusal.clone()),
            (Some(_), None) => {
                let most = limits::HELLO_BYTES_MAX;
                let message = format!("a `hello` with a token is the first word, of at most {most} bytes");
                Err(Refusal::new(Code::InvalidFrame, message).hint("connect anew"))
            }
        }
    }

    fn attach(&self, principal: Arc<Principal>) -> Arc<Port> {
        let handle = Handle::Session(self.outbox.clone());
        let port = self.sessions.attach(handle, self.number, principal);
        self.outbox.listen_with(subscriptions::ear(&self.sessions.hub, &port));
        port
    }
}

struct Session<'a> {
    hub: &'a Hub,
    outbox: &'a Arc<Outbox>,
    seat: &'a Seat<'a>,
    json: bool,
    /// Whether `hello` was said, or the first whole line.
    greeted: bool,
    /// By when that must have been.
    greeting: Instant,
    /// Bytes of an unfinished line in which there is no newline, so that each
    /// is looked at once.
    searched: usize,
    /// What is charged for an unfinished frame or line.
    unfinished: Unfinished,
    /// Time for which nothing may come of one that is large.
    patience: Duration,
}

impl Session<'_> {
    /// Reads until the client's end of file; whether it still listens.
    async fn serve(&mut self, input: &mut BytesMut) -> bool {
        loop {
            let before = input.len();
            let place = self.outbox.account().place(&self.outbox.tenure).await;
            let most = if place.is_some() { TURN_MAX } else { usize::MAX };
            let mut turn = self.hub.turn_of(self.outbox);
            let mut next = match self.json {
                true => self.lines(input, &mut turn, most),
                false => self.frames(input, &mut turn, most),
            };
            if let Err(busy) = self.unfinished.recharge(input.len()) {
                self.outbox.refuse(None, busy);
                next = Next::Close;
            }
            turn.touch(self.outbox);
            turn.end();
            if let Some(place) = place {
                place.leave(self.hub.now_ms()).await;
            }
            if before > LARGE_BYTES && input.len() < before / 2 {
                // What was large is done with, and shall not be paid for as
                // long as the client stays.
                *input = BytesMut::from(&input[..]);
            }
            if next == Next::Close {
                hear_out(&self.outbox.socket).await;
                return false;
            }
            while self.outbox.is_congested() {
                let relief = self.outbox.relief();
                // It may have been relieved before relief was asked for.
                if self.outbox.is_congested() {
                    relief.await;
                }
            }
            if next == Next::Yield {
                tokio::task::yield_now().await;
                continue;
            }
            tokio::task::coop::consume_budget().await;
            match self.more(input).await {
                Some(Ok(0)) => return self.end_of_file(input),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return false,
            }
        }
    }

    /// Reads once; `None` where nothing came in time, of the first word or of what
    /// was begun and is large.
    async fn more(&self, input: &mut BytesMut) -> Option<io::Result<usize>> {
        let by = match (self.greeted, self.unfinished.is_large()) {
            (true, false) => return Some(read(&self.outbox.socket, input).await),
            (true, true) => Instant::now() + self.patience,
            (false, _) => self.greeting,
        };
        let got = tokio::time::timeout_at(by, read(&self.outbox.socket, input)).await;
        if got.is_err() && self.greeted {
            let (bytes, ms) = (input.len(), self.patience.as_millis());
            let message = format!("nothing came for {ms} ms of what was begun, {bytes} bytes so far");
            self.outbox.refuse(None, Refusal::new(Code::Timeout, message));
            self.outbox.flush();
            hear_out(&self.outbox.socket).await;
        }
        got.ok()
    }

    /// A last line without its newline still counts; a frame cut short is
    /// refused.
    fn end_of_file(&mut self, input: &mut BytesMut) -> bool {
        let mut turn = self.hub.turn_of(self.outbox);
        if self.json {
            if !input.is_empty() {
                let line = input.split();
                self.line(line.trim_ascii(), &mut turn);
            }
        } else if !input.is_empty() {
            let message = format!("the connection ended inside a frame, {} bytes into it", input.len());
            self.outbox.refuse(None, Refusal::new(Code::InvalidFrame, message));
        }
        turn.touch(self.outbox);
        turn.end();
        !hung_up(&self.outbox.socket)
    }
}
