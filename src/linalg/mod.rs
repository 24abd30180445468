//! Dense host linear algebra that several rooms share: views of columns, triangles, symmetric products. Products, triangular solves and
//! factorizations themselves are faer's.

mod columns;
mod gemm;
mod gram;
mod signs;

pub(crate) use columns::{column, column_mut, mirror};
pub(crate) use gemm::gemm;
pub(crate) use gram::symmetric_product;
pub(crate) use signs::{fix_signs, points_down};
