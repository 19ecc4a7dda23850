//! A register machine over blocks: each instruction is a vectorised loop over one block.

use half::{bf16, f16};
use regraft_ir::ops::{BinaryFn, CompareFn, Fused, FusedFn, UnaryFn};
use regraft_tensor::{DType, Element};

use super::lanes::{self, Number};
use crate::{
    Isa, Scratch,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats},
};

/// Elements of a block: a few registers of f32 fit into the first-level cache.
pub(super) const BLOCK: usize = 512;

/// The kind of number that a register holds: floats narrower than f32 are computed as f32, integers narrower than i32 as i32 and
/// then brought back into their range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bank {
    F64,
    F32,
    I64,
    I32,
    Bool,
}

impl Bank {
    /// `None` for a dtype that no bank computes as the reference does.
    fn of(dtype: DType) -> Option<Bank> {
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
fn is_native(dtype: DType) -> bool {
    matches!(dtype, DType::F64 | DType::F32 | DType::I64 | DType::I32 | DType::Bool)
}

/// A register: its bank, its number there, and what its values are.
#[derive(Clone, Copy, Debug)]
struct Register {
    bank: Bank,
    index: usize,
    dtype: DType,
}

#[derive(Clone, Copy, Debug)]
struct Instruction {
    f: FusedFn,
    args: [usize; 3],
    out: Register,
}

/// A compiled chain. Each value has a register of its own.
#[derive(Clone, Debug)]
pub(super) struct Program {
    registers: Vec<Register>,
    operands: usize,
    instructions: Vec<Instruction>,
    counts: [usize; 5],
}

impl Program {
    /// Compiles a chain; `None` when its steps do not take their arguments.
    pub(super) fn new(op: &Fused, operands: &[DType]) -> Option<Program> {
        let mut counts = [0; 5];
        let mut register = |dtype: DType| {
            let bank = Bank::of(dtype)?;
            let count = &mut counts[bank as usize];
            *count += 1;
            Some(Register { bank, index: *count - 1, dtype })
        };
        let dtypes = op.dtypes(operands).ok()?;
        let registers = dtypes.into_iter().map(&mut register).collect::<Option<Vec<Register>>>()?;
        let instruction = |(i, step): (usize, &regraft_ir::ops::FusedStep)| {
            let mut args = [0; 3];
            args.iter_mut().zip(&step.args).for_each(|(to, &from)| *to = from as usize);
            Instruction { f: step.f, args, out: registers[operands.len() + i] }
        };
        let instructions = op.steps.iter().enumerate().map(instruction).collect();
        Some(Program { registers, operands: operands.len(), instructions, counts })
    }

    fn result(&self) -> Register {
        self.registers[self.registers.len() - 1]
    }

    /// Bytes of an element of the result.
    pub(super) fn out_size(&self) -> usize {
        self.result().dtype.size()
    }

    /// Bytes of scratch for one set of registers.
    pub(super) fn scratch(&self) -> usize {
        let [f64s, f32s, i64s, i32s, bools] = self.counts.map(|count| count * BLOCK);
        bytes_of::<f64>(f64s)
            + bytes_of::<f32>(f32s)
            + bytes_of::<i64>(i64s)
            + bytes_of::<i32>(i32s)
            + bytes_of::<u8>(bools)
    }

    /// Runs all steps on the first `len` elements of the registers.
    pub(super) fn run(&self, isa: Isa, registers: &mut Registers<'_>, len: usize) {
        for instruction in &self.instructions {
            self.step(isa, instruction, registers, len);
        }
    }

    /// Whether this is one step on operands, whose values and result are what registers hold, or a cast of floats. Then
    /// [`Program::run_alone`] computes it.
    pub(super) fn is_alone(&self) -> bool {
        let [Instruction { f, args, out }] = self.instructions.as_slice() else { return false };
        let arg = |i: usize| self.registers[args[i]].dtype;
        match f {
            FusedFn::Literal(..) => false,
            FusedFn::Cast(_) => {
                let wide = [arg(0), out.dtype].contains(&DType::F32);
                wide && arg(0) != out.dtype && FloatType::of(arg(0)).is_some() && FloatType::of(out.dtype).is_some()
            }
            FusedFn::Unary(_) | FusedFn::Binary(_) => is_native(out.dtype),
            FusedFn::Compare(_) => is_native(arg(0)),
            FusedFn::Select => is_native(out.dtype),
        }
    }

    /// The bytes of `len` elements of operand `index` from element `start` on.
    pub(super) fn bytes_of<'b>(&self, index: usize, bytes: &'b [u8], start: usize, len: usize) -> &'b [u8] {
        let size = self.registers[index].dtype.size();
        &bytes[start * size..][..len * size]
    }

    /// Runs the one step from operands, which stand side by side, to the result: spares a copy of each.
    pub(super) fn run_alone(&self, isa: Isa, operands: &[&[u8]], out: &mut [u8]) {
        let Some(Instruction { f, args, out: to }) = self.instructions.first() else { return };
        let of = |i: usize| operands[args[i]];
        macro_rules! typed {
            ($dtype:expr, $T:ident => $body:expr) => {
                match $dtype {
                    DType::F64 => {
                        type $T = f64;
                        $body
                    }
                    DType::I64 => {
                        type $T = i64;
                        $body
                    }
                    DType::I32 => {
                        type $T = i32;
                        $body
                    }
                    _ => {}
                }
            };
        }
        match (*f, to.dtype) {
            (FusedFn::Unary(f), DType::F32) => {
                lanes::unary_f32(isa, f, cast_slice(of(0)), bytemuck::cast_slice_mut(out));
            }
            (FusedFn::Unary(_), DType::Bool) => lanes::map(of(0), out, |x| u8::from(x == 0)),
            (FusedFn::Unary(f), dtype) => {
                typed!(dtype, T => lanes::unary::<T>(f, cast_slice(of(0)), bytemuck::cast_slice_mut(out)));
            }
            (FusedFn::Binary(f), DType::F32) => {
                lanes::binary_f32(isa, f, cast_slice(of(0)), cast_slice(of(1)), bytemuck::cast_slice_mut(out));
            }
            (FusedFn::Binary(f), DType::Bool) => lanes::binary_bool(f, of(0), of(1), out),
            (FusedFn::Binary(f), dtype) => typed!(dtype, T => {
                lanes::binary::<T>(f, cast_slice(of(0)), cast_slice(of(1)), bytemuck::cast_slice_mut(out));
            }),
            (FusedFn::Compare(f), _) => match self.registers[args[0]].dtype {
                DType::F32 => lanes::compare_f32(isa, f, cast_slice(of(0)), cast_slice(of(1)), out),
                DType::I64 => lanes::compare_i64(isa, f, cast_slice(of(0)), cast_slice(of(1)), out),
                DType::I32 => lanes::compare_i32(isa, f, cast_slice(of(0)), cast_slice(of(1)), out),
                DType::F64 => lanes::compare(f, cast_slice::<f64>(of(0)), cast_slice(of(1)), out),
                _ => lanes::compare(f, of(0), of(1), out),
            },
            (FusedFn::Select, DType::F32) => {
                let (a, b) = (cast_slice(of(1)), cast_slice(of(2)));
                lanes::select_f32(isa, of(0), a, b, bytemuck::cast_slice_mut(out));
            }
            (FusedFn::Select, DType::Bool) => lanes::select(of(0), of(1), of(2), out),
            (FusedFn::Select, dtype) => typed!(dtype, T => {
                lanes::select::<T>(of(0), cast_slice(of(1)), cast_slice(of(2)), bytemuck::cast_slice_mut(out));
            }),
            (FusedFn::Cast(_), DType::F32) => {
                let ty = FloatType::of(self.registers[args[0]].dtype).unwrap_or(FloatType::F32);
                Floats::of_bytes(ty, of(0)).load(isa, 0, bytemuck::cast_slice_mut(out));
            }
            (FusedFn::Cast(_), DType::BF16) => bf16::narrow(isa, cast_slice(of(0)), bytemuck::cast_slice_mut(out)),
            (FusedFn::Cast(_), _) => f16::narrow(isa, cast_slice(of(0)), bytemuck::cast_slice_mut(out)),
            (FusedFn::Literal(..), _) => {}
        }
    }

    fn step(&self, isa: Isa, i: &Instruction, r: &mut Registers<'_>, len: usize) {
        let [a, b, c] = i.args.map(|arg| self.registers[arg]);
        match i.f {
            FusedFn::Literal(value, _) => match i.out.bank {
                Bank::F64 => r.f64s.out(i.out, len).1.fill(value.as_f64()),
                Bank::F32 => {
                    // The value as its dtype holds it.
                    let value = value.as_f64() as f32;
                    r.f32s.out(i.out, len).1.fill(rounded(i.out.dtype, value));
                }
                Bank::I64 => r.i64s.out(i.out, len).1.fill(value.as_i64()),
                Bank::I32 => r.i32s.out(i.out, len).1.fill(wrapped(i.out.dtype, value.as_i64() as i32)),
                Bank::Bool => r.bools.out(i.out, len).1.fill(u8::from(value.as_f64() != 0.0)),
            },
            FusedFn::Unary(f) => match i.out.bank {
                Bank::F64 => unary(f, &mut r.f64s, a, i.out, len),
                Bank::F32 => {
                    let (before, out) = r.f32s.out(i.out, len);
                    lanes::unary_f32(isa, f, block(before, a, len), out);
                }
                Bank::I64 => unary(f, &mut r.i64s, a, i.out, len),
                Bank::I32 => {
                    unary(f, &mut r.i32s, a, i.out, len);
                    wrap(i.out.dtype, r.i32s.out(i.out, len).1);
                }
                Bank::Bool => {
                    let (before, out) = r.bools.out(i.out, len);
                    lanes::map(block(before, a, len), out, |x| u8::from(x == 0));
                }
            },
            FusedFn::Binary(f) => match i.out.bank {
                Bank::F64 => binary(f, &mut r.f64s, [a, b], i.out, len),
                Bank::F32 => {
                    let (before, out) = r.f32s.out(i.out, len);
                    lanes::binary_f32(isa, f, block(before, a, len), block(before, b, len), out);
                }
                Bank::I64 => binary(f, &mut r.i64s, [a, b], i.out, len),
                Bank::I32 => {
                    binary(f, &mut r.i32s, [a, b], i.out, len);
                    wrap(i.out.dtype, r.i32s.out(i.out, len).1);
                }
                Bank::Bool => {
                    let (before, out) = r.bools.out(i.out, len);
                    lanes::binary_bool(f, block(before, a, len), block(before, b, len), out);
                }
            },
            FusedFn::Compare(f) => self.compare(isa, f, [a, b], i.out, r, len),
            FusedFn::Select => select(isa, [a, b, c], i.out, r, len),
            FusedFn::Cast(_) => cast(isa, a, i.out, r, len),
        }
    }

    fn compare(&self, isa: Isa, f: CompareFn, [a, b]: [Register; 2], to: Register, r: &mut Registers<'_>, len: usize) {
        let (before, out) = r.bools.out(to, len);
        match a.bank {
            Bank::F64 => lanes::compare(f, r.f64s.get(a, len), r.f64s.get(b, len), out),
            Bank::F32 => lanes::compare_f32(isa, f, r.f32s.get(a, len), r.f32s.get(b, len), out),
            Bank::I64 => lanes::compare_i64(isa, f, r.i64s.get(a, len), r.i64s.get(b, len), out),
            Bank::I32 => lanes::compare_i32(isa, f, r.i32s.get(a, len), r.i32s.get(b, len), out),
            Bank::Bool => lanes::compare(f, block(before, a, len), block(before, b, len), out),
        }
    }
}

fn unary<T: Number>(f: UnaryFn, bank: &mut Banked<'_, T>, a: Register, out: Register, len: usize) {
    let (before, out) = bank.out(out, len);
    lanes::unary(f, block(before, a, len), out);
}

fn binary<T: Number>(f: BinaryFn, bank: &mut Banked<'_, T>, [a, b]: [Register; 2], out: Register, len: usize) {
    let (before, out) = bank.out(out, len);
    lanes::binary(f, block(before, a, len), block(before, b, len), out);
}

/// The nearest value that `dtype` holds.
fn rounded(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// What is left of an integer in `dtype`.
fn wrapped(dtype: DType, x: i32) -> i32 {
    match dtype {
        DType::I16 => i32::from(x as i16),
        DType::I8 => i32::from(x as i8),
        DType::U8 => i32::from(x as u8),
        _ => x,
    }
}

fn wrap(dtype: DType, xs: &mut [i32]) {
    match dtype {
        DType::I16 => xs.iter_mut().for_each(|x| *x = i32::from(*x as i16)),
        DType::I8 => xs.iter_mut().for_each(|x| *x = i32::from(*x as i8)),
        DType::U8 => xs.iter_mut().for_each(|x| *x = i32::from(*x as u8)),
        _ => {}
    }
}

/// The registers of one kind of number.
#[derive(Debug)]
struct Banked<'a, T>(&'a mut [T]);

impl<T: Copy> Banked<'_, T> {
    /// The registers before `out`, and `out` itself: results are numbered after their arguments.
    fn out(&mut self, out: Register, len: usize) -> (&[T], &mut [T]) {
        let (before, rest) = self.0.split_at_mut(out.index * BLOCK);
        (before, &mut rest[..len])
    }

    fn get(&self, register: Register, len: usize) -> &[T] {
        block(self.0, register, len)
    }
}

fn block<T>(registers: &[T], register: Register, len: usize) -> &[T] {
    &registers[register.index * BLOCK..][..len]
}

/// The registers that a worker computes in.
#[derive(Debug)]
pub(super) struct Registers<'a> {
    f64s: Banked<'a, f64>,
    f32s: Banked<'a, f32>,
    i64s: Banked<'a, i64>,
    i32s: Banked<'a, i32>,
    bools: Banked<'a, u8>,
}

impl<'a> Registers<'a> {
    /// Those of `program`, in [`Program::scratch`] bytes.
    pub(super) fn new(program: &Program, scratch: &mut Scratch<'a>) -> Self {
        let [f64s, f32s, i64s, i32s, bools] = program.counts.map(|count| count * BLOCK);
        Registers {
            f64s: Banked(scratch.take(f64s)),
            f32s: Banked(scratch.take(f32s)),
            i64s: Banked(scratch.take(i64s)),
            i32s: Banked(scratch.take(i32s)),
            bools: Banked(scratch.take(bools)),
        }
    }

    /// Loads `len` elements of operand `index`, from element `start` on, `stride` apart.
    #[expect(clippy::too_many_arguments, reason = "what, from where, how much")]
    pub(super) fn load(
        &mut self,
        isa: Isa,
        program: &Program,
        index: usize,
        bytes: &[u8],
        start: usize,
        stride: usize,
        len: usize,
    ) {
        debug_assert!(index < program.operands);
        let register = program.registers[index];
        match register.bank {
            Bank::F64 => gather(cast_slice(bytes), start, stride, self.f64s.out(register, len).1),
            Bank::F32 => {
                let ty = FloatType::of(register.dtype).unwrap_or(FloatType::F32);
                load_floats(isa, Floats::of_bytes(ty, bytes), start, stride, self.f32s.out(register, len).1);
            }
            Bank::I64 => gather(cast_slice(bytes), start, stride, self.i64s.out(register, len).1),
            Bank::I32 => {
                let to = self.i32s.out(register, len).1;
                match register.dtype {
                    DType::I16 => convert(cast_slice::<i16>(bytes), start, stride, to, i32::from),
                    DType::I8 => convert(cast_slice::<i8>(bytes), start, stride, to, i32::from),
                    DType::U8 => convert(bytes, start, stride, to, i32::from),
                    _ => gather(cast_slice(bytes), start, stride, to),
                }
            }
            Bank::Bool => gather(bytes, start, stride, self.bools.out(register, len).1),
        }
    }

    /// Stores the result.
    pub(super) fn store(&self, isa: Isa, program: &Program, out: &mut [u8]) {
        let register = program.result();
        let len = out.len() / register.dtype.size();
        match (register.bank, register.dtype) {
            (Bank::F64, _) => bytemuck::cast_slice_mut(out).copy_from_slice(self.f64s.get(register, len)),
            (Bank::F32, DType::F16) => {
                f16::narrow(isa, self.f32s.get(register, len), bytemuck::cast_slice_mut(out));
            }
            (Bank::F32, DType::BF16) => {
                bf16::narrow(isa, self.f32s.get(register, len), bytemuck::cast_slice_mut(out));
            }
            (Bank::F32, _) => bytemuck::cast_slice_mut(out).copy_from_slice(self.f32s.get(register, len)),
            (Bank::I64, _) => bytemuck::cast_slice_mut(out).copy_from_slice(self.i64s.get(register, len)),
            (Bank::I32, DType::I16) => {
                lanes::map(self.i32s.get(register, len), bytemuck::cast_slice_mut(out), |x| x as i16);
            }
            (Bank::I32, DType::I8 | DType::U8) => lanes::map(self.i32s.get(register, len), out, |x| x as u8),
            (Bank::I32, _) => bytemuck::cast_slice_mut(out).copy_from_slice(self.i32s.get(register, len)),
            (Bank::Bool, _) => out.copy_from_slice(self.bools.get(register, len)),
        }
    }
}

/// Whole elements of `bytes`.
fn cast_slice<T: bytemuck::Pod>(bytes: &[u8]) -> &[T] {
    super::super::support::elements(bytes)
}

fn gather<T: Copy>(from: &[T], start: usize, stride: usize, to: &mut [T]) {
    match stride {
        1 => to.copy_from_slice(&from[start..start + to.len()]),
        _ => convert(from, start, stride, to, |x| x),
    }
}

fn convert<T: Copy, U: Copy>(from: &[T], start: usize, stride: usize, to: &mut [U], f: impl Fn(T) -> U) {
    match stride {
        0 => to.fill(f(from[start])),
        1 => lanes::map(&from[start..start + to.len()], to, f),
        _ => to.iter_mut().zip(from[start..].iter().step_by(stride)).for_each(|(to, from)| *to = f(*from)),
    }
}

fn load_floats(isa: Isa, from: Floats<'_>, start: usize, stride: usize, to: &mut [f32]) {
    match (from, stride) {
        (from, 1) => from.load(isa, start, to),
        (Floats::F32(from), _) => gather(from, start, stride, to),
        (Floats::F16(from), _) => convert(from, start, stride, to, f16::to_f32),
        (Floats::Bf16(from), _) => convert(from, start, stride, to, bf16::to_f32),
    }
}

fn select(isa: Isa, [cond, a, b]: [Register; 3], out: Register, r: &mut Registers<'_>, len: usize) {
    let Registers { f64s, f32s, i64s, i32s, bools } = r;
    fn choose<T: Copy>(bank: &mut Banked<'_, T>, cond: &[u8], [a, b]: [Register; 2], out: Register, len: usize) {
        let (before, out) = bank.out(out, len);
        lanes::select(cond, block(before, a, len), block(before, b, len), out);
    }
    let chosen = bools.get(cond, len);
    match out.bank {
        Bank::F64 => choose(f64s, chosen, [a, b], out, len),
        Bank::F32 => {
            let (before, out) = f32s.out(out, len);
            lanes::select_f32(isa, chosen, block(before, a, len), block(before, b, len), out);
        }
        Bank::I64 => choose(i64s, chosen, [a, b], out, len),
        Bank::I32 => choose(i32s, chosen, [a, b], out, len),
        Bank::Bool => {
            let (before, out) = bools.out(out, len);
            lanes::select(block(before, cond, len), block(before, a, len), block(before, b, len), out);
        }
    }
}

/// Converts as the tensors' elements do: floats are truncated to integers, integers wrap.
fn cast(isa: Isa, from: Register, to: Register, r: &mut Registers<'_>, len: usize) {
    let Registers { f64s, f32s, i64s, i32s, bools } = r;
    match (from.bank, to.bank) {
        (Bank::F64, Bank::F64) => same(f64s, from, to, len),
        (Bank::F64, Bank::F32) => lanes::map(f64s.get(from, len), f32s.out(to, len).1, |x| x as f32),
        (Bank::F64, Bank::I64) => lanes::map(f64s.get(from, len), i64s.out(to, len).1, |x| x as i64),
        (Bank::F64, Bank::I32) => lanes::map(f64s.get(from, len), i32s.out(to, len).1, |x| i32::from_i64(x as i64)),
        (Bank::F64, Bank::Bool) => lanes::map(f64s.get(from, len), bools.out(to, len).1, |x| u8::from(x != 0.0)),
        (Bank::F32, Bank::F64) => lanes::map(f32s.get(from, len), f64s.out(to, len).1, f64::from),
        (Bank::F32, Bank::F32) => same(f32s, from, to, len),
        (Bank::F32, Bank::I64) => lanes::f32_to_i64(isa, f32s.get(from, len), i64s.out(to, len).1),
        (Bank::F32, Bank::I32) => lanes::map(f32s.get(from, len), i32s.out(to, len).1, |x| i32::from_i64(x as i64)),
        (Bank::F32, Bank::Bool) => lanes::map(f32s.get(from, len), bools.out(to, len).1, |x| u8::from(x != 0.0)),
        (Bank::I64, Bank::F64) => lanes::map(i64s.get(from, len), f64s.out(to, len).1, |x| x as f64),
        (Bank::I64, Bank::F32) => lanes::i64_to_f32(isa, i64s.get(from, len), f32s.out(to, len).1),
        (Bank::I64, Bank::I64) => same(i64s, from, to, len),
        (Bank::I64, Bank::I32) => lanes::map(i64s.get(from, len), i32s.out(to, len).1, |x| x as i32),
        (Bank::I64, Bank::Bool) => lanes::map(i64s.get(from, len), bools.out(to, len).1, |x| u8::from(x != 0)),
        (Bank::I32, Bank::F64) => lanes::map(i32s.get(from, len), f64s.out(to, len).1, f64::from),
        (Bank::I32, Bank::F32) => lanes::map(i32s.get(from, len), f32s.out(to, len).1, |x| x as f32),
        (Bank::I32, Bank::I64) => lanes::map(i32s.get(from, len), i64s.out(to, len).1, i64::from),
        (Bank::I32, Bank::I32) => same(i32s, from, to, len),
        (Bank::I32, Bank::Bool) => lanes::map(i32s.get(from, len), bools.out(to, len).1, |x| u8::from(x != 0)),
        (Bank::Bool, Bank::F64) => lanes::map(bools.get(from, len), f64s.out(to, len).1, f64::from),
        (Bank::Bool, Bank::F32) => lanes::map(bools.get(from, len), f32s.out(to, len).1, f32::from),
        (Bank::Bool, Bank::I64) => lanes::map(bools.get(from, len), i64s.out(to, len).1, i64::from),
        (Bank::Bool, Bank::I32) => lanes::map(bools.get(from, len), i32s.out(to, len).1, i32::from),
        (Bank::Bool, Bank::Bool) => same(bools, from, to, len),
    }
    match to.bank {
        // A cast rounds, whatever follows.
        Bank::F32 => lanes::round(isa, to.dtype, f32s.out(to, len).1),
        Bank::I32 => wrap(to.dtype, i32s.out(to, len).1),
        Bank::F64 | Bank::I64 | Bank::Bool => {}
    }
}

fn same<T: Copy>(bank: &mut Banked<'_, T>, from: Register, to: Register, len: usize) {
    let (before, out) = bank.out(to, len);
    out.copy_from_slice(block(before, from, len));
}
