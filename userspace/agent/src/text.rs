//! Text of others, made fit to be shown.

/// The same on one line: control characters, which a terminal would obey, are escaped.
pub fn on_one_line(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let escaped = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_nothing_else_is() {
        for (text, shown) in [
            ("plain \"ü\" \\ text", "plain \"ü\" \\ text"),
            ("a\nb\u{1b}[0m", "a\\nb\\u{1b}[0m"),
            ("\u{85}", "\\u{85}"),
        ] {
            assert_eq!(on_one_line(text.to_owned()), shown);
        }
    }
}
