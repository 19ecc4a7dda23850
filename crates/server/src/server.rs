//! The server: its models, its listener, its connections, and how it stops.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use regraft::Model;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    runtime::Handle,
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    ModelOptions, ServeError, ServerOptions,
    auth::Guard,
    body::Budget,
    error::{Kind, Refusal},
    files::is_plain_name,
    gathering::Gathering,
    http,
    opening::Opening,
    served::Served,
    tasks::Tasks,
    tls,
    traces::Traces,
};

/// Requests of one connection at a time, where a connection has several.
const STREAMS: u32 = 128;

/// What all connections share.
pub(crate) struct Shared {
    models: BTreeMap<String, Arc<Served>>,
    pub(crate) options: ServerOptions,
    pub(crate) guard: Guard,
    pub(crate) budget: Budget,
    pub(crate) traces: Traces,
    stopping: AtomicBool,
    started: Instant,
}

impl Shared {
    pub(crate) fn model(&self, name: &str) -> Result<&Arc<Served>, Refusal> {
        self.models.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.models.keys().map(String::as_str).collect();
            let name: String = name.chars().take(128).collect();
            Refusal::new(Kind::NotFound, format!("there is no model `{name}`; there are {}", names.join(", ")))
        })
    }

    pub(crate) fn models(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.models.values()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Whether every model can run.
    pub(crate) fn is_ready(&self) -> bool {
        !self.is_stopping() && self.models.values().all(|served| served.is_ready())
    }

    pub(crate) fn overview(&self) -> Value {
        let models: Vec<Value> = self.models().map(|served| served.overview()).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"), "seconds": self.started.elapsed().as_secs_f64(),
            "ready": self.is_ready(), "models": models,
        })
    }
}

/// A server before it listens: options and models.
#[derive(Debug)]
pub struct Server {
    options: ServerOptions,
    models: Vec<(String, Model, ModelOptions)>,
}

impl Server {
    /// A server without models.
    ///
    /// # Errors
    /// [`ServeError::OpenToAll`] when others than this machine would reach a server without tokens.
    pub fn new(options: ServerOptions) -> Result<Server, ServeError> {
        if !options.address.ip().is_loopback() && options.tokens.is_empty() {
            return Err(ServeError::OpenToAll(options.address));
        }
        Ok(Server { options, models: Vec::new() })
    }

    /// Serves `model` under `name`.
    ///
    /// # Errors
    /// When the name is taken, or cannot stand in a path.
    pub fn add(&mut self, name: &str, model: Model, options: ModelOptions) -> Result<(), ServeError> {
        if !is_plain_name(name) {
            return Err(ServeError::Name(name.to_owned()));
        }
        if self.models.iter().any(|(other, ..)| other == name) {
            return Err(ServeError::NameTwice(name.to_owned()));
        }
        self.models.push((name.to_owned(), model, options));
        Ok(())
    }

    /// Listens, and serves until `stop` is done. Then no new connections are taken, requests under way are answered as far as the
    /// time of grace allows, and the workers end. `listening` is told the address, once requests are answered there.
    ///
    /// # Errors
    /// When a model cannot be served as its options say, or the address cannot be listened on.
    pub fn run(
        self,
        listening: impl FnOnce(SocketAddr, &[ServedModel]),
        stop: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        if self.models.is_empty() {
            return Err(ServeError::NoModels);
        }
        let acceptor = self.options.tls.as_ref().map(|(chain, key)| tls::acceptor(chain, key)).transpose()?;
        let mut models = BTreeMap::new();
        for (name, model, options) in self.models {
            models.insert(name.clone(), Served::new(name, model, options)?);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|error| ServeError::System { what: "threads cannot be started", error })?;
        let traces = Traces::start(self.options.traces.as_ref(), runtime.handle())?;
        models.values().try_for_each(Served::start)?;
        let shared = Arc::new(Shared {
            models,
            guard: Guard::new(self.options.tokens.clone(), self.options.address.ip()),
            budget: Budget::new(self.options.max_memory),
            traces,
            options: self.options,
            stopping: AtomicBool::new(false),
            started: Instant::now(),
        });
        let served = runtime.block_on(serve(shared.clone(), acceptor, listening, stop));
        shared.models().for_each(|served| served.stop());
        shared.traces.stop();
        runtime.shutdown_timeout(Duration::from_secs(1));
        served
    }
}

/// What is told of a model when the server listens.
#[derive(Clone, Debug)]
pub struct ServedModel {
    /// Its name.
    pub name: String,
    /// The most rows that run together, and whether they get the bits that they get alone, as far as it was tried.
    pub batching: (usize, bool),
}

async fn serve(
    shared: Arc<Shared>,
    acceptor: Option<TlsAcceptor>,
    listening: impl FnOnce(SocketAddr, &[ServedModel]),
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let address = shared.options.address;
    let failed = |error| ServeError::Listen { address, error };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let told: Vec<ServedModel> = (shared.models())
        .map(|m| ServedModel { name: m.name.clone(), batching: (m.batching.rows, m.batching.bit_equal) })
        .collect();
    listening(listener.local_addr().map_err(failed)?, &told);
    let connections = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(shared.options.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let tasks = Tasks::new(&Handle::current());
    let mut stop = std::pin::pin!(stop);
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            biased;
            () = &mut stop => break,
            next = next => next,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                after_failed_accept(&error).await;
                continue;
            }
        };
        // Answers are written at once: waiting to fill a packet costs more than it saves.
        let _ = stream.set_nodelay(true);
        let (shared, watcher, acceptor) = (shared.clone(), connections.watcher(), acceptor.clone());
        let own = tasks.clone();
        tasks.spawn(async move {
            match acceptor {
                None => connection(shared, own, stream, watcher).await,
                Some(acceptor) => {
                    if let Ok(Ok(stream)) = timeout(shared.options.head_patience, acceptor.accept(stream)).await {
                        connection(shared, own, stream, watcher).await;
                    }
                }
            }
            drop(place);
        });
    }
    shared.stopping.store(true, Ordering::SeqCst);
    drop(listener);
    // Those who are not done by then are cut off.
    let _ = timeout(shared.options.grace, connections.shutdown()).await;
    Ok(())
}

/// A client that is gone already costs nothing; without files left it does not help to try again at once.
async fn after_failed_accept(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionReset) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Answers the requests of a connection until it ends.
async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    shared: Arc<Shared>,
    tasks: Tasks,
    stream: S,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let patience = shared.options.head_patience;
    let mut builder = auto::Builder::new(tasks);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(patience).max_buf_size(128 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .max_header_list_size(32 << 10)
        .keep_alive_interval(patience)
        .keep_alive_timeout(patience);
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(http::answer(shared, request).await) }
    });
    let stream = Gathering::new(Opening::new(stream, patience), Opening::is_http2);
    let connection = builder.serve_connection(TokioIo::new(stream.clone()), service).into_owned();
    let mut connection = std::pin::pin!(watcher.watch(connection));
    // Whatever ends a connection is its client's matter.
    std::future::poll_fn(|cx| {
        let is_over = connection.as_mut().poll(cx).is_ready();
        let sent = stream.poll_send(cx);
        if is_over || matches!(sent, Poll::Ready(Err(_))) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Done when the system asks the process to end: SIGTERM, or SIGINT (Ctrl-C).
pub async fn asked_to_stop() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}
