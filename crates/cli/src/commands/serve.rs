use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use regraft::{Model, RefitOptions};
use regraft_server::{ModelOptions, ServedModel, Server, ServerOptions, Tokens, TraceOptions, asked_to_stop};
use serde_json::json;

use super::{about_weights, open_engine, open_weights};
use crate::{
    args::{NameFlags, ServeArgs},
    failure::Failure,
    output::Output,
};

pub(super) fn run(args: &ServeArgs, out: &mut Output) -> Result<(), Failure> {
    let mut server = Server::new(server_options(args)?)?;
    let options = model_options(args);
    let device = args.threads.open()?;
    let engines = engines(args)?;
    let weights = weights(args, &engines)?;
    for ((name, path), weights) in engines.iter().zip(weights) {
        let model = {
            let _busy = out.busy(format!("loading {}", path.display()));
            regraft::model(open_engine(path)?, device.clone()).map_err(|e| Failure::from(e).about(path))?
        };
        if let Some(weights) = weights {
            begin_with(&model, &weights, out)?;
        }
        out.line("model", format!("{name}: {}, {}", path.display(), model.mode()));
        server.add(name, model, options.clone())?;
    }
    let scheme = if args.tls_cert.is_some() { "https" } else { "http" };
    server.run(|address, models| tell(scheme, address, models, out), asked_to_stop())?;
    out.line("stopped", "all requests are answered");
    out.fact("stopped", true);
    Ok(())
}

/// Says where requests are answered, at once: the process that started the server waits for it.
fn tell(scheme: &str, address: SocketAddr, models: &[ServedModel], out: &mut Output) {
    if out.is_json() {
        let model = |m: &ServedModel| json!({"name": m.name, "rows": m.batching.0, "bit_equal": m.batching.1});
        let models: Vec<_> = models.iter().map(model).collect();
        out.text(&format!("{}\n", json!({"listening": format!("{scheme}://{address}"), "models": models})));
        return;
    }
    for model in models {
        match model.batching {
            (1, _) => {}
            (rows, true) => out.line("batching", format!("{}: up to {rows} rows, bit for bit as alone", model.name)),
            (rows, false) => {
                let text =
                    format!("{}: up to {rows} rows; results may differ in rounding from those alone", model.name);
                out.line("batching", text);
            }
        }
    }
    out.line("listening", format!("{scheme}://{address}"));
}

fn server_options(args: &ServeArgs) -> Result<ServerOptions, Failure> {
    let mut tokens = Tokens::default();
    if let Some(path) = &args.infer_tokens {
        tokens.infer_file(path)?;
    }
    if let Some(path) = &args.weights_tokens {
        tokens.weights_file(path)?;
    }
    Ok(ServerOptions {
        address: args.address,
        tokens,
        tls: args.tls_cert.clone().zip(args.tls_key.clone()),
        max_body: size(args.max_body),
        max_memory: size(args.max_memory),
        max_connections: args.max_connections.get(),
        timeout: args.timeout,
        grace: args.grace,
        traces: args.otlp.clone().map(|collector| TraceOptions { collector, sample: args.otlp_sample }),
        ..ServerOptions::default()
    })
}

fn model_options(args: &ServeArgs) -> ModelOptions {
    let defaults = ModelOptions::default();
    ModelOptions {
        queue: args.queue.get(),
        max_batch: args.batch.get(),
        batch_wait: args.batch_wait.unwrap_or_default(),
        workers: args.workers.get(),
        keep_previous: !args.no_rollback,
        weights_root: args.weights_root.clone(),
        adapters: args.adapters.clone(),
        adapter_memory: size(args.adapter_memory),
        uploads: args.uploads.clone().unwrap_or(defaults.uploads),
        max_upload: args.max_upload,
    }
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// The engines with their names.
fn engines(args: &ServeArgs) -> Result<Vec<(String, PathBuf)>, Failure> {
    if args.name.is_some() && args.engines.len() > 1 {
        return Err(Failure::usage("--name is for one engine").help("name each: NAME=MODEL.rgf"));
    }
    let one = |text: &String| match (&args.name, named(text)) {
        (Some(name), _) => (name.clone(), PathBuf::from(text)),
        (None, (Some(name), path)) => (name.to_owned(), PathBuf::from(path)),
        (None, (None, path)) => {
            let stem = Path::new(path).file_stem().unwrap_or_default();
            (stem.to_string_lossy().into_owned(), PathBuf::from(path))
        }
    };
    Ok(args.engines.iter().map(one).collect())
}

/// The weights that each engine begins with.
fn weights(args: &ServeArgs, engines: &[(String, PathBuf)]) -> Result<Vec<Option<PathBuf>>, Failure> {
    let mut all = vec![None; engines.len()];
    for text in &args.weights {
        let (name, path) = named(text);
        let at = match name {
            None if engines.len() == 1 => Some(0),
            None => None,
            Some(name) => engines.iter().position(|(engine, _)| engine == name),
        };
        let at = at.ok_or_else(|| Failure::usage(format!("--weights {text} is for no engine")))?;
        if all[at].replace(PathBuf::from(path)).is_some() {
            return Err(Failure::usage(format!("--weights is given twice for {}", engines[at].0)));
        }
    }
    Ok(all)
}

/// `NAME=FILE` or `FILE`.
fn named(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, path)) if !name.contains(['/', '\\']) => (Some(name), path),
        _ => (None, text),
    }
}

fn begin_with(model: &Model, path: &Path, out: &mut Output) -> Result<(), Failure> {
    let weights = open_weights(path, &NameFlags::default(), out)?;
    let report = model.refit(&weights, &RefitOptions::default()).map_err(|e| about_weights(e.into(), path))?;
    out.detail("weights", format!("{}: {} sources", path.display(), report.applied.len()));
    Ok(())
}
