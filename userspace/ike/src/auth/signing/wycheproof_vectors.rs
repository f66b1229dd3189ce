//! Project Wycheproof's signatures, as AUTH payloads of a peer whose certificate has the vector's key.

use super::super::certificate::CertificateError;
use super::*;
use der::{Decode, Encode};
use wycheproof::{TestResult, ecdsa, eddsa, rsa_pkcs1_verify, rsa_pss_verify};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

/// Signatures that were verified, and those that were refused.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    verified: usize,
    refused: usize,
}

/// A peer's certificate with this key (SubjectPublicKeyInfo, DER). Nobody has signed it: that is `trust`'s to see.
fn certificate(spki: &[u8]) -> Vec<u8> {
    let own = rcgen::generate_simple_self_signed(["peer.example".to_owned()]).expect("a certificate");
    let mut certificate = x509_cert::Certificate::from_der(own.cert.der()).expect("X.509");
    certificate.tbs_certificate.subject_public_key_info =
        SubjectPublicKeyInfoOwned::from_der(spki).expect("a key");
    certificate.to_der().expect("DER")
}

fn facts(spki: &[u8]) -> Result<Facts, CertificateError> {
    Facts::of(&certificate(spki))
}

/// A key, and how its holder signs.
struct Peer {
    certificate: Vec<u8>,
    facts: Facts,
    method: AuthMethod,
    scheme: SignatureScheme,
}

impl Peer {
    fn new(spki: &[u8], method: AuthMethod, scheme: SignatureScheme) -> Self {
        let certificate = certificate(spki);
        Self {
            facts: Facts::of(&certificate).expect("a key that is taken"),
            certificate,
            method,
            scheme,
        }
    }

    /// Whether the signature is taken for this peer's; only valid ones are.
    fn check(&self, octets: &[u8], signature: &[u8], valid: bool, what: (usize, &str), count: &mut Count) {
        let data = match self.method {
            AuthMethod::DIGITAL_SIGNATURE => digital_signature(self.scheme, signature),
            _ => signature.to_vec(),
        };
        let auth = Authentication {
            method: self.method,
            data,
        };
        let outcome = verify(&self.certificate, &self.facts, &auth, octets);
        assert_eq!(
            outcome.is_ok(),
            valid,
            "{} with {}, {what:?}: {outcome:?}",
            self.scheme.name(),
            self.facts.key.name()
        );
        match outcome {
            Ok(scheme) => {
                assert_eq!(scheme, self.scheme, "{what:?}");
                count.verified += 1;
            }
            Err(_) => count.refused += 1,
        }
    }
}

/// The one that is "acceptable" in each set has no NULL in its DigestInfo, which RFC 8017 A.2.4 wants there: refused.
#[test]
fn rsa_with_pkcs_1_padding() {
    use SignatureScheme::{RsaPkcs1Sha256, RsaPkcs1Sha384, RsaPkcs1Sha512};
    use rsa_pkcs1_verify::{TestFlag, TestName, TestSet};
    for (name, scheme, expected) in [
        (TestName::Rsa2048Sha256, RsaPkcs1Sha256, (9, 250)),
        (TestName::Rsa2048Sha384, RsaPkcs1Sha384, (7, 251)),
        (TestName::Rsa2048Sha512, RsaPkcs1Sha512, (8, 251)),
        (TestName::Rsa3072Sha256, RsaPkcs1Sha256, (8, 251)),
        (TestName::Rsa3072Sha384, RsaPkcs1Sha384, (7, 252)),
        (TestName::Rsa3072Sha512, RsaPkcs1Sha512, (8, 252)),
        (TestName::Rsa4096Sha256, RsaPkcs1Sha256, (7, 251)),
        (TestName::Rsa4096Sha384, RsaPkcs1Sha384, (7, 252)),
        (TestName::Rsa4096Sha512, RsaPkcs1Sha512, (7, 252)),
        (TestName::Rsa8192Sha256, RsaPkcs1Sha256, (7, 251)),
        (TestName::Rsa8192Sha384, RsaPkcs1Sha384, (7, 252)),
        (TestName::Rsa8192Sha512, RsaPkcs1Sha512, (7, 252)),
    ] {
        let mut count = Count::default();
        for group in TestSet::load(name).expect("vectors").test_groups {
            let peer = Peer::new(&group.der, AuthMethod::DIGITAL_SIGNATURE, scheme);
            for test in &group.tests {
                let valid = match test.result {
                    TestResult::Valid => true,
                    TestResult::Invalid => false,
                    TestResult::Acceptable => {
                        assert_eq!(test.flags, [TestFlag::MissingNull], "{}", test.tc_id);
                        false
                    }
                };
                peer.check(
                    &test.msg,
                    &test.sig,
                    valid,
                    (test.tc_id, &test.comment),
                    &mut count,
                );
            }
        }
        assert_eq!((count.verified, count.refused), expected, "{name:?}");
    }
}

/// What RFC 7427 A.4 has identifiers for here: MGF1 with the same hash, and a salt as long as that.
#[test]
fn rsa_with_pss_padding() {
    use SignatureScheme::{RsaPssSha256, RsaPssSha384, RsaPssSha512};
    use rsa_pss_verify::{TestName, TestSet};
    for (name, scheme, expected) in [
        (TestName::RsaPss2048Sha256Mgf1SaltLen32, RsaPssSha256, (63, 45)),
        (TestName::RsaPss3072Sha256Mgf1SaltLen32, RsaPssSha256, (63, 45)),
        (TestName::RsaPss4096Sha256Mgf1SaltLen32, RsaPssSha256, (63, 45)),
        (TestName::RsaPss2048Sha384Mgf1SaltLen48, RsaPssSha384, (95, 46)),
        (TestName::RsaPss4096Sha384Mgf1SaltLen48, RsaPssSha384, (95, 46)),
        (TestName::RsaPss4096Sha512Mgf1SaltLen64, RsaPssSha512, (132, 47)),
    ] {
        let mut count = Count::default();
        for group in TestSet::load(name).expect("vectors").test_groups {
            let peer = Peer::new(&group.der, AuthMethod::DIGITAL_SIGNATURE, scheme);
            for test in &group.tests {
                assert_ne!(test.result, TestResult::Acceptable);
                let valid = test.result == TestResult::Valid;
                peer.check(
                    &test.msg,
                    &test.sig,
                    valid,
                    (test.tc_id, &test.comment),
                    &mut count,
                );
            }
        }
        assert_eq!((count.verified, count.refused), expected, "{name:?}");
    }
}

/// Right signatures, but with another salt, or SHA-1 in MGF1 or for the message, are not what the identifier says.
#[test]
fn rsa_with_pss_padding_of_other_parameters_than_it_says() {
    use SignatureScheme::{RsaPssSha256, RsaPssSha512};
    use rsa_pss_verify::{TestName, TestSet};
    for (name, scheme, expected) in [
        (TestName::RsaPss2048Sha256Mgf1SaltLen0, RsaPssSha256, 61),
        (TestName::RsaPss4096Sha512Mgf1SaltLen32, RsaPssSha512, 132),
        (TestName::RsaPss2048Sha256Mgf1Sha1_20, RsaPssSha256, 63),
        (TestName::RsaPss2048Sha1Mgf1SaltLen20, RsaPssSha256, 42),
    ] {
        let mut count = Count::default();
        for group in TestSet::load(name).expect("vectors").test_groups {
            let peer = Peer::new(&group.der, AuthMethod::DIGITAL_SIGNATURE, scheme);
            for test in group.tests.iter().filter(|test| test.result == TestResult::Valid) {
                peer.check(
                    &test.msg,
                    &test.sig,
                    false,
                    (test.tc_id, &test.comment),
                    &mut count,
                );
            }
        }
        assert_eq!((count.verified, count.refused), (0, expected), "{name:?}");
    }
}

/// Signatures with all kinds of hashes and salts, of which three are as RFC 7427 wants them.
#[test]
fn rsa_with_pss_padding_of_all_parameters() {
    use rsa_pss_verify::{TestName, TestSet};
    use wycheproof::HashFunction::{Sha2_256, Sha2_384, Sha2_512};
    let mut count = Count::default();
    for group in TestSet::load(TestName::RsaPssmisc).expect("vectors").test_groups {
        let (scheme, salt) = match group.hash {
            Sha2_384 => (SignatureScheme::RsaPssSha384, 48),
            Sha2_512 => (SignatureScheme::RsaPssSha512, 64),
            _ => (SignatureScheme::RsaPssSha256, 32),
        };
        let is_ours = matches!(group.hash, Sha2_256 | Sha2_384 | Sha2_512)
            && group.mgf_hash.as_ref() == Some(&group.hash)
            && group.salt_size == salt;
        let peer = Peer::new(&group.der, AuthMethod::DIGITAL_SIGNATURE, scheme);
        for test in &group.tests {
            let valid = is_ours && test.result == TestResult::Valid;
            peer.check(
                &test.msg,
                &test.sig,
                valid,
                (test.tc_id, &test.comment),
                &mut count,
            );
        }
    }
    assert_eq!((count.verified, count.refused), (3, 147));
}

/// Signatures of RFC 7427 are DER: a SEQUENCE of two INTEGERs.
#[test]
fn ecdsa_in_der() {
    use SignatureScheme::{EcdsaSha256, EcdsaSha384, EcdsaSha512};
    use ecdsa::{TestName, TestSet};
    for (name, scheme, expected) in [
        (TestName::EcdsaSecp256r1Sha256, EcdsaSha256, (174, 310)),
        (TestName::EcdsaSecp256r1Sha512, EcdsaSha512, (243, 311)),
        (TestName::EcdsaSecp384r1Sha256, EcdsaSha256, (162, 310)),
        (TestName::EcdsaSecp384r1Sha384, EcdsaSha384, (194, 310)),
        (TestName::EcdsaSecp384r1Sha512, EcdsaSha512, (231, 311)),
        (TestName::EcdsaSecp521r1Sha512, EcdsaSha512, (232, 310)),
    ] {
        let count = ecdsa_set(
            TestSet::load(name).expect("vectors"),
            AuthMethod::DIGITAL_SIGNATURE,
            scheme,
        );
        assert_eq!((count.verified, count.refused), expected, "{name:?}");
    }
}

/// Methods 9 to 11 have r and s one behind the other (RFC 4754 7), which Wycheproof calls P1363.
#[test]
fn ecdsa_by_the_methods_of_rfc_4754() {
    use SignatureScheme::{EcdsaSha256, EcdsaSha384, EcdsaSha512};
    use ecdsa::{TestName, TestSet};
    for (name, method, scheme, expected) in [
        (
            TestName::EcdsaSecp256r1Sha256P1363,
            AuthMethod::ECDSA_256,
            EcdsaSha256,
            (173, 89),
        ),
        (
            TestName::EcdsaSecp384r1Sha384P1363,
            AuthMethod::ECDSA_384,
            EcdsaSha384,
            (193, 87),
        ),
        (
            TestName::EcdsaSecp521r1Sha512P1363,
            AuthMethod::ECDSA_521,
            EcdsaSha512,
            (231, 87),
        ),
    ] {
        let count = ecdsa_set(TestSet::load(name).expect("vectors"), method, scheme);
        assert_eq!((count.verified, count.refused), expected, "{name:?}");
    }
}

fn ecdsa_set(set: ecdsa::TestSet, method: AuthMethod, scheme: SignatureScheme) -> Count {
    let mut count = Count::default();
    for group in set.test_groups {
        let peer = Peer::new(&group.der, method, scheme);
        for test in &group.tests {
            assert_ne!(test.result, TestResult::Acceptable);
            let valid = test.result == TestResult::Valid;
            peer.check(
                &test.msg,
                &test.sig,
                valid,
                (test.tc_id, &test.comment),
                &mut count,
            );
        }
    }
    count
}

#[test]
fn ed25519() {
    use eddsa::{TestName, TestSet};
    let mut count = Count::default();
    for group in TestSet::load(TestName::Ed25519).expect("vectors").test_groups {
        let peer = Peer::new(
            &group.der,
            AuthMethod::DIGITAL_SIGNATURE,
            SignatureScheme::Ed25519,
        );
        for test in &group.tests {
            let valid = test.result == TestResult::Valid;
            peer.check(
                &test.msg,
                &test.sig,
                valid,
                (test.tc_id, &test.comment),
                &mut count,
            );
        }
    }
    assert_eq!((count.verified, count.refused), (88, 63));
}

#[test]
fn keys_of_other_kinds_are_refused_by_name() {
    let ecdsa = |name| {
        ecdsa::TestSet::load(name).expect("vectors").test_groups[0]
            .der
            .to_vec()
    };
    let ed448 = eddsa::TestSet::load(eddsa::TestName::Ed448)
        .expect("vectors")
        .test_groups[0]
        .der
        .to_vec();
    // A key for PSS only, with the parameters in it (RFC 4055 1.2).
    let pss = rsa_pss_verify::TestName::RsaPss2048Sha256Mgf1SaltLen32WithParams;
    let pss = rsa_pss_verify::TestSet::load(pss).expect("vectors").test_groups[0]
        .der
        .to_vec();
    for (spki, named) in [
        (
            ecdsa(ecdsa::TestName::EcdsaSecp256k1Sha256),
            "elliptic curve 1.3.132.0.10",
        ),
        (
            ecdsa(ecdsa::TestName::EcdsaSecp224r1Sha256),
            "elliptic curve 1.3.132.0.33",
        ),
        (
            ecdsa(ecdsa::TestName::EcdsaBrainpool256r1Sha256),
            "elliptic curve 1.3.36.3.3.2.8.1.1.7",
        ),
        (ed448, "1.3.101.113"),
        (pss, "1.2.840.113549.1.1.10"),
    ] {
        assert_eq!(facts(&spki), Err(CertificateError::Key(named.to_owned())));
    }
}

/// An RSA key whose modulus has that many bits, all of them set.
fn rsa_key(bits: usize) -> Vec<u8> {
    let mut modulus = vec![0xff; bits.div_ceil(8)];
    modulus[0] >>= 8 * modulus.len() - bits;
    let public = pkcs1(&modulus, &[1, 0, 1]);
    let spki = SubjectPublicKeyInfoOwned {
        algorithm: x509_cert::spki::AlgorithmIdentifierOwned {
            oid: "1.2.840.113549.1.1.1".parse().expect("rsaEncryption"),
            parameters: Some(der::asn1::Null.into()),
        },
        subject_public_key: der::asn1::BitString::from_bytes(&public).expect("octets"),
    };
    spki.to_der().expect("DER")
}

/// RSAPublicKey (RFC 8017 A.1.1).
fn pkcs1(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let integer = |octets| der::asn1::Uint::new(octets).expect("an integer");
    let parts = vec![integer(modulus), integer(exponent)];
    parts.to_der().expect("DER")
}

#[test]
fn rsa_keys_that_are_too_short_or_too_long_are_refused_by_their_length() {
    for bits in [512, 1024, 2040, 2047, 8193, 16384] {
        assert_eq!(facts(&rsa_key(bits)), Err(CertificateError::RsaBits(bits)));
    }
    for bits in [2048, 3072, 8192] {
        assert_eq!(facts(&rsa_key(bits)).map(|facts| facts.key), Ok(KeyKind::Rsa));
    }
    assert_eq!(
        CertificateError::RsaBits(1024).to_string(),
        "its RSA key has 1024 bits, and 2048 to 8192 are taken"
    );
}
