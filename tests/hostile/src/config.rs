//! The text of a configuration, and what differs from the example in the documentation.

use crate::choices::Choices;
use agent::config::{Config, Problem, diff};
use std::path::Path;

/// What the text is: a whole file.
pub const WHOLE: u8 = 0;
/// The example of the documentation with other lines: which one (two octets), and the text in its place.
pub const CHANGED: u8 = 1;

const EXAMPLE: &str = include_str!("../../../docs/examples/espalier.toml");

/// The first octet says what the others are.
pub fn config(octets: &[u8]) {
    let Some((form, octets)) = octets.split_first() else {
        return;
    };
    let text = match *form & 1 {
        WHOLE => String::from_utf8_lossy(octets).into_owned(),
        _ => changed(octets),
    };
    match read(&text) {
        Ok(config) => sound(&text, &config),
        Err(problems) => told(&text, &problems),
    }
}

fn read(text: &str) -> Result<Config, Vec<Problem>> {
    Config::read_without_files(text, Path::new("/etc/espalier"))
}

fn changed(octets: &[u8]) -> String {
    let mut lines: Vec<String> = EXAMPLE.lines().map(str::to_owned).collect();
    let mut choices = Choices::new(octets);
    while let (Some(high), Some(low)) = (choices.next(), choices.next()) {
        let at = usize::from(u16::from_be_bytes([high, low])) % lines.len();
        lines[at] = String::from_utf8_lossy(choices.some()).into_owned();
    }
    lines.join("\n")
}

/// What can be run: whatever is shown has one line, and a reload from the example and back ends where it is meant to.
fn sound(text: &str, config: &Config) {
    assert_eq!(config.me().id, config.cluster.member);
    assert!(config.others().all(|other| other.id != config.cluster.member));
    for (at, connection) in config.connections.iter().enumerate() {
        assert_eq!(usize::from(config.connection_index(&connection.name)), at + 1);
        let children = connection.children.iter().map(|child| &child.name);
        for name in children.chain([&connection.name]) {
            assert!(!name.is_empty() && !name.contains(char::is_control), "{name:?}");
        }
        assert!(!connection.children.is_empty());
    }
    let table = |text: &str| text.parse::<toml::Table>().expect("it was read");
    let (this, example) = (table(text), table(EXAMPLE));
    assert!(diff::between(&this, &this).is_empty());
    for (from, to) in [(&example, &this), (&this, &example)] {
        let mut running = from.clone();
        diff::take_over(&mut running, to);
        let left = diff::between(&running, to);
        assert!(left.added.is_empty() && left.removed.is_empty(), "{left:?}");
        assert!(
            left.changed
                .iter()
                .all(|change| change.effect == diff::Effect::Restart),
            "{left:?}"
        );
    }
}

/// Every problem has a place in the text, and says on one line what is wrong and what to do.
fn told(text: &str, problems: &[Problem]) {
    assert!(!problems.is_empty());
    let lines: Vec<&str> = text.split('\n').collect();
    let mut before = (0, 0);
    for problem in problems {
        let line = lines
            .get(problem.line.wrapping_sub(1))
            .expect("a line of the text");
        assert!((1..=line.len() + 1).contains(&problem.column), "{problem}");
        assert!(before <= (problem.line, problem.column), "by place");
        before = (problem.line, problem.column);
        assert!(!problem.cause.is_empty() && !problem.remedy.is_empty());
        assert!(!problem.to_string().contains(char::is_control), "{problem:?}");
    }
}
