//! How many threads a run has, and running many batches with them: grouped by their shapes, each group in parallel.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::calibrate::data::input::Batch;
use crate::calibrate::engine::error::EngineError;

/// Stack of a worker in bytes: that of a program's first thread, since whole runs move to a worker. Memory is only used
/// as far as it is touched.
const STACK: usize = 8 << 20;

thread_local! {
    /// Whether this thread is a worker of a pool that [`with_threads`] made.
    static WORKER: Cell<bool> = const { Cell::new(false) };
}

/// The most threads that [`with_threads`] makes.
pub const MAX_THREADS: usize = 1024;

/// Runs `f` with `threads` threads for all that it does in parallel; 0 for one per core.
///
/// `f` runs on a worker of a new rayon pool of that many threads, and what it calls shares them: rayon's global pool has
/// no part in it. Inside of another `with_threads` no second pool is made, and `threads` says nothing: a caller who wraps
/// a whole run decides for all of it. [`statistics`](crate::calibrate::statistics()), [`compare`](crate::calibrate::compare())
/// and their kind call this themselves.
///
/// # Errors
/// [`EngineError::Threads`] for more than [`MAX_THREADS`], or if the system gives no such threads; `f` has not run then.
pub fn with_threads<T: Send>(
    threads: usize,
    f: impl FnOnce() -> T + Send,
) -> Result<T, EngineError> {
    if WORKER.get() {
        return Ok(f());
    }
    if threads > MAX_THREADS {
        return Err(EngineError::Threads {
            threads,
            reason: format!("at most {MAX_THREADS} are made"),
        });
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .stack_size(STACK)
        .start_handler(|_| WORKER.set(true))
        .build();
    let pool = pool.map_err(|e| EngineError::Threads {
        threads,
        reason: e.to_string(),
    })?;
    Ok(pool.install(f))
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

/// Runs `work` on every batch and its index, in the pool that it is called in; results are in the order of the batches, and so is the error that is reported.
pub(super) fn in_parallel<T: Send>(
    batches: &[&Batch],
    work: impl Fn(usize, &Batch) -> Result<T, EngineError> + Sync,
) -> Result<Vec<T>, EngineError> {
    // After an error the batches behind it need not run; those before it must, one of them may have an error too.
    let failed = AtomicUsize::new(usize::MAX);
    let run = |(i, batch): (usize, &&Batch)| {
        if i > failed.load(Ordering::Relaxed) {
            return None;
        }
        let result = work(i, batch);
        if result.is_err() {
            failed.fetch_min(i, Ordering::Relaxed);
        }
        Some(result)
    };
    let batches = batches.par_iter().enumerate().with_max_len(1);
    let results: Vec<Option<Result<T, EngineError>>> = batches.map(run).collect();
    results.into_iter().flatten().collect()
}
