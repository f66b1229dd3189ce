//! Octets for serde as one piece instead of one by one. In postcard the outcome is the same, octet for octet.

use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::ser::Serializer;
use std::fmt;

/// For `#[serde(with = "model::octets")]`.
///
/// # Errors
/// The serializer's.
pub fn serialize<S: Serializer>(octets: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(octets)
}

/// For `#[serde(with = "model::octets")]`.
///
/// # Errors
/// The deserializer's.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    deserializer.deserialize_byte_buf(Octets)
}

/// The same for `Option<Vec<u8>>`: `#[serde(with = "model::octets::optional")]`.
pub mod optional {
    use super::Octets;
    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::{Serialize, Serializer};
    use std::fmt;

    struct Piece<'a>(&'a [u8]);

    impl Serialize for Piece<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(self.0)
        }
    }

    /// As [`super::serialize`].
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(octets: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        match octets {
            Some(octets) => serializer.serialize_some(&Piece(octets)),
            None => serializer.serialize_none(),
        }
    }

    /// As [`super::deserialize`].
    ///
    /// # Errors
    /// The deserializer's.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        deserializer.deserialize_option(Optional)
    }

    struct Optional;

    impl<'de> Visitor<'de> for Optional {
        type Value = Option<Vec<u8>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("octets or nothing")
        }

        fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
            deserializer.deserialize_byte_buf(Octets).map(Some)
        }
    }
}

struct Octets;

impl<'de> Visitor<'de> for Octets {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("octets")
    }

    fn visit_bytes<E: Error>(self, octets: &[u8]) -> Result<Vec<u8>, E> {
        Ok(octets.to_vec())
    }

    fn visit_byte_buf<E: Error>(self, octets: Vec<u8>) -> Result<Vec<u8>, E> {
        Ok(octets)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u8>, A::Error> {
        // Grows with what arrives: an announced length reserves nothing.
        let mut octets = Vec::new();
        while let Some(octet) = seq.next_element()? {
            octets.push(octet);
        }
        Ok(octets)
    }
}
