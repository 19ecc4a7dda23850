use std::time::Instant;

use regraft_weights::{Phase, RefitReport};

use super::RefitObserver;

/// Runs `work` as a phase: in a tracing span of its own, announced to the observer, its time added to the report.
pub(crate) fn phase<R>(
    phase: Phase,
    report: &mut RefitReport,
    observer: &dyn RefitObserver,
    work: impl FnOnce(&mut RefitReport) -> R,
) -> R {
    let _span = span(phase).entered();
    observer.phase(phase);
    let start = Instant::now();
    let result = work(report);
    report.phases_ms.add(phase, start.elapsed());
    result
}

fn span(phase: Phase) -> tracing::Span {
    match phase {
        Phase::Match => tracing::info_span!("regraft.match"),
        Phase::Check => tracing::info_span!("regraft.check"),
        Phase::Compare => tracing::info_span!("regraft.compare"),
        Phase::Stage => tracing::info_span!("regraft.stage"),
        Phase::Publish => tracing::info_span!("regraft.publish"),
        Phase::Retire => tracing::info_span!("regraft.retire"),
    }
}
