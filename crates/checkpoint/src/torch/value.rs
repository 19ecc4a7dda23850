use regraft_tensor::DType;

use crate::View;

/// A value of a pickle. Containers, storages and tensors are objects of the [`Heap`], since pickles share and change
/// them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    None,
    Bool,
    Int(i64),
    /// An integer of more than 64 bits, such as a seed of a random generator.
    BigInt,
    Float,
    Str(&'a str),
    Global(Global),
    Object(ObjectId),
}

/// A container, storage or tensor.
#[derive(Debug)]
pub(super) enum Object<'a> {
    Tuple(Vec<Value<'a>>),
    List(Vec<Value<'a>>),
    /// In the order of insertion; a key may stand there twice, and the last one counts.
    Dict(Vec<(Value<'a>, Value<'a>)>),
    Storage(Storage<'a>),
    Tensor(Box<TensorRef<'a>>),
    /// A tensor of a dtype that Regraft has not, by the name of that dtype.
    Foreign(&'static str),
}

/// Place of an object in the [`Heap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ObjectId(usize);

/// The bytes under tensors: an entry of the archive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage<'a> {
    /// Its dtype, or the name of one that Regraft has not.
    pub(super) dtype: Result<DType, &'static str>,
    /// The name of its entry in the folder `data`.
    pub(super) key: &'a str,
    /// Number of elements.
    pub(super) numel: usize,
}

/// A tensor: a storage and how it is seen.
#[derive(Debug)]
pub(super) struct TensorRef<'a> {
    pub(super) key: &'a str,
    /// Elements in the storage.
    pub(super) numel: usize,
    pub(super) view: View,
}

/// The functions and classes that a state dict needs. None is ever called: each stands for what it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    /// `torch.Size`, a tuple.
    Size,
    /// `torch._utils._rebuild_tensor_v2`.
    Tensor,
    /// `torch._utils._rebuild_parameter`.
    Parameter,
    /// A function that makes a tensor of a dtype that Regraft has not.
    ForeignTensor,
    /// A class of storages, by its dtype.
    Storage(Result<DType, &'static str>),
    /// A dtype or quantization scheme that Regraft has not.
    Foreign(&'static str),
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

    /// What a value is, in words.
    pub(super) fn kind(&self, value: Value<'a>) -> &'static str {
        match (value, self.get(value)) {
            (Value::None, _) => "None",
            (Value::Bool, _) => "a bool",
            (Value::Int(_) | Value::BigInt, _) => "an int",
            (Value::Float, _) => "a float",
            (Value::Str(_), _) => "a string",
            (Value::Global(_), _) => "a class, function or dtype",
            (Value::Object(_), Some(Object::Tuple(_))) => "a tuple",
            (Value::Object(_), Some(Object::List(_))) => "a list",
            (Value::Object(_), Some(Object::Dict(_))) => "a dict",
            (Value::Object(_), Some(Object::Storage(_))) => "a storage",
            (Value::Object(_), Some(Object::Tensor(_) | Object::Foreign(_))) => "a tensor",
            (Value::Object(_), None) => "nothing",
        }
    }
}
