//! A shared 64-bit counter. Core withholds compare-exchange and fetch-add from the BPF target although the instructions are
//! there (v3), so the same three operations come from the compiler's intrinsics on that side.

#[cfg(not(target_arch = "bpf"))]
mod imp {
    use core::sync::atomic::{AtomicU64, Ordering};

    /// A 64-bit number that several CPUs change.
    #[derive(Debug, Default)]
    #[repr(transparent)]
    pub struct Counter(AtomicU64);

    impl Counter {
        /// A counter with this value.
        pub const fn new(value: u64) -> Self {
            Self(AtomicU64::new(value))
        }

        /// Its value now.
        #[inline(always)]
        pub fn get(&self) -> u64 {
            self.0.load(Ordering::SeqCst)
        }

        /// Adds, and returns the value before.
        #[inline(always)]
        pub fn fetch_add(&self, value: u64) -> u64 {
            self.0.fetch_add(value, Ordering::SeqCst)
        }

        /// Stores `new` where the value is `current`. Returns the value before.
        #[inline(always)]
        pub fn compare_exchange(&self, current: u64, new: u64) -> u64 {
            match self
                .0
                .compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(before) | Err(before) => before,
            }
        }

        /// Stores without looking.
        #[inline(always)]
        pub fn set(&self, value: u64) {
            self.0.store(value, Ordering::SeqCst);
        }
    }
}

#[cfg(target_arch = "bpf")]
mod imp {
    use core::cell::UnsafeCell;
    use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

    /// A 64-bit number that several CPUs change.
    #[derive(Debug, Default)]
    #[repr(transparent)]
    pub struct Counter(UnsafeCell<u64>);

    // SAFETY: every access below is one instruction on an aligned word.
    unsafe impl Sync for Counter {}

    impl Counter {
        /// Its value now.
        #[inline(always)]
        pub fn get(&self) -> u64 {
            // SAFETY: valid and aligned.
            unsafe { self.0.get().read_volatile() }
        }

        /// Adds, and returns the value before.
        #[inline(always)]
        pub fn fetch_add(&self, value: u64) -> u64 {
            // SAFETY: valid and aligned.
            unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(self.0.get(), value) }
        }

        /// Stores `new` where the value is `current`. Returns the value before.
        #[inline(always)]
        pub fn compare_exchange(&self, current: u64, new: u64) -> u64 {
            // SAFETY: valid and aligned.
            unsafe {
                atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                    self.0.get(),
                    current,
                    new,
                )
                .0
            }
        }

        /// Stores without looking.
        #[inline(always)]
        pub fn set(&self, value: u64) {
            // SAFETY: valid and aligned.
            unsafe { self.0.get().write_volatile(value) }
        }
    }
}

pub use imp::Counter;
