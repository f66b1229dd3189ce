//! Frames of the table with octets changed, cut or doubled: every one ends in one verdict of the list, no rule panics, and no
//! length that was checked once turns out to be wrong later (which would be an internal error). A packet that is not carried
//! leaves the SA as it was. The kernel's programs do the same as the host's rules, and count one verdict by one.

use maps_schema::event::SLOW_FRAME_MAX;
use maps_schema::verdict::Verdict;
use test_packet::arbitrary::{judge, touched};
use test_packet::case::{Case, Observed, Program};
use test_packet::kernel::Kernel;
use test_packet::{cases, host};

/// Mutations of each frame.
const EACH: usize = 60;

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

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn mutate(&mut self, frame: &mut Vec<u8>) {
        // Most of what rules look at is in the first octets.
        let front = frame.len().min(110);
        match self.below(8) {
            0 => frame.truncate(self.below(frame.len() + 1)),
            1 => {
                let more = self.below(64);
                frame.extend((0..more).map(|i| i as u8));
            }
            2 if front > 8 => {
                let (from, to) = (self.below(front - 8), self.below(front - 8));
                let piece: [u8; 8] = frame[from..from + 8].try_into().expect("eight octets");
                frame[to..to + 8].copy_from_slice(&piece);
            }
            3 | 4 if front > 0 => {
                // Small numbers, and those next to a power of two: lengths, header numbers, hop limits.
                let odd = [0, 1, 2, 4, 6, 41, 43, 44, 50, 58, 60, 127, 128, 135, 254, 255];
                frame[self.below(front)] = odd[self.below(odd.len())];
            }
            _ if front > 0 => frame[self.below(front)] ^= 1 << self.below(8),
            _ => {}
        }
    }
}

fn seed() -> u64 {
    let given = std::env::var("ESPALIER_SEED").ok().and_then(|s| s.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |d| d.as_nanos() as u64)
    });
    eprintln!("ESPALIER_SEED={seed}");
    seed
}

#[test]
fn the_kernel_does_with_mutated_frames_what_the_host_does() {
    /// Mutations of each frame, in the kernel.
    const FEW: usize = 1;
    if std::env::var_os("ESPALIER_BPF_OBJECT")
        .or_else(|| std::env::var_os("ESPALIER_OBJECT"))
        .is_none()
    {
        eprintln!("skipped: neither ESPALIER_BPF_OBJECT nor ESPALIER_OBJECT names a program object");
        return;
    }
    let seed = seed();
    let mut random = Random(seed);
    let mut kernel = Kernel::load().expect("programs and maps");
    for case in cases::all() {
        if !matches!(case.program, Program::Steer | Program::Inside) {
            continue;
        }
        for _ in 0..FEW {
            let mut frame = case.frame.clone();
            for _ in 0..=random.below(3) {
                random.mutate(&mut frame);
            }
            // The kernel wants an Ethernet header, and room for its own data on a page.
            if frame.len() < 14 || frame.len() > 3000 {
                continue;
            }
            let mutated = Case::new(case.name.clone(), case.program, case.world.clone(), frame.clone())
                .on(case.ifindex);
            let host = host::run(&mutated);
            // More than one verdict, or one that moved by more than one, is an error of the run.
            let seen = kernel
                .run(&mutated)
                .unwrap_or_else(|e| panic!("seed {seed}, {}: {e:#} for {frame:02x?}", case.name));
            let told = |o: &Observed| {
                let kinds = o.events.iter().map(|e| e.0).collect::<Vec<_>>();
                let slow = o.slow.iter().map(|s| s.0).collect::<Vec<_>>();
                (o.verdict, o.action, o.frame.clone(), kinds, slow)
            };
            assert_eq!(
                told(&seen),
                told(&host),
                "seed {seed}, {}: {frame:02x?}",
                case.name
            );
            if let Some(problem) = touched(&mutated, &seen) {
                panic!("seed {seed}, {}: {problem} for {frame:02x?}", case.name);
            }
        }
    }
}

#[test]
fn every_mutated_frame_ends_in_a_verdict() {
    let seed = seed();
    let mut random = Random(seed);
    let mut seen = std::collections::BTreeSet::new();
    for case in cases::all() {
        // In the cpumap a packet of another CPU's SA is an internal error: `steer` does not send it there.
        if !matches!(case.program, Program::Steer | Program::Inside) {
            continue;
        }
        for _ in 0..EACH {
            let mut frame = case.frame.clone();
            for _ in 0..=random.below(3) {
                random.mutate(&mut frame);
            }
            if frame.is_empty() || frame.len() > SLOW_FRAME_MAX {
                continue;
            }
            let mutated = Case::new(case.name.clone(), case.program, case.world.clone(), frame.clone())
                .on(case.ifindex);
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| judge(&mutated)));
            let (verdict, problems) =
                outcome.unwrap_or_else(|_| panic!("seed {seed}, {}: {frame:02x?}", case.name));
            assert!(
                problems.is_empty(),
                "seed {seed}, {}: {} for {frame:02x?}",
                case.name,
                problems.join("; ")
            );
            seen.extend(verdict);
        }
    }
    // What the mutations reach, so that a change of the table that makes them idle is noticed.
    for verdict in [
        Verdict::Malformed,
        Verdict::IcvBad,
        Verdict::InnerExtension,
        Verdict::OuterExtension,
        Verdict::StackedVlan,
        Verdict::NeighbourAnswered,
        Verdict::EspSealed,
    ] {
        assert!(
            seen.contains(&verdict),
            "seed {seed}: {verdict:?} was never reached"
        );
    }
}
