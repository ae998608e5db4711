//! The thread on which a plugin talks to its server.
//!
//! Handlers run on the plugin's own thread and wait here for what happens on
//! that one. A handler that goes takes its work with it, and with the work the
//! connection.

use std::future::Future;

use ksi_provider::{Generated, failure::Failure};
use ksi_sdk::prelude::{Code, Duration, Refusal};
use tokio::{
    runtime::{Builder, Runtime},
    task::AbortHandle,
    time::timeout,
};

use crate::output::Output;

/// One attempt at an answer.
pub trait Attempt: Send + 'static {
    /// Passes the pieces on and gives back the end.
    fn run(self, output: &mut Output) -> impl Future<Output = Result<Generated, Refusal>> + Send;
}

/// A runtime with one thread.
pub struct Worker {
    plugin: &'static str,
    /// Taken when the plugin goes.
    runtime: Option<Runtime>,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// Where the system has no more threads.
    pub fn start(plugin: &'static str) -> Result<Self, Refusal> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name(plugin).enable_all().build();
        let runtime = runtime.map_err(|error| {
            Refusal::new(Code::Unavailable, format!("{plugin}: cannot start a thread: {error}"))
        })?;
        Ok(Self { plugin, runtime: Some(runtime) })
    }

    /// Carries work out on the thread, and waits for it. Dropping the future
    /// drops the work.
    ///
    /// # Errors
    ///
    /// Those of the work, and `internal` where it panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
    ) -> Result<T, Refusal> {
        struct AbortOnDrop(AbortHandle);
        impl Drop for AbortOnDrop {
            fn drop(&mut self) {
                self.0.abort();
            }
        }
        let runtime = self.runtime.as_ref().expect("it is taken only when this is dropped");
        let task = runtime.spawn(work);
        let _abort = AbortOnDrop(task.abort_handle());
        let lost = |_| Refusal::new(Code::Internal, format!("{}: the work was lost", self.plugin));
        task.await.map_err(lost)?
    }

    /// Makes one attempt at an answer, within `total`.
    ///
    /// # Errors
    ///
    /// Its failure, which says whether pieces were passed on before it.
    pub async fn generate(
        &self,
        attempt: impl Attempt,
        mut output: Output,
        total: Duration,
    ) -> Result<Generated, Refusal> {
        let plugin = self.plugin;
        let work = async move {
            let late = || {
                let message = format!("provider `{plugin}` did not answer within {} ms", total.as_millis());
                let hint = format!(
                    "`timeout_ms` of a request, and `timeouts.total_ms` under [plugins.{plugin}.config]"
                );
                Failure::Timeout.refusal(message).hint(hint)
            };
            let done = timeout(total, attempt.run(&mut output)).await.unwrap_or_else(|_| Err(late()));
            done.map_err(|refusal| output.blame(refusal))
        };
        self.run(Box::pin(work)).await
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Whoever looks up a name may do so for long.
            runtime.shutdown_background();
        }
    }
}
