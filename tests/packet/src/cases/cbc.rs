//! AES-CBC with HMAC-SHA2-256-128: what is different from the AEADs. Text in whole blocks, up to 15 octets of padding, the MAC over the
//! upper half of extended numbers behind the packet, other sizes. (The tables of each way have this suite among the others.)

use maps_schema::event::{EVENT_FIRST_INBOUND, SLOW_ABOVE_CEILING};
use maps_schema::sad::{MSS_AUTO, SUITE_AES256_CBC_SHA256, SUITE_CHACHA20_POLY1305};
use maps_schema::verdict::Verdict;

use crate::case::{Action, Case, Observed, Program};
use crate::frames::{Ip, Sealer, ethernet, noise, open_ours, udp};
use crate::world::*;

const SUITE: u8 = SUITE_AES256_CBC_SHA256;
/// SPI and number, IV, ICV.
const AROUND: usize = 8 + 16 + 16;

fn world() -> World {
    World::base(SUITE, false, false)
}

fn peer() -> Sealer {
    Sealer::peer(SUITE, false, false)
}

fn datagram(ttl: u8, from: u32, to: u32, len: usize) -> Vec<u8> {
    Ip {
        ttl,
        ..Ip::new(from, to, 17)
    }
    .with(&udp(1000, 2000, &noise(len)))
}

fn inner(len: usize) -> Vec<u8> {
    datagram(64, FAR_HOST, NEAR_HOST, len)
}

fn steer(name: impl Into<String>, world: World, frame: Vec<u8>) -> Case {
    Case::new(name, Program::Steer, world, frame).of(CONNECTION)
}

fn opened(name: impl Into<String>, world: World, frame: Vec<u8>, len: usize) -> Case {
    let out = datagram(63, FAR_HOST, NEAR_HOST, len);
    steer(name, world, frame)
        .ends(Verdict::EspOpened, Action::Redirect)
        .out(ethernet(NEAR_MAC, INSIDE_MAC, 0x0800, &out))
        .events(&[EVENT_FIRST_INBOUND])
}

/// Dropped, and nothing of the SA changed.
fn dropped(name: impl Into<String>, world: World, frame: Vec<u8>, verdict: Verdict) -> Case {
    let window = world.window;
    steer(name, world, frame)
        .ends(verdict, Action::Drop)
        .check(move |seen: &Observed| {
            if seen.window == window {
                Ok(())
            } else {
                Err(format!("the window changed to {:?}", seen.window))
            }
        })
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(lengths());
    cases.extend(trailers());
    cases.extend(numbers());
    cases.extend(sizes());
    cases
}

/// Every length from nothing to three blocks: only whole blocks meet the MAC.
fn lengths() -> Vec<Case> {
    let mut cases = Vec::new();
    let whole = peer().esp(5, &inner(16));
    for len in 0..AROUND + 48 {
        let (verdict, connection) = match len {
            0..8 => (Verdict::EspTruncated, 0),
            8.. if len < AROUND + 16 => (Verdict::EspTruncated, CONNECTION),
            _ if !(len - AROUND).is_multiple_of(16) => (Verdict::EspRagged, CONNECTION),
            _ => (Verdict::IcvBad, CONNECTION),
        };
        // What is left out is in the middle, so that there is an ICV, which is wrong.
        let cut = [&whole[..len / 2], &whole[whole.len() - (len - len / 2)..]].concat();
        cases.push(
            dropped(
                format!("AES-CBC: a packet of {len} octets"),
                world(),
                peer().frame_of(&cut),
                verdict,
            )
            .of(connection),
        );
    }
    for encap in [false, true] {
        for len in 0..=48 {
            let world = World::base(SUITE, false, encap);
            let sealer = Sealer::peer(SUITE, false, encap);
            cases.push(opened(
                format!("AES-CBC: {len} octets come in, encapsulation {encap}"),
                world.clone(),
                sealer.frame(5, &inner(len)),
                len,
            ));
            let want = datagram(63, NEAR_HOST, FAR_HOST, len);
            let frame = ethernet(
                INSIDE_MAC,
                NEAR_MAC,
                0x0800,
                &datagram(64, NEAR_HOST, FAR_HOST, len),
            );
            cases.push(
                Case::new(
                    format!("AES-CBC: {len} octets go out, encapsulation {encap}"),
                    Program::Inside,
                    world,
                    frame,
                )
                .of(CONNECTION)
                .ends(Verdict::EspSealed, Action::Redirect)
                .any_frame()
                .check(move |seen| {
                    let ours = open_ours(&seen.frame, SUITE, None, encap)?;
                    if ours.inner != want {
                        return Err(format!("inner {:02x?}", ours.inner));
                    }
                    // No more padding than a block takes (RFC 4303 2.4).
                    let text = (want.len() + 2).next_multiple_of(16);
                    let outer = if encap { 28 } else { 20 };
                    if ours.outer.len() == outer + AROUND + text {
                        Ok(())
                    } else {
                        Err(format!("an outer packet of {} octets", ours.outer.len()))
                    }
                }),
            );
        }
    }
    cases
}

/// Padding is looked at after the MAC, and a packet with the wrong MAC is not decrypted at all.
fn trailers() -> Vec<Case> {
    let mut cases = Vec::new();
    let whole = inner(2); // 30 octets: a trailer of two fills the second block
    let with = |pad: &[u8], length: u8, next: u8| {
        peer().frame_of(&peer().esp_of_text(5, [&whole[..], pad, &[length, next]].concat()))
    };
    let right: Vec<u8> = (1..=255).collect();
    for length in (0..=240u8).step_by(16) {
        let pad = &right[..usize::from(length)];
        cases.push(opened(
            format!("AES-CBC: padding of {length} octets"),
            world(),
            with(pad, length, 4),
            2,
        ));
        if length == 0 {
            continue;
        }
        for at in [0, pad.len() / 2, pad.len() - 1] {
            let mut wrong = pad.to_vec();
            wrong[at] ^= 0x40;
            cases.push(dropped(
                format!("AES-CBC: padding of {length} octets, octet {at} wrong"),
                world(),
                with(&wrong, length, 4),
                Verdict::PaddingBad,
            ));
            let mut altered = with(&wrong, length, 4);
            let last = altered.len() - 1;
            altered[last] ^= 1;
            cases.push(dropped(
                format!("AES-CBC: the same with a wrong ICV: {length}, {at}"),
                world(),
                altered,
                Verdict::IcvBad,
            ));
        }
    }
    for length in [31, 32, 100, 255] {
        cases.push(dropped(
            format!("AES-CBC: a padding length of {length} for nothing"),
            world(),
            with(&[], length, 4),
            Verdict::PaddingBad,
        ));
    }
    for (next, verdict) in [
        (0, Verdict::PaddingBad),
        (41, Verdict::InnerMalformed),
        (59, Verdict::InnerUnsupported),
    ] {
        cases.push(dropped(
            format!("AES-CBC: next header {next} around IPv4"),
            world(),
            with(&[], 0, next),
            verdict,
        ));
    }
    // RFC 4303 2.7.
    let hidden = [&noise(62)[..], &[1, 2]].concat();
    cases.push(opened(
        "AES-CBC: octets that hide the length",
        world(),
        with(&hidden, 2, 4),
        2,
    ));
    let mut aead = world();
    aead.inbound.suite = SUITE_CHACHA20_POLY1305;
    cases.push(dropped(
        "AES-CBC: the record says another suite than the key",
        aead,
        peer().frame(5, &inner(30)),
        Verdict::SuiteUnknown,
    ));
    cases
}

/// Extended numbers: the upper half is not in the packet, and the MAC covers it.
fn numbers() -> Vec<Case> {
    let esn = Sealer::peer(SUITE, true, false);
    let at = |edge: u64| {
        let mut world = World::base(SUITE, true, false);
        world.inbound.limits = cell(1 << 39, 1000, 0, EPOCH);
        world.window.edge = edge;
        world.window.above_floor = 1;
        world
    };
    let high = 7u64 << 32;
    let next = |name: &str, edge, seq| {
        let out = datagram(63, FAR_HOST, NEAR_HOST, 30);
        steer(name, at(edge), esn.frame(seq, &inner(30)))
            .ends(Verdict::EspOpened, Action::Redirect)
            .out(ethernet(NEAR_MAC, INSIDE_MAC, 0x0800, &out))
    };
    vec![
        next("AES-CBC with ESN: the seventh high half", high + 10, high + 11),
        next("AES-CBC with ESN: into the next high half", high - 2, high + 1),
        dropped(
            "AES-CBC with ESN: a number of another high half",
            at(high + 10),
            esn.frame((6 << 32) + 11, &inner(30)),
            Verdict::IcvBad,
        ),
        dropped(
            "AES-CBC: a peer without ESN on an SA with",
            at(10),
            peer().frame(11, &inner(30)),
            Verdict::IcvBad,
        ),
        steer(
            "AES-CBC: authentic above the ceiling waits for a raise",
            world(),
            peer().frame(1001, &inner(30)),
        )
        .ends(Verdict::AboveCeiling, Action::Drop)
        .slow(SLOW_ABOVE_CEILING),
        dropped(
            "AES-CBC: above the ceiling and not authentic waits for nothing",
            world(),
            {
                let mut frame = peer().frame(1001, &inner(30));
                frame[60] ^= 1;
                frame
            },
            Verdict::IcvBad,
        ),
    ]
}

/// 20, ESP 8, IV 16, text of 1440 with its trailer, ICV 16; 8 more with UDP.
fn sizes() -> Vec<Case> {
    let mut cases = Vec::new();
    for (encap, fits) in [(false, 1438), (true, 1422)] {
        let out = |len: usize| {
            let packet = datagram(64, NEAR_HOST, FAR_HOST, len - 28);
            ethernet(INSIDE_MAC, NEAR_MAC, 0x0800, &packet)
        };
        let inside = |name: &str, len| {
            let name = format!("AES-CBC: {name}, encapsulation {encap}");
            Case::new(name, Program::Inside, World::base(SUITE, false, encap), out(len)).of(CONNECTION)
        };
        cases.push(
            inside("the largest packet", fits)
                .ends(Verdict::EspSealed, Action::Redirect)
                .any_frame()
                .check(move |seen| {
                    let ours = open_ours(&seen.frame, SUITE, None, encap)?;
                    if ours.inner.len() == fits && ours.outer.len() <= 1500 {
                        Ok(())
                    } else {
                        Err(format!("{} octets in {}", ours.inner.len(), ours.outer.len()))
                    }
                }),
        );
        cases.push(
            inside("one octet more is told", fits + 1)
                .ends(Verdict::FragmentNeeded, Action::Transmit)
                .any_frame()
                .check(move |seen| {
                    // ICMP type 3, code 4: the next hop's MTU in octets 6 and 7 (RFC 1191 4).
                    let told = u16::from_be_bytes([seen.frame[14 + 20 + 6], seen.frame[14 + 20 + 7]]);
                    if usize::from(told) == fits {
                        Ok(())
                    } else {
                        Err(format!("told {told}"))
                    }
                }),
        );
    }
    let mut clamped = world();
    clamped.outbound.mss_clamp = MSS_AUTO;
    let syn = |ttl: u8, mss: u16| {
        let mut segment = vec![0; 24];
        segment[12] = 6 << 4;
        segment[13] = 2;
        segment[20..22].copy_from_slice(&[2, 4]);
        segment[22..].copy_from_slice(&mss.to_be_bytes());
        Ip {
            ttl,
            ..Ip::new(NEAR_HOST, FAR_HOST, 6)
        }
        .with(&segment)
    };
    cases.push(
        Case::new(
            "AES-CBC: a SYN announces what fits",
            Program::Inside,
            clamped,
            ethernet(INSIDE_MAC, NEAR_MAC, 0x0800, &syn(64, 1460)),
        )
        .of(CONNECTION)
        .ends(Verdict::EspSealed, Action::Redirect)
        .any_frame()
        .check(|seen| {
            let ours = open_ours(&seen.frame, SUITE, None, false)?;
            let said = u16::from_be_bytes([ours.inner[42], ours.inner[43]]);
            if said == 1398 {
                Ok(())
            } else {
                Err(format!("announced {said}"))
            }
        }),
    );
    cases
}
