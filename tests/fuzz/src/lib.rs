//! What all targets share: a count of the inputs, which libFuzzer itself tells only when something is new.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[doc(hidden)]
pub use libfuzzer_sys;

/// Inputs so far.
static EXECUTIONS: AtomicU64 = AtomicU64::new(0);

/// How often they are told.
const INTERVAL: Duration = Duration::from_secs(1);

/// Makes a target of a body.
#[macro_export]
macro_rules! target {
    ($body:path) => {
        $crate::libfuzzer_sys::fuzz_target!(init: $crate::tell(), |octets: &[u8]| {
            $crate::count();
            $body(octets);
        });
    };
}

/// One more input.
pub fn count() {
    EXECUTIONS.fetch_add(1, Ordering::Relaxed);
}

/// Says on standard error how many there were, if `cargo xtask fuzz` wants to know.
pub fn tell() {
    if std::env::var_os("ESPALIER_FUZZ_COUNT").is_none() {
        return;
    }
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(INTERVAL);
            eprintln!("executions: {}", EXECUTIONS.load(Ordering::Relaxed));
        }
    });
}
