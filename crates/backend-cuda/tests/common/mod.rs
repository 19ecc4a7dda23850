//! Nodes with random operands for every kernel of our own, shared by the test that compiles all sources and by the check on
//! a device.
#![allow(dead_code, unreachable_pub, missing_docs)]

mod attention;

use regraft_backend_cuda::kernels::{Node, Spec, conv::WeightOrder, conv::order_for, elementwise::View, specs};
use regraft_ir::{Op, Scalar, ops::*};
use regraft_tensor::{DType, Dim, Tensor, contiguous_strides};

/// Numbers that are the same on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 11) as usize % n.max(1)
    }

    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// Roughly normal.
    pub fn normal(&mut self) -> f64 {
        (0..6).map(|_| (self.next() >> 11) as f64 / (1u64 << 53) as f64).sum::<f64>() * 1.4 - 4.2
    }

    pub fn floats(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        let n = shape.iter().product();
        let values: Vec<f64> = (0..n).map(|_| self.normal()).collect();
        Tensor::from_f64(dtype, shape, &values)
    }

    pub fn ints(&mut self, dtype: DType, shape: &[usize], low: i64, high: i64) -> Tensor {
        let n = shape.iter().product();
        let values: Vec<i64> = (0..n).map(|_| low + self.below((high - low + 1) as usize) as i64).collect();
        Tensor::from_i64(dtype, shape, &values)
    }

    pub fn bools(&mut self, shape: &[usize]) -> Tensor {
        let values: Vec<bool> = (0..shape.iter().product()).map(|_| self.below(3) > 0).collect();
        Tensor::from_bools(shape, &values)
    }
}

/// An operand: memory, and the order in which its axes are seen.
#[derive(Clone)]
pub struct Given {
    pub memory: Tensor,
    pub perm: Option<Vec<usize>>,
}

impl Given {
    /// The value that the node sees.
    pub fn value(&self) -> Tensor {
        match &self.perm {
            None => self.memory.clone(),
            Some(perm) => {
                Op::from(Permute { perm: perm.clone() }).eval(&[Some(&self.memory)]).expect("it permutes").remove(0)
            }
        }
    }

    pub fn shape_and_strides(&self) -> (Vec<usize>, Vec<usize>) {
        let strides = contiguous_strides(self.memory.shape());
        match &self.perm {
            None => (self.memory.shape().to_vec(), strides),
            Some(perm) => {
                (perm.iter().map(|&i| self.memory.shape()[i]).collect(), perm.iter().map(|&i| strides[i]).collect())
            }
        }
    }
}

impl From<Tensor> for Given {
    fn from(memory: Tensor) -> Given {
        Given { memory, perm: None }
    }
}

/// A node to be checked.
pub struct Case {
    pub name: String,
    pub op: Op,
    pub inputs: Vec<Option<Given>>,
    pub order: WeightOrder,
    pub matrix_units: bool,
}

impl Case {
    pub fn new(name: impl Into<String>, op: impl Into<Op>, inputs: Vec<Tensor>) -> Case {
        let inputs = inputs.into_iter().map(|t| Some(t.into())).collect();
        Case { name: name.into(), op: op.into(), inputs, order: WeightOrder::ChannelsFirst, matrix_units: false }
    }

    fn permuted(mut self, i: usize, perm: &[usize]) -> Case {
        // The memory is the value in the inverse order, so that the node sees the value.
        let given = self.inputs[i].take().expect("it is there");
        let mut inverse = vec![0; perm.len()];
        perm.iter().enumerate().for_each(|(to, &from)| inverse[from] = to);
        let memory = Given { memory: given.memory, perm: Some(inverse.clone()) }.value();
        self.inputs[i] = Some(Given { memory, perm: Some(perm.to_vec()) });
        self
    }

    fn without(mut self, i: usize) -> Case {
        self.inputs[i] = None;
        self
    }

    /// What the reference says.
    pub fn want(&self) -> Vec<Tensor> {
        let values: Vec<Option<Tensor>> = self.inputs.iter().map(|g| g.as_ref().map(Given::value)).collect();
        let refs: Vec<Option<&Tensor>> = values.iter().map(Option::as_ref).collect();
        let mut refs: &[Option<&Tensor>] = &refs;
        while let [rest @ .., None] = refs {
            refs = rest;
        }
        self.op.eval(refs).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// Types and sizes of the results.
    pub fn outputs(&self) -> Vec<(DType, Vec<usize>)> {
        let types: Vec<Option<regraft_ir::TensorType>> = self
            .inputs
            .iter()
            .map(|g| g.as_ref().map(|g| regraft_ir::TensorType::of_sizes(g.memory.dtype(), &g.shape_and_strides().0)))
            .collect();
        let refs: Vec<_> = types.iter().map(Option::as_ref).collect();
        let mut refs: &[Option<&regraft_ir::TensorType>] = &refs;
        while let [rest @ .., None] = refs {
            refs = rest;
        }
        let out = self.op.infer(refs).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        out.iter().map(|t| (t.dtype, t.sizes().expect("known sizes"))).collect()
    }

    /// Whether the op takes these operands.
    pub fn is_sound(&self) -> bool {
        let types: Vec<_> = self
            .inputs
            .iter()
            .map(|g| g.as_ref().map(|g| regraft_ir::TensorType::of_sizes(g.memory.dtype(), &g.shape_and_strides().0)))
            .collect();
        self.op.infer(&types.iter().map(Option::as_ref).collect::<Vec<_>>()).is_ok()
    }

    /// The launches.
    pub fn specs(&self) -> Vec<Spec> {
        let shapes: Vec<_> = self.inputs.iter().map(|g| g.as_ref().map(Given::shape_and_strides)).collect();
        let views: Vec<Option<View<'_>>> = self
            .inputs
            .iter()
            .zip(&shapes)
            .map(|(g, s)| {
                let (g, s) = (g.as_ref()?, s.as_ref()?);
                Some(View { dtype: g.memory.dtype(), shape: &s.0, strides: &s.1 })
            })
            .collect();
        let outputs = self.outputs();
        let outputs: Vec<(DType, &[usize])> = outputs.iter().map(|(d, s)| (*d, s.as_slice())).collect();
        let node = Node {
            op: &self.op,
            inputs: &views,
            outputs: &outputs,
            weight_order: self.order,
            matrix_units: self.matrix_units,
        };
        specs(&node).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }
}

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// All cases; `small` leaves out large sizes.
pub fn cases(seed: u64, small: bool) -> Vec<Case> {
    let mut r = Random(seed | 1);
    let mut all = Vec::new();
    elementwise(&mut r, &mut all, small);
    rows(&mut r, &mut all, small);
    indices(&mut r, &mut all);
    movement(&mut r, &mut all, small);
    images(&mut r, &mut all, small);
    attention::attention(&mut r, &mut all, small);
    attention::rotary(&mut r, &mut all, small);
    products(&mut r, &mut all, small);
    all
}

fn elementwise(r: &mut Random, all: &mut Vec<Case>, small: bool) {
    let big = if small { 9 } else { 300 };
    for dtype in FLOATS {
        for f in UnaryFn::ALL {
            // What the device leaves to the host, and functions that are none of floats.
            let left = f.name().starts_with("bessel") || matches!(f, UnaryFn::Digamma | UnaryFn::AiryAi);
            if *f == UnaryFn::Not || left {
                continue;
            }
            let mut x = r.floats(dtype, &[7, big]);
            if matches!(f, UnaryFn::Log | UnaryFn::Log1p | UnaryFn::Sqrt | UnaryFn::Rsqrt) {
                let positive: Vec<f64> = x.to_f64_vec().iter().map(|v| v.abs() + 0.1).collect();
                x = Tensor::from_f64(dtype, x.shape(), &positive);
            }
            all.push(Case::new(format!("unary {} {dtype}", f.name()), Unary { f: *f }, vec![x]));
        }
        for f in BinaryFn::ALL {
            let on_the_host = f.is_special() && !matches!(f, BinaryFn::Atan2 | BinaryFn::Hypot | BinaryFn::Copysign);
            if on_the_host || matches!(f, BinaryFn::And | BinaryFn::Or | BinaryFn::Xor) {
                continue;
            }
            let (mut a, mut b) = (r.floats(dtype, &[3, 1, big]), r.floats(dtype, &[5, big]));
            if matches!(f, BinaryFn::Pow | BinaryFn::Rem | BinaryFn::FloorDiv | BinaryFn::TruncDiv) {
                // Away from where a rounding of the quotient decides.
                let to = |t: &Tensor, k: f64| {
                    let v: Vec<f64> = t.to_f64_vec().iter().map(|v| (v.abs() * 4.0).floor() * k + 1.0).collect();
                    Tensor::from_f64(dtype, t.shape(), &v)
                };
                (a, b) = (to(&a, 0.5), to(&b, 0.25));
            }
            let case = Case::new(format!("binary {} {dtype}", f.name()), Binary { f: *f }, vec![a, b]);
            all.extend(case.is_sound().then_some(case));
        }
    }
    for dtype in [DType::I64, DType::I32, DType::I8, DType::U8] {
        for f in BinaryFn::ALL {
            if matches!(f, BinaryFn::Div | BinaryFn::Fmod | BinaryFn::Gcd) {
                continue;
            }
            let low = if dtype == DType::U8 { 0 } else { -9 };
            let (a, b) = (r.ints(dtype, &[4, 33], low, 9), r.ints(dtype, &[4, 33], low, 9));
            let case = Case::new(format!("binary {} {dtype}", f.name()), Binary { f: *f }, vec![a, b]);
            all.extend(case.is_sound().then_some(case));
        }
    }
    for f in CompareFn::ALL {
        let (a, b) = (r.ints(DType::I64, &[65], 0, 4), r.ints(DType::I64, &[65], 0, 4));
        all.push(Case::new(format!("compare {}", f.name()), Compare { f: *f }, vec![a, b]));
    }
    let taken = || DType::ALL.into_iter().filter(|dtype| !dtype.is_wide_unsigned());
    for from in taken() {
        for to in taken() {
            let x = match from {
                DType::Bool => r.bools(&[77]),
                d if d.is_float() => r.floats(d, &[77]),
                DType::U8 => r.ints(from, &[77], 0, 100),
                d => r.ints(d, &[77], -100, 100),
            };
            if to == DType::U8 && from.is_float() {
                continue;
            }
            all.push(Case::new(format!("cast {from} {to}"), Cast { dtype: to }, vec![x]));
        }
    }
    for dtype in FLOATS {
        let x = r.floats(dtype, &[2, 12, 20, 8]);
        all.push(Case::new(format!("strided {dtype}"), Unary { f: UnaryFn::Neg }, vec![x]).permuted(0, &[0, 2, 1, 3]));
        let x = r.floats(dtype, &[24, 40]);
        all.push(Case::new(format!("turned {dtype}"), Unary { f: UnaryFn::Relu }, vec![x]).permuted(0, &[1, 0]));
        let steps = vec![
            FusedStep { f: FusedFn::Binary(BinaryFn::Add), args: vec![0, 1] },
            FusedStep { f: FusedFn::Unary(UnaryFn::Silu), args: vec![3] },
            FusedStep { f: FusedFn::Binary(BinaryFn::Mul), args: vec![4, 2] },
        ];
        let inputs = vec![r.floats(dtype, &[6, 5, big]), r.floats(dtype, &[big]), r.floats(dtype, &[6, 1, 1])];
        all.push(Case::new(format!("chain {dtype}"), Fused { steps }, inputs));
    }
    let steps = vec![
        FusedStep { f: FusedFn::Literal(Scalar::Int(2), DType::I64), args: vec![] },
        FusedStep { f: FusedFn::Compare(CompareFn::Ge), args: vec![0, 3] },
        FusedStep { f: FusedFn::Binary(BinaryFn::And), args: vec![4, 2] },
        FusedStep { f: FusedFn::Literal(Scalar::Float(f64::NEG_INFINITY), DType::F32), args: vec![] },
        FusedStep { f: FusedFn::Select, args: vec![5, 1, 6] },
        FusedStep { f: FusedFn::Cast(DType::F16), args: vec![7] },
    ];
    let inputs = vec![r.ints(DType::I64, &[3, 1, 17], 0, 4), r.floats(DType::F32, &[3, 4, 17]), r.bools(&[17])];
    all.push(Case::new("chain of mixed types", Fused { steps }, inputs));
    let (c, a, b) = (r.bools(&[5, 1]), r.floats(DType::F16, &[5, 6]), r.floats(DType::F16, &[6]));
    all.push(Case::new("select", Select {}, vec![c, a, b]));
}

fn rows(r: &mut Random, all: &mut Vec<Case>, small: bool) {
    let widths: &[usize] = if small { &[1, 40, 768] } else { &[1, 7, 64, 768, 1023, 4096, 5120, 12288] };
    for dtype in FLOATS {
        for &n in widths {
            let (x, w, b) = (r.floats(dtype, &[3, 2, n]), r.floats(dtype, &[n]), r.floats(dtype, &[n]));
            let op = LayerNorm { axes: 1, eps: 1e-5 };
            all.push(Case::new(format!("layer norm {n} {dtype}"), op, vec![x.clone(), w.clone(), b]));
            all.push(Case::new(format!("rms norm {n} {dtype}"), RmsNorm { axes: 1, eps: 1e-6 }, vec![x.clone(), w]));
            for log in [false, true] {
                let op = Softmax { axis: 2, log };
                all.push(Case::new(format!("softmax {n} log {log} {dtype}"), op, vec![x.clone()]));
            }
        }
        let x = r.floats(dtype, &[3, 9, 5]);
        all.push(Case::new(format!("softmax inner {dtype}"), Softmax { axis: 1, log: false }, vec![x]));
        for layout in [SpatialLayout::Nchw, SpatialLayout::Nhwc] {
            let shape = layout.shape(&2, &24, &[if small { 3 } else { 33 }, 7]);
            let (x, w, b) = (r.floats(dtype, &shape), r.floats(dtype, &[24]), r.floats(dtype, &[24]));
            for groups in [1, 6, 24] {
                let op = GroupNorm { groups, eps: 1e-5, layout };
                let inputs = vec![x.clone(), w.clone(), b.clone()];
                all.push(Case::new(format!("group norm {groups} {} {dtype}", layout.name()), op, inputs));
            }
            // Few pixels of many channels, far from zero.
            let far = r.floats(dtype, &layout.shape(&1, &640, &[if small { 2 } else { 9 }, 5]));
            let values: Vec<f64> = far.to_f64_vec().iter().map(|v| v + 40.0).collect();
            let far = Tensor::from_f64(dtype, far.shape(), &values);
            let op = GroupNorm { groups: 32, eps: 1e-5, layout };
            all.push(Case::new(format!("group norm wide {} {dtype}", layout.name()), op, vec![far]));
            let var: Vec<f64> = w.to_f64_vec().iter().map(|v| v.abs() + 0.5).collect();
            let var = Tensor::from_f64(dtype, &[24], &var);
            let op = BatchNorm { eps: 1e-5, layout };
            let inputs = vec![x.clone(), b.clone(), var, w.clone(), b.clone()];
            all.push(Case::new(format!("batch norm {} {dtype}", layout.name()), op, inputs));
        }
        for f in ReduceFn::ALL {
            for axes in [vec![0], vec![2], vec![0, 2], vec![1], vec![0, 1, 2]] {
                let x = r.floats(dtype, &[5, 4, if small { 37 } else { 700 }]);
                let x = if *f == ReduceFn::Prod { r.floats(dtype, &[3, 2, 4]) } else { x };
                let name = format!("reduce {} {axes:?} {dtype}", f.name());
                all.push(Case::new(name, Reduce { f: *f, axes, keep: false }, vec![x]));
            }
        }
        let x = r.floats(dtype, &[6, 50, 3]);
        for (axis, f) in [(1, ArgReduceFn::Max), (2, ArgReduceFn::Min), (0, ArgReduceFn::Max)] {
            let op = ArgReduce { f, axis, keep: false };
            all.push(Case::new(format!("arg {} {axis} {dtype}", f.name()), op, vec![x.clone()]));
        }
    }
    for f in [ReduceFn::Sum, ReduceFn::Max, ReduceFn::Min, ReduceFn::Any, ReduceFn::All, ReduceFn::Prod] {
        let x = r.ints(DType::I64, &[3, 40], 0, 3);
        let name = format!("reduce {} i64", f.name());
        all.push(Case::new(name, Reduce { f, axes: vec![1], keep: true }, vec![x]));
    }
    all.push(Case::new("any bool", Reduce { f: ReduceFn::Any, axes: vec![1], keep: false }, vec![r.bools(&[9, 4])]));
    let x = r.floats(DType::F32, &[4, 8, 6, 10]);
    let case = Case::new("reduce strided", Reduce { f: ReduceFn::Mean, axes: vec![1, 2], keep: false }, vec![x]);
    all.push(case.permuted(0, &[0, 2, 3, 1]));
    for (dtype, n) in [(DType::I64, 70), (DType::F32, 100), (DType::I32, 5)] {
        for axis in [0, 1, 2] {
            let x = if dtype.is_float() { r.floats(dtype, &[3, n, 4]) } else { r.ints(dtype, &[3, n, 4], -5, 5) };
            all.push(Case::new(format!("cumsum {axis} {dtype}"), Cumsum { axis }, vec![x]));
        }
    }
}

fn indices(r: &mut Random, all: &mut Vec<Case>) {
    for dtype in [DType::F32, DType::F16, DType::I64] {
        for (ids, width) in [(DType::I64, 768), (DType::I32, 5), (DType::I64, 1)] {
            let table =
                if dtype == DType::I64 { r.ints(dtype, &[50, width], -99, 99) } else { r.floats(dtype, &[50, width]) };
            let name = format!("embedding {width} {dtype} {ids}");
            all.push(Case::new(name, Embedding {}, vec![table, r.ints(ids, &[3, 9], 0, 49)]));
        }
        let x = if dtype == DType::I64 { r.ints(dtype, &[4, 5, 6], 0, 9) } else { r.floats(dtype, &[4, 5, 6]) };
        for axis in 0..3 {
            let index = r.ints(DType::I64, &[3, 4, 5], 0, 3);
            all.push(Case::new(format!("gather {axis} {dtype}"), Gather { axis }, vec![x.clone(), index]));
        }
        let (a, b) = (r.ints(DType::I64, &[2, 1], -4, 3), r.ints(DType::I64, &[3], -4, 3));
        all.push(Case::new(format!("index {dtype}"), Index { axis: 0 }, vec![x.clone(), a.clone(), b.clone()]));
        all.push(Case::new(format!("index inner {dtype}"), Index { axis: 1 }, vec![x.clone(), a, b.clone()]));
        all.push(Case::new(format!("index last {dtype}"), Index { axis: 2 }, vec![x.clone(), b.clone()]));
        let value = |r: &mut Random, shape: &[usize]| {
            if dtype == DType::I64 { r.ints(dtype, shape, 10, 19) } else { r.floats(dtype, shape) }
        };
        // Three points of four rows: some are named twice.
        let (a, set) = (r.ints(DType::I64, &[2, 1], -4, 3), |axis| IndexPut { axis, f: PutFn::Set });
        let puts = [
            ("first", set(0), vec![value(r, &[3, 5, 6]), b.clone()]),
            ("last, broadcast", set(2), vec![value(r, &[5, 1]), b.clone()]),
            ("two axes", set(0), vec![value(r, &[2, 3, 1]), a, b]),
            ("a position", set(1), vec![value(r, &[4, 1, 6]), r.ints(DType::I64, &[1], 0, 4)]),
        ];
        for (name, op, others) in puts {
            all.push(Case::new(format!("index put {name} {dtype}"), op, [vec![x.clone()], others].concat()));
        }
    }
}

fn movement(r: &mut Random, all: &mut Vec<Case>, small: bool) {
    for dtype in [DType::F32, DType::F16, DType::Bool, DType::I64] {
        let make = |r: &mut Random, shape: &[usize]| match dtype {
            DType::Bool => r.bools(shape),
            DType::I64 => r.ints(dtype, shape, -9, 9),
            d => r.floats(d, shape),
        };
        for axis in 0..3 {
            let parts: Vec<Tensor> = [2, 3, 8]
                .iter()
                .map(|&n| {
                    let mut shape = [4, 6, 16];
                    shape[axis] = n;
                    make(r, &shape)
                })
                .collect();
            all.push(Case::new(format!("concat {axis} {dtype}"), Concat { axis }, parts.clone()));
            // One that is turned, and more than a launch has.
            let many = [parts.clone(), parts].concat();
            all.push(Case::new(format!("concat many {axis} {dtype}"), Concat { axis }, many).permuted(1, &[1, 2, 0]));
        }
        let x = make(r, &[3, 5, 7]);
        let value = if dtype.is_float() { Scalar::Float(1.5) } else { Scalar::Int(1) };
        let op = Pad { before: vec![0, 2, -1], after: vec![1, 0, 3], value, mode: PadMode::Constant };
        all.push(Case::new(format!("pad {dtype}"), op, vec![x.clone()]));
        for mode in [PadMode::Reflect, PadMode::Replicate] {
            let op = Pad { before: vec![0, 2, 3], after: vec![0, 4, 1], value: Scalar::Float(0.0), mode };
            all.push(Case::new(format!("pad {} {dtype}", mode.name()), op, vec![x.clone()]));
        }
        all.push(Case::new(format!("flip {dtype}"), Flip { axes: vec![0, 2] }, vec![x]));
        let shape: Vec<Dim> = [3usize, 70].iter().map(|&n| Dim::from(n)).collect();
        all.push(Case::new(format!("full {dtype}"), Full { value, dtype, shape }, vec![]));
    }
    for dtype in [DType::I64, DType::F32, DType::I32] {
        let op = Iota { len: Dim::new(if small { 9 } else { 3000 }), start: Dim::new(-4), step: Dim::new(3), dtype };
        all.push(Case::new(format!("iota {dtype}"), op, vec![]));
    }
    all.push(Case::new("size of", SizeOf { value: Dim::new(41) }, vec![]));
}

fn images(r: &mut Random, all: &mut Vec<Case>, small: bool) {
    let size = if small { 6 } else { 19 };
    for dtype in FLOATS {
        for layout in [SpatialLayout::Nchw, SpatialLayout::Nhwc] {
            let tag = format!("{} {dtype}", layout.name());
            let x = r.floats(dtype, &layout.shape(&2, &8, &[size, size + 1]));
            let op = MaxPool {
                kernel: vec![3, 2],
                stride: vec![2, 1],
                padding: vec![1, 0],
                dilation: vec![1, 2],
                ceil: true,
                layout,
            };
            all.push(Case::new(format!("max pool {tag}"), op, vec![x.clone()]));
            for count_include_pad in [false, true] {
                let op = AvgPool {
                    kernel: vec![3, 3],
                    stride: vec![2, 2],
                    padding: vec![1, 1],
                    ceil: true,
                    count_include_pad,
                    divisor: None,
                    layout,
                };
                all.push(Case::new(format!("avg pool {count_include_pad} {tag}"), op, vec![x.clone()]));
            }
            for to in [vec![1, 1], vec![4, 5]] {
                let op = AdaptiveAvgPool { size: to, layout };
                all.push(Case::new(format!("adaptive pool {tag}"), op, vec![x.clone()]));
            }
            for (mode, align_corners) in [
                (ResizeMode::Nearest, false),
                (ResizeMode::Linear, false),
                (ResizeMode::Linear, true),
                (ResizeMode::Cubic, false),
                (ResizeMode::Cubic, true),
            ] {
                let to = vec![Dim::from(2 * size), Dim::new(5)];
                let op = Resize { mode, size: to, align_corners, scales: None, layout };
                all.push(Case::new(format!("resize {} {align_corners} {tag}", mode.name()), op, vec![x.clone()]));
            }
            for (groups, out, kernel, stride) in
                [(1, 40, vec![3, 3], 1), (1, 5, vec![1, 1], 1), (2, 36, vec![3, 2], 2), (8, 8, vec![3, 3], 1)]
            {
                conv(r, all, dtype, layout, &x, groups, out, &kernel, stride);
            }
        }
        let (x, w, b) = (r.floats(dtype, &[2, 6, 5, 4]), r.floats(dtype, &[6, 4, 3, 2]), r.floats(dtype, &[8]));
        let op = ConvTranspose {
            stride: vec![2, 1],
            padding: vec![1, 0],
            output_padding: vec![1, 0],
            dilation: vec![1, 2],
            groups: 2,
        };
        all.push(Case::new(format!("conv transpose {dtype}"), op, vec![x, w, b]));
        let (x, w) = (r.floats(dtype, &[2, 6, 30]), r.floats(dtype, &[20, 6, 5]));
        let op = Conv {
            stride: vec![2],
            padding: vec![2],
            dilation: vec![1],
            groups: 1,
            layout: SpatialLayout::Nchw,
            act: Activation::None,
            act_first: false,
        };
        all.push(Case::new(format!("conv 1d {dtype}"), op, vec![x, w]));
    }
}

#[allow(clippy::too_many_arguments)]
fn conv(
    r: &mut Random,
    all: &mut Vec<Case>,
    dtype: DType,
    layout: SpatialLayout,
    x: &Tensor,
    groups: usize,
    out: usize,
    kernel: &[usize],
    stride: usize,
) {
    let mut shape = vec![out, 8 / groups];
    shape.extend(kernel);
    let (w, b) = (r.floats(dtype, &shape), r.floats(dtype, &[out]));
    let op = Conv {
        stride: vec![stride; 2],
        padding: vec![kernel[0] / 2, kernel[1] / 2],
        dilation: vec![1, 1],
        groups,
        layout,
        act: Activation::Relu,
        act_first: groups == 2,
    };
    let name = format!("conv {groups} groups {out} of {kernel:?} {} {dtype}", layout.name());
    let mut case = Case::new(name, op, vec![x.clone(), w, b]);
    let shape = case.outputs()[0].1.clone();
    case.inputs.push(Some(r.floats(dtype, &shape).into()));
    case.order = order_for(layout);
    all.push(case);
}

fn products(r: &mut Random, all: &mut Vec<Case>, small: bool) {
    for dtype in FLOATS {
        for (m, n, k) in [(1, 70, 128), (3, 33, 50), (8, if small { 20 } else { 700 }, 1024)] {
            let (x, w) = (r.floats(dtype, &[m, k]), r.floats(dtype, &[n, k]));
            let (b, residual) = (r.floats(dtype, &[n]), r.floats(dtype, &[m, n]));
            let name = format!("matvec {m}x{n}x{k} {dtype}");
            let op = Linear { act: Activation::Gelu, act_first: m == 3 };
            all.push(Case::new(name.clone(), op, vec![x.clone(), w.clone(), b, residual]));
            all.push(Case::new(name + " plain", Linear { act: Activation::None, act_first: false }, vec![x, w]));
        }
    }
}
