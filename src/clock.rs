//! The monotonic time that behaviour depends on. In the simulation it is simulated.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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

/// The time of day, in microseconds since the Unix epoch.
pub fn unix_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as i64)
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
