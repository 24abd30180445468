//! The steps that orthonormalization asks of a panel, wherever that lives.
//!
//! A panel forms Gram matrices, divides by triangles, scales its columns and reflects. It does these as a closure over
//! a [`Step`], so that the driver is compiled once for each arithmetic, and a panel in memory hands its kernels the
//! scratch that the caller gave.

use faer::dyn_stack::MemStack;
use faer::{MatMut, MatRef};

use super::outcome::Algorithm;
use crate::error::Result;
use crate::simd::Scalar;

/// What a Gram matrix is formed of, and in which arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GramOf {
    /// The panel, in its own arithmetic.
    Panel,
    /// The panel, with products and sums in f64.
    WidePanel,
    /// A sketch of the panel, in f64.
    Sketch,
    /// A sketch of the panel, in the panel's arithmetic where that is faster than f64. It suffices up to a condition of
    /// some thousands.
    NarrowSketch,
}

/// A step of the orthonormalization of an m × l panel Y.
pub enum Step<'a, T: Scalar> {
    /// Computes `Y <- Y L⁻ᵀ` if there is a divisor (L is its lower triangle), then the lower triangle of a Gram matrix
    /// into `gram`. A divisor comes only with [`GramOf::Panel`].
    ///
    /// The answer is false, and `gram` unchanged, if the panel is not sketched.
    Gram {
        /// The divisor, l × l; L is its lower triangle.
        divisor: Option<MatRef<'a, T>>,
        /// What the Gram matrix is formed of.
        of: GramOf,
        /// The Gram matrix, l × l.
        gram: MatMut<'a, f64>,
    },
    /// Computes `Y <- Y L⁻ᵀ`, with L the lower triangle of `divisor`, and calls `beside` once on the host, at the same
    /// time if that is possible.
    Divide {
        /// The divisor, l × l; L is its lower triangle.
        divisor: MatRef<'a, T>,
        /// Work for the host while the panel is divided.
        beside: &'a mut (dyn FnMut() + Send),
    },
    /// Scales column j by `2^-e_j` so that its largest entry lies in [1, 2), and leaves columns of zeros with
    /// `e_j = 0`. The answer is whether no column is zero. A value that is not finite is an error.
    Equilibrate {
        /// The l exponents `e_j`, zeros at first.
        exponents: &'a mut [i32],
    },
    /// Factors `Y = Q R` by reflections: Q takes the place of Y, and `r` (l × l, zeros at first) gets the upper
    /// triangular R, whose diagonal is not negative.
    Reflect {
        /// R, l × l.
        r: MatMut<'a, T>,
        /// The algorithm that was used.
        algorithm: &'a mut Algorithm,
    },
}

/// A panel as a function that does a step with the scratch that it is given. The answer is true unless the step says
/// otherwise.
pub type Steps<'y, T> = &'y mut dyn FnMut(Step<'_, T>, &mut MemStack) -> Result<bool>;
