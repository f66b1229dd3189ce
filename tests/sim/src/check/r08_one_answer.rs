//! R8: one request gets one response, the same octets, whoever answers.

use super::Truth;
use super::r03_message_ids::{IKE_SA_INIT, header};
use super::r10_nonces::SK;
use crate::rng::digest;
use model::{GroupId, Instant, MemberId};
use std::collections::HashMap;

/// Digest, who sent it, in which life, and when.
type Answer = (u64, MemberId, u64, Instant);

#[derive(Default)]
pub(super) struct Answers {
    /// By SPIs (of IKE_SA_INIT the initiator's alone), role and Message ID.
    sent: HashMap<(u64, u64, bool, u32), Answer>,
}

impl Answers {
    pub(super) fn sent(
        &mut self,
        now: Instant,
        (me, life): (MemberId, u64),
        bytes: &[u8],
        group: Option<GroupId>,
        truth: &Truth,
    ) -> Result<(), String> {
        let Some((spi_i, spi_r, exchange, initiator, response, id)) = header(bytes) else {
            return Ok(());
        };
        // Cookies and refusals of a first message have no SPI of ours, and what is said of an unknown SPI is not protected: both are
        // stateless, and anybody may say them.
        let first = exchange == IKE_SA_INIT;
        if !response || spi_r == 0 || (!first && bytes.get(16) != Some(&SK)) {
            return Ok(());
        }
        let key = (spi_i, if first { 0 } else { spi_r }, initiator, id);
        let body = digest(bytes);
        let (other, who, _, at) = *self.sent.entry(key).or_insert((body, me, life, now));
        let excused = group.is_some_and(|group| truth.was_split(group) || truth.lost_since(group, at));
        if other == body || excused {
            return Ok(());
        }
        Err(format!(
            "member {me} sent another response {id} of IKE SA {spi_i:016x}/{spi_r:016x} than member {who} at {:.3} ms",
            at.0 as f64 / 1e6
        ))
    }
}
