//! Octets behind a trait. The verifier must see every bound, so rules never hold a plain slice of a packet: they read
//! fixed arrays at an offset, and get nothing where the octets are not there.

use crate::opaque::opaque;

/// Reading fixed-size pieces.
pub trait PacketRead {
    /// The `N` octets at `offset`, if all of them are there.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// The octet at `offset`.
    #[inline(always)]
    fn u8(&self, offset: usize) -> Option<u8> {
        self.read::<1>(offset).map(|[a]| a)
    }

    /// The 16-bit number in network order at `offset`.
    #[inline(always)]
    fn u16(&self, offset: usize) -> Option<u16> {
        self.read::<2>(offset).map(u16::from_be_bytes)
    }

    /// The 32-bit number in network order at `offset`.
    #[inline(always)]
    fn u32(&self, offset: usize) -> Option<u32> {
        self.read::<4>(offset).map(u32::from_be_bytes)
    }

    /// The 64-bit number in network order at `offset`.
    #[inline(always)]
    fn u64(&self, offset: usize) -> Option<u64> {
        self.read::<8>(offset).map(u64::from_be_bytes)
    }
}

/// Writing fixed-size pieces.
pub trait PacketWrite: PacketRead {
    /// Stores `octets` at `offset`; `None`, and nothing stored, where there is no room.
    fn write<const N: usize>(&mut self, offset: usize, octets: [u8; N]) -> Option<()>;
}

impl PacketRead for [u8] {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk::<N>().copied()
    }
}

impl PacketWrite for [u8] {
    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, octets: [u8; N]) -> Option<()> {
        *self.get_mut(offset..)?.first_chunk_mut::<N>()? = octets;
        Some(())
    }
}

/// The first `len` octets of a fixed array of `M`.
pub struct Bounded<'a, const M: usize> {
    /// The array.
    pub octets: &'a [u8; M],
    /// Octets of it that count.
    pub len: usize,
}

impl<const M: usize> PacketRead for Bounded<'_, M> {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let offset = opaque(offset as u64) as usize;
        // Where the compiler knows how long it is, it would leave out the first comparison. That one is on `offset` itself, and with
        // a constant: from the second, verifiers up to Linux 6.7 derive nothing.
        let len = opaque(self.len as u64) as usize;
        if offset > M.checked_sub(N)? || offset + N > len {
            return None;
        }
        self.octets.get(offset..)?.first_chunk::<N>().copied()
    }
}
