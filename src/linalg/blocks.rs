//! Cuts work into blocks of rows by shape, and tells how many threads it is worth.

use faer::Par;

use crate::parallel;

/// A product of fewer multiplications than this runs on one thread: waking others would take about as long.
const MIN_PARALLEL: usize = 1 << 22;

/// Returns the threads for a product of so many multiplications. The blocks, and so the bits, are the same for any
/// number.
pub(crate) fn threads(multiplications: usize, par: Par) -> Par {
    if multiplications < MIN_PARALLEL { Par::Seq } else { par }
}

/// Runs `f(i, line i)` over the lines of `buffer`, in parallel if `par` says so.
pub(crate) fn for_each_line<T: Send>(buffer: &mut [T], width: usize, par: Par, f: impl Fn(usize, &mut [T]) + Sync) {
    let lines = (1usize << 14).div_ceil(width);
    let chunks = buffer.chunks_mut(lines * width).enumerate().collect();
    parallel::for_each_with(
        par,
        chunks,
        || (),
        |(), (chunk, part): (usize, &mut [T])| {
            part.chunks_exact_mut(width).enumerate().for_each(|(i, line)| f(chunk * lines + i, line));
        },
    );
}
