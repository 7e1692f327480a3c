//! Whether processes stand still, and which container's pause did it: under runc of one container, in gVisor of a whole
//! sandbox, whose containers share it. Nothing here calls a runtime; `container` does, and writes down what came of it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::bundle::Id;

/// Shared by all that stand still together.
#[derive(Clone, Default)]
pub(super) struct Standstill(Arc<Mutex<Phase>>);

/// Where a pause is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// There is none.
    #[default]
    Moving,
    /// The runtime is pausing this container.
    Pausing(Id),
    /// The runtime has paused this container, and resumes it and what stands still with it by its name alone.
    Paused(Id),
}

impl Standstill {
    /// Where it is at the moment.
    pub(super) fn phase(&self) -> Phase {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The container that was paused, once it is.
    pub(super) fn paused(&self) -> Option<Id> {
        match self.phase() {
            Phase::Paused(id) => Some(id),
            Phase::Moving | Phase::Pausing(_) => None,
        }
    }

    /// Writes down where it is now, and returns where it was.
    pub(super) fn set(&self, phase: Phase) -> Phase {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), phase)
    }
}
