//! Lets a caller stop a factorization, and see how far it is.
//!
//! A [`Watch`] goes with an operator through every product. Between tiles (out of core) or products (in memory) the
//! operator asks whether to go on, and reports what it has read. Nothing here waits, locks or prints.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// A flag that asks a computation to stop: set once, by any thread or signal handler, seen by all clones.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Makes a token that is not cancelled.
    pub fn new() -> Self {
        Cancel::default()
    }

    /// Makes a token over a flag that something else sets, such as a signal handler.
    pub fn from_flag(flag: Arc<AtomicBool>) -> Self {
        Cancel(flag)
    }

    /// Asks the computation to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Tells whether somebody asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns an error if somebody asked to stop.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if somebody asked to stop.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// What an operator reports its progress to and asks whether to stop. The default watches nothing.
#[derive(Clone, Default)]
pub struct Watch<'a> {
    cancel: Cancel,
    read: Option<&'a (dyn Fn(u64) + Sync)>,
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("cancel", &self.cancel).field("read", &self.read.is_some()).finish()
    }
}

impl<'a> Watch<'a> {
    /// Makes a watch that stops when `cancel` says so.
    pub fn new(cancel: Cancel) -> Self {
        Watch { cancel, read: None }
    }

    /// Makes the watch call `f` with the bytes of the matrix that each tile (out of core) or product (in memory) has
    /// read, from the thread that computes. A pass over the matrix adds up to its size.
    #[must_use]
    pub fn on_read(mut self, f: &'a (dyn Fn(u64) + Sync)) -> Self {
        self.read = Some(f);
        self
    }

    /// Shares the cancel token and reports no progress.
    pub(crate) fn without_reads(&self) -> Watch<'static> {
        Watch::new(self.cancel.clone())
    }

    /// Returns an error if somebody asked to stop.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if somebody asked to stop.
    pub(crate) fn check(&self) -> Result<()> {
        self.cancel.check()
    }

    /// Reports that `bytes` more of the matrix were read.
    pub(crate) fn read(&self, bytes: u64) {
        if let Some(f) = &self.read {
            f(bytes);
        }
    }
}
