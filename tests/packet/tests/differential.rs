//! datapath against an independent implementation of ESP, scapy's: what one seals the other opens, and to the same octets.
//!
//! All suites, ESN on and off, every padding, in UDP or not, IPv4 and IPv6 inside and outside, both directions; in transport mode what is
//! sealed behind options and extension headers. The Python that
//! has scapy is named by `ESPALIER_SCAPY` (`cargo xtask setup` makes one); without it the test is skipped. `ESPALIER_SEED` repeats a
//! run, `ESPALIER_ROUNDS` sets the rounds of each combination.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use maps_schema::sad::{SUITE_AES128_CBC_SHA256, SUITE_AES128_GCM, SUITE_CBC, SUITE_CHACHA20_POLY1305};
use maps_schema::verdict::Verdict;
use test_packet::case::{Action, Case, Program};
use test_packet::cbc;
use test_packet::frames::{Ip, Ip6, ethernet, extensions, udp};
use test_packet::host;
use test_packet::world::*;

/// Rounds of each combination and direction.
const ROUNDS: usize = 6;

struct Scapy {
    process: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Scapy {
    fn start() -> Option<Self> {
        let Some(python) = std::env::var_os("ESPALIER_SCAPY") else {
            eprintln!("skipped: ESPALIER_SCAPY names no Python that has scapy");
            return None;
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scapy/esp.py");
        let mut process = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python starts");
        let to = process.stdin.take();
        let from = BufReader::new(process.stdout.take().expect("its output"));
        Some(Self { process, to, from })
    }

    fn ask(&mut self, line: &str) -> Result<String, String> {
        let to = self.to.as_mut().ok_or("closed")?;
        writeln!(to, "{line}").map_err(|e| e.to_string())?;
        let mut answer = String::new();
        self.from.read_line(&mut answer).map_err(|e| e.to_string())?;
        match answer.trim_end().split_once(' ') {
            Some(("ok", rest)) => Ok(rest.to_owned()),
            _ => Err(answer),
        }
    }
}

impl Drop for Scapy {
    fn drop(&mut self) {
        // Its input ends, and so does it.
        self.to = None;
        let _ = self.process.wait();
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn octets(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

#[derive(Clone, Copy, Debug)]
struct How {
    suite: u8,
    esn: bool,
    encap: bool,
    outer_v6: bool,
    inner_v6: bool,
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hexadecimal"))
        .collect()
}

/// A datagram with `len` octets behind UDP's header; its TTL.
fn inner(how: How, inward: bool, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let (near, far) = if inward {
        (FAR_HOST, NEAR_HOST)
    } else {
        (NEAR_HOST, FAR_HOST)
    };
    let datagram = udp(1000, 2000, payload);
    if how.inner_v6 {
        let (near, far) = if inward {
            (FAR_HOST_V6, NEAR_HOST_V6)
        } else {
            (NEAR_HOST_V6, FAR_HOST_V6)
        };
        let ip = Ip6 {
            ttl,
            ..Ip6::new(near, far, 17)
        };
        return ip.with_checksum(&datagram, 6);
    }
    Ip {
        ttl,
        ..Ip::new(near, far, 17)
    }
    .with(&datagram)
}

fn world(how: How, seq: u64) -> World {
    let world = if how.outer_v6 {
        World::over_v6(how.suite, how.esn, how.encap)
    } else {
        World::base(how.suite, how.esn, how.encap)
    };
    next_is(world, seq)
}

/// The world where the next number, both ways, is this one.
fn next_is(mut world: World, seq: u64) -> World {
    world.inbound.limits = cell(1 << 39, 1000, 0, EPOCH);
    world.outbound.limits = world.inbound.limits;
    world.window.edge = seq - 1;
    world.window.above_floor = 1;
    world.counters.seq = seq - 1;
    world
}

/// A number: with ESN of more than 32 bits, at times at the edge to the next high half.
fn number(how: How, random: &mut Random) -> u64 {
    let low = match random.below(4) {
        0 => 1,
        1 => 0x7fff_fff0,
        _ => 1 + random.below(0x7fff_0000),
    };
    if !how.esn {
        return low;
    }
    match random.below(4) {
        0 => (1 << 32) + random.below(3),
        1 => u64::from(u32::MAX),
        _ => random.below(100) << 32 | low,
    }
}

/// scapy seals, datapath opens.
fn inward(
    scapy: &mut Scapy,
    how: How,
    random: &mut Random,
    payload: usize,
    extra: usize,
) -> Result<(), String> {
    let seq = number(how, random);
    let payload = random.octets(payload);
    let sent = inner(how, true, 64, &payload);
    let expected = inner(how, true, 63, &payload);
    let block = block_of(how.suite);
    let least = (sent.len() + 2).next_multiple_of(block) - sent.len() - 2;
    let padding = least + block * (extra % ((255 - least) / block + 1));
    let iv = random.octets(if how.suite < SUITE_CBC { 8 } else { 16 });
    let frame = scapy.ask(&format!(
        "seal {} {} {} {} {seq} {} {} {} {padding} {} {} {}",
        how.suite,
        hex(&key_octets(how.suite, IN)),
        hex(&SALT),
        SPI_IN,
        u8::from(how.esn),
        hex(&iv),
        if how.inner_v6 { 41 } else { 4 },
        hex(&sent),
        if how.outer_v6 { 6 } else { 4 },
        u8::from(how.encap),
    ))?;
    let frame = unhex(&frame);
    let case = Case::new("inward", Program::Steer, world(how, seq), frame.clone());
    let seen = host::run(&case);
    if seen.verdict.map(|v| v.1) != Some(Verdict::EspOpened) || seen.action != Action::Redirect {
        return Err(format!(
            "{:?} with {padding} octets of padding, number {seq}",
            seen.verdict
        ));
    }
    if seen.frame.get(14..) != Some(&expected[..]) {
        return Err(format!(
            "opened to other octets, number {seq}, {padding} octets of padding"
        ));
    }
    if seen.window.edge != seq {
        return Err(format!("number {seq} was taken for {}", seen.window.edge));
    }
    // Not a single bit may differ.
    let mut altered = frame;
    let esp_at = 14 + if how.outer_v6 { 40 } else { 20 } + if how.encap { 8 } else { 0 };
    let at = esp_at + 8 + random.below((altered.len() - esp_at - 8) as u64) as usize;
    altered[at] ^= 1 << random.below(8);
    let seen = host::run(&Case::new("altered", Program::Steer, world(how, seq), altered));
    if seen.verdict.map(|v| v.1) != Some(Verdict::IcvBad) {
        return Err(format!("octet {at} altered: {:?}", seen.verdict));
    }
    Ok(())
}

/// datapath seals, scapy opens, and seals to the same octets.
fn outward(scapy: &mut Scapy, how: How, random: &mut Random, payload: usize) -> Result<(), String> {
    let seq = number(how, random);
    let payload = random.octets(payload);
    let sent = inner(how, false, 64, &payload);
    let expected = inner(how, false, 63, &payload);
    let next = if how.inner_v6 { 41 } else { 4 };
    opened_by(scapy, how, world(how, seq), &sent, (next, &expected))
}

/// As [`outward`] in transport mode, with options of IPv4 or extension headers of IPv6.
fn behind_options(scapy: &mut Scapy, how: How, random: &mut Random, payload: usize) -> Result<(), String> {
    const GRE: u8 = 47;
    let world = World::transport(how.suite, how.esn, how.encap, how.outer_v6);
    let world = next_is(world, number(how, random));
    let payload = random.octets(payload);
    if !how.outer_v6 {
        // No operation, router alert (RFC 2113), and a route to record, of any length.
        let mut options = [&[1, 1, 1, 1][..], &[0x94, 4, 0, 0], &[]][random.below(3) as usize].to_vec();
        let addresses = random.below(9) as usize;
        options.extend([7, 3 + 4 * addresses as u8, 4]);
        options.extend(random.octets(4 * addresses));
        options.push(0);
        options.truncate(40);
        let sent = Ip::new(CLUSTER, PEER, GRE).with_options(&options, &payload);
        return opened_by(scapy, how, world, &sent, (GRE, &payload));
    }
    // Hop-by-hop and destination options of padding alone, and a routing header that is at its end.
    let padding = |octets: u64| [&[1, octets as u8][..], &vec![0; octets as usize]].concat();
    let (way, before, behind) = (
        padding(4 + 8 * random.below(2)),
        padding(4),
        padding(4 + 8 * random.below(2)),
    );
    let route = [&[2, 0, 0, 0, 0, 0][..], &random.octets(16)].concat();
    let all: [(u8, &[u8]); 4] = [(0, &way), (60, &before), (43, &route), (60, &behind)];
    let chosen = 1 + random.below(15);
    let routed = chosen & 4 != 0;
    let (kept, sealed): (Vec<_>, Vec<_>) = (0..4)
        .filter(|at| chosen >> at & 1 != 0)
        .partition(|at| *at != 3 && (*at != 1 || routed));
    let pick = |places: &[usize]| places.iter().map(|at| all[*at]).collect::<Vec<_>>();
    let (next, chain) = extensions(&pick(&sealed), GRE);
    let text = [chain, payload].concat();
    let (first, chain) = extensions(&pick(&kept), next);
    let sent = Ip6::new(CLUSTER_V6, PEER_V6, first).with(&[&chain[..], &text].concat());
    opened_by(scapy, how, world, &sent, (next, &text))
}

/// scapy opens the packet that datapath makes of `sent`, and to these octets and next header; sealed by scapy they are the same packet.
fn opened_by(
    scapy: &mut Scapy,
    how: How,
    world: World,
    sent: &[u8],
    (next_header, expected): (u8, &[u8]),
) -> Result<(), String> {
    let seq = world.counters.seq + 1;
    let ethertype = if sent[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
    let frame = ethernet(INSIDE_MAC, NEAR_MAC, ethertype, sent);
    let case = Case::new("outward", Program::Inside, world, frame).on(INSIDE_IFINDEX);
    let seen = host::run(&case);
    if seen.verdict.map(|v| v.1) != Some(Verdict::EspSealed) {
        return Err(format!("{:?}, number {seq}", seen.verdict));
    }
    let answer = scapy.ask(&format!(
        "open {} {} {} {seq} {} {}",
        how.suite,
        hex(&key_octets(how.suite, OUT)),
        hex(&SALT),
        u8::from(how.esn),
        hex(&seen.frame),
    ))?;
    let fields: Vec<&str> = answer.split(' ').collect();
    let [next, iv, text] = fields[..] else {
        return Err(answer);
    };
    if next != next_header.to_string() {
        return Err(format!("next header {next}"));
    }
    // Member, epoch and number (docs/ARCHITECTURE.md); with AES-CBC the IV is made of them.
    let wanted = u64::from(ME) << 56 | u64::from(EPOCH) << 40 | seq;
    let iv = unhex(iv);
    let nonce = match <[u8; cbc::BLOCK]>::try_from(&iv[..]) {
        Ok(mut block) => {
            cbc::Keys::of(how.suite, OUT).decrypt([0; cbc::BLOCK], &mut block);
            u128::from_be_bytes(block) == u128::from(wanted) << 64
        }
        Err(_) => iv == wanted.to_be_bytes(),
    };
    if !nonce {
        return Err(format!("IV {iv:02x?} where one of {wanted:016x} was to come"));
    }
    if unhex(text) != *expected {
        return Err(format!("scapy opens other octets, number {seq}"));
    }
    Ok(())
}

/// What text is a multiple of.
fn block_of(suite: u8) -> usize {
    if suite < SUITE_CBC { 4 } else { cbc::BLOCK }
}

/// `ESPALIER_SEED`, or another one each time.
fn seed() -> u64 {
    of("ESPALIER_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |d| d.as_nanos() as u64)
    })
}

fn of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn combinations() -> Vec<How> {
    let mut all = Vec::new();
    for (suite, _) in SUITES {
        for bits in 0..16u8 {
            all.push(How {
                suite,
                esn: bits & 1 != 0,
                encap: bits & 2 != 0,
                outer_v6: bits & 4 != 0,
                inner_v6: bits & 8 != 0,
            });
        }
    }
    all
}

#[test]
fn scapy_and_datapath_open_what_the_other_one_seals() {
    let Some(mut scapy) = Scapy::start() else { return };
    let seed = seed();
    let rounds = of("ESPALIER_ROUNDS").unwrap_or(ROUNDS as u64);
    let mut random = Random(seed);
    let mut compared = 0;
    for how in combinations() {
        for round in 0..rounds {
            // All remainders of the length that padding makes up for, and lengths around the ciphers' blocks.
            let payload = (random.below(300) * 4 + round % 4) as usize;
            let extra = random.below(63) as usize;
            inward(&mut scapy, how, &mut random, payload, extra)
                .unwrap_or_else(|e| panic!("seed {seed}, {how:?}, {payload} octets, inward: {e}"));
            outward(&mut scapy, how, &mut random, payload)
                .unwrap_or_else(|e| panic!("seed {seed}, {how:?}, {payload} octets, outward: {e}"));
            compared += 2;
        }
    }
    eprintln!("{compared} packets, seed {seed}");
}

#[test]
fn scapy_opens_what_is_sealed_behind_options_and_extension_headers() {
    let Some(mut scapy) = Scapy::start() else { return };
    let seed = seed();
    let rounds = of("ESPALIER_ROUNDS").unwrap_or(ROUNDS as u64);
    let mut random = Random(seed);
    for how in combinations().into_iter().filter(|how| !how.inner_v6) {
        for _ in 0..rounds {
            let payload = random.below(1200) as usize;
            behind_options(&mut scapy, how, &mut random, payload)
                .unwrap_or_else(|e| panic!("seed {seed}, {how:?}, {payload} octets: {e}"));
        }
    }
}

#[test]
fn every_length_of_padding_is_opened() {
    let Some(mut scapy) = Scapy::start() else { return };
    let mut random = Random(1);
    for suite in [SUITE_CHACHA20_POLY1305, SUITE_AES128_GCM, SUITE_AES128_CBC_SHA256] {
        let block = block_of(suite);
        for padding in 0..=255usize {
            let how = How {
                suite,
                esn: padding % 2 == 1,
                encap: false,
                outer_v6: false,
                inner_v6: false,
            };
            // A payload that needs `padding` modulo the block: 28 octets of headers and 2 of trailer.
            let payload = 48 + (block - (padding + 30 + 48) % block) % block;
            inward(&mut scapy, how, &mut random, payload, padding / block)
                .unwrap_or_else(|e| panic!("{how:?}, {padding} octets of padding: {e}"));
        }
    }
}
