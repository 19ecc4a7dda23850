//! Where tensors stand in the nodes of a model: `Constant` nodes, other attributes that are tensors, and the initializers of
//! graphs inside of nodes and functions; and what each is called.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    ops::Range,
    rc::Rc,
};

use super::{
    FUNCTION, GRAPH, INITIALIZER, SPARSE_INITIALIZER, damaged, sparse,
    wire::{Fields, Wire},
};
use crate::{FileProblem, check_memory};
use regraft_tensor::Tensor;

/// Deeper nesting of graphs than any model has.
const DEPTH: usize = 32;

/// A tensor in a node.
pub(super) struct Held {
    pub(super) name: String,
    /// The byte that its message begins at; of numbers, that of their attribute.
    pub(super) at: usize,
    pub(super) values: HeldValues,
}

pub(super) enum HeldValues {
    /// A `TensorProto`.
    Tensor(Range<usize>),
    /// Numbers of a `Constant`.
    Numbers(Tensor),
}

/// All tensors that stand in nodes of the model. One is called as the value that it is; where that name is not the only one, the
/// nodes or the function around it are put before it.
pub(super) fn held(file: &[u8], taken: &[&str]) -> Result<Vec<Held>, FileProblem> {
    let mut walk = Walk { file, found: Vec::new() };
    for field in Fields::new(file, 0..file.len()) {
        let field = field.map_err(damaged)?;
        match field.number {
            GRAPH => walk.graph(field.bytes().map_err(damaged)?, None, 0)?,
            FUNCTION => walk.function(field.bytes().map_err(damaged)?)?,
            _ => {}
        }
    }
    let mut counts: HashMap<Name<'_>, usize> = taken.iter().map(|name| (Name(name, ""), 1)).collect();
    walk.found.iter().for_each(|one| *counts.entry(one.name).or_default() += 1);
    let mut seen: HashSet<String> = taken.iter().map(|name| (*name).to_owned()).collect();
    let mut held = Vec::with_capacity(walk.found.len());
    let mut bytes = 0;
    for Found { scope, name, at, values } in walk.found {
        let scope = scope.filter(|_| counts.get(&name).is_some_and(|count| *count > 1));
        // What names take in memory must stay in proportion to the file.
        bytes += name.len() + scope.as_ref().map_or(0, |scope| scope.len);
        check_memory(bytes as u64, file.len() as u64).map_err(damaged)?;
        let name = format!("{}{name}", scope.map(|scope| scope.text()).unwrap_or_default());
        if !seen.insert(name.clone()) {
            return Err(damaged(format!("byte {at}: a second tensor is called `{name}`")));
        }
        held.push(Held { name, at, values });
    }
    Ok(held)
}

struct Found<'a> {
    scope: Option<Rc<Scope<'a>>>,
    name: Name<'a>,
    at: usize,
    values: HeldValues,
}

/// A value, and the attribute that it is told from where it is not the value itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Name<'a>(&'a str, &'a str);

impl Name<'_> {
    fn len(&self) -> usize {
        self.0.len() + self.1.len() + 1
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let between = if self.0.is_empty() || self.1.is_empty() { "" } else { "/" };
        write!(f, "{}{between}{}", self.0, self.1)
    }
}

/// A function, or the graph of a node: the nodes that a tensor stands in.
struct Scope<'a> {
    outer: Option<Rc<Scope<'a>>>,
    name: Name<'a>,
    /// Bytes of its text.
    len: usize,
}

impl<'a> Scope<'a> {
    fn inside(outer: Option<Rc<Scope<'a>>>, name: Name<'a>) -> Option<Rc<Scope<'a>>> {
        let len = outer.as_ref().map_or(0, |outer| outer.len) + name.len() + 1;
        Some(Rc::new(Scope { outer, name, len }))
    }

    fn text(&self) -> String {
        let outer = self.outer.as_ref().map(|outer| outer.text()).unwrap_or_default();
        format!("{outer}{}/", self.name)
    }
}

/// The node that an attribute is of.
#[derive(Default)]
struct Owner<'a> {
    /// Its first result that has a name.
    output: &'a str,
    /// Whether it is a `Constant`, whose attribute is its result.
    is_constant: bool,
}

struct Walk<'a> {
    file: &'a [u8],
    found: Vec<Found<'a>>,
}

impl<'a> Walk<'a> {
    /// The nodes of a graph; of one inside of a node the initializers, too.
    fn graph(&mut self, place: Range<usize>, scope: Option<Rc<Scope<'a>>>, depth: usize) -> Result<(), FileProblem> {
        if depth > DEPTH {
            return Err(damaged(format!("byte {}: graphs are nested more than {DEPTH} deep", place.start)));
        }
        for field in Fields::new(self.file, place) {
            let field = field.map_err(damaged)?;
            match field.number {
                1 => self.node(field.bytes().map_err(damaged)?, scope.clone(), depth)?,
                INITIALIZER if depth > 0 => {
                    let place = field.bytes().map_err(damaged)?;
                    let name = text(self.file, place.clone(), 8)?;
                    self.tensor(scope.clone(), Name(name, ""), place);
                }
                SPARSE_INITIALIZER if depth > 0 => return Err(sparse(field.at, "initializer")),
                _ => {}
            }
        }
        Ok(())
    }

    fn function(&mut self, place: Range<usize>) -> Result<(), FileProblem> {
        let of = |number| text(self.file, place.clone(), number);
        let scope = Scope::inside(None, Name(of(10)?, of(1)?));
        let scope = match of(13)? {
            "" => scope,
            overload => Scope::inside(scope, Name(overload, "")),
        };
        for field in Fields::new(self.file, place) {
            let field = field.map_err(damaged)?;
            match field.number {
                7 => self.node(field.bytes().map_err(damaged)?, scope.clone(), 0)?,
                // The value of an attribute that a call leaves out.
                11 => self.attribute(field.bytes().map_err(damaged)?, scope.clone(), &Owner::default(), 0)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn node(&mut self, place: Range<usize>, scope: Option<Rc<Scope<'a>>>, depth: usize) -> Result<(), FileProblem> {
        let of = |number| text(self.file, place.clone(), number);
        // What has no result with a name is read by none.
        let Some(output) = texts(self.file, place.clone(), 2).find(|text| !matches!(text, Ok(""))) else {
            return Ok(());
        };
        let output = output?;
        let is_constant = of(4)? == "Constant" && matches!(of(7)?, "" | "ai.onnx");
        let owner = Owner { output, is_constant };
        for field in Fields::new(self.file, place) {
            let field = field.map_err(damaged)?;
            if field.number == 5 {
                self.attribute(field.bytes().map_err(damaged)?, scope.clone(), &owner, depth)?;
            }
        }
        Ok(())
    }

    fn attribute(
        &mut self,
        place: Range<usize>,
        scope: Option<Rc<Scope<'a>>>,
        owner: &Owner<'a>,
        depth: usize,
    ) -> Result<(), FileProblem> {
        let Owner { output, is_constant } = *owner;
        let attribute = text(self.file, place.clone(), 1)?;
        // The value of one that refers to the call of its function stands in that call.
        if !text(self.file, place.clone(), 21)?.is_empty() {
            return Ok(());
        }
        let name = if is_constant { Name(output, "") } else { Name(output, attribute) };
        for field in Fields::new(self.file, place.clone()) {
            let field = field.map_err(damaged)?;
            match field.number {
                5 => self.tensor(scope.clone(), name, field.bytes().map_err(damaged)?),
                6 | 11 => {
                    let inner = Scope::inside(scope.clone(), Name(output, attribute));
                    self.graph(field.bytes().map_err(damaged)?, inner, depth + 1)?;
                }
                22 if is_constant => return Err(sparse(field.at, "constant")),
                _ => {}
            }
        }
        if is_constant && let Some(tensor) = numbers(self.file, place.clone(), attribute)? {
            let values = HeldValues::Numbers(tensor);
            self.found.push(Found { scope, name, at: place.start, values });
        }
        Ok(())
    }

    fn tensor(&mut self, scope: Option<Rc<Scope<'a>>>, name: Name<'a>, place: Range<usize>) {
        self.found.push(Found { scope, name, at: place.start, values: HeldValues::Tensor(place) });
    }
}

/// The numbers in an attribute of a `Constant`.
fn numbers(file: &[u8], place: Range<usize>, attribute: &str) -> Result<Option<Tensor>, FileProblem> {
    let (mut floats, mut ints) = (Vec::new(), Vec::new());
    for field in Fields::new(file, place) {
        let field = field.map_err(damaged)?;
        match (attribute, field.number, &field.wire) {
            ("value_float", 2, Wire::Fixed32(bytes)) => floats.push(f32::from_le_bytes(*bytes)),
            ("value_int", 3, _) => ints.push(field.int().map_err(damaged)?),
            ("value_floats", 7, _) => {
                let mut each = |bytes: &[u8]| {
                    let (numbers, _) = bytes.as_chunks::<4>();
                    floats.extend(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)));
                    Ok(())
                };
                field.fixed::<4>(file, &mut each).map_err(damaged)?;
            }
            ("value_ints", 8, _) => {
                let mut each = |value| {
                    ints.push(value);
                    Ok(())
                };
                field.ints(file, &mut each).map_err(damaged)?;
            }
            _ => {}
        }
    }
    Ok(match attribute {
        // A number that is not written is 0, as everywhere in the format; of several the last counts.
        "value_float" => Some(Tensor::from_slice(&[], &[floats.last().copied().unwrap_or_default()])),
        "value_int" => Some(Tensor::from_slice(&[], &[ints.last().copied().unwrap_or_default()])),
        "value_floats" => Some(Tensor::from_slice(&[floats.len()], &floats)),
        "value_ints" => Some(Tensor::from_slice(&[ints.len()], &ints)),
        _ => None,
    })
}

/// The text in field `number` of a message, of several the last; empty where there is none.
fn text(file: &[u8], place: Range<usize>, number: u64) -> Result<&str, FileProblem> {
    texts(file, place, number).last().unwrap_or(Ok(""))
}

fn texts(file: &[u8], place: Range<usize>, number: u64) -> impl Iterator<Item = Result<&str, FileProblem>> {
    Fields::new(file, place).filter_map(move |field| match field {
        Ok(field) if field.number == number => Some(field.text(file).map_err(damaged)),
        Ok(_) => None,
        Err(problem) => Some(Err(damaged(problem))),
    })
}
