//! The picture of many takeovers: how often each time.

use crate::svg::{ALARM, FAINT, GRID, INK, MEMBER_B};
use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 76.0;
const BOTTOM: f64 = 252.0;
/// Width of a bin is one of these, ms: the smallest that needs no more than [`BINS_MAX`].
const BIN_MS: [f64; 8] = [5.0, 10.0, 20.0, 50.0, 100.0, 250.0, 1000.0, 5000.0];
const BINS_MAX: f64 = 40.0;

/// Draws it. Times are milliseconds from the kill to the first packet.
pub fn draw(times: &[f64], p50: Option<f64>, p99: Option<f64>) -> String {
    let most = times.iter().copied().fold(0.0, f64::max);
    let bin = BIN_MS
        .into_iter()
        .find(|b| most / b < BINS_MAX)
        .unwrap_or(30_000.0);
    let bins = (most / bin) as usize + 1;
    let mut counts = vec![0u32; bins];
    for time in times {
        counts[((time / bin) as usize).min(bins - 1)] += 1;
    }
    let top = f64::from(counts.iter().copied().max().unwrap_or(0).max(1));
    let x = |ms: f64| LEFT + ms / (bins as f64 * bin) * (WIDTH - LEFT - RIGHT);
    let y = |count: f64| BOTTOM - count / top * (BOTTOM - TOP);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"ui-sans-serif, system-ui, \
         'Helvetica Neue', Arial, sans-serif\" font-size=\"12\" fill=\"{INK}\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"10\" fill=\"#ffffff\" stroke=\"{GRID}\"/>\n\
         <text x=\"{LEFT}\" y=\"34\" font-size=\"18\" font-weight=\"600\">{} takeovers: from the kill to the first packet</text>\n\
         <text x=\"{LEFT}\" y=\"54\" fill=\"{FAINT}\">takeovers per {bin} ms</text>\n",
        times.len()
    );
    for (i, count) in counts.iter().enumerate().filter(|(_, c)| **c > 0) {
        let (from, to) = (x(i as f64 * bin), x((i + 1) as f64 * bin));
        let height = BOTTOM - y(f64::from(*count));
        let _ = writeln!(
            out,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{MEMBER_B}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{FAINT}\" font-size=\"11\">{count}</text>",
            from + 0.5,
            BOTTOM - height,
            to - from - 1.0,
            (from + to) / 2.0,
            BOTTOM - height - 4.0
        );
    }
    let _ = writeln!(
        out,
        "<line x1=\"{LEFT}\" y1=\"{BOTTOM}\" x2=\"{}\" y2=\"{BOTTOM}\" stroke=\"{INK}\"/>",
        WIDTH - RIGHT
    );
    let every = (bins / 10).max(1);
    for i in (0..=bins).step_by(every) {
        let at = x(i as f64 * bin);
        let _ = writeln!(
            out,
            "<line x1=\"{at:.1}\" y1=\"{BOTTOM}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"{FAINT}\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{FAINT}\" font-size=\"11\">{} ms</text>",
            BOTTOM + 5.0,
            BOTTOM + 20.0,
            i as f64 * bin
        );
    }
    for (name, value, row) in [("p50", p50, 0.0), ("p99", p99, 1.0)] {
        if let Some(ms) = value {
            let at = x(ms);
            let _ = writeln!(
                out,
                "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{BOTTOM}\" stroke=\"{ALARM}\" stroke-dasharray=\"3 3\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{ALARM}\" font-size=\"11\" text-anchor=\"end\">{name} {ms:.0} ms</text>",
                at - 4.0,
                TOP + row * 14.0
            );
        }
    }
    out += "</svg>\n";
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_takeover_is_in_a_bar_and_the_picture_is_well_formed() {
        let svg = draw(&[101.0, 104.0, 131.0, 640.0], Some(104.0), Some(640.0));
        assert!(svg.contains("4 takeovers") && svg.contains("p99 640 ms"));
        assert!(svg.contains("takeovers per 20 ms"));
        assert_eq!(svg.matches(&format!("fill=\"{MEMBER_B}\"")).count(), 3);
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(draw(&[], None, None).ends_with("</svg>\n"));
    }
}
