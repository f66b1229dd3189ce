//! The one binary: `espalier`.
fn main() {}
