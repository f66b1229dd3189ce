//! From a Child SA's record to what the programs read.

use crate::port::{Direction, MapOp};
use crate::spd::selector_pairs;
use crate::store::{SaEntry, SadError};
use maps_schema::sad::{
    InboundSa, Limits, LimitsCell, OutboundSa, SA_ESN, SA_LENIENT, SA_LOCAL_ONLY, SA_MAY_MOVE, SA_TRANSPORT,
    SA_UDP_ENCAP, SELECTORS_PER_SA, SUITE_AES128_CBC_SHA256, SUITE_AES128_GCM, SUITE_AES256_CBC_SHA256,
    SUITE_AES256_GCM, SUITE_CHACHA20_POLY1305, SaKey, SelectorPair, spi_slot,
};
use model::{ChildSaRecord, EspSuite, SaMode, SecretBytes, TrafficSelector, address::mapped};

/// The suite's number in the maps.
pub const fn suite_number(suite: EspSuite) -> u8 {
    match suite {
        EspSuite::Aes128Gcm16 => SUITE_AES128_GCM,
        EspSuite::Aes256Gcm16 => SUITE_AES256_GCM,
        EspSuite::ChaCha20Poly1305 => SUITE_CHACHA20_POLY1305,
        EspSuite::Aes128CbcSha256 => SUITE_AES128_CBC_SHA256,
        EspSuite::Aes256CbcSha256 => SUITE_AES256_CBC_SHA256,
    }
}

/// `SA_*` flags of both directions.
pub(crate) fn flags(record: &ChildSaRecord, lenient: bool, local_only: bool, may_move: bool) -> u8 {
    let mut flags = 0;
    if record.form.esn {
        flags |= SA_ESN;
    }
    if record.udp_encap {
        flags |= SA_UDP_ENCAP;
    }
    if record.form.mode == SaMode::Transport {
        flags |= SA_TRANSPORT;
    }
    if lenient {
        flags |= SA_LENIENT;
    }
    if local_only {
        flags |= SA_LOCAL_ONLY;
    }
    if may_move {
        flags |= SA_MAY_MOVE;
    }
    flags
}

/// Expands keying material: the keys, and behind them an AEAD's salt (RFC 4106 8.1).
pub(crate) fn expand(suite: EspSuite, material: &SecretBytes, spi: u32) -> Result<Box<SaKey>, SadError> {
    let octets = material.expose();
    let wrong = || SadError::KeyLength {
        suite,
        octets: octets.len(),
    };
    if octets.len() != suite.material_len() {
        return Err(wrong());
    }
    let (keys, rest) = octets.split_at(octets.len() - suite.salt_len());
    let mut salt = [0; 4];
    salt[..rest.len()].copy_from_slice(rest);
    let expanded = datapath::aead::expand(suite_number(suite), keys, salt, spi).map_err(|_| wrong())?;
    Ok(Box::new(expanded))
}

/// Writes of both keys of an SA. Expanding them takes longer than anything else that installing an SA does, and needs nothing but
/// the record, so whoever has many SAs does it elsewhere.
///
/// # Errors
/// [`SadError::KeyLength`].
pub fn keys(record: &ChildSaRecord) -> Result<[MapOp; 2], SadError> {
    let slot = spi_slot(record.spi_in.0);
    Ok([
        MapOp::PutKeyIn {
            slot,
            key: expand(record.suite, &record.key_in, record.spi_in.0)?,
        },
        MapOp::PutKeyOut {
            slot,
            key: expand(record.suite, &record.key_out, record.spi_out.0)?,
        },
    ])
}

/// The selector pairs of an SA, in order.
pub(crate) fn pairs(record: &ChildSaRecord) -> Result<Vec<(TrafficSelector, TrafficSelector)>, SadError> {
    let pairs = selector_pairs(&record.ts_local, &record.ts_remote);
    if pairs.is_empty() {
        return Err(SadError::NoSelectors { spi: record.spi_in });
    }
    if pairs.len() > SELECTORS_PER_SA {
        return Err(SadError::TooManySelectors {
            spi: record.spi_in,
            pairs: pairs.len(),
        });
    }
    Ok(pairs)
}

/// The inbound record of an SA.
pub(crate) fn inbound(entry: &SaEntry) -> InboundSa {
    let record = &entry.record;
    let mut selectors = [SelectorPair::default(); SELECTORS_PER_SA];
    for (to, (local, remote)) in selectors.iter_mut().zip(&entry.pairs) {
        *to = SelectorPair {
            remote_first: mapped(remote.first),
            remote_last: mapped(remote.last),
            local_first: mapped(local.first),
            local_last: mapped(local.last),
            remote_ports: [remote.first_port, remote.last_port],
            local_ports: [local.first_port, local.last_port],
            protocol: u32::from(remote.protocol),
            reserved: 0,
        };
    }
    let (life_bytes, life_packets) = entry.limits_left(Direction::Inbound);
    InboundSa {
        spi: record.spi_in.0,
        connection: entry.connection,
        suite: suite_number(record.suite),
        flags: entry.flags,
        limits: cell(entry.ceiling),
        reported_edge: entry.reported_edge,
        life_bytes,
        life_packets,
        selector_count: entry.pairs.len().min(SELECTORS_PER_SA) as u32,
        awaited: record.spi_in.0,
        selectors,
    }
}

/// The outbound record of an SA, where the interface carries `outside` octets.
pub(crate) fn outbound(entry: &SaEntry, outside: u16) -> OutboundSa {
    let (record, handling) = (&entry.record, &entry.handling);
    let (life_bytes, life_packets) = entry.limits_left(Direction::Outbound);
    OutboundSa {
        spi: record.spi_out.0,
        connection: entry.connection,
        suite: suite_number(record.suite),
        flags: entry.flags,
        limits: cell(entry.lease),
        outer_src: mapped(record.local.ip()),
        outer_dst: mapped(record.remote.ip()),
        encap_ports: [record.local.port(), record.remote.port()],
        path_mtu: entry.path_mtu(outside),
        mss_clamp: handling.mss_clamp,
        df: handling.df.number(),
        dscp: handling.dscp.map_or(0, |dscp| (dscp & 0x3f) + 1),
        reserved: [0; 6],
        life_bytes,
        life_packets,
    }
}

fn cell(limits: Limits) -> LimitsCell {
    LimitsCell {
        version: 0,
        slots: [limits, Limits::default()],
    }
}
