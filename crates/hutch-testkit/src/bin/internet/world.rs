//! What all servers share: what was seen, the names, and the files.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hutch_testkit::internet::protocol::{Connection, Report, Request};
use hutch_testkit::internet::{ANY_HOST, SERVER, SERVER_6};

pub(crate) struct World {
    files: PathBuf,
    seen: Mutex<Report>,
    names: Mutex<HashMap<String, VecDeque<Vec<IpAddr>>>>,
}

impl World {
    pub(crate) fn new(files: PathBuf) -> Self {
        let world = Self { files, seen: Mutex::default(), names: Mutex::default() };
        for (name, address) in [
            ("private.test", "10.0.0.5"),
            ("loop.test", "127.0.0.1"),
            ("metadata.test", "169.254.169.254"),
            ("unique.test", "fd00::5"),
            ("mapped.test", "::ffff:10.0.0.5"),
            ("nat64.test", "64:ff9b::a00:5"),
            ("sixtofour.test", "2002:a00:5::"),
            ("zero.test", "0.0.0.0"),
        ] {
            world.lock_names().insert(name.to_owned(), [addresses(&[address])].into());
        }
        for (name, list) in [
            ("mixed.test", &[SERVER, "10.0.0.5"][..]),
            ("v6.test", &[SERVER_6]),
            ("none.test", &[]),
            // A Java, an LLMNR or another resolver's way to ask whether there is a network.
            ("wpad", &[]),
        ] {
            world.lock_names().insert(name.to_owned(), [addresses(list)].into());
        }
        world
    }

    pub(crate) fn report(&self) -> Report {
        self.lock().clone()
    }

    pub(crate) fn forget(&self) -> Report {
        *self.lock() = Report::default();
        Report::default()
    }

    pub(crate) fn name(&self, name: String, answers: Vec<Vec<IpAddr>>) -> Report {
        self.lock_names().insert(name, answers.into());
        Report::default()
    }

    /// The addresses of a name now; a query takes an answer from the list.
    pub(crate) fn resolve(&self, name: &str, six: bool) -> Option<Vec<IpAddr>> {
        if name == "localhost" || name.ends_with(".localhost") {
            return Some(addresses(&["127.0.0.1", "::1"]));
        }
        let mut names = self.lock_names();
        let Some(answers) = names.get_mut(name) else { return Some(addresses(&[SERVER])) };
        // Both kinds of address are asked for: the answer moves on with the second question.
        let answer = answers.front()?.clone();
        if answers.len() > 1 && !six {
            answers.pop_front();
        }
        (!answer.is_empty()).then_some(answer)
    }

    pub(crate) fn asked(&self, name: String) {
        self.lock().queries.push(name);
    }

    pub(crate) fn connected(&self, connection: Connection) {
        self.lock().connections.push(connection);
    }

    pub(crate) fn requested(&self, request: Request) {
        self.lock().requests.push(request);
    }

    pub(crate) fn heard(&self, raw: &[u8]) {
        self.lock().raw.push(String::from_utf8_lossy(raw).into_owned());
    }

    /// The content of a file of a host, or of any host.
    pub(crate) fn file(&self, host: &str, path: &str) -> Option<(PathBuf, Vec<u8>)> {
        let host = host.split(':').next().unwrap_or(host);
        let path = percent_decoded(path.split('?').next().unwrap_or(path));
        let below = Path::new(path.trim_start_matches('/'));
        if host.contains('/')
            || !below.components().all(|part| matches!(part, Component::Normal(_)))
        {
            return None;
        }
        [host, ANY_HOST].into_iter().find_map(|host| {
            let mut file = self.files.join(host).join(below);
            if file.is_dir() {
                file = file.join("index.html");
            }
            let content = std::fs::read(&file).ok()?;
            Some((file, content))
        })
    }

    fn lock(&self) -> MutexGuard<'_, Report> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_names(&self) -> MutexGuard<'_, HashMap<String, VecDeque<Vec<IpAddr>>>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn addresses(list: &[&str]) -> Vec<IpAddr> {
    list.iter().filter_map(|address| address.parse().ok()).collect()
}

fn percent_decoded(path: &str) -> String {
    let mut decoded = Vec::new();
    let mut rest = path.as_bytes();
    while let [first, after @ ..] = rest {
        let code = after.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(code) if *first == b'%' => {
                decoded.push(code);
                rest = &after[2..];
            }
            _ => {
                decoded.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
