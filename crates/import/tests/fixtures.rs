//! Programs of `torch.export`, imported and run by the reference evaluator, against PyTorch's answers: the conformance
//! fixtures, and those of `tests/aten` for the forms of each operator.
//!
//! `REGRAFT_FIXTURES` names another folder of fixtures, `REGRAFT_FIXTURE` a part of the names of those to run.

use std::{
    collections::BTreeMap,
    error::Error,
    path::{Path, PathBuf},
};

use regraft_import::{Imported, import_pt2};
use regraft_ir::eval::{self, Bindings};
use regraft_tensor::{AlignedVec, DType, Tensor};

type Tensors = BTreeMap<String, Tensor>;

fn load(path: &Path) -> Result<Tensors, Box<dyn Error>> {
    let bytes = std::fs::read(path)?;
    let file = safetensors::SafeTensors::deserialize(&bytes)?;
    let mut tensors = Tensors::new();
    for (name, view) in file.tensors() {
        let dtype = match view.dtype() {
            safetensors::Dtype::F64 => DType::F64,
            safetensors::Dtype::F32 => DType::F32,
            safetensors::Dtype::F16 => DType::F16,
            safetensors::Dtype::BF16 => DType::BF16,
            safetensors::Dtype::I64 => DType::I64,
            safetensors::Dtype::I32 => DType::I32,
            safetensors::Dtype::I16 => DType::I16,
            safetensors::Dtype::I8 => DType::I8,
            safetensors::Dtype::U8 => DType::U8,
            safetensors::Dtype::BOOL => DType::Bool,
            other => return Err(format!("{name}: dtype {other:?}").into()),
        };
        let data = AlignedVec::copy_of(view.data()).into();
        tensors.insert(name, Tensor::new(dtype, view.shape().to_vec(), data)?);
    }
    Ok(tensors)
}

/// `prefix.0`, `prefix.1`, ...
fn numbered(tensors: &Tensors, prefix: &str) -> Vec<Tensor> {
    (0..).map_while(|i| tensors.get(&format!("{prefix}.{i}")).cloned()).collect()
}

fn compare(what: &str, found: &[Tensor], expected: &[Tensor]) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("{what}: {} outputs, expected {}", found.len(), expected.len()));
    }
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        if f.dtype() != e.dtype() || f.shape() != e.shape() {
            let (fd, fs, ed, es) = (f.dtype(), f.shape(), e.dtype(), e.shape());
            return Err(format!("{what}.{i}: {fd}{fs:?}, expected {ed}{es:?}"));
        }
        let (f, e) = (f.to_f64_vec(), e.to_f64_vec());
        let scale = e.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
        let half = matches!(expected[i].dtype(), DType::F16 | DType::BF16);
        let tolerance = if half { 2e-2 } else { 1e-4 } * scale.max(1e-6);
        for (at, (a, b)) in f.iter().zip(&e).enumerate() {
            let same = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance;
            if !same {
                return Err(format!("{what}.{i}[{at}]: {a}, expected {b} (scale {scale})"));
            }
        }
    }
    Ok(())
}

/// The sources with the values of `given`, by any of their names.
fn sources(imported: &Imported, given: Option<&Tensors>) -> Result<Vec<Tensor>, String> {
    let all = imported.graph.sources.iter().zip(&imported.weights);
    all.map(|(source, weight)| {
        let mut names = std::iter::once(&source.name).chain(&source.aliases);
        let given = given.and_then(|g| names.find_map(|n| g.get(&format!("b/{n}"))));
        given.or(weight.as_ref()).cloned().ok_or_else(|| format!("`{}` has no value", source.name))
    })
    .collect()
}

/// Imports and runs one fixture; the number of runs that were compared.
fn check(path: &Path) -> Result<usize, Box<dyn Error>> {
    let imported = import_pt2(path)?;
    let graph = &imported.graph;
    let data = load(&answers(path))?;
    let mut runs = 0;
    let has_b = data.keys().any(|k| k.starts_with("b/"));
    for (suffix, given) in [("", None), ("_b", has_b.then_some(&data))] {
        if !suffix.is_empty() && given.is_none() {
            continue;
        }
        let sources = sources(&imported, given)?;
        for set in ["", "2"] {
            let inputs = numbered(&data, &format!("input{set}"));
            if inputs.len() != graph.inputs.len() {
                if set.is_empty() {
                    return Err(format!("{} inputs, the graph has {}", inputs.len(), graph.inputs.len()).into());
                }
                continue;
            }
            if set == "2" && inputs.is_empty() {
                continue;
            }
            let mut states: Vec<Tensor> = graph.states.iter().map(|s| sources[s.init as usize].clone()).collect();
            for call in 1.. {
                let expected = match call {
                    1 => numbered(&data, &format!("expected{set}{suffix}")),
                    n => numbered(&data, &format!("expected{set}_call{n}{suffix}")),
                };
                if expected.is_empty() {
                    break;
                }
                let bindings = Bindings { inputs: &inputs, sources: &sources, states: &states };
                let results = eval::run(graph, bindings)?;
                compare(&format!("expected{set}{suffix} call {call}"), &results.outputs, &expected)?;
                states = results.states;
                runs += 1;
            }
        }
    }
    if runs == 0 { Err("it has no answers to compare".into()) } else { Ok(runs) }
}

/// The file of answers; a decomposed program may share that of the program as exported.
fn answers(path: &Path) -> PathBuf {
    let own = path.with_extension("safetensors");
    if own.exists() {
        return own;
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    path.with_file_name(format!("{}.safetensors", stem.strip_suffix("_decomp").unwrap_or(&stem)))
}

fn check_folder(folder: &Path) {
    let only = std::env::var("REGRAFT_FIXTURE").unwrap_or_default();
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the folder of fixtures")
        .map(|e| e.expect("an entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "pt2") && answers(p).exists())
        .collect();
    assert!(!paths.is_empty(), "no fixtures in {}", folder.display());
    paths.retain(|p| p.to_string_lossy().contains(&only));
    paths.sort();
    let mut failed = Vec::new();
    for path in &paths {
        if let Err(error) = check(path) {
            failed.push(format!("{}: {error}", path.file_stem().unwrap_or_default().to_string_lossy()));
        }
    }
    assert!(failed.is_empty(), "{} of {} fixtures fail\n{}", failed.len(), paths.len(), failed.join("\n"));
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn fixtures_match_pytorch() {
    check_folder(
        &std::env::var_os("REGRAFT_FIXTURES").map_or_else(|| here().join("../conformance/fixtures"), PathBuf::from),
    );
}

#[test]
fn operators_match_pytorch() {
    check_folder(&here().join("tests/aten"));
}

#[test]
fn new_values_of_written_inputs_are_outputs() {
    for name in ["inputs_written", "inputs_written_decomp"] {
        let imported = import_pt2(here().join(format!("tests/aten/{name}.pt2"))).expect(name);
        let outputs: Vec<&str> = imported.graph.outputs.iter().map(|o| o.name.as_str()).collect();
        assert_eq!(outputs, ["output_0", "output_1", "args_0.new", "args_1.new", "args_2.new"], "{name}");
        assert_eq!(imported.call.output_names, outputs, "{name}");
    }
}

#[test]
fn what_is_not_supported_is_refused() {
    for (name, expected) in [
        ("nonzero", "nonzero (aten.nonzero.default): a result whose size depends on the values of a tensor"),
        ("mask_index", "indexing by a condition"),
        ("unknown", "2 operators have no translation"),
        ("unknown", "torch.ops.aten.hash_tensor.default           2×"),
        ("complex_input", "an input of complex numbers is not supported"),
        ("complex_joined_with_real", "joining complex numbers with real ones"),
        ("counted_sum", "index (aten.index.Tensor): indexing by a condition"),
        ("counted_sum", "read by aten.sum.default"),
        ("counted_number", "nonzero (aten.nonzero.default): a result whose size depends on the values of a tensor"),
        ("counted_number", "read by aten.mul.Tensor"),
        ("item", "reading a tensor's value as a number"),
        ("buffer_written_through_copy_or_view", "memory that it may share"),
        ("written_through_copy_or_view", "memory that it may share"),
        ("dropout_in_training", "call model.eval() before exporting"),
    ] {
        let error = import_pt2(here().join(format!("tests/aten/refused/{name}.pt2"))).expect_err(name).to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}
