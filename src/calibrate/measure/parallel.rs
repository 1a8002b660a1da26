//! Running many batches: grouped by their shapes, each group in parallel.

use rayon::prelude::*;

use crate::calibrate::data::input::Batch;
use crate::calibrate::engine::error::EngineError;

/// A thread pool of this many threads; 0 for one per core.
pub(super) fn pool(threads: usize) -> Result<rayon::ThreadPool, EngineError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| EngineError::Threads {
            threads,
            reason: e.to_string(),
        })
}

/// Batches of equal shapes and switches, in the order of their first member. Groups are run one after the other, so that
/// only one plan, which holds a copy of the weights, is alive.
pub(super) fn groups(batches: &[Batch]) -> Vec<Vec<&Batch>> {
    let mut groups: Vec<Vec<&Batch>> = Vec::new();
    for batch in batches {
        match groups.iter_mut().find(|group| group[0].runs_like(batch)) {
            Some(group) => group.push(batch),
            None => groups.push(vec![batch]),
        }
    }
    groups
}

/// Runs `work` on every batch and its index; results are in the order of the batches, and so is the error that is reported.
pub(super) fn in_parallel<T: Send>(
    pool: &rayon::ThreadPool,
    batches: &[&Batch],
    work: impl Fn(usize, &Batch) -> Result<T, EngineError> + Sync,
) -> Result<Vec<T>, EngineError> {
    // After an error the batches behind it need not run; those before it must, one of them may have an error too.
    let failed = std::sync::atomic::AtomicUsize::new(usize::MAX);
    let results: Vec<Option<Result<T, EngineError>>> = pool.install(|| {
        batches
            .par_iter()
            .enumerate()
            .with_max_len(1)
            .map(|(i, batch)| {
                if i > failed.load(std::sync::atomic::Ordering::Relaxed) {
                    return None;
                }
                let result = work(i, batch);
                if result.is_err() {
                    failed.fetch_min(i, std::sync::atomic::Ordering::Relaxed);
                }
                Some(result)
            })
            .collect()
    });
    results.into_iter().flatten().collect()
}
