//! Algorithms and secrets for IKE and the slow path.
//!
//! One file per role. The production backend is aws-lc-rs, except for group 31 (x25519-dalek) and MODP groups (crypto-bigint).
//! Nothing here draws randomness, except that the provider does so for ML-KEM: the caller passes octets or a source of them. No
//! type that holds a secret has `Debug` or `PartialEq`.

pub mod auth;
pub mod dh;
pub mod error;
pub mod esp;
pub mod hash;
pub mod keys;
pub mod mschapv2;
pub mod prf;
pub mod secret;
pub mod signature;
pub mod sk;
pub mod ticket;

pub use auth::{
    AuthInput, psk_auth, resumption_auth, signed_octets, verify_psk_auth, verify_resumption_auth,
};
pub use dh::{DhGroup, DhPrivate, DhWork, DhWorked};
pub use error::CryptoError;
pub use esp::{EspKey, EspOpened, esp_open, esp_seal};
pub use hash::{ct_eq, hmac_sha256, nat_detection_hash, sha256};
pub use keys::{ChildKeys, IkeKeys, KeyInputs, child_keymat};
pub use prf::Prf;
pub use secret::Secret;
pub use signature::SignatureScheme;
pub use sk::{IkeCipher, Integrity, SkKey};

/// A source of random octets, passed in by the caller.
pub type Random<'a> = &'a mut dyn FnMut(&mut [u8]);
