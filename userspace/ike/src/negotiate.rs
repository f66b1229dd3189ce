//! Between the wire's proposals and selectors and the engine's.

use crate::proposal::{
    DH_NONE, ENCR_AES_CBC, ENCR_AES_GCM_16, ENCR_CHACHA20_POLY1305, ESN_YES, INTEG_SHA256, Proposal,
    Transform, TransformKind,
};
use crypto::{DhGroup, IkeCipher, Prf};
use ike_wire::{ProtocolId, SecurityAssociation, TransformType};
use model::{EspSuite, TrafficSelector};

/// Selectors that one Child SA may have; more of a peer's are ignored, which narrows.
const SELECTORS_MAX: usize = 32;

fn wire_kind(kind: TransformKind) -> TransformType {
    match kind {
        TransformKind::Encr => TransformType::ENCR,
        TransformKind::Prf => TransformType::PRF,
        TransformKind::Integ => TransformType::INTEG,
        TransformKind::Dh => TransformType::KE,
        TransformKind::Esn => TransformType::ESN,
        TransformKind::AddKe(number) => TransformType(TransformType::ESN.0 + number),
    }
}

fn engine_kind(kind: TransformType) -> Option<TransformKind> {
    match kind {
        TransformType::ENCR => Some(TransformKind::Encr),
        TransformType::PRF => Some(TransformKind::Prf),
        TransformType::INTEG => Some(TransformKind::Integ),
        TransformType::KE => Some(TransformKind::Dh),
        TransformType::ESN => Some(TransformKind::Esn),
        TransformType(kind @ 6..=12) => Some(TransformKind::AddKe(kind - TransformType::ESN.0)),
        _ => None,
    }
}

fn to_wire(proposal: &Proposal, number: u8, protocol: ProtocolId, spi: &[u8]) -> ike_wire::Proposal {
    let transforms = proposal
        .transforms
        .iter()
        .map(|t| match t.key_bits {
            Some(bits) => ike_wire::Transform::with_key_bits(wire_kind(t.kind), t.id, bits),
            None => ike_wire::Transform::new(wire_kind(t.kind), t.id),
        })
        .collect();
    ike_wire::Proposal {
        number,
        protocol,
        spi: spi.to_vec(),
        transforms,
    }
}

/// An SA payload that offers all of these.
pub(crate) fn offer(proposals: &[Proposal], protocol: ProtocolId, spi: &[u8]) -> SecurityAssociation {
    let proposals = proposals
        .iter()
        .zip(1..=u8::MAX)
        .map(|(p, n)| to_wire(p, n, protocol, spi))
        .collect();
    SecurityAssociation { proposals }
}

/// An SA payload that accepts one.
pub(crate) fn accept(chosen: &Proposal, number: u8, protocol: ProtocolId, spi: &[u8]) -> SecurityAssociation {
    SecurityAssociation {
        proposals: vec![to_wire(chosen, number, protocol, spi)],
    }
}

/// A proposal of the peer's that we can read: its number, SPI and algorithms.
pub(crate) struct TheirProposal {
    pub number: u8,
    pub spi: Vec<u8>,
    pub proposal: Proposal,
}

/// The peer's proposals for one protocol. Proposals with transform types that we do not know are left out, and so are
/// transforms with attributes that we do not know (RFC 7296 3.3.6).
pub(crate) fn read(sa: &SecurityAssociation, protocol: ProtocolId) -> Vec<TheirProposal> {
    let usable = |proposal: &&ike_wire::Proposal| {
        proposal.protocol == protocol && proposal.transforms.iter().all(|t| engine_kind(t.kind).is_some())
    };
    let read_one = |proposal: &ike_wire::Proposal| {
        let understood = proposal.transforms.iter().filter(|t| t.is_understood());
        let transforms = understood
            .filter_map(|t| {
                Some(Transform {
                    kind: engine_kind(t.kind)?,
                    id: t.id,
                    key_bits: t.key_bits(),
                })
            })
            .collect();
        TheirProposal {
            number: proposal.number,
            spi: proposal.spi.clone(),
            proposal: Proposal { transforms },
        }
    };
    sa.proposals.iter().filter(usable).map(read_one).collect()
}

/// Algorithms of an IKE SA; `None` where a configured combination is not implemented.
pub(crate) fn ike_suite(chosen: &Proposal) -> Option<(Prf, IkeCipher, DhGroup)> {
    let encr = chosen.first(TransformKind::Encr)?;
    let integ = chosen.first(TransformKind::Integ).map(|t| t.id);
    Some((
        Prf::from_transform_id(chosen.first(TransformKind::Prf)?.id)?,
        IkeCipher::from_transforms(encr.id, encr.key_bits, integ)?,
        DhGroup::from_transform_id(chosen.first(TransformKind::Dh)?.id)?,
    ))
}

/// Additional key exchanges in the order in which they take place (RFC 9370 2.2.1); `None` where one is not implemented.
pub(crate) fn additional(chosen: &Proposal) -> Option<Vec<DhGroup>> {
    let numbered = |number| chosen.first(TransformKind::AddKe(number)).map(|t| t.id);
    (1..=7)
        .filter_map(numbered)
        .filter(|id| *id != DH_NONE)
        .map(DhGroup::from_transform_id)
        .collect()
}

/// Algorithms of a Child SA, and whether it has extended sequence numbers.
pub(crate) fn esp_suite(chosen: &Proposal) -> Option<(EspSuite, bool)> {
    let encr = chosen.first(TransformKind::Encr)?;
    let integ = chosen.first(TransformKind::Integ).map(|t| t.id);
    let suite = match (encr.id, encr.key_bits, integ) {
        (ENCR_AES_GCM_16, Some(128), None) => EspSuite::Aes128Gcm16,
        (ENCR_AES_GCM_16, Some(256), None) => EspSuite::Aes256Gcm16,
        (ENCR_CHACHA20_POLY1305, None, None) => EspSuite::ChaCha20Poly1305,
        (ENCR_AES_CBC, Some(128), Some(INTEG_SHA256)) => EspSuite::Aes128CbcSha256,
        (ENCR_AES_CBC, Some(256), Some(INTEG_SHA256)) => EspSuite::Aes256CbcSha256,
        _ => return None,
    };
    let esn = chosen.first(TransformKind::Esn).is_some_and(|t| t.id == ESN_YES);
    Some((suite, esn))
}

/// What both selectors allow.
fn intersect(a: &TrafficSelector, b: &TrafficSelector) -> Option<TrafficSelector> {
    if a.first.is_ipv4() != b.first.is_ipv4() {
        return None;
    }
    let (first, last) = (a.first.max(b.first), a.last.min(b.last));
    let protocol = match (a.protocol, b.protocol) {
        (0, other) | (other, 0) => other,
        (one, other) if one == other => one,
        _ => return None,
    };
    let any_port = |ts: &TrafficSelector| ts.first_port == 0 && ts.last_port == u16::MAX;
    // OPAQUE (65535 to 0) is no range: it goes with itself and with any.
    let opaque = |ts: &TrafficSelector| ts.first_port > ts.last_port;
    let (first_port, last_port) = match (opaque(a), opaque(b)) {
        (false, false) => (a.first_port.max(b.first_port), a.last_port.min(b.last_port)),
        (true, true) => (a.first_port, a.last_port),
        (true, false) if any_port(b) => (a.first_port, a.last_port),
        (false, true) if any_port(a) => (b.first_port, b.last_port),
        _ => return None,
    };
    let empty = first > last || (first_port > last_port && !(opaque(a) || opaque(b)));
    (!empty).then_some(TrafficSelector {
        first,
        last,
        protocol,
        first_port,
        last_port,
    })
}

/// Narrowing (RFC 7296 2.9): all that both sides allow; empty where nothing is.
pub(crate) fn narrow(ours: &[TrafficSelector], theirs: &[TrafficSelector]) -> Vec<TrafficSelector> {
    let mut result: Vec<TrafficSelector> = Vec::new();
    for their in theirs.iter().take(SELECTORS_MAX) {
        for our in ours {
            if let Some(both) = intersect(our, their)
                && !result.contains(&both)
                && result.len() < SELECTORS_MAX
            {
                result.push(both);
            }
        }
    }
    result
}

/// Whether each of `inner` lies within one of `outer`.
pub(crate) fn is_within(inner: &[TrafficSelector], outer: &[TrafficSelector]) -> bool {
    inner
        .iter()
        .all(|ts| outer.iter().any(|o| intersect(ts, o).as_ref() == Some(ts)))
}

/// Readable selectors.
pub(crate) fn show(selectors: &[TrafficSelector]) -> String {
    let one = |ts: &TrafficSelector| {
        let mut text = match prefix_len(ts) {
            Some(len) => format!("{}/{len}", ts.first),
            None => format!("{}-{}", ts.first, ts.last),
        };
        let any_port = ts.first_port == 0 && ts.last_port == u16::MAX;
        if ts.protocol != 0 || !any_port {
            text.push_str(&format!("[{}", ts.protocol));
            if !any_port {
                text.push_str(&format!("/{}-{}", ts.first_port, ts.last_port));
            }
            text.push(']');
        }
        text
    };
    selectors.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn prefix_len(ts: &TrafficSelector) -> Option<u32> {
    let (first, last, bits) = match (ts.first, ts.last) {
        (std::net::IpAddr::V4(a), std::net::IpAddr::V4(b)) => {
            (u128::from(u32::from(a)), u128::from(u32::from(b)), 32)
        }
        (std::net::IpAddr::V6(a), std::net::IpAddr::V6(b)) => (u128::from(a), u128::from(b), 128),
        _ => return None,
    };
    let span = first ^ last;
    let host_bits = 128 - span.leading_zeros();
    let mask = if host_bits == 128 {
        u128::MAX
    } else {
        (1u128 << host_bits) - 1
    };
    (span == mask && first & mask == 0).then_some(bits - host_bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ts(text: &str) -> TrafficSelector {
        let mut words = text.split_whitespace();
        let mut address = || words.next().unwrap().parse().unwrap();
        let (first, last) = (address(), address());
        let mut number = |default: u16| words.next().map_or(default, |w| w.parse().unwrap());
        let (protocol, first_port, last_port) = (number(0) as u8, number(0), number(u16::MAX));
        TrafficSelector {
            first,
            last,
            protocol,
            first_port,
            last_port,
        }
    }

    #[test]
    fn narrowing_gives_what_both_allow() {
        let rows = [
            (
                "10.0.0.0 10.0.255.255",
                "10.0.1.0 10.0.1.255",
                Some("10.0.1.0 10.0.1.255"),
            ),
            (
                "10.0.0.0 10.0.0.9",
                "10.0.0.5 10.0.0.20",
                Some("10.0.0.5 10.0.0.9"),
            ),
            ("10.0.0.0 10.0.0.9", "10.0.0.10 10.0.0.20", None),
            ("10.0.0.0 10.0.0.9", "2001:db8:: 2001:db8::f", None),
            (
                "10.0.0.0 10.0.0.9 6",
                "10.0.0.0 10.0.0.9",
                Some("10.0.0.0 10.0.0.9 6"),
            ),
            ("10.0.0.0 10.0.0.9 6", "10.0.0.0 10.0.0.9 17", None),
            (
                "10.0.0.0 10.0.0.9 6 80 90",
                "10.0.0.0 10.0.0.9 0 85 99",
                Some("10.0.0.0 10.0.0.9 6 85 90"),
            ),
            ("10.0.0.0 10.0.0.9 6 80 90", "10.0.0.0 10.0.0.9 6 91 99", None),
            (
                "10.0.0.0 10.0.0.9 6 65535 0",
                "10.0.0.0 10.0.0.9",
                Some("10.0.0.0 10.0.0.9 6 65535 0"),
            ),
            ("10.0.0.0 10.0.0.9 6 65535 0", "10.0.0.0 10.0.0.9 6 80 80", None),
        ];
        for (a, b, want) in rows {
            let want: Vec<_> = want.map(ts).into_iter().collect();
            assert_eq!(narrow(&[ts(a)], &[ts(b)]), want, "{a} and {b}");
            assert_eq!(narrow(&[ts(b)], &[ts(a)]), want, "{b} and {a}");
        }
    }

    #[test]
    fn selectors_are_shown_as_prefixes_where_they_are_some() {
        assert_eq!(show(&[ts("10.0.0.0 10.0.255.255")]), "10.0.0.0/16");
        assert_eq!(show(&[ts("10.0.0.1 10.0.0.1 6 80 80")]), "10.0.0.1/32[6/80-80]");
        assert_eq!(show(&[ts("10.0.0.1 10.0.0.9")]), "10.0.0.1-10.0.0.9");
        assert_eq!(show(&[ts("0.0.0.0 255.255.255.255")]), "0.0.0.0/0");
        assert_eq!(show(&[ts(":: ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")]), "::/0");
    }
}
