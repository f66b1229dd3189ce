//! IKE fragmentation (RFC 7383): messages that are too long for a path go in pieces, each protected by itself.
//!
//! Outbound, the pieces of a message stand one behind the other wherever the octets of a message are kept, so what is
//! journalled is exactly what is sent; [`datagrams`] cuts them apart again. Inbound, pieces are collected here. They are not
//! journalled: a peer whose message was not answered sends all of them again.

use ike_wire::{Fragment, HEADER_LEN, Header, PayloadType};

/// Fragments of one message that are accepted.
const FRAGMENTS_MAX: u16 = 128;
/// Octets of one message that are kept for a peer that has not proved who it is.
pub(crate) const HALF_OPEN_MAX: usize = 24 * 1024;
/// And for one that has: the longest message there can be.
pub(crate) const AUTHENTIC_MAX: usize = 64 * 1024;

/// The datagrams of a message, one or several.
pub(crate) fn datagrams(mut octets: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if octets.is_empty() {
            return None;
        }
        let field = octets
            .get(HEADER_LEN - 4..HEADER_LEN)
            .and_then(|field| field.try_into().ok());
        let length = field.map_or(octets.len(), |field| u32::from_be_bytes(field) as usize);
        let (first, rest) = octets.split_at(length.clamp(HEADER_LEN.min(octets.len()), octets.len()));
        octets = rest;
        Some(first)
    })
}

/// A message of which some fragments are here.
pub(crate) struct Reassembly {
    message_id: u32,
    response: bool,
    first: PayloadType,
    parts: Vec<Option<Vec<u8>>>,
    octets: usize,
    /// SHA-256 of the first fragment as it came.
    digest: [u8; 32],
}

/// A message that is complete.
pub(crate) struct Whole {
    pub first: PayloadType,
    pub inner: Vec<u8>,
    pub digest: [u8; 32],
}

//= rfc7383#2.6
// If the Total Fragments field in the received fragment is greater than the one stored with the earlier fragments, all of those
// MUST be discarded; if it is less, or the fragment is here already, it MUST be discarded.
/// Adds an authentic fragment of the message that is expected. `limit`: octets of one message. Gives the message once it is whole.
pub(crate) fn add(
    kept: &mut Option<Box<Reassembly>>,
    header: &Header,
    fragment: Fragment,
    first: PayloadType,
    inner: Vec<u8>,
    datagram: &[u8],
    limit: usize,
) -> Option<Whole> {
    let (id, response) = (header.message_id, header.flags.response);
    if fragment.total > FRAGMENTS_MAX {
        return None;
    }
    let same = |old: &Reassembly| old.message_id == id && old.response == response;
    let total = usize::from(fragment.total);
    match kept.as_deref().filter(|old| same(old)) {
        Some(old) if old.parts.len() > total => return None,
        Some(old) if old.parts.len() == total => {}
        _ => {
            *kept = Some(Box::new(Reassembly {
                message_id: id,
                response,
                first: PayloadType::NONE,
                parts: vec![None; total],
                octets: 0,
                digest: [0; 32],
            }));
        }
    }
    let message = kept.as_deref_mut()?;
    let part = message
        .parts
        .get_mut(usize::from(fragment.number).checked_sub(1)?)?;
    if part.is_some() {
        return None;
    }
    if message.octets + inner.len() > limit {
        *kept = None;
        return None;
    }
    message.octets += inner.len();
    *part = Some(inner);
    if fragment.number == 1 {
        message.first = first;
        message.digest = crypto::sha256(&[datagram]);
    }
    if message.parts.iter().any(Option::is_none) {
        return None;
    }
    let message = kept.take()?;
    Some(Whole {
        first: message.first,
        inner: message.parts.into_iter().flatten().flatten().collect(),
        digest: message.digest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ike_wire::{ExchangeType, Flags};
    use model::IkeSpi;

    fn header(message_id: u32) -> Header {
        Header {
            spi_i: IkeSpi(1),
            spi_r: IkeSpi(2),
            exchange: ExchangeType::IKE_AUTH,
            flags: Flags::default(),
            message_id,
        }
    }

    fn offer(
        kept: &mut Option<Box<Reassembly>>,
        id: u32,
        number: u16,
        total: u16,
        octet: u8,
    ) -> Option<Vec<u8>> {
        let first = if number == 1 {
            PayloadType::AUTH
        } else {
            PayloadType::NONE
        };
        let fragment = Fragment { number, total };
        let whole = add(kept, &header(id), fragment, first, vec![octet; 10], b"", 100)?;
        assert_eq!(whole.first, PayloadType::AUTH);
        Some(whole.inner)
    }

    #[test]
    fn fragments_make_a_message_in_any_order_and_repetitions_do_not_count() {
        let mut kept = None;
        assert!(offer(&mut kept, 1, 3, 3, 3).is_none());
        assert!(offer(&mut kept, 1, 1, 3, 1).is_none());
        assert!(offer(&mut kept, 1, 1, 3, 9).is_none(), "a repetition");
        let whole = offer(&mut kept, 1, 2, 3, 2).unwrap();
        assert_eq!(whole, [[1; 10], [2; 10], [3; 10]].concat());
        assert!(kept.is_none());
    }

    #[test]
    fn more_and_smaller_fragments_replace_fewer_and_larger_ones() {
        let mut kept = None;
        assert!(offer(&mut kept, 1, 1, 2, 1).is_none());
        assert!(offer(&mut kept, 1, 1, 3, 1).is_none(), "the peer cuts smaller");
        assert!(offer(&mut kept, 1, 2, 2, 9).is_none(), "late, of the first cut");
        assert!(offer(&mut kept, 1, 2, 3, 2).is_none());
        assert_eq!(offer(&mut kept, 1, 3, 3, 3).unwrap().len(), 30);
        assert!(offer(&mut kept, 1, 1, 2, 1).is_none());
        assert!(offer(&mut kept, 2, 2, 2, 2).is_none(), "another message begins");
        assert_eq!(offer(&mut kept, 2, 1, 2, 1).unwrap(), [[1; 10], [2; 10]].concat());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut kept = None;
        assert!(offer(&mut kept, 1, 1, FRAGMENTS_MAX + 1, 1).is_none());
        assert!(kept.is_none());
        for number in 1..=10 {
            assert!(offer(&mut kept, 1, number, 12, 1).is_none());
        }
        assert_eq!(kept.as_ref().unwrap().octets, 100);
        assert!(offer(&mut kept, 1, 11, 12, 1).is_none());
        assert!(kept.is_none(), "too long: all of it goes");
    }

    #[test]
    fn datagrams_are_cut_apart_by_their_length() {
        let datagram = |len: usize| {
            let mut octets = vec![7; len];
            octets[24..28].copy_from_slice(&(len as u32).to_be_bytes());
            octets
        };
        let all = [datagram(30), datagram(100), datagram(28)].concat();
        let lengths: Vec<usize> = datagrams(&all).map(<[u8]>::len).collect();
        assert_eq!(lengths, [30, 100, 28]);
        assert_eq!(datagrams(&[]).count(), 0);
        assert_eq!(datagrams(&[1; 5]).count(), 1);
        assert_eq!(datagrams(&[0xff; 40]).count(), 1);
    }
}
