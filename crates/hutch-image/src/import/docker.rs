//! Images of the host's own Docker daemon, asked by its API over its Unix socket.
//!
//! One request, `GET /images/NAME/get`, whose answer is what `docker save` writes. Spoken in HTTP/1.0, so that the answer
//! ends with the connection and is not in chunks; a client for one request without parameters would be more code.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::Progress;
use crate::cache::CacheError;
use crate::import::{ImportError, load};
use crate::template::{Origin, Reference, Template, TemplateStore};

/// How long the daemon may be silent: it packs the image meanwhile.
const SILENCE: Duration = Duration::from_secs(120);
/// Longest head of an answer, and what is read of an answer that is an error.
const HEAD_MAX: u64 = 64 << 10;
const ERROR_MAX: u64 = 4 << 10;
/// Largest archive that is taken.
const ARCHIVE_MAX: u64 = 64 << 30;

/// Takes an image from the daemon, if there is one and it has the image.
pub(crate) fn fetch_from_docker(
    images: &Path,
    socket: &Path,
    name: &Reference,
    progress: &dyn Progress,
) -> Result<Template, ImportError> {
    let mut answer = ask(socket, name)?;
    let store = TemplateStore::new(images);
    let locked = store.lock(progress)?;
    if let Err(error) = locked.clean() {
        tracing::info!(%error, "not removed");
    }
    let draft = locked.begin("docker")?;
    let path = draft.path().join("archive.tar");
    progress.step("fetching the image from the host's Docker daemon");
    let mut file = File::create(&path).map_err(CacheError::io("create", &path))?;
    let mut at = 0;
    let mut piece = vec![0; 256 << 10];
    loop {
        let count = answer
            .read(&mut piece)
            .map_err(|source| ImportError::Read { path: socket.to_owned(), source })?;
        if count == 0 {
            break;
        }
        at += count as u64;
        if at > ARCHIVE_MAX {
            return Err(ImportError::TooLarge { what: "its archive" });
        }
        file.write_all(&piece[..count]).map_err(CacheError::io("write", &path))?;
        progress.advance(at, None, "bytes");
    }
    let shown = name.to_string();
    let made = load(&store, &locked, &path, Some(name), Origin::Docker, &shown, progress)
        .map_err(|error| ImportError::Template(Box::new(error)))?;
    made.into_iter().next().ok_or(ImportError::NoImage)
}

/// Asks for the image; what follows is its archive.
fn ask(socket: &Path, name: &Reference) -> Result<impl Read + use<>, ImportError> {
    let failed = |source| ImportError::Read { path: socket.to_owned(), source };
    let mut stream = UnixStream::connect(socket).map_err(|_| ImportError::NoDocker)?;
    stream.set_read_timeout(Some(SILENCE)).map_err(failed)?;
    // A name has no characters that would mean something else here.
    let request = format!("GET /images/{name}/get HTTP/1.0\r\nHost: docker\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = BufReader::new(stream);
    let status = head(&mut answer).map_err(failed)?;
    match status {
        200 => Ok(answer),
        404 => Err(ImportError::NotInDocker { name: name.to_string() }),
        status => {
            let mut text = Vec::new();
            answer.take(ERROR_MAX).read_to_end(&mut text).map_err(failed)?;
            let text = String::from_utf8_lossy(&text).trim().escape_debug().to_string();
            Err(ImportError::Docker { answer: format!("{status} {text}") })
        }
    }
}

/// Reads the head of an answer; its status.
fn head(answer: &mut BufReader<UnixStream>) -> io::Result<u16> {
    let mut limited = answer.take(HEAD_MAX);
    let mut line = String::new();
    limited.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("it does not speak HTTP"))?;
    loop {
        line.clear();
        if limited.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line.trim().is_empty() {
            return Ok(status);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A daemon that gives one answer and the request that it got.
    fn answered(answer: &'static str) -> (String, Result<Vec<u8>, ImportError>) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::scope(|scope| {
            let daemon = scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = vec![0; 1024];
                let count = stream.read(&mut request).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                String::from_utf8(request[..count].to_vec()).unwrap()
            });
            let name = Reference::parse("my-template:v1").unwrap();
            let content = ask(&socket, &name).map(|mut answer| {
                let mut content = Vec::new();
                answer.read_to_end(&mut content).unwrap();
                content
            });
            (daemon.join().unwrap(), content)
        })
    }

    #[test]
    fn the_daemon_is_asked_for_the_image_by_its_name() {
        let (request, content) = answered("HTTP/1.0 200 OK\r\nContent-Type: x\r\n\r\narchive");
        assert_eq!(request, "GET /images/my-template:v1/get HTTP/1.0\r\nHost: docker\r\n\r\n");
        assert_eq!(content.unwrap(), b"archive");
    }

    #[test]
    fn a_daemon_without_the_image_is_no_failure_of_the_daemon() {
        let (_, content) = answered("HTTP/1.1 404 Not Found\r\n\r\n{}");
        assert!(matches!(content, Err(ImportError::NotInDocker { .. })));
        let (_, content) = answered("HTTP/1.1 500 No\r\n\r\n{\"message\":\"it\u{1b} broke\"}");
        let error = content.unwrap_err().to_string();
        assert!(error.contains("500") && error.contains("broke") && !error.contains('\u{1b}'));
        for answer in ["", "SSH-2.0\r\n", "HTTP/1.1 200 OK\r\n"] {
            assert!(answered(answer).1.is_err(), "{answer}");
        }
        let name = Reference::parse("a").unwrap();
        let nobody = ask(Path::new("/nonexistent/docker.sock"), &name).map(drop);
        assert!(matches!(nobody, Err(ImportError::NoDocker)));
    }
}
