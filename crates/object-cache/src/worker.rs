use std::{convert::Infallible, future::Future, io, sync::mpsc, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// A thread that drives requests, for callers that wait. A runtime of one's own must have its own thread: a caller may be
/// inside another runtime, where entering a second one panics. It also keeps idle connections alive between calls.
pub(crate) struct Worker {
    requests: Handle,
    /// Nothing is ever sent: dropping it stops the thread.
    _running: oneshot::Sender<Infallible>,
}

impl Worker {
    pub(crate) fn start() -> io::Result<Worker> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let requests = runtime.handle().clone();
        let (running, stopped) = oneshot::channel::<Infallible>();
        thread::Builder::new().name("object-cache".into()).spawn(move || {
            let Err(_) = runtime.block_on(stopped);
            // A plain drop would wait for a name lookup or a file system that hangs.
            runtime.shutdown_background();
        })?;
        Ok(Worker { requests, _running: running })
    }

    /// Waits for `request`; `None` when it panicked.
    pub(crate) fn wait_for<T: Send + 'static>(&self, request: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (done, result) = mpsc::sync_channel(1);
        self.requests.spawn(async move {
            // The caller is still there: it waits below.
            let _ = done.send(request.await);
        });
        result.recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_a_request_stays_there() {
        let worker = Worker::start().unwrap();
        assert_eq!(worker.wait_for(async { 1 }), Some(1));
        assert_eq!(
            worker.wait_for(async {
                if true {
                    panic!("on purpose")
                }
            }),
            None
        );
        assert_eq!(worker.wait_for(async { 2 }), Some(2));
    }
}
