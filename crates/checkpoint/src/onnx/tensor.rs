use std::ops::Range;

use regraft_tensor::{AlignedVec, Buffer, DType, Tensor};

use super::{
    external::Place,
    wire::{Field, Fields},
};
use crate::{FileProblem, View};

/// More axes than any tensor has.
const MAX_RANK: usize = 64;

/// A `TensorProto` as it stands in the file.
#[derive(Default)]
pub(super) struct Message<'a> {
    pub(super) name: &'a str,
    place: Range<usize>,
    dims: Vec<i64>,
    data_type: i64,
    raw: Option<Range<usize>>,
    /// The fields that hold its values as numbers.
    numbers: Vec<Numbers>,
    external: Place<'a>,
    is_external: bool,
    is_segment: bool,
}

/// A field that holds values as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Numbers {
    Floats,
    Ints32,
    Ints64,
    Doubles,
    UInts64,
}

/// An initializer: what it is, and where its values are.
pub(super) struct Initializer<'a> {
    pub(super) view: View,
    /// Bytes of its values.
    pub(super) byte_len: usize,
    pub(super) values: Values<'a>,
    /// The message that it stands in.
    place: Range<usize>,
}

pub(super) enum Values<'a> {
    /// Bytes of the model.
    Raw(Range<usize>),
    /// Bytes of another file.
    External(Place<'a>),
    /// In the field of the message for numbers of its dtype.
    Numbers,
}

impl<'a> Message<'a> {
    /// Reads the message at `place`, but not the values in it.
    pub(super) fn read(file: &'a [u8], place: Range<usize>) -> Result<Self, String> {
        let mut message = Message { place: place.clone(), ..Message::default() };
        for field in Fields::new(file, place) {
            message.set(file, field?)?;
        }
        Ok(message)
    }

    /// Its dtype.
    ///
    /// # Errors
    /// The name of one that Regraft has not.
    pub(super) fn dtype(&self) -> Result<DType, String> {
        dtype_of(self.data_type)
    }

    fn set(&mut self, file: &'a [u8], field: Field) -> Result<(), String> {
        let at = field.at;
        match field.number {
            1 => field.ints(file, &mut |dim| {
                self.dims.push(dim);
                let fits = self.dims.len() <= MAX_RANK;
                fits.then_some(()).ok_or_else(|| format!("byte {at}: a tensor has more than {MAX_RANK} axes"))
            })?,
            2 => self.data_type = field.int()?,
            3 => self.is_segment = true,
            8 => self.name = field.text(file)?,
            9 => self.raw = Some(field.bytes()?),
            13 => self.external.set(file, field)?,
            14 => self.is_external = field.int()? == 1,
            number => {
                if let Some(numbers) = Numbers::of_field(number)
                    && !self.numbers.contains(&numbers)
                {
                    self.numbers.push(numbers);
                }
            }
        }
        Ok(())
    }
}

impl Numbers {
    fn of_field(number: u64) -> Option<Numbers> {
        Some(match number {
            4 => Numbers::Floats,
            5 => Numbers::Ints32,
            7 => Numbers::Ints64,
            10 => Numbers::Doubles,
            11 => Numbers::UInts64,
            _ => return None,
        })
    }

    /// The name of the field.
    fn field(self) -> &'static str {
        match self {
            Numbers::Floats => "float_data",
            Numbers::Ints32 => "int32_data",
            Numbers::Ints64 => "int64_data",
            Numbers::Doubles => "double_data",
            Numbers::UInts64 => "uint64_data",
        }
    }

    fn of_dtype(dtype: DType) -> Numbers {
        match dtype {
            DType::F32 => Numbers::Floats,
            DType::F64 => Numbers::Doubles,
            DType::I64 => Numbers::Ints64,
            DType::U32 | DType::U64 => Numbers::UInts64,
            // Halves by their bits.
            DType::F16 | DType::BF16 | DType::I32 | DType::I16 | DType::I8 | DType::U8 | DType::U16 | DType::Bool => {
                Numbers::Ints32
            }
        }
    }
}

impl<'a> Initializer<'a> {
    /// Checks what a message says about its tensor, which is called `name`.
    pub(super) fn of(message: Message<'a>, name: &str) -> Result<Self, FileProblem> {
        let dtype = message.dtype().map_err(|dtype| FileProblem::dtype(name, &dtype))?;
        let Message { place, dims, raw, numbers, external, is_external, is_segment, .. } = message;
        let bad = |problem: String| FileProblem::tensor(name, problem);
        if is_segment {
            return Err(bad("it is one segment of a tensor, which is not read".to_owned()));
        }
        let shape = dims.iter().map(|dim| usize::try_from(*dim)).collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| bad(format!("its shape {dims:?} has a negative size")))?;
        let byte_len = Tensor::byte_len(dtype, &shape).map_err(|e| bad(e.to_string()))?;
        let values = match (is_external, raw, numbers.as_slice()) {
            (true, None, []) => Values::External(external),
            (false, Some(raw), []) => Values::Raw(raw),
            (false, None, []) => Values::Numbers,
            (false, None, [numbers]) if *numbers == Numbers::of_dtype(dtype) => Values::Numbers,
            (false, None, [numbers]) => {
                let expected = Numbers::of_dtype(dtype).field();
                return Err(bad(format!("its values stand in {}, expected {expected} for {dtype}", numbers.field())));
            }
            _ => return Err(bad("it has values of several kinds, expected one".to_owned())),
        };
        Ok(Initializer { view: View::dense(dtype, shape), byte_len, values, place })
    }

    /// The values that stand in the message as numbers, as bytes.
    pub(super) fn numbers(&self, file: &[u8]) -> Result<Buffer, String> {
        let dtype = self.view.dtype;
        // Each value takes a byte or more: no memory for values that cannot be there.
        let (values, given) = (self.byte_len / dtype.size(), self.place.len());
        if values > given {
            return Err(format!("expected {values} values, found {given} bytes in all"));
        }
        let mut out = Out { bytes: AlignedVec::try_zeroed(self.byte_len).map_err(|e| e.to_string())?, filled: 0 };
        let wanted = Numbers::of_dtype(dtype);
        for field in Fields::new(file, self.place.clone()) {
            let field = field?;
            if Numbers::of_field(field.number) != Some(wanted) {
                continue;
            }
            match wanted {
                Numbers::Floats => field.fixed::<4>(file, &mut |bytes| out.put(bytes))?,
                Numbers::Doubles => field.fixed::<8>(file, &mut |bytes| out.put(bytes))?,
                Numbers::Ints32 | Numbers::Ints64 | Numbers::UInts64 => {
                    field.ints(file, &mut |value| out.put_int(dtype, value))?;
                }
            }
        }
        if out.filled != self.byte_len {
            return Err(format!("expected {} bytes of values, found {}", self.byte_len, out.filled));
        }
        Ok(out.bytes.into())
    }
}

/// Bytes that are filled from the front.
struct Out {
    bytes: AlignedVec,
    filled: usize,
}

impl Out {
    fn put(&mut self, bytes: &[u8]) -> Result<(), String> {
        let len = self.bytes.len();
        let place = self.bytes.bytes_mut().get_mut(self.filled..).and_then(|rest| rest.get_mut(..bytes.len()));
        place.ok_or_else(|| format!("it has more values than its shape, expected {len} bytes"))?.copy_from_slice(bytes);
        self.filled += bytes.len();
        Ok(())
    }

    fn put_int(&mut self, dtype: DType, value: i64) -> Result<(), String> {
        let outside = |_| format!("the value {value} does not fit {dtype}");
        match dtype {
            DType::I64 => self.put(&value.to_le_bytes()),
            DType::I32 => self.put(&i32::try_from(value).map_err(outside)?.to_le_bytes()),
            DType::I16 => self.put(&i16::try_from(value).map_err(outside)?.to_le_bytes()),
            DType::I8 => self.put(&i8::try_from(value).map_err(outside)?.to_le_bytes()),
            // Varints of 64 bits: the number is negative here where its highest bit is set.
            DType::U64 => self.put(&value.to_le_bytes()),
            DType::U32 => self.put(&u32::try_from(value).map_err(outside)?.to_le_bytes()),
            DType::F16 | DType::BF16 | DType::U16 => self.put(&u16::try_from(value).map_err(outside)?.to_le_bytes()),
            DType::U8 | DType::Bool => self.put(&[u8::try_from(value).map_err(outside)?]),
            DType::F32 | DType::F64 => Err(format!("an integer, expected {dtype}")),
        }
    }
}

/// The dtype of an element type by its number.
///
/// # Errors
/// The name of one that Regraft has not.
pub fn dtype_of(data_type: i64) -> Result<DType, String> {
    const FOREIGN: [(i64, &str); 11] = [
        (8, "string"),
        (14, "complex64"),
        (15, "complex128"),
        (17, "float8_e4m3fn"),
        (18, "float8_e4m3fnuz"),
        (19, "float8_e5m2"),
        (20, "float8_e5m2fnuz"),
        (21, "uint4"),
        (22, "int4"),
        (23, "float4_e2m1"),
        (24, "float8_e8m0fnu"),
    ];
    Ok(match data_type {
        1 => DType::F32,
        2 => DType::U8,
        3 => DType::I8,
        4 => DType::U16,
        5 => DType::I16,
        6 => DType::I32,
        7 => DType::I64,
        9 => DType::Bool,
        10 => DType::F16,
        11 => DType::F64,
        12 => DType::U32,
        13 => DType::U64,
        16 => DType::BF16,
        other => {
            let name = FOREIGN.iter().find(|(number, _)| *number == other).map(|(_, name)| (*name).to_owned());
            return Err(name.unwrap_or_else(|| format!("number {other} of ONNX")));
        }
    })
}
