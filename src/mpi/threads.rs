//! Ranks that are threads of one process: for tests, where every schedule and every failure can be played.
//!
//! Each pair of ranks has a queue. A message carries the name of what was called, and the number of that call among the
//! collective ones of its sender, so that ranks which call different things learn of it instead of waiting. A rank that
//! has returned is gone: whoever waits for it gets an error.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use super::communicator::Communicator;
use crate::error::{Error, Result};
use crate::parallel::lock;

/// What a message belongs to: the name of the call, and its number among the collective calls.
type Envelope = (&'static str, usize);

#[derive(Default)]
struct Post {
    /// Messages by sender and receiver.
    queues: Vec<VecDeque<(Envelope, Vec<u8>)>>,
    gone: Vec<bool>,
    /// The rank that ended the work of all, and why.
    aborted: Option<(usize, String)>,
}

struct Shared {
    post: Mutex<Post>,
    news: Condvar,
    size: usize,
}

/// One rank among the threads of a process.
pub struct Threads {
    shared: Arc<Shared>,
    rank: usize,
    calls: std::cell::Cell<usize>,
}

impl Threads {
    /// Calls `f` on `size` ranks, each a thread, and returns their results in order.
    pub fn run<R: Send>(size: usize, f: impl Fn(&Threads) -> R + Sync) -> Vec<R> {
        let post = Post {
            queues: (0..size * size).map(|_| VecDeque::new()).collect(),
            gone: vec![false; size],
            ..Post::default()
        };
        let shared = Arc::new(Shared { post: Mutex::new(post), news: Condvar::new(), size });
        thread::scope(|scope| {
            let start = |rank| {
                let (shared, f) = (shared.clone(), &f);
                scope.spawn(move || f(&Threads { shared, rank, calls: std::cell::Cell::new(0) }))
            };
            let ranks: Vec<_> = (0..size).map(start).collect();
            let result = |rank: thread::ScopedJoinHandle<'_, R>| match rank.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            ranks.into_iter().map(result).collect()
        })
    }

    fn send(&self, to: usize, envelope: Envelope, bytes: &[u8]) {
        lock(&self.shared.post).queues[self.rank * self.shared.size + to].push_back((envelope, bytes.to_vec()));
        self.shared.news.notify_all();
    }

    fn receive(&self, from: usize, envelope: Envelope, into: &mut [u8]) -> Result<()> {
        let mut post = lock(&self.shared.post);
        loop {
            if let Some((rank, why)) = &post.aborted {
                return Err(Error::Remote { rank: *rank, what: why.clone() });
            }
            if let Some((found, bytes)) = post.queues[from * self.shared.size + self.rank].pop_front() {
                if found != envelope || bytes.len() != into.len() {
                    let (what, number) = found;
                    let (here, at) = envelope;
                    let (got, want) = (bytes.len(), into.len());
                    let what = format!(
                        "calls {what} number {number} of {got} bytes where rank {} calls {here} number {at} of {want}",
                        self.rank
                    );
                    return Err(Error::Remote { rank: from, what });
                }
                into.copy_from_slice(&bytes);
                return Ok(());
            }
            if post.gone[from] {
                return Err(Error::Remote { rank: from, what: "has ended before the others".into() });
            }
            post = self.shared.news.wait(post).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank;
        (0..self.shared.size).filter(move |&other| other != rank)
    }

    /// Returns the envelope of the next collective call.
    fn collective(&self, what: &'static str) -> Envelope {
        self.calls.set(self.calls.get() + 1);
        (what, self.calls.get())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        lock(&self.shared.post).gone[self.rank] = true;
        self.shared.news.notify_all();
    }
}

impl Communicator for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.shared.size
    }

    fn exchange(&self, message: Option<(usize, &[u8])>, buffer: Option<(usize, &mut [u8])>) -> Result<()> {
        let envelope = ("exchange", self.calls.get());
        if let Some((to, message)) = message {
            self.send(to, envelope, message);
        }
        match buffer {
            Some((from, buffer)) => self.receive(from, envelope, buffer),
            None => Ok(()),
        }
    }

    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<()> {
        let envelope = self.collective("broadcast");
        if root != self.rank {
            return self.receive(root, envelope, bytes);
        }
        self.others().for_each(|other| self.send(other, envelope, bytes));
        Ok(())
    }

    fn gather(&self, mine: &[u8], lengths: &[usize], all: &mut [u8]) -> Result<()> {
        let envelope = self.collective("gather");
        self.others().for_each(|other| self.send(other, envelope, mine));
        let mut rest = all;
        for (rank, &length) in lengths.iter().enumerate() {
            let (part, after) = rest.split_at_mut(length);
            match rank == self.rank {
                true => part.copy_from_slice(mine),
                false => self.receive(rank, envelope, part)?,
            }
            rest = after;
        }
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        let envelope = self.collective("barrier");
        self.others().for_each(|other| self.send(other, envelope, &[]));
        self.others().try_for_each(|other| self.receive(other, envelope, &mut []))
    }

    fn abort(&self, why: &str) {
        lock(&self.shared.post).aborted.get_or_insert_with(|| (self.rank, why.to_owned()));
        self.shared.news.notify_all();
    }
}
