//! Owner words, written in shared memory: a flip is one store, whatever the number of SAs.

use crate::load::Plane;
use crate::maps::SaMaps;
use maps_schema::segment::{OwnerWord, Segment, SideWord, VALID_UNTIL_MASK};
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Handle to the segments; clones are cheap and usable from any thread.
#[derive(Clone)]
pub struct Segments {
    sa: Arc<SaMaps>,
}

impl Plane {
    /// Handle to the owner words.
    pub fn segments(&self) -> Segments {
        Segments { sa: self.sa.clone() }
    }
}

impl Segments {
    /// Both words of a segment.
    pub fn get(&self, segment: u8) -> (OwnerWord, SideWord) {
        (
            OwnerWord::unpack(self.owner(segment).load(Ordering::SeqCst)),
            SideWord::unpack(self.side(segment).load(Ordering::SeqCst)),
        )
    }

    /// Changes owner, epoch and validity in one store. The side word goes first, so that no program meets the new
    /// owner without what belongs to it.
    pub fn flip(&self, segment: u8, owner: OwnerWord, side: SideWord) {
        self.side(segment).store(side.pack(), Ordering::SeqCst);
        self.owner(segment).store(owner.pack(), Ordering::SeqCst);
    }

    /// Changes what goes with the owner word.
    pub fn set_side(&self, segment: u8, side: SideWord) {
        self.side(segment).store(side.pack(), Ordering::SeqCst);
    }

    /// Extends valid-until while owner and epoch are still these; never shortens it.
    ///
    /// # Errors
    /// The owner word that is there instead.
    pub fn extend_validity(
        &self,
        segment: u8,
        owner: u8,
        epoch: u16,
        until_ms: u64,
    ) -> Result<(), OwnerWord> {
        let word = self.owner(segment);
        let until_ms = until_ms & VALID_UNTIL_MASK;
        let mut seen = word.load(Ordering::SeqCst);
        loop {
            let current = OwnerWord::unpack(seen);
            if current.owner != owner || current.epoch != epoch {
                return Err(current);
            }
            if current.valid_until_ms >= until_ms {
                return Ok(());
            }
            let next = OwnerWord {
                valid_until_ms: until_ms,
                ..current
            }
            .pack();
            match word.compare_exchange(seen, next, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Ok(()),
                Err(other) => seen = other,
            }
        }
    }

    fn owner(&self, segment: u8) -> &AtomicU64 {
        self.word(segment, offset_of!(Segment, owner))
    }

    fn side(&self, segment: u8) -> &AtomicU64 {
        self.word(segment, offset_of!(Segment, side))
    }

    fn word(&self, segment: u8, offset: usize) -> &AtomicU64 {
        // The map has 256 entries (checked when it was mapped), which is all that a `u8` can name.
        self.sa
            .segments
            .word(u32::from(segment), offset)
            .expect("SEGMENTS has an entry for every u8")
    }
}
