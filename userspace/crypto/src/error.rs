//! What can go wrong in a cryptographic operation.

/// Errors of this crate. None of them carries secret octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// A key, IV or public value has the wrong length.
    #[error("{what} has {got} octets, expected {expected}: check the negotiated algorithm")]
    Length {
        /// Which value.
        what: &'static str,
        /// Octets that the algorithm needs.
        expected: usize,
        /// Octets that came.
        got: usize,
    },
    /// Ciphertext is shorter than IV, smallest ciphertext and ICV.
    #[error("protected data has {got} octets, needs at least {needed}: truncated packet")]
    Truncated {
        /// Least number of octets.
        needed: usize,
        /// Octets that came.
        got: usize,
    },
    /// Ciphertext is not a whole number of cipher blocks.
    #[error("ciphertext is not a multiple of the cipher's block: malformed packet")]
    NotBlockAligned,
    /// The integrity check failed: wrong keys or a changed packet.
    #[error("integrity check failed: wrong keys or a changed packet")]
    Integrity,
    /// The decrypted padding is longer than the data.
    #[error("padding is longer than the decrypted data: faulty peer")]
    Padding,
    /// The peer's public value is not a point of the group (RFC 6989 2.3).
    #[error("peer's public value is not valid in its group: faulty or hostile peer")]
    PeerPublic,
    /// The shared secret is all zero (RFC 8031, RFC 7748 6.1).
    #[error("shared secret does not depend on our key: hostile peer")]
    NonContributory,
    /// Stored octets are not a private key of the group.
    #[error("octets are not a private key of the group: corrupt record")]
    PrivateKey,
    /// The random source gave no usable private key in many tries.
    #[error("random source gave no usable private key: it is broken")]
    RandomSource,
    /// prf+ was asked for more than 255 blocks (RFC 7296 2.13).
    #[error("prf+ gives at most 255 blocks, {asked} octets were asked for")]
    PrfPlusLength {
        /// Octets asked for.
        asked: usize,
    },
    /// The provider refused an operation that cannot fail with valid arguments.
    #[error("cryptographic provider failed: memory exhausted or a broken build")]
    Provider,
}
