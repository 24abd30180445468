//! One budget for many layers.

use super::matrix::dtype;
use super::status::{Failure, Status, decode, get, guard, put, put_all};
use crate::rank::{self, Budget, Cost, Layer as Given, Share};

/// What a budget counts.
#[repr(C)]
pub enum CostUnit {
    /// Numbers: k (m + n + 1) for factors, m n for a layer that stays whole.
    Parameters = 0,
    /// Their bytes in the element type of the layer.
    Bytes = 1,
    /// Multiplications and additions for each sample.
    Flops = 2,
}

/// How a budget is shared.
#[repr(C)]
pub enum Sharing {
    /// So that the sum of all losses is least. They need one unit: losses weighted by output statistics have it.
    LeastLoss = 0,
    /// So that all layers are reduced alike.
    Alike = 1,
}

/// A layer that shares a budget.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Layer {
    /// The number of rows.
    pub rows: usize,
    /// The number of columns.
    pub cols: usize,
    /// The singular values, `count` of them, nonincreasing; ranks beyond them are not considered. See
    /// tensorslim_factors_spectrum.
    pub spectrum: *const f64,
    /// The losses that the ranks save, `count` of them in their order, in place of the squares of `spectrum`, which is
    /// then not read; NULL for none.
    pub savings: *const f64,
    /// How many values there are.
    pub count: usize,
    /// The squared norm, which is the loss at rank 0: at least the sum of what is saved.
    pub norm_squared: f64,
    /// The factor by which the loss of this layer counts; 1 for the loss as it is.
    pub weight: f64,
    /// The least rank; 0 is taken as 1.
    pub least: usize,
    /// The largest rank; 0 for any.
    pub most: usize,
    /// A tensorslim_dtype, for TENSORSLIM_COST_BYTES.
    pub dtype: i32,
    /// Anything but 0 if the layer must stay whole.
    pub keep: i32,
}

/// What a budget gives.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Allocation {
    /// The cost of all layers together.
    pub total: u64,
    /// Their weighted losses together.
    pub loss: f64,
    /// A lower bound of the loss within the budget; equal to `loss` if the search was complete.
    pub bound: f64,
}

/// Returns numbers of the caller.
///
/// # Safety
/// `values` is null, or has `count` numbers that nobody changes during `'a`.
unsafe fn numbers<'a>(values: *const f64, count: usize, name: &'static str) -> Result<&'a [f64], Failure> {
    // SAFETY: that of this function; a null pointer is refused.
    let first = unsafe { get(values, name) }?;
    // SAFETY: the pointer is not null, and has `count` numbers by the contract of this function.
    Ok(unsafe { std::slice::from_raw_parts(first, count) })
}

/// Returns a layer for the crate.
///
/// # Safety
/// The values that `layer` points to are readable, and nobody changes them during `'a`.
unsafe fn layer<'a>(layer: &Layer) -> Result<Given<'a>, Failure> {
    let (shape, dtype) = ((layer.rows, layer.cols), dtype(layer.dtype)?);
    let of_savings = !layer.savings.is_null();
    let (values, name) =
        if of_savings { (layer.savings, "layers.savings") } else { (layer.spectrum, "layers.spectrum") };
    // SAFETY: the contract of this function.
    let values = unsafe { numbers(values, layer.count, name) }?;
    let mut given = Given::new(shape, dtype, if of_savings { &[] } else { values }, layer.norm_squared);
    given.savings = of_savings.then_some(values);
    given.weight = layer.weight;
    given.floor = layer.least.max(1);
    given.cap = if layer.most == 0 { usize::MAX } else { layer.most };
    given.protected = layer.keep != 0;
    Ok(given)
}

/// Shares a budget of `limit` among `count` layers, in units of `unit`, a tensorslim_cost, as `sharing`, a
/// tensorslim_sharing, says. `align` divides all ranks; 1 allows any. The rank of each layer is written to `ranks`, 0
/// for one that stays whole, and the sums to `found`, which may be NULL.
///
/// Errors: NULL_POINTER, EMPTY without layers or for an empty one, OPTION for unknown numbers, a budget below the least
/// that the layers can cost, an alignment of 0, weights and values that are not finite or negative, and a spectrum that
/// increases.
///
/// # Safety
/// `layers` is NULL or has `count` layers, whose values are readable; `ranks` is NULL or valid for `count` writes;
/// `found` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tensorslim_allocate(
    layers: *const Layer,
    count: usize,
    limit: u64,
    unit: i32,
    align: usize,
    sharing: i32,
    ranks: *mut usize,
    found: *mut Allocation,
) -> Status {
    guard(|| {
        let units = [
            (CostUnit::Parameters as i32, Cost::Parameters),
            (CostUnit::Bytes as i32, Cost::Bytes),
            (CostUnit::Flops as i32, Cost::Flops),
        ];
        let unit = decode(&units, unit, "unit", "TENSORSLIM_COST_PARAMETERS, _BYTES or _FLOPS (0 to 2)")?;
        let ways = [(Sharing::LeastLoss as i32, false), (Sharing::Alike as i32, true)];
        let alike = decode(&ways, sharing, "sharing", "TENSORSLIM_SHARING_LEAST_LOSS or _ALIKE (0 or 1)")?;
        // SAFETY: the first layer is null or valid, as this function's caller promises.
        let first: *const Layer = unsafe { get(layers, "layers") }?;
        if ranks.is_null() {
            return Err(Failure::Null("ranks"));
        }
        // SAFETY: the pointer is not null, and has `count` layers, as this function's caller promises.
        let layers = unsafe { std::slice::from_raw_parts(first, count) };
        // SAFETY: the values of each layer are readable during the call, as this function's caller promises.
        let layers = layers.iter().map(|given| unsafe { layer(given) }).collect::<Result<Vec<_>, _>>()?;
        let budget = Budget { limit, unit, align };
        let shared = if alike { rank::uniform(&layers, budget)? } else { rank::allocate(&layers, budget)? };
        let rank_of = |share: &Share| if let Share::Rank(k) = share { *k } else { 0 };
        let given: Vec<usize> = shared.shares.iter().map(rank_of).collect();
        // SAFETY: `ranks` has room for `count` numbers and `found` for the sums, as this function's caller promises.
        unsafe {
            put_all(&given, "ranks", ranks, count, std::ptr::null_mut())?;
            put(found, Allocation { total: shared.total, loss: shared.loss, bound: shared.bound });
        }
        Ok(())
    })
}
