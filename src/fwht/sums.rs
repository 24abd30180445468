//! Multiplies by a large `H_b` with sums of four, a form of the method of four Russians.
//!
//! Four elements have 16 signed sums. A tile, 64 bytes wide, makes a table of them for each group of four rows, and
//! then adds one entry of each group to a row of the product:
//!
//! ```text
//!   table[16 g + p]   ± v_4g ± v_4g+1 ± v_4g+2 ± v_4g+3, minus where bits 0 to 3 of p are set     5 per element
//!   row i             Σ_g table[16 g + p(i, g)]                                                    b / 4 per element
//! ```
//!
//! At most [`GROUPS`] groups are in the table at a time, so that it stays in L1; sums over several tables are kept
//! beside it. Four rows are summed at once, which makes chains enough to hide the latency of an addition.
//!
//! **Cost.** `b/4 + 5` additions per element of the vector, where entry by entry takes `b` multiply-adds; one load for
//! each; `b²/2` bytes of codes, made once. The groups are added from the first to the last, whatever the tables and the
//! instruction set are, so that the bits are the same everywhere. Source: V. L. Arlazarov, E. A. Dinic, M. A. Kronrod
//! and I. A. Faradžev, 1970. Figures: `benches/NOTES.md`.

use bytemuck::Zeroable;
use pulp::NullaryFnOnce;

use super::edges::Ends;
use super::registers::finish_rows;
use super::rows::Rows;
use crate::simd::{Lanes, Scalar};

/// Most groups of four rows in a table: 24 KiB of entries.
const GROUPS: usize = 24;

/// Entries of one group.
const SUMS: usize = 16;

/// Bytes from one entry of the table to the next, and of the columns of a tile.
const SLOT: usize = 64;

const _: () = assert!(GROUPS * SUMS * SLOT <= 1 << 16, "a code has 16 bits");

/// The codes of `H_b`: for each table, each four rows of the product and each group, where in the table the entries of
/// these four rows begin, in bytes.
#[derive(Debug)]
pub(super) struct Sums {
    b: usize,
    codes: Vec<[u16; 4]>,
}

impl Sums {
    /// Encodes the matrix of order `b`, a multiple of 4, with −1 where `minus(row, column)`.
    pub(super) fn new(b: usize, minus: impl Fn(usize, usize) -> bool) -> Self {
        let pattern = |i: usize, g: usize| (0..4).map(|k| usize::from(minus(i, 4 * g + k)) << k).sum::<usize>();
        let mut codes = Vec::with_capacity(b / 4 * (b / 4));
        for groups in tables(b) {
            for i in (0..b).step_by(4) {
                for g in groups.clone() {
                    let slot = |r: usize| SUMS * (g - groups.start) + pattern(i + r, g);
                    codes.push([0, 1, 2, 3].map(|r| (SLOT * slot(r)) as u16));
                }
            }
        }
        Sums { b, codes }
    }
}

/// Returns the groups of each table.
fn tables(b: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let groups = b / 4;
    let tables = groups.div_ceil(GROUPS);
    (0..tables).map(move |t| t * groups / tables..(t + 1) * groups / tables)
}

/// Returns the elements of scratch that [`product`] needs: a table, and the sums that are kept between tables.
pub(super) fn scratch<T: Scalar>(b: usize) -> usize {
    let kept = if b / 4 > GROUPS { b } else { 0 };
    (GROUPS * SUMS + kept) * (SLOT / size_of::<T>())
}

/// Computes `dst = H_b src` on `width` columns, a multiple of the lanes. `work` is overwritten. Neighbouring rows are
/// `h` elements of the vector apart for `ends`.
///
/// # Safety
/// `b` rows of `width` elements are readable in `src`, of type `T`, and writable in `dst`; the two are equal (address,
/// stride and type) or disjoint. `work` has [`scratch`] elements and overlaps neither. `ends` has signs for all
/// elements.
pub(super) unsafe fn product<S: Lanes, T: Scalar>(
    s: S,
    sums: &Sums,
    src: Rows,
    dst: Rows,
    width: usize,
    work: *mut T,
    h: usize,
    ends: Option<&Ends<T>>,
) {
    s.vectorize(Product { s, sums, src, dst, width, work, h, ends })
}

/// The arguments of [`product`], as a kernel.
struct Product<'a, S, T> {
    s: S,
    sums: &'a Sums,
    src: Rows,
    dst: Rows,
    width: usize,
    work: *mut T,
    h: usize,
    ends: Option<&'a Ends<T>>,
}

impl<S: Lanes, T: Scalar> NullaryFnOnce for Product<'_, S, T> {
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let Product { s, sums, src, dst, width, work, h, ends } = self;
        let lanes = T::lanes::<S>();
        let registers = (SLOT / size_of::<T>() / lanes).min(4);
        debug_assert!(width.is_multiple_of(lanes));
        let mut j = 0;
        // SAFETY: tiles partition the columns, of which the number is a multiple of the lanes, and are at most `SLOT`
        // bytes wide. `product`, which alone makes this kernel, has the caller's promise for `b` rows of all these
        // columns, for their signs and for `work`.
        unsafe {
            while j + registers * lanes <= width {
                let (src, dst) = (src.column(j), dst.column(j));
                match registers {
                    1 => tile::<1, S, T>(s, sums, src, dst, work, ends, [j, h]),
                    2 => tile::<2, S, T>(s, sums, src, dst, work, ends, [j, h]),
                    _ => tile::<4, S, T>(s, sums, src, dst, work, ends, [j, h]),
                }
                j += registers * lanes;
            }
            while j < width {
                tile::<1, S, T>(s, sums, src.column(j), dst.column(j), work, ends, [j, h]);
                j += lanes;
            }
        }
    }
}

/// Does [`product`] on the first `W · lanes` columns. For `ends` they are the columns from `column` on.
///
/// # Safety
/// `b` rows of `W · lanes` elements, at most `SLOT` bytes in the arithmetic type, are readable in `src`, of type `T`,
/// and writable in `dst`; the two are equal (address, stride and type) or disjoint. `work` has [`scratch`] elements and
/// overlaps neither. `ends` has signs for all elements.
#[inline(always)]
unsafe fn tile<const W: usize, S: Lanes, T: Scalar>(
    s: S,
    sums: &Sums,
    src: Rows,
    dst: Rows,
    work: *mut T,
    ends: Option<&Ends<T>>,
    [column, h]: [usize; 2],
) {
    let (b, lanes, slot) = (sums.b, T::lanes::<S>(), SLOT / size_of::<T>());
    let (mut codes, mut first) = (sums.codes.as_slice(), true);
    for groups in tables(b) {
        let last = groups.end == b / 4;
        // SAFETY: guaranteed by this function's contract: rows are below `b`, columns below `W · lanes`, which fit a
        // slot. A table has at most `GROUPS` groups of `SUMS` slots, and every code is the place of one of them. Slot
        // `GROUPS · SUMS + i`, `i < b`, is in `work` if there is more than one table, and only then used. The last
        // table is made, and with it all of `src` read, before `dst` is written.
        unsafe {
            for g in groups.clone() {
                let table = work.add((g - groups.start) * SUMS * slot);
                for w in 0..W {
                    let row = |k: usize| T::vload::<S, T>(s, src.row(4 * g + k).at.ptr.cast::<T>().add(w * lanes));
                    four_sums::<S, T>(s, [row(0), row(1), row(2), row(3)], table.add(w * lanes), slot);
                }
            }
            let kept = work.add(GROUPS * SUMS * slot);
            for i in (0..b).step_by(4) {
                let mut total = [[T::V::<S>::zeroed(); W]; 4];
                if !first {
                    for (r, total) in total.iter_mut().enumerate() {
                        for (w, total) in total.iter_mut().enumerate() {
                            *total = T::vload::<S, T>(s, kept.add((i + r) * slot + w * lanes));
                        }
                    }
                }
                let (now, later) = codes.split_at(groups.len());
                codes = later;
                for code in now {
                    for (&at, total) in code.iter().zip(&mut total) {
                        let entry = work.byte_add(at as usize);
                        for (w, total) in total.iter_mut().enumerate() {
                            *total = T::vadd(s, *total, T::vload::<S, T>(s, entry.add(w * lanes)));
                        }
                    }
                }
                if last {
                    finish_rows::<W, S, T>(s, total, dst, ends, [i, column, h]);
                    continue;
                }
                for (r, total) in total.iter().enumerate() {
                    for (w, total) in total.iter().enumerate() {
                        T::vstore::<S, T>(s, kept.add((i + r) * slot + w * lanes), *total);
                    }
                }
            }
        }
        first = false;
    }
}

/// Stores the 16 signed sums of `v`, `slot` elements apart: `v_k` is subtracted in sum `p` if bit `k` of `p` is set.
///
/// # Safety
/// A register is writable at `table + p · slot` for every `p` below [`SUMS`].
#[inline(always)]
unsafe fn four_sums<S: Lanes, T: Scalar>(s: S, v: [T::V<S>; 4], table: *mut T, slot: usize) {
    let minus = |a: T::V<S>| T::vsub(s, T::V::<S>::zeroed(), a);
    let pair = |a: T::V<S>, b: T::V<S>| {
        let (sum, difference) = (T::vadd(s, a, b), T::vsub(s, a, b));
        [sum, minus(difference), difference, minus(sum)]
    };
    let (low, high) = (pair(v[0], v[1]), pair(v[2], v[3]));
    for (p, &high) in high.iter().enumerate() {
        for (q, &low) in low.iter().enumerate() {
            // SAFETY: guaranteed by this function's contract, because `4 p + q` is below 16.
            unsafe { T::vstore::<S, T>(s, table.add((4 * p + q) * slot), T::vadd(s, low, high)) };
        }
    }
}
