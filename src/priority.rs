//! A lower priority for the work that can wait: received mails are large, and webhooks of events must not wait for them when all
//! processors are busy.

/// The nice value: such a thread gets a tenth of the processor time of a normal one while both want it, and all that is left otherwise.
const NICE: i32 = 10;

/// Lowers the priority of this thread, and of all threads that it starts from now on. It can't be raised again.
pub fn lower() {
    // On Linux this is the thread alone. Where it isn't allowed, the work goes on as before.
    let _ = rustix::process::setpriority_process(None, NICE);
}
