//! Key derivation of IKE SAs and Child SAs (RFC 7296 2.14, 2.17, 2.18, RFC 5723 5.1, RFC 9370 2.2, RFC 8784 3).

use crate::{CryptoError, IkeCipher, Prf, SkKey};
use model::{EspSuite, IkeSpi, SecretBytes};
use serde::{Deserialize, Serialize};

/// The seven keys of an IKE SA. Serialisable for the journal; no `Debug`.
#[derive(Clone, Serialize, Deserialize)]
pub struct IkeKeys {
    /// The PRF they were made with.
    pub prf: Prf,
    /// The cipher they are for.
    pub cipher: IkeCipher,
    /// Derives the keys of Child SAs and of the next IKE SA.
    pub sk_d: SecretBytes,
    /// Integrity, original initiator's messages; empty for AEAD.
    pub sk_ai: SecretBytes,
    /// Integrity, original responder's messages; empty for AEAD.
    pub sk_ar: SecretBytes,
    /// Encryption (with salt for AEAD), original initiator's messages.
    pub sk_ei: SecretBytes,
    /// Encryption (with salt for AEAD), original responder's messages.
    pub sk_er: SecretBytes,
    /// For the original initiator's AUTH payload.
    pub sk_pi: SecretBytes,
    /// For the original responder's AUTH payload.
    pub sk_pr: SecretBytes,
}

/// Nonces and SPIs of the exchange that makes an IKE SA; initiator and responder of *that* exchange.
#[derive(Clone, Copy)]
pub struct KeyInputs<'a> {
    /// Data of the initiator's nonce.
    pub nonce_i: &'a [u8],
    /// Data of the responder's nonce.
    pub nonce_r: &'a [u8],
    /// The initiator's SPI of the new IKE SA.
    pub spi_i: IkeSpi,
    /// The responder's SPI of the new IKE SA.
    pub spi_r: IkeSpi,
}

impl IkeKeys {
    /// Keys from IKE_SA_INIT: SKEYSEED = prf(Ni | Nr, g^ir).
    ///
    /// # Errors
    /// Never with the algorithms offered here; [`CryptoError::PrfPlusLength`] is passed on.
    pub fn derive(
        prf: Prf,
        cipher: IkeCipher,
        inputs: KeyInputs<'_>,
        g_ir: &SecretBytes,
    ) -> Result<Self, CryptoError> {
        let key = SecretBytes::new([inputs.nonce_i, inputs.nonce_r].concat());
        let skeyseed = prf.compute(key.expose(), &[g_ir.expose()]);
        Self::expand(prf, cipher, inputs, &skeyseed)
    }

    /// Keys of the successor of this IKE SA: SKEYSEED = prf(SK_d (old), g^ir (new) | Ni | Nr | SK(1) | ... SK(n)), with the *old*
    /// SA's PRF; expanded with the new one (RFC 7296 2.18). `additional`: secrets of IKE_FOLLOWUP_KE exchanges (RFC 9370 2.2.4).
    ///
    /// # Errors
    /// As [`IkeKeys::derive`].
    pub fn rekey(
        &self,
        prf: Prf,
        cipher: IkeCipher,
        inputs: KeyInputs<'_>,
        g_ir: &SecretBytes,
        additional: &[SecretBytes],
    ) -> Result<Self, CryptoError> {
        let mut parts = vec![g_ir.expose(), inputs.nonce_i, inputs.nonce_r];
        parts.extend(additional.iter().map(SecretBytes::expose));
        let skeyseed = self.prf.compute(self.sk_d.expose(), &parts);
        Self::expand(prf, cipher, inputs, &skeyseed)
    }

    /// The same IKE SA's keys after one more key exchange in IKE_INTERMEDIATE: SKEYSEED(n) = prf(SK_d(n-1), SK(n) | Ni | Nr)
    /// (RFC 9370 2.2.2). Nonces and SPIs are those of IKE_SA_INIT.
    ///
    /// # Errors
    /// As [`IkeKeys::derive`].
    pub fn update(&self, inputs: KeyInputs<'_>, shared: &SecretBytes) -> Result<Self, CryptoError> {
        self.rekey(self.prf, self.cipher, inputs, shared, &[])
    }

    /// SK_d, SK_pi and SK_pr with a post-quantum pre-shared key mixed in: SK = prf+(PPK, SK') (RFC 8784 3).
    ///
    /// # Errors
    /// As [`IkeKeys::derive`].
    pub fn with_ppk(&self, ppk: &SecretBytes) -> Result<Self, CryptoError> {
        let mix = |key: &SecretBytes| self.prf.plus(ppk.expose(), &[key.expose()], key.len());
        Ok(Self {
            sk_d: mix(&self.sk_d)?,
            sk_pi: mix(&self.sk_pi)?,
            sk_pr: mix(&self.sk_pr)?,
            ..self.clone()
        })
    }

    /// Keys of an IKE SA that resumes another one: SKEYSEED = prf(SK_d (old), "Resumption" | Ni | Nr), with the PRF of the
    /// ticket (RFC 5723 5.1). Nonces and SPIs are those of IKE_SESSION_RESUME.
    ///
    /// # Errors
    /// As [`IkeKeys::derive`].
    pub fn resume(
        prf: Prf,
        cipher: IkeCipher,
        inputs: KeyInputs<'_>,
        sk_d: &SecretBytes,
    ) -> Result<Self, CryptoError> {
        let skeyseed = prf.compute(sk_d.expose(), &[b"Resumption", inputs.nonce_i, inputs.nonce_r]);
        Self::expand(prf, cipher, inputs, &skeyseed)
    }

    // {SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr} = prf+ (SKEYSEED, Ni | Nr | SPIi | SPIr)
    fn expand(
        prf: Prf,
        cipher: IkeCipher,
        inputs: KeyInputs<'_>,
        skeyseed: &SecretBytes,
    ) -> Result<Self, CryptoError> {
        let (p, a, e) = (
            prf.output_len(),
            cipher.integrity_key_len(),
            cipher.encryption_key_len(),
        );
        let (spi_i, spi_r) = (inputs.spi_i.0.to_be_bytes(), inputs.spi_r.0.to_be_bytes());
        let seed = [inputs.nonce_i, inputs.nonce_r, &spi_i, &spi_r];
        let material = prf.plus(skeyseed.expose(), &seed, 3 * p + 2 * a + 2 * e)?;
        let mut rest = material.expose();
        let mut take = |len: usize| {
            let (head, tail) = rest.split_at(len);
            rest = tail;
            SecretBytes::new(head.to_vec())
        };
        Ok(Self {
            prf,
            cipher,
            sk_d: take(p),
            sk_ai: take(a),
            sk_ar: take(a),
            sk_ei: take(e),
            sk_er: take(e),
            sk_pi: take(p),
            sk_pr: take(p),
        })
    }

    /// Ready keys for messages of the original initiator.
    ///
    /// # Errors
    /// [`CryptoError::Length`] if the record was corrupt.
    pub fn initiator_key(&self) -> Result<SkKey, CryptoError> {
        SkKey::new(self.cipher, self.sk_ei.expose(), self.sk_ai.expose())
    }

    /// Ready keys for messages of the original responder.
    ///
    /// # Errors
    /// [`CryptoError::Length`] if the record was corrupt.
    pub fn responder_key(&self) -> Result<SkKey, CryptoError> {
        SkKey::new(self.cipher, self.sk_er.expose(), self.sk_ar.expose())
    }
}

/// Keys of a Child SA pair, each [`EspSuite::material_len`] octets.
#[derive(Clone)]
pub struct ChildKeys {
    /// From the exchange's initiator to its responder.
    pub initiator: SecretBytes,
    /// From the exchange's responder to its initiator.
    pub responder: SecretBytes,
}

/// KEYMAT = prf+(SK_d, [g^ir |] Ni | Nr [| SK(1) | ... SK(n)]) (RFC 7296 2.17). Nonces of the exchange that makes the Child SA;
/// `g_ir` of its own KE payloads, if it had any; `additional` of the IKE_FOLLOWUP_KE exchanges behind it (RFC 9370 2.2.4).
///
/// # Errors
/// Never with the suites offered here; [`CryptoError::PrfPlusLength`] is passed on.
pub fn child_keymat(
    prf: Prf,
    sk_d: &SecretBytes,
    g_ir: Option<&SecretBytes>,
    nonce_i: &[u8],
    nonce_r: &[u8],
    additional: &[SecretBytes],
    suite: EspSuite,
) -> Result<ChildKeys, CryptoError> {
    let len = suite.material_len();
    let mut seed: Vec<&[u8]> = g_ir.map(SecretBytes::expose).into_iter().collect();
    seed.extend([nonce_i, nonce_r]);
    seed.extend(additional.iter().map(SecretBytes::expose));
    let material = prf.plus(sk_d.expose(), &seed, 2 * len)?;
    // All keys for SAs from the initiator to the responder are taken first; of each SA the encryption key, then the integrity key.
    let (initiator, responder) = material.expose().split_at(len);
    Ok(ChildKeys {
        initiator: SecretBytes::new(initiator.to_vec()),
        responder: SecretBytes::new(responder.to_vec()),
    })
}
