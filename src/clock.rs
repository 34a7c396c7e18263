//! The monotonic clock, which the simulation replaces.

use std::time::{Duration, Instant};

/// Now.
pub fn now() -> Instant {
    #[cfg(test)]
    if let Some(now) = SIMULATED.get() {
        return now;
    }
    Instant::now()
}

/// The time that has passed since `then`.
pub fn since(then: Instant) -> Duration {
    now().saturating_duration_since(then)
}

#[cfg(test)]
thread_local! {
    static SIMULATED: std::cell::Cell<Option<Instant>> = const { std::cell::Cell::new(None) };
}

/// Sets the time of this thread; `None` is the real one.
#[cfg(test)]
pub fn simulate(now: Option<Instant>) {
    SIMULATED.set(now);
}

/// Moves simulated time forward to `until`.
#[cfg(test)]
pub fn simulate_wait(until: Instant) {
    if let Some(now) = SIMULATED.get() {
        SIMULATED.set(Some(now.max(until)));
    }
}
