//! Payloads of `completion:route`.

use ksi_sdk::prelude::{Deserialize, JsonSchema, Refusal};
use serde_json::{Map, Value};

use super::Request;

/// Show which models a request could be answered by, the best one first, and what
/// speaks for and against each. Nothing is asked and nothing counted.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct RouteRequest {
    /// Must be true: this only shows. To be answered, ask `completion:request`.
    #[serde(default = "yes")]
    pub dry_run: bool,
    /// The request, as `completion:request` takes it.
    #[serde(flatten)]
    #[schemars(with = "Request")]
    pub request: Map<String, Value>,
}

impl RouteRequest {
    /// The request in it.
    ///
    /// # Errors
    ///
    /// `invalid_payload` where it is none.
    pub fn read(self) -> Result<Request, Refusal> {
        serde_json::from_value(Value::Object(self.request))
            .map_err(|error| Refusal::invalid_payload(error.to_string()))
    }
}

fn yes() -> bool {
    true
}
