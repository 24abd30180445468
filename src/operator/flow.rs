//! Tiles that are done in parts by several threads, none of which waits for the others at the end of a tile.
//!
//! ```text
//!   reader   │ tile 1 │ tile 2 │   │ tile 3 │                  one tile ahead, in the other buffer
//!   thread A         │ 1.0 │ 1.2 │ 1.3 │ 2.0 │ 2.2 │ ...       tile.part, handed out in order
//!   thread B         │ 1.1    │ 1.4   │ 2.1 │ 2.3 │ ...
//! ```
//!
//! A part stands for a share of what the tiles add up to (its *slot*), or for a share of each tile's own result. Slots
//! are handed out together with the tile, under one lock, so that each slot sees the tiles in order; whoever has a slot
//! works on it alone. The thread that ends the last part of a tile puts the results of its parts together. Neither sums
//! nor bits therefore depend on the number of threads or their speed.
//!
//! **Why this way.** A fork and a join for each tile of a millisecond would make every thread wait for the slowest and
//! for being woken, a thousand times in a pass. A third and a fourth buffer bring nothing (`benches/NOTES.md`).

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Watch;
use crate::error::{Error, Result};
use crate::parallel::{self, lock};

/// How long a thread waits for a tile before it looks for other work in the pool, because a source may need the pool to
/// make its tiles.
const PATIENCE: Duration = Duration::from_millis(1);

/// A number of steps as they were read.
pub(super) struct Read {
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) buffer: Vec<u64>,
}

/// The channels to and from the reader: tiles that were read, and buffers that go back.
pub(super) struct Tiles {
    pub(super) read: Receiver<Result<Read>>,
    pub(super) free: SyncSender<Vec<u64>>,
}

impl Tiles {
    /// Calls `f(first step, bytes)` for each tile, one after the other.
    pub(super) fn in_order(self, step_bytes: usize, f: &mut dyn FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        for read in self.read.iter() {
            let Read { first, count, buffer } = read?;
            f(first, &bytemuck::cast_slice(&buffer)[..count * step_bytes])?;
            // Sending fails only when the reader has panicked, which ends the pass.
            let _ = self.free.send(buffer);
        }
        Ok(())
    }
}

/// A tile, with the results of its parts so far.
struct Tile<R> {
    index: usize,
    read: Read,
    results: Mutex<Vec<Option<R>>>,
}

/// One pass over the tiles, shared by its threads.
pub(super) struct Flow<'a, P, R> {
    free: SyncSender<Vec<u64>>,
    feed: Mutex<Feed<R>>,
    slots: &'a [Mutex<P>],
    watch: &'a Watch<'a>,
    /// The index and the error of the first tile in which something failed.
    failed: Mutex<Option<(usize, Error)>>,
}

/// The tile that is being handed out, and its next part.
struct Feed<R> {
    read: Receiver<Result<Read>>,
    tile: Option<Arc<Tile<R>>>,
    part: usize,
    /// The number of tiles so far.
    tiles: usize,
}

impl<'a, P, R> Flow<'a, P, R> {
    pub(super) fn new(Tiles { read, free }: Tiles, slots: &'a [Mutex<P>], watch: &'a Watch<'a>) -> Self {
        let feed = Mutex::new(Feed { read, tile: None, part: slots.len(), tiles: 0 });
        Flow { free, feed, slots, watch, failed: Mutex::new(None) }
    }

    /// Does parts until there are none, on as many threads as call it. It calls `work(slot, part, tile)`, then
    /// `finish(tile's index, tile, results in the order of the parts)` by one thread for each tile, tiles in any order.
    pub(super) fn run(
        &self,
        mut work: impl FnMut(&mut P, usize, &Read) -> Result<R>,
        finish: &impl Fn(usize, &Read, Vec<R>),
    ) {
        while let Some((tile, part, mut slot)) = self.next(finish) {
            match work(&mut slot, part, &tile.read) {
                Ok(result) => lock(&tile.results)[part] = Some(result),
                Err(e) => self.fail(tile.index, e),
            }
            drop(slot);
            self.release(tile, finish);
        }
    }

    /// Ends the pass with the error of the first tile that failed, if one did.
    pub(super) fn end(self) -> Result<()> {
        match self.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, e)) => Err(e),
            None => Ok(()),
        }
    }

    #[allow(clippy::type_complexity, reason = "a tile, a part, and its slot")]
    fn next(&self, finish: &impl Fn(usize, &Read, Vec<R>)) -> Option<(Arc<Tile<R>>, usize, MutexGuard<'_, P>)> {
        loop {
            let mut feed = lock(&self.feed);
            if lock(&self.failed).is_some() {
                return None;
            }
            if feed.part == self.slots.len() {
                if let Some(done) = feed.tile.take() {
                    self.release(done, finish);
                }
                let read = match feed.read.recv_timeout(PATIENCE) {
                    Ok(read) => self.watch.check().and(read),
                    Err(RecvTimeoutError::Disconnected) => return None,
                    Err(RecvTimeoutError::Timeout) => {
                        drop(feed);
                        parallel::yield_now();
                        continue;
                    }
                };
                let index = feed.tiles;
                match read {
                    Ok(read) => {
                        let results = Mutex::new(self.slots.iter().map(|_| None).collect());
                        feed.tile = Some(Arc::new(Tile { index, read, results }));
                    }
                    Err(e) => {
                        self.fail(index, e);
                        return None;
                    }
                }
                (feed.part, feed.tiles) = (0, index + 1);
            }
            let (tile, part) = (feed.tile.clone()?, feed.part);
            feed.part += 1;
            // The holder of the slot works on the tile before, so that waiting here keeps the order.
            return Some((tile, part, lock(&self.slots[part])));
        }
    }

    /// Gives back a tile. The last thread to do so finishes the tile.
    fn release(&self, tile: Arc<Tile<R>>, finish: &impl Fn(usize, &Read, Vec<R>)) {
        let Some(Tile { index, read, results }) = Arc::into_inner(tile) else { return };
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Results are missing after a failure.
        if let Some(results) = results.into_iter().collect() {
            finish(index, &read, results);
        }
        let _ = self.free.send(read.buffer);
    }

    fn fail(&self, index: usize, e: Error) {
        let mut failed = lock(&self.failed);
        if failed.as_ref().is_none_or(|(first, _)| index < *first) {
            *failed = Some((index, e));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::sync_channel;
    use std::thread;

    use super::{Flow, Read, Tiles, Watch};
    use crate::error::{Error, Result};

    const PARTS: usize = 5;

    /// The indices of tiles, with the results of their parts.
    type Finished = Vec<(usize, Vec<usize>)>;

    /// Runs three threads over 40 tiles of which some parts fail, the first of `bad` after the second (or after a
    /// while, if that does not come). Returns what each slot saw, the tiles that were finished, and the result of the
    /// pass.
    fn pass(bad: &[(usize, usize)]) -> (Vec<Vec<usize>>, Finished, Result<()>) {
        let (free, to_fill) = sync_channel(2);
        let (filled, read) = sync_channel(1);
        (0..2).for_each(|_| free.send(Vec::new()).unwrap());
        let reader = thread::spawn(move || {
            for first in 0..40 {
                let Ok(buffer) = to_fill.recv() else { break };
                if filled.send(Ok(Read { first, count: 1, buffer })).is_err() {
                    break;
                }
            }
        });
        let slots: Vec<_> = (0..PARTS).map(|_| Mutex::new(Vec::new())).collect();
        let finished = Mutex::new(Vec::new());
        let second_failed = AtomicBool::new(false);
        let watch = Watch::default();
        let flow = Flow::new(Tiles { read, free }, &slots, &watch);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let work = |seen: &mut Vec<usize>, part: usize, tile: &Read| {
                        seen.push(tile.first);
                        // Parts end in another order than they begin.
                        (0..(7 * part + tile.first) % 11).for_each(|_| thread::yield_now());
                        let at = bad.iter().position(|bad| *bad == (tile.first, part));
                        match at {
                            Some(0) => {
                                let failed = || second_failed.load(Ordering::Relaxed);
                                (0..1_000_000).take_while(|_| !failed()).for_each(|_| thread::yield_now());
                            }
                            Some(1) => second_failed.store(true, Ordering::Relaxed),
                            _ => {}
                        }
                        match at.is_some() {
                            true => Err(Error::Internal { what: tile.first.to_string() }),
                            false => Ok(10 * tile.first + part),
                        }
                    };
                    flow.run(work, &|index, _, results| finished.lock().unwrap().push((index, results)));
                });
            }
        });
        let done = flow.end();
        reader.join().unwrap();
        let mut finished = finished.into_inner().unwrap();
        finished.sort();
        (slots.into_iter().map(|slot| slot.into_inner().unwrap()).collect(), finished, done)
    }

    #[test]
    fn slots_see_tiles_in_order_and_each_tile_is_finished_once() {
        let (seen, finished, done) = pass(&[]);
        assert_eq!(done, Ok(()));
        assert!(seen.iter().all(|tiles| *tiles == (0..40).collect::<Vec<_>>()), "{seen:?}");
        let whole = (0..40).map(|tile| (tile, (0..PARTS).map(|part| 10 * tile + part).collect())).collect::<Vec<_>>();
        assert_eq!(finished, whole);
    }

    #[test]
    fn the_first_tile_that_fails_is_named() {
        let (_, finished, done) = pass(&[(17, PARTS - 1), (18, 0), (30, 1)]);
        assert_eq!(done, Err(Error::Internal { what: "17".into() }));
        assert!(finished.iter().all(|(tile, _)| *tile < 19), "{finished:?}");
        assert_eq!(finished.iter().filter(|(tile, _)| *tile < 17).count(), 17);
    }
}
