//! A thread budget, and mutable output that several tasks write at once without overlap.
#![allow(unsafe_code)]

mod team;

use std::{
    any::TypeId,
    io,
    marker::PhantomData,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rayon::{ThreadPool, prelude::*};
use regraft_tensor::PerProcess;

use self::team::Team;

/// The threads that a routine may use. Cheap to clone; clones share the threads. A forked child starts as many of its own when
/// it first needs them.
#[derive(Clone, Debug)]
pub struct Threads {
    kind: Kind,
    count: usize,
}

/// Where threads come from. What cannot be started in a forked child is `None` there, and the calling thread does everything.
#[derive(Clone, Debug)]
enum Kind {
    /// The caller is the only one.
    Caller,
    /// They are those of the pool that the calling thread is one of.
    OfCaller,
    /// The caller and helpers that wait for the next piece of work.
    Team(Arc<PerProcess<Option<Team>>>),
    /// A pool whose tasks may split further.
    Pool(Arc<PerProcess<Option<ThreadPool>>>),
}

impl Threads {
    /// The calling thread alone.
    pub fn single() -> Threads {
        Threads { kind: Kind::Caller, count: 1 }
    }

    /// The threads of the pool that the calling thread is one of; that thread alone where it is of none. For use on that thread.
    pub(crate) fn of_caller() -> Threads {
        let count = rayon::current_thread_index().map_or(1, |_| rayon::current_num_threads());
        Threads { kind: Kind::OfCaller, count }
    }

    /// `count` threads (at least one), of which the caller is one: for work that is split many times in a row, into tasks that
    /// split no further. With one, everything runs on the calling thread.
    pub fn new(count: usize) -> io::Result<Threads> {
        if count <= 1 {
            return Ok(Threads::single());
        }
        let (started, team) = (Team::new(count)?, PerProcess::new());
        team.get_or_init(|| Some(started));
        Ok(Threads { kind: Kind::Team(Arc::new(team)), count })
    }

    /// As [`new`](Self::new), for long tasks that may split further; the caller hands over and waits.
    pub(crate) fn of_pool(count: usize) -> io::Result<Threads> {
        if count <= 1 {
            return Ok(Threads::single());
        }
        let (started, pool) = (start(count)?, PerProcess::new());
        pool.get_or_init(|| Some(started));
        Ok(Threads { kind: Kind::Pool(Arc::new(pool)), count })
    }

    /// How many threads there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many of `pieces`, of which a task has at least `least`, go into one task, so that threads end at about the same time: some tasks
    /// for each, in case that one falls behind, unless they can be cut into even shares only once.
    pub(crate) fn per_task(&self, pieces: usize, least: usize) -> usize {
        if self.count == 1 {
            return pieces.max(1);
        }
        let of = |tasks: usize| pieces.div_ceil(tasks * self.count).max(least).clamp(1, pieces.max(1));
        let longest = |per_task: &usize| pieces.div_ceil(*per_task).div_ceil(self.count) * per_task;
        (1..=TASKS_PER_THREAD).rev().map(of).min_by_key(longest).expect("there is a number of tasks")
    }

    /// Runs `f` so that the routines it calls start without a hand-over each.
    pub fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.kind {
            Kind::Caller | Kind::OfCaller => f(),
            Kind::Team(team) => match self.team(team) {
                Some(team) => team.run(f),
                None => f(),
            },
            Kind::Pool(pool) => match self.pool(pool) {
                Some(pool) => pool.install(f),
                None => f(),
            },
        }
    }

    /// The threads of this process.
    fn pool<'a>(&self, pool: &'a PerProcess<Option<ThreadPool>>) -> Option<&'a ThreadPool> {
        match pool.get_inherited() {
            // On one of its threads, which are of this process: spares asking the system which that is.
            Some(Some(first)) if first.current_thread_index().is_some() => Some(first),
            _ => pool.get_or_init(|| start(self.count).ok()).as_ref(),
        }
    }

    /// The threads of this process.
    fn team<'a>(&self, team: &'a PerProcess<Option<Team>>) -> Option<&'a Team> {
        match team.get_inherited() {
            Some(Some(first)) if first.is_run_here() => Some(first),
            _ => team.get_or_init(|| Team::new(self.count).ok()).as_ref(),
        }
    }

    /// Runs `task(0)`, ..., `task(tasks - 1)`, each once, in any order and on any thread.
    pub fn for_each(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        let mut states = [(); MAX_WORKERS];
        let workers = self.count.min(MAX_WORKERS);
        self.for_each_with(&mut states[..workers], tasks, |(), i| task(i));
    }

    /// As [`for_each`](Self::for_each), with one of `states` (scratch memory, say) for the sole use of the running task. At most
    /// `states.len()` tasks run at once.
    ///
    /// # Panics
    ///
    /// If there are tasks but no state.
    pub fn for_each_with<S: Send>(&self, states: &mut [S], tasks: usize, task: impl Fn(&mut S, usize) + Sync) {
        let workers = states.len().min(self.count).min(tasks);
        if workers <= 1 {
            return (0..tasks).for_each(|i| task(&mut states[0], i));
        }
        let ranges = Ranges::new(tasks, workers);
        let work = |(i, state): (usize, &mut S)| ranges.each(i, |i| task(state, i));
        let in_pool = |states: &mut [S]| states.par_iter_mut().enumerate().with_max_len(1).for_each(work);
        match &self.kind {
            Kind::Caller => unreachable!("it is one worker"),
            Kind::OfCaller => in_pool(&mut states[..workers]),
            Kind::Pool(pool) => match self.pool(pool) {
                Some(pool) => pool.install(|| in_pool(&mut states[..workers])),
                None => work((0, &mut states[0])),
            },
            Kind::Team(team) => match self.team(team) {
                Some(team) => {
                    let states = DisjointMut::new(&mut states[..workers]);
                    // SAFETY: no two shares have the same number.
                    let share =
                        |i: usize| unsafe { states.slice(i..i + 1) }.iter_mut().for_each(|state| work((i, state)));
                    if team.is_run_here() {
                        team.split(workers - 1, share)
                    } else {
                        team.run(|| team.split(workers - 1, share))
                    }
                }
                None => work((0, &mut states[0])),
            },
        }
    }

    /// Cuts `out` into chunks of `chunk_len` (the last may be shorter) and runs `task(i, chunk)` on each.
    pub fn for_each_chunk<T: Send>(&self, out: &mut [T], chunk_len: usize, task: impl Fn(usize, &mut [T]) + Sync) {
        let chunk_len = chunk_len.max(1);
        let (len, shared) = (out.len(), DisjointMut::new(out));
        self.for_each(len.div_ceil(chunk_len), |i| {
            let start = i * chunk_len;
            // SAFETY: chunk `i` is taken by task `i` alone, which runs once.
            task(i, unsafe { shared.slice(start..len.min(start + chunk_len)) });
        });
    }

    /// As [`for_each_chunk`](Self::for_each_chunk), with a state for the sole use of the running task.
    ///
    /// # Panics
    ///
    /// If there are chunks but no state.
    pub fn for_each_chunk_with<S: Send, T: Send>(
        &self,
        states: &mut [S],
        out: &mut [T],
        chunk_len: usize,
        task: impl Fn(&mut S, usize, &mut [T]) + Sync,
    ) {
        let chunk_len = chunk_len.max(1);
        let (len, shared) = (out.len(), DisjointMut::new(out));
        self.for_each_with(states, len.div_ceil(chunk_len), |state, i| {
            let start = i * chunk_len;
            // SAFETY: chunk `i` is taken by task `i` alone, which runs once.
            task(state, i, unsafe { shared.slice(start..len.min(start + chunk_len)) });
        });
    }

    /// Cuts the matrices of `grid` inside `out` into tiles and runs `task` on each.
    ///
    /// # Panics
    ///
    /// If the grid does not fit into `out` or if two of its elements share a place.
    pub fn for_each_tile<T: Send>(
        &self,
        out: &mut [T],
        grid: &TileGrid<'_>,
        task: impl Fn(TileAt, TileMut<'_, T>) + Sync,
    ) {
        let mut states = [(); MAX_WORKERS];
        let workers = self.count.min(MAX_WORKERS);
        self.for_each_tile_with(&mut states[..workers], out, grid, |(), at, tile| task(at, tile));
    }

    /// As [`for_each_tile`](Self::for_each_tile), with a state for the sole use of the running task.
    pub fn for_each_tile_with<S: Send, T: Send>(
        &self,
        states: &mut [S],
        out: &mut [T],
        grid: &TileGrid<'_>,
        task: impl Fn(&mut S, TileAt, TileMut<'_, T>) + Sync,
    ) {
        grid.check(out.len());
        let shared = DisjointMut::new(out);
        self.for_each_with(states, grid.tiles(), |state, i| {
            let (at, rows, cols) = grid.tile(i);
            let start = grid.matrix_offset(at.matrix) + at.row * grid.row_stride + at.col;
            // SAFETY: `check` has found that every element of the grid lies in `out` and that no two share a place; tiles
            // are disjoint sets of elements, and each is handed out once.
            task(state, at, unsafe { shared.tile(start, rows, cols, grid.row_stride) });
        });
    }
}

/// Tasks in as many ranges as there are workers. A worker does those of its own range, then what is left of others: tasks of the same place
/// in their order then are done by the same thread in one piece of work after another, and find in its caches what it made before.
struct Ranges {
    tasks: usize,
    /// The next task of each range. They are so far apart that no two share a cache line, or one that is fetched with it.
    next: Vec<[AtomicUsize; 16]>,
}

impl Ranges {
    fn new(tasks: usize, workers: usize) -> Self {
        let mut ranges = Ranges { tasks, next: Vec::new() };
        ranges.next.resize_with(workers, Default::default);
        for i in 0..workers {
            *ranges.next[i][0].get_mut() = ranges.first(i);
        }
        ranges
    }

    /// The first task of range `i`.
    fn first(&self, i: usize) -> usize {
        (i * self.tasks).div_ceil(self.next.len())
    }

    /// Runs `task` with those tasks, on behalf of `worker`, that nobody else has begun.
    fn each(&self, worker: usize, mut task: impl FnMut(usize)) {
        let count = self.next.len();
        for range in (0..count).map(|i| (worker + i) % count) {
            let end = self.first(range + 1);
            while let Some(i) = Some(self.next[range][0].fetch_add(1, Ordering::Relaxed)).filter(|i| *i < end) {
                task(i);
            }
        }
    }
}

fn start(count: usize) -> io::Result<ThreadPool> {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(|i| format!("regraft-{i}"));
    threads.build().map_err(io::Error::other)
}

/// Into how many tasks work is cut for each thread, so that one that falls behind does not hold up the others.
pub(crate) const TASKS_PER_THREAD: usize = 4;

/// No routine uses more workers than this.
pub(crate) const MAX_WORKERS: usize = 256;

/// A mutable slice that several tasks take parts of.
struct DisjointMut<'a, T> {
    ptr: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out `&mut T` to other threads, for which `T: Send` suffices; `slice` makes its callers keep them apart.
unsafe impl<T: Send> Sync for DisjointMut<'_, T> {}

impl<'a, T> DisjointMut<'a, T> {
    fn new(all: &'a mut [T]) -> Self {
        DisjointMut { ptr: all.as_mut_ptr(), len: all.len(), life: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    ///
    /// No two slices that live at the same time may overlap.
    #[expect(clippy::mut_from_ref, reason = "the point of the type; see Safety")]
    unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the assertion; exclusive by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }

    /// The matrix piece whose first element is `start`.
    ///
    /// # Safety
    ///
    /// All its elements must be in bounds, and no two tiles that live at the same time may share one.
    unsafe fn tile(&self, start: usize, rows: usize, cols: usize, row_stride: usize) -> TileMut<'_, T> {
        TileMut { ptr: self.ptr.wrapping_add(start), rows, cols, row_stride, life: PhantomData }
    }
}

/// A family of equal matrices inside one slice, cut into tiles. Matrix `(i, j, ..)` starts at the sum of index times stride over
/// `outer`; its element `(r, c)` stands at `r * row_stride + c` from there.
#[derive(Clone, Copy, Debug)]
pub struct TileGrid<'a> {
    /// `(size, stride)` of every dimension that numbers the matrices, slowest first; empty for one matrix.
    pub outer: &'a [(usize, usize)],
    /// Rows of a matrix.
    pub rows: usize,
    /// Columns of a matrix.
    pub cols: usize,
    /// Distance between rows.
    pub row_stride: usize,
    /// Rows of a tile; the last ones of a matrix may have fewer.
    pub tile_rows: usize,
    /// Columns of a tile; the last ones of a matrix may have fewer.
    pub tile_cols: usize,
}

/// Which tile of a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileAt {
    /// The matrix, counted over `outer` in row-major order.
    pub matrix: usize,
    /// First row.
    pub row: usize,
    /// First column.
    pub col: usize,
}

impl TileGrid<'_> {
    fn matrices(&self) -> usize {
        self.outer.iter().map(|(size, _)| size).product()
    }

    fn across(&self) -> usize {
        self.cols.div_ceil(self.tile_cols.max(1))
    }

    fn down(&self) -> usize {
        self.rows.div_ceil(self.tile_rows.max(1))
    }

    /// The number of tiles.
    pub fn tiles(&self) -> usize {
        self.matrices() * self.down() * self.across()
    }

    /// Where tile `i` is, and its rows and columns. They are numbered down the columns of matrices with more columns than rows, and along
    /// the rows of others: tiles that follow each other, which a thread has, so read less between them of what made the matrix.
    fn tile(&self, i: usize) -> (TileAt, usize, usize) {
        let (down, across) = (self.down(), self.across());
        let (matrix, i) = (i / (across * down), i % (across * down));
        let (row, col) = if self.cols > self.rows { (i % down, i / down) } else { (i / across, i % across) };
        let (row, col) = (row * self.tile_rows.max(1), col * self.tile_cols.max(1));
        let at = TileAt { matrix, row, col };
        (at, self.tile_rows.max(1).min(self.rows - row), self.tile_cols.max(1).min(self.cols - col))
    }

    fn matrix_offset(&self, matrix: usize) -> usize {
        let (mut rest, mut offset) = (matrix, 0);
        for (size, stride) in self.outer.iter().rev() {
            offset += rest % size * stride;
            rest /= size;
        }
        offset
    }

    /// Panics unless every element lies below `len` and all stand apart: with the dimensions in order of stride, each step
    /// leaps over everything inside.
    fn check(&self, len: usize) {
        if self.tiles() == 0 {
            return;
        }
        let mut dims = vec![(self.rows, self.row_stride), (self.cols, 1)];
        dims.extend_from_slice(self.outer);
        dims.retain(|(size, _)| *size > 1);
        dims.sort_by_key(|(_, stride)| *stride);
        let mut extent = 1usize;
        for (size, stride) in dims {
            assert!(stride >= extent, "the elements of a tile grid overlap");
            extent = (size - 1).checked_mul(stride).and_then(|d| d.checked_add(extent)).expect("a tile grid too large");
        }
        assert!(extent <= len, "a tile grid of extent {extent} does not fit into {len} elements");
    }
}

/// A mutable piece of a row-major matrix: `rows` rows of `cols` elements, `row_stride` apart.
#[derive(Debug)]
pub struct TileMut<'a, T> {
    /// Invariant: row `r < rows` is `cols` valid elements at `ptr + r * row_stride` that nobody else uses during `'a`.
    ptr: *mut T,
    rows: usize,
    cols: usize,
    row_stride: usize,
    life: PhantomData<&'a mut T>,
}

// SAFETY: a `TileMut` is a family of `&mut [T]`.
unsafe impl<T: Send> Send for TileMut<'_, T> {}

impl<'a, T> TileMut<'a, T> {
    /// The matrix at the beginning of `data`.
    ///
    /// # Panics
    ///
    /// If it does not fit or its rows overlap.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        let grid = TileGrid { outer: &[], rows, cols, row_stride, tile_rows: rows, tile_cols: cols };
        grid.check(data.len());
        TileMut { ptr: data.as_mut_ptr(), rows, cols, row_stride, life: PhantomData }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Distance between rows.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// The first element; row `r` starts `r * row_stride` further.
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.ptr
    }

    /// The same tile, if its elements are of type `U`.
    #[inline]
    pub fn cast<U: 'static>(&mut self) -> Option<TileMut<'_, U>>
    where
        T: 'static,
    {
        let TileMut { ptr, rows, cols, row_stride, .. } = *self;
        let same = TypeId::of::<T>() == TypeId::of::<U>();
        same.then_some(TileMut { ptr: ptr.cast(), rows, cols, row_stride, life: PhantomData })
    }

    /// Row `r`.
    #[inline]
    pub fn row(&mut self, r: usize) -> &mut [T] {
        assert!(r < self.rows);
        // SAFETY: the row is valid and ours alone by the invariant of `ptr`; `&mut self` keeps it apart from other rows.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.wrapping_add(r * self.row_stride), self.cols) }
    }

    /// All elements, if they follow each other.
    #[inline]
    pub fn contiguous(&mut self) -> Option<&mut [T]> {
        // SAFETY: the rows are valid and ours alone by the invariant of `ptr`, and the next one begins where one ends.
        (self.cols == self.row_stride)
            .then(|| unsafe { std::slice::from_raw_parts_mut(self.ptr, self.rows * self.cols) })
    }

    /// The same tile, for a call that gives it back.
    #[inline]
    pub fn again(&mut self) -> TileMut<'_, T> {
        TileMut { life: PhantomData, ..*self }
    }

    /// The part in `rows` and `cols`.
    #[inline]
    pub fn part(&mut self, rows: Range<usize>, cols: Range<usize>) -> TileMut<'_, T> {
        assert!(rows.start <= rows.end && rows.end <= self.rows && cols.start <= cols.end && cols.end <= self.cols);
        let ptr = self.ptr.wrapping_add(rows.start * self.row_stride + cols.start);
        TileMut { ptr, rows: rows.len(), cols: cols.len(), row_stride: self.row_stride, life: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budgets() -> [Threads; 2] {
        [Threads::single(), Threads::new(3).unwrap()]
    }

    #[test]
    fn every_task_runs_once() {
        for threads in budgets() {
            let hits: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
            threads.install(|| threads.for_each(hits.len(), |i| _ = hits[i].fetch_add(1, Ordering::Relaxed)));
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
            threads.for_each(0, |_| unreachable!());
        }
    }

    #[test]
    fn shares_are_even() {
        let threads = Threads::new(2).unwrap();
        assert_eq!(threads.per_task(112, 1), 14);
        assert_eq!(threads.per_task(28, 1), 7);
        assert_eq!(threads.per_task(14, 1), 7);
        assert_eq!(threads.per_task(14, 10), 10);
        assert_eq!(threads.per_task(1, 10), 1);
        assert_eq!(threads.per_task(0, 1), 1);
        assert_eq!(Threads::single().per_task(9, 1), 9);
    }

    #[test]
    fn a_worker_begins_with_its_own_range_and_ends_with_those_of_others() {
        let ranges = Ranges::new(7, 3);
        let mut order = Vec::new();
        ranges.each(1, |i| order.push(i));
        assert_eq!(order, [3, 4, 5, 6, 0, 1, 2]);
        ranges.each(0, |_| unreachable!());
    }

    #[test]
    fn chunks_cover_the_output() {
        for threads in budgets() {
            let mut out = vec![0; 1001];
            threads.for_each_chunk(&mut out, 10, |i, chunk| chunk.fill(i));
            assert!(out.iter().enumerate().all(|(i, x)| *x == i / 10));
        }
    }

    #[test]
    fn tiles_of_interleaved_matrices_cover_the_output() {
        // Two heads of five columns, interleaved within each row, in three batches.
        let grid = TileGrid { outer: &[(3, 70), (2, 5)], rows: 7, cols: 5, row_stride: 10, tile_rows: 3, tile_cols: 2 };
        for threads in budgets() {
            let mut out = vec![0; 3 * 70];
            threads.for_each_tile(&mut out, &grid, |at, mut tile| {
                for r in 0..tile.rows() {
                    for (c, x) in tile.row(r).iter_mut().enumerate() {
                        *x += 1 + at.matrix * 35 + (at.row + r) * 5 + at.col + c;
                    }
                }
            });
            for (i, x) in out.iter().enumerate() {
                let (batch, row, head, col) = (i / 70, i / 10 % 7, i / 5 % 2, i % 5);
                assert_eq!(*x, 1 + (batch * 2 + head) * 35 + row * 5 + col);
            }
        }
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_rows_are_refused() {
        TileMut::new(&mut [0; 100], 4, 5, 4);
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_tile_beyond_the_end_is_refused() {
        TileMut::new(&mut [0; 18], 4, 5, 5);
    }
}
