//! Random weights.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// A source of weights.
pub(super) struct Weights(ChaCha8Rng);

impl Weights {
    pub(super) fn seeded(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Twelve uniform numbers make a normal one, near enough.
    fn one(&mut self) -> f64 {
        (0..12).map(|_| self.0.random::<f64>()).sum::<f64>() - 6.0
    }

    /// `count` normal numbers of this deviation.
    pub(super) fn normal(&mut self, count: usize, deviation: f64) -> Vec<f32> {
        #[expect(clippy::cast_possible_truncation, reason = "weights are stored so")]
        (0..count).map(|_| (self.one() * deviation) as f32).collect()
    }

    /// `count` numbers, each -1 or 1.
    pub(super) fn signs(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| if self.0.random::<bool>() { 1.0 } else { -1.0 })
            .collect()
    }
}
