//! The proxy beside squid and mitmproxy: the same load, the same server, one after the other.
//!
//! What is compared is said in `docs/benchmarks.md`. All programs but mitmproxy run as the tests' ordinary user, with
//! one configuration for tunnels and one for terminated TLS; every proxy verifies the server's certificate and writes
//! its log. Ours has no listener: its load comes over a pair of sockets, as from a guest, but without the VM.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Serialize;

use crate::bench::world::World;
use crate::bench::{Rows, parse_rows};
use crate::process::{End, cargo, command, output, release, run, target};
use crate::tidy::write;

const SQUID: &str = "/usr/sbin/squid";
const SQUID_CERTIFICATES: &str = "/usr/lib/squid/security_file_certgen";

/// One row. Rates are better when larger, times and memory when smaller.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// `tunnel` or `terminated`.
    mode: String,
    what: String,
    unit: String,
    /// Without a proxy; memory has no such row.
    direct: Option<f64>,
    hutch: f64,
    squid: f64,
    /// None where it could not be installed.
    mitmproxy: Option<f64>,
}

/// Measures both modes.
pub(crate) fn measure(world: &World, quick: bool) -> anyhow::Result<Vec<Row>> {
    let bench = Bench::new(world, quick)?;
    let mitmproxy = match mitmproxy() {
        Ok(program) => Some(program),
        Err(error) => {
            eprintln!("==> mitmproxy is not measured: {error:#}");
            None
        }
    };
    eprintln!("==> no proxy");
    let direct = bench.load(&["direct"])?;
    let mut rows = Vec::new();
    for mode in ["tunnel", "terminated"] {
        eprintln!("==> {mode}, Hutch");
        let directory = bench.directory(&format!("hutch-{mode}"))?;
        let hutch = world.stage().join("programs/hutch-proxy");
        let ca = bench.directory.join("ca.pem");
        let words =
            [hutch.as_path(), &directory, &ca].map(|path| path.to_string_lossy().into_owned());
        let hutch = bench.load(&["hutch", &words[0], &words[1], &words[2], mode])?;
        eprintln!("==> {mode}, squid");
        let squid = bench.squid(mode)?;
        let mitmproxy = match &mitmproxy {
            Some(program) => {
                eprintln!("==> {mode}, mitmproxy");
                Some(bench.mitmproxy(program, mode)?)
            }
            None => None,
        };
        rows.extend(table(mode, &direct, &hutch, &squid, mitmproxy.as_ref())?);
    }
    Ok(rows)
}

/// Prints the table.
pub(crate) fn print(rows: &[Row]) {
    println!("\n{:<40} {:>9} {:>9} {:>9} {:>9}", "proxy", "direct", "Hutch", "squid", "mitmproxy");
    let cell =
        |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
    for row in rows {
        println!(
            "{:<40} {:>9} {:>9} {:>9} {:>9} {}",
            format!("{}, {}", row.mode, row.what),
            cell(row.direct),
            cell(Some(row.hutch)),
            cell(Some(row.squid)),
            cell(row.mitmproxy),
            row.unit
        );
    }
}

fn table(
    mode: &str,
    direct: &Rows,
    hutch: &Rows,
    squid: &Rows,
    mitmproxy: Option<&Rows>,
) -> anyhow::Result<Vec<Row>> {
    let find = |rows: &Rows, what: &str| {
        rows.iter().find(|(name, ..)| name == what).map(|(_, value, _)| *value)
    };
    let mut rows = Vec::new();
    for (what, value, unit) in hutch {
        let row = Row {
            mode: mode.to_owned(),
            what: what.clone(),
            unit: unit.clone(),
            direct: find(direct, what),
            hutch: *value,
            squid: find(squid, what).with_context(|| format!("squid has no row {what}"))?,
            mitmproxy: mitmproxy.and_then(|rows| find(rows, what)),
        };
        let added = row.direct.filter(|_| what.starts_with("latency")).map(|direct| Row {
            what: format!("added {what}"),
            mode: mode.to_owned(),
            unit: unit.clone(),
            direct: None,
            hutch: row.hutch - direct,
            squid: row.squid - direct,
            mitmproxy: row.mitmproxy.map(|value| value - direct),
        });
        rows.push(row);
        rows.extend(added);
    }
    Ok(rows)
}

/// The server that everything is fetched from, and where everybody writes.
struct Bench<'w> {
    world: &'w World,
    program: PathBuf,
    directory: PathBuf,
    port: u16,
    seconds: u32,
    _server: End,
}

impl<'w> Bench<'w> {
    fn new(world: &'w World, quick: bool) -> anyhow::Result<Self> {
        run(cargo().args([
            "build",
            "--release",
            "--locked",
            "--package",
            "e2e",
            "--bin",
            "proxy-bench",
        ]))?;
        let directory = world.directory("proxy")?;
        let program = directory.join("proxy-bench");
        fs::copy(release().join("proxy-bench"), &program)?;
        let mut server = world.command(&program);
        server.arg("server").arg(&directory).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut server = End(server.spawn().context("cannot run the server")?);
        let mut port = String::new();
        let said = server.0.stdout.take().context("the server has no output")?;
        BufReader::new(said).read_line(&mut port)?;
        let port = port.trim().parse().context("the server tells its port")?;
        Ok(Self {
            world,
            program,
            directory,
            port,
            seconds: if quick { 1 } else { 5 },
            _server: server,
        })
    }

    fn directory(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.world.directory(&format!("proxy/{name}"))
    }

    /// Puts the load on one way and gives what was measured.
    fn load(&self, way: &[&str]) -> anyhow::Result<Rows> {
        let mut load = self.world.command(&self.program);
        load.args(["measure", &self.seconds.to_string(), &self.port.to_string()]).args(way);
        parse_rows(&output(load.stdin(Stdio::null()))?)
    }

    /// The load on a proxy that listens on `port`, once it does.
    fn load_on(&self, proxy: &mut End, port: u16) -> anyhow::Result<Rows> {
        let address = format!("127.0.0.1:{port}");
        let started = Instant::now();
        while TcpStream::connect(&address).is_err() {
            if let Some(status) = proxy.0.try_wait()? {
                bail!("it ended with {status}; its log is in {}", self.directory.display());
            }
            if started.elapsed() > Duration::from_secs(60) {
                bail!("it does not listen");
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.load(&["tcp", &address, &proxy.0.id().to_string()])
    }

    fn squid(&self, mode: &str) -> anyhow::Result<Rows> {
        let directory = self.directory(&format!("squid-{mode}"))?;
        let (port, place) = (free_port()?, directory.display());
        let mut config = format!(
            "pid_filename {place}/pid\ncache_log {place}/cache.log\naccess_log stdio:{place}/access.log\n\
             coredump_dir {place}\ncache deny all\nhttp_access allow all\nshutdown_lifetime 0 seconds\n\
             max_filedescriptors 16384\npinger_enable off\n"
        );
        if mode == "tunnel" {
            config = format!("{config}http_port 127.0.0.1:{port}\n");
        } else {
            let ca = directory.join("own-ca.pem");
            let mut openssl = self.world.command(Path::new("openssl"));
            openssl.args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ]);
            openssl.args(["-nodes", "-days", "30", "-subj", "/CN=squid", "-keyout"]).arg(&ca);
            output(openssl.arg("-out").arg(directory.join("certificate.pem")))?;
            let certificate = fs::read_to_string(directory.join("certificate.pem"))?;
            let whole = fs::read_to_string(&ca)? + &certificate;
            write(&ca, &whole)?;
            let database = directory.join("certificates");
            let mut certgen = self.world.command(Path::new(SQUID_CERTIFICATES));
            output(certgen.arg("-c").arg("-s").arg(&database).args(["-M", "16MB"]))?;
            config = format!(
                "{config}http_port 127.0.0.1:{port} ssl-bump cert={} generate-host-certificates=on dynamic_cert_mem_cache_size=16MB\n\
                 sslcrtd_program {SQUID_CERTIFICATES} -s {} -M 16MB\nssl_bump bump all\n\
                 tls_outgoing_options cafile={}/ca.pem\n",
                ca.display(),
                database.display(),
                self.directory.display()
            );
        }
        let file = directory.join("squid.conf");
        write(&file, &config)?;
        let mut squid = self.world.command(Path::new(SQUID));
        squid.arg("-N").arg("-f").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
        let mut squid = spawn(&mut squid)?;
        self.load_on(&mut squid, port).context("squid")
    }

    fn mitmproxy(&self, program: &Path, mode: &str) -> anyhow::Result<Rows> {
        let directory = self.directory(&format!("mitmproxy-{mode}"))?;
        let port = free_port()?;
        // Its Python may be in a place that only the developer can reach.
        let mut mitmproxy = command(program);
        mitmproxy.args(["--listen-host", "127.0.0.1", "--listen-port", &port.to_string()]);
        mitmproxy.args(["--set", "flow_detail=1", "--set", "connection_strategy=lazy"]);
        mitmproxy.args(["--set", &format!("confdir={}", directory.display())]);
        mitmproxy.args([
            "--set",
            &format!("ssl_verify_upstream_trusted_ca={}/ca.pem", self.directory.display()),
        ]);
        if mode == "tunnel" {
            mitmproxy.args(["--ignore-hosts", ".*"]);
        }
        let log = fs::File::create(directory.join("log"))?;
        mitmproxy.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut mitmproxy = spawn(&mut mitmproxy)?;
        self.load_on(&mut mitmproxy, port).context("mitmproxy")
    }
}

fn spawn(program: &mut Command) -> anyhow::Result<End> {
    let name = program.get_program().to_string_lossy().into_owned();
    Ok(End(program.spawn().with_context(|| format!("cannot run {name}"))?))
}

/// mitmproxy's program, after installing it from PyPI into an environment of its own.
fn mitmproxy() -> anyhow::Result<PathBuf> {
    let environment = target().join("bench/mitmproxy");
    let program = environment.join("bin/mitmdump");
    if !program.exists() {
        run(command("python3").args(["-m", "venv"]).arg(&environment))?;
        let pip = environment.join("bin/pip");
        run(command(pip).args(["install", "--quiet", "--disable-pip-version-check", "mitmproxy"]))?;
    }
    Ok(program)
}

/// A port that nobody uses now.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
