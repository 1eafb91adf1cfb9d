use std::fs::File;
use std::path::Path;

use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use super::*;
use crate::qemu::guest::{Guest, Place, disk};

/// A VM of the tests is over within this, on a busy machine too.
const OVER_WITHIN: Duration = Duration::from_secs(60);

async fn started(place: &Place) -> QemuVm {
    start(&Qemu::discover(None).unwrap(), place.spec()).await.unwrap()
}

async fn end_of(vm: &mut QemuVm) -> VmEnd {
    tokio::time::timeout(OVER_WITHIN, vm.wait()).await.expect("the VM ends in time")
}

/// Waits for the guest to have said something: the file grows while it runs.
async fn wait_for_words(place: &Place, words: &str) {
    let heard = async {
        while !place.said().contains(words) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(OVER_WITHIN, heard).await.expect("the guest says it in time");
}

fn hold(vm: &QemuVm) -> Process {
    vm.process.open().unwrap()
}

#[tokio::test]
async fn a_guest_that_powers_off_says_so_once_and_again() {
    let place = Place::new(&Guest::new().say("hello\n").power_off());
    let mut vm = started(&place).await;
    assert_eq!(end_of(&mut vm).await, VmEnd::PoweredOff);
    assert_eq!(end_of(&mut vm).await, VmEnd::PoweredOff);
    assert!(place.said().contains("hello\n"), "{:?}", place.said());
}

#[tokio::test]
async fn a_guest_that_resets_has_crashed() {
    let place = Place::new(&Guest::new().say("bye").reset());
    let mut vm = started(&place).await;
    assert_eq!(end_of(&mut vm).await, VmEnd::GuestCrashed);
    assert_eq!(place.said().matches("bye").count(), 1);
}

#[tokio::test]
async fn a_guest_that_hangs_is_killed_and_its_process_is_gone() {
    let place = Place::new(&Guest::new().say("here").hang());
    let mut vm = started(&place).await;
    let process = hold(&vm);
    wait_for_words(&place, "here").await;
    vm.kill();
    vm.kill();
    let end = end_of(&mut vm).await;
    assert_eq!(end, VmEnd::VmmFailed { reason: "it was ended on request".to_owned() });
    assert!(process.wait_ended(Duration::ZERO).unwrap());
}

#[tokio::test]
async fn a_dropped_vm_is_killed_and_reaped() {
    let place = Place::new(&Guest::new().hang());
    let vm = started(&place).await;
    let (process, pid) = (hold(&vm), vm.pid());
    drop(vm);
    assert!(process.wait_ended(OVER_WITHIN).unwrap());
    let reaped = async {
        while Path::new(&format!("/proc/{pid}")).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(OVER_WITHIN, reaped).await.expect("no zombie stays");
}

#[tokio::test]
async fn a_killed_vmm_is_told_from_a_crashed_guest() {
    let place = Place::new(&Guest::new().hang());
    let mut vm = started(&place).await;
    hold(&vm).kill().unwrap();
    assert_eq!(
        end_of(&mut vm).await,
        VmEnd::VmmFailed { reason: "it was ended by signal 9".to_owned() }
    );
}

#[tokio::test]
async fn waiting_can_be_given_up_and_taken_up_again() {
    let place = Place::new(&Guest::new().hang());
    let mut vm = started(&place).await;
    assert!(tokio::time::timeout(Duration::from_millis(10), vm.wait()).await.is_err());
    vm.kill();
    assert!(matches!(end_of(&mut vm).await, VmEnd::VmmFailed { .. }));
}

#[tokio::test]
async fn ports_can_be_taken_once_and_end_with_the_vm() {
    let place = Place::new(&Guest::new().hang());
    let mut vm = started(&place).await;
    let mut ports = vm.take_ports();
    assert_eq!(ports.keys().collect::<Vec<_>>(), ["hutch.channel", "hutch.workspace"]);
    assert!(vm.take_ports().is_empty());
    vm.kill();
    let mut nothing = Vec::new();
    for port in ports.values_mut() {
        tokio::time::timeout(OVER_WITHIN, port.read_to_end(&mut nothing)).await.unwrap().unwrap();
    }
    assert!(nothing.is_empty());
}

#[tokio::test]
async fn disks_are_read_and_written_and_read_only_ones_are_not() {
    let guest = Guest::new()
        .read_sector(0, 0)
        .write_sector(0, 1, b'W')
        .say(",")
        .read_sector(1, 0)
        .write_sector(1, 1, b'w')
        .read_sector(1, 1)
        .power_off();
    let place = Place::new(&guest);
    let mut image = vec![0; 1 << 20];
    image[0] = b'T';
    let template = place.put("template.img", &image);
    image[0] = b'D';
    let data = place.put("data.img", &image);
    let mut spec = place.spec();
    spec.disks = vec![disk(&template, true, "template"), disk(&data, false, "data")];
    let mut vm = start(&Qemu::discover(None).unwrap(), spec).await.unwrap();
    assert_eq!(end_of(&mut vm).await, VmEnd::PoweredOff);
    // Read, refused write; read, write, read back.
    assert_eq!(place.said(), "0T1,0D00w");
    assert_eq!(std::fs::read(&data).unwrap()[512], b'w');
    let template = std::fs::read(&template).unwrap();
    assert!(template[512..].iter().all(|&byte| byte == 0));
}

#[tokio::test]
async fn one_template_serves_many_and_a_data_disk_only_one() {
    let place = Place::new(&Guest::new().hang());
    let template = place.put("template.img", &[0; 4096]);
    let data = place.put("data.img", &[0; 4096]);
    let qemu = Qemu::discover(None).unwrap();
    let mut spec = place.spec();
    spec.disks = vec![disk(&template, true, "template"), disk(&data, false, "data")];
    let _first = start(&qemu, spec).await.unwrap();
    let mut spec = place.spec();
    spec.disks = vec![disk(&template, true, "template")];
    let _second = start(&qemu, spec).await.unwrap();
    let mut spec = place.spec();
    spec.disks = vec![disk(&data, false, "data")];
    let error = start(&qemu, spec).await.unwrap_err();
    assert!(matches!(&error, StartError::Ended { said, .. } if said.contains("lock")), "{error}");
}

#[tokio::test]
async fn a_flood_on_the_console_neither_fills_the_disk_nor_blocks_anyone() {
    let place = Place::new(&Guest::new().flood());
    // Nearly full already: more than half of it is kept only in its last quarter.
    let before = File::create(place.path("serial.log")).unwrap();
    before.set_len(SERIAL_LOG_MAX / 2).unwrap();
    let mut vm = started(&place).await;
    let reached = async {
        while before.metadata().unwrap().len() < SERIAL_LOG_MAX / 2 + (256 << 10) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(OVER_WITHIN, reached).await.expect("the flood arrives");
    assert!(before.metadata().unwrap().len() <= SERIAL_LOG_MAX);
    vm.kill();
    assert!(matches!(end_of(&mut vm).await, VmEnd::VmmFailed { .. }));
}

#[tokio::test]
async fn a_kernel_that_is_none_is_an_error_with_the_vmms_words() {
    let place = Place::new(&Guest::new().hang());
    place.put("kernel", b"this is no kernel");
    let error = start(&Qemu::discover(None).unwrap(), place.spec()).await.unwrap_err();
    assert!(matches!(&error, StartError::Ended { said, .. } if said.contains("kernel")), "{error}");
}

#[tokio::test]
async fn missing_files_are_named_and_nothing_is_started() {
    let qemu = Qemu::discover(None).unwrap();
    let place = Place::new(&Guest::new().hang());
    for (what, change) in [
        ("kernel", (|spec, path| spec.kernel = path) as fn(&mut VmSpec, std::path::PathBuf)),
        ("initramfs", |spec, path| spec.initramfs = path),
        ("serial log", |spec, path| spec.serial_log = path),
        ("log", |spec, path| spec.vmm_log = path),
    ] {
        let mut spec = place.spec();
        change(&mut spec, "/nonexistent/file".into());
        let error = start(&qemu, spec).await.unwrap_err();
        assert_eq!(error.to_string(), format!("the {what} /nonexistent/file cannot be opened"));
    }
}

#[tokio::test]
async fn what_no_vm_can_have_is_refused_before_anything_is_made() {
    let place = Place::new(&Guest::new().hang());
    let mut spec = place.spec();
    spec.cpus = 0;
    assert!(matches!(
        start(&Qemu::discover(None).unwrap(), spec).await,
        Err(StartError::Spec { .. })
    ));
    assert!(!place.path("serial.log").exists());
}

/// Whoever controls QEMU, as a guest that broke into it would, reaches nothing but what QEMU inherited.
#[tokio::test]
async fn a_captured_vmm_opens_no_file_no_network_and_no_program() {
    let place = Place::new(&Guest::new().hang());
    let outside = place.put("outside", b"secret");
    let outside = outside.to_str().unwrap();
    let target = place.path("made");
    let target = target.to_str().unwrap();
    let mut vm = started(&place).await;
    assert_eq!(
        vm.weaknesses(),
        <&[String]>::default(),
        "on a kernel without Landlock this fails: the jail is not complete"
    );
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();

    let attacks: Vec<(&'static str, Value)> = vec![
        (
            "blockdev-add",
            json!({ "driver": "file", "node-name": "a", "filename": outside, "read-only": true }),
        ),
        (
            "blockdev-add",
            json!({ "driver": "file", "node-name": "b", "filename": "/etc/passwd", "read-only": true }),
        ),
        (
            "blockdev-add",
            json!({ "driver": "file", "node-name": "c", "filename": "/proc/self/mem" }),
        ),
        ("dump-guest-memory", json!({ "paging": false, "protocol": format!("file:{target}") })),
        ("pmemsave", json!({ "val": 0, "size": 4096, "filename": target })),
        (
            "chardev-add",
            json!({ "id": "f", "backend": { "type": "file", "data": { "out": target } } }),
        ),
        (
            "chardev-add",
            json!({ "id": "u", "backend": { "type": "socket", "data": {
            "addr": { "type": "unix", "data": { "path": target } } } } }),
        ),
        (
            "chardev-add",
            json!({ "id": "t", "backend": { "type": "socket", "data": { "server": false,
            "addr": { "type": "inet", "data": { "host": "127.0.0.1", "port": port } } } } }),
        ),
        (
            "object-add",
            json!({ "qom-type": "memory-backend-file", "id": "m", "size": 4096, "mem-path": target }),
        ),
        ("object-add", json!({ "qom-type": "secret", "id": "s", "file": outside })),
        ("human-monitor-command", json!({ "command-line": format!("logfile {target}") })),
    ];
    for (command, arguments) in attacks {
        let answer = vm.control.execute(command, arguments.clone()).await;
        let refused = match &answer {
            Err(ControlError::Refused { .. }) => true,
            // The human monitor answers with its error as text.
            Ok(Value::String(said)) => {
                said.contains("ermission denied") || said.contains("not permitted")
            }
            _ => false,
        };
        assert!(refused, "{command} {arguments} gave {answer:?}");
    }
    assert!(!Path::new(target).exists());
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

/// Migration is the one command that starts a program. Older QEMUs are killed for it, newer ones fail.
#[tokio::test]
async fn a_captured_vmm_starts_no_program() {
    let place = Place::new(&Guest::new().hang());
    let target = place.path("made");
    let mut vm = started(&place).await;
    let uri = format!("exec:touch {}", target.display());
    let refused = vm.control.execute("migrate", json!({ "uri": uri })).await.is_err();
    let failed = async {
        // An error here is the end of the connection, and so of the process.
        while let Ok(state) = vm.control.execute("query-migrate", json!({})).await {
            if refused || state["status"] == "failed" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let end = vm.wait().await;
        assert!(
            matches!(&end, VmEnd::VmmFailed { reason } if reason.contains("signal 31")),
            "{end:?}"
        );
    };
    tokio::time::timeout(OVER_WITHIN, failed).await.expect("it fails or dies");
    assert!(!target.exists());
}

#[tokio::test]
async fn the_process_has_no_privilege_no_environment_and_only_its_descriptors() {
    let place = Place::new(&Guest::new().hang());
    let vm = started(&place).await;
    let proc = std::path::PathBuf::from(format!("/proc/{}", vm.pid()));
    let status = std::fs::read_to_string(proc.join("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_start_matches(':').trim().to_owned()
    };
    assert_eq!(field("CapEff"), "0000000000000000");
    assert_eq!(field("CapPrm"), "0000000000000000");
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    assert!(!field("Uid").starts_with("0\t"), "{status}");
    let limits = std::fs::read_to_string(proc.join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"));
    assert_eq!(std::fs::read(proc.join("environ")).unwrap(), b"");
    for entry in std::fs::read_dir(proc.join("fd")).unwrap() {
        let target = std::fs::read_link(entry.unwrap().path()).unwrap();
        let target = target.to_string_lossy();
        let known = ["socket:", "pipe:", "anon_inode:", "/dev/null", "/memfd:"]
            .iter()
            .any(|start| target.starts_with(start))
            || target.starts_with(&*place.path("").to_string_lossy());
        assert!(known, "{target}");
    }
}

#[test]
fn ends_are_told_apart() {
    let exited = |code: i32| ExitStatus::from_raw(code << 8);
    let saw = |shutdown, panicked| Observed { shutdown, panicked, error: None };
    let failed = |reason: &str| VmEnd::VmmFailed { reason: reason.to_owned() };
    use ShutdownReason::{GuestPanic, GuestReset, GuestShutdown, HostSignal};
    for (status, observed, killed, said, expected) in [
        (exited(0), saw(Some(GuestShutdown), false), false, "", VmEnd::PoweredOff),
        (exited(0), saw(Some(GuestReset), false), false, "", VmEnd::GuestCrashed),
        (exited(0), saw(Some(GuestPanic), false), false, "", VmEnd::GuestCrashed),
        (exited(0), saw(Some(GuestShutdown), true), false, "", VmEnd::GuestCrashed),
        (exited(0), saw(None, false), false, "", failed("it ended with status 0")),
        (
            exited(1),
            saw(None, false),
            false,
            "no memory",
            failed("it ended with status 1: no memory"),
        ),
        (exited(0), saw(Some(HostSignal), false), false, "", failed("it ended with status 0")),
        (ExitStatus::from_raw(9), saw(None, false), true, "", failed("it was ended on request")),
        (
            ExitStatus::from_raw(11),
            saw(None, false),
            false,
            "",
            failed("it was ended by signal 11"),
        ),
        // Killed after the guest had said that it powers off: the flush had come before.
        (
            ExitStatus::from_raw(9),
            saw(Some(GuestShutdown), false),
            true,
            "",
            failed("it was ended on request"),
        ),
    ] {
        assert_eq!(classify(status, &observed, killed, said), expected, "{status:?} {observed:?}");
    }
}
