//! R13: a record that cannot be read changes nothing.

use model::MemberId;

pub(super) fn unchanged(me: MemberId, before: u64, after: u64) -> Result<(), String> {
    if before == after {
        return Ok(());
    }
    Err(format!(
        "member {me} changed its state on a record that cannot be read"
    ))
}
