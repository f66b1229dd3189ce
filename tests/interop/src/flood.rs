//! Floods of first messages (RFC 7296 2.6): from one address that answers cookies, so that each costs the responder a key exchange of
//! 4096 bits, or from addresses that nobody has.

use crate::clock::{now_ns, sleep_until};
use crate::netns::Netns;
use anyhow::{Context, Result};
use ike_wire::{
    DhTransform, ExchangeType, Flags, Header, KeyExchange, Message, Notify, NotifyType, Payload, Proposal,
    ProtocolId, SecurityAssociation, Transform, TransformType, encode_message,
};
use model::IkeSpi;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// What the initiators propose, as configurations write it.
pub const SUITE: &str = "aes128gcm16-prfsha256-modp4096";
/// Octets of a public value of 4096 bits (RFC 3526 group 16).
const PUBLIC: usize = 512;
const GROUP: u16 = 16;

/// What a flood has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// First messages without a cookie.
    pub first: u64,
    /// Cookies that were asked for and shown.
    pub cookies: u64,
    /// Key exchanges that the responder made.
    pub exchanges: u64,
}

/// A flood that goes on until it is stopped.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Sent>>>,
}

impl Flood {
    /// From one address, which answers.
    pub fn of_exchanges(netns: &Netns, remote: Ipv4Addr, per_second: u64, seed: u64) -> Result<Self> {
        Self::start(netns, move |stop| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("a UDP port")?;
            socket.connect((remote, 500))?;
            socket.set_nonblocking(true)?;
            let mut sent = Sent::default();
            let mut buffer = vec![0; 65_536];
            paced(per_second, stop, |number| {
                // What is not sent is not missed.
                let _ = socket.send(&first_message(seed, number, None)?);
                sent.first += 1;
                while let Ok(length) = socket.recv(&mut buffer) {
                    let Ok(message) = Message::parse(&buffer[..length]) else {
                        continue;
                    };
                    if let Some(cookie) = message.payloads.notifies().find_map(Notify::as_cookie) {
                        let number = message.header.spi_i.0 >> 1;
                        let _ = socket.send(&first_message(seed, number, Some(cookie.to_vec()))?);
                        sent.cookies += 1;
                    } else if message.payloads.ke().is_some() {
                        sent.exchanges += 1;
                    }
                }
                Ok(())
            })?;
            Ok(sent)
        })
    }

    /// From as many addresses as there are messages, none of which anybody has.
    pub fn spoofed(netns: &Netns, remote: Ipv4Addr, per_second: u64, seed: u64) -> Result<Self> {
        Self::start(netns, move |stop| {
            // This protocol brings its own IPv4 headers (raw(7)).
            let raw = socket(
                AddressFamily::Inet,
                SockType::Raw,
                SockFlag::empty(),
                SockProtocol::Raw,
            )
            .context("a raw socket")?;
            let to = SockaddrIn::from(SocketAddrV4::new(remote, 0));
            let mut sent = Sent::default();
            paced(per_second, stop, |number| {
                let message = first_message(seed, number, None)?;
                // 100.64.0.0/10 (RFC 6598) is nobody's here.
                let from = Ipv4Addr::from(0x6440_0000 | (number as u32 & 0x3f_ffff));
                let packet = packet(from, remote, &message);
                let _ = sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::MSG_DONTWAIT);
                sent.first += 1;
                Ok(())
            })?;
            Ok(sent)
        })
    }

    fn start(netns: &Netns, work: impl FnOnce(&AtomicBool) -> Result<Sent> + Send + 'static) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = netns.thread("flood", move || work(&told))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Ends it.
    pub fn stop(mut self) -> Result<Sent> {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.take().context("it has ended")?;
        thread.join().map_err(|_| anyhow::anyhow!("the flood panicked"))?
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Calls `send` so often, with rising numbers, until it is to stop.
fn paced(per_second: u64, stop: &AtomicBool, mut send: impl FnMut(u64) -> Result<()>) -> Result<()> {
    let began = now_ns();
    let mut number = 0;
    while !stop.load(Ordering::Acquire) {
        let due = now_ns().saturating_sub(began) * per_second / 1_000_000_000;
        // A sender that was held up does not make up for more than a tenth of a second.
        number = number.max(due.saturating_sub(per_second / 10));
        while number < due {
            number += 1;
            send(number)?;
        }
        sleep_until(now_ns() + 1_000_000);
    }
    Ok(())
}

/// A whole first message. The initiator's SPI is twice the number, plus one.
fn first_message(seed: u64, number: u64, cookie: Option<Vec<u8>>) -> Result<Vec<u8>> {
    let digest = |what: &[u8]| crypto::sha256(&[what, &seed.to_be_bytes(), &number.to_be_bytes()]);
    // Any number below the prime will do: whether somebody knows its logarithm is not seen.
    let block = digest(b"public");
    let mut public: Vec<u8> = block.iter().copied().cycle().take(PUBLIC).collect();
    public[0] &= 0x7f;
    let transforms = vec![
        Transform::with_key_bits(TransformType::ENCR, 20, 128),
        Transform::new(TransformType::PRF, 5),
        Transform::new(TransformType::KE, GROUP),
    ];
    let proposal = Proposal {
        number: 1,
        protocol: ProtocolId::IKE,
        spi: Vec::new(),
        transforms,
    };
    let mut payloads: Vec<Payload> = cookie
        .map(|cookie| Payload::Notify(Notify::new(NotifyType::COOKIE, cookie)))
        .into_iter()
        .collect();
    payloads.extend([
        Payload::SecurityAssociation(SecurityAssociation {
            proposals: vec![proposal],
        }),
        Payload::KeyExchange(KeyExchange {
            group: DhTransform(GROUP),
            data: public,
        }),
        Payload::Nonce(digest(b"nonce").to_vec()),
    ]);
    let header = Header {
        spi_i: IkeSpi((number << 1) | 1),
        spi_r: IkeSpi(0),
        exchange: ExchangeType::IKE_SA_INIT,
        flags: Flags {
            initiator: true,
            version: false,
            response: false,
        },
        message_id: 0,
    };
    Ok(encode_message(&header, &payloads)?)
}

/// IPv4 and UDP headers in front; the kernel puts length and checksum into the first, and the second has none (RFC 768).
fn packet(from: Ipv4Addr, to: Ipv4Addr, message: &[u8]) -> Vec<u8> {
    let udp = (8 + message.len()) as u16;
    let mut out = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    out.extend(from.octets());
    out.extend(to.octets());
    for field in [500, 500, udp, 0] {
        out.extend(u16::to_be_bytes(field));
    }
    out.extend(message);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_messages_are_whole_and_differ() -> Result<()> {
        let one = first_message(1, 7, None)?;
        let message = Message::parse(&one)?;
        assert_eq!(message.header.spi_i.0 >> 1, 7);
        assert_eq!(message.payloads.ke().map(|ke| ke.data.len()), Some(PUBLIC));
        let shown = first_message(1, 7, Some(vec![9; 32]))?;
        let again = Message::parse(&shown)?;
        assert_eq!(
            again.payloads.notifies().find_map(Notify::as_cookie),
            Some(&[9; 32][..])
        );
        assert_eq!(message.payloads.nonce(), again.payloads.nonce());
        assert_ne!(one, first_message(1, 8, None)?);
        let packet = packet(Ipv4Addr::new(100, 64, 0, 1), Ipv4Addr::LOCALHOST, &one);
        assert_eq!(packet.len(), 28 + one.len());
        Ok(())
    }
}
