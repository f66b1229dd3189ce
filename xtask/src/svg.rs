//! The picture of a takeover: packets per 10 ms around the kill.

use crate::demo::timeline::{AFTER, BEFORE, BIN_NS, Direction, Timeline};
use std::collections::BTreeMap;
use std::fmt::Write;

const WIDTH: f64 = 1080.0;
const HEIGHT: f64 = 470.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
/// Where the axis between both directions is.
const AXIS: f64 = 262.0;
/// Room for the bars of one direction.
const BARS: f64 = 128.0;

/// Text and lines.
pub const INK: &str = "#1f2933";
/// Text that explains.
pub const FAINT: &str = "#7b8794";
/// Lines behind.
pub const GRID: &str = "#e4e7eb";
const OFFERED: &str = "#d5dbe1";
const MEMBER_A: &str = "#3b6ea5";
/// The taker.
pub const MEMBER_B: &str = "#2f9e77";
/// What to look at.
pub const ALARM: &str = "#c8403a";

/// Draws it.
pub fn draw(timeline: &Timeline, phases_ms: &BTreeMap<String, f64>, lost: u64) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"ui-sans-serif, system-ui, \
         'Helvetica Neue', Arial, sans-serif\" font-size=\"12\" fill=\"{INK}\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"10\" fill=\"#ffffff\" stroke=\"{GRID}\"/>"
    );
    let total = phases_ms.get("total").copied().unwrap_or(f64::NAN);
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"34\" font-size=\"18\" font-weight=\"600\">A is killed; B carries the first packet {total:.0} ms later</text>\n\
         <text x=\"{LEFT}\" y=\"54\" fill=\"{FAINT}\">packets per 10 ms; same IKE SAs, same Child SAs, same SPIs; {lost} packets lost</text>"
    );
    legend(&mut out);
    outage(&mut out, timeline);
    let top = scale(timeline);
    axis(&mut out, top);
    bars(&mut out, &timeline.inbound, top, -1.0);
    bars(&mut out, &timeline.outbound, top, 1.0);
    let _ = writeln!(
        out,
        "<line x1=\"{LEFT}\" y1=\"{AXIS}\" x2=\"{}\" y2=\"{AXIS}\" stroke=\"{INK}\"/>",
        WIDTH - RIGHT
    );
    let middle = |y: f64, text: &str| {
        format!(
            "<text transform=\"translate(20 {y}) rotate(-90)\" text-anchor=\"middle\" fill=\"{FAINT}\">{text}</text>"
        )
    };
    out += &middle(AXIS - BARS / 2.0, "decrypted");
    out += &middle(AXIS + BARS / 2.0, "encrypted");
    marks(&mut out, timeline);
    out += "</svg>\n";
    out
}

fn x(offset_ns: f64) -> f64 {
    let span = (BEFORE + AFTER) as f64 * BIN_NS as f64;
    LEFT + (offset_ns + BEFORE as f64 * BIN_NS as f64) / span * (WIDTH - LEFT - RIGHT)
}

fn scale(timeline: &Timeline) -> f64 {
    let directions = [&timeline.inbound, &timeline.outbound];
    // A burst after the outage may tower above all; what is usual counts, and the burst is cut at the edge.
    let mut all: Vec<u32> = directions
        .iter()
        .flat_map(|d| d.offered.iter().copied())
        .filter(|n| *n > 0)
        .collect();
    all.sort_unstable();
    let usual = all.get(all.len() * 9 / 10).copied().unwrap_or(10);
    f64::from(usual.max(4)) * 1.35
}

fn legend(out: &mut String) {
    let entries = [
        (OFFERED, "offered"),
        (MEMBER_A, "carried by A"),
        (MEMBER_B, "carried by B"),
    ];
    let mut at = WIDTH - RIGHT - 300.0;
    for (color, text) in entries {
        let _ = writeln!(
            out,
            "<rect x=\"{at}\" y=\"44\" width=\"11\" height=\"11\" rx=\"2\" fill=\"{color}\"/><text x=\"{}\" y=\"54\">{text}</text>",
            at + 16.0
        );
        at += if text == "offered" { 84.0 } else { 110.0 };
    }
}

fn outage(out: &mut String, timeline: &Timeline) {
    let Some(end) = timeline.phases.iter().find(|p| p.name == "first packet") else {
        return;
    };
    let (from, to) = (x(0.0), x(end.at_ns as f64 - timeline.killed_ns as f64));
    let _ = writeln!(
        out,
        "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{ALARM}\" opacity=\"0.07\"/>",
        AXIS - BARS,
        (to - from).max(0.0),
        BARS * 2.0
    );
}

fn axis(out: &mut String, top: f64) {
    let step = if top > 24.0 { 10.0 } else { 5.0 };
    let mut value = step;
    while value <= top {
        for side in [-1.0, 1.0] {
            let y = AXIS + side * value / top * BARS;
            let _ = writeln!(
                out,
                "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\" stroke=\"{GRID}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{FAINT}\" font-size=\"11\">{value}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                y + 4.0
            );
        }
        value += step;
    }
    for bin in (0..=BEFORE + AFTER).step_by(10) {
        let offset = (bin as f64 - BEFORE as f64) * BIN_NS as f64;
        let at = x(offset);
        let _ = writeln!(
            out,
            "<line x1=\"{at:.1}\" y1=\"{:.1}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"{FAINT}\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{FAINT}\" font-size=\"11\">{} ms</text>",
            AXIS + BARS + 8.0,
            AXIS + BARS + 13.0,
            AXIS + BARS + 28.0,
            offset / 1e6
        );
    }
}

/// `side` is -1 for bars that go up.
fn bars(out: &mut String, direction: &Direction, top: f64, side: f64) {
    let width = (WIDTH - LEFT - RIGHT) / (BEFORE + AFTER) as f64;
    let mut bar = |bin: usize, from: f64, count: u32, color: &str, inset: f64| {
        let height = (f64::from(count) / top * BARS).min(BARS - from);
        if height <= 0.0 {
            return;
        }
        let y = if side < 0.0 {
            AXIS - from - height
        } else {
            AXIS + from
        };
        let _ = writeln!(
            out,
            "<rect x=\"{:.2}\" y=\"{y:.2}\" width=\"{:.2}\" height=\"{height:.2}\" fill=\"{color}\"/>",
            LEFT + bin as f64 * width + inset,
            width - 2.0 * inset
        );
    };
    for bin in 0..BEFORE + AFTER {
        let (a, b) = (direction.by_a[bin], direction.by_b[bin]);
        bar(bin, 0.0, direction.offered[bin], OFFERED, 0.5);
        bar(bin, 0.0, a, MEMBER_A, 1.6);
        bar(bin, f64::from(a) / top * BARS, b, MEMBER_B, 1.6);
    }
}

fn marks(out: &mut String, timeline: &Timeline) {
    let mut marks = vec![("A killed".to_owned(), 0.0, ALARM)];
    for phase in &timeline.phases {
        marks.push((
            phase.name.clone(),
            phase.at_ns as f64 - timeline.killed_ns as f64,
            INK,
        ));
    }
    // Phases that follow within a few milliseconds get their labels one above the other.
    let mut last_end = f64::NEG_INFINITY;
    let mut row = 0;
    for (name, offset, color) in marks {
        let at = x(offset);
        row = if at < last_end { row + 1 } else { 0 };
        let text = if offset == 0.0 {
            name
        } else {
            format!("{name} {:.1} ms", offset / 1e6)
        };
        last_end = at + 8.0 + text.len() as f64 * 6.3;
        let y = 76.0 + f64::from(row) * 14.0;
        let _ = writeln!(
            out,
            "<line x1=\"{at:.1}\" y1=\"{:.1}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"{color}\" stroke-dasharray=\"3 3\"/>\
             <text x=\"{:.1}\" y=\"{y:.1}\" fill=\"{color}\" font-size=\"11\">{text}</text>",
            y + 4.0,
            AXIS + BARS,
            at + 4.0
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::timeline::Phase;

    #[test]
    fn a_picture_has_every_phase_and_is_well_formed() {
        let direction = Direction {
            offered: vec![10; 100],
            by_a: vec![5; 100],
            by_b: vec![0; 100],
        };
        let phases = ["suspected", "flipped", "first packet"].iter().zip(1u64..);
        let phases = phases
            .map(|(name, i)| Phase {
                name: (*name).into(),
                at_ns: 1_000_000_000 + i * 1_000_000,
            })
            .collect();
        let timeline = Timeline {
            killed_ns: 1_000_000_000,
            inbound: direction.clone(),
            outbound: direction,
            phases,
        };
        let svg = draw(&timeline, &BTreeMap::from([("total".into(), 3.0)]), 7);
        for text in [
            "A killed",
            "suspected 1.0 ms",
            "first packet 3.0 ms",
            "7 packets lost",
            "3 ms later",
        ] {
            assert!(svg.contains(text), "{text}");
        }
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(svg.ends_with("</svg>\n"));
    }
}
