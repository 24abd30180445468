//! Rotations that are more than one transform of each vector: rounds with steps between halves, and vectors that are
//! filled up with zeros.
//!
//! ```text
//!   Kac      W = 2^⌊log2 n⌋.  n = W:  four times  x <- H D_r x / √W
//!            n > W:  four times  signs of all; H/√W on the first (r even) or the last (r odd) W; a step:
//!
//!            | a . . . . | b . . . . |        (a, b) <- (a + b, a − b) / √2 at distance n/2
//!              \_________/
//!
//!   Padded   W = 2^⌈log2 n⌉.  y = H D [x; 0] / √W, all W outputs
//! ```
//!
//! The four factors `1/√2` are one exact `1/4` in the first load. A step applies the signs of the round that follows
//! it, so that four light sweeps over `n` elements, and one over the rest of the first window, go with the four
//! transforms, all in cache. Halves are widened by what comes first and rounded by what comes last.
//!
//! Cost: `4 W log2 W + 4 n` additions for a vector, one read and one write of memory. Source: J. Gao et al., RaBitQ,
//! 2024, whose library calls this `FhtKacRotator`.

use std::marker::PhantomData;

use bytemuck::Zeroable;
use pulp::NullaryFnOnce;

use super::edges::{Along, Edge, Edges, Ends, Plain, Signs};
use super::passes;
use super::plan::{Order, Params, Plan};
use super::run::{Scratch, plan_of};
use crate::parallel::{self, Threads};
use crate::simd::{self, Kernel, Lanes, Portable, Scalar};
use crate::tensor::Element;

/// The number of rounds of [`Rounds::Kac`].
pub(crate) const ROUNDS: usize = 4;

/// Which rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounds {
    /// Four rounds on `n` elements; `n` is even or 1.
    Kac,
    /// One transform of `n` elements and zeros.
    Padded,
}

/// What is done to each vector.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) rounds: Rounds,
    /// Whether the transpose is meant, which is the inverse on the range of the rotation.
    pub(super) inverse: bool,
    /// The length of the vectors that the rotation takes.
    pub(super) n: usize,
    /// The order of the transforms: `2^⌊log2 n⌋`, or `2^⌈log2 n⌉` where zeros are added.
    pub(super) order: Order,
    /// The signs of all rounds, one after the other; they cover [`sign_bits`] elements.
    pub(super) signs: &'a [u8],
}

/// Returns how many bits the kernels read.
pub(super) fn sign_bits(rounds: Rounds, n: usize, order: Order) -> usize {
    match rounds {
        Rounds::Kac => ROUNDS * n,
        Rounds::Padded => order.len(),
    }
}

/// Vectors that are read at `from` and written at `to`; element `i` of vector `j` is `i·n_stride + j·stride` behind.
#[derive(Debug)]
pub(super) struct Vectors<E> {
    pub(super) from: *const E,
    pub(super) from_stride: isize,
    pub(super) to: *mut E,
    pub(super) to_stride: isize,
    pub(super) n_stride: isize,
    pub(super) count: usize,
}

impl<E> Clone for Vectors<E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Vectors<E> {}

// SAFETY: these are pointers and numbers, dereferenced only in unsafe functions whose contracts say that the elements
// are valid. Tasks get disjoint vectors.
unsafe impl<E: Send> Send for Vectors<E> {}
// SAFETY: shared, it can only be copied, and then what holds for `Send` holds.
unsafe impl<E: Send> Sync for Vectors<E> {}

impl Vectors<()> {
    /// Returns the same vectors as vectors of elements of type `E`.
    pub(super) fn cast<E: Element>(self) -> Vectors<E> {
        let Vectors { from, from_stride, to, to_stride, n_stride, count } = self;
        Vectors { from: from.cast(), from_stride, to: to.cast(), to_stride, n_stride, count }
    }
}

impl<E> Vectors<E> {
    /// Returns vectors `first..first + count`.
    fn part(self, first: usize, count: usize) -> Self {
        let (from, to) = (first as isize * self.from_stride, first as isize * self.to_stride);
        Vectors { from: self.from.wrapping_offset(from), to: self.to.wrapping_offset(to), count, ..self }
    }
}

/// Does a job on every vector.
///
/// # Safety
/// The vectors that are read and written exist, those that are written are distinct, and each is read where it is
/// written or disjoint from all that is written. Where `job` changes the length they are disjoint, and `n_stride` is 1.
/// `job.signs` covers the bits that are read.
pub(super) unsafe fn batch<T: Scalar, E: Element>(x: Vectors<E>, job: Job<'_>, threads: Threads) {
    let (isa, params) = (simd::isa(), Params { beside: false, ..Params::default() });
    let vectors = (params.task_len / job.n).max(1);
    let task = |first: usize, count: usize| {
        simd::dispatch(isa, Task::<T, E> { x: x.part(first, count), job, params, plain: PhantomData });
    };
    if threads.is_one() || x.count * job.n < 2 * params.task_len {
        return task(0, x.count);
    }
    parallel::for_each(threads, x.count.div_ceil(vectors), &|i| {
        task(i * vectors, vectors.min(x.count - i * vectors));
    });
}

/// A job on one thread, as a kernel.
struct Task<'a, T, E> {
    x: Vectors<E>,
    job: Job<'a>,
    params: Params,
    plain: PhantomData<T>,
}

impl<T: Scalar, E: Element> Kernel for Task<'_, T, E> {
    type Output = ();
    fn run<S: Lanes>(self, s: S) {
        let Task { x, job, params, .. } = self;
        let plan = plan_of::<S, T>(job.order, &params);
        let (same, adjacent) = (E::DTYPE == T::DTYPE, x.n_stride == 1);
        let len = match job.rounds {
            Rounds::Kac if same && adjacent => 0,
            Rounds::Padded if same && !job.inverse => 0,
            Rounds::Kac => job.n,
            Rounds::Padded => job.order.len(),
        };
        let mut scratch = Scratch::<T>::new(len);
        let scratch = scratch.as_mut_ptr();
        for j in 0..x.count as isize {
            let (from, to) = (x.from.wrapping_offset(j * x.from_stride), x.to.wrapping_offset(j * x.to_stride));
            // SAFETY: `batch`, which alone makes this kernel, has the caller's promise that vector `j` exists, of the
            // lengths of the job, and has signs. What is worked in is the place that is written, if that is of the
            // arithmetic type and long enough, or scratch.
            unsafe {
                let work = if len == 0 { to.cast::<T>() } else { scratch };
                match job.rounds {
                    Rounds::Kac if adjacent => kac::<S, T, E, E>(s, &plan, &job, from, to, work),
                    Rounds::Kac => {
                        for i in 0..job.n {
                            *work.add(i) = T::from_f64((*from.wrapping_offset(i as isize * x.n_stride)).to_f64());
                        }
                        kac::<S, T, T, T>(s, &plan, &job, work, work, work);
                        for i in 0..job.n {
                            let to = to.wrapping_offset(i as isize * x.n_stride);
                            *to = E::from_f64(Element::to_f64(*work.add(i)));
                        }
                    }
                    Rounds::Padded => padded::<S, T, E>(s, &plan, &job, from, to, work),
                }
            }
        }
    }
}

/// Does the four rounds on one vector of adjacent elements, from `src` to `dst` by way of `work`, which is overwritten.
///
/// # Safety
/// `job.n` elements are readable at `src` and writable at `dst` and `work`; any two of these are equal (address and
/// type) or disjoint. `plan` is for `job.order`, and the signs cover all rounds.
unsafe fn kac<S: Lanes, T: Scalar, A: Element, B: Element>(
    s: S,
    plan: &Plan,
    job: &Job<'_>,
    src: *const A,
    dst: *mut B,
    work: *mut T,
) {
    let (n, len) = (job.n, job.order.len());
    let scale = 1.0 / (len as f64).sqrt();
    let signs = |round: usize| Some(Signs::new(job.signs, round * n));
    let ends = |scale, input, output| Ends::new(&Edges { scale, input, output }, 0, usize::MAX);
    let src = src.cast_mut();
    let order: [usize; ROUNDS] = if job.inverse { [3, 2, 1, 0] } else { [0, 1, 2, 3] };
    // SAFETY: guaranteed by this function's contract: transforms are of `len <= n` elements, from the first on or up to
    // the last, and sweeps of all. `n` is even where there are steps, because 1 is a power of two.
    unsafe {
        if n == len {
            for (i, &round) in order.iter().enumerate() {
                let ends = match job.inverse {
                    false => Some(ends(scale, signs(round), None)),
                    true => Some(ends(scale, None, signs(round))),
                };
                match i {
                    0 => passes::blocks::<S, T, A, T>(s, plan, 1, src, work, work, None, ends),
                    3 => passes::blocks::<S, T, T, B>(s, plan, 1, work, dst, work, None, ends),
                    _ => passes::blocks::<S, T, T, T>(s, plan, 1, work, work, work, None, ends),
                }
            }
            return;
        }
        let transform = |round: usize| {
            let window = work.add(if round % 2 == 1 { n - len } else { 0 });
            passes::blocks::<S, T, T, T>(s, plan, 1, window, window, window, None, Some(ends(scale, None, None)));
        };
        let quarter = 0.25;
        if job.inverse {
            sweep::<true, S, T, A, T, _>(s, n, src, work, Along::<T, true>(ends(quarter, None, None)));
            for round in [3, 2, 1] {
                transform(round);
                sweep::<true, S, T, T, T, _>(s, n, work, work, Along::<T, true>(ends(1.0, signs(round), None)));
            }
            passes::blocks::<S, T, T, B>(s, plan, 1, work, dst, work, None, Some(ends(scale, None, signs(0))));
            let rest = Along::<T, true>(ends(1.0, signs(0), None).from(len));
            sweep::<false, S, T, T, B, _>(s, n - len, work.add(len), dst.add(len), rest);
        } else {
            let first = ends(quarter * scale, signs(0), None);
            passes::blocks::<S, T, A, T>(s, plan, 1, src, work, work, None, Some(first));
            let rest = Along::<T, true>(ends(quarter, signs(0), None).from(len));
            sweep::<false, S, T, A, T, _>(s, n - len, src.add(len), work.add(len), rest);
            for round in [0, 1, 2] {
                if round > 0 {
                    transform(round);
                }
                sweep::<true, S, T, T, T, _>(s, n, work, work, Along::<T, true>(ends(1.0, None, signs(round + 1))));
            }
            transform(3);
            sweep::<true, S, T, T, B, _>(s, n, work, dst, Plain);
        }
    }
}

/// Does the transform of `n` elements and zeros, or its transpose.
///
/// # Safety
/// With `W` the length of `job.order`: `job.n` elements are readable at `src` and `W` writable at `dst`, or for the
/// inverse the other way round; `src` is disjoint from `dst`. `work` has `W` elements and is disjoint from both, or is
/// `dst` (address and type) and the job is no inverse. `plan` is for `job.order`, and the signs cover `W` elements.
unsafe fn padded<S: Lanes, T: Scalar, E: Element>(
    s: S,
    plan: &Plan,
    job: &Job<'_>,
    src: *const E,
    dst: *mut E,
    work: *mut T,
) {
    let (n, len) = (job.n, job.order.len());
    let (scale, signs, src) = (1.0 / (len as f64).sqrt(), Some(Signs::new(job.signs, 0)), src.cast_mut());
    let ends = |input, output| Some(Ends::new(&Edges { scale, input, output }, 0, usize::MAX));
    // SAFETY: guaranteed by this function's contract: sweeps are of `n` elements, and what is transformed has `W`.
    unsafe {
        if job.inverse {
            passes::blocks::<S, T, E, T>(s, plan, 1, src, work, work, None, ends(None, signs));
            sweep::<false, S, T, T, E, _>(s, n, work, dst, Plain);
        } else {
            sweep::<false, S, T, E, T, _>(s, n, src, work, Plain);
            work.add(n).write_bytes(0, len - n);
            passes::blocks::<S, T, T, E>(s, plan, 1, work, dst, work, None, ends(signs, None));
        }
    }
}

/// Copies `n` elements from `src` to `dst`, with what `edge` does to them, and if `STEP`, with the step between halves.
///
/// # Safety
/// `n` elements are readable at `src` and writable at `dst`; the two are equal (address and type) or disjoint. `edge`
/// has signs for all of them, one for each lane.
unsafe fn sweep<const STEP: bool, S: Lanes, T: Scalar, A: Element, B: Element, G>(
    s: S,
    n: usize,
    src: *const A,
    dst: *mut B,
    edge: G,
) where
    G: Edge<S, T> + Edge<Portable, T>,
{
    s.vectorize(Sweep::<STEP, S, T, A, B, G> { s, n, src, dst, edge, plain: PhantomData });
}

/// The arguments of [`sweep`], as a kernel.
struct Sweep<const STEP: bool, S, T, A, B, G> {
    s: S,
    n: usize,
    src: *const A,
    dst: *mut B,
    edge: G,
    plain: PhantomData<T>,
}

impl<const STEP: bool, S: Lanes, T: Scalar, A: Element, B: Element, G> NullaryFnOnce for Sweep<STEP, S, T, A, B, G>
where
    G: Edge<S, T> + Edge<Portable, T>,
{
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let Sweep { s, n, src, dst, edge, .. } = self;
        let items = if STEP { n / 2 } else { n };
        let whole = items - items % T::lanes::<S>();
        // SAFETY: `sweep`, which alone makes this kernel, has the caller's promise for `n` elements. Registers end at
        // `whole`, and what is left goes one by one.
        unsafe {
            sweep_range::<STEP, S, T, A, B, G>(s, 0..whole, n / 2, src, dst, edge);
            sweep_range::<STEP, Portable, T, A, B, G>(Portable, whole..items, n / 2, src, dst, edge);
        }
    }
}

/// Does [`sweep`] on `range`, a multiple of the lanes, and if `STEP`, on what lies `half` behind it.
///
/// # Safety
/// As for [`sweep`], for the elements of the range and those `half` behind them.
#[inline(always)]
unsafe fn sweep_range<const STEP: bool, S: Lanes, T: Scalar, A: Element, B: Element, G: Edge<S, T>>(
    s: S,
    range: std::ops::Range<usize>,
    half: usize,
    src: *const A,
    dst: *mut B,
    edge: G,
) {
    let (lanes, mut i) = (T::lanes::<S>(), range.start);
    while i + 4 * lanes <= range.end {
        // SAFETY: guaranteed by this function's contract for all of the range.
        unsafe { sweep_step::<STEP, 4, 8, S, T, A, B, G>(s, i, half, src, dst, edge) };
        i += 4 * lanes;
    }
    while i < range.end {
        // SAFETY: guaranteed by this function's contract for all of the range, which is a multiple of the lanes.
        unsafe { sweep_step::<STEP, 1, 2, S, T, A, B, G>(s, i, half, src, dst, edge) };
        i += lanes;
    }
}

/// Does [`sweep`] on `R` registers from element `i` on, and if `STEP`, on those `half` behind them; `P` is `2R`.
///
/// # Safety
/// As for [`sweep`], for these elements.
#[inline(always)]
unsafe fn sweep_step<
    const STEP: bool,
    const R: usize,
    const P: usize,
    S: Lanes,
    T: Scalar,
    A: Element,
    B: Element,
    G: Edge<S, T>,
>(
    s: S,
    i: usize,
    half: usize,
    src: *const A,
    dst: *mut B,
    edge: G,
) {
    let (lanes, pairs, singles) = (T::lanes::<S>(), [[T::zeroed(); P]; 2], [[T::zeroed(); R]; 2]);
    // SAFETY: guaranteed by this function's contract. All loads come before the stores.
    unsafe {
        if STEP {
            let at = |k: usize| i + k / 2 * lanes + k % 2 * half;
            let mut v = [T::V::<S>::zeroed(); P];
            for (k, v) in v.iter_mut().enumerate() {
                *v = T::vload::<S, A>(s, src.add(at(k)));
            }
            edge.load::<P, 2>(s, &mut v, &pairs, [i, lanes, half]);
            for k in (0..P).step_by(2) {
                (v[k], v[k + 1]) = (T::vadd(s, v[k], v[k + 1]), T::vsub(s, v[k], v[k + 1]));
            }
            edge.store::<P, 2>(s, &mut v, &pairs, [i, lanes, half]);
            for (k, v) in v.into_iter().enumerate() {
                T::vstore::<S, B>(s, dst.add(at(k)), v);
            }
        } else {
            let mut v = [T::V::<S>::zeroed(); R];
            for (k, v) in v.iter_mut().enumerate() {
                *v = T::vload::<S, A>(s, src.add(i + k * lanes));
            }
            edge.load::<R, R>(s, &mut v, &singles, [i, 0, lanes]);
            edge.store::<R, R>(s, &mut v, &singles, [i, 0, lanes]);
            for (k, v) in v.into_iter().enumerate() {
                T::vstore::<S, B>(s, dst.add(i + k * lanes), v);
            }
        }
    }
}
