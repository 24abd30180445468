//! The kernels of the transforms: one generic source for every instruction set, arithmetic type and storage type.
//!
//! ```text
//!   radix pass   R rows at distance h, one register of each:  R loads, log2 R · R additions, R stores;
//!                or R/2 rows, two registers of each
//!   leaf         R registers of a block: the same, then log2 L stages between L lanes (a shuffle and an FMA each)
//!   base         b rows: b² multiply-adds by ±1, after the inputs are copied to L1; most of the large b: `sums`
//! ```
//!
//! Every pass reads one type and writes another, so that the first pass of a half-precision vector widens and the last
//! one narrows. A kernel is compiled with `EDGE` where a scale or signs are at work, and without for all other passes.
//! Passes go from the top bit of the index down, depth first: what a pass leaves behind are independent blocks.
//!
//! A long vector goes through memory once for each pass until a block of it fits into L2, in 8 streams. The hardware
//! does not prefetch them far enough, so a pass over a vector that the caches do not hold prefetches each stream
//! itself. More streams are worse: 64 of them, in one sweep for six stages, lost.
//!
//! The rows of a panel of columns are `2^k` bytes apart and share few sets of every cache, so that a panel stays in
//! no cache but the last, whatever its width. What bounds its passes is how many requests one core has under way, and
//! not memory: each pass therefore prefetches the next row of each stream. Figures and lost experiments:
//! `benches/NOTES.md`.

use std::marker::PhantomData;

use bytemuck::Zeroable;
use pulp::NullaryFnOnce;

use super::edges::Ends;
use super::hadamard::{self, Entries};
use super::plan::{Params, Plan, Radix, max_radix};
use super::registers::{finish_rows, hidden, load, store};
use super::rows::{Raw, Rows, Typed};
use super::sums;
use crate::simd::{Isa, Lanes, Scalar};
use crate::tensor::{DType, Element};

/// Returns −1 in every lane. The value is hidden from the compiler where multiply-adds have units of their own, or it
/// would turn the multiply-add by −1 into a subtraction.
#[inline(always)]
fn minus_one<S: Lanes, T: Scalar>(s: S) -> T::V<S> {
    let minus = <T as Element>::from_f64(-1.0);
    T::vsplat(s, if S::ADDS_BESIDE_FMAS { std::hint::black_box(minus) } else { minus })
}

/// Transforms `v` in place: the `R`-point transform across `R` registers, in every lane. `minus` is [`minus_one`].
///
/// Stages go from the top bit of the index down here, between lanes, and from pass to pass, so that sums are the same
/// whatever the radices and the lanes are.
#[inline(always)]
fn butterflies<const R: usize, S: Lanes, T: Scalar>(s: S, minus: T::V<S>, v: &mut [T::V<S>; R]) {
    let mut h = R / 2;
    while h > 0 {
        for i in 0..R {
            if i & h == 0 {
                let (a, b) = (v[i], v[i + h]);
                v[i] = T::vadd(s, a, b);
                v[i + h] = if S::ADDS_BESIDE_FMAS { T::vfma(s, b, minus, a) } else { T::vsub(s, a, b) };
            }
        }
        h /= 2;
    }
}

/// Returns `v` after the stages between lanes at distances below `min(len, lanes)`.
#[inline(always)]
fn lane_butterflies<S: Lanes, T: Scalar>(s: S, mut v: T::V<S>, len: usize) -> T::V<S> {
    let len = len.min(T::lanes::<S>());
    if len > 8 {
        v = T::vbutterfly::<8, S>(s, v);
    }
    if len > 4 {
        v = T::vbutterfly::<4, S>(s, v);
    }
    if len > 2 {
        v = T::vbutterfly::<2, S>(s, v);
    }
    if len > 1 {
        v = T::vbutterfly::<1, S>(s, v);
    }
    v
}

/// Calls `$kernel!(edge, X, Y)` with the types of `$src` and `$dst`, and whether the pass must be compiled for the edges
/// of a transform. Where it asked that in its loop, half-precision transforms were a tenth slower.
macro_rules! typed {
    (@ $kernel:ident, $edge:literal, $t:ident, $src:expr, $dst:expr) => {
        match ($src, $dst) {
            _ if const { $t::DTYPE.size() == 8 } => $kernel!($edge, $t, $t),
            (DType::F16, DType::F16) => $kernel!($edge, half::f16, half::f16),
            (DType::F16, _) => $kernel!($edge, half::f16, $t),
            (_, DType::F16) => $kernel!($edge, $t, half::f16),
            (DType::BF16, DType::BF16) => $kernel!($edge, half::bf16, half::bf16),
            (DType::BF16, _) => $kernel!($edge, half::bf16, $t),
            (_, DType::BF16) => $kernel!($edge, $t, half::bf16),
            _ => $kernel!($edge, $t, $t),
        }
    };
    ($kernel:ident, $t:ident, $src:expr, $dst:expr, $ends:expr) => {
        match $ends {
            None => typed!(@ $kernel, false, $t, $src.dtype, $dst.dtype),
            Some(_) => typed!(@ $kernel, true, $t, $src.dtype, $dst.dtype),
        }
    };
}

/// Reads `R` registers at a time from `src`, transforms them, and writes them to the same places of `dst`.
///
/// For `B = 1` these are one register of each of rows `0..R`. For `B > 1` they are `B` registers of each of rows `0..R
/// / B`, one from each of `B` neighbouring runs of `run` columns. `width`, the number of columns, is a multiple of the
/// lanes and, for `B > 1`, of `B · run`. `place` has, for `ends`, the number of the first row, the distance of two rows
/// of the pass in rows, and the distance of neighbouring rows in elements.
///
/// # Safety
/// `R / B` rows of `width` elements are readable in `src` and writable in `dst`; the two are equal (address, stride and
/// type) or disjoint. `ends` has signs for all of them; without `EDGE` there are none.
#[inline(always)]
unsafe fn radix_pass<const EDGE: bool, const R: usize, const B: usize, S: Lanes, T: Scalar, X: Element, Y: Element>(
    s: S,
    src: Typed<X>,
    dst: Typed<Y>,
    width: usize,
    run: usize,
    prefetch: Prefetch,
    minus: T::V<S>,
    ends: Option<&Ends<T>>,
    place: [usize; 3],
) {
    let lanes = T::lanes::<S>();
    let run = if B == 1 { width } else { run };
    let [number, h, row_len] = place;
    let ends = if EDGE { ends } else { None };
    let (mut row, mut beside, mut factors) = (0, 0, [[T::zeroed(); R]; 2]);
    if let Some(ends) = ends {
        (row, beside) = (ends.index(h, 0, row_len), ends.index(0, run, row_len));
        // SAFETY: guaranteed by this function's contract: there are signs for the `R / B` rows from this one on.
        factors = unsafe { ends.row_factors::<R, B>(ends.index(number, 0, row_len), row) };
    }
    let skipped = if prefetch.half { lanes } else { 0 };
    debug_assert!(width.is_multiple_of(B * run) && run.is_multiple_of(lanes));
    let mut first = 0;
    while first < width {
        let mut j = first;
        while j < first + run {
            // SAFETY: accessed are columns `j + b·run` to `j + b·run + lanes`, `b < B`, of rows below `R / B`. They are
            // below `width`, which is a multiple of `B · run`, and guaranteed by this function's contract, as are their
            // signs. All loads come before the stores, so `src` may be `dst`. A prefetch may be given any address.
            unsafe {
                let (x, y) = (hidden(src.ptr.add(j)), hidden(dst.ptr.add(j)));
                let mut v = [T::V::<S>::zeroed(); R];
                if prefetch.bytes != 0 && j & skipped == 0 {
                    for i in 0..R {
                        let x = x.wrapping_offset((i / B) as isize * src.stride).wrapping_add(i % B * run);
                        s.prefetch(x.cast::<u8>().wrapping_offset(prefetch.bytes));
                    }
                }
                for (i, v) in v.iter_mut().enumerate() {
                    *v = T::vload::<S, X>(s, x.offset((i / B) as isize * src.stride).add(i % B * run));
                }
                if let Some(ends) = ends {
                    ends.load::<R, B, S>(s, &mut v, &factors, [ends.index(number, j, row_len), row, beside]);
                }
                butterflies::<R, S, T>(s, minus, &mut v);
                if let Some(ends) = ends {
                    ends.store::<R, B, S>(s, &mut v, &factors, [ends.index(number, j, row_len), row, beside]);
                }
                for (i, v) in v.into_iter().enumerate() {
                    T::vstore::<S, Y>(s, y.offset((i / B) as isize * dst.stride).add(i % B * run), v);
                }
            }
            j += lanes;
        }
        first += B * run;
    }
}

/// What a pass prefetches while it works.
#[derive(Debug, Clone, Copy)]
struct Prefetch {
    /// Distance from the elements that the pass reads to those that it prefetches, in bytes; 0 for no prefetch.
    bytes: isize,
    /// Whether only every second register is prefetched, because the leaves prefetch all of them. Requests that are
    /// spread over two passes find memory idle and do not wait for each other.
    half: bool,
}

impl Prefetch {
    const NONE: Prefetch = Prefetch { bytes: 0, half: false };

    /// Returns what `plan` says for a pass over rows that are `h` elements apart.
    fn planned(plan: &Plan, h: usize) -> Prefetch {
        Prefetch { bytes: if h >= plan.far { plan.ahead as isize } else { 0 }, half: false }
    }

    /// Prefetches the next row of each row that is read, in a pass over a panel of `bytes`. The hardware does not
    /// foresee rows that lie far apart. A panel that fits into the cache needs no prefetch.
    fn next_row(rows: Rows, bytes: usize, params: &Params) -> Prefetch {
        let next = if bytes > params.ahead_bytes { rows.stride * rows.at.dtype.size() as isize } else { 0 };
        Prefetch { bytes: next, half: false }
    }
}

/// Runs [`radix_pass`] on `blocks` adjacent blocks of `R / B · h` rows: in each, on the `h` interleaved sets of rows.
///
/// A pass is the unit of code: it is compiled once for each instruction set and types, and called. Whole transforms
/// inlined take minutes to compile and gain nothing.
struct RadixPass<'a, const EDGE: bool, const R: usize, const B: usize, S, T, X, Y> {
    s: S,
    blocks: usize,
    h: usize,
    src: Rows,
    dst: Rows,
    width: usize,
    run: usize,
    prefetch: Prefetch,
    ends: Option<&'a Ends<T>>,
    types: PhantomData<(X, Y)>,
}

impl<const EDGE: bool, const R: usize, const B: usize, S: Lanes, T: Scalar, X: Element, Y: Element> NullaryFnOnce
    for RadixPass<'_, EDGE, R, B, S, T, X, Y>
{
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let RadixPass { s, blocks, h, src, dst, width, run, prefetch, ends, .. } = self;
        let (src, dst, row_len) = (src.typed::<X>(), dst.typed::<Y>(), src.stride as usize);
        let minus = minus_one::<S, T>(s);
        for block in 0..blocks {
            for i in block * (R / B) * h..block * (R / B) * h + h {
                let (src, dst, place) = (src.from(i, h), dst.from(i, h), [i, h, row_len]);
                // SAFETY: rows `i + h·t`, `t < R / B`, lie in this block. `radix_passes`, which alone makes this
                // kernel, has the caller's promise that all rows of all blocks are accessible and have signs, and makes
                // it for their types.
                unsafe { radix_pass::<EDGE, R, B, S, T, X, Y>(s, src, dst, width, run, prefetch, minus, ends, place) };
            }
        }
    }
}

/// Does the stages of `radix` on `blocks` adjacent blocks of `2^radix.rows · h` rows: between rows `h` apart and, if
/// `radix` takes more than one register of a row, between neighbouring runs of `run` columns. A row has `width`
/// elements, a multiple of the lanes. `ends` are those of this pass.
///
/// # Safety
/// All these rows are readable in `src` and writable in `dst`; the two are equal (address, stride and type) or
/// disjoint. `ends` has signs for all of them.
unsafe fn radix_passes<S: Lanes, T: Scalar>(
    s: S,
    radix: Radix,
    blocks: usize,
    h: usize,
    src: Rows,
    dst: Rows,
    width: usize,
    run: usize,
    prefetch: Prefetch,
    ends: Option<&Ends<T>>,
) {
    macro_rules! radix {
        ($r:literal, $b:literal) => {{
            macro_rules! pass {
                ($edge:literal, $x:ty, $y:ty) => {
                    s.vectorize(RadixPass::<$edge, $r, $b, S, T, $x, $y> {
                        s,
                        blocks,
                        h,
                        src,
                        dst,
                        width,
                        run,
                        prefetch,
                        ends,
                        types: PhantomData,
                    })
                };
            }
            typed!(pass, T, src.at, dst.at, ends)
        }};
    }
    match (radix.rows, radix.beside) {
        (0, 0) => radix!(1, 1),
        (1, 0) => radix!(2, 1),
        (2, 0) => radix!(4, 1),
        _ if const { max_radix(registers::<S>()) < 3 } => unreachable!("radix {radix}"),
        (3, 0) => radix!(8, 1),
        _ if const { max_radix(registers::<S>()) < 4 } => unreachable!("radix {radix}"),
        (3, _) => radix!(16, 2),
        _ => radix!(16, 1),
    }
}

/// Transforms the columns of each of `blocks` adjacent blocks of `len` rows of `width` elements, depth first while the
/// blocks together are larger than L1. The first pass reads `src`, the last writes `dst`; between them the rows are in
/// `work`, which they overwrite if there is more than one pass. `ends` are those of the first and the last pass.
///
/// # Safety
/// `src`, `dst` and `work` have all these rows, accessible, of `width` elements, a multiple of the lanes; any two of
/// them are equal (address, stride and type) or disjoint. `len = 2^Σradices`. `ends` has signs for all rows.
pub(super) unsafe fn columns<S: Lanes, T: Scalar>(
    s: S,
    radices: &[Radix],
    [blocks, len]: [usize; 2],
    src: Rows,
    dst: Rows,
    work: Rows,
    width: usize,
    params: &Params,
    ends: Option<&Ends<T>>,
) {
    // SAFETY: guaranteed by this function's contract: block `i` begins at row `i * len`; a pass covers all rows of all
    // blocks and leaves `2^first.rows` times as many blocks of `h` rows.
    unsafe {
        if blocks > 1 && blocks * len * width * size_of::<T>() > params.l1_bytes {
            for i in 0..blocks {
                let (src, dst, work) = (src.row(i * len), dst.row(i * len), work.row(i * len));
                let ends = ends.map(|ends| ends.from(i * len));
                columns::<S, T>(s, radices, [1, len], src, dst, work, width, params, ends.as_ref());
            }
            return;
        }
        // Rows of scratch are adjacent, and need no prefetch.
        let prefetch = match src.stride.unsigned_abs() == width {
            true => Prefetch::NONE,
            false => Prefetch::next_row(src, blocks * len * width * src.at.dtype.size(), params),
        };
        match *radices {
            // There is no stage, but there may be signs, or another type.
            [] if std::ptr::eq(src.at.ptr, dst.at.ptr) && ends.is_none() => {}
            [] => radix_passes::<S, T>(s, Radix::NONE, blocks, 1, src, dst, width, 0, prefetch, ends),
            [only] => radix_passes::<S, T>(s, only, blocks, len >> only.rows, src, dst, width, 0, prefetch, ends),
            [first, ref rest @ ..] => {
                let (h, now, last) = (len >> first.rows, ends.and_then(Ends::first), ends.and_then(Ends::last));
                radix_passes::<S, T>(s, first, blocks, h, src, work, width, 0, prefetch, now.as_ref());
                let left = [blocks << first.rows, h];
                columns::<S, T>(s, rest, left, work, dst, work, width, params, last.as_ref());
            }
        }
    }
}

/// Returns the number of registers that a kernel may count on. Code of one lane is as long as that of many, and no
/// machine that is in use runs it, so that its kernels are kept short.
pub(super) const fn registers<S: Lanes>() -> usize {
    match S::ISA {
        Isa::Portable => 8,
        _ => <S::Simd as pulp::Simd>::REGISTER_COUNT,
    }
}

/// Width of a tile of the base pass, in registers.
const TILE: usize = 4;

/// Returns the elements of scratch that [`base_pass`] needs for `H_b`.
pub(super) fn base_scratch<S: Lanes, T: Scalar>(b: usize) -> usize {
    if hadamard::is_dense(b) { b * TILE * T::lanes::<S>() } else { sums::scratch::<T>(b) }
}

/// The matrix of a base pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base<T: 'static> {
    /// `H_b`, or the codes of the matrix that is meant.
    pub(super) entries: Entries<T>,
    /// Whether the transpose is meant. Not every `H_b` is symmetric.
    pub(super) transposed: bool,
}

/// Computes `dst = H_b src` on `width` columns, a multiple of the lanes; products with ±1 are exact. `work` is
/// overwritten. Neighbouring rows are `h` elements of the vector apart for `ends`, those of this pass.
///
/// # Safety
/// `b` rows of `width` elements are readable in `src`, of type `T`, and writable in `dst`; the two are equal (address,
/// stride and type) or disjoint. `work` has [`base_scratch`] elements and overlaps neither. `ends` has signs for all.
pub(super) unsafe fn base_pass<S: Lanes, T: Scalar>(
    s: S,
    base: Base<T>,
    src: Rows,
    dst: Rows,
    width: usize,
    work: *mut T,
    h: usize,
    ends: Option<&Ends<T>>,
) {
    debug_assert!(src.at.is::<T>());
    let transposed = base.transposed;
    match base.entries {
        Entries::Dense(entries) => {
            s.vectorize(BasePass { s, entries, transposed, src, dst, width, work, h, ends });
        }
        // SAFETY: guaranteed by this function's contract, which is that of `product`: `base_scratch` is `scratch` here.
        Entries::Sums(sums) => unsafe { sums::product::<S, T>(s, sums, src, dst, width, work, h, ends) },
    }
}

/// The arguments of [`base_pass`] with all entries of `H_b`, row by row, as a kernel.
struct BasePass<'a, S, T> {
    s: S,
    entries: &'a [T],
    transposed: bool,
    src: Rows,
    dst: Rows,
    width: usize,
    work: *mut T,
    h: usize,
    ends: Option<&'a Ends<T>>,
}

impl<S: Lanes, T: Scalar> NullaryFnOnce for BasePass<'_, S, T> {
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let BasePass { s, entries, transposed, src, dst, width, work, h, ends } = self;
        let base = (entries, transposed);
        let lanes = T::lanes::<S>();
        debug_assert_eq!(width % lanes, 0);
        let mut j = 0;
        // SAFETY: tiles partition the columns, of which the number is a multiple of the lanes. `base_pass`, which alone
        // makes this kernel, has the caller's promise for `b` rows of these columns, for their signs and for `work`.
        unsafe {
            while j + TILE * lanes <= width {
                base_tile::<TILE, S, T>(s, base, src.column(j), dst.column(j), work, ends, [j, h]);
                j += TILE * lanes;
            }
            while j < width {
                base_tile::<1, S, T>(s, base, src.column(j), dst.column(j), work, ends, [j, h]);
                j += lanes;
            }
        }
    }
}

/// Does [`base_pass`] on the first `W · lanes` columns. For `ends` they are the columns from `column` on.
///
/// # Safety
/// `b` rows of `W · lanes` elements are readable in `src`, of type `T`, and writable in `dst`; the two are equal
/// (address, stride and type) or disjoint. `work` has `b · W · lanes` elements and overlaps neither. `entries` has `b²`
/// elements, and 4 divides `b`, as it does every base but 1, which has no base pass. `ends` has signs for all elements.
#[inline(always)]
unsafe fn base_tile<const W: usize, S: Lanes, T: Scalar>(
    s: S,
    (entries, transposed): (&[T], bool),
    src: Rows,
    dst: Rows,
    work: *mut T,
    ends: Option<&Ends<T>>,
    [column, h]: [usize; 2],
) {
    let lanes = T::lanes::<S>();
    let b = entries.len().isqrt();
    let (down, right) = if transposed { (1, b) } else { (b, 1) };
    // SAFETY: guaranteed by this function's contract: rows are below `b`, columns below `W · lanes`, places in `work`
    // below `b · W · lanes`, and `i + r < b` because 4 divides `b`, so that entries are below `b²`. All of `src` is
    // read before `dst` is written.
    unsafe {
        for i in 0..b {
            let from = src.row(i).at.ptr.cast::<T>();
            for w in 0..W {
                let v = T::vload::<S, T>(s, from.add(w * lanes));
                T::vstore::<S, T>(s, work.add((i * W + w) * lanes), v);
            }
        }
        // Four rows of output at a time make 16 accumulators.
        for i in (0..b).step_by(4) {
            let mut sums = [[T::V::<S>::zeroed(); W]; 4];
            for j in 0..b {
                let mut x = [T::V::<S>::zeroed(); W];
                for (w, x) in x.iter_mut().enumerate() {
                    *x = T::vload::<S, T>(s, work.add((j * W + w) * lanes));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let sign = T::vsplat(s, *entries.get_unchecked((i + r) * down + j * right));
                    for (sum, &x) in sums.iter_mut().zip(&x) {
                        *sum = T::vfma(s, x, sign, *sum);
                    }
                }
            }
            finish_rows::<W, S, T>(s, sums, dst, ends, [i, column, h]);
        }
    }
}

/// Transforms `count` groups of `R` adjacent runs of `run` elements: leaves of `R` registers, one of each run, with the
/// stages between these registers and all stages between lanes.
struct LeafPass<'a, const EDGE: bool, const R: usize, S, T, X, Y> {
    s: S,
    count: usize,
    run: usize,
    src: Raw,
    dst: Raw,
    /// Distance, in bytes, from each register of `dst` to what is prefetched for the work after this pass.
    next: isize,
    ends: Option<&'a Ends<T>>,
    types: PhantomData<(X, Y)>,
}

impl<const EDGE: bool, const R: usize, S: Lanes, T: Scalar, X: Element, Y: Element> NullaryFnOnce
    for LeafPass<'_, EDGE, R, S, T, X, Y>
{
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let LeafPass { s, count, run, src, dst, next, ends, .. } = self;
        let (src, dst) = (src.ptr.cast::<X>(), dst.ptr.cast::<Y>());
        // A leaf has one sign for each lane.
        let factors = [[T::zeroed(); R]; 2];
        let ends = if EDGE { ends } else { None };
        let minus = minus_one::<S, T>(s);
        let lanes = T::lanes::<S>();
        for first in (0..count * R * run).step_by(R * run) {
            let mut j = first;
            while j < first + run {
                // SAFETY: registers are at `j + i·run`, `i < R`, below `count · R · run`. `leaves`, which alone makes
                // this kernel, has the caller's promise for so many elements and signs. All loads of a leaf come before
                // its stores, and a prefetch may be given any address.
                unsafe {
                    let (x, y) = (hidden(src.add(j)), hidden(dst.add(j)));
                    let mut v = [T::V::<S>::zeroed(); R];
                    for (i, v) in v.iter_mut().enumerate() {
                        s.prefetch(y.wrapping_add(i * run).cast::<u8>().wrapping_offset(next));
                        *v = T::vload::<S, X>(s, x.add(i * run));
                    }
                    if let Some(ends) = ends {
                        ends.load::<R, 1, S>(s, &mut v, &factors, [j, run, 0]);
                    }
                    butterflies::<R, S, T>(s, minus, &mut v);
                    // Edges and halves take two loops, because one that narrows to bf16, too, is not unrolled. Others
                    // are faster in one.
                    let two = EDGE || size_of::<Y>() < size_of::<T>();
                    if two {
                        for v in &mut v {
                            *v = lane_butterflies::<S, T>(s, *v, lanes);
                        }
                        if let Some(ends) = ends {
                            ends.store::<R, 1, S>(s, &mut v, &factors, [j, run, 0]);
                        }
                    }
                    for (i, v) in v.into_iter().enumerate() {
                        let v = if two { v } else { lane_butterflies::<S, T>(s, v, lanes) };
                        T::vstore::<S, Y>(s, y.add(i * run), v);
                    }
                }
                j += lanes;
            }
        }
    }
}

/// Transforms `count` groups of `2^log2` adjacent runs of `run` elements, a multiple of the lanes, by leaves of radix
/// `2^log2`, and prefetches what lies `next` bytes behind each register of `dst`.
///
/// # Safety
/// `count·2^log2·run` elements are readable at `src` and writable at `dst`; the two are equal (address and type) or
/// disjoint. `ends` has signs for all of them.
unsafe fn leaves<S: Lanes, T: Scalar>(
    s: S,
    log2: u32,
    count: usize,
    run: usize,
    src: Raw,
    dst: Raw,
    next: isize,
    ends: Option<&Ends<T>>,
) {
    macro_rules! leaf {
        ($r:literal) => {{
            macro_rules! pass {
                ($edge:literal, $x:ty, $y:ty) => {
                    s.vectorize(LeafPass::<$edge, $r, S, T, $x, $y> {
                        s,
                        count,
                        run,
                        src,
                        dst,
                        next,
                        ends,
                        types: PhantomData,
                    })
                };
            }
            typed!(pass, T, src, dst, ends)
        }};
    }
    match log2 {
        0 => leaf!(1),
        1 => leaf!(2),
        2 => leaf!(4),
        _ if const { max_radix(registers::<S>()) < 3 } => unreachable!("radix {}", 1 << log2),
        3 => leaf!(8),
        _ if const { max_radix(registers::<S>()) < 4 } => unreachable!("radix {}", 1 << log2),
        _ => leaf!(16),
    }
}

/// Transforms `count` adjacent vectors of `len` elements, which is less than a register has lanes. A register holds
/// several of them.
struct Short<'a, S, T> {
    s: S,
    len: usize,
    count: usize,
    src: Raw,
    dst: Raw,
    ends: Option<&'a Ends<T>>,
}

impl<S: Lanes, T: Scalar> NullaryFnOnce for Short<'_, S, T> {
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let Short { s, len, count, src, dst, ends } = self;
        let (lanes, all) = (T::lanes::<S>(), count * len);
        let (from, to) = (Rows { at: src, stride: 0 }, Rows { at: dst, stride: 0 });
        let mut factors = [[T::V::<S>::zeroed()]; 2];
        for first in (0..all).step_by(lanes) {
            let (mut v, some) = ([T::V::<S>::zeroed()], lanes.min(all - first));
            // SAFETY: `first + some <= count · len`. `blocks`, which alone makes this kernel, has the caller's promise
            // that so many elements are readable at `src` and writable at `dst`, and have signs. Lanes beyond `some`
            // are not stored.
            unsafe {
                match some == lanes {
                    true => v = load::<1, 1, S, T>(s, from, first, 0),
                    false => src.add(first).read([0, 1], some, bytemuck::cast_slice_mut::<_, T>(&mut v), lanes),
                }
                if let Some(ends) = ends {
                    if first == 0 || !ends.repeats(lanes) {
                        ends.write_factors(first, some, &mut factors);
                    }
                    v[0] = T::vmul(s, v[0], factors[0][0]);
                }
                v[0] = lane_butterflies::<S, T>(s, v[0], len);
                if ends.is_some() {
                    v[0] = T::vmul(s, v[0], factors[1][0]);
                }
                match some == lanes {
                    true => store::<1, 1, S, T>(s, v, to, first, 0),
                    false => dst.add(first).write([0, 1], some, bytemuck::cast_slice::<_, T>(&v), lanes),
                }
            }
        }
    }
}

/// Transforms `count` adjacent blocks of `2^plan.bits()` elements from `src` to `dst`, by way of `work`, which is
/// overwritten.
///
/// Without `ahead`, leaves prefetch the next block. With it, the first pass and the leaves prefetch what lies `ahead`
/// bytes behind the elements, and `dst` is `src`. `ends` are those of the first and the last pass.
///
/// # Safety
/// `count · 2^plan.bits()` elements are readable at `src` and writable at `dst` and `work`; any two of these are equal
/// (address and type) or disjoint. `ends` has signs for all of them.
pub(super) unsafe fn blocks<S: Lanes, T: Scalar>(
    s: S,
    plan: &Plan,
    count: usize,
    src: Raw,
    dst: Raw,
    work: *mut T,
    ahead: Option<isize>,
    ends: Option<&Ends<T>>,
) {
    // SAFETY: guaranteed by this function's contract: the passes cover the `count` blocks and nothing else. The first
    // pass leaves `count << first.rows` blocks of `h` elements in `work`.
    unsafe {
        if 1 << plan.lanes < T::lanes::<S>() {
            return s.vectorize(Short { s, len: 1 << plan.lanes, count, src, dst, ends });
        }
        let lanes = T::lanes::<S>();
        let Some(&first) = plan.inner.first() else {
            return leaves::<S, T>(s, plan.leaf, count, lanes, src, dst, ahead.unwrap_or(0), ends);
        };
        let h = 1usize << plan.bits() >> first.rows;
        let (from, to) = (Rows { at: src, stride: h as isize }, Rows { at: Raw::new(work), stride: h as isize });
        let prefetch = ahead.map_or(Prefetch::planned(plan, h), |bytes| Prefetch { bytes, half: true });
        let (now, last) = (ends.and_then(Ends::first), ends.and_then(Ends::last));
        radix_passes::<S, T>(s, first, count, 1, from, to, h, lanes, prefetch, now.as_ref());
        below::<S, T>(s, plan, 1, count << first.rows, h, dst, work, ahead, last.as_ref());
    }
}

/// Does the first pass of one block on `width` of its columns, from the column that `src` and `work` point to.
///
/// # Safety
/// From there on, `2^plan.inner[0].rows` rows at the distance of that pass have `width` elements that are readable in
/// `src` and writable in `work`; the two are equal (address and type) or disjoint. `width` is a multiple of 16
/// registers. `ends`, which begins at that column, has signs for all of them.
pub(super) unsafe fn first_pass<S: Lanes, T: Scalar>(
    s: S,
    plan: &Plan,
    src: Raw,
    work: *mut T,
    width: usize,
    ends: Option<&Ends<T>>,
) {
    let (first, lanes) = (plan.inner[0], T::lanes::<S>());
    let h = 1usize << plan.bits() >> first.rows;
    // SAFETY: guaranteed by this function's contract; `h` is the distance of the rows of the first pass.
    unsafe {
        let (src, work) = (Rows { at: src, stride: h as isize }, Rows { at: Raw::new(work), stride: h as isize });
        let prefetch = Prefetch::planned(plan, h);
        let ends = ends.and_then(Ends::first);
        radix_passes::<S, T>(s, first, 1, 1, src, work, width, lanes, prefetch, ends.as_ref());
    }
}

/// Does the stages that are left after the first `done` radices, on `blocks` adjacent blocks of `len` elements, from
/// `work` to `dst`, depth first while the blocks together are larger than `plan.l1`. `ahead` is as in [`blocks`];
/// `ends` are those of the last pass.
///
/// # Safety
/// `blocks · len` elements are readable and writable at `work` and writable at `dst`; the two are equal (address and
/// type) or disjoint. `len` is what the first `done` radices leave of `2^plan.bits()`. `ends` has signs for all of
/// them.
pub(super) unsafe fn below<S: Lanes, T: Scalar>(
    s: S,
    plan: &Plan,
    done: usize,
    blocks: usize,
    len: usize,
    dst: Raw,
    work: *mut T,
    ahead: Option<isize>,
    ends: Option<&Ends<T>>,
) {
    // SAFETY: guaranteed by this function's contract: block `i` begins at `i * len`; each pass covers all blocks, and
    // leaves `2^radix.rows` times as many of `h` elements.
    unsafe {
        if blocks > 1 && blocks * len > plan.l1 {
            for i in 0..blocks {
                let ends = ends.map(|ends| ends.from(i * len));
                below::<S, T>(s, plan, done, 1, len, dst.add(i * len), work.add(i * len), ahead, ends.as_ref());
            }
            return;
        }
        // Runs that earlier passes took beside each other have their stages done and now make up one run.
        let run = T::lanes::<S>() << plan.inner[..done].iter().map(|r| r.beside).sum::<u8>();
        let Some(&radix) = plan.inner.get(done) else {
            let count = (blocks * len) / (run << plan.leaf);
            let next = ahead.unwrap_or((blocks * len * dst.dtype.size()) as isize);
            return leaves::<S, T>(s, plan.leaf, count, run, Raw::new(work), dst, next, ends);
        };
        let h = len >> radix.rows;
        let all = Rows { at: Raw::new(work), stride: h as isize };
        radix_passes::<S, T>(s, radix, blocks, 1, all, all, h, run, Prefetch::planned(plan, h), None);
        below::<S, T>(s, plan, done + 1, blocks << radix.rows, h, dst, work, ahead, ends);
    }
}

/// Writes the factors of elements `0..len`: the scale, with the signs of the input, or 1, with those of the output.
///
/// # Safety
/// `len` elements, a multiple of the lanes, are writable at `dst`, and `ends`, which has no factors yet, has their
/// signs.
pub(super) unsafe fn factors<S: Lanes, T: Scalar>(s: S, len: usize, dst: *mut T, ends: Ends<T>) {
    s.vectorize(Factors { s, len, dst, ends })
}

/// The arguments of [`factors`], as a kernel.
struct Factors<S, T> {
    s: S,
    len: usize,
    dst: *mut T,
    ends: Ends<T>,
}

impl<S: Lanes, T: Scalar> NullaryFnOnce for Factors<S, T> {
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let Factors { s, len, dst, ends } = self;
        let none = [[T::zeroed(); 1]; 2];
        for i in (0..len).step_by(T::lanes::<S>()) {
            // SAFETY: registers partition `len` elements, for which `factors` has the caller's promise.
            unsafe {
                let mut one = [T::vsplat(s, T::SIGNS[0])];
                match ends.has_output() {
                    false => ends.load::<1, 1, S>(s, &mut one, &none, [i, 0, 0]),
                    true => ends.store::<1, 1, S>(s, &mut one, &none, [i, 0, 0]),
                }
                T::vstore::<S, T>(s, dst.add(i), one[0]);
            }
        }
    }
}
