//! Several matrices as one, without a copy of them: one above the other, or side by side.
//!
//! ```text
//!   Rows      [ A ]   lines of A, then lines of B          Columns    [ A  B ]   line i is that of A, then that of B
//!             [ B ]
//! ```
//!
//! A factorization of the first has one Vᵀ and a part of U for each matrix, as query, key and value projections share
//! an input (ModelOpt exports them so); one of the second has one U (Basis Sharing, arXiv 2410.03765). Groups of heads
//! that share one projection are a stack, too (Palu, 2407.21118).
//!
//! **Why a source of rows.** Methods, memory limits, calibration and certificates of a [`RowSource`] are those of the
//! stack; no algorithm knows of it. **Cost.** A pass reads each matrix once; lines that are put together go through a
//! run of [`SCRATCH`] bytes.

use std::ops::Range;

use super::RowSource;
use crate::error::{Error, Result};
use crate::tensor::DType;

/// The bytes that are read at a time of a matrix whose lines are parts of those of the whole, or one line of it.
const SCRATCH: usize = 256 << 10;

/// The way in which matrices are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Along {
    /// One above the other: they have the same number of columns, and share `Vᵀ`.
    Rows,
    /// Side by side: they have the same number of rows, and share `U`.
    Columns,
}

/// Matrices of one element type and one order of lines as a single source of rows.
#[derive(Debug)]
pub struct Stack<S> {
    sources: Vec<S>,
    shape: (usize, usize),
    /// Whether lines of the whole are put together of lines of all matrices.
    joined: bool,
    scratch: Vec<u8>,
}

impl<S: RowSource> Stack<S> {
    /// Puts matrices together. Nothing is read yet.
    ///
    /// # Errors
    /// [`Error::Empty`] without matrices; [`Error::Shape`] unless they have the same number of columns (or rows);
    /// [`Error::Option`] for different element types, or for some by rows and others by columns.
    pub fn new(sources: Vec<S>, along: Along) -> Result<Self> {
        let Some(first) = sources.first() else { return Err(Error::Empty { shape: vec![0] }) };
        let (m, n) = first.shape();
        for source in &sources {
            let (rows, cols) = source.shape();
            let (have, want, what) = match along {
                Along::Rows => (cols, n, "columns"),
                Along::Columns => (rows, m, "rows"),
            };
            if have != want {
                return Err(Error::shape("Stack", format_args!("matrices of {want} {what}, as the first has"), have));
            }
            if source.dtype() != first.dtype() {
                return Err(Error::unsuited("stack", "has matrices of several element types; give them in one"));
            }
            if source.is_column_major() != first.is_column_major() {
                let why = "has matrices by rows and others by columns; give all in one order";
                return Err(Error::unsuited("stack", why));
            }
        }
        let sum = |of: fn((usize, usize)) -> usize| sources.iter().map(|s| of(s.shape())).sum();
        let shape = match along {
            Along::Rows => (sum(|s| s.0), n),
            Along::Columns => (m, sum(|s| s.1)),
        };
        let joined = first.is_column_major() == (along == Along::Rows);
        Ok(Stack { sources, shape, joined, scratch: Vec::new() })
    }

    /// Returns the lines of a matrix and the elements of each.
    fn lines(source: &S) -> (usize, usize) {
        let (m, n) = source.shape();
        if source.is_column_major() { (n, m) } else { (m, n) }
    }

    /// Fills `dst`, lines of `width` bytes, with elements `part` of the lines that each matrix has in `lines`.
    fn fill(&mut self, lines: Range<usize>, part: Range<usize>, dst: &mut [u8]) -> Result<()> {
        let size = self.dtype().size();
        let width = part.len() * size;
        let mut start = 0;
        for source in &mut self.sources {
            let (_, length) = Self::lines(source);
            let (from, to) = (part.start.clamp(start, start + length), part.end.clamp(start, start + length));
            start += length;
            if from == to {
                continue;
            }
            let (here, at) = (from + length - start..to + length - start, (from - part.start) * size);
            if here.len() < length {
                // Parts of lines come from all lines at once, as many elements of each as scratch has room for.
                let some = (SCRATCH / (lines.len() * size).max(1)).max(1);
                for first in here.clone().step_by(some) {
                    let now = first..here.end.min(first + some);
                    let (run, at) = (now.len() * size, at + (first - here.start) * size);
                    self.scratch.resize(lines.len() * run, 0);
                    source.read_block(now, &mut self.scratch)?;
                    scatter(&self.scratch, run, dst, width, at);
                }
                continue;
            }
            let run = here.len() * size;
            let some = (SCRATCH / run).max(1);
            for first in lines.clone().step_by(some) {
                let count = some.min(lines.end - first);
                self.scratch.resize(count * run, 0);
                source.read_rows(first, &mut self.scratch)?;
                scatter(&self.scratch, run, &mut dst[(first - lines.start) * width..], width, at);
            }
        }
        Ok(())
    }
}

/// Copies runs to byte `at` of consecutive lines.
fn scatter(runs: &[u8], run: usize, dst: &mut [u8], width: usize, at: usize) {
    for (dst, src) in dst.chunks_exact_mut(width).zip(runs.chunks_exact(run)) {
        dst[at..at + run].copy_from_slice(src);
    }
}

impl<S: RowSource> RowSource for Stack<S> {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn dtype(&self) -> DType {
        self.sources[0].dtype()
    }

    fn is_column_major(&self) -> bool {
        self.sources[0].is_column_major()
    }

    fn scratch_bytes(&self) -> usize {
        let own = self.sources.iter().map(RowSource::scratch_bytes).max().unwrap_or(0);
        let longest = self.sources.iter().map(|s| Self::lines(s).1 * s.dtype().size()).max().unwrap_or(0);
        let lines = Self::lines(&self.sources[0]).0 * self.dtype().size();
        own + if self.joined { SCRATCH.max(longest).max(lines) } else { 0 }
    }

    fn read_rows(&mut self, first: usize, dst: &mut [u8]) -> Result<()> {
        let (m, n) = self.shape;
        let width = if self.is_column_major() { m } else { n };
        let line = width * self.dtype().size();
        if self.joined {
            return self.fill(first..first + dst.len() / line, 0..width, dst);
        }
        let (mut start, mut next, mut left) = (0, first, dst);
        for source in &mut self.sources {
            let (count, _) = Self::lines(source);
            let here = (start + count).saturating_sub(next).min(left.len() / line);
            if next < start + count && here > 0 {
                let (now, later) = left.split_at_mut(here * line);
                source.read_rows(next - start, now)?;
                (next, left) = (next + here, later);
            }
            start += count;
        }
        Ok(())
    }

    fn read_block(&mut self, part: Range<usize>, dst: &mut [u8]) -> Result<()> {
        let size = self.dtype().size();
        if self.joined {
            let (lines, _) = Self::lines(&self.sources[0]);
            return self.fill(0..lines, part, dst);
        }
        let mut left = dst;
        for source in &mut self.sources {
            let (count, _) = Self::lines(source);
            let (now, later) = left.split_at_mut(count * part.len() * size);
            source.read_block(part.clone(), now)?;
            left = later;
        }
        Ok(())
    }
}
