//! An archive in the format of an initial RAM disk (cpio, "newc").

use std::collections::BTreeSet;
use std::path::Path;

/// Files of an initial RAM disk, in memory.
#[derive(Default)]
pub struct Archive {
    octets: Vec<u8>,
    folders: BTreeSet<String>,
    files: BTreeSet<String>,
    count: u32,
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

impl Archive {
    /// Adds a file with everything above it. A path that is there already is left as it is.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.put(path, PROGRAM, content);
    }

    /// Adds a folder.
    pub fn folder(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || !self.folders.insert(path.to_owned()) {
            return;
        }
        self.above(path);
        self.entry(path, FOLDER, &[]);
    }

    /// Whether a file of this path is there.
    pub fn has(&self, path: &str) -> bool {
        self.files.contains(path.trim_matches('/'))
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.octets
    }

    fn put(&mut self, path: &str, mode: u32, content: &[u8]) {
        let path = path.trim_matches('/');
        if self.files.insert(path.to_owned()) {
            self.above(path);
            self.entry(path, mode, content);
        }
    }

    fn above(&mut self, path: &str) {
        if let Some(parent) = Path::new(path).parent().and_then(Path::to_str) {
            self.folder(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.count += 1;
        // Magic, then thirteen numbers of eight hexadecimal digits.
        let (size, name) = (content.len() as u32, path.len() as u32 + 1);
        let fields = [self.count, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0];
        self.octets.extend(b"070701");
        for field in fields {
            self.octets.extend(format!("{field:08x}").bytes());
        }
        self.octets.extend(path.bytes());
        self.octets.push(0);
        self.fill();
        self.octets.extend(content);
        self.fill();
    }

    fn fill(&mut self) {
        self.octets.resize(self.octets.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Paths, modes and contents of an archive.
    fn read(octets: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            let number = |field: usize| {
                let from = at + 6 + 8 * field;
                let digits = std::str::from_utf8(&octets[from..from + 8]).expect("digits");
                u32::from_str_radix(digits, 16).expect("a number")
            };
            assert_eq!(&octets[at..at + 6], b"070701");
            let (mode, size, name) = (number(1), number(6) as usize, number(11) as usize);
            let path = String::from_utf8(octets[at + 110..at + 110 + name - 1].to_vec()).expect("a path");
            let content = (at + 110 + name).next_multiple_of(4);
            if path == "TRAILER!!!" {
                return entries;
            }
            entries.push((path, mode, octets[content..content + size].to_vec()));
            at = (content + size).next_multiple_of(4);
        }
    }

    #[test]
    fn folders_come_before_what_is_in_them_and_nothing_comes_twice() {
        let mut archive = Archive::default();
        archive.file("/usr/bin/tool", b"#!");
        archive.file("usr/bin/tool", b"another");
        archive.folder("/proc");
        assert!(archive.has("/usr/bin/tool") && !archive.has("/proc"));
        let entries = read(&archive.finish());
        let seen: Vec<_> = entries
            .iter()
            .map(|(p, m, c)| (p.as_str(), *m, c.len()))
            .collect();
        assert_eq!(
            seen,
            [
                ("usr", FOLDER, 0),
                ("usr/bin", FOLDER, 0),
                ("usr/bin/tool", PROGRAM, 2),
                ("proc", FOLDER, 0)
            ]
        );
    }
}
