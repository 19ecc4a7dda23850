//! What the register machine computes on: a block of numbers for each value, in one bank for each kind of number. Operands and results
//! that are in memory as registers would hold them are read and written there.

use bytemuck::Pod;
use half::{bf16, f16};
use regraft_tensor::DType;

use super::{
    super::support::{elements, elements_mut},
    lanes,
};
use crate::{
    Isa, Scratch,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats},
};

/// The kind of number that a register holds: floats narrower than f32 are computed as f32, integers narrower than i32 as i32 and
/// then brought back into their range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bank {
    F64,
    F32,
    I64,
    I32,
    Bool,
}

impl Bank {
    /// `None` for a dtype that no bank computes as the reference does.
    pub(super) fn of(dtype: DType) -> Option<Bank> {
        Some(match dtype {
            DType::F64 => Bank::F64,
            DType::F32 | DType::F16 | DType::BF16 => Bank::F32,
            DType::I64 => Bank::I64,
            DType::I32 | DType::I16 | DType::I8 | DType::U8 => Bank::I32,
            DType::Bool => Bank::Bool,
            DType::U16 | DType::U32 | DType::U64 => return None,
        })
    }
}

/// Whether registers hold values of this type as tensors do.
pub(super) fn is_native(dtype: DType) -> bool {
    matches!(dtype, DType::F64 | DType::F32 | DType::I64 | DType::I32 | DType::Bool)
}

/// Where the values of a register are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In a block of the bank.
    Bank(usize),
    /// In the memory of an operand.
    Operand(usize),
    /// In the memory of the result.
    Result,
    /// In none: what makes it also uses it up.
    Nowhere,
}

/// A value of a chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Register {
    pub(super) bank: Bank,
    pub(super) place: Place,
    pub(super) dtype: DType,
}

/// How many blocks each bank has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts([usize; 5]);

/// Bytes of blocks, which stay in the first-level cache while what is read and written passes through it.
const CACHED: usize = 8 << 10;

impl Counts {
    /// The next block of a bank.
    pub(super) fn add(&mut self, bank: Bank) -> Place {
        let count = &mut self.0[bank as usize];
        *count += 1;
        Place::Bank(*count - 1)
    }

    /// Elements of a block, at most `most`: many, since each costs a call per step.
    pub(super) fn block(self, most: usize) -> usize {
        let [f64s, f32s, i64s, i32s, bools] = self.0;
        match 8 * (f64s + i64s) + 4 * (f32s + i32s) + bools {
            0 => most,
            bytes => (CACHED / bytes).next_multiple_of(64).clamp(256, most),
        }
    }

    /// Bytes of scratch for one set of registers.
    pub(super) fn scratch(self, block: usize) -> usize {
        let [f64s, f32s, i64s, i32s, bools] = self.0.map(|count| count * block);
        bytes_of::<f64>(f64s)
            + bytes_of::<f32>(f32s)
            + bytes_of::<i64>(i64s)
            + bytes_of::<i32>(i32s)
            + bytes_of::<u8>(bools)
    }
}

/// The blocks of each kind of number.
#[derive(Debug)]
pub(super) struct Banks<'a> {
    pub(super) f64s: &'a mut [f64],
    pub(super) f32s: &'a mut [f32],
    pub(super) i64s: &'a mut [i64],
    pub(super) i32s: &'a mut [i32],
    pub(super) bools: &'a mut [u8],
}

/// The registers that a worker computes in.
#[derive(Debug)]
pub(super) struct Registers<'a> {
    pub(super) banks: Banks<'a>,
    /// For each operand that is read where it is, the elements of a block.
    operands: Vec<&'a [u8]>,
    /// Elements of a register.
    block: usize,
}

/// What a step reads and writes besides banks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'f> {
    pub(super) operands: &'f [&'f [u8]],
    /// Elements of a register, and those of it that are computed.
    block: usize,
    len: usize,
}

impl<'f> Frame<'f> {
    /// The values of a register.
    pub(super) fn read<'s, T: Pod>(self, bank: &'s [T], from: Register) -> &'s [T]
    where
        'f: 's,
    {
        match from.place {
            Place::Bank(index) => &bank[index * self.block..][..self.len],
            Place::Operand(index) => &elements(self.operands[index])[..self.len],
            // No step reads it.
            Place::Result | Place::Nowhere => &[],
        }
    }

    /// Where a step writes its values, and the blocks that it may read: results are numbered after their arguments.
    pub(super) fn open<'s, T: Pod>(self, bank: &'s mut [T], to: Register, out: &'s mut [u8]) -> (&'s [T], &'s mut [T]) {
        match to.place {
            Place::Bank(index) => {
                let (before, rest) = bank.split_at_mut(index * self.block);
                (before, &mut rest[..self.len])
            }
            _ => (bank, elements_mut(out)),
        }
    }
}

impl<'a> Registers<'a> {
    /// Blocks of `block` elements in [`Counts::scratch`] bytes.
    pub(super) fn new(counts: Counts, block: usize, operands: usize, scratch: &mut Scratch<'a>) -> Self {
        let [f64s, f32s, i64s, i32s, bools] = counts.0.map(|count| count * block);
        let banks = Banks {
            f64s: scratch.take(f64s),
            f32s: scratch.take(f32s),
            i64s: scratch.take(i64s),
            i32s: scratch.take(i32s),
            bools: scratch.take(bools),
        };
        Registers { banks, operands: vec![&[]; operands], block }
    }

    /// What a step of `len` elements works on.
    pub(super) fn frame(&mut self, len: usize) -> (Frame<'_>, &mut Banks<'a>) {
        (Frame { operands: &self.operands, block: self.block, len }, &mut self.banks)
    }

    /// Makes `len` elements of an operand, from element `start` on, `stride` apart, the values of its register.
    pub(super) fn load(
        &mut self,
        isa: Isa,
        register: Register,
        bytes: &'a [u8],
        (start, stride): (usize, usize),
        len: usize,
    ) {
        let index = match register.place {
            Place::Bank(index) => index,
            Place::Operand(index) => {
                let size = register.dtype.size();
                self.operands[index] = &bytes[start * size..][..len * size];
                return;
            }
            Place::Result | Place::Nowhere => return,
        };
        let from = index * self.block;
        let to = from..from + len;
        match register.bank {
            Bank::F64 => convert(isa, elements(bytes), start, stride, &mut self.banks.f64s[to], |x: f64| x),
            Bank::F32 => {
                let ty = FloatType::of(register.dtype).unwrap_or(FloatType::F32);
                load_floats(isa, Floats::of_bytes(ty, bytes), start, stride, &mut self.banks.f32s[to]);
            }
            Bank::I64 => convert(isa, elements(bytes), start, stride, &mut self.banks.i64s[to], |x: i64| x),
            Bank::I32 => {
                let to = &mut self.banks.i32s[to];
                match register.dtype {
                    DType::I16 => convert(isa, elements::<i16>(bytes), start, stride, to, i32::from),
                    DType::I8 => convert(isa, elements::<i8>(bytes), start, stride, to, i32::from),
                    DType::U8 => convert(isa, bytes, start, stride, to, i32::from),
                    _ => convert(isa, elements(bytes), start, stride, to, |x: i32| x),
                }
            }
            Bank::Bool => convert(isa, bytes, start, stride, &mut self.banks.bools[to], |x| x),
        }
    }

    /// Makes the first `period` values of a register those of all that follow, up to `len`.
    pub(super) fn repeat(&mut self, register: Register, period: usize, len: usize) {
        let Place::Bank(index) = register.place else { return };
        let of = index * self.block..index * self.block + len;
        match register.bank {
            Bank::F64 => repeat(&mut self.banks.f64s[of], period),
            Bank::F32 => repeat(&mut self.banks.f32s[of], period),
            Bank::I64 => repeat(&mut self.banks.i64s[of], period),
            Bank::I32 => repeat(&mut self.banks.i32s[of], period),
            Bank::Bool => repeat(&mut self.banks.bools[of], period),
        }
    }

    /// Writes the values of a register to the memory of the result, where the step that made them did not.
    pub(super) fn store(&self, isa: Isa, register: Register, out: &mut [u8]) {
        let Place::Bank(index) = register.place else { return };
        let from = index * self.block;
        let of = from..from + out.len() / register.dtype.size();
        match (register.bank, register.dtype) {
            (Bank::F64, _) => elements_mut(out).copy_from_slice(&self.banks.f64s[of]),
            (Bank::F32, DType::F16) => f16::narrow(isa, &self.banks.f32s[of], elements_mut(out)),
            (Bank::F32, DType::BF16) => bf16::narrow(isa, &self.banks.f32s[of], elements_mut(out)),
            (Bank::F32, _) => elements_mut(out).copy_from_slice(&self.banks.f32s[of]),
            (Bank::I64, _) => elements_mut(out).copy_from_slice(&self.banks.i64s[of]),
            (Bank::I32, DType::I16) => lanes::map(isa, &self.banks.i32s[of], elements_mut(out), |x| x as i16),
            (Bank::I32, DType::I8 | DType::U8) => lanes::map(isa, &self.banks.i32s[of], out, |x| x as u8),
            (Bank::I32, _) => elements_mut(out).copy_from_slice(&self.banks.i32s[of]),
            (Bank::Bool, _) => out.copy_from_slice(&self.banks.bools[of]),
        }
    }
}

/// Copies the first `period` elements to all places after them.
fn repeat<T: Copy>(xs: &mut [T], period: usize) {
    let mut done = period;
    while done < xs.len() {
        let more = done.min(xs.len() - done);
        xs.copy_within(..more, done);
        done += more;
    }
}

/// Writes `f` of elements from `start` on, `stride` apart.
fn convert<T: Copy, U: Copy>(isa: Isa, from: &[T], start: usize, stride: usize, to: &mut [U], f: impl Fn(T) -> U) {
    match stride {
        0 => to.fill(f(from[start])),
        1 => lanes::map(isa, &from[start..start + to.len()], to, f),
        _ => to.iter_mut().zip(from[start..].iter().step_by(stride)).for_each(|(to, from)| *to = f(*from)),
    }
}

fn load_floats(isa: Isa, from: Floats<'_>, start: usize, stride: usize, to: &mut [f32]) {
    match (from, stride) {
        (from, 1) => from.load(isa, start, to),
        (Floats::F32(from), _) => convert(isa, from, start, stride, to, |x| x),
        (Floats::F16(from), _) => convert(isa, from, start, stride, to, f16::to_f32),
        (Floats::Bf16(from), _) => convert(isa, from, start, stride, to, bf16::to_f32),
    }
}
