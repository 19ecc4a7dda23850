//! Parameters, buffers and constants.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rayon::prelude::*;
use regraft_tensor::{AlignedVec, Buffer, DType, Tensor, gather_strided, numel};

use super::{
    archive::Archive,
    schema::{self, ExportedProgram, InputSpec, Layout, PayloadConfig, PayloadMeta, TensorMeta},
    schema_kind,
};
use crate::{ImportError, ImportErrorKind, WeightProblem};

/// More axes than any tensor has.
const MAX_RANK: usize = 64;
/// Memory that decompressed and gathered weights may take beside four times the length of the file.
const FREE_MEMORY: u64 = 1 << 30;

/// Where the archive keeps a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// With the weights: what `state_dict()` has.
    State,
    /// With the constants: non-persistent buffers and tensors that the code made from literals.
    Constant,
}

/// A parameter, buffer or tensor constant.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Fully qualified name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
    /// The value, row-major; `None` when the archive holds none.
    pub tensor: Option<Tensor>,
    /// Where the archive keeps it.
    pub origin: Origin,
    /// Whether it is a parameter.
    pub is_param: bool,
    /// The first weight that is the same memory seen the same way, when this is not the first: a tied weight.
    pub alias_of: Option<String>,
}

/// The weights of a program, in the order of the archive: first the state, then the constants.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    list: Vec<Weight>,
    index: HashMap<String, usize>,
}

/// A weight as the configuration describes it.
struct Planned<'a> {
    name: &'a str,
    origin: Origin,
    is_param: bool,
    dtype: DType,
    shape: Vec<usize>,
    /// In elements; of no meaning where the shape has one element or none.
    strides: Vec<usize>,
    offset: usize,
    /// The entry of the archive; `None` when the archive has no configuration.
    entry: Option<String>,
}

impl Weights {
    /// All weights.
    pub fn iter(&self) -> std::slice::Iter<'_, Weight> {
        self.list.iter()
    }

    /// Number of weights.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether the program has no weights.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The weight with this fully qualified name.
    pub fn get(&self, name: &str) -> Option<&Weight> {
        self.index.get(name).and_then(|i| self.list.get(*i))
    }

    /// Whether there is a weight without a value.
    pub fn is_stripped(&self) -> bool {
        self.list.iter().any(|w| w.tensor.is_none())
    }

    /// Tied weights: `(name, first name)`.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &str)> {
        self.list.iter().filter_map(|w| Some((w.name.as_str(), w.alias_of.as_deref()?)))
    }

    /// The weights of `model`, checked against the signature of its program.
    ///
    /// # Errors
    /// All weights that are missing, damaged, or not as the program expects.
    pub fn load(archive: &Archive, model: &str, program: &ExportedProgram) -> Result<Weights, ImportError> {
        let state = read_config(archive, "data/weights/", model, &["weights_config", "model_param_config"])?;
        let constants = read_config(archive, "data/constants/", model, &["constants_config"])?;
        let configs = [(Origin::State, "data/weights/", &state), (Origin::Constant, "data/constants/", &constants)];

        let mut problems = Vec::new();
        let mut plan = Vec::new();
        for (origin, folder, config) in configs {
            for (name, meta) in config.iter().flat_map(|c| &c.config) {
                match planned(name, meta, origin, folder) {
                    Ok(planned) => plan.extend(planned),
                    Err(problem) => problems.push(WeightProblem { name: name.clone(), problem }),
                }
            }
        }
        check_signature(program, [state.is_some(), constants.is_some()], &mut plan, &mut problems);
        let held = payloads(archive, &plan, &mut problems);
        fail(archive, problems)?;

        let needed: u64 = held.iter().map(|entry| archive.memory_for(entry)).sum();
        budget(archive, needed)?;
        let buffers: BTreeMap<&str, Buffer> =
            held.par_iter().map(|entry| Ok((*entry, archive.buffer(entry)?))).collect::<Result<_, ImportError>>()?;

        let mut first: HashMap<(&str, DType, &[usize], &[usize], usize), usize> = HashMap::new();
        let first: Vec<usize> = plan
            .iter()
            .enumerate()
            .map(|(i, p)| match p.entry.as_deref() {
                // Views without elements share nothing.
                Some(entry) if !p.shape.contains(&0) => {
                    *first.entry((entry, p.dtype, &p.shape, &p.strides, p.offset)).or_insert(i)
                }
                _ => i,
            })
            .collect();
        let copied = plan.iter().zip(0..).filter(|(p, i)| first.get(*i) == Some(i) && !p.is_contiguous());
        let copied = copied.fold(needed, |sum, (p, _)| sum.saturating_add(p.bytes() as u64));
        budget(archive, copied)?;

        let tensors: Vec<Result<Option<Tensor>, String>> = plan
            .par_iter()
            .enumerate()
            .map(|(i, p)| match p.entry.as_deref().and_then(|entry| buffers.get(entry)) {
                _ if first.get(i) != Some(&i) => Ok(None),
                Some(buffer) => p.tensor(buffer).map(Some),
                None if p.shape.contains(&0) => Tensor::zeros(p.dtype, &p.shape).map(Some).map_err(|e| e.to_string()),
                None => Ok(None),
            })
            .collect();

        let mut weights = Weights::default();
        let mut problems = Vec::new();
        for ((p, tensor), first) in plan.into_iter().zip(tensors).zip(first) {
            let position = weights.list.len();
            let original = weights.list.get(first);
            let (tensor, alias_of) = match (tensor, original) {
                (Ok(None), Some(original)) => (original.tensor.clone(), Some(original.name.clone())),
                (Ok(tensor), _) => (tensor, None),
                (Err(problem), _) => {
                    problems.push(WeightProblem { name: p.name.to_owned(), problem });
                    (None, None)
                }
            };
            if weights.index.insert(p.name.to_owned(), position).is_some() {
                let problem = "it is among the weights and among the constants".to_owned();
                problems.push(WeightProblem { name: p.name.to_owned(), problem });
            }
            let Planned { name, origin, is_param, dtype, shape, .. } = p;
            weights.list.push(Weight { name: name.to_owned(), dtype, shape, tensor, origin, is_param, alias_of });
        }
        fail(archive, problems)?;
        Ok(weights)
    }
}

impl Planned<'_> {
    fn bytes(&self) -> usize {
        numel(&self.shape).and_then(|n| n.checked_mul(self.dtype.size())).unwrap_or(usize::MAX)
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1usize;
        self.shape.contains(&0)
            || self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
                let fits = size == 1 || stride == expected;
                expected = expected.saturating_mul(size);
                fits
            })
    }

    /// The view of the entry `storage`.
    fn tensor(&self, storage: &Buffer) -> Result<Tensor, String> {
        let size = self.dtype.size();
        let len = Tensor::byte_len(self.dtype, &self.shape).map_err(|e| e.to_string())?;
        let buffer = if self.is_contiguous() {
            let start = if len == 0 { Some(0) } else { self.offset.checked_mul(size) };
            let range = start.and_then(|start| Some(start..start.checked_add(len)?));
            range.and_then(|range| slice(storage, range)).ok_or_else(|| {
                format!(
                    "{}{:?} at element {} needs {len} bytes from there, its entry has {} in all",
                    self.dtype,
                    self.shape,
                    self.offset,
                    storage.len()
                )
            })?
        } else {
            gather_strided(storage.bytes(), size, &self.shape, &self.strides, self.offset)
                .map(|bytes| AlignedVec::copy_of(&bytes).into())
                .map_err(|e| e.to_string())?
        };
        if self.dtype == DType::Bool
            && let Some(byte) = buffer.bytes().iter().find(|b| **b > 1)
        {
            return Err(format!("a bool is 0 or 1, found the byte {byte}"));
        }
        Tensor::new(self.dtype, self.shape.clone(), buffer).map_err(|e| e.to_string())
    }
}

/// A part of a buffer: shared when it is mapped or the whole, copied otherwise.
fn slice(buffer: &Buffer, range: std::ops::Range<usize>) -> Option<Buffer> {
    let bytes = buffer.bytes().get(range.clone())?;
    Some(match buffer {
        Buffer::Mapped(file, outer) => {
            Buffer::mapped(file, outer.start.checked_add(range.start)?..outer.start.checked_add(range.end)?)?
        }
        whole if range == (0..buffer.len()) => whole.clone(),
        Buffer::Owned(_) => AlignedVec::copy_of(bytes).into(),
    })
}

fn read_config(
    archive: &Archive,
    folder: &str,
    model: &str,
    suffixes: &[&str],
) -> Result<Option<PayloadConfig>, ImportError> {
    let legacy = format!("{folder}{model}.pt");
    if archive.size(&legacy).is_some() {
        let help = "load it with torch.export.load and save it with torch.export.save of torch 2.9 or newer";
        return Err(archive.error(&legacy, "weights in a pickle, as torch 2.8 wrote them, are not read", help));
    }
    for suffix in suffixes {
        let name = format!("{folder}{model}_{suffix}.json");
        if let Some(text) = archive.text(&name)? {
            return schema::from_json(&text)
                .map(Some)
                .map_err(|p| ImportError::new(archive.path(), schema_kind(archive.full_name(&name), p.at, p.problem)));
        }
    }
    Ok(None)
}

/// One line of a configuration; `None` for an object that is no tensor.
fn planned<'a>(name: &'a str, meta: &PayloadMeta, origin: Origin, folder: &str) -> Result<Option<Planned<'a>>, String> {
    let Some(tensor) = &meta.tensor_meta else {
        return if meta.use_pickle { Ok(None) } else { Err("its configuration has no `tensor_meta`".to_owned()) };
    };
    if meta.use_pickle {
        return Err(
            "it is a tensor subclass in a pickle, which is not read: export the model with plain tensors".to_owned()
        );
    }
    if meta.path_name.is_empty() || meta.path_name.contains('/') {
        return Err(format!("expected the name of an entry, found `{}`", meta.path_name));
    }
    let (dtype, shape) = dtype_and_shape(tensor)?;
    if tensor.layout != Layout::Strided {
        return Err(format!("its layout is {:?}, supported is Strided", tensor.layout));
    }
    if tensor.strides.len() != shape.len() {
        return Err(format!("expected {} strides, found {}", shape.len(), tensor.strides.len()));
    }
    let natural = |size: &schema::SymInt, what: &str| {
        size.as_int()
            .and_then(|v| usize::try_from(v).ok())
            .ok_or_else(|| format!("its {what} {size:?} is no natural number"))
    };
    // The stride of an axis of size 1 says nothing, and views that differ in it alone are equal.
    let strides = tensor.strides.iter().zip(&shape);
    let strides = strides.map(|(stride, &size)| if size == 1 { Ok(0) } else { natural(stride, "stride") });
    let strides = strides.collect::<Result<_, _>>()?;
    let offset = natural(&tensor.storage_offset, "storage offset")?;
    let entry = Some(format!("{folder}{}", meta.path_name));
    Ok(Some(Planned { name, origin, is_param: meta.is_param, dtype, shape, strides, offset, entry }))
}

fn dtype_and_shape(meta: &TensorMeta) -> Result<(DType, Vec<usize>), String> {
    let supported = || DType::ALL.map(DType::name).join(", ");
    let dtype = meta.dtype.dtype();
    let dtype = dtype.ok_or_else(|| format!("its dtype is {:?}, supported are {}", meta.dtype, supported()))?;
    if meta.sizes.len() > MAX_RANK {
        return Err(format!("it has {} axes, supported are {MAX_RANK}", meta.sizes.len()));
    }
    let sizes = meta.sizes.iter().map(|size| {
        let size = size.as_int().ok_or("its shape is symbolic")?;
        usize::try_from(size).map_err(|_| "its shape has a negative size")
    });
    let shape: Vec<usize> = sizes.collect::<Result<_, _>>()?;
    Tensor::byte_len(dtype, &shape).map_err(|e| e.to_string())?;
    Ok((dtype, shape))
}

/// Every source of the signature is a planned weight of the dtype and shape that the graph gives it. Without a
/// configuration, plans it from the graph.
fn check_signature<'a>(
    program: &'a ExportedProgram,
    has_config: [bool; 2],
    plan: &mut Vec<Planned<'a>>,
    problems: &mut Vec<WeightProblem>,
) {
    let failed: BTreeSet<String> = problems.iter().map(|p| p.name.clone()).collect();
    let mut by_name: HashMap<&str, usize> = plan.iter().enumerate().map(|(i, p)| (p.name, i)).collect();
    for spec in &program.graph_module.signature.input_specs {
        let (Some(name), Some(graph_name)) = (spec.source(), spec.graph_name()) else { continue };
        if failed.contains(name) {
            continue;
        }
        let mut problem = |problem: String| problems.push(WeightProblem { name: name.to_owned(), problem });
        let Some(meta) = program.graph_module.graph.tensor_values.get(graph_name) else {
            problem(format!("the graph has no tensor `{graph_name}`"));
            continue;
        };
        let (dtype, shape) = match dtype_and_shape(meta) {
            Ok(found) => found,
            Err(why) => {
                problem(why);
                continue;
            }
        };
        let origin = match spec {
            InputSpec::Parameter(_) => Origin::State,
            InputSpec::Buffer(b) if b.persistent => Origin::State,
            _ => Origin::Constant,
        };
        match by_name.get(name).and_then(|i| plan.get(*i)) {
            Some(p) if (p.dtype, &p.shape) != (dtype, &shape) => {
                let expected = format!("{dtype}{shape:?}");
                problem(format!("the graph has {expected}, the configuration of the weights {}{:?}", p.dtype, p.shape));
            }
            Some(_) => {}
            None if has_config[usize::from(origin == Origin::Constant)] => {
                problem("the program uses it, the configuration of the weights does not list it".to_owned());
            }
            None => {
                let is_param = matches!(spec, InputSpec::Parameter(_));
                by_name.insert(name, plan.len());
                let (strides, offset, entry) = (Vec::new(), 0, None);
                plan.push(Planned { name, origin, is_param, dtype, shape, strides, offset, entry });
            }
        }
    }
}

/// The entries that hold values. Those of one origin are all there, or none is: a program without weights.
fn payloads<'p>(archive: &Archive, plan: &'p [Planned<'_>], problems: &mut Vec<WeightProblem>) -> Vec<&'p str> {
    let mut held = BTreeSet::new();
    for origin in [Origin::State, Origin::Constant] {
        let of_origin = plan.iter().filter(|p| p.origin == origin && !p.shape.contains(&0));
        let of_origin = of_origin.filter_map(|p| Some((p, p.entry.as_deref()?)));
        // An entry without bytes is what saving a fake tensor leaves.
        let (present, absent): (Vec<_>, Vec<_>) =
            of_origin.partition(|(_, entry)| archive.size(entry).is_some_and(|size| size > 0));
        if !present.is_empty() {
            problems.extend(absent.iter().map(|(p, entry)| WeightProblem {
                name: p.name.to_owned(),
                problem: format!("{} is missing or empty, while others are there", archive.full_name(entry)),
            }));
        }
        held.extend(present.into_iter().map(|(_, entry)| entry));
    }
    held.into_iter().collect()
}

fn budget(archive: &Archive, needed: u64) -> Result<(), ImportError> {
    let allowed = archive.file_len().saturating_mul(4).saturating_add(FREE_MEMORY);
    if needed <= allowed {
        return Ok(());
    }
    let problem =
        format!("its weights unfold to {needed} bytes, more than the {allowed} that a file of this size may need");
    Err(archive.error("data/", problem, "save the weights uncompressed and without broadcast views"))
}

fn fail(archive: &Archive, problems: Vec<WeightProblem>) -> Result<(), ImportError> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(ImportError::new(archive.path(), ImportErrorKind::Weights(problems)))
}
