//! Requests that are durable work: where they stand is known by the plugin
//! that keeps work, over restarts too, so it is asked there.

use ksi_sdk::{
    prelude::{CallOptions, Code, Ctx, Duration, Refusal},
    protocol::{
        decode,
        work::{WaitWork, WorkInfo, WorkName, WorkState},
    },
};

use crate::payload::{GetAnswer, State};

/// What the keeper is given beyond the time that it shall wait.
const SLACK: Duration = Duration::from_secs(5);

/// Stops a request, wherever it is.
pub(crate) async fn cancel(ctx: &Ctx, request_id: &str) -> Result<State, Refusal> {
    let ask = WorkName { request_id: request_id.to_owned() };
    let info: WorkInfo = match ctx.request("work:cancel", &ask).await {
        // It had ended otherwise before.
        Err(refusal) if refusal.code == Code::Conflict => ctx.request("work:get", &ask).await?,
        answer => answer?,
    };
    Ok(match state(info.state) {
        State::Queued | State::Running => State::Cancelled,
        ended => ended,
    })
}

/// Fetches what became of a request, and waits for it for so long.
pub(crate) async fn get(ctx: &Ctx, request_id: String, wait: Duration) -> Result<GetAnswer, Refusal> {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let ask = WaitWork { request_id, timeout_ms: Some(wait_ms) };
    let timeout = Some(wait + SLACK);
    let options = CallOptions { timeout, ..CallOptions::default() };
    let info: WorkInfo = ctx.request_with("work:wait", &ask, options).await?;
    let result = info.result.map(|payload| decode(&payload.0)).transpose().map_err(|refusal| {
        // A result of another event is under this name.
        let message = format!("{} is no completion: {}", ask.request_id.escape_debug(), refusal.message);
        Refusal::new(Code::InvalidPayload, message).hint("`work:get` shows what it is")
    })?;
    if info.state == WorkState::Done && result.is_none() {
        let message = format!("{} is done, and its result is no longer kept", ask.request_id.escape_debug());
        return Err(Refusal::new(Code::NotFound, message)
            .hint("results are kept for a limited time, and while there is room: fetch them sooner"));
    }
    let refusal = info.refusal.filter(|_| info.state.is_end());
    Ok(GetAnswer { request_id: ask.request_id, state: state(info.state), result, refusal })
}

fn state(state: WorkState) -> State {
    match state {
        WorkState::Accepted | WorkState::Waiting => State::Queued,
        WorkState::Leased => State::Running,
        WorkState::Done => State::Done,
        WorkState::Cancelled => State::Cancelled,
        WorkState::Failed | WorkState::Expired | WorkState::Dead | WorkState::Unknown => State::Failed,
    }
}
