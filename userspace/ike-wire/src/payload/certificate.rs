//! CERT and CERTREQ payloads (RFC 7296 3.6, 3.7).

use crate::WireError;
use crate::reader::Reader;
use crate::registry::CertEncoding;

/// A certificate, a revocation list, or where to get them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// What `data` is.
    pub encoding: CertEncoding,
    /// In this encoding.
    pub data: Vec<u8>,
}

impl Certificate {
    /// An X.509 certificate (DER) that signatures are verified with, or one of its issuers.
    pub fn x509(der: Vec<u8>) -> Self {
        Self {
            encoding: CertEncoding::X509_SIGNATURE,
            data: der,
        }
    }

    /// An OCSP response (DER) about a certificate of the same sender (RFC 4806 3.2).
    pub fn ocsp(der: Vec<u8>) -> Self {
        Self {
            encoding: CertEncoding::OCSP_CONTENT,
            data: der,
        }
    }

    pub(super) fn parse(body: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body, "CERT payload");
        Ok(Self {
            encoding: CertEncoding(reader.u8()?),
            data: reader.rest().to_vec(),
        })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.push(self.encoding.0);
        out.extend_from_slice(&self.data);
    }
}

/// Whose certificates the sender would like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRequest {
    /// Kind of certificate that is wanted.
    pub encoding: CertEncoding,
    /// For X.509: SHA-1 digests of the trusted authorities' SubjectPublicKeyInfo, one behind the other.
    pub authorities: Vec<u8>,
}

impl CertificateRequest {
    /// Octets of one authority.
    pub const DIGEST_LEN: usize = 20;

    /// For X.509 certificates of these authorities, given by the digest of their public key.
    pub fn x509(authorities: &[[u8; Self::DIGEST_LEN]]) -> Self {
        Self {
            encoding: CertEncoding::X509_SIGNATURE,
            authorities: authorities.concat(),
        }
    }

    /// For OCSP responses of any responder that the issuers have authorised (RFC 4806 3.1).
    pub const fn ocsp() -> Self {
        Self {
            encoding: CertEncoding::OCSP_CONTENT,
            authorities: Vec::new(),
        }
    }

    /// Whether OCSP responses are asked for.
    pub fn is_ocsp(&self) -> bool {
        self.encoding == CertEncoding::OCSP_CONTENT
    }

    /// Digests of the authorities, where X.509 certificates are asked for.
    pub fn digests(&self) -> impl Iterator<Item = &[u8; Self::DIGEST_LEN]> {
        let octets: &[u8] = match self.encoding {
            CertEncoding::X509_SIGNATURE => &self.authorities,
            _ => &[],
        };
        octets.as_chunks::<{ Self::DIGEST_LEN }>().0.iter()
    }

    pub(super) fn parse(body: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body, "CERTREQ payload");
        Ok(Self {
            encoding: CertEncoding(reader.u8()?),
            authorities: reader.rest().to_vec(),
        })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.push(self.encoding.0);
        out.extend_from_slice(&self.authorities);
    }
}
