//! What a running plugin is to the daemon, in either placement: its name, its
//! port, and the translation between deliveries and frames.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use ksi_identity::{Caller, Permission, Rights, is_tenant};
use ksi_kernel::{Answer, Ask, Delivery, Emission, Takes, Verdict};
use ksi_protocol::{
    Descriptor, EventName, Frame, Pattern, Refusal,
    frame::{self, Event, Id, Intercept, Request},
    sandbox::Report,
    space,
    system::{PluginNamed, PluginTrouble},
};
use tokio::sync::mpsc;
use tracing::Level;

use crate::{
    complaints::Complaints,
    hub::{Port, Turn},
    own, redaction, wire, woken,
};

/// Subscriptions of plugins are numbered from here, so that they never meet
/// the ids of the plugin's own requests.
pub const SUBS_FROM: Id = 1 << 62;

/// Lines that are kept as the last words of a plugin.
const WORDS_MAX: usize = 12;

/// Tenants that a plugin has to do with and that are remembered. One that serves
/// more of them is granted every tenant.
const TENANTS_MAX: usize = 4096;

/// Longest line or sentence in bytes that is shown of what a plugin says of itself,
/// and of how much of it that is made.
const SHOWN_BYTES_MAX: usize = 1024;
const SAID_BYTES_MAX: usize = 4096;

/// Lines of a plugin that the log takes in a minute, and times that others are told
/// in a minute that it is degraded: what it says costs those who read the log and
/// those who listen, and what is new in a log takes the place of what is old.
const LINES_PER_MINUTE: u32 = 600;
const TROUBLES_PER_MINUTE: u32 = 60;

/// What happens in the life of one generation of a plugin.
#[derive(Debug)]
pub enum Life {
    /// Its host tells what of its sandbox is in force.
    Sandboxed(Report),
    /// It was loaded, and says what it is.
    Described(Box<Descriptor>),
    /// It says that it can answer.
    Ready,
    /// It has finished what it had.
    Drained,
    /// It answered the ping that it was asked.
    Pong,
    /// It could not start.
    Refused(Refusal),
    /// It is gone, or must be given up, for this reason.
    Died(String),
}

/// A plugin's namespace under another name, so that one library can run
/// twice: its own events are renamed at this boundary, and it does not notice.
#[derive(Debug, Clone)]
pub struct Alias {
    /// The namespace that the library knows.
    pub inner: String,
    /// The namespace that everybody else sees.
    pub outer: String,
}

impl Alias {
    fn swap(name: EventName, from: &str, to: &str) -> EventName {
        match name.as_str().strip_prefix(from).and_then(|rest| rest.strip_prefix(':')) {
            Some(action) => EventName::parse(&format!("{to}:{action}")).unwrap_or(name),
            None => name,
        }
    }
}

/// A line that a plugin has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// The line.
    pub text: String,
    /// Whether it was written to standard error, where those cry who die.
    pub cried: bool,
}

/// One generation of a plugin.
#[derive(Debug)]
pub struct Guest {
    /// Name in the manifest.
    pub name: String,
    alias: Option<Alias>,
    life: mpsc::Sender<Life>,
    /// Set right after the port is attached. Weak, because the port's handle
    /// holds this guest.
    port: OnceLock<Weak<Port>>,
    /// Of what it has a word on, by index: whether that passes without it.
    fail_open: OnceLock<Box<[bool]>>,
    /// The last lines that it logged or wrote to its standard error, as it said them.
    words: Mutex<VecDeque<Word>>,
    /// Lines that the log has no room for.
    lines: Complaints,
    /// What it says that it cannot do.
    complaint: Mutex<Option<String>>,
    /// How often that begins, and whether it was told that it has.
    troubles: Complaints,
    told: AtomicBool,
    /// Facts that it tells and may not.
    not_told: Complaints,
    /// Whether it may tell of every tenant ...
    every_tenant: AtomicBool,
    /// ... or of those only whose requests and events it was handed.
    tenants: Mutex<HashSet<Box<str>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guest {
    /// A plugin that is about to run; `life` hears what becomes of it.
    #[must_use]
    pub fn new(name: &str, alias: Option<Alias>, life: mpsc::Sender<Life>, every_tenant: bool) -> Self {
        Self {
            name: name.into(),
            alias,
            life,
            port: OnceLock::new(),
            fail_open: OnceLock::new(),
            words: Mutex::default(),
            lines: Complaints::within(60, LINES_PER_MINUTE),
            complaint: Mutex::default(),
            troubles: Complaints::within(60, TROUBLES_PER_MINUTE),
            told: AtomicBool::new(false),
            not_told: Complaints::default(),
            every_tenant: AtomicBool::new(every_tenant),
            tenants: Mutex::default(),
        }
    }

    /// It has to do with a tenant from now on.
    fn meet(&self, caller: &Caller) {
        let Some(tenant) = caller.principal.tenant.as_deref() else { return };
        let mut tenants = lock(&self.tenants);
        if tenants.len() < TENANTS_MAX && !tenants.contains(tenant) {
            tenants.insert(tenant.into());
        }
    }

    /// Whether it has nothing to do with a tenant, or that is none.
    fn is_stranger(&self, tenant: &str) -> bool {
        let knows = || self.every_tenant.load(Ordering::Relaxed) || lock(&self.tenants).contains(tenant);
        !is_tenant(tenant) || !knows()
    }

    /// Whether it may tell of every tenant, from now on.
    pub fn grant_every_tenant(&self, granted: bool) {
        self.every_tenant.store(granted, Ordering::Relaxed);
    }

    /// Keeps a line; the oldest goes where there are too many.
    pub fn remember(&self, word: Word) {
        let mut words = lock(&self.words);
        if words.len() == WORDS_MAX {
            words.pop_front();
        }
        words.push_back(word);
    }

    /// The last lines that it has left, oldest first, without secrets.
    #[must_use]
    pub fn words(&self) -> Vec<Word> {
        let words = lock(&self.words).clone();
        words.into_iter().map(|word| Word { text: shown(word.text), ..word }).collect()
    }

    /// Logs a line of it, unless the log has no room for more of them.
    pub fn log(&self, level: &str, text: &str, now_ms: u64) {
        let taken = match level {
            "error" => tracing::enabled!(Level::ERROR),
            "warn" => tracing::enabled!(Level::WARN),
            "info" => tracing::enabled!(Level::INFO),
            "debug" => tracing::enabled!(Level::DEBUG),
            _ => tracing::enabled!(Level::TRACE),
        };
        let Some(untold) = taken.then(|| self.lines.count(now_ms)).flatten() else { return };
        let origin = format!("plugin:{}", self.name);
        if untold > 0 {
            tracing::warn!(origin, untold, "it logs more than the log takes: lines were left out");
        }
        let text = shown(cut(text, SAID_BYTES_MAX).to_owned());
        match level {
            "error" => tracing::error!(origin, "{text}"),
            "warn" => tracing::warn!(origin, "{text}"),
            "info" => tracing::info!(origin, "{text}"),
            "debug" => tracing::debug!(origin, "{text}"),
            _ => tracing::trace!(origin, "{text}"),
        }
    }

    /// What it says that it cannot do at present.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        lock(&self.complaint).clone()
    }

    /// Takes what it says of itself. Whoever listens is told when it begins and
    /// when it ends, not of every change in between; where it begins too often, of
    /// neither. The health, which is made when it is asked for, has it all the same.
    fn complain(&self, turn: &mut Turn<'_>, complaint: Option<&str>) {
        let complaint = complaint.map(|text| shown(cut(text, SAID_BYTES_MAX).to_owned()));
        lock(&self.complaint).clone_from(&complaint);
        match (complaint, self.told.load(Ordering::Relaxed)) {
            (Some(reason), false) => {
                let Some(untold) = self.troubles.count(turn.hub().now_ms()) else { return };
                self.told.store(true, Ordering::Relaxed);
                tracing::warn!(plugin = self.name, untold, "plugin is degraded: {reason}");
                turn.say(own::PLUGIN_DEGRADED, &PluginTrouble { name: self.name.clone(), reason });
            }
            (None, true) => {
                self.told.store(false, Ordering::Relaxed);
                tracing::info!(plugin = self.name, "plugin is well again");
                turn.say(own::PLUGIN_RECOVERED, &PluginNamed { name: self.name.clone() });
            }
            _ => {}
        }
    }

    /// Gives the guest its port.
    pub fn set_port(&self, port: &Arc<Port>) {
        // Set once, by whoever attaches.
        let _ = self.port.set(Arc::downgrade(port));
    }

    /// Tells the runner. The channel has room for all that one generation can
    /// say of importance.
    pub fn tell(&self, life: Life) {
        let _ = self.life.try_send(life);
        woken::note();
    }

    /// Takes what the plugin says of itself; from now on it may do what that asks
    /// for, as far as the manifest grants it.
    pub fn described(&self, descriptor: Box<Descriptor>) {
        if let Some(port) = self.port.get().and_then(Weak::upgrade) {
            let outer = |pattern: &Pattern| self.outer_pattern(pattern);
            let facts = descriptor.emits.iter().map(|spec| self.outer(spec.event.clone()));
            port.authority.ask_for(Rights {
                may_call: descriptor.calls.iter().map(outer).chain([space::events()]).collect(),
                emits: facts.filter_map(|event| Pattern::parse(event.as_str()).ok()).collect(),
                listens: descriptor.listens.clone(),
                intercepts: descriptor.intercepts.iter().map(|spec| spec.pattern.clone()).collect(),
            });
        }
        // It describes itself once.
        let _ = self.fail_open.set(descriptor.intercepts.iter().map(|spec| spec.fail_open).collect());
        self.tell(Life::Described(descriptor));
    }

    /// Whether what it has a word on by this index passes where it has none.
    #[must_use]
    pub fn fails_open(&self, index: u32) -> bool {
        let at = usize::try_from(index).ok();
        self.fail_open.get().zip(at).and_then(|(all, at)| all.get(at)).is_some_and(|open| *open)
    }

    fn outer_pattern(&self, pattern: &Pattern) -> Pattern {
        let renamed = self.alias.as_ref().and_then(|alias| {
            let rest = pattern.as_str().strip_prefix(&*alias.inner)?.strip_prefix(':')?;
            Pattern::parse(&format!("{}:{rest}", alias.outer)).ok()
        });
        renamed.unwrap_or_else(|| pattern.clone())
    }

    /// The name by which everybody else knows an event of the plugin's.
    #[must_use]
    pub fn outer(&self, name: EventName) -> EventName {
        match &self.alias {
            Some(alias) => Alias::swap(name, &alias.inner, &alias.outer),
            None => name,
        }
    }

    fn inner(&self, name: EventName) -> EventName {
        match &self.alias {
            Some(alias) => Alias::swap(name, &alias.outer, &alias.inner),
            None => name,
        }
    }

    /// The frame that a delivery is for the plugin.
    #[must_use]
    pub fn frame(&self, delivery: Delivery, now_ms: u64) -> Frame {
        match &delivery {
            Delivery::Request { envelope, .. } => self.meet(&envelope.caller),
            Delivery::Event { envelope, .. } => self.meet(&envelope.caller),
            Delivery::Intercept { caller: Some(caller), .. } => self.meet(caller),
            _ => {}
        }
        match delivery {
            Delivery::Request { token, envelope } => Frame::Request(Request {
                work: envelope.work,
                // Only facts have no deadline, and only whoever keeps work is
                // handed them so: it answers when they are written.
                at_ms: envelope.deadline_ms.is_none().then_some(envelope.at_ms),
                timeout_ms: envelope.deadline_ms.map(|at| at.saturating_sub(now_ms).max(1)),
                credit: envelope.credit,
                correlation_id: envelope.correlation_id.map(|id| (*id).to_owned()),
                idempotency_key: envelope.idempotency_key.map(|key| (*key).to_owned()),
                origin: Some((*envelope.origin).to_owned()),
                caller: Some(named(&envelope.caller, envelope.at_ms)),
                chain: envelope.chain,
                ..Request::new(token, self.inner(envelope.event), envelope.data)
            }),
            Delivery::Event { sub, envelope, .. } => Frame::Event(Event {
                sub: sub.wrapping_sub(SUBS_FROM),
                seq: 0,
                event: self.inner(envelope.event.clone()),
                data: envelope.data.clone(),
                origin: envelope.origin.clone(),
                at_ms: envelope.at_ms,
                correlation_id: envelope.correlation_id.as_deref().map(str::to_owned),
                tenant: envelope.caller.principal.tenant.clone().map(Into::into),
                chain: envelope.chain.clone(),
            }),
            Delivery::Cancel { token } => Frame::Cancel { id: token },
            Delivery::Credit { token, n } => Frame::Credit { id: token, n },
            Delivery::Answer { id, answer, .. } => wire::answer(id, answer),
            Delivery::Intercept { token, index, stage, event, data, origin, caller } => {
                Frame::Intercept(Intercept {
                    id: token,
                    index,
                    stage,
                    event: self.inner(event),
                    data,
                    origin: (*origin).to_owned(),
                    caller: caller.map(|caller| named(&caller, now_ms)),
                })
            }
        }
    }

    /// Does what the plugin says.
    pub fn hear(&self, turn: &mut Turn<'_>, frame: Frame) {
        let frame = match frame {
            Frame::Sandboxed { report } => return self.tell(Life::Sandboxed(report)),
            Frame::Described { descriptor } => return self.described(descriptor),
            Frame::Ready => return self.tell(Life::Ready),
            Frame::Drained => return self.tell(Life::Drained),
            Frame::Refusal { id, refusal } => {
                // What a plugin says of its failure may quote what it was given.
                let refusal = redaction::refusal(refusal);
                if id.is_none() {
                    return self.tell(Life::Refused(refusal));
                }
                Frame::Refusal { id, refusal }
            }
            Frame::Health { degraded } => return self.complain(turn, degraded.as_deref()),
            Frame::Log { level, message } => {
                if matches!(level.as_str(), "error" | "warn" | "info") {
                    let text = format!("{level}: {}", cut(&message, SAID_BYTES_MAX));
                    self.remember(Word { text, cried: false });
                }
                return self.log(&level, &message, turn.hub().now_ms());
            }
            Frame::Request(request) => {
                Frame::Request(Request { event: self.outer(request.event.clone()), ..request })
            }
            Frame::Emit(emit) => {
                let event = self.outer(emit.event.clone());
                Frame::Emit(ksi_protocol::frame::Emit { event, ..emit })
            }
            other => other,
        };
        if let Some(port) = self.port.get().and_then(Weak::upgrade) {
            self.say(turn, &port, frame);
        }
    }

    /// Has the kernel route what the plugin says.
    fn say(&self, turn: &mut Turn<'_>, port: &Arc<Port>, frame: Frame) {
        match frame {
            Frame::Reply { id, data } => turn.answer(port, id, Answer::Reply(data)),
            Frame::Chunk { id, data } => turn.answer(port, id, Answer::Chunk(data)),
            Frame::End { id, data } => turn.answer(port, id, Answer::End(data)),
            Frame::Accepted { id, request_id, seq } => {
                turn.answer(port, id, Answer::Accepted { request_id, seq });
            }
            Frame::Refusal { id: Some(id), refusal } => turn.answer(port, id, refusal.into()),
            Frame::Request(request) => {
                let (caller, vouched) = turn.hub().identity.kept(&request);
                let takes = if vouched { Takes::Nothing } else { Takes::Own };
                turn.request(port, Ask { caller, takes, ..wire::ask(request) });
            }
            Frame::Emit(emit) => {
                let own = &port.authority.caller.principal;
                let caller = |tenant: String| {
                    Arc::new(Caller { origin: port.origin.clone(), principal: own.of_tenant(&tenant) })
                };
                let emission = Emission {
                    stranger: emit.tenant.as_deref().is_some_and(|tenant| self.is_stranger(tenant)),
                    correlation_id: emit.correlation_id.map(Into::into),
                    parent: emit.parent,
                    caller: emit.tenant.map(caller),
                    chain: emit.chain,
                    ..Emission::new(emit.event, emit.data)
                };
                if let Err(refusal) = turn.emit(port, emission)
                    && let Some(untold) = self.not_told.count(turn.hub().now_ms())
                {
                    tracing::warn!(origin = &*port.origin, untold, "{refusal}");
                }
            }
            Frame::Cancel { id } => turn.cancel(port, id),
            Frame::Verdict(verdict) => {
                let word = match (verdict.refuse, verdict.edit) {
                    (Some(refusal), _) => Verdict::Refuse(redaction::refusal(refusal)),
                    (None, Some(data)) => Verdict::Edit(data),
                    (None, None) => Verdict::Pass,
                };
                turn.verdict(port, verdict.id, word);
            }
            _ => {}
        }
    }
}

/// What a plugin is told of whoever asks.
fn named(caller: &Caller, now_ms: u64) -> Box<frame::Caller> {
    let principal = &caller.principal;
    Box::new(frame::Caller {
        principal: (*principal.name).to_owned(),
        tenant: principal.tenant.as_deref().map(str::to_owned),
        every_tenant: principal.holds(Permission::EVERY_TENANT.0, now_ms),
    })
}

/// What a plugin's life has left out of the log at its end.
impl Drop for Guest {
    fn drop(&mut self) {
        let untold = self.lines.untold();
        if untold > 0 {
            tracing::warn!(origin = format!("plugin:{}", self.name), untold, "lines of it were left out");
        }
    }
}

/// The beginning of a text.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// What is shown of something that a plugin has said. It is cut last, and what was
/// said is cut far behind that, so that no half of a secret is left over.
fn shown(said: String) -> String {
    let mut text = redaction::text(said);
    text.truncate(text.floor_char_boundary(SHOWN_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn what_a_plugin_says_is_shown_without_secrets_and_without_a_half_of_one() {
        let secret = "said-by-the-tests-of-guests".repeat(2);
        redaction::learn([secret.clone()]);
        let guest = Guest::new("a", None, mpsc::channel(1).0, false);
        let before = "x".repeat(SHOWN_BYTES_MAX - 10);
        guest.remember(Word { text: format!("{before}{secret}"), cried: true });
        guest.remember(Word { text: "y".repeat(SAID_BYTES_MAX), cried: false });
        let [first, second] = &guest.words()[..] else { panic!("{:?}", guest.words()) };
        assert_eq!((first.text.as_str(), first.cried), (&*format!("{before}***"), true));
        assert_eq!(second.text.len(), SHOWN_BYTES_MAX);
    }

    #[test]
    fn a_flood_of_lines_is_counted() {
        let guest = Guest::new("a", None, mpsc::channel(1).0, false);
        let subscriber = tracing_subscriber::registry().with(tracing_subscriber::filter::LevelFilter::INFO);
        tracing::subscriber::with_default(subscriber, || {
            (0..5_000).for_each(|n| guest.log("info", &format!("line {n}"), 1_000_000));
            let untold = guest.lines.untold();
            assert!((4_300..=4_400).contains(&untold), "{untold}");
            // What the log is not to have does not count.
            (0..5_000).for_each(|n| guest.log("debug", &format!("line {n}"), 1_000_000));
            assert_eq!(guest.lines.untold(), untold);
        });
    }
}
