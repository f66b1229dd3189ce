//! Finds types by name in a BTF blob (Documentation/bpf/btf.rst), so that maps made by hand name their fields.

/// A type: its id and, for integers and structs, its size in octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Type {
    pub id: u32,
    pub size: u32,
}

const KIND_INT: u32 = 1;
const KIND_STRUCT: u32 = 4;

/// The first struct with this name and size.
pub(crate) fn find_struct(blob: &[u8], name: &str, size: u32) -> Option<Type> {
    find(blob, |kind, n, s| {
        kind == KIND_STRUCT && n == name.as_bytes() && s == size
    })
}

/// An unsigned or signed integer of four octets, for array keys.
pub(crate) fn find_int32(blob: &[u8]) -> Option<Type> {
    find(blob, |kind, n, s| kind == KIND_INT && n == b"u32" && s == 4)
        .or_else(|| find(blob, |kind, _, s| kind == KIND_INT && s == 4))
}

fn find(blob: &[u8], wanted: impl Fn(u32, &[u8], u32) -> bool) -> Option<Type> {
    let word = |at: usize| Some(u32::from_le_bytes(blob.get(at..at + 4)?.try_into().ok()?));
    // Header: magic 2, version 1, flags 1, hdr_len 4, type_off, type_len, str_off, str_len.
    let header = word(4)? as usize;
    let types = header + word(8)? as usize;
    let types_end = types + word(12)? as usize;
    let strings = header + word(16)? as usize;
    let mut at = types;
    let mut id = 1;
    while at < types_end {
        let (name, info, size) = (word(at)? as usize, word(at + 4)?, word(at + 8)?);
        let kind = (info >> 24) & 0x1f;
        let members = (info & 0xffff) as usize;
        let text = blob.get(strings + name..)?;
        let text = &text[..text.iter().position(|b| *b == 0)?];
        if wanted(kind, text, size) {
            return Some(Type { id, size });
        }
        at += 12 + extra(kind, members)?;
        id += 1;
    }
    None
}

/// Octets after the common head of a type of this kind.
fn extra(kind: u32, members: usize) -> Option<usize> {
    Some(match kind {
        1 | 14 | 17 => 4,                // INT, VAR, DECL_TAG
        2 | 7..=12 | 16 | 18 => 0, // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
        3 => 12,                   // ARRAY
        4 | 5 | 15 | 19 => 12 * members, // STRUCT, UNION, DATASEC, ENUM64
        6 | 13 => 8 * members,     // ENUM, FUNC_PROTO
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob() -> Vec<u8> {
        let strings = b"\0u32\0InboundSa\0";
        let mut types: Vec<u32> = Vec::new();
        types.extend([1, 1 << 24, 4, 32]); // 1: INT u32
        types.extend([0, 2 << 24, 1]); // 2: PTR
        types.extend([5, (4 << 24) | 1, 400, 1, 1, 0]); // 3: STRUCT InboundSa with one member
        let mut out = vec![0x9f, 0xeb, 1, 0];
        for word in [
            24,
            0,
            types.len() as u32 * 4,
            types.len() as u32 * 4,
            strings.len() as u32,
        ] {
            out.extend(u32::to_le_bytes(word));
        }
        out.extend(types.iter().flat_map(|w| w.to_le_bytes()));
        out.extend(strings);
        out
    }

    #[test]
    fn a_struct_is_found_by_name_and_size() {
        assert_eq!(
            find_struct(&blob(), "InboundSa", 400),
            Some(Type { id: 3, size: 400 })
        );
        assert_eq!(find_struct(&blob(), "InboundSa", 401), None);
        assert_eq!(find_struct(&blob(), "u32", 4), None);
        assert_eq!(find_int32(&blob()), Some(Type { id: 1, size: 4 }));
    }

    #[test]
    fn a_cut_blob_is_no_panic() {
        let whole = blob();
        for length in 0..whole.len() {
            assert_eq!(find_struct(&whole[..length], "nothing", 1), None);
        }
    }
}
