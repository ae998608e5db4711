//! All that the author of a KSI plugin sees.
//!
//! A plugin is a type that implements [`Plugin`], registers async handlers for
//! events, and is exported with [`export!`]. The same library runs inside the
//! daemon or in a supervised child process, and cannot tell which. Handlers run
//! on one thread at a time, so `Rc` and `RefCell` are fine; a handler that
//! awaits does not block the next event. What must block goes through
//! [`Ctx::spawn_blocking`].
//!
//! ```
//! use ksi_sdk::prelude::*;
//!
//! struct Greeter;
//!
//! /// Greet someone.
//! #[derive(Deserialize, JsonSchema)]
//! struct Hello {
//!     /// Whom to greet.
//!     name: String,
//! }
//!
//! /// A greeting.
//! #[derive(Serialize, JsonSchema)]
//! struct Greeting {
//!     /// The greeting.
//!     text: String,
//! }
//!
//! impl Plugin for Greeter {
//!     const NAME: &'static str = "greeter";
//!     const ABOUT: &'static str = "Greets people";
//!     fn start(_ctx: &Ctx) -> Result<Self, Refusal> {
//!         Ok(Self)
//!     }
//!     fn register(on: &mut Register<Self>) {
//!         on.request("greeter:hello", Self::hello);
//!     }
//! }
//!
//! impl Greeter {
//!     async fn hello(self: Rc<Self>, _ctx: Ctx, hello: Hello) -> Result<Greeting, Refusal> {
//!         Ok(Greeting { text: format!("Hello, {}!", hello.name) })
//!     }
//! }
//!
//! ksi_sdk::export!(Greeter);
//!
//! # fn main() {
//! use ksi_sdk::testing::FakeHost;
//! let host = FakeHost::<Greeter>::start(serde_json::json!({})).unwrap();
//! let answer = host.request("greeter:hello", serde_json::json!({"name": "Ada"})).unwrap();
//! assert_eq!(answer["text"], "Hello, Ada!");
//! # }
//! ```
//!
//! # Invariants
//!
//! - A panic never leaves the library: the exports catch it, and the host
//!   restarts the plugin.
//! - A request is answered exactly once, also when its handler is cancelled.

pub mod plugin;
pub mod register;
pub mod context;
pub mod chunks;
pub mod call;
pub mod state;
mod cancel;
mod clock;
mod core;
mod flow;
mod instance;
mod link;
mod secret;
mod signal;
pub mod testing;
#[doc(hidden)]
pub mod ffi;

pub use call::{Answers, CallOptions, ForwardOptions, Part};
pub use cancel::CancelToken;
pub use chunks::Chunks;
pub use context::{Ctx, Level};
pub use ksi_abi as abi;
pub use ksi_protocol as protocol;
#[cfg(feature = "trust")]
pub use ksi_trust as trust;
pub use plugin::Plugin;
pub use register::{Event, Intercepted, Kept, Register};
pub use secret::Secret;
pub use signal::{Signal, yield_now};
pub use state::{Batch, State, Versioned};

/// What nearly every plugin needs.
pub mod prelude {
    pub use std::{rc::Rc, time::Duration};

    pub use ksi_protocol::{Bytes, Code, Refusal, frame::Stage};
    pub use schemars::{self, JsonSchema};
    pub use serde::{self, Deserialize, Serialize};
    pub use serde_json::json;

    pub use crate::{
        Answers, Batch, CallOptions, CancelToken, Chunks, Ctx, Event, Intercepted, Level, Part, Plugin,
        Register, Secret, State, Versioned,
    };
}

/// Exports a plugin from its library: the header that is read before the
/// library is loaded, and the one entry point.
#[macro_export]
macro_rules! export {
    ($plugin:ty) => {
        #[doc(hidden)]
        #[allow(unsafe_code, non_upper_case_globals)]
        const _: () = {
            #[used]
            #[unsafe(link_section = ".ksi_plugin")]
            static header: $crate::abi::Header = $crate::abi::Header::new(
                <$plugin as $crate::Plugin>::NAME,
                env!("CARGO_PKG_VERSION"),
                $crate::ffi::features::<$plugin>(),
            );

            #[unsafe(no_mangle)]
            extern "C" fn ksi_plugin_v1() -> *const $crate::abi::PluginTable {
                $crate::ffi::table::<$plugin>(env!("CARGO_PKG_VERSION"))
            }
        };
    };
}
