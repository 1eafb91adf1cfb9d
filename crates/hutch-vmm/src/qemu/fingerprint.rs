//! What a saved VM depends on: the program, the devices that it was started with, the processor.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::Qemu;
use super::arguments::{self, Descriptors, Mapping, MemoryFile};
use super::clock::CPUINFO;
use crate::{Accelerator, StartError, VmSpec, arch};

/// The facts of this VM, whatever its descriptors and files.
pub(super) fn facts(qemu: &Qemu, spec: &VmSpec) -> Result<Vec<Vec<u8>>, StartError> {
    arguments::check(spec)?;
    let file = |path: &Path| {
        let failed = |source| StartError::File { what: "program", path: path.to_owned(), source };
        let metadata = std::fs::metadata(path).map_err(failed)?;
        Ok(format!("{} {} {}", metadata.ino(), metadata.len(), metadata.mtime()))
    };
    let mut facts = vec![
        qemu.version.to_string().into_bytes(),
        qemu.program.to_string_lossy().into_owned().into_bytes(),
        file(&qemu.program)?.into_bytes(),
    ];
    let any = |count: usize| vec![0; count];
    let descriptors = Descriptors {
        control: 0,
        serial: 0,
        kernel: 0,
        initramfs: 0,
        disks: any(spec.disks.len()),
        ports: any(spec.ports.len()),
        memory: Some(MemoryFile { descriptor: 0, mapping: Mapping::Shared }),
        state: None,
    };
    let line = arguments::build(
        spec,
        arch::native(),
        qemu.version,
        &super::kernel_words(qemu, spec.accelerator),
        &descriptors,
    );
    facts.extend(line.into_iter().map(String::into_bytes));
    if spec.accelerator == Accelerator::Kvm {
        // The guest was given the host's processor.
        let cpuinfo = std::fs::read_to_string(CPUINFO).map_err(|source| StartError::File {
            what: "description of the processor",
            path: CPUINFO.into(),
            source,
        })?;
        facts.push(processor(&cpuinfo).into_bytes());
    }
    Ok(facts)
}

/// What of the first processor's description is the same after each boot, and different on another model.
fn processor(cpuinfo: &str) -> String {
    const VARY: [&str; 3] = ["cpu MHz", "bogomips", "BogoMIPS"];
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let lasting =
        first.lines().filter(|line| !VARY.iter().any(|&name| line.trim_start().starts_with(name)));
    lasting.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::guest::{Guest, Place, disk};

    #[test]
    fn devices_and_sizes_are_facts_and_descriptors_and_logs_are_not() {
        let qemu = Qemu::discover(None).unwrap();
        let place = Place::new(&Guest::new().hang());
        let of = |spec: &VmSpec| facts(&qemu, spec).unwrap();
        let base = of(&place.spec());
        assert_eq!(base, of(&VmSpec { serial_log: "/other".into(), ..place.spec() }));
        let image = place.put("disk", &[0; 512]);
        for other in [
            VmSpec { cpus: 2, ..place.spec() },
            VmSpec { memory_mib: 128, ..place.spec() },
            VmSpec { ports: vec!["hutch.channel".to_owned()], ..place.spec() },
            VmSpec { disks: vec![disk(&image, true, "template")], ..place.spec() },
            VmSpec { kernel_arguments: vec!["debug".to_owned()], ..place.spec() },
        ] {
            assert_ne!(of(&other), base, "{other:?}");
        }
    }

    #[test]
    fn the_processor_is_its_model_and_not_its_speed_of_the_moment() {
        let cpu = |speed: &str| {
            format!(
                "processor\t: 0\nmodel name\t: X\ncpu MHz\t\t: {speed}\nflags\t: a b\n\nprocessor\t: 1\n"
            )
        };
        assert_eq!(processor(&cpu("1000.0")), processor(&cpu("2000.0")));
        assert_ne!(processor(&cpu("1")), processor(&cpu("1").replace("a b", "a")));
        assert!(!processor(&cpu("1")).contains(": 1"));
    }
}
