use std::fs::File;
use std::path::PathBuf;

use super::*;
use crate::{DiskSpec, Memory, arch};

const VERSION: Version = Version { major: 7, minor: 2 };

fn spec() -> VmSpec {
    let disk = |serial: &str, usage| DiskSpec {
        file: File::open("/dev/null").unwrap().into(),
        usage,
        serial: serial.to_owned(),
    };
    VmSpec {
        accelerator: Accelerator::Tcg,
        cpus: 2,
        memory_mib: 2048,
        memory: Memory::Anonymous,
        kernel: PathBuf::from("/k,ernel"),
        initramfs: PathBuf::from("/initramfs"),
        kernel_arguments: vec!["hutch.debug=1".to_owned()],
        disks: vec![disk("template", DiskUse::Image), disk("data", DiskUse::Data)],
        ports: vec!["hutch.channel".to_owned(), "hutch.workspace".to_owned()],
        serial_log: PathBuf::from("/serial"),
        vmm_log: PathBuf::from("/vmm"),
        scratch: PathBuf::from("/scratch"),
    }
}

fn line(spec: &VmSpec) -> Vec<String> {
    let descriptors = Descriptors {
        control: 3,
        serial: 4,
        kernel: 5,
        initramfs: 6,
        ports: vec![7, 8],
        disks: vec![9, 10],
        memory: None,
        state: None,
    };
    build(spec, arch::native(), VERSION, &["of_the_host=1".to_owned()], &descriptors)
}

#[test]
fn nothing_of_an_exchange_has_to_last() {
    let mut spec = spec();
    spec.disks[1].usage = DiskUse::Exchange;
    let line = line(&spec);
    let block: serde_json::Value = serde_json::from_str(values(&line, "-blockdev")[1]).unwrap();
    assert_eq!(block["driver"], "raw");
    assert_eq!((&block["discard"], &block["detect-zeroes"]), (&json!("ignore"), &json!("off")));
    assert_eq!(block["cache"]["no-flush"], true);
}

/// The values of an option, in order.
fn values<'a>(line: &'a [String], option: &str) -> Vec<&'a str> {
    line.iter()
        .zip(line.iter().skip(1))
        .filter(|(name, _)| *name == option)
        .map(|(_, value)| value.as_str())
        .collect()
}

#[test]
fn nothing_is_there_that_was_not_asked_for() {
    let line = line(&spec());
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot", "-S"] {
        assert!(line.iter().any(|word| word == flag), "{flag}");
    }
    assert_eq!(values(&line, "-display"), ["none"]);
    assert_eq!(
        values(&line, "-sandbox"),
        ["on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    );
    for absent in
        ["-netdev", "-nic", "-net", "-drive", "-monitor", "-vnc", "-qmp", "-fsdev", "-virtfs"]
    {
        assert!(!line.iter().any(|word| word == absent), "{absent}");
    }
}

#[test]
fn no_path_of_the_host_is_on_the_command_line() {
    let line = line(&spec());
    for path in ["/k,ernel", "/initramfs", "/serial", "/vmm", "/scratch"] {
        assert!(!line.iter().any(|word| word.contains(path)), "{path}");
    }
    assert_eq!(values(&line, "-kernel"), ["/proc/self/fd/5"]);
    assert_eq!(values(&line, "-initrd"), ["/proc/self/fd/6"]);
}

#[test]
fn each_accelerator_has_its_processor() {
    let mut spec = spec();
    let cpu = values(&line(&spec), "-cpu").concat();
    assert!(cpu == "max" || cpu.starts_with("max,-erms"), "{cpu}");
    let accel = values(&line(&spec), "-accel").concat();
    assert!(accel.starts_with("tcg,thread=multi,tb-size="), "{accel}");
    spec.accelerator = Accelerator::Kvm;
    assert_eq!(values(&line(&spec), "-cpu"), ["host"]);
    assert_eq!(values(&line(&spec), "-accel"), ["kvm"]);
}

#[test]
fn an_emulated_processor_copies_by_words_and_only_known_features_are_named() {
    let cpu = |version| cpu(Accelerator::Tcg, arch::native(), version);
    for (feature, since) in arch::native().emulated_without {
        assert!(cpu(*since).contains(&format!(",-{feature}")));
    }
    let (old, new) = (cpu(VERSION), cpu(Version { major: 10, minor: 0 }));
    assert!(!old.contains("fsrs") && new.starts_with(&old), "{old} {new}");
}

#[test]
fn disks_are_raw_and_report_a_full_host() {
    let line = line(&spec());
    assert_eq!(values(&line, "-add-fd"), ["fd=9,set=1", "fd=10,set=2"]);
    let blocks: Vec<serde_json::Value> = values(&line, "-blockdev")
        .iter()
        .map(|block| serde_json::from_str(block).unwrap())
        .collect();
    assert_eq!(blocks.len(), 2);
    for (block, read_only) in blocks.iter().zip([true, false]) {
        assert_eq!(block["driver"], "raw");
        assert_eq!(block["read-only"], read_only);
        assert_eq!(block["discard"], "unmap");
        assert_eq!(block["cache"]["no-flush"], false);
    }
    assert_eq!(blocks[1]["file"]["filename"], "/dev/fdset/2");
    let devices = values(&line, "-device");
    let data = devices.iter().find(|device| device.contains("\"data\"")).unwrap();
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!((&data["werror"], &data["rerror"]), (&json!("report"), &json!("report")));
}

#[test]
fn ports_have_fixed_numbers_and_names() {
    let line = line(&spec());
    let ports: Vec<_> = values(&line, "-device")
        .into_iter()
        .filter(|device| device.contains("virtserialport"))
        .collect();
    assert_eq!(ports.len(), 2);
    assert!(
        ports[0].contains("\"nr\":1") && ports[0].contains("\"hutch.channel\""),
        "{}",
        ports[0]
    );
    assert!(
        ports[1].contains("\"nr\":2") && ports[1].contains("\"chardev\":\"port1\""),
        "{}",
        ports[1]
    );
}

#[test]
fn the_caller_has_the_last_kernel_word() {
    let line = line(&spec());
    let words: Vec<&str> = values(&line, "-append")[0].split(' ').collect();
    assert!(words.starts_with(&[&format!("console={}", arch::native().console)]));
    assert!(words.contains(&"panic=-1"));
    assert_eq!(words.last(), Some(&"hutch.debug=1"));
}

#[test]
fn protections_are_off_only_where_nothing_is_speculated() {
    let mut spec = spec();
    assert!(values(&line(&spec), "-append")[0].contains("mitigations=off"));
    spec.accelerator = Accelerator::Kvm;
    assert!(!values(&line(&spec), "-append")[0].contains("mitigations"));
}

#[test]
fn names_that_could_be_more_than_names_are_refused() {
    type Change = fn(&mut VmSpec, &str);
    let port: Change = |spec, name| spec.ports[0] = name.to_owned();
    let disk: Change = |spec, name| spec.disks[0].serial = name.to_owned();
    let word: Change = |spec, name| spec.kernel_arguments[0] = name.to_owned();
    assert!(check(&spec()).is_ok());
    for (change, names) in [
        (port, &["", "a,b", "a b", "hutch.workspace", "é", "a\n"][..]),
        (disk, &["", "data", "a=b", "a-very-long-serial-number"][..]),
        (word, &["", "a b", "a\n", "\u{0}", "é"][..]),
    ] {
        for name in names {
            let mut spec = spec();
            change(&mut spec, name);
            assert!(matches!(check(&spec), Err(StartError::Spec { .. })), "{name:?}");
        }
    }
}

#[test]
fn sizes_that_no_vm_has_are_refused() {
    for (cpus, memory) in [(0, 1024), (256, 1024), (1, 63), (1, 0)] {
        let spec = VmSpec { cpus, memory_mib: memory, ..spec() };
        assert!(matches!(check(&spec), Err(StartError::Spec { .. })), "{cpus} {memory}");
    }
    let spec = VmSpec { ports: (0..31).map(|number| format!("p{number}")).collect(), ..spec() };
    assert!(matches!(check(&spec), Err(StartError::Spec { .. })));
}

#[test]
fn memory_in_a_file_is_shared_to_be_saved_and_private_when_resumed() {
    let line = |mapping, state| {
        let descriptors = Descriptors {
            control: 3,
            serial: 4,
            kernel: 5,
            initramfs: 6,
            ports: vec![7, 8],
            disks: vec![9, 10],
            memory: Some(MemoryFile { descriptor: 11, mapping }),
            state,
        };
        build(&spec(), arch::native(), VERSION, &["of_the_host=1".to_owned()], &descriptors)
    };
    let saved = line(Mapping::Shared, None);
    let memory = "memory-backend-file,id=ram,size=2048M,mem-path=/proc/self/fd/11,share=on";
    assert!(values(&saved, "-object").contains(&memory));
    assert!(values(&saved, "-incoming").is_empty());

    let version = |major, minor| Mapping::of_snapshot(Version { major, minor });
    for (mapping, options, access) in [
        (version(7, 2), "share=off", FileAccess::Write),
        (version(8, 1), "share=off", FileAccess::Write),
        (version(8, 2), "share=off,readonly=on,rom=off", FileAccess::Read),
        (version(10, 0), "share=off,readonly=on,rom=off", FileAccess::Read),
    ] {
        let resumed = line(mapping, Some(12));
        let memory =
            format!("memory-backend-file,id=ram,size=2048M,mem-path=/proc/self/fd/11,{options}");
        assert!(values(&resumed, "-object").contains(&memory.as_str()), "{mapping:?}");
        assert_eq!(values(&resumed, "-incoming"), ["defer"]);
        assert_eq!(mapping.access(), access);
    }
}
