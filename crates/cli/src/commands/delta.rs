use std::{io::BufWriter, path::Path};

use regraft::{AtomicFile, SourceInfo, StateDict, Tensor};

use super::{open_engine, open_weights};
use crate::{
    args::{DeltaArgs, NameFlags},
    failure::Failure,
    output::{self, Output},
};

pub(super) fn run(args: &DeltaArgs, out: &mut Output) -> Result<(), Failure> {
    let new = weights(&args.new, None, out)?;
    let base = weights(&args.base, Some(&new), out)?;
    let mut file = AtomicFile::create(&args.output)?;
    let summary = {
        let _busy = out.busy("comparing");
        regraft::delta::write(&base, &new, BufWriter::new(&mut file)).map_err(regraft::Error::from)?
    };
    file.commit()?;
    let tensors = output::count(summary.tensors, "tensor");
    let changed = format!("{} of {tensors}, {}", summary.changed, output::bytes(summary.changed_bytes));
    out.line("changed", changed);
    let part = summary.written as f64 / summary.bytes.max(1) as f64 * 100.0;
    let size = output::bytes(summary.written);
    out.line("wrote", format!("{}, {size}, {part:.1} % of the weights", args.output.display()));
    out.fact("tensors", summary.tensors);
    out.fact("changed", summary.changed);
    out.fact("changed_bytes", summary.changed_bytes);
    out.fact("weights_bytes", summary.bytes);
    out.fact("bytes", summary.written);
    Ok(())
}

/// The weights of a file, or the sources of an engine. Of an engine whose `next` weights are of a program, what stands in that
/// program's nodes, too: a delta must not lose that it changed.
fn weights(path: &Path, next: Option<&StateDict>, out: &mut Output) -> Result<StateDict, Failure> {
    if path.extension().is_none_or(|ending| ending != "rgf") {
        return open_weights(path, &NameFlags::default(), out);
    }
    let engine = open_engine(path)?;
    let all = engine.refit_map.sources.iter().zip(&engine.sources);
    let (weights, constants): (Vec<_>, Vec<_>) = all.partition(|(info, _)| info.kind.in_state_dict());
    let missing = || {
        Failure::new("the engine does not hold all its sources")
            .about(path)
            .help("give the weight file, or compile with --keep-sources embedded")
    };
    let named =
        |(info, tensor): (&SourceInfo, &Option<Tensor>)| Ok((info.name.clone(), tensor.clone().ok_or_else(missing)?));
    let mut weights = weights.into_iter().map(named).collect::<Result<StateDict, Failure>>()?;
    if let Some(next) = next.filter(|next| next.constants().is_some()) {
        let constants = constants.into_iter().filter_map(|(info, tensor)| Some((info.name.clone(), tensor.clone()?)));
        // Initializers of the next program are among its weights.
        let is_other = |(name, tensor): &(String, Tensor)| next.get(name).is_none_or(|other| !other.bit_equal(tensor));
        weights.set_constants(constants.filter(is_other).collect());
    }
    Ok(weights)
}
