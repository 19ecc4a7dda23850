//! A register machine over blocks: each instruction is a vectorized loop over one block.

use bytemuck::Pod;
use half::{bf16, f16};
use regraft_ir::ops::{BinaryFn, CompareFn, Fused, FusedFn, FusedStep, UnaryFn};
use regraft_tensor::{DType, Element};

use super::{
    super::support::{elements, elements_mut},
    TASK,
    lanes::{self, Arithmetic, Number},
    registers::{Bank, Banks, Counts, Frame, Place, Register, Registers, is_native},
};
use crate::{
    Isa, Scratch,
    simd::{Float, FloatType, Floats},
};

#[derive(Clone, Copy, Debug)]
struct Instruction {
    work: Work,
    args: Args,
    out: Register,
}

/// What an instruction computes.
#[derive(Clone, Copy, Debug)]
enum Work {
    Step(FusedFn),
    /// A step of the first two arguments, and the one that uses its result: with the third argument, which comes first if `turned`.
    Pair {
        f: Arithmetic,
        g: Arithmetic,
        turned: bool,
    },
    /// A step of operands in bf16, where they are.
    Halves(Arithmetic),
}

/// A compiled chain. Each value has a register of its own.
#[derive(Clone, Debug)]
pub(super) struct Program {
    registers: Vec<Register>,
    operands: usize,
    instructions: Vec<Instruction>,
    counts: Counts,
    block: usize,
}

impl Program {
    /// Compiles a chain; `None` when its steps do not take their arguments. `contiguous` says for each operand whether the elements of
    /// a row lie side by side, if that is known yet; blocks are whole periods.
    pub(super) fn new(op: &Fused, operands: &[DType], contiguous: &[bool], period: usize) -> Option<Program> {
        let dtypes = op.dtypes(operands).ok()?;
        let halves = of_halves(op, &dtypes, contiguous);
        let works = if halves.is_some() { vec![halves] } else { works(op, &dtypes) };
        let mut counts = Counts::default();
        let mut registers: Vec<Register> = Vec::with_capacity(dtypes.len());
        for (i, &dtype) in dtypes.iter().enumerate() {
            let bank = Bank::of(dtype)?;
            let (is_operand, is_last) = (i < operands.len(), i + 1 == dtypes.len());
            let is_contiguous = is_operand && contiguous.get(i) == Some(&true);
            let place = if is_contiguous && (halves.is_some() || is_read_in_place(op, i, dtype)) {
                Place::Operand(i)
            } else if is_last && (halves.is_some() || is_written_in_place(op, &registers, dtype)) {
                Place::Result
            } else if !is_operand && works[i - operands.len()].is_none() {
                Place::Nowhere
            } else {
                counts.add(bank)
            };
            registers.push(Register { bank, place, dtype });
        }
        let made = works.into_iter().zip(&registers[operands.len()..]);
        let instructions = made.filter_map(|(work, &out)| work.map(|(work, args)| Instruction { work, args, out }));
        let instructions = instructions.collect();
        let block = (counts.block(TASK) / period).max(1) * period;
        Some(Program { registers, operands: operands.len(), instructions, counts, block })
    }

    fn result(&self) -> Register {
        self.registers[self.registers.len() - 1]
    }

    /// Bytes of an element of the result.
    pub(super) fn out_size(&self) -> usize {
        self.result().dtype.size()
    }

    /// Elements of a block.
    pub(super) fn block(&self) -> usize {
        self.block
    }

    /// Bytes of scratch for one set of registers.
    pub(super) fn scratch(&self) -> usize {
        self.counts.scratch(self.block)
    }

    /// Registers in [`Program::scratch`] bytes, with the literals in theirs.
    pub(super) fn registers<'a>(&self, scratch: &mut Scratch<'a>) -> Registers<'a> {
        let mut registers = Registers::new(self.counts, self.block, self.operands, scratch);
        let banks = &mut registers.banks;
        for Instruction { work, out, .. } in &self.instructions {
            if let (Work::Step(FusedFn::Literal(value, _)), Place::Bank(index)) = (*work, out.place) {
                let at = index * self.block..(index + 1) * self.block;
                match out.bank {
                    Bank::F64 => banks.f64s[at].fill(value.as_f64()),
                    // The value as its dtype holds it.
                    Bank::F32 => banks.f32s[at].fill(rounded(out.dtype, value.as_f64() as f32)),
                    Bank::I64 => banks.i64s[at].fill(value.as_i64()),
                    Bank::I32 => banks.i32s[at].fill(wrapped(out.dtype, value.as_i64() as i32)),
                    Bank::Bool => banks.bools[at].fill(u8::from(value.as_f64() != 0.0)),
                }
            }
        }
        registers
    }

    /// Makes `len` elements of operand `index`, from element `start` on, `stride` apart, the values of its register.
    pub(super) fn load<'a>(
        &self,
        isa: Isa,
        registers: &mut Registers<'a>,
        (index, bytes): (usize, &'a [u8]),
        position: (usize, usize),
        len: usize,
    ) {
        registers.load(isa, self.registers[index], bytes, position, len);
    }

    /// As [`Program::load`], for an operand that begins anew after `period` elements.
    pub(super) fn load_repeated<'a>(
        &self,
        isa: Isa,
        registers: &mut Registers<'a>,
        operand: (usize, &'a [u8]),
        position: (usize, usize),
        period: usize,
        len: usize,
    ) {
        self.load(isa, registers, operand, position, period.min(len));
        registers.repeat(self.registers[operand.0], period, len);
    }

    /// Runs all steps on what is loaded, and writes the result: as many elements as `out` takes.
    pub(super) fn run(&self, isa: Isa, registers: &mut Registers<'_>, out: &mut [u8]) {
        let len = out.len() / self.out_size();
        for instruction in &self.instructions {
            self.step(isa, instruction, registers, len, out);
        }
        registers.store(isa, self.result(), out);
    }

    fn step(&self, isa: Isa, i: &Instruction, r: &mut Registers<'_>, len: usize, out: &mut [u8]) {
        let ([a, b, c], to) = (i.args.map(|arg| self.registers[arg]), i.out);
        let (at, r) = r.frame(len);
        let f = match i.work {
            Work::Step(f) => f,
            Work::Pair { f, g, turned } => {
                let (before, out) = at.open(r.f32s, to, out);
                let [a, b, c] = [a, b, c].map(|from| at.read(before, from));
                return lanes::pair_f32(isa, f, g, turned, a, b, c, out);
            }
            Work::Halves(f) => {
                let [a, b] = [i.args[0], i.args[1]].map(|arg| elements(at.operands[arg]));
                return lanes::halves(isa, f, a, b, elements_mut(out));
            }
        };
        match f {
            FusedFn::Literal(..) => {}
            FusedFn::Unary(f) => match to.bank {
                Bank::F64 => unary(isa, at, f, r.f64s, a, to, out),
                Bank::F32 => {
                    let (before, out) = at.open(r.f32s, to, out);
                    lanes::unary_f32(isa, f, at.read(before, a), out);
                }
                Bank::I64 => unary(isa, at, f, r.i64s, a, to, out),
                Bank::I32 => {
                    unary(isa, at, f, r.i32s, a, to, out);
                    wrap(to.dtype, at.open(r.i32s, to, out).1);
                }
                Bank::Bool => {
                    let (before, out) = at.open(r.bools, to, out);
                    lanes::map(isa, at.read(before, a), out, |x: u8| u8::from(x == 0));
                }
            },
            FusedFn::Binary(f) => match to.bank {
                Bank::F64 => binary(isa, at, f, r.f64s, [a, b], to, out),
                Bank::F32 => {
                    let (before, out) = at.open(r.f32s, to, out);
                    lanes::binary_f32(isa, f, at.read(before, a), at.read(before, b), out);
                }
                Bank::I64 => binary(isa, at, f, r.i64s, [a, b], to, out),
                Bank::I32 => {
                    binary(isa, at, f, r.i32s, [a, b], to, out);
                    wrap(to.dtype, at.open(r.i32s, to, out).1);
                }
                Bank::Bool => {
                    let (before, out) = at.open(r.bools, to, out);
                    lanes::binary_bool(isa, f, at.read(before, a), at.read(before, b), out);
                }
            },
            FusedFn::Compare(f) => compare(isa, at, f, [a, b], to, r, out),
            FusedFn::Select => select(isa, at, [a, b, c], to, r, out),
            FusedFn::Cast(_) => cast(isa, at, a, to, r, out),
        }
    }
}

/// What a step is computed with.
type Args = [usize; 3];

fn args(step: &FusedStep) -> Args {
    let mut args = [0; 3];
    args.iter_mut().zip(&step.args).for_each(|(to, &from)| *to = from as usize);
    args
}

/// The only step of a chain, if what it reads and writes is bf16, side by side: it needs no registers in f32.
fn of_halves(op: &Fused, dtypes: &[DType], contiguous: &[bool]) -> Option<(Work, Args)> {
    let [step] = &op.steps[..] else { return None };
    let fits = dtypes.iter().all(|dtype| *dtype == DType::BF16) && contiguous.len() + 1 == dtypes.len();
    let f = Arithmetic::of(step.f).filter(|_| fits && contiguous.iter().all(|is| *is))?;
    Some((Work::Halves(f), args(step)))
}

/// What is computed for each step, and of what; nothing for one that is computed with the step that uses its result.
fn works(op: &Fused, dtypes: &[DType]) -> Vec<Option<(Work, Args)>> {
    let operands = dtypes.len() - op.steps.len();
    let uses = |value: u32| op.steps.iter().flat_map(|step| &step.args).filter(|arg| **arg == value).count();
    let mut works: Vec<Option<(Work, Args)>> = Vec::with_capacity(op.steps.len());
    for (step, &dtype) in op.steps.iter().zip(&dtypes[operands..]) {
        let (mut work, mut args) = (Work::Step(step.f), args(step));
        if let Some(g) = Arithmetic::of(step.f).filter(|_| Bank::of(dtype) == Some(Bank::F32)) {
            for (turned, arg) in [(false, step.args[0]), (true, step.args[1])] {
                let first = (arg as usize).checked_sub(operands).filter(|_| uses(arg) == 1);
                if let Some(first) = first
                    && let Some((Work::Step(f), [a, b, _])) = works[first]
                    && let Some(f) = Arithmetic::of(f)
                {
                    (work, args) = (Work::Pair { f, g, turned }, [a, b, args[usize::from(!turned)]]);
                    works[first] = None;
                    break;
                }
            }
        }
        works.push(Some((work, args)));
    }
    works
}

/// Whether steps read operand `index` where it is: as they take it, or to widen it.
fn is_read_in_place(op: &Fused, index: usize, dtype: DType) -> bool {
    let narrow = matches!(dtype, DType::F16 | DType::BF16);
    let mut readers = op.steps.iter().filter(|step| step.args.contains(&(index as u32)));
    is_native(dtype) || narrow && readers.all(|step| step.f == FusedFn::Cast(DType::F32))
}

/// Whether the last step writes its result where it is wanted: as it makes it, or narrowed.
fn is_written_in_place(op: &Fused, registers: &[Register], dtype: DType) -> bool {
    let Some(last) = op.steps.last() else { return false };
    match last.f {
        FusedFn::Literal(..) => false,
        FusedFn::Cast(DType::F16 | DType::BF16) => registers[last.args[0] as usize].bank == Bank::F32,
        _ => is_native(dtype),
    }
}

fn unary<T: Number>(isa: Isa, at: Frame<'_>, f: UnaryFn, bank: &mut [T], a: Register, to: Register, out: &mut [u8]) {
    let (before, out) = at.open(bank, to, out);
    lanes::unary(isa, f, at.read(before, a), out);
}

fn binary<T: Number>(
    isa: Isa,
    at: Frame<'_>,
    f: BinaryFn,
    bank: &mut [T],
    [a, b]: [Register; 2],
    to: Register,
    out: &mut [u8],
) {
    let (before, out) = at.open(bank, to, out);
    lanes::binary(isa, f, at.read(before, a), at.read(before, b), out);
}

fn compare(
    isa: Isa,
    at: Frame<'_>,
    f: CompareFn,
    [a, b]: [Register; 2],
    to: Register,
    r: &mut Banks<'_>,
    out: &mut [u8],
) {
    let (before, out) = at.open(r.bools, to, out);
    match a.bank {
        Bank::F64 => lanes::compare(isa, f, at.read(r.f64s, a), at.read(r.f64s, b), out),
        Bank::F32 => lanes::compare(isa, f, at.read(r.f32s, a), at.read(r.f32s, b), out),
        Bank::I64 => lanes::compare(isa, f, at.read(r.i64s, a), at.read(r.i64s, b), out),
        Bank::I32 => lanes::compare(isa, f, at.read(r.i32s, a), at.read(r.i32s, b), out),
        Bank::Bool => lanes::compare(isa, f, at.read(before, a), at.read(before, b), out),
    }
}

fn select(isa: Isa, at: Frame<'_>, [cond, a, b]: [Register; 3], to: Register, r: &mut Banks<'_>, out: &mut [u8]) {
    macro_rules! choose {
        ($bank:ident) => {{
            let (before, out) = at.open(r.$bank, to, out);
            lanes::select(isa, at.read(r.bools, cond), at.read(before, a), at.read(before, b), out);
        }};
    }
    match to.bank {
        Bank::F64 => choose!(f64s),
        Bank::F32 => choose!(f32s),
        Bank::I64 => choose!(i64s),
        Bank::I32 => choose!(i32s),
        Bank::Bool => {
            let (before, out) = at.open(r.bools, to, out);
            lanes::select(isa, at.read(before, cond), at.read(before, a), at.read(before, b), out);
        }
    }
}

/// Converts as the tensors' elements do: floats are truncated to integers, integers wrap.
fn cast(isa: Isa, at: Frame<'_>, from: Register, to: Register, r: &mut Banks<'_>, out: &mut [u8]) {
    let Banks { f64s, f32s, i64s, i32s, bools } = r;
    macro_rules! map {
        ($from:ident, $to:ident, $f:expr) => {
            lanes::map(isa, at.read($from, from), at.open($to, to, out).1, $f)
        };
    }
    match (from.bank, to.bank) {
        (Bank::F64, Bank::F64) => same(at, f64s, from, to, out),
        (Bank::F64, Bank::F32) => map!(f64s, f32s, |x| x as f32),
        (Bank::F64, Bank::I64) => map!(f64s, i64s, |x| x as i64),
        (Bank::F64, Bank::I32) => map!(f64s, i32s, |x| i32::from_i64(x as i64)),
        (Bank::F64, Bank::Bool) => map!(f64s, bools, |x| u8::from(x != 0.0)),
        (Bank::F32, Bank::F64) => map!(f32s, f64s, f64::from),
        (Bank::F32, Bank::F32) => cast_floats(isa, at, from, to, f32s, out),
        (Bank::F32, Bank::I64) => map!(f32s, i64s, |x| x as i64),
        (Bank::F32, Bank::I32) => map!(f32s, i32s, |x| i32::from_i64(x as i64)),
        (Bank::F32, Bank::Bool) => map!(f32s, bools, |x| u8::from(x != 0.0)),
        (Bank::I64, Bank::F64) => map!(i64s, f64s, |x| x as f64),
        (Bank::I64, Bank::F32) => map!(i64s, f32s, |x| x as f32),
        (Bank::I64, Bank::I64) => same(at, i64s, from, to, out),
        (Bank::I64, Bank::I32) => map!(i64s, i32s, |x| x as i32),
        (Bank::I64, Bank::Bool) => map!(i64s, bools, |x| u8::from(x != 0)),
        (Bank::I32, Bank::F64) => map!(i32s, f64s, f64::from),
        (Bank::I32, Bank::F32) => map!(i32s, f32s, |x| x as f32),
        (Bank::I32, Bank::I64) => map!(i32s, i64s, i64::from),
        (Bank::I32, Bank::I32) => same(at, i32s, from, to, out),
        (Bank::I32, Bank::Bool) => map!(i32s, bools, |x| u8::from(x != 0)),
        (Bank::Bool, Bank::F64) => map!(bools, f64s, f64::from),
        (Bank::Bool, Bank::F32) => map!(bools, f32s, f32::from),
        (Bank::Bool, Bank::I64) => map!(bools, i64s, i64::from),
        (Bank::Bool, Bank::I32) => map!(bools, i32s, i32::from),
        (Bank::Bool, Bank::Bool) => same(at, bools, from, to, out),
    }
    // A cast rounds, whatever follows.
    match (to.place, to.bank) {
        (Place::Bank(_), Bank::F32) => lanes::round(isa, to.dtype, at.open(f32s, to, out).1),
        (Place::Bank(_), Bank::I32) => wrap(to.dtype, at.open(i32s, to, out).1),
        _ => {}
    }
}

fn same<T: Pod>(at: Frame<'_>, bank: &mut [T], from: Register, to: Register, out: &mut [u8]) {
    let (before, out) = at.open(bank, to, out);
    out.copy_from_slice(at.read(before, from));
}

/// From narrow floats and to narrow floats, in a register or where they are.
fn cast_floats(isa: Isa, at: Frame<'_>, from: Register, to: Register, bank: &mut [f32], out: &mut [u8]) {
    match (from.place, FloatType::of(from.dtype), to.place, to.dtype) {
        (Place::Operand(index), Some(ty @ (FloatType::F16 | FloatType::Bf16)), ..) => {
            Floats::of_bytes(ty, at.operands[index]).load(isa, 0, at.open(bank, to, out).1);
        }
        (_, _, Place::Result, DType::F16) => f16::narrow(isa, at.read(bank, from), elements_mut(out)),
        (_, _, Place::Result, DType::BF16) => bf16::narrow(isa, at.read(bank, from), elements_mut(out)),
        _ => same(at, bank, from, to, out),
    }
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
