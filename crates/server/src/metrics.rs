//! Figures of a model: counted without locks, written as Prometheus' text and as JSON.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use regraft::{PhaseTimes, RefitReport};
use serde_json::{Value, json};

use crate::error::Kind;

/// Upper bounds of durations in seconds: 50 µs to 30 s.
const SECONDS: [f64; 18] =
    [5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
/// Upper bounds of sizes of batches, in rows.
const ROWS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// How requests end.
const OUTCOMES: [&str; 5] = ["ok", "refused", "overloaded", "deadline", "failed"];

/// How often values fell below each bound.
struct Histogram<const N: usize> {
    bounds: [f64; N],
    /// By the first bound that is not less; the last count is of those above all.
    counts: [AtomicU64; N],
    above: AtomicU64,
    /// The sum of all values, in millionths.
    sum: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: [f64; N]) -> Self {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Histogram { bounds, counts, above: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    fn add(&self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.counts.get(at).unwrap_or(&self.above).fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
    }

    fn cumulative(&self) -> (Vec<u64>, u64, f64) {
        let mut total = 0;
        let mut counts = Vec::with_capacity(N);
        for count in &self.counts {
            total += count.load(Ordering::Relaxed);
            counts.push(total);
        }
        (counts, total + self.above.load(Ordering::Relaxed), self.sum.load(Ordering::Relaxed) as f64 / 1e6)
    }

    fn write(&self, text: &mut String, name: &str, labels: &str) {
        let (counts, total, sum) = self.cumulative();
        for (bound, count) in self.bounds.iter().zip(counts) {
            sample(text, &format!("{name}_bucket"), &format!("{labels},le=\"{bound}\""), count as f64);
        }
        sample(text, &format!("{name}_bucket"), &format!("{labels},le=\"+Inf\""), total as f64);
        sample(text, &format!("{name}_sum"), labels, sum);
        sample(text, &format!("{name}_count"), labels, total as f64);
    }

    fn to_json(&self) -> Value {
        let (counts, total, sum) = self.cumulative();
        json!({"bounds": &self.bounds[..], "counts": counts, "count": total, "sum": sum})
    }
}

/// The figures of a model.
pub(crate) struct Metrics {
    outcomes: [AtomicU64; OUTCOMES.len()],
    waited: Histogram<18>,
    ran: Histogram<18>,
    took: Histogram<18>,
    rows: Histogram<11>,
    staged: AtomicU64,
    refused: AtomicU64,
    published: AtomicU64,
    rolled_back: AtomicU64,
    /// Microseconds of each phase, in the order of [`phases`].
    phases: [AtomicU64; 6],
}

/// What is not counted but is so now.
pub(crate) struct Now {
    pub(crate) queued: usize,
    pub(crate) generation: u64,
    pub(crate) slots_in_use: usize,
    pub(crate) slots_free: usize,
    pub(crate) variants: (usize, usize),
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        Metrics {
            outcomes: Default::default(),
            waited: Histogram::new(SECONDS),
            ran: Histogram::new(SECONDS),
            took: Histogram::new(SECONDS),
            rows: Histogram::new(ROWS),
            staged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            published: AtomicU64::new(0),
            rolled_back: AtomicU64::new(0),
            phases: Default::default(),
        }
    }

    /// A request waited for a run.
    pub(crate) fn waited(&self, time: Duration) {
        self.waited.add(time.as_secs_f64());
    }

    /// A run of `rows` rows took this long.
    pub(crate) fn ran(&self, time: Duration, rows: usize) {
        self.ran.add(time.as_secs_f64());
        self.rows.add(rows as f64);
    }

    /// A request was answered or refused.
    pub(crate) fn ended(&self, time: Duration, outcome: Result<(), Kind>) {
        let index = match outcome {
            Ok(()) => 0,
            Err(Kind::Overloaded) => 2,
            Err(Kind::Deadline) => 3,
            Err(Kind::Internal | Kind::Memory) => 4,
            Err(_) => 1,
        };
        self.outcomes[index].fetch_add(1, Ordering::Relaxed);
        self.took.add(time.as_secs_f64());
    }

    /// The mean time of a run, of all so far.
    pub(crate) fn mean_run(&self) -> Duration {
        let (_, count, sum) = self.ran.cumulative();
        Duration::from_secs_f64(if count == 0 { 0.0 } else { sum / count as f64 })
    }

    /// Weights were staged, or refused.
    pub(crate) fn staged(&self, report: Option<&RefitReport>) {
        match report {
            Some(report) => {
                self.staged.fetch_add(1, Ordering::Relaxed);
                self.add_phases(&report.phases_ms);
            }
            None => _ = self.refused.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// What was staged serves; the report has the phases of staging too, which were counted.
    pub(crate) fn published(&self, report: &RefitReport) {
        self.published.fetch_add(1, Ordering::Relaxed);
        let PhaseTimes { publish, retire, .. } = report.phases_ms;
        self.add_phases(&PhaseTimes { publish, retire, ..PhaseTimes::default() });
    }

    pub(crate) fn rolled_back(&self) {
        self.rolled_back.fetch_add(1, Ordering::Relaxed);
    }

    fn add_phases(&self, times: &PhaseTimes) {
        for (total, (_, ms)) in self.phases.iter().zip(times.named()) {
            total.fetch_add((ms * 1e3) as u64, Ordering::Relaxed);
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let outcomes = OUTCOMES.iter().zip(&self.outcomes);
        let outcomes: serde_json::Map<String, Value> =
            outcomes.map(|(name, count)| ((*name).to_owned(), count.load(Ordering::Relaxed).into())).collect();
        let refits = json!({
            "staged": self.staged.load(Ordering::Relaxed), "refused": self.refused.load(Ordering::Relaxed),
            "published": self.published.load(Ordering::Relaxed),
            "rolled_back": self.rolled_back.load(Ordering::Relaxed),
        });
        json!({
            "requests": outcomes, "request_seconds": self.took.to_json(), "queue_seconds": self.waited.to_json(),
            "run_seconds": self.ran.to_json(), "batch_rows": self.rows.to_json(), "refits": refits,
        })
    }
}

/// The text that Prometheus reads, of all models.
pub(crate) fn prometheus<'a>(models: &[(&'a str, &'a Metrics, Now)]) -> String {
    let mut text = String::new();
    let label = |name: &str| format!("model=\"{name}\"");
    let mut family = |name: &str, kind: &str, help: &str, write: &dyn Fn(&mut String, &str, &Metrics, &Now)| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        models.iter().for_each(|(model, metrics, now)| write(&mut text, &label(model), metrics, now));
    };
    let counter = |of: &AtomicU64| of.load(Ordering::Relaxed) as f64;
    family("regraft_requests_total", "counter", "Requests by how they ended.", &|text, label, metrics, _| {
        for (outcome, count) in OUTCOMES.iter().zip(&metrics.outcomes) {
            sample(text, "regraft_requests_total", &format!("{label},outcome=\"{outcome}\""), counter(count));
        }
    });
    let mut seconds = |name: &str, help: &str, of: fn(&Metrics) -> &Histogram<18>| {
        family(name, "histogram", help, &|text, label, metrics, _| of(metrics).write(text, name, label));
    };
    seconds("regraft_request_seconds", "From a request's head to its answer.", |m| &m.took);
    seconds("regraft_queue_seconds", "Waiting for a run.", |m| &m.waited);
    seconds("regraft_run_seconds", "Runs of the model.", |m| &m.ran);
    family("regraft_batch_rows", "histogram", "Rows of each run.", &|text, label, metrics, _| {
        metrics.rows.write(text, "regraft_batch_rows", label);
    });
    let mut gauge = |name: &str, help: &str, of: fn(&Now) -> f64| {
        family(name, "gauge", help, &|text, label, _, now| sample(text, name, label, of(now)));
    };
    gauge("regraft_queue_length", "Requests that wait for a run.", |now| now.queued as f64);
    gauge("regraft_generation", "Number of the generation that serves.", |now| now.generation as f64);
    gauge("regraft_slot_bytes", "Memory of slots in use, with all generations.", |now| now.slots_in_use as f64);
    gauge("regraft_slot_free_bytes", "Memory of retired slots, kept for reuse.", |now| now.slots_free as f64);
    gauge("regraft_variants", "Adapters of requests that are ready.", |now| now.variants.0 as f64);
    gauge("regraft_variant_bytes", "Slots that these have for themselves.", |now| now.variants.1 as f64);
    let mut count = |name: &str, help: &str, of: fn(&Metrics) -> &AtomicU64| {
        family(name, "counter", help, &|text, label, metrics, _| sample(text, name, label, counter(of(metrics))));
    };
    count("regraft_staged_total", "Weights that were staged.", |m| &m.staged);
    count("regraft_refused_total", "Weights that did not fit.", |m| &m.refused);
    count("regraft_published_total", "Generations that were published.", |m| &m.published);
    count("regraft_rolled_back_total", "Generations that were published again.", |m| &m.rolled_back);
    let name = "regraft_refit_seconds_total";
    family(name, "counter", "Time that refits took, by phase.", &|text, label, metrics, _| {
        for (total, (phase, _)) in metrics.phases.iter().zip(PhaseTimes::default().named()) {
            sample(text, name, &format!("{label},phase=\"{phase}\""), counter(total) / 1e6);
        }
    });
    text
}

fn sample(text: &mut String, name: &str, labels: &str, value: f64) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{name}{{{labels}}} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_count_up_to_their_bounds() {
        let metrics = Metrics::new();
        metrics.ran(Duration::from_micros(50), 1);
        metrics.ran(Duration::from_micros(51), 3);
        metrics.ran(Duration::from_secs(60), 4000);
        let now = Now { queued: 2, generation: 7, slots_in_use: 1, slots_free: 0, variants: (0, 0) };
        let text = prometheus(&[("m", &metrics, now)]);
        for line in [
            "regraft_run_seconds_bucket{model=\"m\",le=\"0.00005\"} 1",
            "regraft_run_seconds_bucket{model=\"m\",le=\"0.0001\"} 2",
            "regraft_run_seconds_bucket{model=\"m\",le=\"30\"} 2",
            "regraft_run_seconds_bucket{model=\"m\",le=\"+Inf\"} 3",
            "regraft_run_seconds_count{model=\"m\"} 3",
            "regraft_batch_rows_bucket{model=\"m\",le=\"4\"} 2",
            "regraft_generation{model=\"m\"} 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert_eq!(metrics.mean_run().as_secs(), 20);
    }
}
