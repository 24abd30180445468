//! Reductions that the input check and the certificates need: `max |x|`, `Σ x²` in f64, and whether all is finite.
//!
//! One pass reads the bytes of `x` once. Elements are widened in blocks of `BLOCK` into a stack buffer that stays in
//! L1, then folded into `LANES` independent f64 accumulators, so that the loop is a chain of vector FMAs for whatever
//! instruction set runs it; the order of additions is fixed by the length alone.
//!
//! Sums of parts carry their rounding errors along (Knuth's two-sum). Plain addition errs by up to half a unit of the
//! total for each part. Where many small parts are equal, as the columns of `A V` behind a few spikes are, all these
//! errors have one sign, and a certificate by subtraction would be off by many eps of `‖A‖²`.

use pulp::NullaryFnOnce;

use super::Scalar;
use super::convert::convert;
use crate::tensor::{DType, Element};

/// The number of elements that are widened, or folded, at a time.
const BLOCK: usize = 1024;
/// The number of independent accumulators.
const LANES: usize = 32;
/// The number of f32 elements that are summed without carrying the rounding errors along. f16 and bf16 have sums that
/// long exactly.
const PART: usize = 4096;

/// The result of [`statistics`]: largest modulus, sum of squares, and whether all elements are finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistics {
    /// The largest modulus `max |x|`, 0 without elements; unspecified unless `finite`.
    pub largest: f64,
    /// The sum of squares `Σ x²`; infinite if it overflows f64.
    pub sum_squares: f64,
    /// Whether no element is a NaN or an infinity.
    pub finite: bool,
    /// The rounding error of `sum_squares`: the exact sum is about `sum_squares + lost`.
    lost: f64,
}

impl Default for Statistics {
    fn default() -> Self {
        Statistics { largest: 0.0, sum_squares: 0.0, finite: true, lost: 0.0 }
    }
}

impl Statistics {
    /// Returns the statistics of two parts taken together.
    pub fn merge(self, other: Self) -> Self {
        let (sum, lost) = two_sum(self.sum_squares, other.sum_squares);
        let (sum_squares, lost) = two_sum(sum, lost + self.lost + other.lost);
        Statistics { largest: self.largest.max(other.largest), sum_squares, finite: self.finite && other.finite, lost }
    }
}

/// Returns `a + b` and its rounding error, which is 0 if the sum overflows.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let part = sum - a;
    let lost = (a - (sum - part)) + (b - part);
    (sum, if lost.is_finite() { lost } else { 0.0 })
}

/// Computes `max |x|` and `Σ x²` of the elements of `x`, and whether all of them are finite.
pub fn statistics<E: Element>(x: &[E]) -> Statistics {
    statistics_of_lines(std::iter::once(x))
}

/// Computes the [`statistics`] of several lines taken together, faster than line by line where these are short.
pub fn statistics_of_lines<'a, E: Element>(lines: impl Iterator<Item = &'a [E]>) -> Statistics {
    let arch = pulp::Arch::new();
    match E::DTYPE {
        DType::F64 => {
            let blocks = lines.flat_map(|x| x.chunks(BLOCK));
            blocks.fold(Statistics::default(), |total, x| total.merge(arch.dispatch(Fold(bytemuck::cast_slice(x)))))
        }
        DType::F32 => {
            let (mut total, mut part, mut length) = (Statistics::default(), Accumulator::default(), 0);
            for x in lines.flat_map(|x| x.chunks(PART)) {
                if length + x.len() > PART {
                    total = total.merge(std::mem::take(&mut part).finish());
                    length = 0;
                }
                arch.dispatch(Add(&mut part, bytemuck::cast_slice(x)));
                length += x.len();
            }
            total.merge(part.finish())
        }
        DType::F16 | DType::BF16 => {
            let mut buffer = [0f32; BLOCK];
            let mut total = Accumulator::default();
            for block in lines.flat_map(|x| x.chunks(BLOCK)) {
                let wide = &mut buffer[..block.len()];
                convert(block, wide, 1.0);
                arch.dispatch(Add(&mut total, wide));
            }
            total.finish()
        }
    }
}

/// Computes the inner product `Σ x_i y_i` in f64. The order of additions is fixed by the length alone.
///
/// # Panics
/// If the lengths differ.
pub fn dot<T: Scalar>(x: &[T], y: &[T]) -> f64 {
    assert_eq!(x.len(), y.len(), "vectors of one length");
    pulp::Arch::new().dispatch(Dot(x, y))
}

/// The arguments of [`dot`], to be dispatched.
struct Dot<'a, T>(&'a [T], &'a [T]);

impl<T: Scalar> NullaryFnOnce for Dot<'_, T> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        let mut sums = [0.0; LANES];
        let ((xs, x_rest), (ys, y_rest)) = (self.0.as_chunks::<LANES>(), self.1.as_chunks::<LANES>());
        for (x, y) in xs.iter().zip(ys) {
            for lane in 0..LANES {
                sums[lane] += x[lane].to_f64() * y[lane].to_f64();
            }
        }
        let rest: f64 = x_rest.iter().zip(y_rest).map(|(x, y)| (*x).to_f64() * (*y).to_f64()).sum();
        sums.iter().sum::<f64>() + rest
    }
}

/// Computes `Σ y_i²`, `Σ z_i²`, `Σ y_i z_i` and `Σ (y_i − z_i)²` in f64. The order of additions is fixed by the length
/// alone.
///
/// # Panics
/// If the lengths differ.
#[cfg(feature = "linalg")]
pub(crate) fn agreement<T: Scalar>(y: &[T], z: &[T]) -> [f64; 4] {
    assert_eq!(y.len(), z.len(), "vectors of one length");
    pulp::Arch::new().dispatch(Agreement(y, z))
}

/// The arguments of [`agreement`], to be dispatched.
#[cfg(feature = "linalg")]
struct Agreement<'a, T>(&'a [T], &'a [T]);

#[cfg(feature = "linalg")]
impl<T: Scalar> NullaryFnOnce for Agreement<'_, T> {
    type Output = [f64; 4];

    #[inline(always)]
    fn call(self) -> [f64; 4] {
        // Four sums of this many lanes fit the registers of every instruction set.
        const LANES: usize = 8;
        let mut sums = [[0f64; LANES]; 4];
        let mut step = |lane: usize, y: f64, z: f64| {
            sums[0][lane] += y * y;
            sums[1][lane] += z * z;
            sums[2][lane] += y * z;
            sums[3][lane] += (y - z) * (y - z);
        };
        let ((ys, y_rest), (zs, z_rest)) = (self.0.as_chunks::<LANES>(), self.1.as_chunks::<LANES>());
        for (y, z) in ys.iter().zip(zs) {
            for lane in 0..LANES {
                step(lane, y[lane].to_f64(), z[lane].to_f64());
            }
        }
        for (lane, (y, z)) in y_rest.iter().zip(z_rest).enumerate() {
            step(lane, (*y).to_f64(), (*z).to_f64());
        }
        sums.map(|sum| sum.iter().sum())
    }
}

/// The argument of [`fold`], to be dispatched. It is not a closure, because what a closure calls is inlined into the
/// vector code only while it is small.
struct Fold<'a>(&'a [f64]);

impl NullaryFnOnce for Fold<'_> {
    type Output = Statistics;

    #[inline(always)]
    fn call(self) -> Statistics {
        fold(self.0)
    }
}

/// The arguments of [`Accumulator::add`], to be dispatched.
struct Add<'a>(&'a mut Accumulator, &'a [f32]);

impl NullaryFnOnce for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.0.add(self.1);
    }
}

/// The running statistics of f32 elements. The modulus of an f32 is ordered as its bits are, so that one integer
/// maximum finds both the largest and whether all are finite.
#[derive(Default)]
struct Accumulator {
    sums: [f64; LANES],
    largest: [u32; LANES],
}

impl Accumulator {
    /// Adds the elements of `x`.
    #[inline(always)]
    fn add(&mut self, x: &[f32]) {
        let (mut sums, mut largest) = (self.sums, self.largest);
        let (body, tail) = x.as_chunks::<LANES>();
        for chunk in body {
            for lane in 0..LANES {
                let x = f64::from(chunk[lane]);
                sums[lane] += x * x;
                largest[lane] = largest[lane].max(chunk[lane].to_bits() & 0x7fff_ffff);
            }
        }
        for (lane, &x) in tail.iter().enumerate() {
            sums[lane] += f64::from(x) * f64::from(x);
            largest[lane] = largest[lane].max(x.to_bits() & 0x7fff_ffff);
        }
        (self.sums, self.largest) = (sums, largest);
    }

    /// Returns the statistics of all elements that were added.
    fn finish(self) -> Statistics {
        let largest = self.largest.into_iter().fold(0, u32::max);
        let finite = largest < f32::INFINITY.to_bits();
        let largest = if finite { f64::from(f32::from_bits(largest)) } else { f64::INFINITY };
        Statistics { largest, sum_squares: tree_sum(self.sums), finite, lost: 0.0 }
    }
}

/// Computes the statistics of a block of f64.
#[inline(always)]
fn fold(x: &[f64]) -> Statistics {
    let mut sums = [0f64; LANES];
    let mut largest = [0f64; LANES];
    let (body, tail) = x.as_chunks::<LANES>();
    let mut step = |lane: usize, x: f64| {
        sums[lane] += x * x;
        // `max` of f64 ignores NaN; the sums do not.
        largest[lane] = if x.abs() > largest[lane] { x.abs() } else { largest[lane] };
    };
    for chunk in body {
        for lane in 0..LANES {
            step(lane, chunk[lane]);
        }
    }
    for (lane, &x) in tail.iter().enumerate() {
        step(lane, x);
    }
    let sum_squares = tree_sum(sums);
    let largest = largest.into_iter().fold(0.0, f64::max);
    // A NaN makes the sum NaN. An infinity is its own maximum; a finite maximum with an infinite sum only overflowed.
    Statistics { largest, sum_squares, finite: !sum_squares.is_nan() && largest.is_finite(), lost: 0.0 }
}

/// Sums by halves: lane `i` and lane `i + LANES / 2` first.
#[inline(always)]
fn tree_sum(mut x: [f64; LANES]) -> f64 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            x[i] += x[i + width];
        }
        width /= 2;
    }
    x[0]
}

#[cfg(test)]
mod tests {
    use super::Statistics;

    /// Plain addition leaves `2^54` as it is, a thousand times.
    #[test]
    fn small_parts_behind_a_large_one_count() {
        let part = |sum_squares| Statistics { sum_squares, ..Statistics::default() };
        let large = 2f64.powi(54);
        let total = (0..1000).fold(part(large), |total, _| total.merge(part(1.0)));
        assert_eq!(total.sum_squares, large + 1000.0);
    }
}
