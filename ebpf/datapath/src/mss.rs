//! The largest segment that TCP announces (RFC 9293 3.7.1), lowered to what fits the tunnel.

use maps_schema::sad::{MSS_AUTO, MSS_OFF};

use crate::aead::global::global_fn;
use crate::aead::{Scratch, TEXT_MAX};
use crate::bytes::{Bounded, PacketRead};
use crate::checksum;
use crate::env::Area;
use crate::headers::{IPV4_LEN, IPV6_LEN, Ip, PROTOCOL_TCP};
use crate::opaque::opaque;

/// Octets of a TCP header without options.
const TCP_LEN: usize = 20;
/// Most octets that options take.
const OPTIONS_MAX: usize = 40;
const FLAGS_AT: usize = 13;
const CHECKSUM_AT: usize = 16;
const SYN: u8 = 2;
/// Option kinds (RFC 9293 3.1).
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

/// Most that a TCP SYN with the header `ip` at the start of `packet` may announce; 0 where it is none, or may say what it
/// likes. `clamp` is that of the SA, `inner_max` the largest inner packet.
#[inline(always)]
pub fn allowed(packet: &impl PacketRead, ip: &Ip, clamp: u16, inner_max: usize) -> u16 {
    if ip.protocol != PROTOCOL_TCP || clamp == MSS_OFF || ip.is_later_fragment() {
        return 0;
    }
    match packet.u8(ip.header_len as usize + FLAGS_AT) {
        Some(flags) if flags & SYN != 0 => {}
        _ => return 0,
    }
    if clamp != MSS_AUTO {
        return clamp;
    }
    let headers = TCP_LEN + if ip.version == 6 { IPV6_LEN } else { IPV4_LEN };
    inner_max.saturating_sub(headers) as u16
}

/// Lowers what the SYN in the text announces to `work.mss`.
#[inline(always)]
pub fn apply(area: &mut Area) {
    let (at, len) = (area.work.ip.header_len, area.work.ip.total_len);
    // SAFETY: the packet's own scratch.
    unsafe {
        mss_clamp(
            &raw mut area.cipher,
            at << 16 | len & 0xffff,
            area.work.mss as u32,
        )
    };
}

global_fn! {
    /// Lowers the option "maximum segment size" of the TCP header in the text to `most`, with the checksum. `place`: where
    /// the header is, and in the low half where the packet ends. What is no well-formed option stays as it is.
    pub fn mss_clamp(; scratch: &mut Scratch; place: u32, most: u32) {
        let (at, len) = ((place >> 16) as usize, (place & 0xffff) as usize);
        let text = scratch.text_mut();
        let packet = Bounded { octets: text, len: len.min(TEXT_MAX) };
        let Some(offset) = packet.u8(at + 12) else {
            return 0;
        };
        let end = (offset >> 4) as usize * 4;
        let mut option = TCP_LEN;
        let mut left = OPTIONS_MAX;
        while left > 0 {
            left -= 1;
            // One that fits has four octets.
            if option + 4 > end {
                return 0;
            }
            let Some([kind, length, high, low]) = packet.read::<4>(at + option) else {
                return 0;
            };
            if kind == END {
                return 0;
            }
            if kind == NO_OPERATION {
                option += 1;
                continue;
            }
            if length < 2 {
                return 0;
            }
            if kind != MAXIMUM_SEGMENT_SIZE || length != 4 {
                option = opaque((option + length as usize) as u64) as usize;
                continue;
            }
            let announced = u16::from_be_bytes([high, low]);
            let most = most as u16;
            if announced <= most {
                return 0;
            }
            let Some(old) = packet.u16(at + CHECKSUM_AT) else {
                return 0;
            };
            // At an odd place the octets count in the other halves of their words.
            let odd = option & 1 != 0;
            let swapped = |value: u16| if odd { value.swap_bytes() } else { value };
            let new = checksum::updated(old, swapped(announced), swapped(most));
            put(text, at + option + 2, most);
            put(text, at + CHECKSUM_AT, new);
            return 1;
        }
        0
    }
}

/// Writes a number at `at` of a text, where there is room.
#[inline(always)]
pub(crate) fn put(text: &mut [u8; TEXT_MAX], at: usize, value: u16) {
    let at = opaque(at as u64) as usize;
    if at > TEXT_MAX - 2 {
        return;
    }
    if let Some(to) = text.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) {
        *to = value.to_be_bytes();
    }
}
