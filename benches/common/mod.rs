//! What the benches share: numbers that do not come from the library under test, and medians of runs by turns.
//!
//! A bench checks a result before it times it, times everything that it compares by turns in one process, and prints ratios
//! to a floor of the same run: what the machine does beside it moves times by half, and ratios by little.
#![allow(missing_docs, unreachable_pub)]

use std::time::Instant;

/// SplitMix64: a few lines, no relation to the library's generator.
pub struct Random(pub u64);

impl Random {
    /// The `index`-th number of seed 0, for those who need it out of order.
    pub fn at(index: u64) -> Self {
        Random(index.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (-1/2, 1/2).
    pub fn centred(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }

    /// Standard normal, Box-Muller.
    pub fn normal(&mut self) -> f64 {
        let mut uniform = || ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()
    }
}

/// The middle one; of an even number the upper of the two.
pub fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Seconds that `f` takes.
pub fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

/// Medians of the seconds of `jobs`, called by turns.
pub fn medians(rounds: usize, jobs: &mut [&mut dyn FnMut()]) -> Vec<f64> {
    let mut times = vec![Vec::new(); jobs.len()];
    for _ in 0..rounds {
        for (job, times) in jobs.iter_mut().zip(&mut times) {
            times.push(seconds(job));
        }
    }
    times.iter_mut().map(|times| median(times)).collect()
}

/// Whether `word` is among the arguments: `--test` asks for one small round of everything.
pub fn asked(word: &str) -> bool {
    std::env::args().any(|a| a == word)
}
