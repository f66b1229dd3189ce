//! Digital signatures in the AUTH payload (RFC 7427, RFC 8420, RFC 4754).

use aws_lc_rs::digest;

/// How a signature is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignatureScheme {
    /// RSASSA-PSS with SHA-256 and a salt of 32 octets.
    RsaPssSha256,
    /// RSASSA-PSS with SHA-384 and a salt of 48 octets.
    RsaPssSha384,
    /// RSASSA-PSS with SHA-512 and a salt of 64 octets.
    RsaPssSha512,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RsaPkcs1Sha256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    RsaPkcs1Sha384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    RsaPkcs1Sha512,
    /// ECDSA with SHA-256; the key says on which curve.
    EcdsaSha256,
    /// ECDSA with SHA-384.
    EcdsaSha384,
    /// ECDSA with SHA-512.
    EcdsaSha512,
    /// Ed25519, of the octets themselves (RFC 8420).
    Ed25519,
}

/// Hash algorithms of RFC 7427 that we sign and verify with, for SIGNATURE_HASH_ALGORITHMS: SHA2-256, SHA2-384, SHA2-512 and
/// "Identity" (RFC 8420). SHA-1 is left out, as RFC 8247 3.2.1 wants.
pub const SIGNATURE_HASHES: [u16; 4] = [2, 3, 4, 5];

/// DER of the AlgorithmIdentifiers, as RFC 7427 A writes them.
const IDENTIFIERS: [(SignatureScheme, &[u8]); 10] = {
    use SignatureScheme::*;
    // SEQUENCE { id-RSASSA-PSS, [0] hash, [1] mgf1 with the same hash, [2] length of the salt }
    [
        (
            RsaPssSha256,
            b"\x30\x41\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x34\xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\xa2\x03\x02\x01\x20",
        ),
        (
            RsaPssSha384,
            b"\x30\x41\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x34\xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\xa2\x03\x02\x01\x30",
        ),
        (
            RsaPssSha512,
            b"\x30\x41\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x34\xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\xa2\x03\x02\x01\x40",
        ),
        (RsaPkcs1Sha256, b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00"),
        (RsaPkcs1Sha384, b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c\x05\x00"),
        (RsaPkcs1Sha512, b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d\x05\x00"),
        (EcdsaSha256, b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02"),
        (EcdsaSha384, b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03"),
        (EcdsaSha512, b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x04"),
        (Ed25519, b"\x30\x05\x06\x03\x2b\x65\x70"),
    ]
};

/// PSS parameters of which the hashes' own parameters are absent, which RFC 4055 2.1 wants accepted as well.
const PSS_WITHOUT_NULL: [(SignatureScheme, &[u8]); 3] = {
    use SignatureScheme::*;
    [
        (
            RsaPssSha256,
            b"\x30\x3d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x30\xa0\x0d\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\xa1\x1a\x30\x18\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\xa2\x03\x02\x01\x20",
        ),
        (
            RsaPssSha384,
            b"\x30\x3d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x30\xa0\x0d\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\xa1\x1a\x30\x18\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\xa2\x03\x02\x01\x30",
        ),
        (
            RsaPssSha512,
            b"\x30\x3d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x30\xa0\x0d\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\xa1\x1a\x30\x18\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\xa2\x03\x02\x01\x40",
        ),
    ]
};

impl SignatureScheme {
    /// The hash algorithm that the peer has to support (RFC 7427 4).
    pub const fn hash(self) -> u16 {
        match self {
            Self::RsaPssSha256 | Self::RsaPkcs1Sha256 | Self::EcdsaSha256 => 2,
            Self::RsaPssSha384 | Self::RsaPkcs1Sha384 | Self::EcdsaSha384 => 3,
            Self::RsaPssSha512 | Self::RsaPkcs1Sha512 | Self::EcdsaSha512 => 4,
            Self::Ed25519 => 5,
        }
    }

    /// For logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RsaPssSha256 => "RSA-PSS with SHA-256",
            Self::RsaPssSha384 => "RSA-PSS with SHA-384",
            Self::RsaPssSha512 => "RSA-PSS with SHA-512",
            Self::RsaPkcs1Sha256 => "RSA (PKCS #1) with SHA-256",
            Self::RsaPkcs1Sha384 => "RSA (PKCS #1) with SHA-384",
            Self::RsaPkcs1Sha512 => "RSA (PKCS #1) with SHA-512",
            Self::EcdsaSha256 => "ECDSA with SHA-256",
            Self::EcdsaSha384 => "ECDSA with SHA-384",
            Self::EcdsaSha512 => "ECDSA with SHA-512",
            Self::Ed25519 => "Ed25519",
        }
    }

    fn identifier(self) -> &'static [u8] {
        let found = IDENTIFIERS.iter().find(|(scheme, _)| *scheme == self);
        found.map_or(&[], |(_, der)| der)
    }
}

/// Data of an AUTH payload of method 14: length of the AlgorithmIdentifier, that, the signature (RFC 7427 3).
pub fn digital_signature(scheme: SignatureScheme, signature: &[u8]) -> Vec<u8> {
    let identifier = scheme.identifier();
    // The longest has 67 octets.
    let mut data = vec![identifier.len() as u8];
    data.extend_from_slice(identifier);
    data.extend_from_slice(signature);
    data
}

/// Scheme and signature in such data. `None`: it is cut off, or of an algorithm that is not supported.
pub fn read_digital_signature(data: &[u8]) -> Option<(SignatureScheme, &[u8])> {
    let (&len, rest) = data.split_first()?;
    let (identifier, signature) = rest.split_at_checked(usize::from(len))?;
    IDENTIFIERS
        .iter()
        .chain(&PSS_WITHOUT_NULL)
        .find(|(_, der)| *der == identifier)
        .map(|(scheme, _)| (*scheme, signature))
}

/// An ECDSA signature as methods 9 to 11 carry it (RFC 4754 7: r and s, one behind the other) in the form of RFC 7427: a SEQUENCE of two
/// INTEGERs.
pub fn ecdsa_der(fixed: &[u8]) -> Vec<u8> {
    let (r, s) = fixed.split_at(fixed.len() / 2);
    let body = [integer(r), integer(s)].concat();
    let mut der = vec![0x30];
    // Two integers of P-521 have 138 octets.
    if body.len() >= 128 {
        der.push(0x81);
    }
    der.push(body.len() as u8);
    der.extend(body);
    der
}

fn integer(octets: &[u8]) -> Vec<u8> {
    let significant = octets
        .iter()
        .position(|octet| *octet != 0)
        .map_or(&octets[octets.len().saturating_sub(1)..], |at| &octets[at..]);
    let positive = significant.first().is_some_and(|octet| octet & 0x80 != 0);
    let mut der = vec![0x02, (significant.len() + usize::from(positive)) as u8];
    if positive {
        der.push(0);
    }
    der.extend_from_slice(significant);
    der
}

/// The reverse of [`ecdsa_der`], with integers of `len` octets. `None`: it is no such sequence.
pub fn ecdsa_fixed(der: &[u8], len: usize) -> Option<Vec<u8>> {
    let body = match der {
        [0x30, 0x81, n, body @ ..] | [0x30, n @ ..=0x7f, body @ ..] if usize::from(*n) == body.len() => body,
        _ => return None,
    };
    let mut out = Vec::with_capacity(2 * len);
    let mut rest = body;
    for _ in 0..2 {
        let (&[tag, n], tail) = rest.split_first_chunk::<2>()?;
        let (integer, tail) = tail.split_at_checked(usize::from(n))?;
        let magnitude = integer
            .iter()
            .position(|octet| *octet != 0)
            .map_or(&[][..], |at| &integer[at..]);
        if tag != 0x02 || magnitude.len() > len {
            return None;
        }
        out.resize(out.len() + len - magnitude.len(), 0);
        out.extend_from_slice(magnitude);
        rest = tail;
    }
    rest.is_empty().then_some(out)
}

/// SHA-1, which CERTREQ payloads name authorities by (RFC 7296 3.7); no security rests on it.
pub fn authority_digest(spki: &[u8]) -> [u8; 20] {
    let mut out = [0; 20];
    out.copy_from_slice(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, spki).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_those_of_rfc_7427_a_and_come_back() {
        for (scheme, der) in IDENTIFIERS {
            // A SEQUENCE that is as long as it says.
            assert_eq!(usize::from(der[1]) + 2, der.len(), "{scheme:?}");
            let data = digital_signature(scheme, b"signature");
            assert_eq!(read_digital_signature(&data), Some((scheme, &b"signature"[..])));
            for cut in 0..=der.len() {
                assert_eq!(
                    read_digital_signature(&data[..cut]),
                    None,
                    "{scheme:?} cut at {cut}"
                );
            }
        }
        for (scheme, der) in PSS_WITHOUT_NULL {
            assert_eq!(usize::from(der[1]) + 2, der.len());
            let data = [&[der.len() as u8], der, b"x"].concat();
            assert_eq!(read_digital_signature(&data), Some((scheme, &b"x"[..])));
        }
        // SHA-1 is not taken (RFC 8247 3.2.1).
        let sha1 = b"\x0f\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05\x05\x00x";
        assert_eq!(read_digital_signature(sha1), None);
    }

    #[test]
    fn ecdsa_signatures_change_their_form_and_back() {
        for fixed in [
            [[0x80; 32], [0x01; 32]].concat(),
            [[0; 32], [0xff; 32]].concat(),
            [&[0; 31][..], &[0x7f], &[0; 30], &[1, 0x80]].concat(),
            vec![0xab; 96],
            vec![0x81; 132],
        ] {
            let der = ecdsa_der(&fixed);
            assert_eq!(ecdsa_fixed(&der, fixed.len() / 2).as_ref(), Some(&fixed));
            assert_eq!(ecdsa_fixed(&der[..der.len() - 1], fixed.len() / 2), None);
        }
        assert_eq!(ecdsa_der(&[0x80, 0x01]), [0x30, 7, 2, 2, 0, 0x80, 2, 1, 1]);
    }
}
