//! Echo: answers with what it is asked. The template of a plugin.
use ksi_sdk::prelude::*;

/// The plugin; it has no state.
pub struct Echo;

/// Say something and get it back.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Say {
    /// What to say back.
    text: String,
}

/// What was said.
#[derive(Serialize, JsonSchema)]
struct Said {
    text: String,
}

impl Plugin for Echo {
    const NAME: &'static str = "echo";
    const ABOUT: &'static str = "Answers with what it is asked";
    fn start(_ctx: &Ctx) -> Result<Self, Refusal> {
        Ok(Self)
    }
    fn register(on: &mut Register<Self>) {
        on.request("echo:say", Self::say);
        on.request("echo:keep", Self::say);
    }
}

impl Echo {
    async fn say(self: Rc<Self>, _ctx: Ctx, say: Say) -> Result<Said, Refusal> {
        Ok(Said { text: say.text })
    }
}

ksi_sdk::export!(Echo);
