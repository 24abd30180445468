//! Cuts work into blocks of rows by shape, and tells how many threads it is worth.

use faer::{MatMut, Par};
use rayon::prelude::*;

/// A product of fewer multiplications than this runs on one thread: waking others would take about as long.
const MIN_PARALLEL: usize = 1 << 22;

/// Returns the threads for a product of so many multiplications. The blocks, and so the bits, are the same for any
/// number.
pub(crate) fn threads(multiplications: usize, par: Par) -> Par {
    if multiplications < MIN_PARALLEL { Par::Seq } else { par }
}

/// Calls `f` on each item, as one task each if `par` is parallel.
pub(crate) fn for_each<I: Send>(items: Vec<I>, par: Par, f: impl Fn(I) + Sync + Send) {
    match par {
        Par::Seq => items.into_iter().for_each(f),
        Par::Rayon(_) => items.into_par_iter().with_max_len(1).for_each(f),
    }
}

/// Splits a matrix into blocks of at most `rows` rows, each with the number of its first row.
pub(crate) fn strips_of_rows<T>(mut a: MatMut<'_, T>, rows: usize) -> Vec<(usize, MatMut<'_, T>)> {
    let mut strips = Vec::new();
    let mut top = 0;
    while a.nrows() > 0 {
        let rows = rows.min(a.nrows());
        let (strip, below) = a.split_at_row_mut(rows);
        strips.push((top, strip));
        top += rows;
        a = below;
    }
    strips
}

/// Runs `f(i, line i)` over the lines of `buffer`, in parallel if `par` says so.
pub(crate) fn for_each_line<T: Send>(buffer: &mut [T], width: usize, par: Par, f: impl Fn(usize, &mut [T]) + Sync) {
    match par {
        Par::Seq => buffer.chunks_exact_mut(width).enumerate().for_each(|(i, line)| f(i, line)),
        Par::Rayon(_) => {
            let lines = (1usize << 14).div_ceil(width);
            buffer.par_chunks_mut(lines * width).enumerate().for_each(|(chunk, part)| {
                part.chunks_exact_mut(width).enumerate().for_each(|(i, line)| f(chunk * lines + i, line));
            });
        }
    }
}
