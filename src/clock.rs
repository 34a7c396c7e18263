//! The monotonic time that behaviour depends on. In the simulation it is simulated.

use std::time::{Duration, Instant};

/// Now.
pub fn now() -> Instant {
    #[cfg(test)]
    if let Some(now) = SIMULATED.get() {
        return now;
    }
    Instant::now()
}

/// How much time has passed since then.
pub fn since(then: Instant) -> Duration {
    now().saturating_duration_since(then)
}

#[cfg(test)]
thread_local! {
    static SIMULATED: std::cell::Cell<Option<Instant>> = const { std::cell::Cell::new(None) };
}

/// What this thread takes for the time from now on; `None` is the real one.
#[cfg(test)]
pub fn simulate(now: Option<Instant>) {
    SIMULATED.set(now);
}

/// A wait until then: where time is simulated, it is then.
#[cfg(test)]
pub fn simulate_wait(until: Instant) {
    if let Some(now) = SIMULATED.get() {
        SIMULATED.set(Some(now.max(until)));
    }
}
