//! Packing into panels of half floats: straight where the source already holds them, otherwise by way of a panel of f32 in scratch,
//! which is rounded once.

use half::{bf16, f16};

use super::{
    MatrixView, SourceElement,
    panels::{PanelPacker, words_of},
};
use crate::{
    Isa, Scratch, Threads,
    scratch::bytes_of,
    simd::{Float, FloatType, Floats, simd_fn, to_bf16},
    threads::MAX_WORKERS,
};

/// An element that panels of half floats hold.
pub trait HalfElement: Float {
    /// Writes a panel of `k` steps of f32 as one of `Self`.
    fn narrow_panel(isa: Isa, nr: usize, from: &[f32], to: &mut [Self]);

    /// Writes the panel whose first column is `first` straight from `view`, which is the whole matrix; `false` if it cannot.
    fn copy_panel(view: Floats<'_>, place: &Place, first: usize, nr: usize, to: &mut [Self]) -> bool;
}

/// Where the elements of an unscaled matrix stand: element `(k, n)` at `offset + k * k_stride + n * n_stride`.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    offset: usize,
    k: usize,
    k_stride: usize,
    n: usize,
    n_stride: usize,
}

impl Place {
    fn of<T: SourceElement>(view: &MatrixView<'_, T>) -> Option<Place> {
        let ([(k, k_stride)], None, None) = (view.k_dims.as_slice(), view.scale, view.overlay) else { return None };
        let (k, k_stride) = (*k, *k_stride);
        Some(Place { offset: view.offset, k, k_stride, n: view.n_len, n_stride: view.n_stride })
    }
}

impl HalfElement for f16 {
    fn narrow_panel(isa: Isa, _: usize, from: &[f32], to: &mut [f16]) {
        f16::narrow(isa, from, to);
    }

    fn copy_panel(view: Floats<'_>, place: &Place, first: usize, nr: usize, to: &mut [f16]) -> bool {
        let Floats::F16(data) = view else { return false };
        if place.n_stride != 1 {
            return false;
        }
        let width = nr.min(place.n - first);
        for (k, to) in to.chunks_exact_mut(nr).enumerate() {
            to[..width].copy_from_slice(&data[place.offset + k * place.k_stride + first..][..width]);
            to[width..].fill(f16::ZERO);
        }
        true
    }
}

impl HalfElement for bf16 {
    fn narrow_panel(isa: Isa, nr: usize, from: &[f32], to: &mut [bf16]) {
        for (steps, to) in from.chunks(2 * nr).zip(to.chunks_exact_mut(2 * nr)) {
            let (even, odd) = steps.split_at(nr);
            narrow_pair(isa, even, odd, bytemuck::cast_slice_mut(to));
        }
    }

    fn copy_panel(view: Floats<'_>, place: &Place, first: usize, nr: usize, to: &mut [bf16]) -> bool {
        let Floats::Bf16(data) = view else { return false };
        if place.n_stride != 1 {
            return false;
        }
        let width = nr.min(place.n - first);
        let line = |k: usize| &data[place.offset + k * place.k_stride + first..][..width];
        for (pair, to) in to.chunks_exact_mut(2 * nr).enumerate() {
            let odd = if 2 * pair + 1 < place.k { line(2 * pair + 1) } else { &[] };
            interleave(line(2 * pair), odd, to);
        }
        true
    }
}

/// Writes two lines alternately, with zeros for what they lack.
fn interleave(even: &[bf16], odd: &[bf16], to: &mut [bf16]) {
    let (pairs, _) = to.as_chunks_mut::<2>();
    let zero = bf16::ZERO;
    if even.len() == odd.len() {
        pairs.iter_mut().zip(even.iter().zip(odd)).for_each(|(to, (even, odd))| *to = [*even, *odd]);
    } else {
        pairs.iter_mut().zip(even).for_each(|(to, even)| *to = [*even, zero]);
    }
    pairs[even.len()..].fill([zero; 2]);
}

simd_fn! {
    /// Two steps of a panel as pairs; the second may be absent.
    fn narrow_pair<F>(even: &[f32], odd: &[f32], to: &mut [u32]) {
        if odd.is_empty() {
            to.iter_mut().zip(even).for_each(|(y, x)| *y = u32::from(to_bf16(*x)));
        } else {
            for ((y, even), odd) in to.iter_mut().zip(even).zip(odd) {
                *y = u32::from(to_bf16(*even)) | u32::from(to_bf16(*odd)) << 16;
            }
        }
    }
}

/// Elements of panels `[k, n]` of `ty`: pairs of bfloat16 need an even number of steps.
pub fn panel_elements(ty: FloatType, k: usize, n: usize, nr: usize) -> usize {
    n.div_ceil(nr) * panel_bytes(ty, k, nr) / ty.size()
}

/// Bytes of `k` steps of one panel.
pub(crate) fn panel_bytes(ty: FloatType, k: usize, nr: usize) -> usize {
    let steps = if ty == FloatType::Bf16 { k.next_multiple_of(2) } else { k };
    steps * nr * ty.size()
}

/// Where element `(row, column)` of a matrix of `k` rows stands in its panels: what *defines* the formats.
pub fn panel_place(ty: FloatType, nr: usize, k: usize, row: usize, column: usize) -> usize {
    let panel = column / nr * (panel_bytes(ty, k, nr) / ty.size());
    panel
        + match ty {
            FloatType::F32 | FloatType::F16 => row * nr + column % nr,
            FloatType::Bf16 => row / 2 * 2 * nr + column % nr * 2 + row % 2,
        }
}

/// Widens one panel of `k` steps.
///
/// # Panics
///
/// If a length does not fit.
pub(crate) fn widen_panel(isa: Isa, nr: usize, panel: Floats<'_>, out: &mut [f32]) {
    let Floats::Bf16(pairs) = panel else { return panel.load(isa, 0, out) };
    for (steps, pairs) in out.chunks_mut(2 * nr).zip(pairs.as_chunks::<2>().0.chunks_exact(nr)) {
        let (even, odd) = steps.split_at_mut(nr);
        even.iter_mut().zip(pairs).for_each(|(y, [x, _])| *y = x.to_f32());
        odd.iter_mut().zip(pairs).for_each(|(y, [_, x])| *y = x.to_f32());
    }
}

/// Bytes of scratch that [`pack_half_panels`] needs.
pub fn pack_scratch(threads: &Threads, k: usize, nr: usize) -> usize {
    threads.count().min(MAX_WORKERS) * bytes_of::<f32>(k * nr)
}

/// Packs `pieces`, concatenated along `N`, into panels of half floats in `out`, which is overwritten wholly.
///
/// # Panics
///
/// If the pieces differ in `K`, a view reaches beyond its data, `nr` is not a multiple of 16, `out` is not [`panel_elements`]
/// long, or the scratch is shorter than [`pack_scratch`].
pub fn pack_half_panels<T: SourceElement + 'static, H: HalfElement>(
    threads: &Threads,
    isa: Isa,
    pieces: &[MatrixView<'_, T>],
    nr: usize,
    out: &mut [H],
    scratch: &mut Scratch<'_>,
) {
    if H::TYPE == FloatType::Bf16
        && let Some(words) = pieces.iter().map(words_of).collect::<Option<Vec<_>>>()
    {
        // Pairs of steps are moved as one word.
        return super::pack_panels(threads, isa, &words, nr, bytemuck::cast_slice_mut(out));
    }
    let packer = PanelPacker::new(isa, pieces, nr, false);
    let (k, n) = (packer.k(), packer.n());
    let each = panel_bytes(H::TYPE, k, nr) / H::TYPE.size();
    assert_eq!(out.len(), n.div_ceil(nr) * each, "the output length of a packing");
    if out.is_empty() {
        return;
    }
    let straight = match pieces {
        [one] => Place::of(one).zip(T::floats(one.data)),
        _ => None,
    };
    let mut scratch = scratch.again();
    let mut workers = scratch.parts::<f32>(threads.count().min(MAX_WORKERS), k * nr);
    threads.for_each_chunk_with(&mut workers, out, each, |floats, i, panel| {
        if straight.is_some_and(|(place, data)| H::copy_panel(data, &place, i * nr, nr, panel)) {
            return;
        }
        packer.panel(i * nr, 0..k, floats);
        H::narrow_panel(isa, nr, floats, panel);
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        pack::{pack_panels, panels_len},
        scratch::testing::with_scratch,
    };

    fn packed<T: SourceElement + 'static, H: HalfElement>(
        count: usize,
        isa: Isa,
        pieces: &[MatrixView<'_, T>],
        nr: usize,
    ) -> Vec<H> {
        let (k, n) = (pieces[0].k_len(), pieces.iter().map(|p| p.n_len).sum());
        let threads = Threads::new(count).unwrap();
        let mut out = vec![H::zeroed(); panel_elements(H::TYPE, k, n, nr)];
        with_scratch(pack_scratch(&threads, k, nr), |scratch| {
            pack_half_panels(&threads, isa, pieces, nr, &mut out, scratch);
        });
        out
    }

    /// What panels hold must be what panels of f32 hold, rounded once, at the place that defines the format.
    fn check<T: SourceElement + 'static, H: HalfElement>(pieces: &[MatrixView<'_, T>]) {
        let (k, n) = (pieces[0].k_len(), pieces.iter().map(|p| p.n_len).sum::<usize>());
        for (isa, nr) in Isa::available().into_iter().flat_map(|isa| [(isa, 16), (isa, 32), (isa, 64)]) {
            let mut wide = vec![f32::NAN; panels_len(k, n, nr)];
            pack_panels(&Threads::single(), isa, pieces, nr, &mut wide);
            let got: Vec<H> = packed(1, isa, pieces, nr);
            assert!(bytemuck::cast_slice::<H, u8>(&got) == bytemuck::cast_slice::<H, u8>(&packed(2, isa, pieces, nr)));
            let mut seen = vec![H::zeroed(); got.len()];
            for (row, column) in (0..k).flat_map(|row| (0..n).map(move |column| (row, column))) {
                let from = panel_place(FloatType::F32, nr, k, row, column);
                let to = panel_place(H::TYPE, nr, k, row, column);
                H::narrow(isa, &wide[from..=from], &mut seen[to..=to]);
            }
            assert!(bytemuck::cast_slice::<H, u8>(&got) == bytemuck::cast_slice::<H, u8>(&seen), "{isa} n{nr}");
        }
    }

    fn numbers(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i * 7919 % 10007) as f32 * 0.01 - 50.0).collect()
    }

    fn both<T: SourceElement + 'static>(pieces: &[MatrixView<'_, T>]) {
        check::<T, f16>(pieces);
        check::<T, bf16>(pieces);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn any_source(k in 1usize..70, ns in prop::collection::vec(1usize..50, 1..3), scaled: bool, across: bool) {
            let data: Vec<Vec<f32>> = ns.iter().map(|n| numbers(n * k)).collect();
            let halves: Vec<Vec<f16>> = data.iter().map(|d| d.iter().map(|x| f16::from_f32(*x)).collect()).collect();
            let brains: Vec<Vec<bf16>> = data.iter().map(|d| d.iter().map(|x| bf16::from_f32(*x)).collect()).collect();
            let scale = numbers(50);
            fn views<'a, T: SourceElement>(
                data: &'a [Vec<T>], ns: &[usize], k: usize, across: bool, scale: Option<&'a [f32]>,
            ) -> Vec<MatrixView<'a, T>> {
                data.iter().zip(ns).map(|(data, n)| {
                    let view = if across { MatrixView::row_major(data, k, *n) } else { MatrixView::linear(data, *n, k) };
                    match scale { Some(scale) => view.scaled(&scale[..*n]), None => view }
                }).collect()
            }
            let scale = scaled.then_some(&scale[..]);
            both(&views(&data, &ns, k, across, scale));
            both(&views(&halves, &ns, k, across, scale));
            both(&views(&brains, &ns, k, across, scale));
        }

        #[test]
        fn convolution_weights(oc in 1usize..40, ic in 1usize..20, kernel in 1usize..4) {
            let data: Vec<bf16> = numbers(oc * ic * kernel * kernel).iter().map(|x| bf16::from_f32(*x)).collect();
            both(&[MatrixView::conv2d(&data, [oc, ic, kernel, kernel])]);
        }
    }
}
