//! Pooling.

use regraft_backend::{BackendError, Candidate, DataError, NodeSpec, OperandType};
use regraft_ir::{
    Op, TensorType,
    ops::{AdaptiveAvgPool, SpatialLayout, adaptive_window},
};

use super::{
    CpuKernel, Cx, Family,
    support::{Seen, Types, Why, expect_plain, never_strided, operand, plain, three, unsupported},
};
use crate::{
    Isa, Scratch,
    gemm::Window3,
    nn::{
        pool::{Pooling, pool, pool_scratch},
        pool_any::{Span, SpanAxis, SpanPool, span_pool},
        reduce::{Reduction, reduce},
    },
    simd::with_floats_mut,
};

const WINDOWS: &str = "pool.windows";
const SPANS: &str = "pool.spans";
const GLOBAL: &str = "pool.global";

pub(super) const FAMILY: Family =
    Family { ids: &[WINDOWS, SPANS, GLOBAL], candidates, reads_strided: never_strided, prepare };

/// Windows of one shape: kernel, stride, padding and dilation, per spatial axis.
struct Window<'a> {
    layout: SpatialLayout,
    pooling: Pooling,
    divisor: Option<usize>,
    kernel: &'a [usize],
    stride: &'a [usize],
    padding: &'a [usize],
    dilation: Option<&'a [usize]>,
}

/// How a node is run.
enum Spec<'a> {
    /// Channels-last images of up to two axes.
    Windows(Window<'a>),
    /// All others.
    Spans(Window<'a>),
    /// Windows of other sizes.
    Adaptive(&'a AdaptiveAvgPool),
    /// One window is all of the image: a reduction of neighboring axes in either layout.
    Global(SpatialLayout),
}

impl Spec<'_> {
    fn id(&self) -> &'static str {
        match self {
            Spec::Windows(_) => WINDOWS,
            Spec::Spans(_) | Spec::Adaptive(_) => SPANS,
            Spec::Global(_) => GLOBAL,
        }
    }
}

fn accept<'a>(node: &Seen<'a>) -> Result<Spec<'a>, Why> {
    node.all_floats()?;
    let window = match node.op {
        Op::MaxPool(op) => Window {
            layout: op.layout,
            pooling: Pooling::Max,
            divisor: None,
            kernel: &op.kernel,
            stride: &op.stride,
            padding: &op.padding,
            dilation: Some(&op.dilation),
        },
        Op::AvgPool(op) => Window {
            layout: op.layout,
            pooling: Pooling::Average { include_padding: op.count_include_pad },
            divisor: op.divisor,
            kernel: &op.kernel,
            stride: &op.stride,
            padding: &op.padding,
            dilation: None,
        },
        Op::AdaptiveAvgPool(op) if op.size.iter().all(|&s| s == 1) => return Ok(Spec::Global(op.layout)),
        Op::AdaptiveAvgPool(op) => return Ok(Spec::Adaptive(op)),
        _ => return Err(Why("it pools nothing")),
    };
    let flat = window.layout == SpatialLayout::Nhwc && node.rank(0) < 5;
    Ok(if flat && window.divisor.is_none() { Spec::Windows(window) } else { Spec::Spans(window) })
}

fn candidates(_: Isa, op: &Op, inputs: &[Option<OperandType<'_>>], _: &[&TensorType]) -> Vec<Candidate> {
    plain(accept(&Seen::of_types(op, inputs)).map(|spec| spec.id()))
}

enum Kind {
    Windows { pooling: Pooling, window: Window3, channels: usize },
    Spans(SpanPool),
    Global { sizes: [usize; 3] },
}

struct Prepared {
    cx: Cx,
    types: Types,
    kind: Kind,
}

fn prepare(cx: &Cx, node: &NodeSpec<'_>) -> Result<Box<dyn CpuKernel>, BackendError> {
    let spec = accept(&Seen::of_node(node)).map_err(|why| unsupported(node, why.0))?;
    expect_plain(node, [0])?;
    let types = Types::expect(node, 0..1)?;
    let (x, out) = (operand(node, 0)?.shape, node.outputs[0].shape);
    let kind = match spec {
        Spec::Global(layout) => {
            let positions = layout.spatial(x).iter().product();
            let channels = x[layout.channel_axis(x.len())];
            let sizes = match layout {
                SpatialLayout::Nhwc => [x[0], positions, channels],
                SpatialLayout::Nchw => [x[0] * channels, positions, 1],
            };
            Kind::Global { sizes }
        }
        Spec::Windows(w) => {
            let (window, channels) = (w.over(x, out), x[x.len() - 1]);
            Kind::Windows { pooling: w.pooling, window, channels }
        }
        Spec::Spans(w) => {
            let spans = |axis, size, count| {
                let step = w.dilation.map_or(1, |d| d[axis]);
                SpanAxis::new(size, step, (0..count).map(|i| w.span(axis, i, size)).collect())
            };
            Kind::Spans(span_pooling(w.pooling != Pooling::Max, w.layout, [x, out], spans))
        }
        Spec::Adaptive(op) => {
            let span = |i, count, size| {
                let (first, end) = adaptive_window(i, count, size);
                Span { first, count: end - first, counts_as: end - first }
            };
            let spans = |_, size, count| SpanAxis::new(size, 1, (0..count).map(|i| span(i, count, size)).collect());
            Kind::Spans(span_pooling(true, op.layout, [x, out], spans))
        }
    };
    Ok(Box::new(Prepared { cx: cx.clone(), types, kind }))
}

impl Window<'_> {
    /// Where windows lie in images and results of these sizes.
    fn over(&self, x: &[usize], out: &[usize]) -> Window3 {
        Window3 {
            batch: x[0],
            input: three(self.layout.spatial(x), 1),
            output: three(self.layout.spatial(out), 1),
            kernel: three(self.kernel, 1),
            stride: three(self.stride, 1),
            dilation: self.dilation.map_or([1; 3], |d| three(d, 1)),
            padding: three(self.padding, 0),
        }
    }

    /// What position `i` covers of an axis of `size` elements.
    fn span(&self, axis: usize, i: usize, size: usize) -> Span {
        let (step, padding) = (self.dilation.map_or(1, |d| d[axis]), self.padding[axis]);
        let begin = i * self.stride[axis];
        // Taps before the first element are in the padding.
        let skipped = padding.saturating_sub(begin).div_ceil(step);
        let first = begin + skipped * step - padding;
        let taps = self.kernel[axis].saturating_sub(skipped);
        let count = taps.min(size.saturating_sub(first).div_ceil(step));
        let counts_as = match (self.divisor, self.pooling) {
            (Some(divisor), _) => {
                if axis == 0 {
                    divisor
                } else {
                    1
                }
            }
            (None, Pooling::Average { include_padding: true }) => {
                (begin + self.kernel[axis]).min(size + 2 * padding).saturating_sub(begin)
            }
            (None, _) => count,
        };
        Span { first, count, counts_as }
    }
}

/// A pooling by the windows that `spans` gives for an axis, from the sizes of the image and of the result.
fn span_pooling(
    mean: bool,
    layout: SpatialLayout,
    [x, out]: [&[usize]; 2],
    spans: impl Fn(usize, usize, usize) -> SpanAxis,
) -> SpanPool {
    let (from, to, channels) = (layout.spatial(x), layout.spatial(out), x[layout.channel_axis(x.len())]);
    let mut axes = [(); 3].map(|()| SpanAxis::none());
    let missing = 3 - from.len();
    for (axis, (&size, &count)) in from.iter().zip(to).enumerate() {
        axes[missing + axis] = spans(axis, size, count);
    }
    let (outer, inner) = match layout {
        SpatialLayout::Nchw => (x[0] * channels, 1),
        SpatialLayout::Nhwc => (x[0], channels),
    };
    SpanPool { mean, outer, axes, inner }
}

impl CpuKernel for Prepared {
    fn scratch(&self) -> usize {
        match &self.kind {
            Kind::Windows { window, channels, .. } => {
                pool_scratch(&self.cx.threads, window, *channels, [self.types.of(0), self.types.out()])
            }
            Kind::Spans(pool) => pool.scratch(&self.cx.threads, self.types.out()),
            Kind::Global { .. } => 0,
        }
    }

    fn run(&self, inputs: &[Option<&[u8]>], outputs: &mut [&mut [u8]], scratch: &mut [u8]) -> Result<(), DataError> {
        let (threads, isa, x) = (&self.cx.threads, self.cx.isa, self.types.read(inputs, 0));
        with_floats_mut!(self.types.out(), &mut *outputs[0], out => match &self.kind {
            _ if out.is_empty() => {}
            Kind::Windows { pooling, window, channels } => {
                let image = x.first(window.batch * window.pixels_in() * channels);
                pool(threads, isa, *pooling, window, *channels, image, out, &mut Scratch::new(scratch));
            }
            Kind::Spans(spans) => span_pool(threads, isa, spans, x, out, &mut Scratch::new(scratch)),
            Kind::Global { sizes } => {
                reduce(threads, isa, Reduction::Mean, x.first(sizes.iter().product()), *sizes, out);
            }
        });
        Ok(())
    }
}
