//! What a container takes of the host's memory.

use std::collections::HashMap;
use std::iter::Sum;

use bollard::query_parameters::StatsOptionsBuilder;
use futures_util::StreamExt as _;

use super::{Engine, EngineError};

/// Memory of a container and of all that runs inside it, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Of processes alone: heaps and stacks.
    pub anonymous: u64,
    /// Of memory file systems and of segments that processes share.
    pub shared: u64,
    /// Of files, which the kernel gives up where it is short.
    pub cached: u64,
}

impl Memory {
    /// From the kernel's figures, of either version of control groups.
    fn from_figures(figures: &HashMap<String, u64>) -> Self {
        let either = |first: &str, second: &str| {
            figures
                .get(first)
                .or_else(|| figures.get(second))
                .copied()
                .unwrap_or(0)
        };
        // Version 1 tells a group's own figures and, as total, those with all groups below; version 2 the latter.
        let shared = either("total_shmem", "shmem");
        Self {
            anonymous: either("total_rss", "anon"),
            shared,
            // The kernel counts what is shared among the files.
            cached: either("total_cache", "file").saturating_sub(shared),
        }
    }

    /// What cannot be given up.
    pub fn held(self) -> u64 {
        self.anonymous + self.shared
    }
}

impl Sum for Memory {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            anonymous: sum.anonymous + one.anonymous,
            shared: sum.shared + one.shared,
            cached: sum.cached + one.cached,
        })
    }
}

impl Engine {
    /// What a container that runs takes of the host's memory now, with all containers inside it.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn memory(&self, name: &str) -> Result<Memory, EngineError> {
        let options = StatsOptionsBuilder::default()
            .stream(false)
            .one_shot(true)
            .build();
        let mut answers = std::pin::pin!(self.docker().stats(name, Some(options)));
        let answer = answers.next().await.transpose();
        let answer = answer.map_err(EngineError::call(format!("ask for the memory of {name}")))?;
        let figures = answer.and_then(|answer| answer.memory_stats?.stats);
        Ok(Memory::from_figures(&figures.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(figures: &[(&str, u64)]) -> HashMap<String, u64> {
        figures
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), *bytes))
            .collect()
    }

    #[test]
    fn of_the_first_version_the_totals_count() {
        let told = [
            ("rss", 1),
            ("cache", 1),
            ("total_rss", 50),
            ("total_cache", 30),
            ("total_shmem", 10),
        ];
        let memory = Memory::from_figures(&figures(&told));
        assert_eq!((memory.held(), memory.cached), (60, 20));
    }

    #[test]
    fn of_the_second_version_all_are_totals() {
        let memory = Memory::from_figures(&figures(&[("anon", 50), ("file", 30), ("shmem", 10)]));
        assert_eq!((memory.held(), memory.cached), (60, 20));
    }
}
