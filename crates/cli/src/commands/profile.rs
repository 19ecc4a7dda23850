use std::{collections::BTreeMap, path::Path};

use regraft::{NodeProfile, Profile, Roof};
use serde_json::{Value, json};

use super::{bench, load, path_json};
use crate::{
    args::ProfileArgs,
    failure::Failure,
    output::{self, Output},
};

pub(super) fn run(args: &ProfileArgs, out: &mut Output) -> Result<(), Failure> {
    args.trace.as_deref().map_or(Ok(()), super::check_writable)?;
    let model = load(&args.engine, args.threads, out)?;
    bench::bound(&model, &args.engine)?;
    let symbols = bench::sizes(&model.plan().graph, &args.dims)?;
    let inputs = bench::working_inputs(&model, &symbols).map_err(|f| f.about(&args.engine))?;
    let profile = {
        let _busy = out.busy("timing nodes");
        regraft::profile(&model, &inputs, args.runs.get())?
    };
    let threads = model.device().threads();
    let on = output::count(threads, "thread");
    out.line("engine", format!("{}: {}, {on}", args.engine.display(), model.device().codegen().target()));
    out.fact("engine", path_json(&args.engine));
    out.fact("threads", threads);
    tell_whole(&profile, out);
    by_op(&profile, out);
    by_node(&profile, args.top.get(), out);
    if let Some(path) = &args.trace {
        write_trace(&profile, path)?;
        out.line("trace", path.display().to_string());
        out.fact("trace", path_json(path));
    }
    Ok(())
}

fn tell_whole(profile: &Profile, out: &mut Output) {
    let nodes: f64 = profile.nodes.iter().map(|node| node.seconds).sum();
    let ms = |seconds: f64| output::milliseconds(seconds * 1e3);
    out.line("run", format!("median {}; its nodes one by one {}", ms(profile.run_seconds), ms(nodes)));
    let Roof { flops, bytes, .. } = &profile.roof;
    let mut roofs: Vec<String> = flops.iter().map(|(of, peak)| format!("{of} {:.0} GFLOP/s", peak / 1e9)).collect();
    roofs.push(format!("memory {:.1} GB/s", bytes / 1e9));
    out.line("roof", roofs.join(", "));
    out.fact("run_ms", profile.run_seconds * 1e3);
    out.fact("nodes_ms", nodes * 1e3);
    let gflops: BTreeMap<&str, f64> = flops.iter().map(|(of, peak)| (of.name(), peak / 1e9)).collect();
    out.fact("roof", json!({ "gflops": gflops, "gigabytes_per_second": bytes / 1e9 }));
}

/// The sums over each op.
#[derive(Default)]
struct Sum {
    nodes: usize,
    seconds: f64,
    flops: u64,
    bytes: u64,
    least: f64,
}

fn by_op(profile: &Profile, out: &mut Output) {
    let mut sums: BTreeMap<(&str, &str), Sum> = BTreeMap::new();
    for node in &profile.nodes {
        let sum = sums.entry((node.op, &node.kernel)).or_default();
        sum.nodes += 1;
        sum.seconds += node.seconds;
        sum.flops += node.flops;
        sum.bytes += node.bytes;
        sum.least += profile.roof.seconds(node.dtype, node.flops, node.bytes);
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by(|(_, a), (_, b)| b.seconds.total_cmp(&a.seconds));
    let row = |((op, kernel), sum): &((&str, &str), Sum)| {
        let mut row = vec![(*op).to_owned(), (*kernel).to_owned(), sum.nodes.to_string()];
        row.extend(figures(profile, sum.seconds, sum.flops, sum.bytes, sum.least));
        row
    };
    let rows: Vec<Vec<String>> = sums.iter().map(row).collect();
    out.table(&["op", "kernel", "nodes", "time", "share", "GFLOP/s", "GB/s", "of roof"], &rows);
}

fn by_node(profile: &Profile, top: usize, out: &mut Output) {
    let mut nodes: Vec<&NodeProfile> = profile.nodes.iter().collect();
    nodes.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let least = |node: &NodeProfile| profile.roof.seconds(node.dtype, node.flops, node.bytes);
    let row = |node: &&NodeProfile| {
        let mut row = vec![format!("{} {}", node.op, node.scope), node.result.clone()];
        row.extend(figures(profile, node.seconds, node.flops, node.bytes, least(node)));
        row
    };
    let rows: Vec<Vec<String>> = nodes.iter().take(top).map(row).collect();
    out.table(&["node", "result", "time", "share", "GFLOP/s", "GB/s", "of roof"], &rows);
    let fact = |node: &NodeProfile| {
        json!({
            "node": node.node, "op": node.op, "kernel": node.kernel, "module": node.scope, "result": node.result,
            "ms": node.seconds * 1e3, "flops": node.flops, "bytes": node.bytes, "least_ms": least(node) * 1e3,
        })
    };
    out.fact("nodes", profile.nodes.iter().map(fact).collect::<Vec<Value>>());
}

/// Time, share, GFLOP/s, GB/s and share of the roof.
fn figures(profile: &Profile, seconds: f64, flops: u64, bytes: u64, least: f64) -> [String; 5] {
    let whole: f64 = profile.nodes.iter().map(|node| node.seconds).sum();
    // A clock may not have moved.
    let seconds = seconds.max(1e-9);
    [
        output::milliseconds(seconds * 1e3),
        format!("{:.1} %", 100.0 * seconds / whole),
        format!("{:.1}", flops as f64 / seconds / 1e9),
        format!("{:.1}", bytes as f64 / seconds / 1e9),
        format!("{:.0} %", 100.0 * least / seconds),
    ]
}

/// The nodes one behind the other, in the format of Chrome's traces.
fn write_trace(profile: &Profile, path: &Path) -> Result<(), Failure> {
    let mut start = 0.0;
    let event = |node: &NodeProfile| {
        let (ts, dur) = (start * 1e6, node.seconds * 1e6);
        start += node.seconds;
        json!({
            "name": format!("{} {}", node.op, node.scope), "cat": node.op, "ph": "X", "ts": ts, "dur": dur, "pid": 1, "tid": 1,
            "args": { "kernel": node.kernel, "result": node.result, "flops": node.flops, "bytes": node.bytes },
        })
    };
    let events: Vec<Value> = profile.nodes.iter().map(event).collect();
    let text = json!({ "traceEvents": events, "displayTimeUnit": "ms" }).to_string();
    Ok(super::begin_text(path, &text)?.commit()?)
}
