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
//! A kernel is compiled once for the edges, whatever they do, and once for what lies between them, where there is
//! nothing to ask.

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

/// How signs lie over the registers of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    /// One sign for each lane.
    Along,
    /// One sign for each row.
    Across,
}

/// Scale and signs as passes take them. The pointers are null where there are no signs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends<T> {
    axis: Axis,
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
    pub(super) fn new(edges: &Edges<'_>, axis: Axis, start: usize, mask: usize) -> Self {
        let bits = |signs: Option<Signs<'_>>| signs.map_or((std::ptr::null(), 0), |s| (s.bytes.as_ptr(), s.first));
        let ((input, input_first), (output, output_first)) = (bits(edges.input), bits(edges.output));
        let scale = T::from_f64(edges.scale);
        let (factors, output_factors) = (std::ptr::null(), false);
        let loads = true;
        Ends { axis, scale, loads, factors, output_factors, input, input_first, output, output_first, start, mask }
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
    pub(super) fn from(&self, by: usize) -> Self {
        Ends { start: self.start + by, ..*self }
    }

    /// Returns what the first pass does, if it is not the last one; nothing if that has been done.
    pub(super) fn first(&self) -> Option<Self> {
        self.loads.then_some(Ends { output: std::ptr::null(), ..*self })
    }

    /// Returns what the last pass does, if it is not the first one; nothing without signs.
    pub(super) fn last(&self) -> Option<Self> {
        (!self.output.is_null()).then_some(Ends { loads: false, input: std::ptr::null(), ..*self })
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
/// Register `i` of `R` has index `first + (i / B)·row + (i % B)·run`, where [`index`](Self::index) gave all three.
impl<T: Scalar> Ends<T> {
    /// Returns the index of an element by its place among the rows of the pass, which are `row_len` elements apart.
    #[inline(always)]
    pub(super) fn index(&self, row: usize, column: usize, row_len: usize) -> usize {
        match self.axis {
            Axis::Along => row * row_len + column,
            Axis::Across => row,
        }
    }

    /// Returns the factors of `R` rows, for loads and stores. Where signs belong to lanes they mean nothing.
    ///
    /// # Safety
    /// The signs of these rows exist.
    #[inline(always)]
    pub(super) unsafe fn row_factors<const R: usize, const B: usize>(&self, first: usize, row: usize) -> [[T; R]; 2] {
        let mut factors = [[self.scale; R], [T::SIGNS[0]; R]];
        if self.axis == Axis::Along {
            return factors;
        }
        let signs = [(self.input, self.input_first), (self.output, self.output_first)];
        for (factors, (bytes, origin)) in factors.iter_mut().zip(signs) {
            if bytes.is_null() {
                continue;
            }
            for (i, factor) in factors.iter_mut().enumerate() {
                let index = (self.start + first + i / B * row) & self.mask;
                // SAFETY: guaranteed by this function's contract: there is a bit for each row, and slack follows.
                if unsafe { bits_at(bytes, origin + index) } & 1 == 1 {
                    *factor = T::SIGNS[1] * *factor;
                }
            }
        }
        factors
    }

    /// Returns whether elements that are `by` elements apart have the same signs, wherever they are.
    pub(super) fn repeats(&self, by: usize) -> bool {
        by & self.mask == 0
    }

    /// Writes the factors of elements `first..first + some` when they are loaded, and when they are stored, to the first
    /// lanes of a register each.
    ///
    /// # Safety
    /// The signs of these elements exist.
    #[inline(always)]
    pub(super) unsafe fn write_factors<V: bytemuck::Pod>(&self, first: usize, some: usize, factors: &mut [[V; 1]; 2]) {
        let ends = [
            (if self.loads { self.scale } else { T::SIGNS[0] }, self.input, self.input_first),
            (T::SIGNS[0], self.output, self.output_first),
        ];
        for (lanes, (factor, bytes, origin)) in factors.iter_mut().zip(ends) {
            let lanes: &mut [T] = bytemuck::cast_slice_mut(lanes);
            for (i, lane) in lanes[..some].iter_mut().enumerate() {
                let index = (self.start + first + i) & self.mask;
                // SAFETY: guaranteed by this function's contract: there is a bit for each element, and slack follows.
                let minus = !bytes.is_null() && unsafe { bits_at(bytes, origin + index) } & 1 == 1;
                *lane = if minus { T::SIGNS[1] * factor } else { factor };
            }
        }
    }

    /// Scales loaded registers and sets their signs; `factors` are the [`row_factors`](Self::row_factors).
    ///
    /// # Safety
    /// The signs of these elements exist.
    #[inline(always)]
    pub(super) unsafe fn load<const R: usize, const B: usize, S: Lanes>(
        &self,
        s: S,
        v: &mut [T::V<S>; R],
        [factors, _]: &[[T; R]; 2],
        at: [usize; 3],
    ) {
        if self.axis == Axis::Across {
            if self.loads {
                multiply_rows::<R, S, T>(s, v, factors);
            }
            return;
        }
        if !self.factors.is_null() && !self.output_factors {
            // SAFETY: guaranteed by this function's contract.
            return unsafe { self.multiply::<R, B, S>(s, v, at) };
        }
        if self.loads {
            let scale = T::vsplat(s, self.scale);
            for v in v.iter_mut() {
                *v = T::vmul(s, *v, scale);
            }
        }
        if !self.input.is_null() {
            // SAFETY: guaranteed by this function's contract.
            unsafe { self.flip::<R, B, S>(s, v, self.input, self.input_first, at) };
        }
    }

    /// Sets the signs of registers that are to be stored; `factors` are the [`row_factors`](Self::row_factors).
    ///
    /// # Safety
    /// The signs of these elements exist.
    #[inline(always)]
    pub(super) unsafe fn store<const R: usize, const B: usize, S: Lanes>(
        &self,
        s: S,
        v: &mut [T::V<S>; R],
        [_, factors]: &[[T; R]; 2],
        at: [usize; 3],
    ) {
        if self.output.is_null() {
            return;
        }
        if self.axis == Axis::Across {
            multiply_rows::<R, S, T>(s, v, factors);
        } else if self.output_factors {
            // SAFETY: guaranteed by this function's contract.
            unsafe { self.multiply::<R, B, S>(s, v, at) };
        } else {
            // SAFETY: guaranteed by this function's contract.
            unsafe { self.flip::<R, B, S>(s, v, self.output, self.output_first, at) };
        }
    }

    /// Multiplies registers by the factors of their elements.
    ///
    /// # Safety
    /// There are factors, and signs of these elements.
    #[inline(always)]
    unsafe fn multiply<const R: usize, const B: usize, S: Lanes>(
        &self,
        s: S,
        v: &mut [T::V<S>; R],
        [first, row, run]: [usize; 3],
    ) {
        // SAFETY: guaranteed by this function's contract: factors are as many as signs.
        unsafe {
            let mut factors = self.factors.add((self.start + first) & self.mask);
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
        &self,
        s: S,
        v: &mut [T::V<S>; R],
        bytes: *const u8,
        origin: usize,
        [first, row, run]: [usize; 3],
    ) {
        // The registers lie in one vector, so that the first index alone has bits that do not count.
        let first = origin + ((self.start + first) & self.mask);
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

/// Multiplies each register by its factor.
#[inline(always)]
fn multiply_rows<const R: usize, S: Lanes, T: Scalar>(s: S, v: &mut [T::V<S>; R], factors: &[T; R]) {
    for (v, &factor) in v.iter_mut().zip(factors) {
        *v = T::vmul(s, *v, T::vsplat(s, factor));
    }
}
