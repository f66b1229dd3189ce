//! The picture of the benchmark: a takeover's phases by number of SAs.

use super::Row;
use crate::svg::{ALARM, FAINT, GRID, INK};
use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 92.0;
const BOTTOM: f64 = 286.0;
/// Phases from the bottom up, with their colours.
const PHASES: [(&str, &str, &str); 5] = [
    ("detect", "detect", "#d5dbe1"),
    ("claim", "claim", "#3b6ea5"),
    ("flip", "flip", "#c79a3a"),
    ("announce", "announce", "#8a63a8"),
    ("first_packet", "first packet", "#2f9e77"),
];

/// Draws it.
pub fn draw(rows: &[Row]) -> String {
    let top = rows.iter().map(|r| r.p99_ms).fold(1.0, f64::max) * 1.15;
    let y = |ms: f64| BOTTOM - ms.max(0.0) / top * (BOTTOM - TOP);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"ui-sans-serif, system-ui, \
         'Helvetica Neue', Arial, sans-serif\" font-size=\"12\" fill=\"{INK}\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"10\" fill=\"#ffffff\" stroke=\"{GRID}\"/>\n\
         <text x=\"{LEFT}\" y=\"34\" font-size=\"18\" font-weight=\"600\">From the kill to the first packet, by number of Child SAs</text>\n"
    );
    let mut at = LEFT;
    for (_, label, color) in PHASES {
        let _ = writeln!(
            out,
            "<rect x=\"{at}\" y=\"48\" width=\"11\" height=\"11\" rx=\"2\" fill=\"{color}\"/><text x=\"{}\" y=\"58\">{label}</text>",
            at + 16.0
        );
        at += 34.0 + label.len() as f64 * 7.0;
    }
    let _ = writeln!(out, "<text x=\"{at}\" y=\"58\" fill=\"{ALARM}\">- - p99</text>");
    let step = [10.0, 20.0, 50.0, 100.0, 500.0, 2000.0]
        .into_iter()
        .find(|s| top / s < 8.0)
        .unwrap_or(10_000.0);
    let mut value = 0.0;
    while value <= top {
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{0:.1}\" x2=\"{1}\" y2=\"{0:.1}\" stroke=\"{GRID}\"/>\
             <text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\" fill=\"{FAINT}\" font-size=\"11\">{value} ms</text>",
            y(value),
            WIDTH - RIGHT,
            LEFT - 8.0,
            y(value) + 4.0
        );
        value += step;
    }
    let column = (WIDTH - LEFT - RIGHT) / rows.len().max(1) as f64;
    for (i, row) in rows.iter().enumerate() {
        let (from, width) = (LEFT + column * (i as f64 + 0.25), column * 0.5);
        let mut base = 0.0;
        for (key, _, color) in PHASES {
            let ms = row.phases.get(key).copied().unwrap_or(0.0).max(0.0);
            let _ = writeln!(
                out,
                "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{color}\"/>",
                y(base + ms),
                y(base) - y(base + ms)
            );
            base += ms;
        }
        let middle = from + width / 2.0;
        let _ = writeln!(
            out,
            "<line x1=\"{:.1}\" y1=\"{1:.1}\" x2=\"{2:.1}\" y2=\"{1:.1}\" stroke=\"{ALARM}\" stroke-dasharray=\"4 3\"/>\
             <text x=\"{middle:.1}\" y=\"{3:.1}\" text-anchor=\"middle\" font-size=\"11\">{4:.0} ms</text>\
             <text x=\"{middle:.1}\" y=\"{5:.1}\" text-anchor=\"middle\">{6}</text>",
            from - 8.0,
            y(row.p99_ms),
            from + width + 8.0,
            y(row.p99_ms.max(base)) - 5.0,
            row.p50_ms,
            BOTTOM + 20.0,
            row.sas
        );
    }
    out += "</svg>\n";
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn every_size_has_its_column_and_every_phase_its_part() {
        let row = |sas, p50_ms| Row {
            sas,
            p50_ms,
            p99_ms: p50_ms * 1.2,
            phases: BTreeMap::from([
                ("detect".to_owned(), p50_ms - 4.0),
                ("first_packet".to_owned(), 4.0),
            ]),
            ..Row::default()
        };
        let svg = draw(&[row(10, 100.0), row(100_000, 104.0)]);
        assert!(svg.contains(">100000</text>") && svg.contains(">104 ms</text>"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(draw(&[]).ends_with("</svg>\n"));
    }
}
