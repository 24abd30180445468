//! What orthonormalization asks of a panel, wherever that lives.
//!
//! A panel forms Gram matrices, divides by triangles, scales its columns and reflects. It does these as a closure over
//! a [`Step`], so that the driver is compiled once for each arithmetic, and a panel in memory hands its kernels the
//! scratch that the caller gave.

use faer::dyn_stack::MemStack;
use faer::{MatMut, MatRef};

use super::outcome::Algorithm;
use crate::error::Result;
use crate::simd::Scalar;

/// Of what a Gram matrix is formed, and in which arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GramOf {
    /// The panel, in its own arithmetic.
    Panel,
    /// The panel, products and sums in f64.
    WidePanel,
    /// A sketch of the panel, in f64.
    Sketch,
    /// A sketch of the panel, in its own arithmetic where that is faster and not f64: enough up to a condition of some
    /// thousands.
    NarrowSketch,
}

/// What is asked of an m × l panel Y.
pub enum Step<'a, T: Scalar> {
    /// `Y <- Y L⁻ᵀ` if there is a divisor (its lower triangle is L), then the lower triangle of a Gram matrix into
    /// `gram`. Only that of the panel in its own arithmetic comes with a divisor.
    ///
    /// The answer is false, and `gram` as it was, if the panel is not sketched.
    Gram {
        /// L.
        divisor: Option<MatRef<'a, T>>,
        /// Of what.
        of: GramOf,
        /// l × l.
        gram: MatMut<'a, f64>,
    },
    /// `Y <- Y L⁻ᵀ`, L the lower triangle of `divisor`; and `beside` once, on the host, at the same time if that is
    /// possible.
    Divide {
        /// L.
        divisor: MatRef<'a, T>,
        /// What there is to do meanwhile.
        beside: &'a mut (dyn FnMut() + Send),
    },
    /// Scales column j by `2^-e_j` so that its largest entry lies in [1, 2), and leaves columns of zeros with
    /// `e_j = 0`. The answer is whether there are none of these. A value that is not finite is an error.
    Equilibrate {
        /// e, of l numbers, zeros at first.
        exponents: &'a mut [i32],
    },
    /// `Y = Q R` by reflections: Q takes the place of Y, `r` (l × l, zeros at first) gets the upper triangular R, whose
    /// diagonal is not negative.
    Reflect {
        /// R.
        r: MatMut<'a, T>,
        /// How it was done.
        algorithm: &'a mut Algorithm,
    },
}

/// A panel, as a function that does what a step asks for with the scratch that it is given; the answer is true where a
/// step does not say otherwise.
pub type Steps<'y, T> = &'y mut dyn FnMut(Step<'_, T>, &mut MemStack) -> Result<bool>;
