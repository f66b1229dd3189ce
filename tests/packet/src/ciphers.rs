//! What the ciphers cost on the host: the same code in scalar C, out of a shared object, and aws-lc-rs.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey,
};
use datapath::aead;
use maps_schema::sad::{KEY_WORDS, SUITE_AES128_GCM, SUITE_AES256_GCM, SUITE_CBC};

use crate::cbc;
use crate::frames::noise;
use crate::world::{IN, SALT, SPI_IN, key_octets};

/// Room before the text in [`Packet`], `FRONT` of scalar.h.
const FRONT: usize = 64;
/// `TEXT_MAX` of scalar.h.
const TEXT_MAX: usize = 4096;
const IV: [u8; 8] = [7; 8];
const AAD: [u8; 8] = [3; 8];
/// Packets between two readings of the clock: some tens of microseconds, so that few samples hold another process's turn.
const BATCH: u32 = 16;
/// Samples; their median counts.
const SAMPLES: usize = 61;

/// `struct scalar_key` of scalar.h.
#[repr(C)]
struct Key {
    salt: [u8; 4],
    rounds: u32,
    schedule: [u64; KEY_WORDS],
}

/// `struct packet` of scalar.h.
#[repr(C)]
struct Packet {
    iv: [u8; 8],
    aad: [u8; 16],
    tag: [u8; 16],
    aad_len: u64,
    len: u64,
    area: [u8; FRONT + TEXT_MAX + 128],
}

type Function = unsafe extern "C" fn(*const Key, *mut Packet) -> i32;

/// The ciphers in scalar C.
pub struct Scalar {
    seal: Function,
    open: Function,
}

/// Nanoseconds by packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Seal.
    pub seal: f64,
    /// Open.
    pub open: f64,
}

impl Scalar {
    /// Loads the shared object, which stays for as long as the process.
    ///
    /// # Errors
    /// What the loader says.
    pub fn load(path: &Path) -> Result<Self> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: a terminated string; the object has no constructors.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        ensure!(!library.is_null(), "cannot load {}", path.display());
        let function = |symbol: &std::ffi::CStr| {
            // SAFETY: the handle is live, the symbol terminated.
            let address = unsafe { libc::dlsym(library, symbol.as_ptr()) };
            if address.is_null() {
                bail!("{} has no {symbol:?}", path.display());
            }
            // SAFETY: scalar.c declares both of this type.
            Ok(unsafe { std::mem::transmute::<*mut libc::c_void, Function>(address) })
        };
        Ok(Self {
            seal: function(c"scalar_seal")?,
            open: function(c"scalar_open")?,
        })
    }

    /// Seals and opens `len` octets of text, over and over. What it seals must be what aws-lc-rs seals.
    ///
    /// # Errors
    /// If they differ.
    pub fn time(&self, suite: u8, len: usize) -> Result<Times> {
        let expanded = aead::expand(suite, &key_octets(suite, IN), SALT, SPI_IN)?;
        let key = Key {
            salt: SALT,
            rounds: match suite {
                SUITE_AES128_GCM => 10,
                SUITE_AES256_GCM => 14,
                _ => 0,
            },
            schedule: expanded.schedule,
        };
        let mut packet = Box::new(Packet {
            iv: IV,
            aad: [0; 16],
            tag: [0; 16],
            aad_len: AAD.len() as u64,
            len: len as u64,
            area: [0; FRONT + TEXT_MAX + 128],
        });
        packet.aad[..AAD.len()].copy_from_slice(&AAD);
        let plain = noise(len);
        let text = FRONT..FRONT + len;
        // The text is copied in each time, as the programs copy the packet; sealed in place it would be another one.
        let mut run = |function: Function, octets: &[u8]| {
            packet.area[text.clone()].copy_from_slice(octets);
            // SAFETY: both are live and of the types that the functions take; the text fits.
            unsafe { function(&raw const key, &raw mut *packet) }
        };
        let seal = sample(|| {
            run(self.seal, &plain);
        });
        let (mut sealed, tag) = sealed(suite, &plain);
        ensure!(
            run(self.open, &sealed) == 0,
            "scalar C does not open what aws-lc-rs sealed or itself"
        );
        let open = sample(|| {
            run(self.open, &sealed);
        });
        ensure!(packet.area[text] == plain[..], "scalar C opens to another text");
        ensure!(packet.tag == *tag.as_ref(), "scalar C makes another tag");
        sealed[0] ^= 1;
        packet.area[FRONT..FRONT + len].copy_from_slice(&sealed);
        // SAFETY: as above.
        let refused = unsafe { (self.open)(&raw const key, &raw mut *packet) } != 0;
        ensure!(refused, "scalar C opens an altered packet");
        Ok(Times { seal, open })
    }
}

/// aws-lc-rs on the same texts.
///
/// # Errors
/// If the provider refuses.
pub fn time_provider(suite: u8, len: usize) -> Result<Times> {
    if suite >= SUITE_CBC {
        return time_cbc(suite, len);
    }
    let key = provider_key(suite);
    let plain = noise(len);
    let (sealed, tag) = sealed(suite, &plain);
    let mut text = plain.clone();
    let seal = sample(|| {
        text.copy_from_slice(&plain);
        let tag = key.seal_in_place_separate_tag(nonce(), Aad::from(AAD), &mut text);
        std::hint::black_box(tag.is_ok());
    });
    let mut whole = [&sealed[..], tag.as_ref()].concat();
    let from = whole.clone();
    let mut opened = true;
    let open = sample(|| {
        whole.copy_from_slice(&from);
        opened &= key.open_in_place(nonce(), Aad::from(AAD), &mut whole).is_ok();
    });
    ensure!(opened, "aws-lc-rs does not open what it sealed");
    Ok(Times { seal, open })
}

/// AES-CBC and HMAC are two passes of aws-lc-rs.
fn time_cbc(suite: u8, len: usize) -> Result<Times> {
    let keys = cbc::Keys::of(suite, IN);
    let (iv, plain) = ([7; cbc::BLOCK], noise(len));
    let mut packet = [&AAD[..], &iv, &plain].concat();
    let text = AAD.len() + cbc::BLOCK..packet.len();
    let mut icv = [0; cbc::BLOCK];
    let seal = sample(|| {
        packet[text.clone()].copy_from_slice(&plain);
        keys.encrypt(iv, &mut packet[text.clone()]);
        icv = keys.icv(&packet, None);
    });
    let sealed = packet.clone();
    let mut opened = true;
    let open = sample(|| {
        packet.copy_from_slice(&sealed);
        opened &= keys.icv(&packet, None) == icv;
        keys.decrypt(iv, &mut packet[text.clone()]);
    });
    ensure!(
        opened && packet[text] == plain[..],
        "aws-lc-rs does not open what it sealed"
    );
    Ok(Times { seal, open })
}

fn provider_key(suite: u8) -> LessSafeKey {
    let algorithm = match suite {
        SUITE_AES128_GCM => &AES_128_GCM,
        SUITE_AES256_GCM => &AES_256_GCM,
        _ => &CHACHA20_POLY1305,
    };
    LessSafeKey::new(UnboundKey::new(algorithm, &key_octets(suite, IN)).expect("key length of the suite"))
}

fn nonce() -> Nonce {
    Nonce::try_assume_unique_for_key(&[&SALT[..], &IV].concat()).expect("12 octets")
}

fn sealed(suite: u8, plain: &[u8]) -> (Vec<u8>, Tag) {
    let mut text = plain.to_vec();
    let tag = provider_key(suite)
        .seal_in_place_separate_tag(nonce(), Aad::from(AAD), &mut text)
        .expect("sealed");
    (text, tag)
}

fn sample(mut each: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..SAMPLES)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..BATCH {
                each();
            }
            start.elapsed().as_nanos() as f64 / f64::from(BATCH)
        })
        .collect();
    times.sort_unstable_by(f64::total_cmp);
    times[SAMPLES / 2]
}
