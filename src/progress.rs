//! A line on standard error for whoever waits longer than two seconds; nothing when it is no terminal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// From when on a wait is worth a line.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) struct Progress {
    stage: String,
    since: Instant,
    terminal: bool,
    shown: bool,
}

impl Progress {
    pub(crate) fn new() -> Progress {
        Progress {
            stage: String::new(),
            since: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
            shown: false,
        }
    }

    /// Begins something that may take a while.
    pub(crate) fn stage(&mut self, stage: impl Into<String>) {
        self.stage = stage.into();
    }

    /// Some of it is done; of 0, when nobody knows how much there is.
    pub(crate) fn step(&mut self, done: usize, all: usize) {
        if self.terminal && self.since.elapsed() > PATIENCE {
            self.shown = true;
            let stage = &self.stage;
            let _ = match all {
                0 => write!(std::io::stderr(), "\r\x1b[K{stage} ..."),
                _ => write!(std::io::stderr(), "\r\x1b[K{stage}: {done} of {all}"),
            };
        }
    }

    /// Takes the line away before something else is printed.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
