//! What an ONNX model says, as far as it matters: messages of `onnx.proto` over the bytes of the file. Values of tensors are
//! not read here, only where they stand.

use std::ops::Range;

use regraft_checkpoint::onnx::wire::{Field, Fields, Wire};

/// Deeper nesting of graphs than any model has.
const DEPTH: usize = 32;

type Read<T> = Result<T, String>;

/// A model.
#[derive(Debug, Default)]
pub(crate) struct Model<'a> {
    pub(crate) opsets: Vec<Opset<'a>>,
    pub(crate) graph: Graph<'a>,
    pub(crate) functions: Vec<Function<'a>>,
}

/// A version of the operators of a domain.
#[derive(Clone, Debug, Default)]
pub(crate) struct Opset<'a> {
    pub(crate) domain: &'a str,
    pub(crate) version: i64,
}

#[derive(Debug, Default)]
pub(crate) struct Graph<'a> {
    pub(crate) name: &'a str,
    pub(crate) nodes: Vec<Node<'a>>,
    pub(crate) initializers: Vec<Stored<'a>>,
    pub(crate) inputs: Vec<ValueInfo<'a>>,
    pub(crate) outputs: Vec<ValueInfo<'a>>,
}

/// A tensor, by the place of its message.
#[derive(Clone, Debug)]
pub(crate) struct Stored<'a> {
    pub(crate) name: &'a str,
    pub(crate) place: Range<usize>,
}

#[derive(Debug, Default)]
pub(crate) struct Node<'a> {
    pub(crate) name: &'a str,
    pub(crate) op: &'a str,
    pub(crate) domain: &'a str,
    pub(crate) overload: &'a str,
    pub(crate) inputs: Vec<&'a str>,
    pub(crate) outputs: Vec<&'a str>,
    pub(crate) attributes: Vec<Attribute<'a>>,
}

#[derive(Debug)]
pub(crate) struct Attribute<'a> {
    pub(crate) name: &'a str,
    /// The byte that its message begins at.
    pub(crate) at: usize,
    pub(crate) value: Value<'a>,
}

#[derive(Debug)]
pub(crate) enum Value<'a> {
    /// Of the function that the node stands in, by its name there.
    Of(&'a str),
    Float(f32),
    Int(i64),
    Text(&'a [u8]),
    Tensor(Stored<'a>),
    Graph(Graph<'a>),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    Texts(Vec<&'a [u8]>),
    /// Of a kind that no operator of ours has.
    Other,
}

#[derive(Debug, Default)]
pub(crate) struct ValueInfo<'a> {
    pub(crate) name: &'a str,
    /// Its element type by number and its sizes; `None` for what is not a tensor.
    pub(crate) tensor: Option<(i64, Vec<Size<'a>>)>,
    /// Whether it says a shape.
    pub(crate) has_shape: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Size<'a> {
    Known(i64),
    Named(&'a str),
    Open,
}

#[derive(Debug, Default)]
pub(crate) struct Function<'a> {
    pub(crate) name: &'a str,
    pub(crate) domain: &'a str,
    pub(crate) overload: &'a str,
    pub(crate) inputs: Vec<&'a str>,
    pub(crate) outputs: Vec<&'a str>,
    pub(crate) nodes: Vec<Node<'a>>,
    pub(crate) opsets: Vec<Opset<'a>>,
    /// Values of attributes that a call leaves out.
    pub(crate) defaults: Vec<Attribute<'a>>,
}

impl<'a> Model<'a> {
    /// Reads the model in `file`.
    pub(crate) fn read(file: &'a [u8]) -> Read<Self> {
        let mut model = Model::default();
        let mut found = false;
        for field in Fields::new(file, 0..file.len()) {
            let field = field?;
            match field.number {
                // A message that stands there in parts is the sum of them.
                7 => {
                    found = true;
                    model.graph.add(file, field, 0)?;
                }
                8 => model.opsets.push(Opset::read(file, field)?),
                25 => model.functions.push(Function::read(file, field)?),
                _ => {}
            }
        }
        if found { Ok(model) } else { Err("it has no graph".to_owned()) }
    }
}

impl<'a> Opset<'a> {
    fn read(file: &'a [u8], field: Field) -> Read<Self> {
        let mut opset = Opset::default();
        for field in Fields::new(file, field.bytes()?) {
            let field = field?;
            match field.number {
                1 => opset.domain = domain(field.text(file)?),
                2 => opset.version = field.int()?,
                _ => {}
            }
        }
        Ok(opset)
    }
}

/// The domain of ONNX itself has two names.
fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

impl<'a> Graph<'a> {
    fn add(&mut self, file: &'a [u8], field: Field, depth: usize) -> Read<()> {
        let at = field.at;
        if depth > DEPTH {
            return Err(format!("byte {at}: graphs are nested more than {DEPTH} deep"));
        }
        for field in Fields::new(file, field.bytes()?) {
            let field = field?;
            match field.number {
                1 => self.nodes.push(Node::read(file, field, depth)?),
                2 => self.name = field.text(file)?,
                5 => self.initializers.push(stored(file, field)?),
                11 => self.inputs.push(ValueInfo::read(file, field)?),
                12 => self.outputs.push(ValueInfo::read(file, field)?),
                15 => return Err(format!("byte {}: it has a sparse initializer, which is not read", field.at)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The name and place of a tensor.
fn stored<'a>(file: &'a [u8], field: Field) -> Read<Stored<'a>> {
    let place = field.bytes()?;
    let mut name = "";
    for field in Fields::new(file, place.clone()) {
        let field = field?;
        if field.number == 8 {
            name = field.text(file)?;
        }
    }
    Ok(Stored { name, place })
}

impl<'a> Node<'a> {
    fn read(file: &'a [u8], field: Field, depth: usize) -> Read<Self> {
        let mut node = Node::default();
        for field in Fields::new(file, field.bytes()?) {
            let field = field?;
            match field.number {
                1 => node.inputs.push(field.text(file)?),
                2 => node.outputs.push(field.text(file)?),
                3 => node.name = field.text(file)?,
                4 => node.op = field.text(file)?,
                5 => node.attributes.push(Attribute::read(file, field, depth)?),
                7 => node.domain = domain(field.text(file)?),
                8 => node.overload = field.text(file)?,
                _ => {}
            }
        }
        Ok(node)
    }

    /// Its name, or that of its first result.
    pub(crate) fn label(&self) -> &'a str {
        match self.name {
            "" => self.outputs.first().copied().unwrap_or_default(),
            name => name,
        }
    }
}

/// What an attribute has in each of its fields.
#[derive(Default)]
struct Parts<'a> {
    float: f32,
    int: i64,
    text: &'a [u8],
    tensor: Option<Stored<'a>>,
    graph: Option<Graph<'a>>,
    floats: Vec<f32>,
    ints: Vec<i64>,
    texts: Vec<&'a [u8]>,
}

impl<'a> Attribute<'a> {
    fn read(file: &'a [u8], field: Field, depth: usize) -> Read<Self> {
        let (mut name, mut of, mut kind) = ("", "", 0);
        let mut parts = Parts::default();
        let place = field.bytes()?;
        let at = place.start;
        for field in Fields::new(file, place) {
            let field = field?;
            match field.number {
                1 => name = field.text(file)?,
                20 => kind = field.int()?,
                21 => of = field.text(file)?,
                _ => parts.set(file, field, depth)?,
            }
        }
        if !of.is_empty() {
            return Ok(Attribute { name, at, value: Value::Of(of) });
        }
        let missing = |what: &str| format!("byte {at}: the attribute `{name}` has no {what}");
        let value = match kind {
            1 => Value::Float(parts.float),
            2 => Value::Int(parts.int),
            3 => Value::Text(parts.text),
            4 => Value::Tensor(parts.tensor.ok_or_else(|| missing("tensor"))?),
            5 => Value::Graph(parts.graph.ok_or_else(|| missing("graph"))?),
            6 => Value::Floats(parts.floats),
            7 => Value::Ints(parts.ints),
            8 => Value::Texts(parts.texts),
            _ => Value::Other,
        };
        Ok(Attribute { name, at, value })
    }
}

impl<'a> Parts<'a> {
    fn set(&mut self, file: &'a [u8], field: Field, depth: usize) -> Read<()> {
        match field.number {
            2 => match field.wire {
                Wire::Fixed32(bytes) => self.float = f32::from_le_bytes(bytes),
                _ => return Err(format!("byte {}: an attribute has a damaged number", field.at)),
            },
            3 => self.int = field.int()?,
            4 => self.text = file.get(field.bytes()?).unwrap_or_default(),
            5 => self.tensor = Some(stored(file, field)?),
            6 => self.graph.get_or_insert_default().add(file, field, depth + 1)?,
            7 => field.fixed::<4>(file, &mut |bytes| {
                for number in bytes.chunks_exact(4) {
                    self.floats.push(f32::from_le_bytes(number.try_into().unwrap_or_default()));
                }
                Ok(())
            })?,
            8 => field.ints(file, &mut |v| {
                self.ints.push(v);
                Ok(())
            })?,
            9 => self.texts.push(file.get(field.bytes()?).unwrap_or_default()),
            _ => {}
        }
        Ok(())
    }
}

impl<'a> ValueInfo<'a> {
    fn read(file: &'a [u8], field: Field) -> Read<Self> {
        let mut info = ValueInfo::default();
        for field in Fields::new(file, field.bytes()?) {
            let field = field?;
            match field.number {
                1 => info.name = field.text(file)?,
                2 => {
                    for kind in Fields::new(file, field.bytes()?) {
                        let kind = kind?;
                        if kind.number == 1 {
                            info.tensor_type(file, kind)?;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(info)
    }

    fn tensor_type(&mut self, file: &'a [u8], field: Field) -> Read<()> {
        let (dtype, sizes) = self.tensor.get_or_insert_default();
        for field in Fields::new(file, field.bytes()?) {
            let field = field?;
            match field.number {
                1 => *dtype = field.int()?,
                2 => {
                    self.has_shape = true;
                    for dim in Fields::new(file, field.bytes()?) {
                        let dim = dim?;
                        if dim.number == 1 {
                            sizes.push(Size::read(file, dim)?);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl<'a> Size<'a> {
    fn read(file: &'a [u8], field: Field) -> Read<Self> {
        let mut size = Size::Open;
        for field in Fields::new(file, field.bytes()?) {
            let field = field?;
            match field.number {
                1 => size = Size::Known(field.int()?),
                2 => match field.text(file)? {
                    // Converters write a question mark for a size that they do not know.
                    "" | "?" => {}
                    name => size = Size::Named(name),
                },
                _ => {}
            }
        }
        Ok(size)
    }
}

impl<'a> Function<'a> {
    fn read(file: &'a [u8], field: Field) -> Read<Self> {
        let mut function = Function::default();
        for field in Fields::new(file, field.bytes()?) {
            let field = field?;
            match field.number {
                1 => function.name = field.text(file)?,
                4 => function.inputs.push(field.text(file)?),
                5 => function.outputs.push(field.text(file)?),
                7 => function.nodes.push(Node::read(file, field, 0)?),
                9 => function.opsets.push(Opset::read(file, field)?),
                10 => function.domain = domain(field.text(file)?),
                11 => function.defaults.push(Attribute::read(file, field, 0)?),
                13 => function.overload = field.text(file)?,
                _ => {}
            }
        }
        Ok(function)
    }
}
