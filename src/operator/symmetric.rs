//! A symmetric matrix where panels live: the Gram matrix of an operator.

use std::marker::PhantomData;

use super::Watch;
use crate::error::Result;
use crate::simd::Scalar;
use crate::sketch::AnySketch;
use crate::space::{Panel, Side, Space};

/// A symmetric matrix of order n, held as a panel of n rows and columns.
pub struct Symmetric<T: Scalar, S: Space<T>> {
    space: S,
    whole: Panel<T, S>,
    norm_squared: f64,
    watch: Watch<'static>,
    arithmetic: PhantomData<T>,
}

impl<T: Scalar, S: Space<T>> Symmetric<T, S> {
    /// Takes a square panel whose two triangles are each other's mirror images.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) in a space on a device.
    pub fn new(space: &S, whole: Panel<T, S>) -> Result<Self> {
        let norm_squared = space.dot(&whole, &whole)?;
        let (space, watch) = (space.clone(), Watch::default());
        Ok(Symmetric { space, whole, norm_squared, watch, arithmetic: PhantomData })
    }

    /// Makes every product ask `watch` whether to go on. Products with a Gram matrix do not read the matrix that it
    /// comes from, so that `watch` is told of no reads.
    #[must_use]
    #[doc(hidden)]
    pub fn watched(mut self, watch: &Watch<'_>) -> Self {
        self.watch = watch.without_reads();
        self
    }

    /// Returns the order, n.
    #[doc(hidden)]
    pub fn order(&self) -> usize {
        self.space.shape(&self.whole).1
    }

    /// Returns `‖G‖_F²`, in f64.
    #[doc(hidden)]
    pub fn norm_squared(&self) -> f64 {
        self.norm_squared
    }

    /// Returns the matrix, both triangles.
    #[doc(hidden)]
    pub fn panel(&self) -> &Panel<T, S> {
        &self.whole
    }

    /// Computes `y <- G x`, both of n rows.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled) if the watch says so, [`Error::Device`](crate::Error::Device) in a
    /// space on a device.
    pub fn apply(&self, x: &Panel<T, S>, y: &mut Panel<T, S>) -> Result<()> {
        self.watch.check()?;
        self.space.multiply_panels(Side::Plain, &self.whole, x, y)
    }

    /// Computes `y <- (G − shift I) Ω` at the cost of a sketch, with Ω of n rows. Afterwards G is as before.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled) if the watch says so, [`Error::Device`](crate::Error::Device) in a
    /// space on a device.
    pub fn sketch(&mut self, shift: f64, omega: &AnySketch, y: &mut Panel<T, S>) -> Result<()> {
        self.watch.check()?;
        self.space.sketch(&mut self.whole, shift, omega, y)
    }
}
