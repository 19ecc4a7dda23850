//! Values written at computed positions.

use bytemuck::Pod;

use crate::{Threads, threads::TileGrid};

/// Columns of a task, at least.
const COLUMNS: usize = 256;

/// Where a value finds itself among those given, which broadcast: the sum of a place for each of the three.
#[derive(Clone, Debug)]
pub struct Places {
    /// For each group.
    pub outer: Vec<usize>,
    /// For each point within a group.
    pub points: Vec<usize>,
    /// For each element of a run.
    pub inner: Vec<usize>,
}

/// How a value meets what is there.
#[derive(Clone, Copy, Debug)]
pub enum Meeting<F> {
    /// It takes its place.
    Replace,
    /// By this function.
    Join(F),
}

/// Writes, for each of `outer` groups and in the order of the points, a run of `inner` values over run `rows[point]` of the group's
/// `group` runs in `out`.
///
/// # Panics
///
/// If a length does not fit, a row is not in a group, or a place is not in `values`.
pub fn put<T: Pod + Send + Sync, V: Pod + Send + Sync>(
    threads: &Threads,
    [outer, group, inner]: [usize; 3],
    rows: &[usize],
    values: &[V],
    places: &Places,
    of: impl Fn(V) -> T + Sync,
    meeting: Meeting<impl Fn(T, T) -> T + Sync>,
    out: &mut [T],
) {
    assert_eq!(out.len(), outer * group * inner);
    assert_eq!([places.outer.len(), places.points.len(), places.inner.len()], [outer, rows.len(), inner]);
    assert!(rows.iter().all(|row| *row < group), "a row beyond the group");
    let side_by_side = places.inner.iter().enumerate().all(|(i, place)| i == *place);
    let tile_cols = if outer > 1 { inner } else { inner.div_ceil(threads.count()).max(COLUMNS) };
    let outers = [(outer, group * inner)];
    let grid = TileGrid { outer: &outers, rows: group, cols: inner, row_stride: inner, tile_rows: group, tile_cols };
    threads.for_each_tile(out, &grid, |at, mut tile| {
        for (row, place) in rows.iter().zip(&places.points) {
            let (out, start) = (tile.row(*row), places.outer[at.matrix] + place);
            if side_by_side {
                let values = &values[start + at.col..][..out.len()];
                match &meeting {
                    Meeting::Replace => out.iter_mut().zip(values).for_each(|(y, v)| *y = of(*v)),
                    Meeting::Join(f) => out.iter_mut().zip(values).for_each(|(y, v)| *y = f(*y, of(*v))),
                }
                continue;
            }
            for (y, place) in out.iter_mut().zip(&places.inner[at.col..]) {
                let value = of(values[start + place]);
                *y = match &meeting {
                    Meeting::Replace => value,
                    Meeting::Join(f) => f(*y, value),
                };
            }
        }
    });
}
