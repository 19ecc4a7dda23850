//! Embedding: rows of a table, chosen by index.

use std::{error::Error, fmt};

use super::for_each_row;
use crate::Threads;

/// An index that is not a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadIndex {
    /// Where it stands among the indices.
    pub position: usize,
    /// The index.
    pub id: i64,
    /// The number of rows.
    pub rows: usize,
}

impl fmt::Display for BadIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BadIndex { position, id, rows } = self;
        write!(f, "index {id} at position {position} is not in 0..{rows}, the rows of the embedding table")
    }
}

impl Error for BadIndex {}

/// `out[i] = table[ids[i]]` for rows of `dim` elements; `table` is `[rows, dim]`, `out` is `[ids, dim]`. `out` is untouched if an
/// index is bad.
///
/// # Panics
///
/// If `out` is not `ids.len() * dim` long or the table is no multiple of `dim`.
pub fn embedding<T: Copy + Send + Sync>(
    threads: &Threads,
    table: &[T],
    dim: usize,
    ids: &[i64],
    out: &mut [T],
) -> Result<(), BadIndex> {
    assert_eq!(out.len(), ids.len() * dim);
    assert!(dim > 0 && table.len().is_multiple_of(dim));
    let rows = table.len() / dim;
    let bad = |id: &i64| usize::try_from(*id).map_or(true, |id| id >= rows);
    if let Some(position) = ids.iter().position(bad) {
        return Err(BadIndex { position, id: ids[position], rows });
    }
    for_each_row(threads, out, dim, |i, out| out.copy_from_slice(&table[ids[i] as usize * dim..][..dim]));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_gathered() {
        let table: Vec<i32> = (0..5 * 1000).collect();
        let ids: Vec<i64> = (0..200).map(|i| i * 3 % 5).collect();
        for threads in [Threads::single(), Threads::new(2).unwrap()] {
            let mut out = vec![0; 200 * 1000];
            embedding(&threads, &table, 1000, &ids, &mut out).unwrap();
            for (row, id) in out.chunks(1000).zip(&ids) {
                assert_eq!(row, &table[*id as usize * 1000..][..1000]);
            }
        }
    }

    #[test]
    fn a_bad_index_is_named() {
        let mut out = [7.0; 4];
        for id in [-1, 3] {
            let error = embedding(&Threads::single(), &[0.0; 6], 2, &[1, id], &mut out).unwrap_err();
            assert_eq!(error, BadIndex { position: 1, id, rows: 3 });
        }
        assert_eq!(out, [7.0; 4]);
    }
}
