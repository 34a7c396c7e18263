//! Waits on conditions, never for a fixed time.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::{Condvar, Mutex};

/// Polls `condition` until it returns a value; panics with `what` when the deadline passes.
pub fn until<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A name that no other test or run uses, valid for topics and ids.
pub fn unique(what: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{what}.{:x}.{:x}.{n}", std::process::id(), nanos / 1000)
}

/// Random numbers for kill times and batch sizes (xorshift64*). The seed is printed.
pub struct Random(u64);

impl Random {
    /// Seeded with `CMC_BRIDGE_TEST_SEED` or else the clock.
    pub fn new(what: &str) -> Self {
        let seed = std::env::var("CMC_BRIDGE_TEST_SEED")
            .ok()
            .map(|text| text.parse().expect("CMC_BRIDGE_TEST_SEED is a number"))
            .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64);
        println!("{what}: CMC_BRIDGE_TEST_SEED={seed}");
        Random(seed | 1)
    }

    /// Seeded with this value; prints nothing.
    pub fn from_seed(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }
}

/// Limits how many of something exist at once in this process.
pub struct Semaphore {
    free: Mutex<usize>,
    changed: Condvar,
}

/// One place of a [`Semaphore`], released on drop.
pub struct Permit(&'static Semaphore);

impl Semaphore {
    /// A semaphore with this many places.
    pub const fn new(places: usize) -> Self {
        Semaphore {
            free: Mutex::new(places),
            changed: Condvar::new(),
        }
    }

    /// Waits for a place.
    pub fn acquire(&'static self) -> Permit {
        let mut free = self.free.lock();
        self.changed.wait_while(&mut free, |free| *free == 0);
        *free -= 1;
        Permit(self)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.changed.notify_one();
    }
}
