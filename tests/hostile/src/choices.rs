//! A fuzzer's octets as decisions.

/// Octets to take decisions from.
pub struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    pub fn new(octets: &'a [u8]) -> Self {
        Self(octets)
    }

    pub fn next(&mut self) -> Option<u8> {
        let (octet, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*octet)
    }

    /// Some octets, or those that are left: one octet says how many, 255 that two more say it.
    pub fn some(&mut self) -> &'a [u8] {
        let length = match self.next() {
            Some(u8::MAX) => {
                let [high, low] = [0; 2].map(|_| usize::from(self.next().unwrap_or(0)));
                high << 8 | low
            }
            length => usize::from(length.unwrap_or(0)),
        };
        let (octets, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        octets
    }

    /// All that is left.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// `rest` is what is left now.
    pub fn go_on(&mut self, rest: &'a [u8]) {
        self.0 = rest;
    }
}
