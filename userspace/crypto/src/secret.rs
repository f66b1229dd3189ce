//! Secrets of a fixed length.

use zeroize::{Zeroize, ZeroizeOnDrop};

/// `N` secret octets: no `Debug`, no `Display`, no `PartialEq`, cleared when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret<const N: usize>([u8; N]);

impl<const N: usize> Secret<N> {
    /// Takes the octets over.
    pub fn new(octets: [u8; N]) -> Self {
        Self(octets)
    }

    /// Octets from a random source.
    pub fn random(random: crate::Random<'_>) -> Self {
        let mut secret = Self([0; N]);
        random(&mut secret.0);
        secret
    }

    /// The octets. Named so that a reader sees where secrets are used.
    pub fn expose(&self) -> &[u8; N] {
        &self.0
    }
}
