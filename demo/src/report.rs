//! The table at the end.

use std::time::Instant;

/// Times and errors, in the order they were found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    times: Vec<(String, f64, String)>,
    errors: Vec<(String, f64, String)>,
}

impl Report {
    /// Records the time since `start`.
    pub(crate) fn time(&mut self, what: &str, start: Instant, about: &str) {
        self.times.push((what.to_owned(), ms(start), about.to_owned()));
    }

    /// Records the median of several times.
    pub(crate) fn median(&mut self, what: &str, mut times: Vec<f64>, about: &str) {
        times.sort_by(f64::total_cmp);
        let median = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
        self.times.push((what.to_owned(), median, format!("median; {about}")));
    }

    /// Records the largest difference from PyTorch.
    pub(crate) fn error(&mut self, what: &str, error: f64, about: &str) {
        self.errors.push((what.to_owned(), error, about.to_owned()));
    }

    /// The errors above `tolerance`, in words.
    pub(crate) fn larger_than(&self, tolerance: f64) -> Vec<String> {
        let too_large = self.errors.iter().filter(|(_, error, _)| error.is_nan() || *error > tolerance);
        too_large
            .map(|(what, error, about)| {
                format!("{what}: {about} differ from PyTorch's by {error:.1e}, more than {tolerance:e}")
            })
            .collect()
    }

    pub(crate) fn print(&self) {
        println!("\nTimes");
        for (what, ms, about) in &self.times {
            println!("  {what:<10} {ms:>9.2} ms   {about}");
        }
        println!("\nLargest differences from PyTorch");
        for (what, error, about) in &self.errors {
            println!("  {error:>9.1e}   {about:<13} {what}");
        }
    }
}

/// Milliseconds since `start`.
pub(crate) fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// `90.3 MB`
pub(crate) fn mb(bytes: usize) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
