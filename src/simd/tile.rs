//! The tile of a matrix product: `Y_tile = [Y_tile +] A_strip X_panel`, with all of the tile in registers.
//!
//! ```text
//!                      x   depth × (Q registers), row after row
//!                    ┌──────────┐
//!        depth       │          │         for each k:  load Q registers of x, row k
//!   a  ┌────────┐    ├──────────┤                      for each p:  broadcast a(p, k)
//!    P │        │  · │          │                                   Q multiply-adds
//!      └────────┘    └──────────┘
//! ```
//!
//! **Cost.** `P Q` multiply-adds for `P + Q` loads. P and Q follow from the number of registers: 6 × 2 where there are
//! 16, 14 × 2 where there are 32, so that the multiply-adds are the limit and each of them has a chain of its own.
//!
//! **Source.** K. Goto, R. van de Geijn, Anatomy of high-performance matrix multiplication, 2008.
//!
//! **Why this way.** Rows of `a` lie at a distance that the compiler knows ([`STEP`]), so that one register addresses
//! all of them. The distance is no multiple of a page, or P rows would share one set of L1.

use faer::MatRef;
use pulp::Simd;

use super::{Lanes, Scalar};

/// The distance between the rows of `a`, in elements.
pub(crate) const STEP: usize = MAX_DEPTH + 16;
/// The most columns of `a`.
pub(crate) const MAX_DEPTH: usize = 512;
/// The number of registers side by side in a whole tile.
pub(crate) const WIDTH: usize = 2;

/// Returns the most rows of a tile.
#[inline(always)]
pub(crate) const fn max_rows<S: Lanes>() -> usize {
    if S::Simd::REGISTER_COUNT >= 32 { 14 } else { 6 }
}

/// Lines of memory that are soon to be read: `count` runs of `lines` cache lines, `step` bytes apart. They need not be
/// valid addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ahead {
    /// The first byte of the first run.
    pub(crate) at: *const u8,
    /// The distance between runs, in bytes.
    pub(crate) step: isize,
    /// The number of cache lines of a run.
    pub(crate) lines: usize,
    /// The number of runs.
    pub(crate) count: usize,
}

/// The rows and the depth of a tile, and its number of registers side by side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) depth: usize,
}

/// Computes a tile, `y[p·y_step + j] = [y +] Σ_k a(p, k) x[k·w + j]`, where w is the number of elements in the
/// registers of its width, and prefetches `ahead` meanwhile. It is compiled once for each instruction set and type.
///
/// # Panics
/// If the tile has no rows or more than [`max_rows`], if it has more than [`MAX_DIRECT_ROWS`] and those of `a` are not
/// [`STEP`] apart, if its width is neither 1 nor [`WIDTH`], or a slice is too short.
#[inline(never)]
pub(crate) fn multiply_tile<S: Lanes, T: Scalar>(
    s: S,
    shape: Shape,
    a: MatRef<'_, T>,
    x: &[T],
    (y, y_step): (&mut [T], usize),
    add: bool,
    ahead: Ahead,
) {
    s.vectorize(Tile { s, shape, a, x, y, y_step, add, ahead });
}

/// The most rows of a tile whose rows of `a` lie at any distance.
pub(crate) const MAX_DIRECT_ROWS: usize = 6;

/// The steps along the depth between two prefetches.
const STRIDE: usize = 16;

/// The arguments of [`multiply_tile`].
struct Tile<'a, S, T> {
    s: S,
    shape: Shape,
    a: MatRef<'a, T>,
    x: &'a [T],
    y: &'a mut [T],
    y_step: usize,
    add: bool,
    ahead: Ahead,
}

impl<S: Lanes, T: Scalar> pulp::NullaryFnOnce for Tile<'_, S, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        match self.shape.width {
            1 => self.by_rows::<1>(),
            WIDTH => self.by_rows::<WIDTH>(),
            _ => unreachable!("a tile of one or two registers"),
        }
    }
}

impl<S: Lanes, T: Scalar> Tile<'_, S, T> {
    /// Chooses the tile by its rows.
    #[inline(always)]
    fn by_rows<const Q: usize>(self) {
        let packed = self.a.row_stride() == STEP as isize;
        match self.shape.rows {
            6 if packed => self.multiply::<6, Q, STEP>(),
            1 => self.multiply::<1, Q, 0>(),
            2 => self.multiply::<2, Q, 0>(),
            3 => self.multiply::<3, Q, 0>(),
            4 => self.multiply::<4, Q, 0>(),
            5 => self.multiply::<5, Q, 0>(),
            6 => self.multiply::<6, Q, 0>(),
            // Tests run all tiles everywhere.
            _ if const { !cfg!(test) && max_rows::<S>() <= MAX_DIRECT_ROWS } => unreachable!("a tile of few rows"),
            7 if packed => self.multiply::<7, Q, STEP>(),
            8 if packed => self.multiply::<8, Q, STEP>(),
            9 if packed => self.multiply::<9, Q, STEP>(),
            10 if packed => self.multiply::<10, Q, STEP>(),
            11 if packed => self.multiply::<11, Q, STEP>(),
            12 if packed => self.multiply::<12, Q, STEP>(),
            13 if packed => self.multiply::<13, Q, STEP>(),
            14 if packed => self.multiply::<14, Q, STEP>(),
            _ => unreachable!("a tile that fits in the registers"),
        }
    }

    /// Multiplies P rows and Q registers. The rows of `a` are `D` elements apart, or any number if `D` is 0.
    #[inline(always)]
    fn multiply<const P: usize, const Q: usize, const D: usize>(self) {
        let Tile { s, shape: Shape { depth, .. }, a, x, y, y_step, add, ahead } = self;
        let (lanes, zero) = (T::lanes::<S>(), T::vsplat(s, T::zeroed()));
        let width = Q * lanes;
        let a_step = if D > 0 { D as isize } else { a.row_stride() };
        assert!(a.row_stride() == a_step && a.col_stride() == 1 && a.nrows() >= P && a.ncols() >= depth);
        assert!(x.len() >= depth * width && y.len() >= (P - 1) * y_step + width);
        let mut sums = [[zero; Q]; P];
        let (mut row, mut line, mut left) = (ahead.at, 0, ahead.lines * ahead.count);
        let each = left.div_ceil((depth / STRIDE).max(1));
        let mut first = 0;
        while first < depth {
            let end = depth.min(first + STRIDE);
            for k in first..end {
                // SAFETY: as `k < depth`, by the assertions `depth` rows of `Q` registers are within `x`, and `depth`
                // elements of each of the P rows are within `a`.
                unsafe { add_row::<P, Q, S, T>(s, a.as_ptr().add(k), a_step, x.as_ptr().add(k * width), &mut sums) };
            }
            first = end;
            for _ in 0..each.min(left) {
                s.prefetch(row.wrapping_add(64 * line));
                left -= 1;
                line += 1;
                if line == ahead.lines {
                    (row, line) = (row.wrapping_offset(ahead.step), 0);
                }
            }
        }
        for (p, sums) in sums.iter().enumerate() {
            for (q, &sum) in sums.iter().enumerate() {
                let at = p * y_step + q * lanes;
                // SAFETY: `p < P` and `q < Q`, so that the register ends at most at `(P - 1) * y_step + width`, which
                // is within `y` by the assertion.
                unsafe {
                    let to = y.as_mut_ptr().add(at);
                    let sum = if add { T::vadd(s, T::vload::<S, T>(s, to), sum) } else { sum };
                    T::vstore::<S, T>(s, to, sum);
                }
            }
        }
    }
}

/// Adds to the sums one row of `x`, each times an element of the P rows of `a`.
///
/// # Safety
/// Q registers are readable at `x`, and an element at each of `a + p · step` for `p < P`.
#[inline(always)]
unsafe fn add_row<const P: usize, const Q: usize, S: Lanes, T: Scalar>(
    s: S,
    a: *const T,
    step: isize,
    x: *const T,
    sums: &mut [[T::V<S>; Q]; P],
) {
    let mut row = [T::vsplat(s, T::zeroed()); Q];
    for (q, row) in row.iter_mut().enumerate() {
        // SAFETY: guaranteed by this function's contract: Q registers are readable.
        *row = unsafe { T::vload::<S, T>(s, x.add(q * T::lanes::<S>())) };
    }
    for (p, sums) in sums.iter_mut().enumerate() {
        // SAFETY: guaranteed by this function's contract: `p < P`.
        let factor = T::vsplat(s, unsafe { *a.offset(p as isize * step) });
        for (sum, &x) in sums.iter_mut().zip(&row) {
            *sum = T::vfma(s, factor, x, *sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Kernel, dispatch};

    /// All tiles of one width against the definition, in small integers, which are exact.
    struct AllRows<T> {
        width: usize,
        depth: usize,
        add: bool,
        one: T,
    }

    impl<T: Scalar> Kernel for AllRows<T> {
        type Output = ();
        #[inline(always)]
        fn run<S: Lanes>(self, s: S) {
            let AllRows { width, depth, add, one } = self;
            let w = width * T::lanes::<S>();
            let number = |i: usize| (0..i * 7919 % 13).fold(T::zeroed() - one - one, |x, _| x + one);
            for rows in 1..=14 {
                for step in [STEP, STEP + 3] {
                    if step != STEP && rows > MAX_DIRECT_ROWS {
                        continue;
                    }
                    let a: Vec<T> = (0..rows * step).map(number).collect();
                    let x: Vec<T> = (0..depth * w).map(|i| number(i + 5)).collect();
                    let y_step = w + 2;
                    let before: Vec<T> = (0..rows * y_step).map(|i| number(i + 3)).collect();
                    let mut y = before.clone();
                    let ahead = Ahead { at: a.as_ptr().cast(), step: 64, lines: 2, count: 5 };
                    let shape = Shape { rows, width, depth };
                    let strip = MatRef::from_row_major_slice_with_stride(&a, rows, depth, step);
                    multiply_tile(s, shape, strip, &x, (&mut y, y_step), add, ahead);
                    for p in 0..rows {
                        for j in 0..y_step {
                            let start = if add || j >= w { before[p * y_step + j] } else { T::zeroed() };
                            let depth = if j < w { depth } else { 0 };
                            let want = (0..depth).fold(start, |sum, k| sum + a[p * step + k] * x[k * w + j]);
                            assert!(y[p * y_step + j] == want, "{rows}×{width} depth {depth} ({p}, {j})");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_tile_is_the_product() {
        for isa in Isa::available() {
            for width in [1, WIDTH] {
                for depth in [1, 15, 16, 17, 32, 100, MAX_DEPTH] {
                    for add in [false, true] {
                        dispatch(isa, AllRows { width, depth, add, one: 1f32 });
                        dispatch(isa, AllRows { width, depth, add, one: 1f64 });
                    }
                }
            }
        }
    }
}
