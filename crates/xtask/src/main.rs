//! Build, test, benchmark and installation steps that need more than a line of `make`.
//!
//! `cargo xtask WORD`, one module per word. Everything here runs on a developer's machine with the developer's own
//! environment; nothing of it is part of what users run.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for the terminal of a developer"
)]

mod bench;
mod build;
mod dependencies;
mod install;
mod prepare;
mod process;
mod run;
mod test;
mod tidy;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};

const USAGE: &str = "\
Usage: cargo xtask COMMAND

  build                  optimised host programs and the static init of the guest
  install --prefix DIR   the programs to DIR and the Docker CLI plugin to the user's home
  run --prefix DIR       build, install, and open a sandbox on this repository
  check                  format, lints, tidy, unit and in-process tests, doc tests
  test                   check, and the tests that boot VMs
  prepare-tests          what the VM tests need: programs, guest image, template, an ordinary user
  tidy [--bless]         rules of this repository that no other tool checks
  deny                   cargo-deny, installed when missing (advisories need the network)
  bench [--quick]        the measurements of docs/benchmarks.md
        [--starts]         of starts, memory and peers alone
        [--together N]     with N sandboxes alive at the same time instead of 50
        [--proxy]          of the proxies alone
        [--rows GROUP,…]   of the workspace table alone: stat, read, make, git, big, written
        [--stage DIR]      with the programs and images there (as in target/e2e) instead of new ones
";

fn main() -> ExitCode {
    match dispatch(std::env::args_os().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: Vec<OsString>) -> anyhow::Result<()> {
    let mut arguments = arguments.into_iter();
    let Some(word) = arguments.next() else {
        print!("{USAGE}");
        return Ok(());
    };
    let options = Options::parse(arguments)?;
    match word.to_str() {
        Some("build") => build::build(),
        Some("install") => install::install(&options.prefix()?),
        Some("run") => run::run(&options.prefix()?),
        Some("check") => test::check(),
        Some("test") => test::test(),
        Some("prepare-tests") => prepare::prepare().map(drop),
        Some("tidy") => tidy::tidy(options.bless),
        Some("deny") => dependencies::cargo_deny(),
        Some("bench") => bench::bench(&options.wanted),
        Some("help" | "--help" | "-h") => {
            print!("{USAGE}");
            Ok(())
        }
        _ => bail!("unknown command {}\n\n{USAGE}", word.display()),
    }
}

/// The options of all commands together; there are too few for a parser of their own each.
#[derive(Debug, Default)]
struct Options {
    prefix: Option<PathBuf>,
    bless: bool,
    wanted: bench::Wanted,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> anyhow::Result<Self> {
        let mut options = Self::default();
        while let Some(argument) = arguments.next() {
            match argument.to_str() {
                Some("--prefix") => {
                    options.prefix =
                        Some(arguments.next().context("--prefix needs a directory")?.into());
                }
                Some("--bless") => options.bless = true,
                Some("--quick") => options.wanted.quick = true,
                Some("--proxy") => options.wanted.proxy = true,
                Some("--starts") => options.wanted.starts = true,
                Some("--together") => {
                    let count = arguments.next().context("--together needs a number")?;
                    let count = count.to_str().and_then(|count| count.parse().ok());
                    options.wanted.together = Some(count.context("--together needs a number")?);
                }
                Some("--rows") => {
                    let rows = arguments.next().context("--rows needs groups of rows")?;
                    let rows = rows.to_string_lossy();
                    options.wanted.groups = rows.split(',').map(str::to_owned).collect();
                }
                Some("--stage") => {
                    options.wanted.stage =
                        Some(arguments.next().context("--stage needs a directory")?.into());
                }
                _ => bail!("unknown option {}", argument.display()),
            }
        }
        Ok(options)
    }

    /// Where to install to: an absolute path, because it is written down and used from elsewhere.
    fn prefix(self) -> anyhow::Result<PathBuf> {
        let prefix = self.prefix.context("say where to install to: --prefix DIR")?;
        std::path::absolute(&prefix).with_context(|| format!("{}", prefix.display()))
    }
}
