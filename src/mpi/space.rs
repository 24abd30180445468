//! The space of panels on ranks: each rank computes on the rows of its blocks, and sums over rows go up the tree.
//!
//! ```text
//!   Y += α A C     block by block            YᵀZ, YᵀY, ⟨Y, Z⟩    a product for each block, then a sum of l × l
//!   Y L⁻ᵀ          block by block            Y = Q R             CholeskyQR by the driver of `qr`, from such sums
//! ```
//!
//! **Cost.** What a host does with its rows, and `2 (P − 1)` messages of l² numbers for each sum. Panels that are whole
//! on each rank cost their full work on each of them.
//!
//! **Rows and whole panels** meet where one operand has rows: the other one gives the rows that are needed. Of the long
//! factor each rank brings home its own rows. Only a panel whose columns depend on each other, so that CholeskyQR cannot
//! do it, is put together on every rank.
//!
//! Blocks are kernels of one thread each, several at a time: there are more of them than threads, and nothing waits.

use std::cell::RefCell;
use std::ops::{Deref, Range};
use std::rc::Rc;
use std::sync::Mutex;

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::prelude::{Reborrow as _, ReborrowMut as _};
use faer::{Accum, Mat, MatMut, MatRef, Par};

use super::blocks::Blocks;
use super::communicator::Communicator;
use super::panel::{Data, RankPanel, host_panel};
use super::sums::{Merge, Sum, told};
use crate::error::{Error, Result};
use crate::parallel;
use crate::qr::{self, Algorithm, GramOf, Orthonormalization, Step, tsqr};
use crate::simd::Scalar;
use crate::sketch::AnySketch;
use crate::space::{Access, Effort, Host, HostPanel, Layout, Shared, Side, Space};
use crate::tensor::Element;

/// How many blocks are done before their parts are added.
const AT_ONCE: usize = 8;

/// The largest part, in numbers, of which several are held at a time.
const SMALL_PART: usize = 1 << 20;

/// The space of the panels of one distributed matrix.
#[derive(Clone)]
pub(crate) struct Ranks<'c> {
    comm: &'c dyn Communicator,
    host: Host,
    blocks: Blocks,
    /// What has failed on this rank and is not yet known to the others.
    failure: Rc<RefCell<Option<Error>>>,
}

/// The rows of a panel on this rank, block by block: its own, or copies from a whole panel.
pub(super) enum Rows<'a, T> {
    Own(&'a [HostPanel<T>]),
    Copies(Vec<HostPanel<T>>),
}

impl<T> Deref for Rows<'_, T> {
    type Target = [HostPanel<T>];

    fn deref(&self) -> &[HostPanel<T>] {
        match self {
            Rows::Own(rows) => rows,
            Rows::Copies(rows) => rows,
        }
    }
}

/// A panel whole on this rank: its own memory, or put together.
pub(super) enum Whole<'a, T> {
    Own(&'a HostPanel<T>),
    Copy(HostPanel<T>),
}

impl<T> Deref for Whole<'_, T> {
    type Target = HostPanel<T>;

    fn deref(&self) -> &HostPanel<T> {
        match self {
            Whole::Own(whole) => whole,
            Whole::Copy(whole) => whole,
        }
    }
}

/// Calls `f` with each item, on as many threads as there are, and returns the first error.
pub(super) fn each<I: Send>(par: Par, items: Vec<I>, f: impl Fn(I) -> Result<()> + Sync) -> Result<()> {
    let done = Mutex::new(Ok(()));
    parallel::for_each_of(par, items, |item| {
        if let Err(e) = f(item) {
            *parallel::lock(&done) = Err(e);
        }
    });
    done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Returns a host for what one thread does.
pub(super) fn alone() -> Host {
    Host::new(Par::Seq)
}

impl<'c> Ranks<'c> {
    pub(crate) fn new(comm: &'c dyn Communicator, (rows, columns): (usize, usize), par: Par) -> Self {
        let blocks = Blocks::new((rows, columns), comm.rank(), comm.size());
        Ranks { comm, host: Host::new(par), blocks, failure: Rc::default() }
    }

    pub(crate) fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    pub(super) fn comm(&self) -> &'c dyn Communicator {
        self.comm
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// Keeps a failure of this rank until the next sum tells the others; a later one is of no interest.
    pub(crate) fn fail(&self, error: Error) {
        self.failure.borrow_mut().get_or_insert(error);
    }

    /// Tells whether this rank has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    /// Returns the failure of this rank.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.failure.borrow().clone()
    }

    /// Returns what failed on rank `from`, on all ranks.
    pub(super) fn told(&self, from: usize) -> Error {
        let text = self.failure.borrow().as_ref().map(ToString::to_string);
        told(self.comm, from, text.as_deref())
    }

    /// Puts together a sum.
    pub(super) fn finish<T: Scalar>(&self, sum: Sum<T>) -> Result<Vec<T>> {
        let failure = self.failure();
        sum.finish(self.comm, failure.as_ref())
    }

    /// Sums a vector over all blocks, of which `part` computes that of the i-th block of this rank.
    pub(super) fn sum<T: Scalar>(
        &self,
        merge: Merge,
        length: usize,
        part: impl Fn(usize) -> Result<Vec<T>> + Sync,
    ) -> Result<Vec<T>> {
        let mut sum = Sum::new(self.blocks, merge, length);
        let count = if self.has_failed() { 0 } else { self.blocks.own().len() };
        let at_once = if length > SMALL_PART { 1 } else { AT_ONCE };
        for start in (0..count).step_by(at_once) {
            let parts = parallel::map(self.host.par(), at_once.min(count - start), |i| part(start + i));
            for part in parts {
                match part {
                    Ok(part) => sum.push(part),
                    Err(e) => self.fail(e),
                }
            }
        }
        self.finish(sum)
    }

    /// Returns the rows of this rank, block by block.
    pub(super) fn rows<'a, T: Scalar>(&self, y: &'a RankPanel<T>) -> Rows<'a, T> {
        match &y.data {
            Data::Rows(rows) => Rows::Own(rows),
            Data::Zeros => Rows::Copies(self.zero_rows(y)),
            Data::Whole(whole) => {
                let copies = self.zero_rows(y);
                let own = self.blocks.own();
                let fill = |(block, mut copy): (usize, HostPanel<T>)| {
                    let rows = self.blocks.rows_of(block);
                    copy.as_mut().copy_from(whole.as_ref().subrows(rows.start, rows.len()));
                    copy
                };
                Rows::Copies(own.zip(copies).map(fill).collect())
            }
        }
    }

    fn zero_rows<T: Scalar>(&self, y: &RankPanel<T>) -> Vec<HostPanel<T>> {
        let panel = |block| host_panel(self.blocks.rows_of(block).len(), y.ncols, y.layout, &self.host);
        self.blocks.own().map(panel).collect()
    }

    /// Returns the panel, whole on this rank.
    pub(super) fn whole<'a, T: Scalar>(&self, y: &'a RankPanel<T>) -> Result<Whole<'a, T>> {
        Ok(match &y.data {
            Data::Whole(whole) => Whole::Own(whole),
            Data::Zeros => Whole::Copy(host_panel(y.nrows, y.ncols, y.layout, &self.host)),
            Data::Rows(rows) => {
                let mut whole = host_panel(y.nrows, y.ncols, Layout::Columns, &self.host);
                self.put_together(rows, whole.as_mut())?;
                Whole::Copy(whole)
            }
        })
    }

    /// Makes the panel one of rows, and returns them. Unless `keep` says so, their contents are of no interest.
    pub(super) fn to_rows<'a, T: Scalar>(&self, y: &'a mut RankPanel<T>, keep: bool) -> &'a mut Vec<HostPanel<T>> {
        if !y.is_rows() {
            let rows = match self.rows(y) {
                Rows::Copies(rows) if keep => rows,
                _ => self.zero_rows(y),
            };
            y.data = Data::Rows(rows);
        }
        match &mut y.data {
            Data::Rows(rows) => rows,
            _ => unreachable!("it was made one of rows"),
        }
    }

    /// Makes the panel a whole one, and returns it. Unless `keep` says so, its contents are of no interest.
    pub(super) fn to_whole<'a, T: Scalar>(&self, y: &'a mut RankPanel<T>, keep: bool) -> Result<&'a mut HostPanel<T>> {
        if !matches!(y.data, Data::Whole(_)) {
            let whole = match keep {
                true => match self.whole(y)? {
                    Whole::Copy(whole) => whole,
                    Whole::Own(_) => unreachable!("it is not whole"),
                },
                false => host_panel(y.nrows, y.ncols, y.layout, &self.host),
            };
            y.data = Data::Whole(whole);
        }
        match &mut y.data {
            Data::Whole(whole) => Ok(whole),
            _ => unreachable!("it was made a whole one"),
        }
    }

    /// Copies the rows of all ranks to `dst`.
    fn put_together<T: Scalar>(&self, rows: &[HostPanel<T>], dst: MatMut<'_, T>) -> Result<()> {
        let mut mine: Vec<T> = Vec::with_capacity(self.blocks.own_rows().len() * dst.ncols());
        for block in rows {
            let block = block.as_ref();
            (0..block.nrows()).for_each(|i| mine.extend(block.row(i).iter()));
        }
        self.gather(&mine, dst)
    }

    /// Copies the rows of the other ranks to `dst`, of which each rank has written its own.
    pub(crate) fn share_rows<T: Scalar>(&self, dst: MatMut<'_, T>) -> Result<()> {
        let rows = self.blocks.own_rows();
        let mut mine: Vec<T> = Vec::with_capacity(rows.len() * dst.ncols());
        rows.for_each(|i| mine.extend(dst.rb().row(i).iter()));
        self.gather(&mine, dst)
    }

    /// Copies the rows of all ranks to `dst`; those of this one are `mine`, row by row.
    fn gather<T: Scalar>(&self, mine: &[T], mut dst: MatMut<'_, T>) -> Result<()> {
        let l = dst.ncols();
        let bytes = |rank| self.blocks.rows_within(&self.blocks.of_rank(rank)).len() * l * size_of::<T>();
        let lengths: Vec<usize> = (0..self.blocks.size()).map(bytes).collect();
        let mut all = vec![T::zeroed(); self.blocks.rows() * l];
        self.comm.gather(bytemuck::cast_slice(mine), &lengths, bytemuck::cast_slice_mut(&mut all))?;
        dst.copy_from(MatRef::from_row_major_slice(&all, self.blocks.rows(), l));
        Ok(())
    }

    /// Sums `aᵢᵀ bᵢ` over the blocks, as columns one after the other.
    fn products<T: Scalar>(&self, a: &RankPanel<T>, b: &RankPanel<T>) -> Result<Mat<T>> {
        let (r, l) = (a.ncols, b.ncols);
        let (rows_of_a, same) = (self.rows(a), std::ptr::eq(a, b));
        let rows_of_b = if same { None } else { Some(self.rows(b)) };
        let sum = self.sum(Merge::Add, r * l, |i| {
            let mut part = vec![T::zeroed(); r * l];
            let b = rows_of_b.as_ref().map_or(&rows_of_a[i], |rows| &rows[i]);
            alone().inner(&rows_of_a[i], b, MatMut::from_column_major_slice_mut(&mut part, r, l))?;
            Ok(part)
        })?;
        Ok(MatRef::from_column_major_slice(&sum, r, l).to_owned())
    }

    /// Does a step that the driver of orthonormalization asks for.
    fn step<T: Scalar>(&self, y: &mut RankPanel<T>, step: Step<'_, T>) -> Result<bool> {
        match step {
            Step::Gram { of: GramOf::Sketch | GramOf::NarrowSketch, .. } => return Ok(false),
            Step::Gram { of: GramOf::WidePanel, gram, .. } => self.gram(y, gram)?,
            Step::Gram { divisor, of: GramOf::Panel, mut gram } => {
                if let Some(divisor) = divisor {
                    self.divide(y, divisor)?;
                }
                let (l, rows) = (y.ncols, self.rows(y));
                // The products of a block are in T and their sums in f64, which costs nothing and keeps digits.
                let sum = self.sum(Merge::Add, l * l, |i| {
                    let mut part = Mat::<T>::zeros(l, l);
                    alone().inner(&rows[i], &rows[i], part.as_mut())?;
                    Ok((0..l * l).map(|at| part[(at % l, at / l)].to_f64()).collect())
                })?;
                write_lower(&sum, gram.as_mut());
            }
            Step::Divide { divisor, beside } => {
                self.divide(y, divisor)?;
                beside();
            }
            Step::Equilibrate { exponents } => return self.equilibrate(y, exponents),
            Step::Reflect { r, algorithm } => {
                *algorithm = Algorithm::Householder;
                self.reflect(y, r)?;
            }
        }
        Ok(true)
    }

    /// Computes `y <- y L⁻ᵀ`.
    fn divide<T: Scalar>(&self, y: &mut RankPanel<T>, divisor: MatRef<'_, T>) -> Result<()> {
        each(self.host.par(), self.to_rows(y, true).iter_mut().collect(), |rows: &mut HostPanel<T>| {
            solve_lower_triangular_in_place(divisor, rows.as_mut().transpose_mut(), Par::Seq);
            Ok(())
        })
    }

    /// Scales columns by powers of two to a largest entry between 1 and 2.
    fn equilibrate<T: Scalar>(&self, y: &mut RankPanel<T>, exponents: &mut [i32]) -> Result<bool> {
        let (l, rows) = (y.ncols, self.rows(y));
        let largest = self.sum(Merge::Max, l, |i| {
            let block = rows[i].as_ref();
            let column = |j| {
                block.col(j).iter().map(|&x| Element::to_f64(x).abs()).fold(0.0, |a: f64, x| if x <= a { a } else { x })
            };
            let largest: Vec<f64> = (0..l).map(column).collect();
            match largest.iter().position(|x| !x.is_finite()) {
                Some(col) => Err(Error::NotFinite { row: 0, col, value: largest[col] }),
                None => Ok(largest),
            }
        })?;
        drop(rows);
        for (e, &largest) in exponents.iter_mut().zip(&largest) {
            if largest > 0.0 {
                *e = qr::exponent(largest);
            }
        }
        // `2^149` is no f32: the factor comes in two parts.
        let factor = |e: i32| (T::from_f64(2f64.powi(-(e / 2))), T::from_f64(2f64.powi(-(e - e / 2))));
        let factors: Vec<(T, T)> = exponents.iter().map(|&e| factor(e)).collect();
        each(self.host.par(), self.to_rows(y, true).iter_mut().collect(), |rows: &mut HostPanel<T>| {
            for (column, &(first, second)) in rows.as_mut().col_iter_mut().zip(&factors) {
                column.iter_mut().for_each(|x| *x = *x * first * second);
            }
            Ok(())
        })?;
        Ok(largest.iter().all(|&x| x > 0.0))
    }

    /// Factors by reflections, on every rank.
    fn reflect<T: Scalar>(&self, y: &mut RankPanel<T>, r: MatMut<'_, T>) -> Result<()> {
        let whole = self.to_whole(y, true)?;
        let mut buffer = MemBuffer::new(tsqr::tsqr_scratch::<T>(whole.nrows(), whole.ncols(), self.host.par()));
        tsqr::tsqr(whole.as_mut(), r, self.host.par(), MemStack::new(&mut buffer))?;
        self.to_rows(y, true);
        Ok(())
    }
}

/// Copies the lower triangle of a square matrix, which comes column by column.
fn write_lower(columns: &[f64], mut to: MatMut<'_, f64>) {
    let l = to.ncols();
    for j in 0..l {
        for i in j..l {
            to[(i, j)] = columns[j * l + i];
        }
    }
}

impl<T: Scalar> Space<T> for Ranks<'_> {
    type Panel = RankPanel<T>;

    fn panel(&self, nrows: usize, ncols: usize, layout: Layout) -> Result<RankPanel<T>> {
        Ok(RankPanel { nrows, ncols, layout, data: Data::Zeros })
    }

    fn shape(&self, y: &RankPanel<T>) -> (usize, usize) {
        (y.nrows, y.ncols)
    }

    fn visit(&self, y: &mut RankPanel<T>, access: Access, f: &mut dyn FnMut(MatMut<'_, T>)) -> Result<()> {
        f(self.to_whole(y, access == Access::Read)?.as_mut());
        Ok(())
    }

    fn download(&self, y: &RankPanel<T>, dst: MatMut<'_, T>) -> Result<()> {
        match &y.data {
            Data::Rows(rows) => self.put_together(rows, dst),
            _ => self.host.download(&*self.whole(y)?, dst),
        }
    }

    fn trim(&self) {
        Space::<T>::trim(&self.host);
    }

    fn multiply(&self, y: &mut RankPanel<T>, accum: Accum, a: &RankPanel<T>, c: MatRef<'_, T>, alpha: T) -> Result<()> {
        let adds = accum == Accum::Add;
        if a.is_rows() || adds && y.is_rows() {
            let a = self.rows(a);
            let work = self.to_rows(y, adds).iter_mut().zip(a.iter()).collect();
            return each(self.host.par(), work, |(y, a)| alone().multiply(y, accum, a, c, alpha));
        }
        let a = self.whole(a)?;
        self.host.multiply(self.to_whole(y, adds)?, accum, &a, c, alpha)
    }

    fn multiply_in_place(&self, y: &mut RankPanel<T>, c: MatRef<'_, T>) -> Result<()> {
        match &mut y.data {
            Data::Zeros => {}
            Data::Whole(whole) => self.host.multiply_in_place(whole, c)?,
            Data::Rows(rows) => {
                each(self.host.par(), rows.iter_mut().collect(), |rows| alone().multiply_in_place(rows, c))?;
            }
        }
        y.ncols = c.ncols();
        Ok(())
    }

    fn multiply_to_host(&self, a: &RankPanel<T>, c: MatRef<'_, T>, dst: MatMut<'_, T>) -> Result<()> {
        if !a.is_rows() {
            return self.host.multiply_to_host(&*self.whole(a)?, c, dst);
        }
        let mut product = self.panel(a.nrows, c.ncols(), Layout::Rows)?;
        self.multiply(&mut product, Accum::Replace, a, c, T::one())?;
        self.download(&product, dst)
    }

    fn multiply_panels(&self, side: Side, a: &RankPanel<T>, b: &RankPanel<T>, y: &mut RankPanel<T>) -> Result<()> {
        match side {
            Side::Plain if a.is_rows() => {
                let (a, b) = (self.rows(a), self.whole(b)?);
                let work = self.to_rows(y, false).iter_mut().zip(a.iter()).collect();
                each(self.host.par(), work, |(y, a)| alone().multiply_panels(side, a, &b, y))
            }
            Side::Adjoint if a.is_rows() || b.is_rows() => {
                let products = self.products(a, b)?;
                self.to_whole(y, false)?.as_mut().copy_from(products);
                Ok(())
            }
            _ if std::ptr::eq(a, b) => {
                let a = self.whole(a)?;
                self.host.multiply_panels(side, &a, &a, self.to_whole(y, false)?)
            }
            _ => {
                let (a, b) = (self.whole(a)?, self.whole(b)?);
                self.host.multiply_panels(side, &a, &b, self.to_whole(y, false)?)
            }
        }
    }

    fn inner(&self, a: &RankPanel<T>, b: &RankPanel<T>, mut c: MatMut<'_, T>) -> Result<()> {
        if a.is_rows() || b.is_rows() {
            c.copy_from(self.products(a, b)?);
            return Ok(());
        }
        let whole = self.whole(a)?;
        match std::ptr::eq(a, b) {
            true => self.host.inner(&whole, &whole, c),
            false => self.host.inner(&whole, &*self.whole(b)?, c),
        }
    }

    fn gram(&self, y: &RankPanel<T>, c: MatMut<'_, f64>) -> Result<()> {
        let l = y.ncols;
        if !y.is_rows() {
            return self.host.gram(&*self.whole(y)?, c);
        }
        let rows = self.rows(y);
        let sum = self.sum(Merge::Add, l * l, |i| {
            let mut part = vec![0.0; l * l];
            let mut square = MatMut::from_column_major_slice_mut(&mut part, l, l);
            alone().gram(&rows[i], square.as_mut())?;
            // What is above the diagonal is unspecified.
            (1..l).for_each(|j| square.as_mut().col_mut(j).subrows_mut(0, j).fill(0.0));
            Ok(part)
        })?;
        write_lower(&sum, c);
        Ok(())
    }

    fn orthonormalize(
        &self,
        y: &mut RankPanel<T>,
        r: Option<MatMut<'_, T>>,
        effort: Effort,
    ) -> Result<Orthonormalization> {
        if !y.is_rows() {
            return self.host.orthonormalize(self.to_whole(y, true)?, r, effort);
        }
        qr::orthonormalize_by((y.nrows, y.ncols), &mut |step, _| self.step(y, step), r, self.host.par())
    }

    fn symmetric_eigen(&self, _: MatRef<'_, f64>) -> Result<Option<(Vec<f64>, Mat<f64>)>> {
        Ok(None)
    }

    fn copy_columns(&self, y: &mut RankPanel<T>, first: usize, x: &RankPanel<T>) -> Result<()> {
        if x.is_rows() || y.is_rows() {
            let x = self.rows(x);
            let work = self.to_rows(y, true).iter_mut().zip(x.iter()).collect();
            return each(self.host.par(), work, |(y, x)| alone().copy_columns(y, first, x));
        }
        let x = self.whole(x)?;
        self.host.copy_columns(self.to_whole(y, true)?, first, &x)
    }

    fn axpy(&self, y: &mut RankPanel<T>, alpha: T, x: &RankPanel<T>) -> Result<()> {
        if x.is_rows() || y.is_rows() {
            let x = self.rows(x);
            let work = self.to_rows(y, true).iter_mut().zip(x.iter()).collect();
            return each(self.host.par(), work, |(y, x)| alone().axpy(y, alpha, x));
        }
        let x = self.whole(x)?;
        self.host.axpy(self.to_whole(y, true)?, alpha, &x)
    }

    fn dot(&self, x: &RankPanel<T>, y: &RankPanel<T>) -> Result<f64> {
        let same = std::ptr::eq(x, y);
        if !x.is_rows() && !y.is_rows() {
            let whole = self.whole(x)?;
            return if same { self.host.dot(&*whole, &*whole) } else { self.host.dot(&*whole, &*self.whole(y)?) };
        }
        let x = self.rows(x);
        let y = if same { None } else { Some(self.rows(y)) };
        let sum = self.sum(Merge::Add, 1, |i| {
            let y = y.as_ref().map_or(&x[i], |rows| &rows[i]);
            Ok(vec![alone().dot(&x[i], y)?])
        })?;
        Ok(sum[0])
    }

    fn trace(&self, y: &RankPanel<T>) -> Result<f64> {
        let Data::Rows(rows) = &y.data else { return self.host.trace(&*self.whole(y)?) };
        let (blocks, own) = (self.blocks, self.blocks.own());
        let sum = self.sum(Merge::Add, 1, |i| {
            let (block, first) = (rows[i].as_ref(), blocks.rows_of(own.start + i).start);
            Ok(vec![(0..block.nrows()).map(|i| Element::to_f64(block[(i, first + i)])).sum::<f64>()])
        })?;
        Ok(sum[0])
    }

    fn sketch(&self, g: &mut RankPanel<T>, shift: f64, omega: &AnySketch, y: &mut RankPanel<T>) -> Result<()> {
        self.host.sketch(self.to_whole(g, true)?, shift, omega, self.to_whole(y, false)?)
    }

    fn shared(&self) -> Option<&dyn Shared<T, RankPanel<T>>> {
        Some(self)
    }
}

impl<T: Scalar> Shared<T, RankPanel<T>> for Ranks<'_> {
    fn own(&self) -> Range<usize> {
        self.blocks.own_rows()
    }

    fn download_own(&self, y: &RankPanel<T>, mut dst: MatMut<'_, T>) -> Result<()> {
        let first = self.blocks.own_rows().start;
        for (block, rows) in self.blocks.own().zip(self.rows(y).iter()) {
            let range = self.blocks.rows_of(block);
            dst.rb_mut().subrows_mut(range.start - first, range.len()).copy_from(rows.as_ref());
        }
        Ok(())
    }

    fn peaks(&self, own: &[T]) -> Result<Vec<T>> {
        let mut all = vec![T::zeroed(); own.len() * self.comm.size()];
        let lengths = vec![size_of_val(own); self.comm.size()];
        self.comm.gather(bytemuck::cast_slice(own), &lengths, bytemuck::cast_slice_mut(&mut all))?;
        let mut peaks = vec![T::zeroed(); own.len()];
        for found in all.chunks_exact(own.len()) {
            peaks.iter_mut().zip(found).for_each(|(peak, &x)| *peak = if x.abs() > peak.abs() { x } else { *peak });
        }
        Ok(peaks)
    }
}
