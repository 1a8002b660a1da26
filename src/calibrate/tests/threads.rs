//! `threads` is the number of threads that are at work, in everything that is called.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use ndarray::{ArrayD, ArrayViewD};
use rayon::prelude::*;

use super::stats::{batches, linear};
use crate::calibrate::{
    Batch, Engine, EngineError, Keep, Plan, Ranged, Shapes, StatOptions, TapSink, TractEngine,
    Wanted, compare, outputs, ranges, statistics_and, with_threads,
};
use crate::graph::axes::Axes;
use crate::graph::work::Product;
use crate::onnx::Model;
use crate::progress::NoProgress;

/// Which threads were at work, and how many at a time.
#[derive(Debug, Default)]
pub(crate) struct Work {
    busy: AtomicUsize,
    most: AtomicUsize,
    threads: Mutex<Vec<ThreadId>>,
    /// Another thread is to come: every run waits for it a while, since a busy machine gives it a core late.
    awaited: bool,
}

impl Work {
    /// The most threads at a time, and how many there were in all.
    pub(crate) fn seen(&self) -> (usize, usize) {
        let threads = self.threads.lock().unwrap();
        (self.most.load(Ordering::SeqCst), threads.len())
    }

    fn count<T>(&self, work: impl FnOnce() -> T) -> T {
        let busy = self.busy.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(busy, Ordering::SeqCst);
        let id = thread::current().id();
        let mut threads = self.threads.lock().unwrap();
        if !threads.contains(&id) {
            threads.push(id);
        }
        drop(threads);
        // Long enough that another thread, if there is one, starts meanwhile.
        thread::sleep(Duration::from_millis(2));
        let start = Instant::now();
        while self.awaited && self.seen().0 < 2 && start.elapsed() < Duration::from_millis(200) {
            thread::sleep(Duration::from_millis(1));
        }
        let result = work();
        self.busy.fetch_sub(1, Ordering::SeqCst);
        result
    }
}

/// tract, with its work counted.
pub(crate) struct Counting {
    engine: Box<dyn Engine>,
    pub(crate) work: Arc<Work>,
}

impl Default for Counting {
    fn default() -> Self {
        Counting {
            engine: Box::new(TractEngine),
            work: Arc::default(),
        }
    }
}

impl Counting {
    /// The same, where more than one thread has to come.
    fn awaiting() -> Counting {
        let work = Work {
            awaited: true,
            ..Work::default()
        };
        Counting {
            work: Arc::new(work),
            ..Counting::default()
        }
    }
}

impl Engine for Counting {
    fn plan(
        &self,
        model: &Model,
        like: &Batch,
        wanted: &Wanted<'_>,
    ) -> Result<Box<dyn Plan>, EngineError> {
        let plan = self.work.count(|| self.engine.plan(model, like, wanted))?;
        let work = self.work.clone();
        Ok(Box::new(CountingPlan { plan, work }))
    }

    fn shapes(
        &self,
        model: &Model,
        like: &Batch,
        values: &[String],
    ) -> Result<Option<Shapes>, EngineError> {
        let shapes = || self.engine.shapes(model, like, values);
        self.work.count(shapes)
    }

    fn products(&self, model: &Model, like: &Batch) -> Result<Vec<Product>, EngineError> {
        self.engine.products(model, like)
    }

    fn axes(&self, model: &Model, like: &Batch) -> Result<Arc<Axes>, EngineError> {
        self.engine.axes(model, like)
    }

    fn sharing(&self) -> Box<dyn Engine> {
        Box::new(Counting {
            engine: self.engine.sharing(),
            work: self.work.clone(),
        })
    }
}

struct CountingPlan {
    plan: Box<dyn Plan>,
    work: Arc<Work>,
}

impl Plan for CountingPlan {
    fn run(
        &self,
        batch: &Batch,
        taps: Option<Arc<dyn TapSink>>,
    ) -> Result<BTreeMap<String, ArrayD<f32>>, EngineError> {
        let taps = taps.map(|sink| {
            let work = self.work.clone();
            Arc::new(OnThread { sink, work }) as Arc<dyn TapSink>
        });
        self.work.count(|| self.plan.run(batch, taps))
    }

    fn integer_outputs(&self) -> &[String] {
        self.plan.integer_outputs()
    }

    fn skipped_outputs(&self) -> &[String] {
        self.plan.skipped_outputs()
    }

    fn axes(&self) -> Arc<Axes> {
        self.plan.axes()
    }
}

/// A sink whose thread is one of those counted already: the engine has none of its own.
struct OnThread {
    sink: Arc<dyn TapSink>,
    work: Arc<Work>,
}

impl TapSink for OnThread {
    fn take(&self, tap: usize, value: ArrayViewD<'_, f32>) -> Result<(), EngineError> {
        let known = self.work.threads.lock().unwrap();
        assert!(known.contains(&thread::current().id()));
        drop(known);
        self.sink.take(tap, value)
    }
}

/// Runs everything that has threads, each on an engine of `counting`, and says what was seen of each.
fn all_of_them(threads: usize, counting: fn() -> Counting) -> Vec<(usize, usize)> {
    let model = linear();
    // Two shapes, so that two plans are made.
    let mut batches = batches(6, 2, 6);
    batches.extend(super::stats::batches(6, 2, 3));
    let values = ["x".to_owned(), "h".to_owned()];
    let options = StatOptions {
        sample_tokens: 4,
        seed: 0,
        threads,
        channels_first: BTreeSet::new(),
        extremes_only: BTreeSet::new(),
        sizes_only: Default::default(),
    };
    let ranged = values.clone().map(|value| Ranged { value, axis: 2 });
    let keep = Keep::among(&batches[0], &batches, &values);
    let mut seen = Vec::new();
    let mut count = |work: &dyn Fn(&Counting)| {
        let engine = counting();
        work(&engine);
        seen.push(engine.work.seen());
    };
    count(&|e| {
        let stats = statistics_and(
            e,
            &model,
            &batches,
            &values,
            &options,
            Some(keep),
            &NoProgress,
        );
        assert_eq!(stats.unwrap().0.len(), 2);
    });
    count(&|e| {
        let compared = compare(e, &model, &[&model], &batches, threads, &NoProgress).unwrap();
        assert_eq!(compared[0][0].max_abs_error, 0.0);
    });
    count(&|e| {
        let outputs = outputs(e, &model, &batches, threads, &NoProgress).unwrap();
        assert_eq!(outputs.batches.len(), 12);
    });
    count(&|e| {
        let ranges = ranges(e, &model, &batches, &ranged, threads, &NoProgress).unwrap();
        assert_eq!(ranges.len(), 2);
    });
    seen
}

#[test]
fn one_thread_is_one_thread() {
    assert_eq!(all_of_them(1, Counting::default), [(1, 1); 4]);
}

#[test]
fn more_threads_work_at_a_time_and_never_more_than_were_asked_for() {
    for (most, all) in all_of_them(3, Counting::awaiting) {
        assert!((2..=3).contains(&most), "{most}");
        assert!((2..=3).contains(&all), "{all}");
    }
}

#[test]
fn inside_of_with_threads_there_is_no_second_pool() {
    // Three are asked for, but one was given to all of it.
    let seen = with_threads(1, || all_of_them(3, Counting::default)).unwrap();
    assert_eq!(seen, [(1, 1); 4]);
    let nested = with_threads(2, || with_threads(5, rayon::current_num_threads)).unwrap();
    assert_eq!(nested.unwrap(), 2);
}

#[test]
fn what_runs_in_parallel_inside_has_these_threads() {
    let ids = || -> BTreeSet<String> {
        let id = |_| {
            thread::sleep(Duration::from_millis(1));
            format!("{:?}", thread::current().id())
        };
        (0..100).into_par_iter().map(id).collect()
    };
    assert_eq!(with_threads(1, ids).unwrap().len(), 1);
    assert!((2..=3).contains(&with_threads(3, ids).unwrap().len()));
    // A pool of another's making is none of ours: the number counts.
    let foreign = rayon::ThreadPoolBuilder::new().num_threads(4).build();
    let inside = foreign
        .unwrap()
        .install(|| with_threads(2, rayon::current_num_threads));
    assert_eq!(inside.unwrap(), 2);
}

#[test]
fn none_means_one_for_every_core() {
    let cores = thread::available_parallelism().unwrap().get();
    assert_eq!(with_threads(0, rayon::current_num_threads).unwrap(), cores);
}
