//! Version of the layouts in this crate.

/// Raised with every change of a layout; a member refuses to adopt pinned maps of another version.
pub const SCHEMA_VERSION: u32 = 5;
