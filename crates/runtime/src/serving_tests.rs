//! Publication under a scheduler that picks the next thread at every step: random schedules, and those of the
//! probabilistic concurrency test, which finds orderings that need few preemptions.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use shuttle::thread;

use super::*;

const SCHEDULES: usize = 2000;

/// Runs `test` under many schedules.
fn check(test: fn()) {
    shuttle::check_random(test, SCHEDULES);
    shuttle::check_pct(test, SCHEDULES, 3);
}

/// Stands for a set of slots: memory of a pool that is filled with the generation's mark, and taken by the next one as soon
/// as nobody holds it.
struct Marked {
    slots: Vec<Arc<Memory>>,
}

struct Memory {
    mark: AtomicUsize,
    pool: Arc<Pool>,
}

#[derive(Default)]
struct Pool {
    free: Mutex<Vec<usize>>,
    made: AtomicUsize,
    held: AtomicUsize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Memory that is given back may be overwritten at once.
        self.mark.store(usize::MAX, Relaxed);
        self.pool.held.fetch_sub(1, Relaxed);
        lock(&self.pool.free).push(0);
    }
}

fn memory(pool: &Arc<Pool>, mark: usize) -> Arc<Memory> {
    if lock(&pool.free).pop().is_none() {
        pool.made.fetch_add(1, Relaxed);
    }
    pool.held.fetch_add(1, Relaxed);
    Arc::new(Memory { mark: AtomicUsize::new(mark), pool: pool.clone() })
}

fn generation(pool: &Arc<Pool>, mark: usize) -> Arc<Marked> {
    Arc::new(Marked { slots: (0..2).map(|_| memory(pool, mark)).collect() })
}

/// A run: reads its generation slot by slot, with anything happening in between.
fn run(generation: &Marked) -> usize {
    let marks: Vec<usize> = generation
        .slots
        .iter()
        .map(|slot| {
            thread::yield_now();
            slot.mark.load(Relaxed)
        })
        .collect();
    assert!(marks.iter().all(|m| *m == marks[0] && *m != usize::MAX), "a mix of generations: {marks:?}");
    marks[0]
}

fn refit(serving: &Serving<Marked>, pool: &Arc<Pool>, mark: usize, keep_base: bool) {
    loop {
        let base = serving.load();
        let next = Next { base, generation: generation(pool, mark), keep_base };
        if serving.publish(next).is_ok() {
            return;
        }
    }
}

#[test]
fn r_18_a_run_sees_one_generation_whatever_refits_do() {
    check(|| {
        let pool = Arc::new(Pool::default());
        let serving = Arc::new(Serving::new(Some(generation(&pool, 0))));
        let refits: Vec<_> = (1..3)
            .map(|mark| {
                let (serving, pool) = (serving.clone(), pool.clone());
                thread::spawn(move || refit(&serving, &pool, mark, mark == 1))
            })
            .collect();
        for _ in 0..2 {
            let seen = run(&serving.load().expect("something always serves"));
            assert!(seen < 3);
        }
        refits.into_iter().for_each(|r| r.join().expect("a refit goes through"));
        drop(serving);
        assert_eq!(pool.held.load(Relaxed), 0, "all memory came back");
    });
}

#[test]
fn v_2_a_variant_that_is_removed_while_runs_use_it_lives_until_they_finish() {
    check(|| {
        let pool = Arc::new(Pool::default());
        let variants: Arc<Mutex<BTreeMap<&str, Arc<Serving<Marked>>>>> = Arc::default();
        lock(&variants).insert("b", Arc::new(Serving::new(Some(generation(&pool, 7)))));
        let runner = {
            let variants = variants.clone();
            thread::spawn(move || {
                let variant = lock(&variants).get("b").cloned();
                if let Some(generation) = variant.and_then(|v| v.load()) {
                    assert!([7, 8].contains(&run(&generation)));
                }
            })
        };
        let refitter = {
            let (variants, pool) = (variants.clone(), pool.clone());
            thread::spawn(move || {
                let variant = lock(&variants).get("b").cloned();
                variant.iter().for_each(|v| refit(v, &pool, 8, false));
            })
        };
        let removed = lock(&variants).remove("b");
        drop(removed);
        runner.join().expect("the run finished");
        refitter.join().expect("the refit finished");
        assert_eq!(pool.held.load(Relaxed), 0, "nothing holds the variant any more");
    });
}

#[test]
fn a_refit_and_a_rollback_never_lose_what_serves() {
    check(|| {
        let pool = Arc::new(Pool::default());
        let serving = Arc::new(Serving::new(Some(generation(&pool, 0))));
        refit(&serving, &pool, 1, true);
        let other = {
            let (serving, pool) = (serving.clone(), pool.clone());
            thread::spawn(move || refit(&serving, &pool, 2, true))
        };
        let rolled_back = serving.rollback();
        other.join().expect("the refit went through");
        let seen = run(&serving.load().expect("something serves"));
        // The refit came last, or the rollback undid it, or undid the one before it.
        assert!(rolled_back.is_ok() && [1, 2].contains(&seen), "{seen}");
    });
}

#[test]
fn v_3_models_are_published_together_or_not_at_all() {
    check(|| {
        let pool = Arc::new(Pool::default());
        let models: Vec<_> = (0..2).map(|_| Arc::new(Serving::new(Some(generation(&pool, 0))))).collect();
        let publishers: Vec<_> = [1, 2]
            .map(|mark| {
                let (mut models, pool) = (models.clone(), pool.clone());
                thread::spawn(move || {
                    let next = |m: &Arc<Serving<Marked>>| Next {
                        base: m.load(),
                        generation: generation(&pool, mark),
                        keep_base: false,
                    };
                    let staged: Vec<_> = models.iter().map(next).collect();
                    if mark == 2 {
                        models.reverse();
                    }
                    let staged = if mark == 2 { staged.into_iter().rev().collect() } else { staged };
                    Serving::publish_together(models.iter().map(|m| &**m).zip(staged).collect()).is_ok()
                })
            })
            .into_iter()
            .collect();
        let published: Vec<bool> = publishers.into_iter().map(|p| p.join().expect("no deadlock")).collect();
        let seen: Vec<usize> = models.iter().map(|m| run(&m.load().expect("something serves"))).collect();
        assert!(published.iter().any(|p| *p), "one of them came first");
        assert_eq!(seen[0], seen[1], "both or none");
    });
}

#[test]
fn a_refit_in_place_waits_for_nobody_and_is_seen_whole() {
    check(|| {
        assert_eq!(Serving::<Marked>::new(None).pin().err(), Some(Empty::NotBound));
        let pool = Arc::new(Pool::default());
        let serving = Arc::new(Serving::new(Some(generation(&pool, 0))));
        let runner = {
            let serving = serving.clone();
            thread::spawn(move || match serving.pin() {
                Ok(generation) => assert!(run(&generation) < 2),
                Err(empty) => assert_eq!(empty, Empty::ChangingInPlace, "even when it is done by now"),
            })
        };
        let base = serving.load().expect("something serves");
        let Ok(place) = serving.take_out(&base) else { panic!("nothing else changes it") };
        drop(base);
        place.finish(generation(&pool, 1));
        runner.join().expect("it saw one generation or none");
        assert_eq!(run(&serving.pin().expect("it is back")), 1);
    });
}
