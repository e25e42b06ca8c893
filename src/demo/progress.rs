//! A line on standard error for whoever waits longer than two seconds; nothing when it is no terminal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// From when on a wait is worth a line.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Progress {
    stage: &'static str,
    since: Instant,
    terminal: bool,
    shown: bool,
}

impl Progress {
    pub(super) fn new() -> Progress {
        Progress {
            stage: "",
            since: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
            shown: false,
        }
    }

    /// Begins something that may take a while.
    pub(super) fn stage(&mut self, stage: &'static str) {
        self.stage = stage;
    }

    /// Some of it is done.
    pub(super) fn step(&mut self, done: usize, all: usize) {
        if self.terminal && self.since.elapsed() > PATIENCE {
            self.shown = true;
            let _ = write!(std::io::stderr(), "\r\x1b[K{}: {done} of {all}", self.stage);
        }
    }

    /// Takes the line away before something else is printed.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
