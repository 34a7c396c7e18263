//! The time that behaviour depends on. In the simulation it is simulated.

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

/// Microseconds since the Unix epoch, by the machine's clock, which may be set.
pub fn unix_micros() -> i64 {
    #[cfg(test)]
    if let (Some(now), Some(began)) = (SIMULATED.get(), BEGAN.get()) {
        return SIMULATED_EPOCH + now.saturating_duration_since(began).as_micros() as i64;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
thread_local! {
    static SIMULATED: std::cell::Cell<Option<Instant>> = const { std::cell::Cell::new(None) };
    static BEGAN: std::cell::Cell<Option<Instant>> = const { std::cell::Cell::new(None) };
}

/// The machine's clock when simulated time begins.
#[cfg(test)]
const SIMULATED_EPOCH: i64 = 1_700_000_000_000_000;

/// What this thread takes for the time from now on; `None` is the real one.
#[cfg(test)]
pub fn simulate(now: Option<Instant>) {
    let began = BEGAN.get().filter(|_| SIMULATED.get().is_some());
    BEGAN.set(began.or(now));
    SIMULATED.set(now);
}

/// A wait until then: where time is simulated, it is then.
#[cfg(test)]
pub fn simulate_wait(until: Instant) {
    if let Some(now) = SIMULATED.get() {
        SIMULATED.set(Some(now.max(until)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_simulated_clock_of_the_machine_moves_with_the_simulated_time() {
        for _ in 0..2 {
            simulate(Some(Instant::now()));
            assert_eq!(unix_micros(), SIMULATED_EPOCH);
            simulate_wait(now() + Duration::from_millis(3));
            simulate(Some(now() + Duration::from_millis(4)));
            assert_eq!(unix_micros(), SIMULATED_EPOCH + 7000);
            simulate(None);
            assert!(unix_micros() > SIMULATED_EPOCH + 7000);
        }
    }
}
