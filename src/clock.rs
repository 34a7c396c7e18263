//! The monotonic clock, which the simulation replaces.

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

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

/// The time of day, in microseconds since the Unix epoch.
pub fn unix_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as i64)
}

/// Waits for this long.
pub fn sleep(time: Duration) {
    #[cfg(test)]
    if let Some(now) = SIMULATED.get() {
        return simulate_wait(now + time);
    }
    thread::sleep(time);
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
