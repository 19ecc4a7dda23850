//! Why a server does not start, and why a request is refused.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use hyper::StatusCode;
use regraft::{
    AdapterErrorKind, Cause, CheckpointErrorKind, Explanation, Misfit, RunErrorKind, RuntimeErrorKind,
    WeightsErrorKind, adapter::AdapterProblem, delta::DeltaErrorKind,
};
use serde_json::{Value, json};

/// Why a server does not start, or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// Everyone on the network could reach a server that asks for no token.
    #[error(
        "{0} is not a loopback address, and no token is set: everyone who reaches it could use the server; set tokens, or \
         listen on 127.0.0.1"
    )]
    OpenToAll(SocketAddr),
    /// A file of tokens, certificates or keys cannot be used.
    #[error("{}: {why}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A model cannot be called so.
    #[error("`{0}` cannot be the name of a model: use letters, digits, `.`, `_` and `-`, at most 128 of them")]
    Name(String),
    /// Two models have one name.
    #[error("two models are called `{0}`; give each its own name")]
    NameTwice(String),
    /// There is nothing to serve.
    #[error("there is no model to serve")]
    NoModels,
    /// Requests cannot be run together.
    #[error("model `{model}` cannot run requests together: {why}")]
    Batching {
        /// Its name.
        model: String,
        /// Why.
        why: String,
    },
    /// A model cannot be served.
    #[error("model `{model}`: {why}")]
    Model {
        /// Its name.
        model: String,
        /// Why.
        why: String,
    },
    /// Spans cannot be sent there.
    #[error(
        "spans cannot be sent to `{collector}`: {why}; expected the address of a collector, such as http://localhost:4318"
    )]
    Collector {
        /// What was given.
        collector: String,
        /// Why not.
        why: String,
    },
    /// The system refuses something.
    #[error("{what}: {error}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What the system says.
        error: io::Error,
    },
}

/// What kind of refusal it is: the status of HTTP and of gRPC follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    Method,
    SlowBody,
    Conflict,
    TooLarge,
    MediaType,
    Misfit,
    Overloaded,
    Internal,
    Unavailable,
    Deadline,
    Memory,
}

impl Kind {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Kind::BadRequest => StatusCode::BAD_REQUEST,
            Kind::Unauthorized => StatusCode::UNAUTHORIZED,
            Kind::Forbidden => StatusCode::FORBIDDEN,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Method => StatusCode::METHOD_NOT_ALLOWED,
            Kind::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Kind::Misfit => StatusCode::UNPROCESSABLE_ENTITY,
            Kind::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Kind::Memory => StatusCode::INSUFFICIENT_STORAGE,
        }
    }
}

/// Why a request is refused, as it is told to who sent it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    pub(crate) kind: Kind,
    pub(crate) message: String,
    /// What it is about, and what is wrong with it.
    pub(crate) problems: Vec<(String, String)>,
    pub(crate) help: Option<String>,
    pub(crate) retry_after: Option<Duration>,
}

impl Refusal {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Refusal { kind, message: message.into(), problems: Vec::new(), help: None, retry_after: None }
    }

    /// With all parts of an error.
    fn explained(kind: Kind, Explanation { what, problems, help }: Explanation) -> Self {
        Refusal { problems, help, ..Refusal::new(kind, what) }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Refusal::new(Kind::BadRequest, message)
    }

    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Refusal { help: Some(help.into()), ..self }
    }

    pub(crate) fn retry_after(self, time: Duration) -> Self {
        Refusal { retry_after: Some(time), ..self }
    }

    fn problems(self, problems: Vec<(String, String)>) -> Self {
        Refusal { problems, ..self }
    }

    /// The error object of the open inference protocol, with what else is known.
    pub(crate) fn to_json(&self) -> Value {
        let mut object = json!({"error": self.message});
        if !self.problems.is_empty() {
            object["problems"] = self.problems.iter().map(|(name, what)| json!({"name": name, "what": what})).collect();
        }
        if let Some(help) = &self.help {
            object["help"] = help.as_str().into();
        }
        object
    }

    /// Everything in one line, for protocols that have room for no more.
    pub(crate) fn to_line(&self) -> String {
        let problems: Vec<String> = self.problems.iter().map(|(name, what)| format!("{name}: {what}")).collect();
        let mut line = self.message.clone();
        if !problems.is_empty() {
            line = format!("{line}: {}", problems.join("; "));
        }
        match &self.help {
            Some(help) => format!("{line} ({help})"),
            None => line,
        }
    }
}

impl From<regraft::Error> for Refusal {
    fn from(error: regraft::Error) -> Self {
        match &error {
            regraft::Error::Runtime(e) => of_runtime(e.kind()),
            regraft::Error::Weights(e) => of_weights(e.kind()),
            regraft::Error::Adapter(e) => of_adapter(e.kind(), error.explained()),
            regraft::Error::Checkpoint(e) => of_checkpoint(e.kind()),
            regraft::Error::Delta(e) => of_delta(e.kind()),
            other => Refusal::explained(Kind::Misfit, other.explained()),
        }
    }
}

impl From<regraft::RuntimeError> for Refusal {
    fn from(error: regraft::RuntimeError) -> Self {
        of_runtime(error.kind())
    }
}

fn of_runtime(kind: &RuntimeErrorKind) -> Refusal {
    let refuse = |as_kind| Refusal::explained(as_kind, kind.explained());
    match kind {
        RuntimeErrorKind::Input(_) | RuntimeErrorKind::Sizes { .. } => refuse(Kind::BadRequest),
        RuntimeErrorKind::Node { error: RunErrorKind::Data(_), .. } => refuse(Kind::BadRequest),
        RuntimeErrorKind::Weights(kind) => of_weights(kind),
        RuntimeErrorKind::Adapter(kind) => of_adapter(kind, kind.explained()),
        RuntimeErrorKind::Source { .. } | RuntimeErrorKind::AdapterTwice(_) | RuntimeErrorKind::Recipe { .. } => {
            refuse(Kind::Misfit)
        }
        RuntimeErrorKind::Memory(_) | RuntimeErrorKind::OutOfMemory(_) | RuntimeErrorKind::TooLarge { .. } => {
            refuse(Kind::Memory)
        }
        RuntimeErrorKind::NotBound => Refusal::new(Kind::Unavailable, "the model has no weights yet")
            .help("the engine is stripped: stage and publish all of its weights, or start the server with --weights"),
        RuntimeErrorKind::Frozen => {
            Refusal::new(Kind::Conflict, "the engine is frozen: it holds no recipes, so its weights cannot change")
                .help("serve an engine that was compiled with --mode refittable")
        }
        RuntimeErrorKind::NoPrevious => Refusal::new(Kind::Conflict, "there is no generation to go back to"),
        RuntimeErrorKind::Stale => {
            Refusal::new(Kind::Conflict, "another generation was published since this one was staged")
                .help("stage it again")
        }
        RuntimeErrorKind::ChangingInPlace => refuse(Kind::Unavailable),
        _ => refuse(Kind::Internal),
    }
}

fn of_weights(kind: &WeightsErrorKind) -> Refusal {
    let WeightsErrorKind::Fit(misfit) = kind else { return Refusal::new(Kind::Misfit, kind.to_string()) };
    let refusal = Refusal::explained(Kind::Misfit, misfit.explained());
    match advice(misfit) {
        Some(help) => refusal.help(help),
        None => refusal,
    }
}

fn advice(misfit: &Misfit) -> Option<&'static str> {
    Some(match misfit.cause {
        Cause::FewKeys => "`partial` stages only the keys that are there and keeps the other weights",
        Cause::OnlyUnknown => "`ignore_unknown` ignores names that the engine does not have",
        Cause::NearRule { .. } => "`renames` (FROM=TO) reads names that begin with FROM as beginning with TO",
        Cause::FoldedNorm { .. } => "an optimizer folded batch norms into other weights: send the model's state dict",
        Cause::Quantized { .. } => "the weights are stored in few bits: dequantize them, and send the result",
        Cause::OtherModel => "the weights are of another model or size than the engine",
        Cause::OtherProgram => "the file is of another program than the engine: compile it, and serve that engine",
        Cause::Ambiguous => "say which names are meant with `renames`, or which part of the file with `key`",
        Cause::NotIdentical => "the engine takes only the weights that it was compiled with",
        Cause::NonFinite => "without `reject_non_finite` such values are taken as they are",
        _ => return None,
    })
}

fn of_adapter(kind: &AdapterErrorKind, explanation: Explanation) -> Refusal {
    let refusal = Refusal::explained(Kind::Misfit, explanation);
    match kind {
        AdapterErrorKind::Fit { problems, .. }
            if problems.iter().any(|problem| matches!(problem, AdapterProblem::NoScale { .. })) =>
        {
            refusal.help("`alpha` states what the adapter was trained with")
        }
        _ => refusal,
    }
}

fn of_delta(kind: &DeltaErrorKind) -> Refusal {
    match kind {
        DeltaErrorKind::Base(problems) => {
            let problems: Vec<_> = problems.iter().map(|p| (p.name.clone(), p.what.clone())).collect();
            Refusal::new(Kind::Misfit, "the delta was made from other weights than serve; nothing was changed")
                .problems(problems)
        }
        DeltaErrorKind::Damaged { why, .. } | DeltaErrorKind::Read { why, .. } => {
            Refusal::new(Kind::Misfit, format!("the delta cannot be read: {why}"))
        }
        DeltaErrorKind::Memory(_) => Refusal::new(Kind::Memory, kind.to_string()),
        other => Refusal::new(Kind::Misfit, other.to_string()),
    }
}

/// Without the path: it is the server's matter, or that of a temporary file.
fn of_checkpoint(kind: &CheckpointErrorKind) -> Refusal {
    match kind {
        CheckpointErrorKind::Unreadable { what, help } => {
            Refusal::new(Kind::Misfit, format!("the weights cannot be read: {what}")).help(help)
        }
        other => Refusal::new(Kind::Misfit, format!("the weights cannot be read: {other}")),
    }
}
