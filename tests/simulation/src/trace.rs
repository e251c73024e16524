//! What happened: always as a hash, in words where asked for.

use crate::dice::mix;
use crate::plan::{MS, Nanos};

/// The record of a run.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    hash: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// An empty record, with words or without.
    #[must_use]
    pub(crate) const fn new(words: bool) -> Self {
        Self { hash: 0, lines: if words { Some(Vec::new()) } else { None } }
    }

    /// Takes a number into the hash.
    pub(crate) const fn mix(&mut self, number: u64) {
        self.hash = mix(self.hash ^ number.wrapping_mul(0x2545_f491_4f6c_dd1d)).rotate_left(7);
    }

    /// Writes a line, if anybody wants to read it.
    pub(crate) fn line(&mut self, now: Nanos, words: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>8}.{:06} {}", now / MS, now % MS, words()));
        }
    }

    /// The same for the same run.
    #[must_use]
    pub(crate) const fn hash(&self) -> u64 {
        self.hash
    }

    /// The lines.
    pub(crate) fn take_lines(&mut self) -> Vec<String> {
        self.lines.take().unwrap_or_default()
    }
}
