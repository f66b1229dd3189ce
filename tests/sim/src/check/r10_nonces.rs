//! R10: no nonce is used twice under one key: ESP and IKE, over takeovers and splits. There is no exception.

use super::r03_message_ids::header;
use crate::plane::Esp;
use crate::rng::digest;
use model::MemberId;
use std::collections::HashMap;

#[derive(Default)]
pub(super) struct Nonces {
    esp: HashMap<(u64, u64), MemberId>,
    ike: HashMap<(u64, u64, bool, u64), (u64, MemberId)>,
}

/// Encrypted and Authenticated payload.
pub(super) const SK: u8 = 46;

impl Nonces {
    pub(super) fn esp(&mut self, me: MemberId, esp: &Esp) -> Result<(), String> {
        match self.esp.insert((esp.key, esp.iv), me) {
            Some(who) => Err(format!(
                "SPI {:08x}: IV {:016x} used by member {me}, and before by member {who}",
                esp.spi, esp.iv
            )),
            None => Ok(()),
        }
    }

    pub(super) fn ike(&mut self, me: MemberId, bytes: &[u8]) -> Result<(), String> {
        let (Some((spi_i, spi_r, _, initiator, _, id)), Some(&SK)) = (header(bytes), bytes.get(16)) else {
            return Ok(());
        };
        let Some(iv) = bytes.get(32..40) else {
            return Ok(());
        };
        let iv = u64::from_be_bytes(iv.try_into().unwrap_or_default());
        let body = digest(bytes);
        let (other, who) = *self
            .ike
            .entry((spi_i, spi_r, initiator, iv))
            .or_insert((body, me));
        if other == body {
            return Ok(());
        }
        Err(format!(
            "IKE SA {spi_i:016x}/{spi_r:016x}: IV {iv:016x} of message {id} used by member {me}, and by member {who} for another message"
        ))
    }
}
