//! A stand-in for the internet: a network namespace with names, servers and certificates of its own.
//!
//! ```text
//!   network, mount and user namespace of the tests' ordinary user
//!   ├─ /etc/resolv.conf → a name server of ours: any name is the server below, but for those a test sets
//!   ├─ 203.0.113.10, 2001:db8::10   HTTP on 80 and 8080, HTTPS on 443 and 8443, …: "the internet"
//!   ├─ 10.0.0.5, 192.168.1.5, 169.254.169.254, 127.0.0.1, …   what nobody may reach without being allowed to
//!   └─ the programs under test (`nsenter`)
//! ```
//!
//! The servers are one process, [`Internet`] is the test's end of it. They record every connection, request and query.
//! Their certificates come from a CA of their own, whose file is [`Internet::ca_file`].

pub mod protocol;

use std::ffi::OsString;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;

use crate::account::Account;
use crate::conversation::Conversation;
use crate::invocation::Invocation;
use crate::stage::Stage;

pub use self::protocol::{Command, Connection, Report, Request};

/// The address that every name has unless a test says otherwise.
pub const SERVER: &str = "203.0.113.10";
/// The same server by IPv6.
pub const SERVER_6: &str = "2001:db8::10";
/// Addresses with servers that nobody may reach without being allowed to.
pub const PRIVATE: [&str; 8] = [
    "10.0.0.5",
    "172.16.0.5",
    "192.168.1.5",
    "169.254.169.254",
    "127.0.0.1",
    "::1",
    "fd00::5",
    "100.100.100.200",
];

/// Ports of HTTP and HTTPS on every address.
pub const HTTP: [u16; 2] = [80, 8080];
/// HTTPS with a certificate for the name that the client asks for.
pub const HTTPS: [u16; 2] = [443, 8443];
/// HTTPS with a certificate that no CA signed.
pub const SELF_SIGNED: u16 = 9443;
/// HTTPS with a certificate for `other.test`, whatever the client asks for.
pub const WRONG_NAME: u16 = 9444;
/// Answers every byte with itself.
pub const ECHO: u16 = 7;
/// HTTP/1.1 that answers what the path names in raw bytes: see the server.
pub const RAW_HTTP: u16 = 8081;

/// What the models of the stand-in have an agent run: it writes a file and tells what it runs on.
pub const MODEL_COMMAND: &str =
    "printf 'made by the agent\\n' > made.txt && uname -s | tee ran.txt";
/// What they say when it has run.
pub const MODEL_ANSWER: &str = "Done: the file is there.";

/// The files of this host are those of every other too, where it has none of its own.
pub const ANY_HOST: &str = "any";

const SETUP: &str = "\
set -e
ip link set lo up
for address in $ADDRESSES; do
    case $address in
    *:*) ip -6 address add $address/128 dev lo nodad 2>/dev/null || [ $address = ::1 ] ;;
    *) ip address add $address/32 dev lo 2>/dev/null || [ $address = 127.0.0.1 ] ;;
    esac
done
for file in resolv.conf nsswitch.conf hosts; do
    mount --bind $DIRECTORY/$file $(readlink -f /etc/$file)
done
exec $PROGRAM $DIRECTORY
";

/// The stand-in. Dropping it ends its servers; the namespaces end with the last program in them.
#[derive(Debug)]
pub struct Internet {
    directory: TempDir,
    account: Account,
    pid: u32,
    servers: Mutex<Conversation>,
}

impl Internet {
    /// Starts the servers in namespaces of the tests' ordinary user.
    #[track_caller]
    #[must_use]
    pub fn start() -> Self {
        Self::of(&Stage::find().guest_program("internet"))
    }

    /// The same with this program's servers.
    #[track_caller]
    #[must_use]
    pub fn of(program: &Path) -> Self {
        let account = Account::ordinary();
        let directory =
            tempfile::Builder::new().prefix("hi-").tempdir_in("/tmp").expect("/tmp is writable");
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), open.clone())
            .expect("a new directory can be opened up");
        account.give(directory.path());
        // The account may not be able to reach the program's own directory.
        let own = directory.path().join("internet");
        fs::copy(program, &own)
            .unwrap_or_else(|error| panic!("cannot copy {}: {error}", program.display()));
        fs::set_permissions(&own, open).expect("a new file can be opened up");
        account.act(|| {
            for (file, text) in [
                ("resolv.conf", "nameserver 127.0.0.53\noptions timeout:2 attempts:2\n"),
                ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
                ("hosts", "127.0.0.1 localhost\n::1 localhost\n"),
            ] {
                write(&directory.path().join(file), text);
            }
            fs::create_dir(directory.path().join("files")).expect("a directory can be made");
        });
        let addresses: Vec<&str> =
            [SERVER, SERVER_6].into_iter().chain(PRIVATE).chain(["127.0.0.53"]).collect();
        let mut servers = Invocation::new("unshare", account)
            .args(["--user", "--map-current-user", "--keep-caps", "--net", "--mount"])
            .args(["sh", "-c", SETUP])
            .variable("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .variable("ADDRESSES", addresses.join(" "))
            .variable("DIRECTORY", directory.path())
            .variable("PROGRAM", &own)
            .converse();
        assert_eq!(servers.hear(), "ready", "the servers start");
        let pid = servers.pid();
        Self { directory, account, pid, servers: Mutex::new(servers) }
    }

    /// The certificate that all servers' certificates can be verified with.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Serves a file as `http(s)://HOST/PATH`.
    pub fn serve(&self, host: &str, path: &str, content: impl AsRef<[u8]> + Send) {
        let file = self.files(host).join(path.trim_start_matches('/'));
        let directory = file.parent().expect("it is below another").to_owned();
        self.account.act(|| {
            fs::create_dir_all(directory).expect("a directory can be made");
            write(&file, content);
        });
    }

    /// The directory whose files are served as those of `host`.
    #[must_use]
    pub fn files(&self, host: &str) -> PathBuf {
        self.directory.path().join("files").join(host)
    }

    /// Whose namespaces these are.
    #[must_use]
    pub fn account(&self) -> Account {
        self.account
    }

    /// What was seen since the last [`Internet::forget`].
    #[track_caller]
    #[must_use]
    pub fn report(&self) -> Report {
        self.ask(&Command::Report)
    }

    /// Forgets what was seen.
    #[track_caller]
    pub fn forget(&self) {
        self.ask(&Command::Forget);
    }

    /// Gives a name other addresses: each query takes the next list, and the last one stays.
    #[track_caller]
    pub fn name(&self, name: &str, answers: &[&[&str]]) {
        let parse = |address: &&str| address.parse::<IpAddr>().expect("an address");
        let answers = answers.iter().map(|list| list.iter().map(parse).collect()).collect();
        self.ask(&Command::Name { name: name.to_owned(), answers });
    }

    /// The words that run a program in here, before the program's own.
    #[must_use]
    pub fn entrance(&self) -> Vec<OsString> {
        let pid = self.pid.to_string();
        ["--user", "--net", "--mount", "--preserve-credentials", "--target", &pid, "--"]
            .map(OsString::from)
            .into()
    }

    /// Runs a program in here.
    #[must_use]
    pub fn program(&self, program: &Path) -> Invocation {
        Invocation::new("nsenter", self.account)
            .args(self.entrance())
            .args([program])
            .variable("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    }

    #[track_caller]
    fn ask(&self, command: &Command) -> Report {
        let line = serde_json::to_string(command).expect("a command is JSON");
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = servers.ask(&line);
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error} in {answer}"))
    }
}

#[expect(clippy::disallowed_methods, reason = "a file of a test, not one that Hutch keeps")]
fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::write(path, content)
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}
