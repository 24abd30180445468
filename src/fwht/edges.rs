//! What a transform does to its elements beside the stages: `y = D_out H (c D_in x)`, with signs `D` and a scale `c`.
//!
//! ```text
//!   first pass   load · c, signs of the input           last pass   signs of the output, store
//!   along        one sign for each lane: bits are a mask of the register (rows)
//!   across       one sign for each row of a panel: the factor ±c is the same in all lanes (columns)
//! ```
//!
//! The scale comes before the first addition, so that no sum overflows which its result does not. Signs are exact, and
//! a half is rounded once, when it is stored. A bit is a 32nd of the bytes of its f32: signs as numbers would take as
//! much of L1 as the vector does.
//!
//! Many short vectors with the same signs are multiplied by the numbers ±c instead, one instruction where bits take
//! three: then they fit L1 beside a vector, and making them is nothing.
//!
//! A pass that is neither first nor last, or that has nothing to do, is compiled with [`Plain`], which is nothing.

use crate::simd::{Lanes, Scalar};

/// Bytes that follow the last byte of a bit vector, because bits are read four bytes at a time.
pub(crate) const SLACK: usize = 4;

/// One sign for each element: bit `first + i` stands for element `i`, and a set bit for −1. Bit `p` is bit `p % 8` of
/// byte `p / 8`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signs<'a> {
    bytes: &'a [u8],
    first: usize,
}

impl<'a> Signs<'a> {
    /// Makes the signs that begin at bit `first`.
    pub(crate) fn new(bytes: &'a [u8], first: usize) -> Self {
        Signs { bytes, first }
    }
}

/// Scale and signs of a transform.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Edges<'a> {
    /// The factor of every element, applied before the first addition.
    pub(crate) scale: f64,
    /// Signs of the input.
    pub(crate) input: Option<Signs<'a>>,
    /// Signs of the output.
    pub(crate) output: Option<Signs<'a>>,
}

impl<'a> Edges<'a> {
    /// Returns the same for vectors that begin at element `by`.
    pub(super) fn from(self, by: usize) -> Self {
        let moved = |signs: Signs<'a>| Signs { first: signs.first + by, ..signs };
        Edges { input: self.input.map(moved), output: self.output.map(moved), ..self }
    }
}

/// Scale and signs as passes take them. The pointers are null where there are no signs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends<T> {
    scale: T,
    /// Whether elements are scaled when they are loaded.
    loads: bool,
    /// The factor of each element, with its sign; null if `scale` and `input`, or `output`, have them.
    factors: *const T,
    /// Whether the factors are those of the output.
    output_factors: bool,
    input: *const u8,
    /// The bit of element 0 in `input`.
    input_first: usize,
    output: *const u8,
    /// The bit of element 0 in `output`.
    output_first: usize,
    /// The index of the first element that the passes see.
    start: usize,
    /// The bits of an index that count: adjacent vectors of `2^k` elements have the same signs.
    mask: usize,
}

impl<T: Scalar> Ends<T> {
    /// Makes the edges of vectors that begin at element `start`; `mask` keeps the bits of an index that count.
    pub(super) fn new(edges: &Edges<'_>, start: usize, mask: usize) -> Self {
        let bits = |signs: Option<Signs<'_>>| signs.map_or((std::ptr::null(), 0), |s| (s.bytes.as_ptr(), s.first));
        let ((input, input_first), (output, output_first)) = (bits(edges.input), bits(edges.output));
        let scale = T::from_f64(edges.scale);
        let (factors, output_factors) = (std::ptr::null(), false);
        Ends { scale, loads: true, factors, output_factors, input, input_first, output, output_first, start, mask }
    }

    /// Returns the same edges with the factors of all elements at `factors`, for passes along vectors. They are those
    /// of the output if it has signs, and then the input has none.
    pub(super) fn with_factors(self, factors: *const T) -> Self {
        Ends { factors, output_factors: self.has_output(), ..self }
    }

    /// Returns whether there are signs of the output.
    pub(super) fn has_output(&self) -> bool {
        !self.output.is_null()
    }

    /// Returns the edges from element `by` on.
    pub(super) fn from(self, by: usize) -> Self {
        Ends { start: self.start + by, ..self }
    }

    /// Returns what the first pass does, if it is not the last one; nothing if that has been done.
    pub(super) fn first(self) -> Option<Self> {
        self.loads.then_some(Ends { output: std::ptr::null(), ..self })
    }

    /// Returns what the last pass does, if it is not the first one; nothing without signs.
    pub(super) fn last(self) -> Option<Self> {
        (!self.output.is_null()).then_some(Ends { loads: false, input: std::ptr::null(), ..self })
    }
}

/// Reads at least 25 bits of a bit vector from bit `p` on, lowest first.
///
/// # Safety
/// The four bytes from byte `p / 8` on are readable.
#[inline(always)]
pub(super) unsafe fn bits_at(bytes: *const u8, p: usize) -> u32 {
    // SAFETY: guaranteed by this function's contract; alignment does not matter to this read.
    u32::from_le(unsafe { bytes.add(p / 8).cast::<u32>().read_unaligned() }) >> (p % 8)
}

/// What a pass does to the registers that it loads and stores.
///
/// Register `i` of `R` has index `first + (i / B)·row + (i % B)·run`, where [`index`](Self::index) gave all four.
pub(super) trait Edge<S: Lanes, T: Scalar>: Copy {
    /// Whether a store may have something to do.
    const STORES: bool;
    /// Returns the index of an element by its place among the rows of the pass, which are `row_len` elements apart.
    fn index(self, row: usize, column: usize, row_len: usize) -> usize;
    /// Returns the factors of `R` rows, for loads and stores, if they do not depend on the column.
    ///
    /// # Safety
    /// The signs of these rows exist.
    unsafe fn factors<const R: usize, const B: usize>(self, first: usize, row: usize) -> [[T; R]; 2];
    /// Scales loaded registers and sets their signs.
    ///
    /// # Safety
    /// The signs of these elements exist.
    unsafe fn load<const R: usize, const B: usize>(
        self,
        s: S,
        v: &mut [T::V<S>; R],
        factors: &[[T; R]; 2],
        at: [usize; 3],
    );
    /// Sets the signs of registers that are to be stored.
    ///
    /// # Safety
    /// The signs of these elements exist.
    unsafe fn store<const R: usize, const B: usize>(
        self,
        s: S,
        v: &mut [T::V<S>; R],
        factors: &[[T; R]; 2],
        at: [usize; 3],
    );
}

/// Nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plain;

impl<S: Lanes, T: Scalar> Edge<S, T> for Plain {
    const STORES: bool = false;
    #[inline(always)]
    fn index(self, _: usize, _: usize, _: usize) -> usize {
        0
    }
    #[inline(always)]
    unsafe fn factors<const R: usize, const B: usize>(self, _: usize, _: usize) -> [[T; R]; 2] {
        [[T::zeroed(); R]; 2]
    }
    #[inline(always)]
    unsafe fn load<const R: usize, const B: usize>(self, _: S, _: &mut [T::V<S>; R], _: &[[T; R]; 2], _: [usize; 3]) {}
    #[inline(always)]
    unsafe fn store<const R: usize, const B: usize>(self, _: S, _: &mut [T::V<S>; R], _: &[[T; R]; 2], _: [usize; 3]) {}
}

/// One sign for each lane. Without `OUT` there are no signs of the output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Along<T, const OUT: bool>(pub(super) Ends<T>);

impl<T: Scalar, const OUT: bool> Along<T, OUT> {
    /// Multiplies registers by their factors.
    ///
    /// # Safety
    /// There are factors, and signs of these elements.
    #[inline(always)]
    unsafe fn multiply<const R: usize, const B: usize, S: Lanes>(
        self,
        s: S,
        v: &mut [T::V<S>; R],
        [first, row, run]: [usize; 3],
    ) {
        // SAFETY: guaranteed by this function's contract: factors are as many as signs.
        unsafe {
            let mut factors = self.0.factors.add((self.0.start + first) & self.0.mask);
            if R > 4 {
                // As for the elements: a pointer to each register would be kept on the stack.
                factors = std::hint::black_box(factors);
            }
            for (i, v) in v.iter_mut().enumerate() {
                *v = T::vmul(s, *v, T::vload::<S, T>(s, factors.add(i / B * row + i % B * run)));
            }
        }
    }

    /// Changes the signs of registers by the bits from bit `origin` of `bytes` on.
    ///
    /// # Safety
    /// The signs of these elements exist.
    #[inline(always)]
    unsafe fn flip<const R: usize, const B: usize, S: Lanes>(
        self,
        s: S,
        v: &mut [T::V<S>; R],
        bytes: *const u8,
        origin: usize,
        [first, row, run]: [usize; 3],
    ) {
        // The registers lie in one vector, so that the first index alone has bits that do not count.
        let first = origin + ((self.0.start + first) & self.0.mask);
        if T::lanes::<S>() >= 8 && (first | row | run).is_multiple_of(8) {
            // The usual case needs no shift: one instruction takes the bits from memory.
            let bytes = std::hint::black_box(bytes.wrapping_add(first / 8));
            for (i, v) in v.iter_mut().enumerate() {
                // SAFETY: guaranteed by this function's contract: these are the bits of one register, and slack
                // follows.
                *v = T::vflip(s, *v, unsafe { bits_at(bytes.add(i / B * (row / 8) + i % B * (run / 8)), 0) });
            }
            return;
        }
        for (i, v) in v.iter_mut().enumerate() {
            // SAFETY: guaranteed by this function's contract: these are the bits of one register, and slack follows.
            *v = T::vflip(s, *v, unsafe { bits_at(bytes, first + i / B * row + i % B * run) });
        }
    }
}

impl<S: Lanes, T: Scalar, const OUT: bool> Edge<S, T> for Along<T, OUT> {
    const STORES: bool = OUT;
    #[inline(always)]
    fn index(self, row: usize, column: usize, row_len: usize) -> usize {
        row * row_len + column
    }
    #[inline(always)]
    unsafe fn factors<const R: usize, const B: usize>(self, _: usize, _: usize) -> [[T; R]; 2] {
        [[T::zeroed(); R]; 2]
    }
    #[inline(always)]
    unsafe fn load<const R: usize, const B: usize>(self, s: S, v: &mut [T::V<S>; R], _: &[[T; R]; 2], at: [usize; 3]) {
        if !self.0.factors.is_null() && !self.0.output_factors {
            // SAFETY: guaranteed by this function's contract.
            return unsafe { self.multiply::<R, B, S>(s, v, at) };
        }
        if self.0.loads {
            let scale = T::vsplat(s, self.0.scale);
            for v in v.iter_mut() {
                *v = T::vmul(s, *v, scale);
            }
        }
        if !self.0.input.is_null() {
            // SAFETY: guaranteed by this function's contract.
            unsafe { self.flip::<R, B, S>(s, v, self.0.input, self.0.input_first, at) };
        }
    }
    #[inline(always)]
    unsafe fn store<const R: usize, const B: usize>(self, s: S, v: &mut [T::V<S>; R], _: &[[T; R]; 2], at: [usize; 3]) {
        if OUT && self.0.output_factors {
            // SAFETY: guaranteed by this function's contract.
            unsafe { self.multiply::<R, B, S>(s, v, at) };
        } else if OUT && !self.0.output.is_null() {
            // SAFETY: guaranteed by this function's contract.
            unsafe { self.flip::<R, B, S>(s, v, self.0.output, self.0.output_first, at) };
        }
    }
}

/// One sign for each row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Across<T>(pub(super) Ends<T>);

impl<S: Lanes, T: Scalar> Edge<S, T> for Across<T> {
    const STORES: bool = true;
    #[inline(always)]
    fn index(self, row: usize, _: usize, _: usize) -> usize {
        row
    }
    #[inline(always)]
    unsafe fn factors<const R: usize, const B: usize>(self, first: usize, row: usize) -> [[T; R]; 2] {
        let ends = self.0;
        let mut factors = [[ends.scale; R], [T::SIGNS[0]; R]];
        let signs = [(ends.input, ends.input_first), (ends.output, ends.output_first)];
        for (factors, (bytes, origin)) in factors.iter_mut().zip(signs) {
            if bytes.is_null() {
                continue;
            }
            for (i, factor) in factors.iter_mut().enumerate() {
                let index = (ends.start + first + i / B * row) & ends.mask;
                // SAFETY: guaranteed by this function's contract: there is a bit for each row, and slack follows.
                if unsafe { bits_at(bytes, origin + index) } & 1 == 1 {
                    *factor = T::SIGNS[1] * *factor;
                }
            }
        }
        factors
    }
    #[inline(always)]
    unsafe fn load<const R: usize, const B: usize>(
        self,
        s: S,
        v: &mut [T::V<S>; R],
        [factors, _]: &[[T; R]; 2],
        _: [usize; 3],
    ) {
        if self.0.loads {
            for (v, &factor) in v.iter_mut().zip(factors) {
                *v = T::vmul(s, *v, T::vsplat(s, factor));
            }
        }
    }
    #[inline(always)]
    unsafe fn store<const R: usize, const B: usize>(
        self,
        s: S,
        v: &mut [T::V<S>; R],
        [_, factors]: &[[T; R]; 2],
        _: [usize; 3],
    ) {
        if !self.0.output.is_null() {
            for (v, &factor) in v.iter_mut().zip(factors) {
                *v = T::vmul(s, *v, T::vsplat(s, factor));
            }
        }
    }
}
