//! The working space of one packet: the value of the per-CPU scratch map in BPF, a local on the host.

use core::mem::{offset_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::ghash::GhashWork;
use super::global::global_fn;
use super::poly1305::Poly1305;
use super::sha256::Sha256;

/// Octets of text that fit: ciphertext without ICV, or plaintext with ESP trailer. Enough for jumbo frames (9000 octets and
/// some), and with all else in less than the 32 KiB that a value for each CPU can have.
pub const TEXT_MAX: usize = 16384;
/// Octets of the integrity check value of every suite here.
pub const TAG_LEN: usize = 16;
/// AAD of a packet with 32-bit sequence numbers: SPI and sequence number.
pub const AAD_PLAIN: u32 = 8;
/// AAD of a packet with extended sequence numbers: SPI, high and low half (RFC 4106 5, RFC 7634 2).
pub const AAD_ESN: u32 = 12;

/// What is authenticated lies in one piece: zeros, the AAD block, the text, the length block.
#[derive(Clone, Copy, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Message {
    front: [u64; FRONT_WORDS],
    text: [u64; TEXT_MAX / 8],
    back: [u64; 16],
}

/// Words before the text: up to three zero blocks that fill the first GHASH chunk, and the AAD block.
pub(super) const FRONT_WORDS: usize = 8;
/// Words of the whole message area.
pub(super) const MESSAGE_WORDS: usize = FRONT_WORDS + TEXT_MAX / 8 + 16;

/// Where a chunk of a message begins at the latest, words. Loops are bounded by this too, though they end before: verifiers up to
/// Linux 6.7 find out only from a comparison with a constant that a loop ends, and that a chunk lies within the message.
pub(super) const LOOP_WORDS: usize = FRONT_WORDS + TEXT_MAX / 8 + 4;
const _: () = assert!(LOOP_WORDS + 8 <= MESSAGE_WORDS);

/// Parameters, text and working state of one packet. Zeroed memory is a valid value; no field needs to be cleared
/// between packets.
#[derive(Clone, Copy, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Scratch {
    /// The explicit IV of the packet; the salt comes from the key. AEADs use the first 8 octets. To seal with AES-CBC it is a nonce of
    /// 16 octets, never the same twice under a key; the IV that is made of it is here afterwards.
    pub iv: [u8; 16],
    /// Additional authenticated data, first `aad_len` octets.
    pub aad: [u8; 16],
    /// The ICV: input of `open`, output of `seal`.
    pub tag: [u8; TAG_LEN],
    /// [`AAD_PLAIN`] or [`AAD_ESN`].
    pub aad_len: u32,
    /// Octets of text in use, at most [`TEXT_MAX`]; for AES-CBC whole blocks. What lies behind them has no influence and may be overwritten.
    pub text_len: u32,
    pub(super) message: Message,
    /// ChaCha20's state; its word 12 is the block counter.
    pub(super) chacha: [u32; 16],
    /// ChaCha20's block 0; the block of HMAC's outer hash.
    pub(super) block: [u64; 8],
    /// AES: four blocks, bitsliced.
    pub(super) aes: [u64; 8],
    /// AES-CBC: the block of ciphertext before.
    pub(super) chain: [u64; 2],
    pub(super) sha: Sha256,
    /// AES-CTR: the columns of the counter block that stay, spread for bitslicing, and the counter.
    pub(super) counter: [u64; 3],
    /// The authenticator computed for this packet.
    pub(super) computed: [u64; 2],
    pub(super) poly: Poly1305,
    pub(super) ghash: GhashWork,
}

const _: () = {
    assert!(size_of::<Message>() == MESSAGE_WORDS * 8);
    assert!(offset_of!(Scratch, message) == 56);
    assert!(TEXT_MAX.is_power_of_two());
};

impl Default for Scratch {
    fn default() -> Self {
        zerocopy::FromZeros::new_zeroed()
    }
}

impl Scratch {
    /// The text area; its first `text_len` octets count.
    #[inline(always)]
    pub fn text(&self) -> &[u8; TEXT_MAX] {
        zerocopy::transmute_ref!(&self.message.text)
    }

    /// The text area, to fill.
    #[inline(always)]
    pub fn text_mut(&mut self) -> &mut [u8; TEXT_MAX] {
        zerocopy::transmute_mut!(&mut self.message.text)
    }

    /// Whether the lengths are in range.
    #[inline(always)]
    pub(super) fn is_sane(&self) -> bool {
        self.text_len as usize <= TEXT_MAX && (self.aad_len == AAD_PLAIN || self.aad_len == AAD_ESN)
    }

    /// The text's length, octets; the limit is stated once more for the verifier, which forgets it over memory.
    #[inline(always)]
    fn len(&self) -> usize {
        (self.text_len as usize).min(TEXT_MAX)
    }

    /// First word behind the text.
    #[inline(always)]
    pub(super) fn text_end(&self) -> usize {
        FRONT_WORDS + self.len().div_ceil(8)
    }

    /// Blocks of what is authenticated: AAD, text, lengths.
    #[inline(always)]
    pub(super) fn blocks(&self) -> u32 {
        self.len().div_ceil(16) as u32 + 2
    }

    /// Zeroes what follows the text: up to the block's end because both authenticators pad so, and further because key
    /// stream was written there.
    #[inline(always)]
    pub(super) fn clear_tail(&mut self) {
        let len = self.len();
        if let Some(tail) = self
            .message
            .words_mut()
            .get_mut(FRONT_WORDS + len / 8..)
            .and_then(|w| w.first_chunk_mut::<9>())
        {
            tail[0] &= ((1u64 << (8 * (len % 8))) - 1).to_le();
            if let Some(rest) = tail.last_chunk_mut::<8>() {
                zero(rest);
            }
        }
    }

    /// Compares the packet's tag with the computed one in constant time.
    #[inline(always)]
    pub(super) fn tag_matches(&self) -> bool {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.tag;
        let difference = (u64::from_ne_bytes([a, b, c, d, e, f, g, h]) ^ self.computed[0])
            | (u64::from_ne_bytes([i, j, k, l, m, n, o, p]) ^ self.computed[1]);
        difference == 0
    }

    /// Makes the computed tag the packet's.
    #[inline(always)]
    pub(super) fn store_tag(&mut self) {
        self.tag = zerocopy::transmute!(self.computed);
    }
}

/// Zeroes a few words. Written one by one: of anything else the compiler makes a call of `memset`, which goes octet by octet.
#[inline(always)]
pub(super) fn zero<const N: usize>(words: &mut [u64; N]) {
    for word in words {
        // SAFETY: a reference is valid to write to.
        unsafe { core::ptr::write_volatile(word, 0) };
    }
}

global_fn! {
    /// Puts zeros and the AAD block in front of the text, padding and the block of lengths behind it: counted in bits and
    /// big-endian for GCM (SP 800-38D 7.1), else in octets and little-endian (RFC 8439 2.8). Returns 0.
    pub(super) fn aead_frame(; scratch: &mut Scratch; gcm: u32) {
        scratch.clear_tail();
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = scratch.aad;
        let low = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        let high = if scratch.aad_len == AAD_ESN { u32::from_le_bytes([i, j, k, l]) as u64 } else { 0 };
        let (aad_len, len) = (scratch.aad_len as u64, scratch.len() as u64);
        let lengths =
            if gcm != 0 { [(aad_len * 8).to_be(), (len * 8).to_be()] } else { [aad_len.to_le(), len.to_le()] };
        let end = FRONT_WORDS - 2 + 2 * (scratch.blocks() as usize - 1);
        let words = scratch.message.words_mut();
        if let Some(front) = words.first_chunk_mut::<{ FRONT_WORDS - 2 }>() {
            zero(front);
        }
        words[FRONT_WORDS - 2] = low;
        words[FRONT_WORDS - 1] = high.to_le();
        if let Some(last) = words.get_mut(end..).and_then(|w| w.first_chunk_mut()) {
            *last = lengths;
        }
        0
    }
}

impl Message {
    /// The message area as words: text begins at [`FRONT_WORDS`], the AAD block two words before.
    #[inline(always)]
    pub(super) fn words_mut(&mut self) -> &mut [u64; MESSAGE_WORDS] {
        zerocopy::transmute_mut!(self)
    }
}
