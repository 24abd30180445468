//! Dense linear algebra on host views, on which panels, quadratic forms and orthonormalization stand.

pub(crate) mod blocks;
pub(crate) mod columns;
pub(crate) mod gram;
