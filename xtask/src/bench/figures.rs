//! What the benchmarks share: medians and tables.

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

/// Rows of a table.
pub type Cells = Vec<Vec<String>>;

/// The median; NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match (sorted.len(), sorted.get(sorted.len() / 2)) {
        (_, None) => f64::NAN,
        (n, Some(upper)) if n % 2 == 1 => *upper,
        (n, Some(upper)) => (sorted[n / 2 - 1] + upper) / 2.0,
    }
}

/// A table whose cells stand at the right.
pub fn table(header: &[&str], rows: Cells) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_the_mean_of_both() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
