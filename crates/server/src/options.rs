//! What a server is told when it is started.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use crate::Tokens;

/// How a server listens, who may use it, and what a request may take.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where it listens; port 0 is one that the system chooses.
    pub address: SocketAddr,
    /// Who may run models, and who may change weights.
    pub tokens: Tokens,
    /// Certificate chain and private key, as PEM files. Without them connections are not encrypted.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The most bytes of a request that runs a model.
    pub max_body: usize,
    /// The most memory that the bodies of all such requests take together.
    pub max_memory: usize,
    /// The most connections at a time; others wait to be accepted.
    pub max_connections: usize,
    /// How long a request may take from its head to the end of its answer, unless it asks for less.
    pub timeout: Duration,
    /// How long running requests may take when the server is stopped.
    pub grace: Duration,
    /// How long the head of a request, or the handshake before it, may take; as long a connection may be idle.
    pub head_patience: Duration,
    /// How long the next part of a body may take.
    pub body_patience: Duration,
    /// Where spans are sent. Without it none are made.
    pub traces: Option<TraceOptions>,
}

/// What becomes of spans.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceOptions {
    /// A collector of OpenTelemetry that takes OTLP over HTTP: `http://HOST:PORT`.
    pub collector: String,
    /// The part of all requests that spans are made of, from 0 to 1. A caller that says whether it traces is followed.
    pub sample: f64,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            address: (Ipv4Addr::LOCALHOST, 8000).into(),
            tokens: Tokens::default(),
            tls: None,
            max_body: 64 << 20,
            max_memory: 1 << 30,
            max_connections: 1024,
            timeout: Duration::from_secs(60),
            grace: Duration::from_secs(30),
            head_patience: Duration::from_secs(30),
            body_patience: Duration::from_secs(15),
            traces: None,
        }
    }
}

/// How a model is served.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// Requests that wait for a run; more are refused.
    pub queue: usize,
    /// The most rows that run together. 1 runs each request alone.
    pub max_batch: usize,
    /// How long a request waits for others to run with.
    pub batch_wait: Duration,
    /// Runs at a time.
    pub workers: usize,
    /// Whether the generation before the serving one is kept, to be rolled back to. It takes the memory of the slots that differ.
    pub keep_previous: bool,
    /// The folder that weight files are staged from by name. Without it weights come in bodies only.
    pub weights_root: Option<PathBuf>,
    /// The folder whose files and folders are the adapters that requests name.
    pub adapters: Option<PathBuf>,
    /// The most bytes of slots that the adapters of requests take beside those of the model.
    pub adapter_memory: usize,
    /// Where weights that arrive in bodies are kept until they are released.
    pub uploads: PathBuf,
    /// The most bytes of weights in a body; 4 times those of the model's sources if not set.
    pub max_upload: Option<u64>,
}

impl Default for ModelOptions {
    fn default() -> Self {
        ModelOptions {
            queue: 256,
            max_batch: 1,
            batch_wait: Duration::ZERO,
            workers: 1,
            keep_previous: true,
            weights_root: None,
            adapters: None,
            adapter_memory: 1 << 30,
            uploads: std::env::temp_dir(),
            max_upload: None,
        }
    }
}
