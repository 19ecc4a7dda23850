//! Models over the network.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::Args;

use super::{Common, ThreadArgs};

pub(super) const SERVE: &str = "Serve engines over the network, and take new weights while they serve.

  regraft serve model.rgf                                          http://127.0.0.1:8000/v2/models/model/infer
  regraft serve bert=bert.rgf vit=vit.rgf --weights bert=tuned.safetensors
  regraft serve model.rgf --batch 16 --batch-wait 2ms              requests that wait together run together
  regraft serve model.rgf --adapters styles                        requests name adapters in that folder
  regraft serve model.rgf --weights-root checkpoints               weights are staged from that folder by name
  regraft serve model.rgf --address 0.0.0.0:8000 --infer-tokens infer.txt --weights-tokens weights.txt \\
      --tls-cert chain.pem --tls-key key.pem

  curl 127.0.0.1:8000/v2/models/model/weights/stage --data-binary @tuned.safetensors
  curl -X POST 127.0.0.1:8000/v2/models/model/weights/publish

Requests are those of the open inference protocol (KServe's version 2, as of Triton), in JSON or with binary tensors. Runs never \
wait for new weights, and each answer is computed from one generation, which its headers name. /openapi.json describes all \
paths, /inspector shows the state of the server, /metrics is for Prometheus. Only this machine reaches the server unless --address says \
otherwise, which needs tokens. SIGTERM and Ctrl-C stop it when the requests under way are answered.";

#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// The engines, each with its name [default: the file's name without its ending]
    #[arg(value_name = "[NAME=]MODEL.rgf", required = true)]
    pub(crate) engines: Vec<String>,
    /// Weights to start with; NAME= names the engine if there are several
    #[arg(short, long, value_name = "[NAME=]WEIGHTS")]
    pub(crate) weights: Vec<String>,
    /// The name of the one engine
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Where to listen; port 0 is any free port
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8000")]
    pub(crate) address: SocketAddr,
    /// The most rows that run together
    #[arg(long, value_name = "ROWS", default_value = "1")]
    pub(crate) batch: NonZeroUsize,
    /// How long a request waits for others to run with, such as 2ms [default: 0, only those that already wait]
    #[arg(long, value_name = "TIME", value_parser = time, requires = "batch")]
    pub(crate) batch_wait: Option<Duration>,
    /// Requests of a model that wait; more are refused
    #[arg(long, value_name = "N", default_value = "256")]
    pub(crate) queue: NonZeroUsize,
    /// Runs of a model at a time
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) workers: NonZeroUsize,
    /// How long a request may take
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "60s")]
    pub(crate) timeout: Duration,
    /// How long running requests may take when the server is stopped
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "30s")]
    pub(crate) grace: Duration,
    /// The folder from which weights are staged by name
    #[arg(long, value_name = "DIR")]
    pub(crate) weights_root: Option<PathBuf>,
    /// The folder of the adapters that requests name
    #[arg(long, value_name = "DIR")]
    pub(crate) adapters: Option<PathBuf>,
    /// Memory for adapters that requests name, in bytes, such as 512MB
    #[arg(long, value_name = "BYTES", value_parser = regraft::parse_size, default_value = "1GB")]
    pub(crate) adapter_memory: u64,
    /// Where weights that are sent are kept until they are released [default: the system's folder of temporary files]
    #[arg(long, value_name = "DIR")]
    pub(crate) uploads: Option<PathBuf>,
    /// The most bytes of weights that are sent [default: 4 times those of the engine's]
    #[arg(long, value_name = "BYTES", value_parser = regraft::parse_size)]
    pub(crate) max_upload: Option<u64>,
    /// The most bytes of a request
    #[arg(long, value_name = "BYTES", value_parser = regraft::parse_size, default_value = "64MB")]
    pub(crate) max_body: u64,
    /// The most memory of the bodies of all requests
    #[arg(long, value_name = "BYTES", value_parser = regraft::parse_size, default_value = "1GB")]
    pub(crate) max_memory: u64,
    /// The most connections
    #[arg(long, value_name = "N", default_value = "1024")]
    pub(crate) max_connections: NonZeroUsize,
    /// Keep no previous generation, which saves memory and makes rollback impossible
    #[arg(long)]
    pub(crate) no_rollback: bool,
    /// Tokens that give the right to run models, one a line
    #[arg(long, value_name = "FILE")]
    pub(crate) infer_tokens: Option<PathBuf>,
    /// Tokens that give the right to change weights, one a line
    #[arg(long, value_name = "FILE")]
    pub(crate) weights_tokens: Option<PathBuf>,
    /// The certificate chain, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its private key, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Send spans to this collector of OpenTelemetry (OTLP over HTTP), such as http://localhost:4318
    #[arg(long, value_name = "URL")]
    pub(crate) otlp: Option<String>,
    /// The fraction of the requests that are traced, from 0 to 1; requests of traced callers always are
    #[arg(long, value_name = "PART", value_parser = part, default_value = "1", requires = "otlp")]
    pub(crate) otlp_sample: f64,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    #[command(flatten)]
    pub(crate) common: Common,
}

fn part(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|part| (0.0..=1.0).contains(part));
    number.ok_or_else(|| "expected a number from 0 to 1".into())
}

/// `2ms`, `0.5s`, `10` (seconds).
fn time(text: &str) -> Result<Duration, String> {
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0)];
    let unit = units.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)));
    let (number, seconds) = unit.unwrap_or((text, &1.0));
    let seconds = number.trim().parse::<f64>().ok().map(|number| number * seconds);
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration
        .filter(|time| time.as_secs() <= 86_400)
        .ok_or_else(|| "expected a time of at most a day, such as 2ms".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, ms) in [("2ms", 2.0), ("0.5s", 500.0), ("10", 10_000.0), ("250us", 0.25), ("1m", 60_000.0)] {
            assert_eq!(time(text).map(|t| t.as_secs_f64() * 1e3), Ok(ms), "{text}");
        }
        for text in ["", "ms", "-1s", "2h", "1e9s", "nan"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
