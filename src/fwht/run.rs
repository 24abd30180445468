//! From a batch of vectors to passes: the path that each layout takes, scratch, and threads.
//!
//! ```text
//!   elements of a vector adjacent      rows:    passes in place; halves through scratch of one vector
//!   same element of vectors adjacent   panels:  a panel of columns in place; halves through scratch
//!   neither, or a remainder of a panel gather:  as many vectors as lanes into scratch, or one if they are long
//! ```
//!
//! Work is shared among threads by vectors, by panels, and, inside one long vector, by columns of its first pass and
//! then by the blocks that this leaves. What is computed for a vector does not depend on how work is shared.

use std::cell::Cell;
use std::marker::PhantomData;

use bytemuck::{Pod, Zeroable};

use super::hadamard;
use super::passes::{self, Rows};
use super::plan::{Order, Params, Plan, Radices, max_radix};
use crate::parallel::{self, Threads};
use crate::simd::{self, Kernel, Lanes, Scalar};
use crate::tensor::{Element, TensorMut};

/// A batch of `count` vectors of length `n`: element `i` of vector `j` is at `ptr + i·n_stride + j·stride`.
#[derive(Debug)]
pub(super) struct Batch<E> {
    pub(super) ptr: *mut E,
    pub(super) n: usize,
    pub(super) n_stride: isize,
    pub(super) count: usize,
    pub(super) stride: isize,
}

impl<E> Clone for Batch<E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Batch<E> {}

// SAFETY: a batch is a pointer and numbers. It is dereferenced only in unsafe functions whose contracts say that the
// elements are valid, and tasks get disjoint parts of a batch that is borrowed mutably for the whole transform.
unsafe impl<E: Send> Send for Batch<E> {}
// SAFETY: a shared batch can only be copied, and then what holds for `Send` holds.
unsafe impl<E: Send> Sync for Batch<E> {}

impl Batch<()> {
    /// Returns the rows of a matrix as vectors, without their element type.
    pub(super) fn rows<E: Element>(mut x: TensorMut<'_, E>) -> Self {
        let (n, n_stride, count, stride) = (x.ncols(), x.col_stride(), x.nrows(), x.row_stride());
        Batch { ptr: x.as_mut_ptr().cast(), n, n_stride, count, stride }
    }

    /// Returns the same vectors as vectors of elements of type `E`.
    pub(super) fn cast<E: Element>(self) -> Batch<E> {
        Batch { ptr: self.ptr.cast(), n: self.n, n_stride: self.n_stride, count: self.count, stride: self.stride }
    }
}

impl<E> Batch<E> {
    /// Returns vectors `first..first + count`, as far as they exist.
    fn part(self, first: usize, count: usize) -> Self {
        let ptr = self.ptr.wrapping_offset(first as isize * self.stride);
        Batch { ptr, count: count.min(self.count - first), ..self }
    }

    /// Returns the pointer to element `i` of vector `j`, which is valid if both exist.
    fn element(self, i: usize, j: usize) -> *mut E {
        self.ptr.wrapping_offset(i as isize * self.n_stride + j as isize * self.stride)
    }
}

/// Transforms every vector of a batch in place, unnormalized. The batch is not empty.
///
/// # Safety
/// The batch is valid for reads and writes, its elements are distinct, and `order` is that of its length.
pub(super) unsafe fn batch<T: Scalar, E: Element>(mut x: Batch<E>, order: Order, threads: Threads) {
    if x.n_stride != 1 && x.stride == -1 {
        // Vectors in reverse order are the same batch, and adjacent.
        x.ptr = x.element(0, x.count - 1);
        x.stride = 1;
    }
    let (isa, params) = (simd::isa(), Params::default());
    let elements = x.n * x.count;
    let from_memory = elements * size_of::<E>() >= params.long_bytes && x.n * size_of::<E>() <= params.ahead_bytes;
    if threads.is_one() || elements < 2 * params.task_len {
        return simd::dispatch(isa, Task::<T, E> { x, order, from_memory, params, plain: PhantomData });
    }
    let plan = simd::dispatch(isa, PlanOf::<T> { order, params, plain: PhantomData });
    if x.n_stride == 1 && x.n >= params.long_len && plan.bits() >= params.long_bits && x.count < 2 * parallel::count() {
        // SAFETY: guaranteed by this function's contract: vector `i` exists, and its elements are adjacent.
        return (0..x.count).for_each(|i| unsafe { long::<T, E>(x.part(i, 1), &plan, params) });
    }
    let granule = if x.n_stride == 1 { 1 } else { params.scratch_row_bytes / size_of::<T>() };
    let mut vectors = (params.task_len / x.n).max(1);
    if x.n_stride != 1 {
        // Whole panels, unless that leaves threads without work.
        vectors = vectors.max(panel_width::<T, E>(x.n, &params).min(x.count / (2 * parallel::count())));
    }
    let vectors = vectors.next_multiple_of(granule);
    // The vectors before the first aligned panel are a task of their own.
    let (_, lead) = lead::<T, E>(x, &params);
    let first = usize::from(lead > 0);
    parallel::for_each(threads, first + (x.count - lead).div_ceil(vectors), &|i| {
        let (at, count) = if i < first { (0, lead) } else { (lead + (i - first) * vectors, vectors) };
        simd::dispatch(isa, Task::<T, E> { x: x.part(at, count), order, from_memory, params, plain: PhantomData });
    });
}

/// Transforms every vector of a batch of an arithmetic type in place and divides it by `√n`.
///
/// # Safety
/// The batch is valid for reads and writes, its elements are distinct, and `order` is that of its length.
pub(super) unsafe fn scaled<T: Scalar>(x: Batch<T>, order: Order, threads: Threads) {
    // SAFETY: guaranteed by this function's contract, which is the same.
    unsafe { batch::<T, T>(x, order, threads) };
    let scale = orthonormal_scale(x.n);
    parallel::for_each(threads, x.count, &|j| {
        for i in 0..x.n {
            // SAFETY: element `i` of vector `j` is valid by this function's contract, and vector `j` is this task's
            // alone.
            unsafe {
                let x = x.element(i, j);
                *x = <T as Element>::from_f64(scale * Element::to_f64(*x));
            }
        }
    });
}

/// Transforms every vector of a batch of halves in place and divides it by `√n`. A vector is scaled while it is widened
/// to f32, so that it is rounded once.
///
/// # Safety
/// The batch is valid for reads and writes, its elements are distinct, and `order` is that of its length.
pub(super) unsafe fn scaled_halves<E: Element>(x: Batch<E>, order: Order, threads: Threads) {
    let scale = orthonormal_scale(x.n);
    parallel::for_each(threads, x.count, &|j| {
        // SAFETY: element `i` of vector `j` is valid by this function's contract, and vector `j` is this task's alone.
        let mut wide: Vec<f32> = (0..x.n).map(|i| (scale * unsafe { *x.element(i, j) }.to_f64()) as f32).collect();
        let one = Batch { ptr: wide.as_mut_ptr(), n: x.n, n_stride: 1, count: 1, stride: 1 };
        // SAFETY: `one` is all of `wide`, which nothing else refers to, and has the length of `order`.
        unsafe { batch::<f32, f32>(one, order, Threads::One) };
        for (i, &wide) in wide.iter().enumerate() {
            // SAFETY: element `i` of vector `j` is valid by this function's contract, and vector `j` is this task's
            // alone.
            unsafe { *x.element(i, j) = E::from_f64(wide as f64) };
        }
    });
}

/// Returns `1/√n`, the factor that makes `H_n` orthogonal.
fn orthonormal_scale(n: usize) -> f64 {
    1.0 / (n as f64).sqrt()
}

/// Counts the vectors that come before alignment, for vectors side by side: those before the first that begins a cache
/// line, and those before the first that begins a whole panel of lines.
///
/// Allocators return addresses 16 bytes into a page, and registers that straddle two lines are slow; panels that
/// straddle two pages are a little slow. The vectors before the first line are gathered, which is slow, too, so that
/// both counts are 0 if rows begin at different places within a line, or if there are few vectors and they do not end a
/// line.
fn lead<T: Scalar, E: Element>(x: Batch<E>, params: &Params) -> (usize, usize) {
    let (size, line) = (size_of::<E>(), size_of::<Line>());
    if x.stride != 1 || x.n * line > params.scratch_bytes {
        return (0, 0);
    }
    let before = |bytes: usize| {
        let alike = (x.n_stride.unsigned_abs() * size).is_multiple_of(bytes);
        if alike { (x.ptr as usize).wrapping_neg() % bytes / size } else { 0 }
    };
    let (panel, first) = (panel_width::<T, E>(x.n, params), before(line));
    if x.count >= 2 * panel {
        (first, before(panel * size).max(first))
    } else if (x.element(0, x.count) as usize).is_multiple_of(line) {
        (first, first)
    } else {
        (0, 0)
    }
}

/// Transforms one long vector in place: its first pass, then the blocks that this leaves, then its base, each of them
/// shared among the threads of the pool.
///
/// # Safety
/// `x` is one vector of adjacent elements, valid for reads and writes, of the length that `plan` is for.
unsafe fn long<T: Scalar, E: Element>(x: Batch<E>, plan: &Plan, params: Params) {
    let mut wide: Vec<T> = if E::DTYPE == T::DTYPE { Vec::new() } else { vec![T::zeroed(); x.n] };
    let all = if E::DTYPE == T::DTYPE { x.ptr.cast::<T>() } else { wide.as_mut_ptr() };
    let (base, first) = (plan.order.base(), plan.inner[0].rows);
    let all = Batch { ptr: all, n: x.n, n_stride: 1, count: 1, stride: 1 };
    let share = |stage: Stage, items: usize| {
        let chunk = (params.task_len * items / x.n).max(1);
        parallel::for_each(Threads::Pool, items.div_ceil(chunk), &|i| {
            let items = i * chunk..items.min((i + 1) * chunk);
            simd::dispatch(plan.isa, Part { x: x.element(0, 0), all: all.element(0, 0), plan, stage, items });
        });
    };
    share(Stage::First, base << plan.bits() >> first >> COLUMNS.ilog2());
    share(Stage::Below, base << first);
    if base > 1 {
        share(Stage::Base, 1 << plan.bits() >> COLUMNS.ilog2());
    }
}

/// Number of columns in an item of a stage.
const COLUMNS: usize = 256;

/// A stage of the transform of a long vector of `b` parts. It consists of items that threads can do in any order.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// The first pass of every part. An item is [`COLUMNS`] columns of one part.
    First,
    /// All passes below the first. An item is one of the blocks that the first pass leaves.
    Below,
    /// The base pass. An item is [`COLUMNS`] columns of the matrix whose rows are the `b` parts.
    Base,
}

/// The work of one task: some items of one stage of a long vector. `all` is where the vector is between the stages.
struct Part<'a, T, E> {
    x: *mut E,
    all: *mut T,
    plan: &'a Plan,
    stage: Stage,
    items: std::ops::Range<usize>,
}

impl<T: Scalar, E: Element> Kernel for Part<'_, T, E> {
    type Output = ();
    fn run<S: Lanes>(self, s: S) {
        let Part { x, all, plan, stage, items } = self;
        let (part, base) = (1usize << plan.bits(), plan.order.base());
        let block = part >> plan.inner[0].rows;
        let scratch = if let Stage::Base = stage { passes::base_scratch::<S, T>(base) } else { 0 };
        let mut scratch = Scratch::<T>::new(scratch);
        let scratch = scratch.as_mut_ptr();
        for i in items {
            // SAFETY: `long`, which alone makes this kernel, has the caller's promise that the vector is valid and of
            // the length of the plan. `x` and `all` are equal or disjoint, both of that length. Items of a stage are
            // disjoint parts of it, and `long` waits for a stage before it starts the next. `scratch` has what a base
            // pass needs.
            unsafe {
                match stage {
                    Stage::First => {
                        let at = i * COLUMNS / block * part + i * COLUMNS % block;
                        passes::first_pass::<S, T, E>(s, plan, x.add(at), all.add(at), COLUMNS);
                    }
                    Stage::Below => {
                        let (x, all) = (x.add(i * block), all.add(i * block));
                        if base == 1 {
                            passes::below::<S, T, E>(s, plan, 1, 1, block, x, all, None);
                        } else {
                            passes::below::<S, T, T>(s, plan, 1, 1, block, all, all, None);
                        }
                    }
                    Stage::Base => {
                        let stride = part as isize;
                        let all = Rows { ptr: all.add(i * COLUMNS), stride };
                        let x = Rows { ptr: x.add(i * COLUMNS), stride };
                        passes::base_pass::<S, T, T, E>(s, hadamard::entries(base), all, x, COLUMNS, scratch);
                    }
                }
            }
        }
    }
}

/// The arguments of [`plan_of`], as a kernel.
struct PlanOf<T> {
    order: Order,
    params: Params,
    plain: PhantomData<T>,
}

impl<T: Scalar> Kernel for PlanOf<T> {
    type Output = Plan;
    fn run<S: Lanes>(self, _: S) -> Plan {
        plan_of::<S, T>(self.order, &self.params)
    }
}

/// Plans the passes of a length for arithmetic in `T` on the instruction set `S`.
fn plan_of<S: Lanes, T: Scalar>(order: Order, params: &Params) -> Plan {
    Plan::rows(order, S::ISA, size_of::<T>(), T::lanes::<S>(), passes::registers::<S>(), params)
}

/// Returns the plan that a vector of adjacent elements with arithmetic in `T` follows on this machine.
pub(super) fn plan<T: Scalar>(order: Order) -> Plan {
    simd::dispatch(simd::isa(), PlanOf::<T> { order, params: Params::default(), plain: PhantomData })
}

/// The transform of a batch on one thread, as a kernel.
struct Task<T, E> {
    x: Batch<E>,
    order: Order,
    /// Whether the whole batch, of which `x` is a part, does not fit into the caches, while each of its vectors does.
    from_memory: bool,
    params: Params,
    plain: PhantomData<T>,
}

impl<T: Scalar, E: Element> Kernel for Task<T, E> {
    type Output = ();
    fn run<S: Lanes>(self, s: S) {
        let Task { x, order, from_memory, params, .. } = self;
        let lanes = T::lanes::<S>();
        let split = order.base() > 1 && 1 << order.log2() < lanes;
        // SAFETY: `batch`, which alone makes this kernel, has the caller's promise that the elements are valid and
        // distinct and that `order` is the order of their length; the parts of its tasks are disjoint.
        unsafe {
            if x.n_stride == 1 && !split {
                rows::<S, T, E>(s, x, from_memory, &plan_of::<S, T>(order, &params));
            } else if x.stride == 1 {
                panels::<S, T, E>(s, x, order, &params);
            } else {
                gathered::<S, T, E>(s, x, order, &params);
            }
        }
    }
}

/// Transforms vectors of adjacent elements in place, one after the other. If they come `from_memory`, the prefetch of
/// the next vector begins in the first pass of each, and not in its leaves.
///
/// # Safety
/// The batch is valid for reads and writes, its elements are distinct, `n_stride` is 1, and `plan` is for its length.
unsafe fn rows<S: Lanes, T: Scalar, E: Element>(s: S, x: Batch<E>, from_memory: bool, plan: &Plan) {
    let same = E::DTYPE == T::DTYPE;
    let base = if plan.order.base() > 1 { passes::base_scratch::<S, T>(plan.order.base()) } else { 0 };
    // Adjacent short vectors share their passes. A group is half of L1, which leaves room for the next group.
    let adjacent = x.stride == x.n as isize && plan.order.base() == 1;
    let group = if adjacent { (plan.l1 / 2 / x.n).clamp(1, x.count) } else { 1 };
    let vectors = if same { 0 } else { x.n * group };
    let mut scratch = Scratch::<T>::new(base + vectors);
    let scratch = scratch.as_mut_ptr();
    for i in (0..x.count).step_by(group) {
        let (count, x) = (group.min(x.count - i), x.element(0, i));
        // SAFETY: vectors `i..i + count` exist and are adjacent if there are several. `all` is `x` itself where the
        // types are the same, or else scratch of as many elements. The first `base` elements of scratch are the base
        // pass's.
        unsafe {
            let all = if same { x.cast::<T>() } else { scratch.add(base) };
            if plan.order.base() == 1 {
                let ahead = (from_memory && adjacent).then_some((count * plan.order.len() * size_of::<E>()) as isize);
                passes::blocks::<S, T, E, E>(s, plan, count, x, x, all, ahead);
            } else {
                based::<S, T, E>(s, plan, x, all, scratch);
            }
        }
    }
}

/// Transforms the adjacent vectors of length `2^k` in `x`, and meanwhile prefetches as many bytes from `ahead` on,
/// which need not be a valid address.
#[cfg(feature = "linalg")]
pub(super) fn rows_ahead<S: Lanes, T: Scalar>(s: S, x: &mut [T], order: Order, ahead: *const u8) {
    debug_assert!(order.base() == 1 && x.len().is_multiple_of(order.len()));
    let plan = plan_of::<S, T>(order, &Params::default());
    let (count, x) = (x.len() / order.len(), x.as_mut_ptr());
    let ahead = (ahead as isize).wrapping_sub(x as isize);
    // SAFETY: the blocks are all of a slice, which is borrowed mutably, and the transform is in place.
    unsafe { passes::blocks::<S, T, T, T>(s, &plan, count, x, x, x, Some(ahead)) }
}

/// Transforms one vector of adjacent elements whose base is not 1: its `b` parts one by one, then the columns of the
/// matrix of these parts. `all` holds the vector between passes.
///
/// # Safety
/// `x` and `all` are equal (address and type) or disjoint, and have `plan.order.len()` elements each; `scratch` has
/// [`base_scratch`](passes::base_scratch) elements and overlaps neither.
unsafe fn based<S: Lanes, T: Scalar, E: Element>(s: S, plan: &Plan, x: *mut E, all: *mut T, scratch: *mut T) {
    let (b, h) = (plan.order.base(), 1usize << plan.bits());
    let stride = h as isize;
    // SAFETY: guaranteed by this function's contract: `b` blocks of `h` elements are the vector, and so are `b` rows of
    // `h`.
    unsafe {
        passes::blocks::<S, T, E, T>(s, plan, b, x, all, all, None);
        let (all, x) = (Rows { ptr: all, stride }, Rows { ptr: x, stride });
        passes::base_pass::<S, T, T, E>(s, hadamard::entries(b), all, x, h, scratch);
    }
}

/// Returns the number of columns of a panel of `n` rows. A panel that goes through scratch is the wider the shorter its
/// columns are.
fn panel_width<T: Scalar, E: Element>(n: usize, params: &Params) -> usize {
    let (least, most) = (params.scratch_row_bytes, params.panel_row_bytes);
    let bytes = if E::DTYPE == T::DTYPE { most } else { (KEPT_BYTES / n).clamp(least, most) };
    bytes / least * (least / size_of::<T>())
}

/// Transforms vectors side by side: whole panels in place, and what is left by gathering.
///
/// # Safety
/// The batch is valid for reads and writes, its elements are distinct, `order` is that of its length, and `stride` is
/// 1.
unsafe fn panels<S: Lanes, T: Scalar, E: Element>(s: S, x: Batch<E>, order: Order, params: &Params) {
    let lanes = T::lanes::<S>();
    let panel = panel_width::<T, E>(x.n, params).max(lanes);
    let (lead, begin) = lead::<T, E>(x, params);
    let whole = x.count - (x.count - lead) % lanes;
    let radices = radices::<S, T, E>(x.n_stride, order, params);
    let mut first = lead;
    while first < whole {
        let next = if first < begin { begin } else { first + panel };
        let x = x.part(first, next.min(whole) - first);
        // SAFETY: guaranteed by this function's contract; `whole - lead` and panels are multiples of the lanes, and so
        // is `begin - lead`, because lines are.
        unsafe { one_panel::<S, T, E>(s, x, order, &radices, params) };
        first = next;
    }
    for (first, count) in [(0, lead), (whole, x.count - whole)] {
        if count > 0 {
            // SAFETY: guaranteed by this function's contract for all vectors, so for these.
            unsafe { gathered::<S, T, E>(s, x.part(first, count), order, params) };
        }
    }
}

/// Returns the radices of vectors side by side. They must not depend on an address, because the order of the additions
/// depends on them.
fn radices<S: Lanes, T: Scalar, E: Element>(n_stride: isize, order: Order, params: &Params) -> Radices {
    let registers = passes::registers::<S>();
    if E::DTYPE == T::DTYPE {
        Radices::columns(order.log2(), n_stride.unsigned_abs() * size_of::<T>(), registers, params)
    } else {
        Radices::new(order.log2(), max_radix(registers).min(3))
    }
}

/// Transforms one panel of columns in place or, if it must be widened, through scratch.
///
/// # Safety
/// The batch is valid for reads and writes, its elements are distinct, `order` is that of its length, `stride` is 1,
/// and `count` is a multiple of the lanes.
unsafe fn one_panel<S: Lanes, T: Scalar, E: Element>(
    s: S,
    x: Batch<E>,
    order: Order,
    radices: &Radices,
    params: &Params,
) {
    let (b, h, width) = (order.base(), 1usize << order.log2(), x.count);
    let same = E::DTYPE == T::DTYPE;
    let base = if b > 1 { passes::base_scratch::<S, T>(b) } else { 0 };
    let mut scratch = Scratch::<T>::new(base + if same { 0 } else { x.n * width });
    let scratch = scratch.as_mut_ptr();
    let rows = Rows { ptr: x.ptr, stride: x.n_stride };
    // SAFETY: guaranteed by this function's contract: the panel has `b · h` rows of `width` elements. `work` is these
    // rows or as many in scratch, behind what the base pass needs.
    unsafe {
        let work = if same {
            let work = Rows { ptr: x.ptr.cast::<T>(), stride: x.n_stride };
            for i in 0..b {
                passes::columns_in_place::<S, T>(s, radices, 1, h, work.at(i * h), width, params);
            }
            work
        } else {
            let work = Rows { ptr: scratch.add(base), stride: width as isize };
            if b == 1 {
                return passes::columns::<S, T, E, E>(s, radices, rows, rows, work, width, params);
            }
            for i in 0..b {
                let work = work.at(i * h);
                passes::columns::<S, T, E, T>(s, radices, rows.at(i * h), work, work, width, params);
            }
            work
        };
        for j in 0..if b > 1 { h } else { 0 } {
            let (work, rows) = (work.at(j).every(h), rows.at(j).every(h));
            passes::base_pass::<S, T, T, E>(s, hadamard::entries(b), work, rows, width, scratch);
        }
    }
}

/// Transforms vectors of any strides through scratch: as many side by side as there are lanes if these take little
/// scratch, else one at a time.
///
/// # Safety
/// The batch is valid for reads and writes, its elements are distinct, and `order` is that of its length.
unsafe fn gathered<S: Lanes, T: Scalar, E: Element>(s: S, x: Batch<E>, order: Order, params: &Params) {
    let lanes = T::lanes::<S>();
    if x.count > lanes {
        // SAFETY: guaranteed by this function's contract for all vectors, so for `lanes` of them.
        return (0..x.count)
            .step_by(lanes)
            .for_each(|i| unsafe { gathered::<S, T, E>(s, x.part(i, lanes), order, params) });
    }
    if x.n * lanes * size_of::<T>() <= params.scratch_bytes {
        let radices = radices::<S, T, E>(x.n_stride, order, params);
        let mut panel = Scratch::<T>::new(x.n * lanes);
        for (i, row) in panel.chunks_exact_mut(lanes).enumerate() {
            row.fill(T::zeroed());
            for (j, value) in row[..x.count].iter_mut().enumerate() {
                // SAFETY: element `i < n` of vector `j < count` is valid by this function's contract.
                *value = T::from_f64(unsafe { *x.element(i, j) }.to_f64());
            }
        }
        let rows = Batch { ptr: panel.as_mut_ptr(), n: x.n, n_stride: lanes as isize, count: lanes, stride: 1 };
        // SAFETY: the batch is all of `panel`: `n` rows of `lanes` elements, which nothing else refers to.
        unsafe { one_panel::<S, T, T>(s, rows, order, &radices, params) };
        for (i, row) in panel.chunks_exact(lanes).enumerate() {
            for (j, value) in row[..x.count].iter().enumerate() {
                // SAFETY: element `i < n` of vector `j < count` is valid by this function's contract.
                unsafe { *x.element(i, j) = E::from_f64(Element::to_f64(*value)) };
            }
        }
        return;
    }
    let mut vector = Scratch::<T>::new(x.n);
    for j in 0..x.count {
        for (i, value) in vector.iter_mut().enumerate() {
            // SAFETY: element `i < n` of vector `j < count` is valid by this function's contract.
            *value = T::from_f64(unsafe { *x.element(i, j) }.to_f64());
        }
        let one = Batch { ptr: vector.as_mut_ptr(), n: x.n, n_stride: 1, count: 1, stride: 1 };
        // SAFETY: the batch is all of `vector`: `n` adjacent elements, which nothing else refers to.
        unsafe { rows::<S, T, T>(s, one, false, &plan_of::<S, T>(order, params)) };
        for (i, value) in vector.iter().enumerate() {
            // SAFETY: element `i < n` of vector `j < count` is valid by this function's contract.
            unsafe { *x.element(i, j) = E::from_f64(Element::to_f64(*value)) };
        }
    }
}

/// A cache line. Scratch is made of them, so that it is aligned to one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: it is an array of bytes, for which zeros are valid.
unsafe impl Zeroable for Line {}
// SAFETY: 64 bytes aligned to 64 have no padding, any bits of them are valid, and the type is `Copy + 'static`.
unsafe impl Pod for Line {}

/// Bytes of the largest scratch that is kept for the next call.
const KEPT_BYTES: usize = 4 << 20;

thread_local! {
    static SCRATCH: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Scratch of `len` elements, aligned to a cache line, of unspecified content. One buffer per thread is kept for the
/// next call. It is a value and not a function that takes a closure, because a closure might not be compiled for the
/// instruction set of its caller.
struct Scratch<T> {
    lines: Vec<Line>,
    len: usize,
    plain: PhantomData<T>,
}

impl<T: Scalar> Scratch<T> {
    /// Takes scratch of `len` elements. With debug assertions it is filled with NaN.
    fn new(len: usize) -> Self {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        let mut buffer = if lines > 0 { SCRATCH.take() } else { Vec::new() };
        if buffer.len() < lines {
            buffer = vec![Line::zeroed(); lines];
        }
        let mut scratch = Scratch { lines: buffer, len, plain: PhantomData };
        if cfg!(debug_assertions) {
            scratch.fill(T::from_f64(f64::NAN));
        }
        scratch
    }
}

impl<T: Scalar> std::ops::Deref for Scratch<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<T: Scalar> std::ops::DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl<T> Drop for Scratch<T> {
    fn drop(&mut self) {
        if (1..=KEPT_BYTES / size_of::<Line>()).contains(&self.lines.len()) {
            SCRATCH.set(std::mem::take(&mut self.lines));
        }
    }
}
