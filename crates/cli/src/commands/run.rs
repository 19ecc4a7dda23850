use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use regraft::{
    AtomicFile, DType, Model, Tensor,
    ir::{Graph, TensorType},
};
use serde_json::{Value, json};

use super::{inputs, load, named_types, path_json};
use crate::{
    args::RunArgs,
    failure::Failure,
    npy,
    output::{self, Output},
};

pub(super) fn run(args: &RunArgs, out: &mut Output) -> Result<(), Failure> {
    let model = load(&args.engine, args.threads, out)?;
    if model.generation().is_none() {
        let help =
            format!("bind it first: regraft bind {} --weights MODEL.safetensors -o BOUND.rgf", args.engine.display());
        return Err(Failure::new("the engine is stripped: it has no weights yet").about(&args.engine).help(help));
    }
    let graph = &model.plan().graph;
    let files = assign(&args.inputs, graph)?;
    let tensors = read(&files, graph)?;
    let (outputs, ms) = {
        let _busy = out.busy("running");
        let start = Instant::now();
        let outputs = model.run(&tensors).map_err(|e| Failure::from(e).about(&args.engine))?;
        (outputs, start.elapsed().as_secs_f64() * 1e3)
    };
    let written = write(&outputs, &args.output_dir)?;
    tell(&model, &outputs, &written, ms, out);
    Ok(())
}

/// The file of each input, in the program's order.
pub(super) fn assign(given: &[String], graph: &Graph) -> Result<Vec<PathBuf>, Failure> {
    let index = |name: &str| graph.inputs.iter().position(|i| i.name == name);
    let mut files: Vec<Option<PathBuf>> = vec![None; graph.inputs.len()];
    let mut in_order = Vec::new();
    for text in given {
        // A file may have `=` in its name; an input that exists goes first.
        let named = text.split_once('=').filter(|(name, _)| index(name).is_some() || !Path::new(text).exists());
        let Some((name, file)) = named else {
            in_order.push(PathBuf::from(text));
            continue;
        };
        let Some(at) = index(name) else {
            return Err(list_inputs(Failure::new(format!("the program has no input `{name}`")), graph));
        };
        if files[at].replace(file.into()).is_some() {
            return Err(Failure::new(format!("input `{name}` is given twice")));
        }
    }
    let mut in_order = in_order.into_iter();
    for file in files.iter_mut().filter(|f| f.is_none()) {
        *file = in_order.next();
    }
    let left = in_order.count();
    let missing = files.iter().filter(|f| f.is_none()).count();
    if left > 0 || missing > 0 {
        let expected = output::count(files.len(), "input");
        let why = format!("the program takes {expected}, found {}", given.len());
        return Err(list_inputs(Failure::new(why), graph));
    }
    Ok(files.into_iter().flatten().collect())
}

fn list_inputs(failure: Failure, graph: &Graph) -> Failure {
    let failure = inputs(graph).fold(failure, |f, (name, ty)| f.problem(name, ty.to_string()));
    failure.help("give each as --input NAME=FILE.npy, or the files alone in this order")
}

/// Reads the files and checks them against the program's types, all of them before anything runs.
pub(super) fn read(files: &[PathBuf], graph: &Graph) -> Result<Vec<Tensor>, Failure> {
    let mut tensors = Vec::with_capacity(files.len());
    let mut problems = Vec::new();
    for (file, (name, ty)) in files.iter().zip(inputs(graph)) {
        let tensor = npy::as_dtype(npy::read(file)?, ty.dtype);
        if !fits(&tensor, &ty) {
            let found = format!("{}{:?}", tensor.dtype(), tensor.shape());
            problems.push((name, format!("expected {ty}, found {found} in {}", file.display())));
        }
        tensors.push(tensor);
    }
    if problems.is_empty() {
        return Ok(tensors);
    }
    let verb = if problems.len() == 1 { "does" } else { "do" };
    let failure = Failure::new(format!("{} of {} {verb} not fit", problems.len(), output::count(files.len(), "input")));
    Err(problems.into_iter().fold(failure, |f, (name, what)| f.problem(name, what)))
}

/// Whether dtype, rank and known sizes are right; symbols are bound by the run.
pub(super) fn fits(tensor: &Tensor, ty: &TensorType) -> bool {
    tensor.dtype() == ty.dtype
        && tensor.shape().len() == ty.rank()
        && ty.shape.iter().zip(tensor.shape()).all(|(d, &size)| d.as_usize().is_none_or(|d| d == size))
}

/// Writes all outputs, or none. Returns their files.
fn write(outputs: &[Tensor], directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let made = make_directory(directory)?;
    let result = write_all(outputs, directory);
    if result.is_err() && made {
        // It is empty again; that it stays would be no harm.
        let _ = fs::remove_dir(directory);
    }
    result
}

/// Makes the directory when it is not there; says whether it did.
fn make_directory(directory: &Path) -> Result<bool, Failure> {
    if directory.is_dir() {
        return Ok(false);
    }
    match fs::create_dir(directory) {
        Ok(()) => Ok(true),
        Err(error) => Err(Failure::new(format!("could not make the directory: {error}"))
            .about(directory)
            .help("create its parent first")),
    }
}

fn write_all(outputs: &[Tensor], directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::with_capacity(outputs.len());
    for (number, tensor) in outputs.iter().enumerate() {
        let mut file = AtomicFile::create(directory.join(format!("output_{number}.npy")))?;
        npy::write(&mut file, tensor)
            .map_err(|e| Failure::new(format!("could not write the file: {e}")).about(file.target()))?;
        files.push(file);
    }
    let mut written: Vec<PathBuf> = Vec::with_capacity(files.len());
    for file in files {
        let path = file.target().to_path_buf();
        if let Err(error) = file.commit() {
            // Some outputs without the others would look like a whole run.
            written.iter().for_each(|done| drop(fs::remove_file(done)));
            return Err(error.into());
        }
        written.push(path);
    }
    Ok(written)
}

fn tell(model: &Model, outputs: &[Tensor], written: &[PathBuf], ms: f64, out: &mut Output) {
    let threads = model.device().threads();
    out.line("ran", format!("in {} on {}", output::milliseconds(ms), output::count(threads, "thread")));
    out.detail("inputs", named_types(inputs(&model.plan().graph)));
    let mut facts: Vec<Value> = Vec::new();
    for ((tensor, path), declared) in outputs.iter().zip(written).zip(&model.plan().graph.outputs) {
        out.line("wrote", format!("{} {}{:?}", path.display(), tensor.dtype(), tensor.shape()));
        if tensor.dtype() == DType::BF16 {
            out.note(format!("{} holds f32: numpy has no bf16", path.display()));
        }
        facts.push(json!({
            "file": path_json(path), "name": declared.name, "dtype": tensor.dtype().name(), "shape": tensor.shape(),
        }));
    }
    out.fact("milliseconds", ms);
    out.fact("threads", threads);
    out.fact("outputs", facts);
}
