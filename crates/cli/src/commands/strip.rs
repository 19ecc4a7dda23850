use regraft::{Engine, Mode};

use super::{check_writable, path_json, read_engine, write_engine};
use crate::{
    args::StripArgs,
    failure::Failure,
    output::{self, Output},
};

pub(super) fn run(args: &StripArgs, out: &mut Output) -> Result<(), Failure> {
    check_writable(&args.output)?;
    let engine = read_engine(&args.engine)?;
    check_mode(&engine, args)?;
    let sources = engine.refit_map.sources.len();
    let stripped = Engine { identical: engine.identical || args.identical, ..engine.stripped() };
    let inside: usize = stripped.sources.iter().flatten().map(|tensor| tensor.bytes().len()).sum();
    let identical = if stripped.identical { ", identical" } else { "" };
    let written = write_engine(&stripped, &args.output, out)?;
    let sources = output::count(sources, "source");
    out.line("stripped", format!("{sources} to be bound{identical}; {} stay inside", output::bytes(inside)));
    out.line("wrote", format!("{}, {}", args.output.display(), output::bytes(written)));
    out.fact("engine", path_json(&args.output));
    out.fact("identical", stripped.identical);
    out.fact("held_source_bytes", inside);
    out.fact("bytes", written);
    Ok(())
}

fn check_mode(engine: &Engine, args: &StripArgs) -> Result<(), Failure> {
    let failure = match engine.mode {
        Mode::Refittable if args.identical && engine.digests.iter().any(Option::is_none) => {
            Failure::new("the engine does not know the digests of its weights, and --identical needs them")
                .help("compile the program again with --mode stripped --identical")
        }
        Mode::Refittable => return Ok(()),
        Mode::Frozen => Failure::new("the engine is frozen: it holds no recipes, so it is nothing without its weights")
            .help("compile the program with --mode stripped"),
        Mode::Stripped => Failure::new("the engine is stripped already"),
    };
    Err(failure.about(&args.engine))
}
