//! Who answers what: an arm for each request of the daemon's own.
//!
//! # Invariants
//!
//! The compiler holds this table to the one of [`own`](crate::own): a request
//! without an arm is none that compiles, and an arm takes what its request is
//! asked with and gives what that is answered with.

use std::sync::Arc;

use ksi_protocol::{Bytes, Code, Refusal, decode, encode};
use serde::{Serialize, de::DeserializeOwned};

use super::System;
use crate::{
    hub::SystemRequest,
    own::{Request, Types},
    plugin::actor::apart,
};

/// A request that has yet to be read.
struct Asked {
    token: u64,
    data: Bytes,
}

impl System {
    /// Has a request answered: at once, or in a task of its own where that waits.
    pub(super) fn answer(self: &Arc<Self>, asked: SystemRequest) {
        let SystemRequest { token, envelope } = asked;
        let Some(request) = Request::of(envelope.event.as_str()) else {
            let message = format!("the daemon does not answer `{}`", envelope.event);
            return self.hub.reply(token, Err(Refusal::new(Code::UnknownEvent, message)));
        };
        // Whose instances or tokens it is about.
        let origin = envelope.origin.clone();
        let asker = envelope.caller.principal.clone();
        let asked = Asked { token, data: envelope.data };
        use Request as R;
        match request {
            R::Health(of) => self.now(of, &asked, Self::look),
            R::Ready(of) => self.later(of, asked, Self::ready),
            R::Status(of) => self.now(of, &asked, Self::status),
            R::Discover(of) => self.now(of, &asked, Self::discover),
            R::Describe(of) => self.now(of, &asked, Self::describe),
            R::Shutdown(of) => self.now(of, &asked, Self::shutdown),
            R::Restart(of) => self.later(of, asked, Self::restart),
            R::Freeze(of) => self.later(of, asked, Self::freeze),
            R::PluginList(of) => self.later(of, asked, Self::list_plugins),
            R::PluginInspect(of) => self.later(of, asked, Self::inspect_plugin),
            R::PluginProbe(of) => self.later(of, asked, Self::probe_plugin),
            R::PluginLoad(of) => self.later(of, asked, Self::load_plugin),
            R::PluginUnload(of) => self.later(of, asked, Self::unload_plugin),
            R::PluginReload(of) => self.later(of, asked, Self::reload_plugin),
            R::PluginRestart(of) => self.later(of, asked, Self::restart_plugin),
            R::PluginQuarantine(of) => self.later(of, asked, Self::quarantine_plugin),
            R::PluginRelease(of) => self.later(of, asked, Self::release_plugin),
            R::InstanceStart(of) => self.later(of, asked, |it, ask| it.start_instance(origin, ask)),
            R::InstanceStop(of) => self.later(of, asked, |it, ask| it.stop_instance(origin, ask)),
            R::InstanceList(of) => self.later(of, asked, |it, ask| it.list_instances(origin, ask)),
            R::ConfigShow(of) => self.now(of, &asked, Self::show),
            R::ConfigReload(of) => self.later(of, asked, Self::reload),
            R::TokenCreate(of) => self.later(of, asked, |it, ask| it.create_token(asker, ask)),
            R::TokenList(of) => self.later(of, asked, |it, ask| it.list_tokens(asker, ask)),
            R::TokenRevoke(of) => self.later(of, asked, |it, ask| it.revoke_token(asker, ask)),
        }
    }

    /// Answers what needs no waiting.
    fn now<Q: DeserializeOwned, A: Serialize>(
        &self,
        _: Types<Q, A>,
        asked: &Asked,
        work: impl FnOnce(&Self, Q) -> Result<A, Refusal>,
    ) {
        let answer = decode(&asked.data).and_then(|ask| work(self, ask));
        self.hub.reply(asked.token, encoded(answer));
    }

    /// Answers what takes its time.
    fn later<Q, A, F>(
        self: &Arc<Self>,
        _: Types<Q, A>,
        asked: Asked,
        work: impl FnOnce(Arc<Self>, Q) -> F + Send + 'static,
    ) where
        Q: DeserializeOwned + Send,
        A: Serialize + Send,
        F: Future<Output = Result<A, Refusal>> + Send + 'static,
    {
        let system = self.clone();
        let answering = async move {
            let answer = match decode(&asked.data) {
                Ok(ask) => work(system.clone(), ask).await,
                Err(refusal) => Err(refusal),
            };
            system.hub.reply(asked.token, encoded(answer));
        };
        self.waiting.spawn(apart(answering));
    }
}

fn encoded<A: Serialize>(answer: Result<A, Refusal>) -> Result<Bytes, Refusal> {
    let failed = |error| Refusal::new(Code::Internal, format!("cannot encode the answer: {error}"));
    encode(&answer?).map_err(failed)
}
