//! What weights of small integers cost: the outputs of an engine next to those of the same program without them.

use regraft::{Compiled, Compiler, DType, Mode, Tensor};

use super::{bench, run};
use crate::{args::CompileArgs, failure::Failure, output::Output};

/// A compiler of the program in full precision of weights, and otherwise for what was asked.
pub(super) fn exact(args: &CompileArgs) -> Compiler {
    Compiler::new().dtype(args.dtype.map(DType::from)).device(args.threads.device).threads(args.threads.get())
}

/// Measures the loss on the samples that were given, or on generated inputs, and tells it.
pub(super) fn tell(args: &CompileArgs, compiled: &Compiled, out: &mut Output) -> Result<(), Failure> {
    if compiled.engine.mode == Mode::Stripped {
        out.note("the engine has no weights, so what --weights costs was not measured");
        return Ok(());
    }
    let exact = exact(args).compile(&args.program)?.into_model()?;
    let rounded = compiled.clone().into_model()?;
    let graph = &exact.plan().graph;
    let inputs = match args.sample.is_empty() {
        true => bench::working_inputs(&exact, &bench::sizes(graph, &[])?)?,
        false => run::read(&run::assign(&args.sample, graph)?, graph)?,
    };
    let loss = relative(&rounded.run(&inputs)?, &exact.run(&inputs)?);
    let on = if args.sample.is_empty() { "generated inputs" } else { "the sample" };
    out.line("loss", format!("{:.2} % of the outputs on {on}, as a root of mean squares", loss * 100.0));
    out.fact("loss", loss);
    Ok(())
}

/// The norm of the difference of all outputs, next to that of the outputs.
fn relative(found: &[Tensor], wanted: &[Tensor]) -> f64 {
    let (mut difference, mut size) = (0.0, 0.0);
    for (found, wanted) in found.iter().zip(wanted) {
        for (a, b) in found.to_f64_vec().into_iter().zip(wanted.to_f64_vec()) {
            difference += (a - b) * (a - b);
            size += b * b;
        }
    }
    if difference == 0.0 { 0.0 } else { (difference / size).sqrt() }
}
