//! The numbers of a tensor in JSON: read straight into its memory, and written from it.

use std::fmt;

use regraft::{AlignedVec, DType, Tensor};
use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};

/// Reads a list of numbers, flat or nested as the shape is, into a tensor.
///
/// # Errors
/// What does not fit, in words.
pub(crate) fn read(json: &str, dtype: DType, shape: &[usize]) -> Result<Tensor, String> {
    let bytes = Tensor::byte_len(dtype, shape).map_err(|error| error.to_string())?;
    let total: usize = shape.iter().product();
    // Each number takes a character and a comma: a larger claim is not trusted, and takes no memory.
    if total > json.len() {
        return Err(format!("the shape {shape:?} has {total} elements, and there are fewer"));
    }
    let memory = AlignedVec::try_zeroed(bytes).map_err(|error| error.to_string())?;
    let mut elements = Elements { dtype, shape, total, memory, count: 0, nested: None };
    let mut reader = serde_json::Deserializer::from_str(json);
    Level { elements: &mut elements, depth: 0 }.deserialize(&mut reader).map_err(|error| error.to_string())?;
    if elements.count != total {
        return Err(format!("the shape {shape:?} has {total} elements, found {}", elements.count));
    }
    Tensor::new(dtype, shape.to_vec(), elements.memory.into()).map_err(|error| error.to_string())
}

/// What was read so far.
struct Elements<'a> {
    dtype: DType,
    shape: &'a [usize],
    total: usize,
    memory: AlignedVec,
    count: usize,
    /// Whether numbers lie as deep as the shape has axes, rather than in one flat list.
    nested: Option<bool>,
}

impl Elements<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let at = self.count * bytes.len();
        self.memory.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        self.count += 1;
    }

    /// A number that lies in `depth` lists.
    fn check_place<E: Error>(&mut self, depth: usize) -> Result<(), E> {
        let rank = self.shape.len();
        let nested = depth == rank && rank > 1;
        if depth == 0 || !(nested || depth == 1) || self.nested.is_some_and(|before| before != nested) {
            return Err(E::custom(format!("the numbers do not lie as the shape {:?} says", self.shape)));
        }
        self.nested = Some(nested);
        if self.count == self.total {
            let why = format!("the shape {:?} has {} elements, and there are more", self.shape, self.total);
            return Err(E::custom(why));
        }
        Ok(())
    }

    fn integer<E: Error>(&mut self, depth: usize, value: i128) -> Result<(), E> {
        self.check_place(depth)?;
        let dtype = self.dtype;
        let outside = || E::custom(format!("{value} is no {}", crate::dtype::name_of(dtype)));
        macro_rules! put {
            ($t:ty) => {
                self.put(&<$t>::try_from(value).map_err(|_| outside())?.to_le_bytes())
            };
        }
        match dtype {
            DType::I64 => put!(i64),
            DType::I32 => put!(i32),
            DType::I16 => put!(i16),
            DType::I8 => put!(i8),
            DType::U8 => put!(u8),
            DType::U16 => put!(u16),
            DType::U32 => put!(u32),
            DType::U64 => put!(u64),
            DType::Bool if value == 0 || value == 1 => self.put(&[value as u8]),
            DType::Bool => return Err(outside()),
            DType::F64 | DType::F32 | DType::F16 | DType::BF16 => self.float(value as f64, outside)?,
        }
        Ok(())
    }

    /// A float rounded to the type; a finite one stays finite.
    fn float<E: Error>(&mut self, value: f64, outside: impl Fn() -> E) -> Result<(), E> {
        let finite = match self.dtype {
            DType::F64 => {
                self.put(&value.to_le_bytes());
                true
            }
            DType::F32 => {
                self.put(&(value as f32).to_le_bytes());
                (value as f32).is_finite()
            }
            DType::F16 => {
                let half = half::f16::from_f64(value);
                self.put(&half.to_le_bytes());
                half.is_finite()
            }
            DType::BF16 => {
                let half = half::bf16::from_f64(value);
                self.put(&half.to_le_bytes());
                half.is_finite()
            }
            DType::I64
            | DType::I32
            | DType::I16
            | DType::I8
            | DType::U8
            | DType::Bool
            | DType::U16
            | DType::U32
            | DType::U64 => false,
        };
        if finite { Ok(()) } else { Err(outside()) }
    }
}

/// A value that lies in `depth` lists.
struct Level<'e, 'a> {
    elements: &'e mut Elements<'a>,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Level<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, or a list of numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Level { elements, depth } = self;
        if depth > 0 && depth >= elements.shape.len() {
            return Err(A::Error::custom(format!("lists are nested deeper than the shape {:?}", elements.shape)));
        }
        let before = elements.count;
        while list.next_element_seed(Level { elements, depth: depth + 1 })?.is_some() {}
        let inner = &elements.shape[depth.min(elements.shape.len())..];
        // A size of 0 further out lets the others be anything.
        let expected = inner.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let found = elements.count - before;
        if depth > 0 && Some(found) != expected {
            let why = format!("a list {depth} deep has {found} elements, expected those of {inner:?}");
            return Err(A::Error::custom(why));
        }
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        match self.elements.dtype {
            DType::Bool => self.elements.integer(self.depth, value.into()),
            dtype => Err(E::custom(format!("{value} is no {}", crate::dtype::name_of(dtype)))),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.elements.integer(self.depth, value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.elements.integer(self.depth, value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        let Level { elements, depth } = self;
        elements.check_place(depth)?;
        let name = crate::dtype::name_of(elements.dtype);
        elements.float(value, || E::custom(format!("{value} is no {name}")))
    }
}

/// Writes the numbers of `bytes` as a flat list.
///
/// # Errors
/// When one is infinite or not a number, which JSON has no word for.
pub(crate) fn write(bytes: &[u8], dtype: DType, json: &mut Vec<u8>) -> Result<(), ()> {
    json.push(b'[');
    let mut first = true;
    macro_rules! all {
        ($t:ty, $width:literal) => {
            all!($t, $width, |v: $t| Some(v))
        };
        ($t:ty, $width:literal, $number:expr) => {
            for element in bytes.as_chunks::<$width>().0 {
                let number = $number(<$t>::from_le_bytes(*element)).ok_or(())?;
                if !std::mem::take(&mut first) {
                    json.push(b',');
                }
                // Writing numbers to memory cannot fail.
                serde_json::to_writer(&mut *json, &number).map_err(|_| ())?;
            }
        };
    }
    match dtype {
        DType::F64 => all!(f64, 8, |v: f64| v.is_finite().then_some(v)),
        DType::F32 => all!(f32, 4, |v: f32| v.is_finite().then_some(v)),
        DType::F16 => all!(half::f16, 2, |v: half::f16| v.is_finite().then_some(v.to_f32())),
        DType::BF16 => all!(half::bf16, 2, |v: half::bf16| v.is_finite().then_some(v.to_f32())),
        DType::I64 => all!(i64, 8),
        DType::I32 => all!(i32, 4),
        DType::I16 => all!(i16, 2),
        DType::I8 => all!(i8, 1),
        DType::U8 => all!(u8, 1),
        DType::U16 => all!(u16, 2),
        DType::U32 => all!(u32, 4),
        DType::U64 => all!(u64, 8),
        DType::Bool => all!(u8, 1, |v: u8| Some(v != 0)),
    }
    json.push(b']');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lie_flat_or_as_the_shape_says() {
        let expected = Tensor::from_slice(&[2, 3], &[1i64, 2, 3, 4, 5, 6]);
        for json in ["[1,2,3,4,5,6]", "[[1,2,3],[4,5,6]]"] {
            assert!(read(json, DType::I64, &[2, 3]).unwrap().bit_equal(&expected), "{json}");
        }
        for json in [
            "[[1,2],[3,4],[5,6]]",
            "[[1,2,3,4,5,6]]",
            "[1,2,3,4,5]",
            "[1,2,3,4,5,6,7]",
            "[1,[2,3,4],[5,6]]",
            "[[1,2,3],4,5,6]",
            "[[[1],[2],[3]],[[4],[5],[6]]]",
            "[[1,2],[3,4,5,6]]",
            "[1,2,3,4,5,6.5]",
            "[1,2,3,4,5,\"6\"]",
            "[1,2,3,4,5,null]",
            "6",
            "{}",
            "[",
        ] {
            assert!(read(json, DType::I64, &[2, 3]).is_err(), "{json}");
        }
    }

    #[test]
    fn shapes_without_axes_or_elements() {
        assert!(read("[4]", DType::F32, &[]).unwrap().bit_equal(&Tensor::from_slice(&[], &[4f32])));
        assert_eq!(read("[]", DType::F32, &[0, 3]).unwrap().shape(), [0, 3]);
        assert!(read("4", DType::F32, &[]).is_err());
        // Together larger than any number, and there are none of them.
        let huge = [0, 1 << 40, 1 << 40];
        assert_eq!(read("[]", DType::F32, &huge).unwrap().shape(), huge);
        assert!(read("[[]]", DType::F32, &huge).is_err());
        assert!(read("[1]", DType::F32, &[1 << 40]).is_err());
    }

    #[test]
    fn values_are_of_their_type() {
        for (json, dtype, ok) in [
            ("[255]", DType::U8, true),
            ("[256]", DType::U8, false),
            ("[-1]", DType::U8, false),
            ("[true]", DType::Bool, true),
            ("[2]", DType::Bool, false),
            ("[true]", DType::F32, false),
            ("[1e39]", DType::F32, false),
            ("[1e39]", DType::F64, true),
            ("[70000]", DType::F16, false),
            ("[9223372036854775807]", DType::I64, true),
            ("[9223372036854775808]", DType::I64, false),
        ] {
            assert_eq!(read(json, dtype, &[1]).is_ok(), ok, "{json} {dtype}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let values = [0.1f32, -0.0, 1e-40, f32::MAX, 16_777_217.0];
        let tensor = Tensor::from_slice(&[5], &values);
        let mut json = Vec::new();
        write(tensor.bytes(), DType::F32, &mut json).unwrap();
        let text = String::from_utf8(json).unwrap();
        assert!(read(&text, DType::F32, &[5]).unwrap().bit_equal(&tensor), "{text}");
        assert!(write(&f32::NAN.to_le_bytes(), DType::F32, &mut Vec::new()).is_err());
        let mut json = Vec::new();
        write(&[0, 1], DType::Bool, &mut json).unwrap();
        assert_eq!(json, b"[false,true]");
    }
}
