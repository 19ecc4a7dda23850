//! The weights of an engine file are compared with their digests in the background: a caller about to use what was
//! computed from them waits for the result first.

use std::{sync::Arc, thread};

use regraft_engine::Unverified;
use regraft_tensor::{Explanation, PerProcess};

use crate::{RuntimeError, RuntimeErrorKind};

/// A comparison to be made, under way or done; none where weights were compared before.
#[derive(Clone, Debug)]
pub(crate) struct FileCheck(Option<Arc<Check>>);

#[derive(Debug)]
struct Check {
    weights: Unverified,
    /// Of what runs read: it is compared first.
    for_runs: Outcome,
    all: Outcome,
}

/// What is wrong, once it is known. A forked child, which has no such thread, compares what was not known by then.
type Outcome = PerProcess<Result<(), Explanation>>;

impl FileCheck {
    pub(crate) fn of(unverified: Option<Unverified>) -> FileCheck {
        let check = |weights| Check { weights, for_runs: Outcome::new(), all: Outcome::new() };
        FileCheck(unverified.map(|weights| Arc::new(check(weights))))
    }

    /// Begins to compare, on a thread of its own.
    pub(crate) fn start(&self) {
        let Some(check) = self.0.clone() else { return };
        // Without a thread, the caller that waits does it.
        let _ = thread::Builder::new().name("regraft-check".into()).spawn(move || {
            // Once what runs read has been compared the rest is in no hurry, but refits are quicker for it.
            check.for_runs().is_ok() && check.all().is_ok()
        });
    }

    /// Waits until what runs read was compared.
    pub(crate) fn wait_for_runs(&self) -> Result<(), RuntimeError> {
        self.0.as_ref().map_or(Ok(()), |check| error(check.for_runs()))
    }

    /// Waits until everything was compared.
    pub(crate) fn wait(&self) -> Result<(), RuntimeError> {
        self.0.as_ref().map_or(Ok(()), |check| error(check.for_runs()).and_then(|()| error(check.all())))
    }
}

impl Check {
    fn for_runs(&self) -> &Result<(), Explanation> {
        let verify = || self.weights.verify_for_runs().map_err(|e| e.explained());
        self.for_runs.get_inherited().unwrap_or_else(|| self.for_runs.get_or_init(verify))
    }

    /// Asks for [`Check::for_runs`] first.
    fn all(&self) -> &Result<(), Explanation> {
        let verify = || self.weights.verify_rest().map_err(|e| e.explained());
        self.all.get_inherited().unwrap_or_else(|| self.all.get_or_init(verify))
    }
}

fn error(outcome: &Result<(), Explanation>) -> Result<(), RuntimeError> {
    outcome.clone().map_err(|why| RuntimeErrorKind::DamagedFile(why).into())
}
