//! A register machine over blocks: each instruction is a vectorised loop over one block.

use regraft_ir::ops::{BinaryFn, CompareFn, Fused, FusedFn, UnaryFn};
use regraft_tensor::DType;

use crate::{
    Isa,
    simd::{Activation, math, simd_fn},
};

/// Elements of a block: a few registers of f32 fit into the first-level cache.
pub(super) const BLOCK: usize = 512;

/// The kind of number that a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bank {
    F32,
    I64,
    Bool,
}

impl Bank {
    fn of(dtype: DType) -> Option<Bank> {
        match dtype {
            DType::F32 => Some(Bank::F32),
            DType::I64 => Some(Bank::I64),
            DType::Bool => Some(Bank::Bool),
            DType::F64 | DType::F16 | DType::BF16 | DType::I32 | DType::I16 | DType::I8 | DType::U8 => None,
        }
    }
}

/// A register: its bank and its number there.
#[derive(Clone, Copy, Debug)]
struct Register {
    bank: Bank,
    index: usize,
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
    counts: [usize; 3],
    out_dtype: DType,
}

impl Program {
    /// Compiles a chain; `None` when a value is of a dtype that there are no registers for, or a step has no loop.
    pub(super) fn new(op: &Fused, operands: &[DType]) -> Option<Program> {
        let dtypes = op.dtypes(operands).ok()?;
        let mut counts = [0; 3];
        let mut register = |dtype: DType| {
            let bank = Bank::of(dtype)?;
            let count = &mut counts[bank as usize];
            *count += 1;
            Some(Register { bank, index: *count - 1 })
        };
        let registers = dtypes.iter().map(|&d| register(d)).collect::<Option<Vec<_>>>()?;
        let mut instructions = Vec::with_capacity(op.steps.len());
        for (i, step) in op.steps.iter().enumerate() {
            let mut args = [0; 3];
            args.iter_mut().zip(&step.args).for_each(|(to, &from)| *to = from as usize);
            let instruction = Instruction { f: step.f, args, out: registers[operands.len() + i] };
            let supported = match step.f {
                FusedFn::Unary(f) => registers[args[0]].bank != Bank::F32 || has_loop(f),
                FusedFn::Binary(_)
                | FusedFn::Compare(_)
                | FusedFn::Select
                | FusedFn::Cast(_)
                | FusedFn::Literal(..) => true,
            };
            if !supported {
                return None;
            }
            instructions.push(instruction);
        }
        Some(Program { registers, operands: operands.len(), instructions, counts, out_dtype: *dtypes.last()? })
    }

    pub(super) fn out_dtype(&self) -> DType {
        self.out_dtype
    }

    /// Runs all steps on the first `len` elements of the registers.
    pub(super) fn run(&self, isa: Isa, registers: &mut Registers, len: usize) {
        for instruction in &self.instructions {
            self.step(isa, instruction, registers, len);
        }
    }

    fn step(&self, isa: Isa, i: &Instruction, r: &mut Registers, len: usize) {
        let arg = |n: usize| self.registers[i.args[n]];
        match i.f {
            FusedFn::Literal(value, _) => match i.out.bank {
                Bank::F32 => r.floats.out(i.out, len).1.fill(value.as_f64() as f32),
                Bank::I64 => r.ints.out(i.out, len).1.fill(value.as_i64()),
                Bank::Bool => r.bools.out(i.out, len).1.fill(u8::from(value.as_f64() != 0.0)),
            },
            FusedFn::Unary(f) => match i.out.bank {
                Bank::F32 => {
                    let (before, out) = r.floats.out(i.out, len);
                    unary(isa, f, block(before, arg(0), len), out);
                }
                Bank::I64 => {
                    let (before, out) = r.ints.out(i.out, len);
                    map(block(before, arg(0), len), out, |x| f.apply_i64(x).unwrap_or(x));
                }
                Bank::Bool => {
                    let (before, out) = r.bools.out(i.out, len);
                    map(block(before, arg(0), len), out, |x| u8::from(x == 0));
                }
            },
            FusedFn::Binary(f) => match i.out.bank {
                Bank::F32 => {
                    let (before, out) = r.floats.out(i.out, len);
                    binary(isa, f, block(before, arg(0), len), block(before, arg(1), len), out);
                }
                Bank::I64 => {
                    let (before, out) = r.ints.out(i.out, len);
                    zip(block(before, arg(0), len), block(before, arg(1), len), out, |a, b| f.apply_i64(a, b));
                }
                Bank::Bool => {
                    let (before, out) = r.bools.out(i.out, len);
                    let apply = |a, b| u8::from(f.apply_i64(i64::from(a), i64::from(b)) != 0);
                    zip(block(before, arg(0), len), block(before, arg(1), len), out, apply);
                }
            },
            FusedFn::Compare(f) => compare(isa, f, arg(0), arg(1), i.out, r, len),
            FusedFn::Select => select(isa, arg(0), arg(1), arg(2), i.out, r, len),
            FusedFn::Cast(_) => cast(arg(0), i.out, r, len),
        }
    }
}

/// Whether a function of f32 has a vectorised loop here.
fn has_loop(f: UnaryFn) -> bool {
    f != UnaryFn::Not
}

/// The registers of one kind of number.
#[derive(Debug)]
struct Banked<T>(Vec<T>);

impl<T: Copy> Banked<T> {
    /// The registers before `out`, and `out` itself: results are numbered after their arguments.
    fn out(&mut self, out: Register, len: usize) -> (&[T], &mut [T]) {
        let (before, rest) = self.0.split_at_mut(out.index * BLOCK);
        (before, &mut rest[..len])
    }

    fn get(&self, register: Register, len: usize) -> &[T] {
        &self.0[register.index * BLOCK..][..len]
    }
}

fn block<T>(registers: &[T], register: Register, len: usize) -> &[T] {
    &registers[register.index * BLOCK..][..len]
}

/// The registers of a thread; kept from call to call.
#[derive(Debug)]
pub(super) struct Registers {
    floats: Banked<f32>,
    ints: Banked<i64>,
    bools: Banked<u8>,
}

impl Default for Registers {
    fn default() -> Self {
        Registers::new()
    }
}

impl Registers {
    pub(super) const fn new() -> Self {
        Registers { floats: Banked(Vec::new()), ints: Banked(Vec::new()), bools: Banked(Vec::new()) }
    }

    /// Makes room for the registers of `program`.
    pub(super) fn reserve(&mut self, program: &Program) {
        fn grow<T: Copy + Default>(bank: &mut Banked<T>, count: usize) {
            if bank.0.len() < count * BLOCK {
                bank.0.resize(count * BLOCK, T::default());
            }
        }
        let [floats, ints, bools] = program.counts;
        grow(&mut self.floats, floats);
        grow(&mut self.ints, ints);
        grow(&mut self.bools, bools);
    }

    /// Loads `len` elements of operand `index`, from element `start` on, `stride` apart.
    pub(super) fn load(
        &mut self,
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
            Bank::F32 => {
                gather(super::super::support::elements(bytes), start, stride, self.floats.out(register, len).1)
            }
            Bank::I64 => gather(super::super::support::elements(bytes), start, stride, self.ints.out(register, len).1),
            Bank::Bool => gather(bytes, start, stride, self.bools.out(register, len).1),
        }
    }

    /// Stores the result.
    pub(super) fn store(&self, program: &Program, out: &mut [u8]) {
        let register = program.registers[program.registers.len() - 1];
        match register.bank {
            Bank::F32 => {
                let len = out.len() / 4;
                out.copy_from_slice(bytemuck::cast_slice(self.floats.get(register, len)));
            }
            Bank::I64 => {
                let len = out.len() / 8;
                out.copy_from_slice(bytemuck::cast_slice(self.ints.get(register, len)));
            }
            Bank::Bool => out.copy_from_slice(self.bools.get(register, out.len())),
        }
    }
}

fn gather<T: Copy>(from: &[T], start: usize, stride: usize, to: &mut [T]) {
    match stride {
        0 => to.fill(from[start]),
        1 => to.copy_from_slice(&from[start..start + to.len()]),
        _ => to.iter_mut().zip(from[start..].iter().step_by(stride)).for_each(|(to, from)| *to = *from),
    }
}

fn map<T: Copy, U>(x: &[T], out: &mut [U], f: impl Fn(T) -> U) {
    out.iter_mut().zip(x).for_each(|(out, &x)| *out = f(x));
}

fn zip<T: Copy, U>(a: &[T], b: &[T], out: &mut [U], f: impl Fn(T, T) -> U) {
    out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (&a, &b))| *out = f(a, b));
}

simd_fn! {
    fn unary<F>(f: UnaryFn, x: &[f32], out: &mut [f32]) {
        #[inline(always)]
        fn each(x: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) {
            for (out, x) in out.iter_mut().zip(x) {
                *out = f(*x);
            }
        }
        #[inline(always)]
        fn activate<F: crate::simd::Fma>(x: &[f32], out: &mut [f32], activation: Activation) {
            out.copy_from_slice(x);
            activation.apply_lanes::<F>(out);
        }
        match f {
            UnaryFn::Neg => each(x, out, |x| -x),
            UnaryFn::Abs => each(x, out, f32::abs),
            UnaryFn::Sign => each(x, out, |x| if x > 0.0 { 1.0 } else if x < 0.0 { -1.0 } else { 0.0 }),
            UnaryFn::Exp => each(x, out, math::exp::<F>),
            UnaryFn::Log => each(x, out, math::log::<F>),
            UnaryFn::Sqrt => each(x, out, f32::sqrt),
            UnaryFn::Rsqrt => each(x, out, |x| 1.0 / x.sqrt()),
            UnaryFn::Reciprocal => each(x, out, |x| 1.0 / x),
            UnaryFn::Erf => each(x, out, math::erf::<F>),
            UnaryFn::Tanh => activate::<F>(x, out, Activation::Tanh),
            UnaryFn::Sigmoid => activate::<F>(x, out, Activation::Sigmoid),
            UnaryFn::Relu => activate::<F>(x, out, Activation::Relu),
            UnaryFn::Relu6 => activate::<F>(x, out, Activation::Relu6),
            UnaryFn::Gelu => activate::<F>(x, out, Activation::Gelu),
            UnaryFn::GeluTanh => activate::<F>(x, out, Activation::GeluTanh),
            UnaryFn::Silu => activate::<F>(x, out, Activation::Silu),
            UnaryFn::Hardswish => activate::<F>(x, out, Activation::Hardswish),
            UnaryFn::Hardsigmoid => activate::<F>(x, out, Activation::Hardsigmoid),
            UnaryFn::Floor => each(x, out, f32::floor),
            UnaryFn::Ceil => each(x, out, f32::ceil),
            UnaryFn::Round => each(x, out, f32::round_ties_even),
            UnaryFn::Trunc => each(x, out, f32::trunc),
            // Rare enough for one lane at a time, in f64.
            UnaryFn::Log1p
            | UnaryFn::Expm1
            | UnaryFn::Sin
            | UnaryFn::Cos
            | UnaryFn::Tan
            | UnaryFn::Asin
            | UnaryFn::Acos
            | UnaryFn::Atan
            | UnaryFn::Sinh
            | UnaryFn::Cosh
            | UnaryFn::Asinh
            | UnaryFn::Acosh
            | UnaryFn::Atanh
            | UnaryFn::Erfc
            | UnaryFn::Erfcx
            | UnaryFn::Ndtri
            | UnaryFn::Erfinv
            | UnaryFn::Lgamma
            | UnaryFn::Digamma
            | UnaryFn::BesselI0
            | UnaryFn::BesselI1
            | UnaryFn::Softplus
            | UnaryFn::Not => {
                each(x, out, |x| f.apply_f64(f64::from(x)) as f32);
            }
        }
    }
}

simd_fn! {
    fn binary<F>(f: BinaryFn, a: &[f32], b: &[f32], out: &mut [f32]) {
        #[inline(always)]
        fn each(a: &[f32], b: &[f32], out: &mut [f32], f: impl Fn(f32, f32) -> f32) {
            for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
                *out = f(*a, *b);
            }
        }
        match f {
            BinaryFn::Add => each(a, b, out, |a, b| a + b),
            BinaryFn::Sub => each(a, b, out, |a, b| a - b),
            BinaryFn::Mul => each(a, b, out, |a, b| a * b),
            BinaryFn::Div => each(a, b, out, |a, b| a / b),
            BinaryFn::Max => each(a, b, out, |a, b| if a > b || a.is_nan() { a } else { b }),
            BinaryFn::Min => each(a, b, out, |a, b| if a < b || a.is_nan() { a } else { b }),
            BinaryFn::FloorDiv
            | BinaryFn::TruncDiv
            | BinaryFn::Rem
            | BinaryFn::Fmod
            | BinaryFn::Pow
            | BinaryFn::Atan2
            | BinaryFn::Hypot
            | BinaryFn::Copysign
            | BinaryFn::Zeta
            | BinaryFn::Shl
            | BinaryFn::Shr
            | BinaryFn::Gcd
            | BinaryFn::And
            | BinaryFn::Or
            | BinaryFn::Xor => each(a, b, out, |a, b| f.apply_f64(f64::from(a), f64::from(b)) as f32),
        }
    }
}

simd_fn! {
    fn compare_f32<F>(f: CompareFn, a: &[f32], b: &[f32], out: &mut [u8]) {
        compare_lanes(f, a, b, out);
    }
}

simd_fn! {
    fn compare_i64<F>(f: CompareFn, a: &[i64], b: &[i64], out: &mut [u8]) {
        compare_lanes(f, a, b, out);
    }
}

#[inline(always)]
fn compare_lanes<T: Copy + PartialOrd>(f: CompareFn, a: &[T], b: &[T], out: &mut [u8]) {
    match f {
        CompareFn::Eq => zip(a, b, out, |a, b| u8::from(a == b)),
        CompareFn::Ne => zip(a, b, out, |a, b| u8::from(a != b)),
        CompareFn::Lt => zip(a, b, out, |a, b| u8::from(a < b)),
        CompareFn::Le => zip(a, b, out, |a, b| u8::from(a <= b)),
        CompareFn::Gt => zip(a, b, out, |a, b| u8::from(a > b)),
        CompareFn::Ge => zip(a, b, out, |a, b| u8::from(a >= b)),
    }
}

fn compare(isa: Isa, f: CompareFn, a: Register, b: Register, out: Register, r: &mut Registers, len: usize) {
    match a.bank {
        Bank::F32 => compare_f32(isa, f, r.floats.get(a, len), r.floats.get(b, len), r.bools.out(out, len).1),
        Bank::I64 => compare_i64(isa, f, r.ints.get(a, len), r.ints.get(b, len), r.bools.out(out, len).1),
        Bank::Bool => {
            let (before, out) = r.bools.out(out, len);
            compare_lanes(f, block(before, a, len), block(before, b, len), out);
        }
    }
}

simd_fn! {
    fn select_f32<F>(cond: &[u8], a: &[f32], b: &[f32], out: &mut [f32]) {
        select_lanes(cond, a, b, out);
    }
}

#[inline(always)]
fn select_lanes<T: Copy>(cond: &[u8], a: &[T], b: &[T], out: &mut [T]) {
    for ((out, &cond), (&a, &b)) in out.iter_mut().zip(cond).zip(a.iter().zip(b)) {
        *out = if cond != 0 { a } else { b };
    }
}

fn select(isa: Isa, cond: Register, a: Register, b: Register, out: Register, r: &mut Registers, len: usize) {
    match out.bank {
        Bank::F32 => {
            let (before, out) = r.floats.out(out, len);
            select_f32(isa, r.bools.get(cond, len), block(before, a, len), block(before, b, len), out);
        }
        Bank::I64 => {
            let (before, out) = r.ints.out(out, len);
            select_lanes(r.bools.get(cond, len), block(before, a, len), block(before, b, len), out);
        }
        Bank::Bool => {
            let (before, out) = r.bools.out(out, len);
            select_lanes(block(before, cond, len), block(before, a, len), block(before, b, len), out);
        }
    }
}

fn cast(from: Register, to: Register, r: &mut Registers, len: usize) {
    let Registers { floats, ints, bools } = r;
    match (from.bank, to.bank) {
        (Bank::F32, Bank::I64) => map(floats.get(from, len), ints.out(to, len).1, |x| x as i64),
        (Bank::F32, Bank::Bool) => map(floats.get(from, len), bools.out(to, len).1, |x| u8::from(x != 0.0)),
        (Bank::I64, Bank::F32) => map(ints.get(from, len), floats.out(to, len).1, |x| x as f32),
        (Bank::I64, Bank::Bool) => map(ints.get(from, len), bools.out(to, len).1, |x| u8::from(x != 0)),
        (Bank::Bool, Bank::F32) => map(bools.get(from, len), floats.out(to, len).1, f32::from),
        (Bank::Bool, Bank::I64) => map(bools.get(from, len), ints.out(to, len).1, i64::from),
        (Bank::F32, Bank::F32) => same(floats, from, to, len),
        (Bank::I64, Bank::I64) => same(ints, from, to, len),
        (Bank::Bool, Bank::Bool) => same(bools, from, to, len),
    }
}

fn same<T: Copy>(bank: &mut Banked<T>, from: Register, to: Register, len: usize) {
    let (before, out) = bank.out(to, len);
    out.copy_from_slice(block(before, from, len));
}
