//! Long work, drawn on a terminal and told in lines elsewhere.

use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hutch_image::Progress;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::printer::{Printer, Talk, escaped_line};

/// How often a step that goes on is told where there is no terminal.
const TELL_AGAIN: Duration = Duration::from_secs(15);
/// How often a spinner moves.
const TICK: Duration = Duration::from_millis(120);

/// Shows the steps of long work.
#[derive(Debug)]
pub(crate) struct Shown {
    printer: Printer,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Silent,
    Lines(Mutex<Told>),
    Bar(ProgressBar),
}

#[derive(Debug)]
struct Told {
    step: String,
    at: Instant,
}

impl Shown {
    /// Draws where standard error is a terminal.
    pub(crate) fn new(printer: Printer) -> Self {
        let way = if printer.talk() == Talk::Quiet {
            Way::Silent
        } else if std::io::stderr().is_terminal() && printer.talk() != Talk::Debug {
            Way::Bar(ProgressBar::no_length().with_style(style(false)))
        } else {
            Way::Lines(Mutex::new(Told { step: String::new(), at: Instant::now() }))
        };
        Self { printer, way }
    }

    /// Takes everything drawn away: other output follows.
    pub(crate) fn finish(&self) {
        if let Way::Bar(bar) = &self.way {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Progress for Shown {
    fn step(&self, what: &str) {
        match &self.way {
            Way::Silent => {}
            Way::Lines(told) => {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                if told.step != what {
                    self.printer.status(what);
                    *told = Told { step: what.to_owned(), at: Instant::now() };
                }
            }
            Way::Bar(bar) => {
                bar.set_style(style(false));
                bar.unset_length();
                bar.set_position(0);
                bar.set_message(escaped_line(what));
                bar.enable_steady_tick(TICK);
            }
        }
    }

    fn advance(&self, done: u64, total: Option<u64>, unit: &str) {
        match &self.way {
            Way::Silent => {}
            Way::Lines(told) => {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                if told.at.elapsed() >= TELL_AGAIN {
                    self.printer.status(&format!("{}: {}", told.step, amount(done, total, unit)));
                    told.at = Instant::now();
                }
            }
            Way::Bar(bar) => {
                if let Some(total) = total {
                    if bar.length().is_none() {
                        bar.set_style(style(true));
                    }
                    bar.set_length(total);
                }
                bar.set_position(done);
                bar.set_prefix(amount(done, total, unit));
            }
        }
    }
}

fn style(with_bar: bool) -> ProgressStyle {
    let template =
        if with_bar { "{spinner} {msg} [{bar:24}] {prefix}" } else { "{spinner} {msg} {prefix}" };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

fn amount(done: u64, total: Option<u64>, unit: &str) -> String {
    let one = |count: u64| {
        if unit == "bytes" { HumanBytes(count).to_string() } else { count.to_string() }
    };
    let suffix = if unit == "bytes" { String::new() } else { format!(" {}", escaped_line(unit)) };
    match total {
        Some(total) => format!("{} of {}{suffix}", one(done), one(total)),
        None => format!("{}{suffix}", one(done)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_told_in_their_unit() {
        assert_eq!(amount(1536, None, "bytes"), "1.50 KiB");
        assert_eq!(amount(1, Some(2 << 20), "bytes"), "1 B of 2.00 MiB");
        assert_eq!(amount(3, Some(10), "packages"), "3 of 10 packages");
    }

    #[test]
    fn every_style_is_valid() {
        for template in [true, false] {
            let _valid: ProgressStyle = style(template);
        }
        assert!(ProgressStyle::with_template("{spinner} {msg} [{bar:24}] {prefix}").is_ok());
        assert!(ProgressStyle::with_template("{spinner} {msg} {prefix}").is_ok());
    }
}
