//! Arrays of the maps in this process's memory: counters are read and limits written without a system call.
//!
//! The other side writes at any time, so every access is a word-sized atomic.

use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A `BPF_F_MMAPABLE` array of `T`, mapped shared. `T` is a whole number of 64-bit words.
pub(crate) struct MappedArray<T> {
    base: NonNull<AtomicU64>,
    entries: u32,
    bytes: usize,
    _values: PhantomData<fn(T)>,
}

// SAFETY: the mapping is shared memory that is accessed through atomics only, and it lives as long as the value.
unsafe impl<T> Send for MappedArray<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for MappedArray<T> {}

impl<T: FromBytes + IntoBytes + Immutable> MappedArray<T> {
    const WORDS: usize = size_of::<T>() / 8;

    /// Maps the whole array.
    pub(crate) fn map(fd: BorrowedFd<'_>, entries: u32) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8) && size_of::<T>() > 0) };
        let page = 4096usize;
        let bytes = (size_of::<T>() * entries as usize).div_ceil(page) * page;
        // SAFETY: a fresh mapping at an address of the kernel's choice; the result is checked.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self {
            base,
            entries,
            bytes,
            _values: PhantomData,
        })
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> u32 {
        self.entries
    }

    /// The word at octet `offset` of an entry. `offset` must be a multiple of 8 within `T`.
    pub(crate) fn word(&self, index: u32, offset: usize) -> Option<&AtomicU64> {
        debug_assert!(offset.is_multiple_of(8) && offset < size_of::<T>());
        if index >= self.entries || offset / 8 >= Self::WORDS {
            return None;
        }
        // SAFETY: index and word lie within the mapping (checked above), which is aligned to a page.
        Some(unsafe { self.base.add(index as usize * Self::WORDS + offset / 8).as_ref() })
    }

    /// An entry, word by word: words are whole, the entry as a whole need not be of one moment.
    pub(crate) fn read(&self, index: u32) -> Option<T> {
        let mut value = T::new_zeroed();
        for (at, chunk) in value.as_mut_bytes().chunks_exact_mut(8).enumerate() {
            chunk.copy_from_slice(&self.word(index, at * 8)?.load(Ordering::Relaxed).to_ne_bytes());
        }
        Some(value)
    }

    /// Writes the words of `value` that begin at octets `from..to`, rising.
    pub(crate) fn write(&self, index: u32, value: &T, from: usize, to: usize) -> Option<()> {
        for (at, chunk) in value.as_bytes().chunks_exact(8).enumerate() {
            if (from..to).contains(&(at * 8)) {
                let word = u64::from_ne_bytes(chunk.try_into().ok()?);
                self.word(index, at * 8)?.store(word, Ordering::Relaxed);
            }
        }
        Some(())
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping made in `map`; no reference outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
