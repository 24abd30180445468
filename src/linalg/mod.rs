//! Dense host linear algebra that several rooms share: views of columns, triangles, symmetric products. Products,
//! triangular solves and factorizations themselves are faer's.

mod blocks;
mod columns;
mod gemm;
mod gram;
mod signs;

pub(crate) use blocks::{for_each, for_each_line, strips_of_rows, threads};
pub(crate) use columns::{column, column_mut, is_by_rows, mirror, transpose};
pub(crate) use gemm::gemm;
pub(crate) use gram::{add_gram, add_up, gram_groups, symmetric_product, wide_gram, wide_gram_scratch};
pub(crate) use signs::{fix_signs, points_down};
