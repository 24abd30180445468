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
//!
//! Vectors may be read from one place and written to another: the first pass reads, and the others are as in place.

use std::cell::Cell;
use std::marker::PhantomData;

use bytemuck::{Pod, Zeroable};

use super::edges::{Axis, Edges, Ends};
use super::hadamard;
use super::passes::{self, Base};
use super::plan::{Order, Params, Plan, Radices, max_radix};
use super::rows::{Raw, Rows};
use crate::parallel::{self, Threads};
use crate::simd::{self, Kernel, Lanes, Scalar};
use crate::tensor::{Element, TensorMut};

/// What is done to each vector: it is cut into adjacent parts of `order.len()` elements, and each is transformed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form<'a> {
    pub(super) order: Order,
    /// Whether the transform is `Hᵀ`.
    pub(super) transposed: bool,
    /// Scale and signs, if there are any. Signs cover the whole vector.
    pub(super) edges: Option<Edges<'a>>,
    /// Whether results are to have the same bits on every instruction set.
    pub(super) same_bits: bool,
}

impl Form<'_> {
    /// Returns the constants for the passes.
    fn params(&self) -> Params {
        Params { beside: !self.same_bits, ..Params::default() }
    }

    /// Returns `H_b` of the order.
    fn base<T: Scalar>(&self) -> Base<T> {
        Base { entries: hadamard::entries(self.order.base(), self.transposed), transposed: self.transposed }
    }

    /// Returns scale and signs from element `start` of a vector on. If `together`, elements beyond the first vector are
    /// those of vectors behind it, whose length is a power of two.
    fn ends<T: Scalar>(&self, axis: Axis, start: usize, together: bool) -> Option<Ends<T>> {
        let mask = if together { self.order.len() - 1 } else { usize::MAX };
        self.edges.as_ref().map(|edges| Ends::new(edges, axis, start, mask))
    }
}

/// A batch of `count` vectors of length `n`: element `i` of vector `j` is at `at + i·n_stride + j·stride`. It is read
/// at the same place from `from` on, which is `at` for a transform in place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch {
    pub(super) at: Raw,
    pub(super) from: Raw,
    pub(super) n: usize,
    pub(super) n_stride: isize,
    pub(super) count: usize,
    pub(super) stride: isize,
}

// SAFETY: a batch is a pointer and numbers. It is dereferenced only in unsafe functions whose contracts say that the
// elements are valid, and tasks get disjoint parts of a batch that is borrowed mutably for the whole transform.
unsafe impl Send for Batch {}
// SAFETY: a shared batch can only be copied, and then what holds for `Send` holds.
unsafe impl Sync for Batch {}

impl Batch {
    /// Returns the rows of a matrix as vectors.
    pub(super) fn rows<E: Element>(mut x: TensorMut<'_, E>) -> Self {
        let (n, n_stride, count, stride) = (x.ncols(), x.col_stride(), x.nrows(), x.row_stride());
        let at = Raw::new(x.as_mut_ptr());
        Batch { at, from: at, n, n_stride, count, stride }
    }

    /// Returns vectors `first..first + count`, as far as they exist.
    pub(super) fn part(self, first: usize, count: usize) -> Self {
        let by = first as isize * self.stride;
        let (at, from) = (self.at.offset(by), self.from.offset(by));
        Batch { at, from, count: count.min(self.count - first), ..self }
    }

    /// Returns elements `first..first + n` of each vector.
    fn elements(self, first: usize, n: usize) -> Self {
        let by = first as isize * self.n_stride;
        Batch { at: self.at.offset(by), from: self.from.offset(by), n, ..self }
    }

    /// Returns the pointer to element `i` of vector `j`, which is valid if both exist.
    pub(super) fn element(self, i: usize, j: usize) -> Raw {
        self.at.offset(i as isize * self.n_stride + j as isize * self.stride)
    }

    /// Returns the pointer to where element `i` of vector `j` is read.
    pub(super) fn source(self, i: usize, j: usize) -> Raw {
        self.from.offset(i as isize * self.n_stride + j as isize * self.stride)
    }

    /// Returns whether vectors are read where they are written.
    fn in_place(&self) -> bool {
        std::ptr::eq(self.from.ptr, self.at.ptr)
    }
}

/// Transforms every vector of a batch. The batch is not empty.
///
/// # Safety
/// The batch is valid for reads and writes, its elements are distinct, and what is read is either what is written or
/// disjoint from it; then `n_stride` is 1. `form.order.len()` divides `n`, and signs cover `n` elements. `T` is the type
/// in which elements of this type are transformed.
pub(super) unsafe fn batch<T: Scalar>(mut x: Batch, form: Form<'_>, threads: Threads) {
    if x.n_stride != 1 && x.stride == -1 {
        // Vectors in reverse order are the same batch, and adjacent.
        x.at = x.element(0, x.count - 1);
        x.from = x.at;
        x.stride = 1;
    }
    let (isa, params) = (simd::isa(), form.params());
    let (n, elements, size) = (form.order.len(), x.n * x.count, x.at.dtype.size());
    let from_memory = elements * size >= params.long_bytes && n * size <= params.ahead_bytes;
    if threads.is_one() || elements < 2 * params.task_len {
        return simd::dispatch(isa, Task::<T> { x, form, from_memory, params, plain: PhantomData });
    }
    let plan = simd::dispatch(isa, PlanOf::<T> { order: form.order, params, plain: PhantomData });
    let few = x.count < 2 * parallel::count();
    if x.n_stride == 1 && x.n == n && n >= params.long_len && plan.bits() >= params.long_bits && few {
        // SAFETY: guaranteed by this function's contract: vector `i` exists, and its elements are adjacent.
        return (0..x.count).for_each(|i| unsafe { long::<T>(x.part(i, 1), &plan, form, params) });
    }
    let granule = if x.n_stride == 1 { 1 } else { params.scratch_row_bytes / size_of::<T>() };
    let mut vectors = (params.task_len / x.n).max(1);
    if x.n_stride != 1 {
        // Whole panels, unless that leaves threads without work.
        vectors = vectors.max(panel_width::<T>(x.at, n, &params).min(x.count / (2 * parallel::count())));
    }
    let vectors = vectors.next_multiple_of(granule);
    // The vectors before the first aligned panel are a task of their own.
    let (_, lead) = lead::<T>(x, n, &params);
    let first = usize::from(lead > 0);
    parallel::for_each(threads, first + (x.count - lead).div_ceil(vectors), &|i| {
        let (at, count) = if i < first { (0, lead) } else { (lead + (i - first) * vectors, vectors) };
        simd::dispatch(isa, Task::<T> { x: x.part(at, count), form, from_memory, params, plain: PhantomData });
    });
}

/// Counts the vectors that come before alignment, for vectors side by side: those before the first that begins a cache
/// line, and those before the first that begins a whole panel of lines.
///
/// Allocators return addresses 16 bytes into a page, and registers that straddle two lines are slow; panels that
/// straddle two pages are a little slow. The vectors before the first line are gathered, which is slow, too, so that
/// both counts are 0 if rows begin at different places within a line, or if there are few vectors and they do not end a
/// line. Panels have `n` rows.
fn lead<T: Scalar>(x: Batch, n: usize, params: &Params) -> (usize, usize) {
    let (size, line) = (x.at.dtype.size(), size_of::<Line>());
    if x.stride != 1 || n * line > params.scratch_bytes {
        return (0, 0);
    }
    let before = |bytes: usize| {
        let alike = (x.n_stride.unsigned_abs() * size).is_multiple_of(bytes);
        if alike { (x.at.ptr as usize).wrapping_neg() % bytes / size } else { 0 }
    };
    let (panel, first) = (panel_width::<T>(x.at, n, params), before(line));
    if x.count >= 2 * panel {
        (first, before(panel * size).max(first))
    } else if (x.element(0, x.count).ptr as usize).is_multiple_of(line) {
        (first, first)
    } else {
        (0, 0)
    }
}

/// Transforms one long vector: its first pass, then the blocks that this leaves, then its base, each of them
/// shared among the threads of the pool.
///
/// # Safety
/// `x` is one vector of adjacent elements, as [`batch`] wants it, of the length that `plan` and `form` are for.
unsafe fn long<T: Scalar>(x: Batch, plan: &Plan, form: Form<'_>, params: Params) {
    let mut wide: Vec<T> = if x.at.is::<T>() { Vec::new() } else { vec![T::zeroed(); x.n] };
    let all = if x.at.is::<T>() { x.at } else { Raw::new(wide.as_mut_ptr()) };
    let (base, first) = (plan.order.base(), plan.inner[0].rows);
    let all = Batch { at: all, from: all, n: x.n, n_stride: 1, count: 1, stride: 1 };
    let share = |stage: Stage, items: usize| {
        let chunk = (params.task_len * items / x.n).max(1);
        parallel::for_each(Threads::Pool, items.div_ceil(chunk), &|i| {
            let items = i * chunk..items.min((i + 1) * chunk);
            let (x, all) = (x.part(0, 1), all.element(0, 0).ptr.cast::<T>());
            simd::dispatch(plan.isa, Part { x, all, plan, form, stage, items });
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
struct Part<'a, T> {
    x: Batch,
    all: *mut T,
    plan: &'a Plan,
    form: Form<'a>,
    stage: Stage,
    items: std::ops::Range<usize>,
}

impl<T: Scalar> Kernel for Part<'_, T> {
    type Output = ();
    fn run<S: Lanes>(self, s: S) {
        let Part { x, all, plan, form, stage, items } = self;
        let (x, from) = (x.at, x.from);
        let ends = |at: usize| form.ends::<T>(Axis::Along, at, false);
        let (part, base) = (1usize << plan.bits(), plan.order.base());
        let block = part >> plan.inner[0].rows;
        let scratch = if let Stage::Base = stage { passes::base_scratch::<S, T>(base) } else { 0 };
        let mut scratch = Scratch::<T>::new(scratch);
        let scratch = scratch.as_mut_ptr();
        for i in items {
            // SAFETY: `long`, which alone makes this kernel, has the caller's promise that the vector is valid and of
            // the length of the plan, and has signs. `x` and `all` are equal or disjoint, both of that length, and so
            // are `from` and either. Items of a stage are disjoint parts of it, and `long` waits for a stage before it
            // starts the next. `scratch` has what a base pass needs.
            unsafe {
                match stage {
                    Stage::First => {
                        let at = i * COLUMNS / block * part + i * COLUMNS % block;
                        passes::first_pass::<S, T>(s, plan, from.add(at), all.add(at), COLUMNS, ends(at).as_ref());
                    }
                    Stage::Below => {
                        let (x, all) = (x.add(i * block), all.add(i * block));
                        if base == 1 {
                            let ends = ends(i * block).and_then(|ends| ends.last());
                            passes::below::<S, T>(s, plan, 1, 1, block, x, all, None, ends.as_ref());
                        } else {
                            passes::below::<S, T>(s, plan, 1, 1, block, Raw::new(all), all, None, None);
                        }
                    }
                    Stage::Base => {
                        let stride = part as isize;
                        let all = Rows { at: Raw::new(all.add(i * COLUMNS)), stride };
                        let x = Rows { at: x.add(i * COLUMNS), stride };
                        let ends = ends(i * COLUMNS).and_then(|ends| ends.last());
                        passes::base_pass::<S, T>(s, form.base(), all, x, COLUMNS, scratch, part, ends.as_ref());
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
pub(super) fn plan_of<S: Lanes, T: Scalar>(order: Order, params: &Params) -> Plan {
    Plan::rows(order, S::ISA, size_of::<T>(), T::lanes::<S>(), passes::registers::<S>(), params)
}

/// Returns the plan that a vector of adjacent elements with arithmetic in `T` follows on this machine.
pub(super) fn plan<T: Scalar>(order: Order) -> Plan {
    simd::dispatch(simd::isa(), PlanOf::<T> { order, params: Params::default(), plain: PhantomData })
}

/// The transform of a batch on one thread, as a kernel.
struct Task<'a, T> {
    x: Batch,
    form: Form<'a>,
    /// Whether the whole batch, of which `x` is a part, does not fit into the caches, while each of its vectors does.
    from_memory: bool,
    params: Params,
    plain: PhantomData<T>,
}

impl<T: Scalar> Kernel for Task<'_, T> {
    type Output = ();
    fn run<S: Lanes>(self, s: S) {
        let Task { x, form, from_memory, params, .. } = self;
        let (order, lanes) = (form.order, T::lanes::<S>());
        let split = order.base() > 1 && 1 << order.log2() < lanes;
        // SAFETY: `batch`, which alone makes this kernel, has the caller's promise that the elements are valid and
        // distinct, that `order` is the order of each part of a vector, and that there are signs; the parts of its
        // tasks are disjoint. Vectors side by side are in place.
        unsafe {
            if x.n_stride == 1 && !split {
                return rows::<S, T>(s, x, &form, from_memory, &plan_of::<S, T>(order, &params), &params);
            }
            for first in (0..x.n).step_by(order.len()) {
                let x = x.elements(first, order.len());
                if x.stride == 1 && x.in_place() {
                    panels::<S, T>(s, x, &form, first, &params);
                } else {
                    gathered::<S, T>(s, x, &form, first, &params);
                }
            }
        }
    }
}

/// Transforms vectors of adjacent elements, one after the other. If they come `from_memory`, the prefetch of the next
/// vector begins in the first pass of each, and not in its leaves.
///
/// # Safety
/// The batch is as [`batch`] wants it, `n_stride` is 1, and `plan` is for the length of a part.
unsafe fn rows<S: Lanes, T: Scalar>(s: S, x: Batch, form: &Form<'_>, from_memory: bool, plan: &Plan, params: &Params) {
    let same = x.at.is::<T>();
    let (len, based) = (plan.order.len(), plan.order.base() > 1);
    let parts = x.n / len;
    let base = if based { passes::base_scratch::<S, T>(plan.order.base()) } else { 0 };
    // Adjacent short transforms share their passes. A group is half of L1, which leaves room for the next group.
    // Numbers instead of bits take room in L1, and time to be made.
    let adjacent = x.stride == x.n as isize && !based;
    let signs = form.edges.is_some_and(|edges| edges.input.is_some() != edges.output.is_some());
    let factored = signs && x.count >= params.factor_vectors && x.n * size_of::<T>() <= params.factor_bytes;
    let factored = if factored && 1 << plan.bits() >= T::lanes::<S>() { x.n } else { 0 };
    // With factors, which a base pass does not take, a quarter.
    let room = if factored > 0 { plan.l1 / 4 } else { plan.l1 / 2 };
    let together = if based { 1 } else { (room / len).max(1) };
    let (group, chunk) = match parts {
        1 => (if adjacent { together.min(x.count) } else { 1 }, 1),
        _ => (1, together.min(parts)),
    };
    let vectors = if same { 0 } else { len * group.max(chunk) };
    let page = if factored > 0 { PAGE_BYTES / size_of::<T>() } else { 0 };
    let mut scratch = Scratch::<T>::new(base + vectors + factored + page);
    let scratch = scratch.as_mut_ptr();
    // Factors lie like the elements within a page: a load that follows a store to the same place of another page waits
    // for it, and so a factor follows no store of other elements.
    let (beside, end) = (if same { x.at.ptr.cast() } else { scratch.wrapping_add(base) }, base + vectors);
    let skipped = (beside as usize).wrapping_sub(scratch.wrapping_add(end) as usize) % PAGE_BYTES;
    let factors = scratch.wrapping_add(end + skipped / size_of::<Line>() * (size_of::<Line>() / size_of::<T>()));
    if let Some(ends) = form.ends::<T>(Axis::Along, 0, false)
        && factored > 0
    {
        // SAFETY: this end of scratch has as many elements as a vector, less than a page behind the others, and the
        // form has as many signs. They are a multiple of the lanes, because parts are.
        unsafe { passes::factors::<S, T>(s, factored, factors, ends) };
    }
    for i in (0..x.count).step_by(group) {
        for part in (0..parts).step_by(chunk) {
            let count = if parts == 1 { group.min(x.count - i) } else { chunk.min(parts - part) };
            let (from, x) = (x.source(part * len, i), x.element(part * len, i));
            let ends = form.ends::<T>(Axis::Along, part * len, parts == 1 && !based);
            let ends = if factored > 0 { ends.map(|ends| ends.with_factors(factors)) } else { ends };
            // SAFETY: `count` transforms from here on exist and are adjacent if there are several. `all` is `x` itself
            // where the types are the same, or else scratch of as many elements. The first `base` elements of scratch
            // are the base pass's. What is read is `x` or disjoint from it.
            unsafe {
                let work = if same { x.ptr.cast::<T>() } else { scratch.add(base) };
                if based {
                    let (b, h, all) = (plan.order.base(), 1usize << plan.bits(), Raw::new(work));
                    let (now, last) = (ends.and_then(|ends| ends.first()), ends.and_then(|ends| ends.last()));
                    passes::blocks::<S, T>(s, plan, b, from, all, work, None, now.as_ref());
                    let (all, x) = (Rows { at: all, stride: h as isize }, Rows { at: x, stride: h as isize });
                    passes::base_pass::<S, T>(s, form.base(), all, x, h, scratch, h, last.as_ref());
                } else {
                    let ahead = from_memory && adjacent && std::ptr::eq(from.ptr, x.ptr);
                    let ahead = ahead.then_some((count * len * x.dtype.size()) as isize);
                    passes::blocks::<S, T>(s, plan, count, from, x, work, ahead, ends.as_ref());
                }
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
    unsafe { passes::blocks::<S, T>(s, &plan, count, Raw::new(x), Raw::new(x), x, Some(ahead), None) }
}

/// Returns the number of columns of a panel of `n` rows. A panel that goes through scratch is the wider the shorter its
/// columns are.
fn panel_width<T: Scalar>(at: Raw, n: usize, params: &Params) -> usize {
    let (least, most) = (params.scratch_row_bytes, params.panel_row_bytes);
    let bytes = if at.is::<T>() { most } else { (KEPT_BYTES / n).clamp(least, most) };
    bytes / least * (least / size_of::<T>())
}

/// Transforms vectors side by side: whole panels in place, and what is left by gathering. Their elements are those from
/// `start` on, of longer vectors, as far as signs go.
///
/// # Safety
/// The batch is valid for reads and writes, its elements are distinct, `form.order` is that of its length, there are
/// signs, and `stride` is 1.
unsafe fn panels<S: Lanes, T: Scalar>(s: S, x: Batch, form: &Form<'_>, start: usize, params: &Params) {
    let lanes = T::lanes::<S>();
    let panel = panel_width::<T>(x.at, x.n, params).max(lanes);
    let (lead, begin) = lead::<T>(x, x.n, params);
    let whole = x.count - (x.count - lead) % lanes;
    let radices = radices::<S, T>(x, form.order, params);
    let mut first = lead;
    while first < whole {
        let next = if first < begin { begin } else { first + panel };
        let x = x.part(first, next.min(whole) - first);
        // SAFETY: guaranteed by this function's contract; `whole - lead` and panels are multiples of the lanes, and so
        // is `begin - lead`, because lines are.
        unsafe { one_panel::<S, T>(s, x, form, start, &radices, params) };
        first = next;
    }
    for (first, count) in [(0, lead), (whole, x.count - whole)] {
        if count > 0 {
            // SAFETY: guaranteed by this function's contract for all vectors, so for these.
            unsafe { gathered::<S, T>(s, x.part(first, count), form, start, params) };
        }
    }
}

/// Returns the radices of vectors side by side. They must not depend on an address, because the order of the additions
/// depends on them.
fn radices<S: Lanes, T: Scalar>(x: Batch, order: Order, params: &Params) -> Radices {
    let registers = passes::registers::<S>();
    if x.at.is::<T>() {
        Radices::columns(order.log2(), x.n_stride.unsigned_abs() * size_of::<T>(), registers, params)
    } else {
        Radices::new(order.log2(), max_radix(registers).min(3))
    }
}

/// Transforms one panel of columns in place or, if it must be widened, through scratch. `start` is as in [`panels`].
///
/// # Safety
/// The batch is valid for reads and writes, its elements are distinct, `form.order` is that of its length, there are
/// signs, `stride` is 1, and `count` is a multiple of the lanes.
unsafe fn one_panel<S: Lanes, T: Scalar>(
    s: S,
    x: Batch,
    form: &Form<'_>,
    start: usize,
    radices: &Radices,
    params: &Params,
) {
    let order = form.order;
    let (b, h, width) = (order.base(), 1usize << order.log2(), x.count);
    let same = x.at.is::<T>();
    let base = if b > 1 { passes::base_scratch::<S, T>(b) } else { 0 };
    let mut scratch = Scratch::<T>::new(base + if same { 0 } else { x.n * width });
    let scratch = scratch.as_mut_ptr();
    let rows = Rows { at: x.at, stride: x.n_stride };
    let ends = form.ends::<T>(Axis::Across, start, false);
    // SAFETY: guaranteed by this function's contract: the panel has `b · h` rows of `width` elements. `work` is these
    // rows or as many in scratch, behind what the base pass needs.
    unsafe {
        let work = if same { rows } else { Rows { at: Raw::new(scratch.add(base)), stride: width as isize } };
        if b == 1 {
            return passes::columns::<S, T>(s, radices, [1, h], rows, rows, work, width, params, ends.as_ref());
        }
        let (now, last) = (ends.and_then(|ends| ends.first()), ends.and_then(|ends| ends.last()));
        for i in 0..b {
            let (rows, work, ends) = (rows.row(i * h), work.row(i * h), now.map(|ends| ends.from(i * h)));
            passes::columns::<S, T>(s, radices, [1, h], rows, work, work, width, params, ends.as_ref());
        }
        for j in 0..h {
            let (work, rows) = (work.row(j).every(h), rows.row(j).every(h));
            let ends = last.map(|ends| ends.from(j));
            passes::base_pass::<S, T>(s, form.base(), work, rows, width, scratch, h, ends.as_ref());
        }
    }
}

/// Transforms vectors of any strides through scratch: as many side by side as there are lanes if these take little
/// scratch, else one at a time. `start` is as in [`panels`].
///
/// # Safety
/// The batch is valid for reads and writes, its elements are distinct, `form.order` is that of its length, and there
/// are signs.
unsafe fn gathered<S: Lanes, T: Scalar>(s: S, x: Batch, form: &Form<'_>, start: usize, params: &Params) {
    let lanes = T::lanes::<S>();
    if x.count > lanes {
        // SAFETY: guaranteed by this function's contract for all vectors, so for `lanes` of them.
        return (0..x.count)
            .step_by(lanes)
            .for_each(|i| unsafe { gathered::<S, T>(s, x.part(i, lanes), form, start, params) });
    }
    if x.n * lanes * size_of::<T>() <= params.scratch_bytes {
        let radices = radices::<S, T>(x, form.order, params);
        let mut panel = Scratch::<T>::new(x.n * lanes);
        if x.count < lanes {
            panel.fill(T::zeroed());
        }
        // SAFETY: all `n` elements of all `count` vectors are valid by this function's contract.
        unsafe { x.from.read([x.n_stride, x.stride], x.count, &mut panel, lanes) };
        let at = Raw::new(panel.as_mut_ptr());
        let rows = Batch { at, from: at, n: x.n, n_stride: lanes as isize, count: lanes, stride: 1 };
        // SAFETY: the batch is all of `panel`: `n` rows of `lanes` elements, which nothing else refers to.
        unsafe { one_panel::<S, T>(s, rows, form, start, &radices, params) };
        // SAFETY: as above.
        unsafe { x.at.write([x.n_stride, x.stride], x.count, &panel, lanes) };
        return;
    }
    let mut vector = Scratch::<T>::new(x.n);
    let edges = form.edges.map(|edges| edges.from(start));
    for j in 0..x.count {
        // SAFETY: all `n` elements of vector `j < count` are valid by this function's contract.
        unsafe { x.source(0, j).read([x.n_stride, 0], 1, &mut vector, 1) };
        let at = Raw::new(vector.as_mut_ptr());
        let one = Batch { at, from: at, n: x.n, n_stride: 1, count: 1, stride: 1 };
        let plan = plan_of::<S, T>(form.order, params);
        // SAFETY: the batch is all of `vector`: `n` adjacent elements, which nothing else refers to.
        unsafe { rows::<S, T>(s, one, &Form { edges, ..*form }, false, &plan, params) };
        // SAFETY: all `n` elements of vector `j < count` are valid by this function's contract.
        unsafe { x.element(0, j).write([x.n_stride, 0], 1, &vector, 1) };
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

/// Bytes of a page: the lower bits of an address by which a load finds stores that it may depend on.
const PAGE_BYTES: usize = 4 << 10;

/// Bytes of the largest scratch that is kept for the next call.
const KEPT_BYTES: usize = 4 << 20;

thread_local! {
    static SCRATCH: [Cell<Vec<Line>>; 2] = const { [Cell::new(Vec::new()), Cell::new(Vec::new())] };
}

/// Scratch of `len` elements, aligned to a cache line, of unspecified content. Two buffers per thread are kept for the
/// next call, because a gathered panel has scratch of its own. It is a value and not a function that takes a closure,
/// because a closure might not be compiled for the instruction set of its caller.
pub(super) struct Scratch<T> {
    lines: Vec<Line>,
    len: usize,
    plain: PhantomData<T>,
}

impl<T: Scalar> Scratch<T> {
    /// Takes scratch of `len` elements. With debug assertions it is filled with NaN.
    pub(super) fn new(len: usize) -> Self {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        let kept = || SCRATCH.with(|kept| kept.iter().map(Cell::take).find(|buffer| !buffer.is_empty()));
        let mut buffer = if lines > 0 { kept().unwrap_or_default() } else { Vec::new() };
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
            // The first place is that of the longest buffer.
            SCRATCH.with(|[first, second]| {
                let (other, mine) = (first.take(), std::mem::take(&mut self.lines));
                let (long, short) = if mine.len() >= other.len() { (mine, other) } else { (other, mine) };
                first.set(long);
                if !short.is_empty() {
                    second.set(short);
                }
            });
        }
    }
}
