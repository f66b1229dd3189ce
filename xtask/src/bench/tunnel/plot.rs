//! The picture: one stream of TCP, and UDP packets by size, through each system.

use super::Row;
use crate::svg::{FAINT, GRID, INK};
use std::fmt::Write;

const WIDTH: f64 = 760.0;
const BAR: f64 = 18.0;
const LEFT: f64 = 250.0;
const RIGHT: f64 = 110.0;

/// Colour of a system.
fn color(system: &str) -> &'static str {
    match system {
        "espalier" => "#2f9e77",
        "strongswan" => "#3b6ea5",
        "plain" => "#d5dbe1",
        _ => "#c79a3a",
    }
}

/// Draws it.
pub fn draw(rows: &[Row]) -> String {
    let mut tests: Vec<&str> = Vec::new();
    for row in rows.iter().filter(|r| r.test != "ping") {
        if !tests.contains(&row.test.as_str()) {
            tests.push(&row.test);
        }
    }
    let bars = rows.iter().filter(|r| r.test != "ping").count() as f64;
    let height = 90.0 + bars * (BAR + 3.0) + tests.len() as f64 * 34.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"ui-sans-serif, system-ui, \
         'Helvetica Neue', Arial, sans-serif\" font-size=\"12\" fill=\"{INK}\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" rx=\"10\" fill=\"#ffffff\" stroke=\"{GRID}\"/>\n\
         <text x=\"24\" y=\"34\" font-size=\"18\" font-weight=\"600\">Through a tunnel between two hosts, both ends on the same two cores</text>\n\
         <text x=\"24\" y=\"54\" fill=\"{FAINT}\">Mbit/s of payload; UDP: highest rate with at most 0.5 % lost</text>\n"
    );
    let mut y = 66.0;
    for test in tests {
        y += 24.0;
        let _ = writeln!(out, "<text x=\"24\" y=\"{y}\" font-weight=\"600\">{test}</text>");
        y += 8.0;
        let of: Vec<&Row> = rows.iter().filter(|r| r.test == test).collect();
        let top = of.iter().map(|r| r.bps).fold(1.0, f64::max);
        for row in of {
            let width = row.bps / top * (WIDTH - LEFT - RIGHT);
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{} {}</text>\
                 <rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{}\" fill=\"{FAINT}\">{:.0}, {:.0} kpps</text>",
                LEFT - 8.0,
                y + 13.0,
                row.system,
                row.suite,
                color(&row.system),
                LEFT + width + 6.0,
                y + 13.0,
                row.bps / 1e6,
                row.pps / 1e3
            );
            y += BAR + 3.0;
        }
        y += 2.0;
    }
    out += "</svg>\n";
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_system_has_a_bar_in_every_test_and_the_picture_is_well_formed() {
        let row = |system: &str, test: &str| Row {
            system: system.into(),
            test: test.into(),
            bps: 5e8,
            ..Row::default()
        };
        let svg = draw(&[
            row("espalier", "tcp_1"),
            row("strongswan", "tcp_1"),
            row("espalier", "ping"),
        ]);
        assert_eq!(svg.matches("<rect").count(), 3);
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(svg.ends_with("</svg>\n"));
    }
}
