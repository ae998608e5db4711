//! How a generation begins: the library is checked, loaded here or in a child,
//! and is given its events once it is ready.

use std::sync::Arc;

use ksi_host::{Image, Instance, Library};
use ksi_identity::Authority;
use ksi_kernel::{Declared, Quota, Role};
use ksi_protocol::{
    Bytes, Code, Descriptor, EventName, Frame, PROTOCOL_VERSION, Refusal,
    frame::{Class, Setup},
    json,
    system::{Death, Placement},
};
use ksi_trust::Digest;
use nix::unistd::Pid;
use tokio::sync::mpsc;

use super::{
    Runner,
    body::{Body, Heartbeat, Running, listen},
    claims,
    exit::Watch,
};
use crate::{
    config,
    hub::{Handle, Port},
    plugin::{
        actor::{Actor, ActorHost},
        board::with,
        grants,
        guest::{Alias, Guest, SUBS_FROM},
        link::Link,
        spec::Keyed,
    },
    redaction,
};

impl Runner {
    pub(super) async fn launch(&mut self) -> Result<(), Refusal> {
        self.killed = false;
        self.death = Death::default();
        let (image, digest) = self.means.trust.vouch(Image::open(&self.spec.library)?).await?;
        if image.child_only {
            self.placement = Placement::Child;
        }
        if self.placement == Placement::InProcess && self.stuck.as_ref().is_some_and(|actor| actor.is_stuck())
        {
            tracing::warn!(
                plugin = self.spec.plugin.name,
                "it still hangs in this process, so it stays in a child"
            );
            self.placement = Placement::Child;
        }
        std::fs::create_dir_all(&self.spec.dir).map_err(|error| {
            Refusal::new(Code::Unavailable, format!("cannot make {}: {error}", self.spec.dir.display()))
        })?;
        let (life, receiver) = mpsc::channel(64);
        self.life = receiver;
        self.heartbeat = Heartbeat::default();
        self.reason = None;
        let outer = self.spec.plugin.namespace.clone();
        let alias = outer.map(|outer| Alias { inner: image.name.clone(), outer });
        let guest = Guest::new(&self.spec.plugin.name, alias, life, self.spec.speaks_of_all());
        let generation = with(&self.board, |board| {
            board.status.generation += 1;
            board.status.generation
        });
        match self.placement {
            Placement::InProcess => {
                self.launch_here(guest, image).await?;
                self.tell_started();
            }
            // Its host will say in what sandbox it has started.
            Placement::Child => self.launch_child(guest, generation, digest).await?,
        }
        Ok(())
    }

    /// How the kernel and everybody else knows the plugin.
    pub(super) fn origin(&self) -> String {
        format!("plugin:{}", self.spec.plugin.name)
    }

    fn attach(&self, handle: Handle) -> Arc<Port> {
        let plugin = &self.spec.plugin;
        let config::Limits { holding, per_second, .. } = plugin.limits;
        let quota = Quota { holding, per_second, ..Quota::default() };
        let authority = Authority::granted(&self.origin(), self.spec.rights.clone());
        self.means.hub.kernel.attach(Role::Plugin, handle, quota, authority)
    }

    async fn launch_here(&mut self, guest: Guest, image: Image) -> Result<(), Refusal> {
        let actor = Actor::new(guest, &self.means.hub, &self.means.watchdog, self.spec.plugin.restart.hang);
        let port = self.attach(Handle::Actor(actor.clone()));
        actor.guest.set_port(&port);
        let host = Arc::new(ActorHost(Arc::downgrade(&actor)));
        let config = self.configuration()?;
        let dir = self.spec.dir.clone();
        let created = tokio::task::spawn_blocking(move || {
            let library = Library::load(&image)?;
            let instance = Instance::create(&library, host, &config, &dir)?;
            Ok::<_, Refusal>((library.descriptor, instance))
        });
        let created = match tokio::time::timeout(self.spec.plugin.restart.start_timeout, created).await {
            Ok(Ok(created)) => created,
            Ok(Err(_)) => Err(Refusal::new(Code::Internal, "loading panicked")),
            Err(_) => Err(Refusal::new(Code::Timeout, "did not start in time")),
        };
        match created {
            Ok((descriptor, instance)) => {
                actor.guest.described(Box::new(descriptor));
                actor.begin(instance);
                self.running = Some(Running { port, body: Body::Actor(actor) });
                Ok(())
            }
            Err(refusal) => {
                let refusal = redaction::refusal(refusal);
                self.detach(&port, "it did not start");
                if matches!(refusal.code, Code::Internal | Code::Timeout) {
                    // A panic or a thread that is lost; neither is repeated
                    // in this process.
                    self.placement = Placement::Child;
                }
                Err(refusal)
            }
        }
    }

    /// What the plugin is configured with, and what only the daemon may say.
    /// What a manager says comes in between: it names no secret, and takes
    /// nothing back.
    fn configuration(&self) -> Result<Bytes, Refusal> {
        let plugin = &self.spec.plugin;
        let mut config = plugin.config.clone();
        self.means.secrets.hand_out(&plugin.name, &mut config)?;
        if let Some(table) = config.as_object_mut() {
            for (key, value) in self.spec.instance.iter().flat_map(|keyed| &keyed.on_top) {
                table.insert(key.clone(), value.clone());
            }
            table.retain(|_, value| !value.is_null());
            if plugin.instances {
                table.insert("instances".into(), true.into());
            }
            if let Some(Keyed { key, .. }) = &self.spec.instance {
                table.insert("instance".into(), key.as_str().into());
            }
        }
        self.means.trust.instruct(&mut config);
        json::from_json(&config)
    }

    /// `digest`: the one that the file must have when the child opens it.
    async fn launch_child(
        &mut self,
        guest: Guest,
        generation: u32,
        digest: Option<Digest>,
    ) -> Result<(), Refusal> {
        let config = self.configuration()?;
        let mut sandbox = grants::of(&self.spec, &self.means.writable);
        let failed = |error: std::io::Error| Refusal::new(Code::Unavailable, error.to_string());
        let spawned = self.means.spawner.spawn(&self.spec.dir).await.map_err(failed)?;
        let (mut child, host) = (Box::new(spawned.child), spawned.host);
        let name = &self.spec.plugin.name;
        let cgroup =
            grants::put_into_group(&self.means.cgroups, name, generation, child.id(), &mut sandbox).await;
        let group = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        let link = Link::new(guest, spawned.link).map_err(failed)?;
        let port = self.attach(Handle::Link(link.clone()));
        link.guest.set_port(&port);
        link.send(&Frame::Setup(Setup {
            version: PROTOCOL_VERSION,
            name: self.spec.plugin.name.clone(),
            library: self.spec.library.display().to_string(),
            sha256: digest.map(|digest| digest.to_string()),
            dir: self.spec.dir.display().to_string(),
            sandbox: Box::new(sandbox),
            probe: None,
            config,
        }));
        let watch = Watch::over(&child);
        let words = tokio::spawn(listen(link.clone(), child.stderr.take(), self.means.hub.clone()));
        let serving = tokio::spawn(link.clone().serve(self.means.hub.clone()));
        self.running = Some(Running {
            port,
            body: Body::Child { link, child, watch, group, cgroup, host, serving, words },
        });
        Ok(())
    }

    /// Gives the plugin its events.
    pub(super) fn open(&mut self) -> Result<(), Refusal> {
        let Some(running) = &self.running else { return Ok(()) };
        let guest = running.guest();
        let kernel = &self.means.hub.kernel;
        let Some(descriptor) = with(&self.board, |board| board.descriptor.clone()) else { return Ok(()) };
        let events: Vec<EventName> =
            descriptor.requests.iter().map(|spec| guest.outer(spec.event.clone())).collect();
        self.declare(self.absent());
        kernel.own(&running.port, &events)?;
        if descriptor.keeps_work {
            kernel.keep(&running.port)?;
            self.means.hub.kept.notify_waiters();
        }
        let not_granted = self.not_granted(&descriptor);
        for lacks in &not_granted {
            let name = &self.spec.plugin.name;
            tracing::warn!(plugin = name, "it asks for more than plugins.{name} grants: {lacks}");
        }
        with(&self.board, |board| board.status.not_granted = not_granted);
        let now_ms = self.means.hub.now_ms();
        for (id, pattern) in (SUBS_FROM..).zip(&descriptor.listens) {
            kernel.subscribe(&running.port, id, pattern.clone(), Class::Live, now_ms)?;
        }
        // Also where it has a word on nothing, it is not expected any more.
        kernel.intercept(&running.port, descriptor.intercepts.iter().cloned());
        self.is_heard = true;
        Ok(())
    }

    /// What a plugin asks to hear or to have a word on beyond what it is granted.
    /// It runs with what it is granted, and whoever looks for the rest is told.
    pub(super) fn not_granted(&self, descriptor: &Descriptor) -> Vec<String> {
        match self.spec.instance {
            None => claims::not_granted(&self.spec.rights, descriptor),
            // It has what its manager asks for, and hears of nothing.
            Some(_) => Vec::new(),
        }
    }

    /// Declares the plugin's events, with what is said while nobody answers.
    pub(in crate::plugin) fn declare(&self, absent: Refusal) {
        let alias = self.spec.plugin.namespace.as_deref();
        let described = with(&self.board, |board| board.descriptor.clone());
        let mut names: Vec<(EventName, EventName)> =
            self.spec.known.iter().map(|name| (name.clone(), name.clone())).collect();
        let requests = described.iter().flat_map(|descriptor| &descriptor.requests).map(|spec| &spec.event);
        let facts = described.iter().flat_map(|descriptor| &descriptor.emits).map(|spec| &spec.event);
        for inner in requests.chain(facts) {
            let outer = match (alias, inner.as_str().split_once(':')) {
                (Some(outer), Some((_, action))) => EventName::parse(&format!("{outer}:{action}")).ok(),
                _ => None,
            };
            names.push((outer.unwrap_or_else(|| inner.clone()), inner.clone()));
        }
        let declare = |(name, inner): (EventName, EventName)| {
            let declared = (self.means.policies)(name, inner.as_str());
            match self.spec.instance {
                None => declared,
                // Its manager was asked before: that was decided, and written down.
                Some(_) => Declared { audited: false, unfrozen: true, ..declared },
            }
        };
        // Of a fact that it tells and that is another's, the other one says this.
        names.retain(|(name, _)| self.spec.plugin.owns(name.namespace()));
        let declared: Vec<Declared> = names.into_iter().map(declare).collect();
        self.means.hub.kernel.declare(&self.origin(), &declared, absent);
    }
}
