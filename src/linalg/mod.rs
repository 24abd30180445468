//! Dense linear algebra on the host that several rooms share: views of columns, triangles, symmetric products. General
//! products, triangular solves and factorizations are those of faer.

mod blocks;
mod columns;
mod gemm;
mod gram;
mod panel;
mod signs;

pub(crate) use blocks::{for_each_line, threads};
pub(crate) use columns::{column, column_mut, is_by_rows, mirror, transpose};
pub(crate) use gemm::gemm;
pub(crate) use gram::{
    add_gram, add_gram_of_block, add_up, gram_groups, symmetric_product, wide_gram, wide_gram_scratch,
};
pub(crate) use panel::{may_win, panel_product_in_blocks, panel_scratch, wins};
pub(crate) use signs::{fix_signs, fix_signs_by, peak, points_down};
