//! Parameters, buffers and constants.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rayon::prelude::*;
use regraft_checkpoint::{View, check_memory};
use regraft_tensor::{Buffer, DType, Tensor};
use regraft_weights::{StateDict, on_shared_threads};

use super::{
    archive::Archive,
    schema::{self, ExportedProgram, InputSpec, Layout, PayloadConfig, PayloadMeta, TensorMeta},
    schema_kind,
};
use crate::{ImportError, ImportErrorKind, WeightProblem};

/// More axes than any tensor has.
const MAX_RANK: usize = 64;

/// Where the archive keeps a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// With the weights: what `state_dict()` has.
    State,
    /// With the constants: non-persistent buffers and tensors that the code made from literals.
    Constant,
}

/// Whether the values of weights are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// They are.
    Read,
    /// Names, types and ties will do.
    Skip,
}

/// A parameter, buffer or tensor constant.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Fully qualified name.
    pub name: String,
    /// Element type; of complex numbers that of their parts.
    pub dtype: DType,
    /// Shape; complex numbers are pairs along a last axis of two.
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
    view: View,
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

    /// The tensors that `state_dict()` has; those without a value when there are such.
    pub(super) fn into_state_dict(self) -> Result<StateDict, Vec<WeightProblem>> {
        let (mut dict, mut missing) = (StateDict::new(), Vec::new());
        for weight in self.list.into_iter().filter(|w| w.origin == Origin::State) {
            match weight.tensor {
                Some(tensor) => dict.insert(weight.name, tensor),
                None => missing.push(WeightProblem {
                    name: weight.name,
                    problem: "the file was saved without its value".to_owned(),
                }),
            }
        }
        if missing.is_empty() { Ok(dict) } else { Err(missing) }
    }

    /// The weights of `model`, checked against the signature of its program.
    ///
    /// # Errors
    /// All weights that are missing, damaged, or not as the program expects.
    pub fn load(
        archive: &Archive,
        model: &str,
        program: &ExportedProgram,
        values: Values,
    ) -> Result<Weights, ImportError> {
        let state = read_config(archive, "data/weights/", model, &["weights_config", "model_param_config"])?;
        let constants = read_config(archive, "data/constants/", model, &["constants_config"])?;
        let mut problems = Vec::new();
        let plan = plan(program, [state.as_ref(), constants.as_ref()], &mut problems);
        let held = match values {
            Values::Read => payloads(archive, &plan, &mut problems),
            Values::Skip => Vec::new(),
        };
        fail(archive, problems)?;

        let first = first_views(&plan);
        let tensors = tensors(archive, &plan, &held, &first)?;
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
            let Planned { name, origin, is_param, view: View { dtype, shape, .. }, .. } = p;
            weights.list.push(Weight { name: name.to_owned(), dtype, shape, tensor, origin, is_param, alias_of });
        }
        fail(archive, problems)?;
        Ok(weights)
    }
}

/// What is to be read, by the configurations of state and constants and the signature of the program.
fn plan<'a>(
    program: &'a ExportedProgram,
    configs: [Option<&'a PayloadConfig>; 2],
    problems: &mut Vec<WeightProblem>,
) -> Vec<Planned<'a>> {
    let mut plan = Vec::new();
    let origins = [(Origin::State, "data/weights/"), (Origin::Constant, "data/constants/")];
    for ((origin, folder), config) in origins.into_iter().zip(configs) {
        for (name, meta) in config.iter().flat_map(|c| &c.config) {
            match planned(name, meta, origin, folder) {
                Ok(planned) => plan.extend(planned),
                Err(problem) => problems.push(WeightProblem { name: name.clone(), problem }),
            }
        }
    }
    check_signature(program, configs.map(|c| c.is_some()), &mut plan, problems);
    plan
}

/// The value of each weight that is the `first` of its kind, from the entries `held`.
fn tensors(
    archive: &Archive,
    plan: &[Planned<'_>],
    held: &[&str],
    first: &[usize],
) -> Result<Vec<Result<Option<Tensor>, String>>, ImportError> {
    let unpacked = held.iter().fold(0u64, |sum, entry| sum.saturating_add(archive.memory_for(entry)));
    budget(archive, unpacked)?;
    let buffer = |entry: &&'_ str| Ok(((*entry).to_owned(), archive.buffer(entry)?));
    let buffers: BTreeMap<String, Buffer> =
        on_shared_threads(|| held.par_iter().map(buffer).collect::<Result<_, ImportError>>())?;

    let storage = |p: &Planned<'_>| p.entry.as_deref().and_then(|entry| buffers.get(entry));
    let firsts = plan.iter().zip(0..).filter(|(_, i)| first.get(*i) == Some(i));
    let copied = firsts.filter_map(|(p, _)| Some(p.view.memory(storage(p)?)));
    budget(archive, copied.fold(unpacked, u64::saturating_add))?;

    let tensor = |(i, p): (usize, &Planned<'_>)| match storage(p) {
        _ if first.get(i) != Some(&i) => Ok(None),
        Some(storage) => p.view.tensor(storage).map(Some),
        None if p.view.shape.contains(&0) => {
            Tensor::zeros(p.view.dtype, &p.view.shape).map(Some).map_err(|e| e.to_string())
        }
        None => Ok(None),
    };
    Ok(on_shared_threads(|| plan.par_iter().enumerate().map(tensor).collect()))
}

/// The position of the first weight that is the same memory seen the same way as each.
fn first_views(plan: &[Planned<'_>]) -> Vec<usize> {
    let mut first: HashMap<(&str, &View), usize> = HashMap::new();
    let position = |(i, p)| {
        let Planned { view, entry, .. }: &Planned<'_> = p;
        match entry.as_deref() {
            // Views without elements share nothing.
            Some(entry) if !view.shape.contains(&0) => *first.entry((entry, view)).or_insert(i),
            _ => i,
        }
    };
    plan.iter().enumerate().map(position).collect()
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
            return schema::from_json(&text).map(Some).map_err(|p| {
                ImportError::new(archive.path(), schema_kind(archive.full_name(&name), p.at.into(), p.problem))
            });
        }
    }
    Ok(None)
}

/// One line of a configuration; `None` for an object that is not a tensor.
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
    if tensor.strides.len() != tensor.sizes.len() {
        return Err(format!("expected {} strides, found {}", tensor.sizes.len(), tensor.strides.len()));
    }
    let natural = |size: &schema::SymInt, what: &str| {
        size.as_int()
            .and_then(|v| usize::try_from(v).ok())
            .ok_or_else(|| format!("its {what} {size:?} is not a natural number"))
    };
    // The stride of an axis of size 1 says nothing, and views that differ in it alone are equal.
    let strides = tensor.strides.iter().zip(&shape);
    let strides = strides.map(|(stride, &size)| if size == 1 { Ok(0) } else { natural(stride, "stride") });
    let mut strides: Vec<usize> = strides.collect::<Result<_, _>>()?;
    let mut offset = natural(&tensor.storage_offset, "storage offset")?;
    if tensor.dtype.part().is_some() {
        // Two parts stand side by side for each element.
        let twice = |n: usize| n.checked_mul(2).ok_or("it reaches beyond all memory");
        strides = strides.into_iter().map(twice).collect::<Result<_, _>>()?;
        strides.push(1);
        offset = twice(offset)?;
    }
    let entry = Some(format!("{folder}{}", meta.path_name));
    let view = View { dtype, shape, strides, offset };
    Ok(Some(Planned { name, origin, is_param: meta.is_param, view, entry }))
}

/// Dtype and shape; of complex numbers those of their pairs: real and imaginary part along a last axis.
fn dtype_and_shape(meta: &TensorMeta) -> Result<(DType, Vec<usize>), String> {
    let supported = || {
        let taken = DType::ALL.into_iter().filter(|dtype| !dtype.is_wide_unsigned());
        taken.map(DType::name).collect::<Vec<_>>().join(", ")
    };
    let part = meta.dtype.part();
    let dtype = part.or(meta.dtype.dtype());
    let dtype = dtype.ok_or_else(|| format!("its dtype is {:?}, supported are {}", meta.dtype, supported()))?;
    if meta.sizes.len() > MAX_RANK {
        return Err(format!("it has {} axes, supported are {MAX_RANK}", meta.sizes.len()));
    }
    let sizes = meta.sizes.iter().map(|size| {
        let size = size.as_int().ok_or("its shape is symbolic")?;
        usize::try_from(size).map_err(|_| "its shape has a negative size")
    });
    let mut shape: Vec<usize> = sizes.collect::<Result<_, _>>()?;
    if part.is_some() {
        shape.push(2);
    }
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
            Some(Planned { view, .. }) if (view.dtype, &view.shape) != (dtype, &shape) => {
                let found = format!("{}{:?}", view.dtype, view.shape);
                problem(format!("the graph has {dtype}{shape:?}, the configuration of the weights {found}"));
            }
            Some(_) => {}
            None if has_config[usize::from(origin == Origin::Constant)] => {
                problem("the program uses it, the configuration of the weights does not list it".to_owned());
            }
            None => {
                let is_param = matches!(spec, InputSpec::Parameter(_));
                by_name.insert(name, plan.len());
                plan.push(Planned { name, origin, is_param, view: View::dense(dtype, shape), entry: None });
            }
        }
    }
}

/// The entries that hold values. Those of one origin are all there, or none is: a program without weights.
fn payloads<'p>(archive: &Archive, plan: &'p [Planned<'_>], problems: &mut Vec<WeightProblem>) -> Vec<&'p str> {
    let mut held = BTreeSet::new();
    for origin in [Origin::State, Origin::Constant] {
        let of_origin = plan.iter().filter(|p| p.origin == origin && !p.view.shape.contains(&0));
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
    let refused = |e| archive.error("data/", e, "save the weights uncompressed and without broadcast views");
    check_memory(needed, archive.file_len()).map_err(refused)
}

fn fail(archive: &Archive, problems: Vec<WeightProblem>) -> Result<(), ImportError> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(ImportError::new(archive.path(), ImportErrorKind::Weights(problems)))
}
