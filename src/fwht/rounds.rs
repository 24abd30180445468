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

use pulp::NullaryFnOnce;

use super::edges::{Axis, Edges, Ends, Signs};
use super::passes;
use super::plan::{Order, Params, Plan};
use super::registers::{load, store};
use super::rows::{Raw, Rows};
use super::run::{Scratch, plan_of};
use crate::parallel::{self, Threads};
use crate::simd::{self, Kernel, Lanes, Portable, Scalar};

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
#[derive(Debug, Clone, Copy)]
pub(super) struct Vectors {
    pub(super) from: Raw,
    pub(super) from_stride: isize,
    pub(super) to: Raw,
    pub(super) to_stride: isize,
    pub(super) n_stride: isize,
    pub(super) count: usize,
}

// SAFETY: these are pointers and numbers, dereferenced only in unsafe functions whose contracts say that the elements
// are valid. Tasks get disjoint vectors.
unsafe impl Send for Vectors {}
// SAFETY: shared, it can only be copied, and then what holds for `Send` holds.
unsafe impl Sync for Vectors {}

impl Vectors {
    /// Returns vectors `first..first + count`.
    fn part(self, first: usize, count: usize) -> Self {
        let (from, to) = (first as isize * self.from_stride, first as isize * self.to_stride);
        Vectors { from: self.from.offset(from), to: self.to.offset(to), count, ..self }
    }
}

/// Does a job on every vector.
///
/// # Safety
/// The vectors that are read and written exist, those that are written are distinct, and each is read where it is
/// written or disjoint from all that is written. Where `job` changes the length they are disjoint, and `n_stride` is 1.
/// `job.signs` covers the bits that are read. `T` is the type in which elements of this type are transformed.
pub(super) unsafe fn batch<T: Scalar>(x: Vectors, job: Job<'_>, threads: Threads) {
    let (isa, params) = (simd::isa(), Params { beside: false, ..Params::default() });
    let vectors = (params.task_len / job.n).max(1);
    let task = |first: usize, count: usize| {
        simd::dispatch(isa, Task::<T> { x: x.part(first, count), job, params, plain: PhantomData });
    };
    if threads.is_one() || x.count * job.n < 2 * params.task_len {
        return task(0, x.count);
    }
    parallel::for_each(threads, x.count.div_ceil(vectors), &|i| {
        task(i * vectors, vectors.min(x.count - i * vectors));
    });
}

/// A job on one thread, as a kernel.
struct Task<'a, T> {
    x: Vectors,
    job: Job<'a>,
    params: Params,
    plain: PhantomData<T>,
}

impl<T: Scalar> Kernel for Task<'_, T> {
    type Output = ();
    fn run<S: Lanes>(self, s: S) {
        let Task { x, job, params, .. } = self;
        let plan = plan_of::<S, T>(job.order, &params);
        let (same, adjacent) = (x.to.is::<T>(), x.n_stride == 1);
        let len = match job.rounds {
            Rounds::Kac if same && adjacent => 0,
            Rounds::Padded if same && !job.inverse => 0,
            Rounds::Kac => job.n,
            Rounds::Padded => job.order.len(),
        };
        let mut scratch = Scratch::<T>::new(len);
        for j in 0..x.count as isize {
            let (from, to) = (x.from.offset(j * x.from_stride), x.to.offset(j * x.to_stride));
            // SAFETY: `batch`, which alone makes this kernel, has the caller's promise that vector `j` exists, of the
            // lengths of the job, and has signs. What is worked in is the place that is written, if that is of the
            // arithmetic type and long enough, or scratch.
            unsafe {
                let work = if len == 0 { to.ptr.cast::<T>() } else { scratch.as_mut_ptr() };
                match job.rounds {
                    Rounds::Kac if adjacent => kac::<S, T>(s, &plan, &job, from, to, work),
                    Rounds::Kac => {
                        from.read([x.n_stride, 0], 1, &mut scratch, 1);
                        let work = scratch.as_mut_ptr();
                        kac::<S, T>(s, &plan, &job, Raw::new(work), Raw::new(work), work);
                        to.write([x.n_stride, 0], 1, &scratch, 1);
                    }
                    Rounds::Padded => padded::<S, T>(s, &plan, &job, from, to, work),
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
unsafe fn kac<S: Lanes, T: Scalar>(s: S, plan: &Plan, job: &Job<'_>, src: Raw, dst: Raw, work: *mut T) {
    let (n, len) = (job.n, job.order.len());
    let scale = 1.0 / (len as f64).sqrt();
    let signs = |round: usize| Some(Signs::new(job.signs, round * n));
    let ends = |scale, input, output| Ends::new(&Edges { scale, input, output }, Axis::Along, 0, usize::MAX);
    let inner = Raw::new(work);
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
                    0 => passes::blocks::<S, T>(s, plan, 1, src, inner, work, None, ends.as_ref()),
                    3 => passes::blocks::<S, T>(s, plan, 1, inner, dst, work, None, ends.as_ref()),
                    _ => passes::blocks::<S, T>(s, plan, 1, inner, inner, work, None, ends.as_ref()),
                }
            }
            return;
        }
        let transform = |round: usize| {
            let work = work.add(if round % 2 == 1 { n - len } else { 0 });
            let window = Raw::new(work);
            passes::blocks::<S, T>(s, plan, 1, window, window, work, None, Some(&ends(scale, None, None)));
        };
        let quarter = 0.25;
        if job.inverse {
            sweep::<true, S, T>(s, n, src, inner, Some(&ends(quarter, None, None)));
            for round in [3, 2, 1] {
                transform(round);
                sweep::<true, S, T>(s, n, inner, inner, Some(&ends(1.0, signs(round), None)));
            }
            passes::blocks::<S, T>(s, plan, 1, inner, dst, work, None, Some(&ends(scale, None, signs(0))));
            let rest = Some(ends(1.0, signs(0), None).from(len));
            sweep::<false, S, T>(s, n - len, inner.add(len), dst.add(len), rest.as_ref());
        } else {
            let first = ends(quarter * scale, signs(0), None);
            passes::blocks::<S, T>(s, plan, 1, src, inner, work, None, Some(&first));
            let rest = Some(ends(quarter, signs(0), None).from(len));
            sweep::<false, S, T>(s, n - len, src.add(len), inner.add(len), rest.as_ref());
            for round in [0, 1, 2] {
                if round > 0 {
                    transform(round);
                }
                sweep::<true, S, T>(s, n, inner, inner, Some(&ends(1.0, None, signs(round + 1))));
            }
            transform(3);
            sweep::<true, S, T>(s, n, inner, dst, None);
        }
    }
}

/// Does the transform of `n` elements and zeros, or its transpose.
///
/// # Safety
/// With `W` the length of `job.order`: `job.n` elements are readable at `src` and `W` writable at `dst`, or for the
/// inverse the other way round; `src` is disjoint from `dst`. `work` has `W` elements and is disjoint from both, or is
/// `dst` (address and type) and the job is no inverse. `plan` is for `job.order`, and the signs cover `W` elements.
unsafe fn padded<S: Lanes, T: Scalar>(s: S, plan: &Plan, job: &Job<'_>, src: Raw, dst: Raw, work: *mut T) {
    let (n, len) = (job.n, job.order.len());
    let (scale, signs, inner) = (1.0 / (len as f64).sqrt(), Some(Signs::new(job.signs, 0)), Raw::new(work));
    let ends = |input, output| Some(Ends::new(&Edges { scale, input, output }, Axis::Along, 0, usize::MAX));
    // SAFETY: guaranteed by this function's contract: sweeps are of `n` elements, and what is transformed has `W`.
    unsafe {
        if job.inverse {
            passes::blocks::<S, T>(s, plan, 1, src, inner, work, None, ends(None, signs).as_ref());
            sweep::<false, S, T>(s, n, inner, dst, None);
        } else {
            sweep::<false, S, T>(s, n, src, inner, None);
            work.add(n).write_bytes(0, len - n);
            passes::blocks::<S, T>(s, plan, 1, inner, dst, work, None, ends(signs, None).as_ref());
        }
    }
}

/// Copies `n` elements from `src` to `dst`, with what `ends` does to them, and if `STEP`, with the step between halves.
///
/// # Safety
/// `n` elements are readable at `src` and writable at `dst`; the two are equal (address and type) or disjoint. `ends`
/// has signs for all of them, one for each lane.
unsafe fn sweep<const STEP: bool, S: Lanes, T: Scalar>(s: S, n: usize, src: Raw, dst: Raw, ends: Option<&Ends<T>>) {
    s.vectorize(Sweep::<STEP, S, T> { s, n, src, dst, ends });
}

/// The arguments of [`sweep`], as a kernel.
struct Sweep<'a, const STEP: bool, S, T> {
    s: S,
    n: usize,
    src: Raw,
    dst: Raw,
    ends: Option<&'a Ends<T>>,
}

impl<const STEP: bool, S: Lanes, T: Scalar> NullaryFnOnce for Sweep<'_, STEP, S, T> {
    type Output = ();
    #[inline(always)]
    fn call(self) {
        let Sweep { s, n, src, dst, ends } = self;
        let items = if STEP { n / 2 } else { n };
        let whole = items - items % T::lanes::<S>();
        // SAFETY: `sweep`, which alone makes this kernel, has the caller's promise for `n` elements. Registers end at
        // `whole`, and what is left goes one by one.
        unsafe {
            sweep_range::<STEP, S, T>(s, 0..whole, n / 2, src, dst, ends);
            sweep_range::<STEP, Portable, T>(Portable, whole..items, n / 2, src, dst, ends);
        }
    }
}

/// Does [`sweep`] on `range`, a multiple of the lanes, and if `STEP`, on what lies `half` behind it.
///
/// # Safety
/// As for [`sweep`], for the elements of the range and those `half` behind them.
#[inline(always)]
unsafe fn sweep_range<const STEP: bool, S: Lanes, T: Scalar>(
    s: S,
    range: std::ops::Range<usize>,
    half: usize,
    src: Raw,
    dst: Raw,
    ends: Option<&Ends<T>>,
) {
    let (lanes, mut i) = (T::lanes::<S>(), range.start);
    while i + 4 * lanes <= range.end {
        // SAFETY: guaranteed by this function's contract for all of the range.
        unsafe { sweep_step::<STEP, 4, 8, S, T>(s, i, half, src, dst, ends) };
        i += 4 * lanes;
    }
    while i < range.end {
        // SAFETY: guaranteed by this function's contract for all of the range, which is a multiple of the lanes.
        unsafe { sweep_step::<STEP, 1, 2, S, T>(s, i, half, src, dst, ends) };
        i += lanes;
    }
}

/// Does [`sweep`] on `R` registers from element `i` on, and if `STEP`, on those `half` behind them; `P` is `2R`.
///
/// # Safety
/// As for [`sweep`], for these elements.
#[inline(always)]
unsafe fn sweep_step<const STEP: bool, const R: usize, const P: usize, S: Lanes, T: Scalar>(
    s: S,
    i: usize,
    half: usize,
    src: Raw,
    dst: Raw,
    ends: Option<&Ends<T>>,
) {
    let lanes = T::lanes::<S>();
    // Registers lie as those of rows that are one register apart, and halves as two runs of each row.
    let stride = lanes as isize;
    let (src, dst) = (Rows { at: src, stride }, Rows { at: dst, stride });
    // SAFETY: guaranteed by this function's contract. All loads come before the stores.
    unsafe {
        if STEP {
            let mut v = load::<P, 2, S, T>(s, src, i, half);
            let factors = [[T::zeroed(); P]; 2];
            if let Some(ends) = ends {
                ends.load::<P, 2, S>(s, &mut v, &factors, [i, lanes, half]);
            }
            for k in (0..P).step_by(2) {
                (v[k], v[k + 1]) = (T::vadd(s, v[k], v[k + 1]), T::vsub(s, v[k], v[k + 1]));
            }
            if let Some(ends) = ends {
                ends.store::<P, 2, S>(s, &mut v, &factors, [i, lanes, half]);
            }
            store::<P, 2, S, T>(s, v, dst, i, half);
        } else {
            let mut v = load::<R, 1, S, T>(s, src, i, 0);
            let factors = [[T::zeroed(); R]; 2];
            if let Some(ends) = ends {
                ends.load::<R, 1, S>(s, &mut v, &factors, [i, lanes, 0]);
                ends.store::<R, 1, S>(s, &mut v, &factors, [i, lanes, 0]);
            }
            store::<R, 1, S, T>(s, v, dst, i, 0);
        }
    }
}
