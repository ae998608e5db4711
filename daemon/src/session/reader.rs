//! The reading side of one session.
// tidy: long because both faces, and what each verb of them does.

mod subscriptions;

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use ksi_identity::Principal;
use ksi_kernel::{Ask, Emission};
use ksi_protocol::{
    Code, EventName, Frame, PROTOCOL_VERSION, Refusal,
    frame::{self, Hello, Subscribe, Welcome},
    json::{self, Verb},
    limits,
    token::Token,
};
use serde_json::Value;
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
    hub::{Handle, Hub, Port, Turn},
    wire::{Flushed, ask, check_size, write_when_full},
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

    fn lines(&mut self, input: &mut BytesMut, turn: &mut Turn<'_>, most: usize) -> Next {
        let mut done = 0;
        while let Some(end) = input[self.searched..].iter().position(|&byte| byte == b'\n') {
            let line = input.split_to(self.searched + end + 1);
            self.searched = 0;
            self.greeted = true;
            if line.len() > limits::FRAME_BYTES_MAX + 1 {
                return self.too_long();
            }
            match self.line(line.trim_ascii(), turn) {
                Next::Read => {}
                other => return other,
            }
            done += 1;
            if done == most {
                return Next::Yield;
            }
        }
        self.searched = input.len();
        if input.len() > limits::FRAME_BYTES_MAX {
            return self.too_long();
        }
        Next::Read
    }

    fn too_long(&self) -> Next {
        let message = format!("line is longer than the limit of {} bytes", limits::FRAME_BYTES_MAX);
        self.outbox.refuse(None, Refusal::new(Code::TooLarge, message));
        Next::Close
    }

    fn line(&mut self, line: &[u8], turn: &mut Turn<'_>) -> Next {
        if line.is_empty() {
            return Next::Read;
        }
        match json::parse(line) {
            Ok(json::Input { id, verb: Verb::Hello { token } }) => {
                if let Err(refusal) = self.seat.take(token.as_ref()) {
                    // Who was refused shall not go on in somebody else's name.
                    self.refuse_line(id.as_ref(), &refusal);
                    return Next::Close;
                }
                self.outbox.line(&json::welcome_line(id.as_ref(), &self.welcome()));
                return after_hello(token.as_ref());
            }
            Ok(input) => {
                let id = input.id.clone();
                if let Err(refusal) = self.verb(input, turn) {
                    self.refuse_line(id.as_ref(), &refusal);
                }
            }
            Err(malformed) => self.refuse_line(malformed.id.as_ref(), &malformed.refusal),
        }
        Next::Read
    }

    fn refuse_line(&self, id: Option<&Value>, refusal: &Refusal) {
        self.outbox.line(&json::refusal_line(id, refusal));
    }

    fn verb(&mut self, input: json::Input, turn: &mut Turn<'_>) -> Result<(), Refusal> {
        let json::Input { id, verb } = input;
        let open = |id: Option<Value>| {
            self.outbox.with_face(|face| match face {
                Face::Json(lines) => lines.open(id),
                Face::Frames => Err(Refusal::new(Code::Internal, "a line on the frames face")),
            })
        };
        let find = |id: &Value| {
            let found = self.outbox.with_face(|face| match face {
                Face::Json(lines) => lines.find(id),
                Face::Frames => None,
            });
            found.ok_or_else(|| Refusal::not_found("request or subscription", &id.to_string()))
        };
        match verb {
            Verb::Request {
                event,
                data,
                timeout_ms,
                credit,
                correlation_id,
                idempotency_key,
                expires_in_ms,
            } => {
                check_size(&data, [correlation_id.as_deref(), idempotency_key.as_deref()])?;
                self.may_ask(&event, turn)?;
                let id = open(id)?;
                self.outbox.begin(id, credit)?;
                let ask = Ask {
                    timeout: timeout_ms.map(Duration::from_millis),
                    credit,
                    correlation_id: correlation_id.map(Into::into),
                    idempotency_key: idempotency_key.map(Into::into),
                    expires_in: expires_in_ms.map(Duration::from_millis),
                    ..Ask::new(id, event, data)
                };
                self.outbox.owe();
                turn.request(self.seat.port(), ask);
            }
            Verb::Emit { event, data, correlation_id } => {
                let emission =
                    Emission { correlation_id: correlation_id.map(Into::into), ..Emission::new(event, data) };
                self.outbox.account().may_send(turn.now_ms())?;
                let told = turn.emit(self.seat.port(), emission)?;
                if let Some(id) = id {
                    self.outbox.line(&serde_json::json!({"id": id, "data": {"delivered": told}}).to_string());
                }
            }
            Verb::Subscribe { pattern, class, since_seq, consumer, credit } => {
                let id = open(id)?;
                self.subscribe(Subscribe { id, pattern, class, since_seq, consumer, credit }, turn);
            }
            Verb::Unsubscribe(id) => {
                let ours = find(&id)?;
                self.unsubscribe(ours, turn)?;
                self.outbox.with_face(|face| {
                    if let Face::Json(lines) = face {
                        lines.close(ours);
                    }
                });
            }
            // Dealt with where the line is read.
            Verb::Hello { .. } => {}
            Verb::Cancel(id) => self.cancel(find(&id)?, turn),
            Verb::Credit(id, n) => {
                let id = find(&id)?;
                self.outbox.add_credit(id, n);
                turn.credit(self.seat.port(), id, n);
            }
        }
        Ok(())
    }

    fn frames(&mut self, input: &mut BytesMut, turn: &mut Turn<'_>, most: usize) -> Next {
        for _ in 0..most {
            let before = input.len();
            match Frame::split(input) {
                Ok(Some(frame)) => {
                    let frame = compact(frame, before - input.len());
                    match self.frame(frame, turn) {
                        Next::Read => {}
                        other => return other,
                    }
                }
                Ok(None) => return Next::Read,
                Err(error) => {
                    let broken = matches!(error, frame::Error::TooLarge(_));
                    self.outbox.refuse(None, error.into());
                    if broken || !self.greeted {
                        return Next::Close;
                    }
                }
            }
        }
        Next::Yield
    }

    fn frame(&mut self, frame: Frame, turn: &mut Turn<'_>) -> Next {
        if !self.greeted {
            return self.greet(&frame);
        }
        match frame {
            Frame::Request(mut request) => {
                let texts = [request.correlation_id.as_deref(), request.idempotency_key.as_deref()];
                let fits = check_size(&request.data, texts);
                let fits = fits.and_then(|()| self.may_ask(&request.event, turn));
                if let Err(refusal) = fits.and_then(|()| self.outbox.begin(request.id, request.credit)) {
                    self.outbox.refuse(Some(request.id), refusal);
                    return Next::Read;
                }
                // A client has no parent to speak for, and nothing leads to it.
                (request.parent, request.chain) = (None, None);
                self.outbox.owe();
                turn.request(self.seat.port(), ask(request));
            }
            Frame::Emit(emit) => {
                let emission = Emission {
                    correlation_id: emit.correlation_id.map(Into::into),
                    ..Emission::new(emit.event, emit.data)
                };
                let told = self.outbox.account().may_send(turn.now_ms());
                match (told.and_then(|()| turn.emit(self.seat.port(), emission)), emit.id) {
                    (Ok(told), Some(id)) => {
                        let data = serde_json::json!({ "delivered": told });
                        let data = json::from_json(&data).unwrap_or_else(|_| ksi_protocol::empty());
                        self.outbox.frame(&Frame::Reply { id, data });
                    }
                    (Ok(_), None) => {}
                    (Err(refusal), id) => self.outbox.refuse(id, refusal),
                }
            }
            Frame::Subscribe(subscribe) => self.subscribe(subscribe, turn),
            Frame::Unsubscribe { id } => {
                if let Err(refusal) = self.unsubscribe(id, turn) {
                    self.outbox.refuse(Some(id), refusal);
                }
            }
            Frame::Cancel { id } => self.cancel(id, turn),
            Frame::Credit { id, n } => {
                self.outbox.add_credit(id, n);
                turn.credit(self.seat.port(), id, n);
            }
            _ => self.outbox.refuse(
                None,
                Refusal::new(Code::InvalidFrame, "a client may not send this frame")
                    .hint("request, emit, subscribe, unsubscribe, cancel and credit are for clients"),
            ),
        }
        Next::Read
    }

    /// Whether its user has room for a request. Who administers what the daemon
    /// itself answers finds room there at all times, and can see to the rest.
    fn may_ask(&self, event: &EventName, turn: &Turn<'_>) -> Result<(), Refusal> {
        let principal = &self.seat.port().authority.caller.principal;
        self.outbox.account().may_ask(turn.now_ms()).or_else(|busy| {
            let administers = self.hub.administers(principal, event, turn.now_ms());
            if administers { Ok(()) } else { Err(busy) }
        })
    }

    fn greet(&mut self, frame: &Frame) -> Next {
        let Frame::Hello(Hello { version, client, token, .. }) = frame else {
            self.outbox.refuse(None, Refusal::new(Code::InvalidFrame, "the first frame must be `hello`"));
            return Next::Close;
        };
        if *version != PROTOCOL_VERSION {
            let message = format!("client speaks protocol {version}, this daemon speaks {PROTOCOL_VERSION}");
            self.outbox.refuse(
                None,
                Refusal::new(Code::Conflict, message).hint("install client and daemon of one version"),
            );
            return Next::Close;
        }
        let port = match self.seat.take(token.as_ref()) {
            Ok(port) => port,
            Err(refusal) => {
                self.outbox.refuse(None, refusal);
                return Next::Close;
            }
        };
        let principal = &*port.authority.caller.principal.name;
        tracing::debug!(session = &*port.origin, client, principal, "client connected");
        self.greeted = true;
        self.outbox.frame(&Frame::Welcome(self.welcome()));
        after_hello(token.as_ref())
    }

    fn welcome(&self) -> Welcome {
        Welcome {
            version: PROTOCOL_VERSION,
            server: concat!("ksid ", env!("CARGO_PKG_VERSION")).into(),
            features: vec!["latest".into(), "credit".into(), "durable".into()],
            session: (*self.seat.port().origin).to_owned(),
            boot: self.hub.boot.clone(),
        }
    }

    fn cancel(&self, id: frame::Id, turn: &mut Turn<'_>) {
        turn.cancel(self.seat.port(), id);
        self.outbox.give_up(id);
    }
}

/// With a token another account pays from now on, so this turn, which has its place
/// from the one before, ends.
fn after_hello(token: Option<&Token>) -> Next {
    if token.is_some() { Next::Yield } else { Next::Read }
}

/// A payload that is a small part of a large frame shall not keep all of it in
/// memory for as long as it waits somewhere.
fn compact(frame: Frame, frame_bytes: usize) -> Frame {
    if frame_bytes <= READ_BYTES {
        return frame;
    }
    let small = |data: Bytes| if data.len() < frame_bytes / 2 { Bytes::copy_from_slice(&data) } else { data };
    match frame {
        Frame::Request(request) => {
            Frame::Request(frame::Request { data: small(request.data.clone()), ..request })
        }
        Frame::Emit(emit) => Frame::Emit(frame::Emit { data: small(emit.data.clone()), ..emit }),
        other => other,
    }
}
