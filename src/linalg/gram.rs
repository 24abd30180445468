//! Gram matrices on the host.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, MatMut, MatRef, Par};

use crate::simd::Scalar;

/// The lower triangle of `g <- [g +] a aᵀ` (SYRK).
pub(crate) fn symmetric_product<T: Scalar>(a: MatRef<'_, T>, g: MatMut<'_, T>, accum: Accum, par: Par) {
    triangular::matmul(
        g,
        BlockStructure::TriangularLower,
        accum,
        a,
        BlockStructure::Rectangular,
        a.transpose(),
        BlockStructure::Rectangular,
        T::one(),
        par,
    );
}
