//! Many matrices on one device: the next one comes in while this one is factored.
//!
//! ```text
//!   loader thread     gather 1 | copy 1 | gather 2 | copy 2 | ...        pinned buffers, transfer stream
//!   this thread                 factor 1            | factor 2 | ...      compute stream
//! ```

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use super::{Device, DeviceMatrix};
use crate::error::Result;
use crate::factors::Factors;
use crate::simd::Scalar;
use crate::svd::TruncatedSvd;
use crate::tensor::TensorRef;

/// Factors each of `tensors` on `device`, in order; a failure concerns its own matrix alone. Two of them are on the device at a
/// time.
pub fn factor_batch<T: Scalar>(
    svd: &TruncatedSvd,
    device: &Arc<Device>,
    tensors: &[TensorRef<'_>],
) -> Vec<Result<Factors<T>>> {
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(0);
        scope.spawn(move || {
            for tensor in tensors {
                let loaded = tensor.view().and_then(|view| {
                    let tall = if view.nrows() < view.ncols() { view.transpose() } else { view };
                    DeviceMatrix::<T>::new(device, tall)
                });
                if send.send(loaded).is_err() {
                    return;
                }
            }
        });
        let mut loaded = receive.into_iter();
        let next = |tensor| {
            let start = Instant::now(); // what it has to wait for is its time
            Some(svd.factor_loaded(tensor, loaded.next()?, start))
        };
        tensors.iter().map_while(next).collect()
    })
}
