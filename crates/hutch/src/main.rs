//! The command that people type: `hutch …`, and `docker sandbox …` where it is installed as a Docker CLI plugin.
//!
//! ```text
//!   plugin      which of the two, and what is asked
//!   cli         the words of the command line; one file a command in commands/
//!   settings    flags, environment, config.toml → what holds
//!   sandboxes   names → records;  start  records → keepers;  keeper_client, session  conversations with them
//!   printer     all output;  failure, exit_codes  what went wrong
//! ```

mod agents;
mod cli;
mod commands;
mod context;
mod detach_keys;
mod env_file;
mod exit_codes;
mod failure;
mod images;
mod keeper_client;
mod log_files;
mod plugin;
mod printer;
mod progress;
mod sandboxes;
mod session;
mod settings;
mod size;
mod start;
mod stdio;
mod table;
mod terminal;
mod usage;
mod warm;
mod workspaces;

use std::ffi::OsString;
use std::process::ExitCode;

use crate::cli::Unparsed;
use crate::context::Context;
use crate::failure::Failure;
use crate::plugin::{Face, Request};
use crate::printer::{Printer, Talk};
use crate::settings::Settings;

fn main() -> ExitCode {
    let plain = Printer::new(Talk::Normal, false);
    let code = match plugin::request(std::env::args_os()) {
        Request::Metadata => shown(plain, &format!("{}\n", plugin::metadata())),
        // No suggestions, and no file names in their place.
        Request::Completion => shown(plain, ":4\n"),
        Request::Command { face, words } => command(face, words),
    };
    ExitCode::from(code)
}

fn command(face: Face, words: Vec<OsString>) -> u8 {
    let plain = Printer::new(Talk::Normal, false);
    let cli = match cli::parse(face, words) {
        Ok(cli) => cli,
        Err(Unparsed::Shown(text)) => return shown(plain, &format!("{}\n", text.trim_end())),
        Err(Unparsed::Wrong { text, passes_through }) => {
            return failed(plain, &Failure::usage(text), passes_through);
        }
    };
    let passes_through = cli.command.passes_through();
    let settings = match Settings::read() {
        Ok(settings) => settings,
        Err(failure) => return failed(plain, &failure, passes_through),
    };
    let talk = if cli.debug { Talk::Debug } else { Talk::Normal };
    let printer = Printer::new(talk, settings.colour);
    let context = Context { face, settings, printer, debug: cli.debug };
    match cli.command.execute(&context) {
        Ok(code) => code,
        Err(failure) => failed(printer, &failure, passes_through),
    }
}

fn shown(printer: Printer, text: &str) -> u8 {
    match printer.text(text) {
        Ok(()) => exit_codes::SUCCESS,
        Err(failure) => failed(printer, &failure, false),
    }
}

fn failed(printer: Printer, failure: &Failure, passes_through: bool) -> u8 {
    printer.failure(failure);
    failure.code(passes_through)
}
