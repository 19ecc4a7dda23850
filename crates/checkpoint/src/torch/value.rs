use std::fmt;

use regraft_tensor::DType;

use crate::View;

/// A value of a pickle. Containers, storages and tensors are objects of the [`Heap`], since pickles share and change
/// them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    None,
    Bool,
    Int(i64),
    /// An integer of more than 64 bits, such as a seed of a random generator, by its lowest bits.
    BigInt(u64),
    Float,
    Bytes,
    Str(&'a str),
    Global(Global<'a>),
    Object(ObjectId),
}

/// A container, storage or tensor.
#[derive(Debug)]
pub(super) enum Object<'a> {
    Tuple(Vec<Value<'a>>),
    List(Vec<Value<'a>>),
    /// In the order of insertion; a key may stand there twice, and the last one counts.
    Dict(Vec<(Value<'a>, Value<'a>)>),
    Set,
    Storage(Storage<'a>),
    Tensor(Box<TensorRef<'a>>),
    /// What cannot stand for a weight, whatever is in it.
    Opaque(Opaque<'a>),
}

/// Something that is named and not looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opaque<'a> {
    /// A tensor of a dtype that Regraft has not, by the name of that dtype.
    Tensor(&'static str),
    /// In words.
    Known(&'static str),
    /// What a class or function of Python would make.
    Instance { module: &'a str, name: &'a str },
}

impl fmt::Display for Opaque<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Opaque::Tensor(dtype) => write!(f, "a tensor of {dtype}"),
            Opaque::Known(what) => f.write_str(what),
            Opaque::Instance { module, name } => write!(f, "an object of `{module}.{name}`"),
        }
    }
}

/// Place of an object in the [`Heap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ObjectId(usize);

/// The bytes under tensors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage<'a> {
    /// Its dtype, or the name of one that Regraft has not.
    pub(super) dtype: Result<DType, &'static str>,
    /// Its name in the file.
    pub(super) key: &'a str,
    /// Number of elements.
    pub(super) numel: usize,
    /// The element at which it begins, where it is a part of another one.
    pub(super) start: usize,
}

/// A tensor: a storage and how it is seen.
#[derive(Clone, Debug)]
pub(super) struct TensorRef<'a> {
    pub(super) key: &'a str,
    /// Elements in the storage.
    pub(super) numel: usize,
    pub(super) view: View,
}

/// The functions and classes of a pickle. None is ever called: each stands for what it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global<'a> {
    /// A dict, whatever its class does beside that.
    Dict,
    Set,
    /// `torch.Size`, a tuple.
    Size,
    /// `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`.
    Tensor,
    /// `torch._utils._rebuild_parameter`, with or without state.
    Parameter,
    /// `torch._tensor._rebuild_from_type_v2`: a function of the ones here, with its arguments.
    FromType,
    /// `torch.Tensor`, `torch.nn.Parameter` and the like.
    TensorClass,
    /// A function that makes a tensor of a dtype that Regraft has not.
    ForeignTensor,
    /// A class of storages, by its dtype.
    Storage(Result<DType, &'static str>),
    /// A dtype, a quantization scheme or a layout.
    DType(&'static str),
    /// Makes something that is known and cannot be a weight.
    Known(&'static str),
    /// Anything else.
    Unknown {
        module: &'a str,
        name: &'a str,
    },
}

/// All objects of a pickle.
#[derive(Debug, Default)]
pub(super) struct Heap<'a> {
    objects: Vec<Object<'a>>,
}

impl<'a> Heap<'a> {
    pub(super) fn add(&mut self, object: Object<'a>) -> Value<'a> {
        self.objects.push(object);
        Value::Object(ObjectId(self.objects.len() - 1))
    }

    pub(super) fn get(&self, value: Value<'a>) -> Option<&Object<'a>> {
        let Value::Object(ObjectId(id)) = value else { return None };
        self.objects.get(id)
    }

    pub(super) fn get_mut(&mut self, value: Value<'a>) -> Option<&mut Object<'a>> {
        let Value::Object(ObjectId(id)) = value else { return None };
        self.objects.get_mut(id)
    }

    pub(super) fn tuple(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match self.get(value) {
            Some(Object::Tuple(items)) => Some(items),
            _ => None,
        }
    }

    pub(super) fn dict(&self, value: Value<'a>) -> Option<&[(Value<'a>, Value<'a>)]> {
        match self.get(value) {
            Some(Object::Dict(items)) => Some(items),
            _ => None,
        }
    }

    /// All storages that were named.
    pub(super) fn storages(&self) -> impl Iterator<Item = &Storage<'a>> {
        self.objects.iter().filter_map(|object| match object {
            Object::Storage(storage) => Some(storage),
            _ => None,
        })
    }

    /// What a value is, in words.
    pub(super) fn kind(&self, value: Value<'a>) -> String {
        match (value, self.get(value)) {
            (_, Some(Object::Opaque(opaque))) => return opaque.to_string(),
            (Value::Global(Global::Unknown { module, name }), _) => return format!("`{module}.{name}`"),
            (Value::None, _) => "None",
            (Value::Bool, _) => "a bool",
            (Value::Int(_) | Value::BigInt(_), _) => "an int",
            (Value::Float, _) => "a float",
            (Value::Bytes, _) => "bytes",
            (Value::Str(_), _) => "a string",
            (Value::Global(_), _) => "a class, function or dtype",
            (Value::Object(_), Some(Object::Tuple(_))) => "a tuple",
            (Value::Object(_), Some(Object::List(_))) => "a list",
            (Value::Object(_), Some(Object::Dict(_))) => "a dict",
            (Value::Object(_), Some(Object::Set)) => "a set",
            (Value::Object(_), Some(Object::Storage(_))) => "a storage",
            (Value::Object(_), Some(Object::Tensor(_))) => "a tensor",
            (Value::Object(_), None) => "nothing",
        }
        .to_owned()
    }
}
