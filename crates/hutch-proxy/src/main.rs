//! The proxy worker of one sandbox, and the credential broker beside it; see [`hutch_proxy::spawn()`].

use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome: Result<(), Box<dyn Error>> = match arguments.as_slice() {
        ["worker", directory, control, link] => {
            hutch_proxy::worker::main(directory.as_ref(), control, link).map_err(Into::into)
        }
        ["broker", spec, link] => broker(spec, link),
        ["secret", arguments @ ..] => {
            return ExitCode::from(hutch_proxy::secret_command::run(arguments));
        }
        _ => {
            tracing::error!("started by the keeper, as `worker` or as `broker`");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            tracing::error!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn broker(spec: &str, link: &str) -> Result<(), Box<dyn Error>> {
    let spec = hutch_sys::inherited::inherited(spec.parse()?)?;
    let link = hutch_sys::inherited::inherited(link.parse()?)?;
    Ok(hutch_proxy::broker::main(spec.into(), link)?)
}
