//! The Gram route for tall matrices: `G = AᵀA` once (SYRK, `m n²` flops, one pass), its dominant eigenvectors `V`, then
//! the image `A V` (one more pass).
//!
//! With G at hand an iteration costs `2 n² l` flops and no pass over A, where the randomized method pays `4 m n l`. For
//! small n the eigenvectors are computed outright and the result is the optimum; otherwise by a sketch and
//! [q filtered products](crate::range) with G, which come closer to it than q power iterations on A.
//!
//! Forming G squares the condition number: eigenvectors whose `σ_i` is under about `√eps σ_1` are noise. The image
//! is computed from A itself, so the singular values and the certificate are right in any case, and show it:
//! when `σ_k` comes out near that floor, [`reaches_floor`] says so and the caller takes another method.

use faer::{Mat, Par};

use super::goal::Goal;
use super::triplets::Triplets;
use super::{Method, Solution, TruncatedSvd, small, stream};
use crate::error::Result;
use crate::operator::{LinearOperator, Panel};
use crate::range::filtered_iteration;
use crate::simd::Scalar;
use crate::sketch::AnySketch;

/// How the eigenvectors of G are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Eigenvectors {
    /// All of them, by a dense solver.
    Dense,
    /// The dominant ones, by subspace iteration.
    Iterated,
}

/// The Gram route. `width` gives the number of columns of the panels, from the squared singular values (nonincreasing)
/// where the dense solver computes them.
pub(super) fn solve<T: Scalar, O: LinearOperator<T>>(
    options: &TruncatedSvd,
    op: &mut O,
    how: Eigenvectors,
    width: impl FnOnce(&[T]) -> usize,
    goal: &Goal,
    par: Par,
) -> Result<Solution<T, O>> {
    let (basis, sketch) = match how {
        Eigenvectors::Dense => (dense(op, width)?.0, None),
        Eigenvectors::Iterated => (iterated(options, op, width(&[]))?, Some(options.sketch)),
    };
    let width = basis.ncols();
    let mut image = op.image(width)?;
    op.apply(&basis, &mut image)?;
    let (triplets, rank, notes) = Triplets::from_right(Some(basis), image, |s, captured| goal.rank(s, captured), par)?;
    Ok(Solution { triplets, rank, width, method: Method::Gram, sketch, certificate: None, notes })
}

/// The eigenvectors of the largest eigenvalues of G, from a dense solver on the host, and all eigenvalues, nonincreasing.
pub(super) fn dense<T: Scalar, O: LinearOperator<T>>(
    op: &mut O,
    width: impl FnOnce(&[T]) -> usize,
) -> Result<(O::Right, Vec<T>)> {
    let n = op.ncols();
    let mut host = Mat::zeros(n, n);
    {
        let mut g = op.gram()?;
        let mut panel = op.right(n)?;
        g.materialize(&mut panel)?;
        panel.copy_to_host(host.as_mut())?;
    }
    let unit = small::normalize(host.as_mut());
    let (mut values, vectors) = small::symmetric_eigen(host.as_ref())?;
    drop(host);
    values.iter_mut().for_each(|x| *x *= unit);
    values.reverse();
    let width = width(&values);
    let mut basis = op.right(width)?;
    basis.copy_from_host(vectors.as_ref().subcols(n - width, width).reverse_cols())?;
    drop(vectors);
    // The dense solver's vectors are orthonormal to some 50 eps; the certificate and V deserve better.
    basis.orthonormalize(None)?;
    Ok((basis, values))
}

/// A basis of the dominant eigenvectors of G, by subspace iteration where G lives.
fn iterated<T: Scalar, O: LinearOperator<T>>(options: &TruncatedSvd, op: &mut O, width: usize) -> Result<O::Right> {
    let mut g = op.gram()?;
    let omega = AnySketch::new(options.sketch, op.ncols(), width, options.seed, stream::RANGE)?;
    let (mut v, mut w) = (op.right(width)?, op.right(width)?);
    filtered_iteration(&mut g, op.norm_squared(), &omega, options.power_iterations, &mut v, &mut w)?;
    Ok(v)
}

/// Whether `σ_k` is so small against `σ_1` that the rounding of G, `eps σ_1²`, is felt in its eigenvector.
pub(super) fn reaches_floor<T: Scalar>(s: &[T], k: usize) -> bool {
    s[k - 1].to_f64() < 8.0 * T::EPSILON.sqrt() * s[0].to_f64()
}
