//! Scripts: what tests of the kernel are written in.
//!
//! A line with `>` is an input, and the lines after it are all that comes of
//! it: `<` a delivery, `=` a result, `!` a refusal or fault that the caller
//! sees. A refusal is written as its code and whom it blames. Time is 0 until
//! `at` moves it; tokens count from 1, one for each request and question.

use std::{collections::HashMap, fmt::Write, sync::Arc, time::Duration};

use bytes::Bytes;
use ksi_identity::{Authority, Caller, Capability, Directory, Member, Principal, Rights};
use ksi_protocol::{
    Code, EventName, Pattern, Refusal,
    descriptor::InterceptSpec,
    frame::{Class, Stage},
    work::Policy,
};

use crate::{
    Answer, Ask, Declared, Delivery, Effects, Emission, Envelope, Fault, Kernel, Port, Quota, Role, Takes,
    Verdict,
};

/// Runs a script on a new kernel, and compares what comes of it with what it
/// says. Empty lines and those with `#` are for the reader.
pub(crate) fn check(script: &str) {
    let lines = script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let expected: String = lines.map(|line| format!("{line}\n")).collect();
    let mut stage = Play::default();
    for input in expected.lines().filter_map(|line| line.strip_prefix("> ")) {
        stage.run(input);
    }
    assert_eq!(stage.transcript, expected, "\n--- came out:\n{}", stage.transcript);
}

/// What a plugin is granted, by name.
const RIGHTS: [&str; 4] = ["may_call", "emits", "listens", "intercepts"];

#[derive(Default)]
struct Play {
    kernel: Kernel<String>,
    directory: Directory,
    members: Vec<Member>,
    ports: HashMap<String, Arc<Port<String>>>,
    effects: Effects<String>,
    now_ms: u64,
    transcript: String,
}

/// The words of a line: those by position and those by name.
struct Words<'a> {
    plain: std::vec::IntoIter<&'a str>,
    named: HashMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn of(line: &'a str) -> Self {
        let (named, plain): (Vec<_>, Vec<_>) = line.split(' ').partition(|word| word.contains('='));
        let named = named.into_iter().filter_map(|word| word.split_once('=')).collect();
        Self { plain: plain.into_iter(), named }
    }

    fn word(&mut self) -> &'a str {
        self.plain.next().unwrap_or_default()
    }

    fn number(&mut self) -> u64 {
        self.word().parse().unwrap()
    }

    fn data(&mut self) -> Bytes {
        Bytes::copy_from_slice(self.word().as_bytes())
    }

    fn event(&mut self) -> EventName {
        EventName::parse(self.word()).unwrap()
    }

    fn events(&mut self) -> Vec<EventName> {
        self.word().split(',').map(|name| EventName::parse(name).unwrap()).collect()
    }

    fn refusal(&mut self) -> Refusal {
        refusal(self.word())
    }

    fn option<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.named.get(name).and_then(|text| text.parse().ok())
    }

    fn patterns(&self, name: &str) -> Vec<Pattern> {
        let list = self.named.get(name).copied().unwrap_or_default();
        list.split(',').filter_map(|text| Pattern::parse(text).ok()).collect()
    }
}

fn refusal(code: &str) -> Refusal {
    Refusal::new(*Code::ALL.iter().find(|known| known.as_str() == code).unwrap(), code)
}

fn text(data: &Bytes) -> &str {
    std::str::from_utf8(data).unwrap()
}

fn no(refusal: &Refusal) -> String {
    let blame = refusal.details.as_ref().and_then(|details| details["blame"].as_str());
    blame.map_or(refusal.code.to_string(), |blame| format!("{} {blame}", refusal.code))
}

impl Play {
    fn run(&mut self, input: &str) {
        writeln!(self.transcript, "> {input}").unwrap();
        let mut words = Words::of(input);
        let outcome = match words.word() {
            "close" => {
                self.kernel.close();
                Ok(None)
            }
            "revoke" => {
                self.kernel.end_revoked(self.now_ms, &mut self.effects);
                Ok(None)
            }
            "expect" => {
                let (origin, pattern) = (words.word(), Pattern::parse(words.word()).unwrap());
                self.kernel.expect_interceptor(origin, vec![pattern]);
                Ok(None)
            }
            "grant" => {
                let (origin, pattern) = (words.word(), Pattern::parse(words.word()).unwrap());
                let rights = Rights { intercepts: vec![pattern], ..Rights::default() };
                self.kernel.grant_interceptors(origin, &rights);
                Ok(None)
            }
            "at" => {
                self.now_ms = words.number();
                let next = self.kernel.expire(self.now_ms, &mut self.effects);
                Ok(Some(next.map_or("never".into(), |next| next.to_string())))
            }
            name => self.act(name, words.word(), &mut words),
        };
        match outcome {
            Ok(Some(result)) => writeln!(self.transcript, "= {result}").unwrap(),
            Ok(None) => {}
            Err(error) => writeln!(self.transcript, "! {error}").unwrap(),
        }
        for (port, delivery) in self.effects.drain() {
            writeln!(self.transcript, "< {} {}", port.handle, written(&delivery)).unwrap();
        }
    }

    fn act(&mut self, name: &str, verb: &str, words: &mut Words<'_>) -> Result<Option<String>, String> {
        if verb == "attach" {
            self.attach(name, words);
            return Ok(None);
        }
        if verb == "hold" {
            self.hold(name, words);
            return Ok(None);
        }
        let Self { kernel, effects, now_ms, directory, .. } = self;
        let (port, now_ms) = (&self.ports[name], *now_ms);
        let refused = |result: Result<(), Refusal>| result.map(|()| None).map_err(|refusal| no(&refusal));
        match verb {
            "detach" => kernel.detach(port, &words.refusal(), effects),
            "forget" => kernel.forget(name),
            "freeze" | "thaw" => kernel.freeze((verb == "freeze").then(|| words.refusal())),
            "keep" => return refused(kernel.keep(port)),
            "own" => return refused(kernel.own(port, &words.events())),
            "declare" => {
                let events = declared(directory, words);
                let taken = kernel.declare(name, &events, words.refusal());
                return Ok((!taken.is_empty()).then(|| format!("taken {taken:?}")));
            }
            "sub" => {
                let (id, pattern) = (words.number(), Pattern::parse(words.word()).unwrap());
                let class = match words.word() {
                    "durable" => Class::Durable,
                    "latest" => Class::Latest,
                    _ => Class::Live,
                };
                return refused(kernel.subscribe(port, id, pattern, class, now_ms));
            }
            "unsub" => return refused(kernel.unsubscribe(port, words.number())),
            "intercept" => {
                let patterns: Vec<_> =
                    words.word().split(',').map(|text| Pattern::parse(text).unwrap()).collect();
                let stage = if words.word() == "after" { Stage::After } else { Stage::Before };
                let order = words.option("order").unwrap_or(0);
                let fail_open = words.word() == "open";
                let spec = |pattern| InterceptSpec { pattern, stage, order, fail_open };
                kernel.intercept(port, patterns.into_iter().map(spec));
            }
            "emit" => {
                let mut emission = Emission::new(words.event(), words.data());
                emission.parent = words.option("parent");
                emission.chain = words.named.get("chain").map(|&text| text.replace('>', " ").into());
                emission.correlation_id = words.named.get("corr").map(|&text| text.into());
                emission.caller = words.named.get("of").map(|&tenant| {
                    let principal = Principal::new(name, Some(tenant), 0);
                    Arc::new(Caller { origin: name.into(), principal })
                });
                emission.stranger = words.named.contains_key("stranger");
                let told = kernel.emit(port, emission, now_ms, effects);
                return told.map(|n| Some(n.to_string())).map_err(|refusal| no(&refusal));
            }
            "request" => {
                let ask = asked(directory, words);
                kernel.request(port, ask, now_ms, effects);
            }
            "cancel" => kernel.cancel(port, words.number(), effects),
            "credit" => {
                let (id, n) = (words.number(), words.number());
                kernel.credit(port, id, u32::try_from(n).unwrap(), effects);
            }
            _ => {
                let said = Self::say(kernel, port, verb, words, now_ms, effects);
                return said.map(|()| None).map_err(|fault| fault.to_string());
            }
        }
        Ok(None)
    }

    /// What owners and interceptors say to what they were asked.
    fn say(
        kernel: &Kernel<String>,
        port: &Arc<Port<String>>,
        verb: &str,
        words: &mut Words<'_>,
        now_ms: u64,
        effects: &mut Effects<String>,
    ) -> Result<(), Fault> {
        let token = words.number();
        let verdict = match verb {
            "pass" => Verdict::Pass,
            "edit" => Verdict::Edit(words.data()),
            "veto" => Verdict::Refuse(words.refusal()),
            _ => {
                let answer = match verb {
                    "reply" => Answer::Reply(words.data()),
                    "chunk" => Answer::Chunk(words.data()),
                    "end" => Answer::End(words.data()),
                    "accept" => Answer::Accepted { request_id: words.word().into(), seq: 1 },
                    "refuse" => words.refusal().into(),
                    other => unreachable!("no such verb: {other}"),
                };
                return kernel.answer(port, token, answer, now_ms, effects);
            }
        };
        kernel.verdict(port, token, verdict, now_ms, effects)
    }

    /// What a principal holds from now on: nothing more.
    fn hold(&mut self, name: &str, words: &Words<'_>) -> Arc<Principal> {
        let capabilities = words.named.get("holds").copied().unwrap_or_default().split(',');
        let capabilities = capabilities.filter_map(|text| Capability::parse(text).ok()).collect();
        let (tenant, expires_ms) = (words.option("tenant"), words.option("expires").unwrap_or(u64::MAX));
        self.members.retain(|member| member.name != name);
        self.members.push(Member { name: name.into(), tenant, expires_ms, capabilities, giver: None });
        self.directory.appoint(self.members.clone());
        self.directory.find(name).unwrap()
    }

    fn attach(&mut self, name: &str, words: &mut Words<'_>) {
        let role = match words.word() {
            "plugin" => Role::Plugin,
            "daemon" => Role::Daemon,
            _ => Role::Client,
        };
        let default = Quota::default();
        let quota = Quota {
            in_flight: words.option("in_flight").unwrap_or(default.in_flight),
            subscriptions: words.option("subs").unwrap_or(default.subscriptions),
            holding: words.option("holding").unwrap_or(default.holding),
            per_second: words.option("per_second"),
        };
        let rights = |patterns: [Vec<Pattern>; 4]| {
            let [may_call, emits, listens, intercepts] = patterns;
            Rights { may_call, emits, listens, intercepts }
        };
        let granted = rights(RIGHTS.map(|right| words.patterns(right)));
        let origin = words.named.get("origin").copied().unwrap_or(name);
        let authority = match () {
            () if words.named.contains_key("holds") => Authority::of(origin, self.hold(name, words)),
            () if granted != Rights::default() => Authority::granted(origin, granted),
            () => Authority::full(origin),
        };
        if words.named.get("asks") != Some(&"later") {
            let asked = words.patterns("asks");
            let asked = if asked.is_empty() { vec![Pattern::parse("*").unwrap()] } else { asked };
            authority.ask_for(rights(RIGHTS.map(|_| asked.clone())));
        }
        let port = self.kernel.attach(role, name.to_owned(), quota, authority);
        self.ports.insert(name.to_owned(), port);
    }
}

/// The events of a line, with what is declared of them.
fn declared(directory: &Directory, words: &mut Words<'_>) -> Vec<Declared> {
    let timeout = words.option("timeout").map(Duration::from_millis);
    let work = words.named.contains_key("attempts").then(|| {
        let attempts = words.option("attempts").unwrap_or_default();
        Arc::new(Policy { attempts, ..Policy::default() })
    });
    let permission = |of: &str| words.named.get(of).map(|name| directory.permission(name));
    let (permission, emit) = (permission("permission"), permission("emit"));
    let unfrozen = words.named.contains_key("unfrozen");
    let declared = |name| Declared {
        timeout,
        work: work.clone(),
        permission: permission.clone(),
        emit: emit.clone(),
        unfrozen,
        ..Declared::new(name)
    };
    words.events().into_iter().map(declared).collect()
}

/// The request of a line. Somebody else's name without a principal is one that
/// the daemon has vouched for.
fn asked(directory: &Directory, words: &mut Words<'_>) -> Ask {
    let mut ask = Ask::new(words.number(), words.event(), words.data());
    ask.timeout = words.option("timeout").map(Duration::from_millis);
    ask.credit = words.option("credit");
    ask.parent = words.option("parent");
    let vouched = words.named.contains_key("origin") && !words.named.contains_key("principal");
    ask.takes = match words.named.get("like") {
        Some(name) => Takes::Like(EventName::parse(name).unwrap()),
        None if vouched => Takes::Nothing,
        None => Takes::Own,
    };
    ask.on_behalf = words.named.contains_key("on_behalf");
    ask.caller = words.named.get("origin").map(|&origin| {
        let holder = words.named.get("principal").and_then(|name| directory.find(name));
        let principal = holder.unwrap_or_else(|| Principal::new(origin, None, u64::MAX));
        Arc::new(Caller { origin: origin.into(), principal })
    });
    ask.chain = words.named.get("chain").map(|&text| text.replace('>', " ").into());
    ask.correlation_id = words.named.get("corr").map(|&text| text.into());
    ask.expires_in = words.option("expires").map(Duration::from_millis);
    ask.idempotency_key = words.named.get("key").map(|&text| text.into());
    ask
}

/// The tenant that something belongs to, if it does.
fn whose(envelope: &Envelope) -> String {
    let principal = &envelope.caller.principal;
    principal.tenant.as_ref().map_or(String::new(), |tenant| format!(" of {} in {tenant}", principal.name))
}

fn written(delivery: &Delivery) -> String {
    match delivery {
        Delivery::Request { token, envelope: e } => {
            let what = if e.deadline_ms.is_none() { "fact" } else { "request" };
            let mut line = format!("{what} {token} {} {} from {}", e.event, text(&e.data), e.origin);
            if let Some(deadline_ms) = e.deadline_ms.filter(|&at| at != e.at_ms + 60_000) {
                write!(line, " until {deadline_ms}").unwrap();
            }
            if let Some(policy) = &e.work {
                write!(line, " attempts {}", policy.attempts).unwrap();
                if policy.expires_ms != Policy::default().expires_ms {
                    write!(line, " expires {}", policy.expires_ms).unwrap();
                }
            }
            if let Some(credit) = e.credit {
                write!(line, " credit {credit}").unwrap();
            }
            if let Some(correlation_id) = &e.correlation_id {
                write!(line, " corr {correlation_id}").unwrap();
            }
            if let Some(chain) = e.chain.as_ref().filter(|chain| chain.contains(' ')) {
                write!(line, " chain {}", chain.replace(' ', ">")).unwrap();
            }
            line + &whose(e)
        }
        Delivery::Event { sub, envelope: e, .. } => {
            let cause = e.correlation_id.as_ref().map_or(String::new(), |id| format!(" corr {id}"));
            let chain = e.chain.as_ref().filter(|chain| chain.contains(' '));
            let cause = chain.map_or(cause, |chain| format!(" chain {}", chain.replace(' ', ">")));
            format!("event {sub} {} {} from {}{cause}{}", e.event, text(&e.data), e.origin, whose(e))
        }
        Delivery::Cancel { token } => format!("cancel {token}"),
        Delivery::Credit { token, n } => format!("credit {token} {n}"),
        Delivery::Answer { id, answer, .. } => match answer {
            Answer::Reply(data) => format!("reply {id} {}", text(data)),
            Answer::Chunk(data) => format!("chunk {id} {}", text(data)),
            Answer::End(data) => format!("end {id} {}", text(data)),
            Answer::Accepted { request_id, .. } => format!("accepted {id} {request_id}"),
            Answer::Refusal(refusal) => format!("refused {id} {}", no(refusal)),
        },
        Delivery::Intercept { token, stage, event, data, origin, .. } => {
            let stage = if *stage == Stage::Before { "before" } else { "after" };
            format!("intercept {token} {stage} {event} {} from {origin}", text(data))
        }
    }
}
