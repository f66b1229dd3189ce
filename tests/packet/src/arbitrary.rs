//! Any octets as a frame, in the world of a row of the tables: what holds for every frame that there is.
//!
//! A fuzzer (`cargo xtask fuzz frame`) and the tests with mutated frames share it.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use maps_schema::event::SLOW_FRAME_MAX;
use maps_schema::sad::{SA_ESN, SA_LENIENT, SA_TRANSPORT, SA_UDP_ENCAP};
use maps_schema::verdict::{Class, Verdict};

use crate::case::{Action, Case, Observed, Program};
use crate::frames::{Sealer, ethernet, open_sealed};
use crate::world::*;
use crate::{cases, host};

/// Octets before the frame's: two that name the row, the form, two of the sequence number, the next header.
pub const PREFIX: usize = 6;
/// The octets are the frame.
pub const FORM_RAW: u8 = 0;
/// The octets are a packet that the peer has sealed.
pub const FORM_SEALED: u8 = 1;
/// The octets are what the peer has sealed, with a trailer of their own.
pub const FORM_TEXT: u8 = 2;
/// The octets are a packet in a frame for the interface of the row.
pub const FORM_PACKET: u8 = 3;
/// All forms.
const FORMS: u8 = 3;
/// The frame arrives on the second CPU.
const SECOND_CPU: u8 = 0x10;
/// The first buffer is short.
const SHORT_BUFFER: u8 = 0x20;

/// Names a row in two octets: the rows that are there keep their names when others come.
pub fn name_of(case: &Case) -> [u8; 2] {
    let text = format!("{:?} {}", case.program, case.name);
    // FNV-1a.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
        (hash ^ u64::from(octet)).wrapping_mul(0x100_0000_01b3)
    });
    ((hash ^ hash >> 32) as u16).to_be_bytes()
}

fn rows() -> &'static BTreeMap<[u8; 2], Case> {
    static ROWS: OnceLock<BTreeMap<[u8; 2], Case>> = OnceLock::new();
    ROWS.get_or_init(|| {
        let all = cases::all().into_iter();
        all.filter(|case| matches!(case.program, Program::Steer | Program::Inside))
            .map(|case| (name_of(&case), case))
            .collect()
    })
}

/// The row with this name, or the next one.
fn row(name: [u8; 2]) -> Option<&'static Case> {
    let rows = rows();
    rows.range(name..)
        .next()
        .or_else(|| rows.first_key_value())
        .map(|(_, case)| case)
}

/// How the peer of this world seals, if it can.
fn sealer(world: &World, next_header: u8) -> Option<Sealer> {
    let sa = &world.inbound;
    SUITES
        .iter()
        .any(|(suite, _)| *suite == sa.suite)
        .then(|| Sealer {
            suite: sa.suite,
            esn: sa.flags & SA_ESN != 0,
            encap: sa.flags & SA_UDP_ENCAP != 0,
            spi: SPI_IN,
            next_header,
            v6: world.outbound.outer_dst == PEER_V6,
        })
}

/// The frame that the octets behind [`PREFIX`] stand for.
fn frame_of(case: &Case, form: u8, number: u16, next_header: u8, octets: &[u8]) -> Option<Vec<u8>> {
    // Octets that IPv4 and ESP have length fields for.
    if octets.len() > SLOW_FRAME_MAX {
        return None;
    }
    let v6 = octets.first().is_some_and(|first| first >> 4 == 6);
    let number = u64::from(number) + case.world.window.edge.saturating_sub(64);
    match form & FORMS {
        FORM_RAW => Some(octets.to_vec()),
        FORM_PACKET => {
            let port = case
                .world
                .ports()
                .into_iter()
                .find(|port| port.ifindex == case.ifindex)?;
            let ethertype = if v6 { 0x86dd } else { 0x0800 };
            Some(ethernet(port.mac, PEER_MAC, ethertype, octets))
        }
        form => {
            let next_header = match next_header {
                0 if v6 => 41,
                0 => 4,
                other => other,
            };
            let sealer = sealer(&case.world, next_header)?;
            if form == FORM_SEALED {
                return Some(sealer.frame(number, octets));
            }
            let block = if sealer.suite < maps_schema::sad::SUITE_CBC {
                1
            } else {
                16
            };
            let whole = octets.len() - octets.len() % block;
            (whole > 0).then(|| sealer.frame_of(&sealer.esp_of_text(number, octets[..whole].to_vec())))
        }
    }
}

/// Any octets: [`PREFIX`], then a frame or what it is made of.
///
/// # Panics
/// A rule does what it never must.
pub fn frame(octets: &[u8]) {
    let Some(([a, b, form, high, low, next_header], rest)) = octets.split_first_chunk::<PREFIX>() else {
        return;
    };
    let Some(row) = row([*a, *b]) else { return };
    let number = u16::from_be_bytes([*high, *low]);
    let Some(frame) = frame_of(row, *form, number, *next_header, rest) else {
        return;
    };
    if frame.is_empty() || frame.len() > SLOW_FRAME_MAX {
        return;
    }
    let mut case = Case::new(row.name.clone(), row.program, row.world.clone(), frame)
        .on(row.ifindex)
        .on_cpu(if form & SECOND_CPU != 0 { 1 } else { row.cpu });
    if form & SHORT_BUFFER != 0 {
        case = case.split_at(64 + usize::from(number % 64));
    }
    let (_, problems) = judge(&case);
    assert!(
        problems.is_empty(),
        "{} ({:?}, form {form:#x}): {}\n{:02x?}",
        case.name,
        case.program,
        problems.join("; "),
        case.frame
    );
}

/// A frame's verdict, and what is wrong with what the programs did with it, whatever it is: it ends in one verdict, which fits the
/// action; what was not carried has left the SA alone; what was opened once is not opened again; what was sealed opens at the peer.
pub fn judge(case: &Case) -> (Option<Verdict>, Vec<String>) {
    let seen = host::run(case);
    let mut problems = Vec::new();
    let Some((_, verdict)) = seen.verdict else {
        return (None, vec!["no verdict".to_owned()]);
    };
    if verdict == Verdict::InternalError {
        problems.push("an internal error".to_owned());
        return (Some(verdict), problems);
    }
    if !fits(verdict.class(), seen.action) {
        problems.push(format!("{verdict:?} with action {:?}", seen.action));
    }
    problems.extend(touched(case, &seen));
    problems.extend(opened_again(case, &seen, verdict));
    problems.extend(not_opened_by_the_peer(case, &seen, verdict));
    (Some(verdict), problems)
}

/// Whether an action is one of those that a class of verdicts has.
fn fits(class: Class, action: Action) -> bool {
    match class {
        Class::Answered | Class::SecondHop => matches!(action, Action::Redirect | Action::Transmit),
        // What was sealed may leave through the host's stack.
        Class::Carried => matches!(action, Action::Redirect | Action::Transmit | Action::Pass),
        Class::Passed => action == Action::Pass,
        Class::Slow | Class::Dropped => action == Action::Drop,
    }
}

/// Whether a packet with this verdict may have changed a window or a counter: it was authentic, or it was sealed.
pub fn may_change(verdict: Verdict) -> bool {
    use Verdict::{
        BelowTakeoverFloor, EspOpened, EspOpenedLocal, EspSealed, LeaseExhausted, OpenedLenient, OuterCut,
        PathTooSmall, PiecesToStack, SlowPathFull, TimeExceededFar, TooBig, TtlExceeded,
    };
    matches!(
        verdict,
        EspOpened
            | EspOpenedLocal
            | PiecesToStack
            | OpenedLenient
            | EspSealed
            | OuterCut
            | PathTooSmall
            | BelowTakeoverFloor
            | TtlExceeded
            | TimeExceededFar
            | LeaseExhausted
            // Sealed, and then too long for the slow path.
            | SlowPathFull
            | TooBig
    )
}

/// What is wrong with the SA after a packet that was not carried.
pub fn touched(case: &Case, seen: &Observed) -> Option<String> {
    let (_, verdict) = seen.verdict?;
    // A window takes notice of a new epoch, or of a new SA, with the first packet.
    let prepared = case.world.window.floor_epoch == u32::from(case.world.epoch)
        && case.world.window.spi == case.world.inbound.spi;
    if may_change(verdict) || !prepared {
        return None;
    }
    let (before, after) = (&case.world.counters, &seen.counters);
    if seen.window != case.world.window {
        return Some(format!("{verdict:?} changed the window to {:?}", seen.window));
    }
    (after != before).then(|| format!("{verdict:?} changed the counters to {after:?}"))
}

/// Verdicts of packets that went on to where they were sent.
fn was_opened(verdict: Verdict) -> bool {
    matches!(
        verdict,
        Verdict::EspOpened | Verdict::EspOpenedLocal | Verdict::OpenedLenient
    )
}

/// The same frame once more, to the window as it is now.
fn opened_again(case: &Case, seen: &Observed, verdict: Verdict) -> Option<String> {
    if !was_opened(verdict) || case.world.inbound.flags & SA_LENIENT != 0 || case.program != Program::Steer {
        return None;
    }
    let mut world = case.world.clone();
    world.window = seen.window;
    for (own, (window, _)) in world.own.iter_mut().zip(&seen.own) {
        if let Some(own) = own {
            own.window = *window;
        }
    }
    let mut again = Case::new(case.name.clone(), case.program, world, case.frame.clone())
        .on(case.ifindex)
        .on_cpu(case.cpu);
    again.first_buffer = case.first_buffer;
    let (_, second) = host::run(&again).verdict?;
    was_opened(second).then(|| format!("{verdict:?}, and once more {second:?}"))
}

/// A packet that was sealed by the SA that all CPUs use: the peer's provider opens it, and it has the next number.
fn not_opened_by_the_peer(case: &Case, seen: &Observed, verdict: Verdict) -> Option<String> {
    let world = &case.world;
    let shared = world.own.iter().all(Option::is_none);
    if verdict != Verdict::EspSealed || !shared || seen.action != Action::Redirect {
        return None;
    }
    let sa = &world.outbound;
    let number = seen.counters.seq;
    if number <= world.counters.seq {
        return Some(format!("sealed, and the last number is {number}"));
    }
    // A frame for a VLAN has its tag, and not every row has the ports that the peer's side is written for.
    let tagged = seen.frame.get(12..14) == Some(&[0x81, 0]);
    let usual = sa.encap_ports == [4500, 4500] && sa.spi == SPI_OUT;
    if tagged || !usual {
        return None;
    }
    let esn_high = (sa.flags & SA_ESN != 0).then_some((number >> 32) as u32);
    let encap = sa.flags & SA_UDP_ENCAP != 0;
    match open_sealed(sa.spi, &seen.frame, sa.suite, esn_high, encap) {
        Err(error) => Some(format!("sealed, but the peer says: {error}")),
        Ok((opened, _)) if opened.seq_low != number as u32 => {
            Some(format!("sealed with number {}, not {number}", opened.seq_low))
        }
        Ok((opened, next)) => {
            let version = opened.inner.first().map(|first| first >> 4);
            let fits =
                sa.flags & SA_TRANSPORT != 0 || matches!((next, version), (4, Some(4)) | (41, Some(6)));
            (!fits).then(|| format!("sealed as protocol {next}: {:02x?}", opened.inner))
        }
    }
}
