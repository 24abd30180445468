//! The kernels: one generic source for every instruction set, arithmetic type and storage type.
//!
//! ```text
//!   radix pass   R rows at stride h, one register of each:  R loads, log2 R · R additions, R stores;
//!                or R/2 rows, two registers of each
//!   leaf         R registers of a block: as above, then log2 L stages between lanes (a shuffle and an FMA each)
//!   base         b rows: b² multiply-adds by ±1, inputs copied to L1 first
//! ```
//!
//! A long vector goes through memory once for each pass until a block of it fits into L2, in 8 streams. The hardware does not
//! prefetch them far enough: from 32 MiB on each pass asks for what it will read 2 KiB later in every stream (0.73 to 0.92 of
//! the time; shorter vectors, which L3 holds, took 1.02 to 1.1 times as long with it). The outer six stages in one sweep
//! instead, panels of 64 rows through scratch in L1 or L2, cost a sweep less and took 1.05 to 1.4 times as long from 2^22 on
//! (rows of 128 bytes to 4 KiB, the next panel prefetched): 64 streams are too many.
//!
//! Columns are as hard on caches as a vector can be on memory: rows 2^k bytes apart share few sets, so that a panel of
//! 4096 rows 16 KiB apart lives in L3 whatever its size. 4096 × 4096 in f32 takes 1.2 to 1.3 times two bare sweeps over its
//! panels, one from memory and one from L3, in the same 8 streams with the same prefetches, and these 1.3 to 1.5 times a
//! scaling of the matrix from end to end where that takes 2.1 ms on two cores, 1.8 times where it takes 1.4. Of the time the
//! first pass, from memory, has 0.46 and the second, from L3, 0.29. One core on its half alone takes 0.8 to 0.95 of what two
//! take: it is not memory that bounds but what one core has under way.
//!
//! ```text
//!   tried and lost, times as long        16 rows at a time, a pass less                                   1.25
//!                                        the panel through scratch; with stores past the caches           1.3; 1
//!                                        two sweeps by tiles of 64 rows × 256 bytes through L1            1.55
//!                                        the last two passes by such tiles                                1.1 to 1.2
//!                                        the next panel asked for in the last two passes                  0.9 to 1.08
//!                                        its first pass, step by step between the later ones of this      1.2
//!                                        threads half a panel apart                                       0.96 to 1.03
//! ```
//!
//! Every pass reads one type and writes another, so that the first pass of a half-precision vector widens and the
//! last one narrows. Passes go from the top bit down, depth first: what a pass leaves behind are independent blocks.

use std::marker::PhantomData;

use bytemuck::Zeroable;
use pulp::NullaryFnOnce;

use super::plan::{Params, Plan, Radix, max_radix};
use crate::simd::{Lanes, Scalar};
use crate::tensor::Element;

/// −1 in every lane, hidden from the compiler, which would turn the multiply-add by it into a subtraction.
#[inline(always)]
fn minus_one<S: Lanes, T: Scalar>(s: S) -> T::V<S> {
    let minus = <T as Element>::from_f64(-1.0);
    T::vsplat(s, if S::ADDS_BESIDE_FMAS { std::hint::black_box(minus) } else { minus })
}

/// `at`, hidden from the compiler, which would keep a pointer to each row, twice as many as there are registers, on the
/// stack and advance them all: 1.2 times as long.
#[inline(always)]
fn hidden<E>(at: *mut E) -> *mut E {
    std::hint::black_box(at)
}

/// The `R`-point transform across `R` registers.
#[inline(always)]
fn butterflies<const R: usize, S: Lanes, T: Scalar>(s: S, minus: T::V<S>, v: &mut [T::V<S>; R]) {
    let mut h = 1;
    while h < R {
        for i in 0..R {
            if i & h == 0 {
                let (a, b) = (v[i], v[i + h]);
                v[i] = T::vadd(s, a, b);
                v[i + h] = if S::ADDS_BESIDE_FMAS { T::vfma(s, b, minus, a) } else { T::vsub(s, a, b) };
            }
        }
        h *= 2;
    }
}

/// The stages between lanes at distances below `min(len, lanes)`.
#[inline(always)]
fn lane_butterflies<S: Lanes, T: Scalar>(s: S, mut v: T::V<S>, len: usize) -> T::V<S> {
    let len = len.min(T::lanes::<S>());
    if len > 1 {
        v = T::vbutterfly::<1, S>(s, v);
    }
    if len > 2 {
        v = T::vbutterfly::<2, S>(s, v);
    }
    if len > 4 {
        v = T::vbutterfly::<4, S>(s, v);
    }
    if len > 8 {
        v = T::vbutterfly::<8, S>(s, v);
    }
    v
}

/// Where a pass finds or leaves element `(row, column)`: `ptr + row·stride + column`.
#[derive(Debug)]
pub(super) struct Rows<E> {
    pub(super) ptr: *mut E,
    pub(super) stride: isize,
}

impl<E> Clone for Rows<E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Rows<E> {}

impl<E> Rows<E> {
    /// From row `i` on.
    ///
    /// # Safety
    /// Row `i` exists.
    #[inline(always)]
    pub(super) unsafe fn at(self, i: usize) -> Self {
        // SAFETY: the caller's.
        Rows { ptr: unsafe { self.ptr.offset(i as isize * self.stride) }, ..self }
    }

    /// From column `j` on.
    ///
    /// # Safety
    /// Column `j` exists.
    #[inline(always)]
    pub(super) unsafe fn column(self, j: usize) -> Self {
        // SAFETY: the caller's.
        Rows { ptr: unsafe { self.ptr.add(j) }, ..self }
    }

    /// Every `h`-th row.
    #[inline(always)]
    pub(super) fn every(self, h: usize) -> Self {
        Rows { stride: self.stride * h as isize, ..self }
    }
}

/// Transforms `R` registers at a time of `width` columns, a multiple of the lanes: one of each of rows `0..R` of `src`
/// into those of `dst`, or, for `B > 1`, `B` of each of rows `0..R / B`, one in each of `B` runs of `run` columns; then
/// `B · run` divides `width`. Asks for what `ahead` tells.
///
/// # Safety
/// `R / B` rows of `width` are readable in `src` and writable in `dst`; these are equal or disjoint.
#[inline(always)]
unsafe fn radix_pass<const R: usize, const B: usize, S: Lanes, T: Scalar, X: Element, Y: Element>(
    s: S,
    src: Rows<X>,
    dst: Rows<Y>,
    width: usize,
    run: usize,
    ahead: Ahead,
    minus: T::V<S>,
) {
    let lanes = T::lanes::<S>();
    let run = if B == 1 { width } else { run };
    let skipped = if ahead.half { lanes } else { 0 };
    debug_assert!(width.is_multiple_of(B * run) && run.is_multiple_of(lanes));
    let mut first = 0;
    while first < width {
        let mut j = first;
        while j < first + run {
            // SAFETY: columns `j + b·run` to `j + b·run + lanes`, `b < B`, of rows below `R / B`.
            unsafe {
                let (x, y) = (hidden(src.ptr.add(j)), hidden(dst.ptr.add(j)));
                let mut v = [T::V::<S>::zeroed(); R];
                if ahead.bytes != 0 && j & skipped == 0 {
                    for i in 0..R {
                        let x = x.wrapping_offset((i / B) as isize * src.stride).wrapping_add(i % B * run);
                        s.prefetch(x.cast::<u8>().wrapping_offset(ahead.bytes));
                    }
                }
                for (i, v) in v.iter_mut().enumerate() {
                    *v = T::vload::<S, X>(s, x.offset((i / B) as isize * src.stride).add(i % B * run));
                }
                butterflies::<R, S, T>(s, minus, &mut v);
                for (i, v) in v.into_iter().enumerate() {
                    T::vstore::<S, Y>(s, y.offset((i / B) as isize * dst.stride).add(i % B * run), v);
                }
            }
            j += lanes;
        }
        first += B * run;
    }
}

/// What a pass asks memory for while it works.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    /// What lies so many bytes behind the elements that it reads; nothing if 0.
    bytes: isize,
    /// Every second register of that only: a later pass asks for all. Spread over two passes, requests find memory idle
    /// and do not wait for each other: an SRHT of 4096 × 4096 took 0.8 of the time.
    half: bool,
}

impl Ahead {
    const NOTHING: Ahead = Ahead { bytes: 0, half: false };

    /// Of a pass over rows `h` elements apart: what `plan` says.
    fn of(plan: &Plan, h: usize) -> Ahead {
        Ahead { bytes: if h >= plan.far { plan.ahead as isize } else { 0 }, half: false }
    }

    /// Of a pass over a panel of `bytes`: of each row the next one. No other prefetcher foresees rows that lie far apart.
    fn next_row<E>(rows: Rows<E>, bytes: usize, params: &Params) -> Ahead {
        let next = if bytes > params.ahead_bytes { rows.stride * size_of::<E>() as isize } else { 0 };
        Ahead { bytes: next, half: false }
    }
}

/// [`radix_pass`] on each of the `h` interleaved sets of rows of `blocks` blocks of `R / B · h` rows.
///
/// Passes are the unit of code: each is compiled once per instruction set and types, and called. Inlining whole
/// transforms instead gained nothing and took minutes to compile.
struct RadixPass<const R: usize, const B: usize, S, T, X, Y> {
    s: S,
    blocks: usize,
    h: usize,
    src: Rows<X>,
    dst: Rows<Y>,
    width: usize,
    run: usize,
    ahead: Ahead,
    plain: PhantomData<T>,
}

impl<const R: usize, const B: usize, S: Lanes, T: Scalar, X: Element, Y: Element> NullaryFnOnce
    for RadixPass<R, B, S, T, X, Y>
{
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let RadixPass { s, blocks, h, src, dst, width, run, ahead, .. } = self;
        let minus = minus_one::<S, T>(s);
        for block in 0..blocks {
            for i in block * (R / B) * h..block * (R / B) * h + h {
                // SAFETY: rows `i + h·t`, `t < R / B`, of the block; `radix_passes` hands on its caller's promise.
                unsafe {
                    radix_pass::<R, B, S, T, X, Y>(s, src.at(i).every(h), dst.at(i).every(h), width, run, ahead, minus);
                }
            }
        }
    }
}

/// The stages of `radix` at row distance `h` of `blocks` blocks of `2^rows·h` rows of `width`, a multiple of the lanes,
/// and between runs of `run` columns if it takes more than one register of a row.
///
/// # Safety
/// All these rows are readable in `src` and writable in `dst`; the two are equal (address, stride, type) or disjoint.
unsafe fn radix_passes<S: Lanes, T: Scalar, X: Element, Y: Element>(
    s: S,
    radix: Radix,
    blocks: usize,
    h: usize,
    src: Rows<X>,
    dst: Rows<Y>,
    width: usize,
    run: usize,
    ahead: Ahead,
) {
    macro_rules! radix {
        ($r:literal, $b:literal) => {
            s.vectorize(RadixPass::<$r, $b, S, T, X, Y> {
                s,
                blocks,
                h,
                src,
                dst,
                width,
                run,
                ahead,
                plain: PhantomData,
            })
        };
    }
    match (radix.rows, radix.beside) {
        (0, 0) => radix!(1, 1),
        (1, 0) => radix!(2, 1),
        (2, 0) => radix!(4, 1),
        (3, 0) => radix!(8, 1),
        _ if max_radix(registers::<S>()) < 4 => unreachable!("radix {radix}"),
        (3, _) => radix!(16, 2),
        _ => radix!(16, 1),
    }
}

/// The vertical transform of `2^Σradices` rows of `width`. The first pass reads `src`, the last writes `dst`; in
/// between the rows live in `work`, depth first. The first asks for rows of `src` ahead if these are many.
///
/// # Safety
/// All three have `2^Σradices` rows of `width`; any two are equal (address, stride and type) or disjoint.
pub(super) unsafe fn columns<S: Lanes, T: Scalar, A: Element, B: Element>(
    s: S,
    radices: &[Radix],
    src: Rows<A>,
    dst: Rows<B>,
    work: Rows<T>,
    width: usize,
    params: &Params,
) {
    let rows = 1usize << radices.iter().map(|r| u32::from(r.rows)).sum::<u32>();
    // SAFETY: each pass covers all rows.
    unsafe {
        match *radices {
            [] => radix_passes::<S, T, A, B>(s, Radix { rows: 0, beside: 0 }, 1, 1, src, dst, width, 0, Ahead::NOTHING),
            [only] => radix_passes::<S, T, A, B>(s, only, 1, 1, src, dst, width, 0, Ahead::NOTHING),
            [first, ref rest @ ..] => {
                let h = rows >> first.rows;
                // What has the type of the arithmetic lies in `work`, row after row.
                let ahead = match A::DTYPE == T::DTYPE {
                    true => Ahead::NOTHING,
                    false => Ahead::next_row(src, rows * width * size_of::<A>(), params),
                };
                radix_passes::<S, T, A, T>(s, first, 1, h, src, work, width, 0, ahead);
                for block in 0..rows / h {
                    let work = work.at(block * h);
                    columns::<S, T, T, B>(s, rest, work, dst.at(block * h), work, width, params);
                }
            }
        }
    }
}

/// The vertical transform of each of `blocks` blocks of `len` rows of `width` in place, depth first while they are larger
/// than L1.
///
/// # Safety
/// All these rows are readable and writable; `radices` are those of `len`; `width` is a multiple of the lanes.
pub(super) unsafe fn columns_in_place<S: Lanes, T: Scalar>(
    s: S,
    radices: &[Radix],
    blocks: usize,
    len: usize,
    rows: Rows<T>,
    width: usize,
    params: &Params,
) {
    let bytes = blocks * len * width * size_of::<T>();
    // SAFETY: each pass covers all rows.
    unsafe {
        if blocks > 1 && bytes > params.l1_bytes {
            for i in 0..blocks {
                columns_in_place::<S, T>(s, radices, 1, len, rows.at(i * len), width, params);
            }
            return;
        }
        let Some((&first, rest)) = radices.split_first() else { return };
        let h = len >> first.rows;
        let ahead = Ahead::next_row(rows, bytes, params);
        radix_passes::<S, T, T, T>(s, first, blocks, h, rows, rows, width, 0, ahead);
        columns_in_place::<S, T>(s, rest, blocks << first.rows, h, rows, width, params);
    }
}

/// Registers that a kernel may count on.
pub(super) fn registers<S: Lanes>() -> usize {
    <S::Simd as pulp::Simd>::REGISTER_COUNT
}

/// Columns of a tile of the base pass, in registers.
const TILE: usize = 4;

/// Scratch of [`base_pass`] for `H_b`, in elements.
pub(super) fn base_scratch<S: Lanes, T: Scalar>(b: usize) -> usize {
    b * TILE * T::lanes::<S>()
}

/// `dst = H_b src` on `width` columns, a multiple of the lanes; `entries` is `H_b`. Products with ±1 are exact.
///
/// # Safety
/// `b` rows of `width` are readable in `src` and writable in `dst`, equal or disjoint; `work` has
/// [`base_scratch`] elements.
pub(super) unsafe fn base_pass<S: Lanes, T: Scalar, A: Element, B: Element>(
    s: S,
    entries: &[T],
    src: Rows<A>,
    dst: Rows<B>,
    width: usize,
    work: *mut T,
) {
    s.vectorize(BasePass { s, entries, src, dst, width, work })
}

struct BasePass<'a, S, T, A, B> {
    s: S,
    entries: &'a [T],
    src: Rows<A>,
    dst: Rows<B>,
    width: usize,
    work: *mut T,
}

impl<S: Lanes, T: Scalar, A: Element, B: Element> NullaryFnOnce for BasePass<'_, S, T, A, B> {
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let BasePass { s, entries, src, dst, width, work } = self;
        let lanes = T::lanes::<S>();
        let b = entries.len().isqrt();
        debug_assert_eq!(width % lanes, 0);
        let mut j = 0;
        // SAFETY: tiles partition the columns; the rest is promised to `base_pass`.
        unsafe {
            while j + TILE * lanes <= width {
                base_tile::<TILE, S, T, A, B>(s, b, entries, src.column(j), dst.column(j), work);
                j += TILE * lanes;
            }
            while j < width {
                base_tile::<1, S, T, A, B>(s, b, entries, src.column(j), dst.column(j), work);
                j += lanes;
            }
        }
    }
}

/// [`base_pass`] on `W` registers of columns.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn base_tile<const W: usize, S: Lanes, T: Scalar, A: Element, B: Element>(
    s: S,
    b: usize,
    entries: &[T],
    src: Rows<A>,
    dst: Rows<B>,
    work: *mut T,
) {
    let lanes = T::lanes::<S>();
    // SAFETY: rows below `b`, columns below `W·lanes`, and so in `work`.
    unsafe {
        for i in 0..b {
            for w in 0..W {
                let v = T::vload::<S, A>(s, src.at(i).ptr.add(w * lanes));
                T::vstore::<S, T>(s, work.add((i * W + w) * lanes), v);
            }
        }
        // Four rows of output at a time: 16 accumulators. All orders are multiples of 4.
        for i in (0..b).step_by(4) {
            let mut sums = [[T::V::<S>::zeroed(); W]; 4];
            for j in 0..b {
                let mut x = [T::V::<S>::zeroed(); W];
                for (w, x) in x.iter_mut().enumerate() {
                    *x = T::vload::<S, T>(s, work.add((j * W + w) * lanes));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let sign = T::vsplat(s, *entries.get_unchecked((i + r) * b + j));
                    for (sum, &x) in sums.iter_mut().zip(&x) {
                        *sum = T::vfma(s, x, sign, *sum);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (w, &sum) in sums.iter().enumerate() {
                    T::vstore::<S, B>(s, dst.at(i + r).ptr.add(w * lanes), sum);
                }
            }
        }
    }
}

/// Leaves of `R` registers each, one of each of `R` runs: the stages between them, and all between lanes. `count` times
/// `R` runs.
struct LeafPass<const R: usize, S, T, A, B> {
    s: S,
    count: usize,
    run: usize,
    src: *const A,
    dst: *mut B,
    /// How far behind `dst` lies what is read after this pass, in bytes.
    next: isize,
    plain: PhantomData<T>,
}

impl<const R: usize, S: Lanes, T: Scalar, A: Element, B: Element> NullaryFnOnce for LeafPass<R, S, T, A, B> {
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let LeafPass { s, count, run, src, dst, next, .. } = self;
        let minus = minus_one::<S, T>(s);
        let lanes = T::lanes::<S>();
        for first in (0..count * R * run).step_by(R * run) {
            let mut j = first;
            while j < first + run {
                // SAFETY: registers at `j + i·run`, `i < R`; `leaves` hands on its caller's promise.
                unsafe {
                    let (x, y) = (hidden(src.add(j).cast_mut()), hidden(dst.add(j)));
                    let mut v = [T::V::<S>::zeroed(); R];
                    for (i, v) in v.iter_mut().enumerate() {
                        s.prefetch(y.wrapping_add(i * run).cast::<u8>().wrapping_offset(next));
                        *v = T::vload::<S, A>(s, x.add(i * run));
                    }
                    butterflies::<R, S, T>(s, minus, &mut v);
                    // Halves in two loops: with the narrowing to bf16 in it one is not unrolled, 1.4 times as long. For others
                    // two take 1.05 times as long.
                    let narrow = size_of::<B>() < size_of::<T>();
                    if narrow {
                        for v in &mut v {
                            *v = lane_butterflies::<S, T>(s, *v, lanes);
                        }
                    }
                    for (i, v) in v.into_iter().enumerate() {
                        let v = if narrow { v } else { lane_butterflies::<S, T>(s, v, lanes) };
                        T::vstore::<S, B>(s, y.add(i * run), v);
                    }
                }
                j += lanes;
            }
        }
    }
}

/// `count` times `2^log2` runs of `run` elements, a multiple of the lanes, with leaves of radix `2^log2`.
///
/// # Safety
/// `count·2^log2·run` elements are readable at `src` and writable at `dst`; these are equal or disjoint.
unsafe fn leaves<S: Lanes, T: Scalar, A: Element, B: Element>(
    s: S,
    log2: u32,
    count: usize,
    run: usize,
    src: *const A,
    dst: *mut B,
    next: isize,
) {
    macro_rules! leaf {
        ($r:literal) => {
            s.vectorize(LeafPass::<$r, S, T, A, B> { s, count, run, src, dst, next, plain: PhantomData })
        };
    }
    match log2 {
        0 => leaf!(1),
        1 => leaf!(2),
        2 => leaf!(4),
        3 => leaf!(8),
        _ if max_radix(registers::<S>()) < 4 => unreachable!("radix {}", 1 << log2),
        _ => leaf!(16),
    }
}

/// `count` adjacent transforms shorter than a register.
struct Short<S, T, A, B> {
    s: S,
    len: usize,
    count: usize,
    src: *const A,
    dst: *mut B,
    plain: PhantomData<T>,
}

impl<S: Lanes, T: Scalar, A: Element, B: Element> NullaryFnOnce for Short<S, T, A, B> {
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let Short { s, len, count, src, dst, .. } = self;
        for first in (0..count * len).step_by(len) {
            let mut v = T::V::<S>::zeroed();
            let lanes: &mut [T] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut v));
            for (i, lane) in lanes[..len].iter_mut().enumerate() {
                // SAFETY: `i < len`; `blocks` hands on its caller's promise.
                *lane = T::from_f64(unsafe { *src.add(first + i) }.to_f64());
            }
            v = lane_butterflies::<S, T>(s, v, len);
            let lanes: &[T] = bytemuck::cast_slice(std::slice::from_ref(&v));
            for (i, lane) in lanes[..len].iter().enumerate() {
                // SAFETY: as above.
                unsafe { *dst.add(first + i) = B::from_f64(Element::to_f64(*lane)) };
            }
        }
    }
}

/// `count` adjacent blocks of `2^(Σinner + leaf + lanes)` elements. The leaves ask for what comes after them; or they and the
/// first pass for what lies `ahead` bytes behind `dst`, which is `src` then.
///
/// # Safety
/// So many are readable at `src` and writable at `dst` and `work`; any two are equal (address and type) or disjoint.
pub(super) unsafe fn blocks<S: Lanes, T: Scalar, A: Element, B: Element>(
    s: S,
    plan: &Plan,
    count: usize,
    src: *mut A,
    dst: *mut B,
    work: *mut T,
    ahead: Option<isize>,
) {
    // SAFETY: each pass covers the blocks.
    unsafe {
        if 1 << plan.lanes < T::lanes::<S>() {
            return s.vectorize(Short::<S, T, A, B> { s, len: 1 << plan.lanes, count, src, dst, plain: PhantomData });
        }
        let lanes = T::lanes::<S>();
        let Some(&first) = plan.inner.first() else {
            return leaves::<S, T, A, B>(s, plan.leaf, count, lanes, src, dst, ahead.unwrap_or(0));
        };
        let h = 1usize << plan.bits() >> first.rows;
        let (from, to) = (Rows { ptr: src, stride: h as isize }, Rows { ptr: work, stride: h as isize });
        let asked = ahead.map_or(Ahead::of(plan, h), |bytes| Ahead { bytes, half: true });
        radix_passes::<S, T, A, T>(s, first, count, 1, from, to, h, lanes, asked);
        below::<S, T, B>(s, plan, 1, count << first.rows, h, dst, work, ahead);
    }
}

/// The first vertical pass of one block, on `width` of its columns from the one that `src` and `work` point to.
///
/// # Safety
/// As [`blocks`]; `width` is a multiple of 16 registers.
pub(super) unsafe fn first_pass<S: Lanes, T: Scalar, A: Element>(
    s: S,
    plan: &Plan,
    src: *mut A,
    work: *mut T,
    width: usize,
) {
    let (first, lanes) = (plan.inner[0], T::lanes::<S>());
    let h = 1usize << plan.bits() >> first.rows;
    // SAFETY: the caller's.
    unsafe {
        let (src, work) = (Rows { ptr: src, stride: h as isize }, Rows { ptr: work, stride: h as isize });
        radix_passes::<S, T, A, T>(s, first, 1, 1, src, work, width, lanes, Ahead::of(plan, h))
    }
}

/// The stages below the first `done` radices of a block: `blocks` of length `len`, depth first while one is larger than
/// `plan.l1` elements.
///
/// # Safety
/// As [`blocks`].
pub(super) unsafe fn below<S: Lanes, T: Scalar, B: Element>(
    s: S,
    plan: &Plan,
    done: usize,
    blocks: usize,
    len: usize,
    dst: *mut B,
    work: *mut T,
    ahead: Option<isize>,
) {
    // SAFETY: each pass covers the blocks.
    unsafe {
        if blocks > 1 && blocks * len > plan.l1 {
            for i in 0..blocks {
                below::<S, T, B>(s, plan, done, 1, len, dst.add(i * len), work.add(i * len), ahead);
            }
            return;
        }
        // What earlier passes took beside each other is done: their registers are now one run.
        let run = T::lanes::<S>() << plan.inner[..done].iter().map(|r| r.beside).sum::<u8>();
        let Some(&radix) = plan.inner.get(done) else {
            let count = (blocks * len) / (run << plan.leaf);
            let next = ahead.unwrap_or((blocks * len * size_of::<B>()) as isize);
            return leaves::<S, T, T, B>(s, plan.leaf, count, run, work, dst, next);
        };
        let h = len >> radix.rows;
        let all = Rows { ptr: work, stride: h as isize };
        radix_passes::<S, T, T, T>(s, radix, blocks, 1, all, all, h, run, Ahead::of(plan, h));
        below::<S, T, B>(s, plan, done + 1, blocks << radix.rows, h, dst, work, ahead);
    }
}
