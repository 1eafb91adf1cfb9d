use std::fs::File;
use std::io::Seek as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::*;
use crate::qemu::guest::{Guest, Place};
use crate::{Memory, Qemu, Snapshot, StartError, Vm, VmSpec, Vmm as _};

const WITHIN: Duration = Duration::from_secs(60);

fn new_file(path: &Path) -> OwnedFd {
    File::options().read(true).write(true).create_new(true).open(path).unwrap().into()
}

fn snapshot(place: &Place) -> Snapshot {
    // As a directory that only we can enter protects it: QEMU may open it, and nobody else comes to it.
    let open = |name| File::options().read(true).write(true).open(place.path(name)).unwrap().into();
    Snapshot { memory: open("memory"), state: File::open(place.path("state")).unwrap().into() }
}

fn saveable(place: &Place) -> VmSpec {
    VmSpec { memory: Memory::File(new_file(&place.path("memory"))), ..place.spec() }
}

async fn heard(log: &Path, ends: impl Fn(&str) -> bool) -> String {
    let heard = async {
        loop {
            let said = std::fs::read(log).unwrap_or_default();
            let said = String::from_utf8_lossy(&said).into_owned();
            if ends(&said) {
                return said;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WITHIN, heard).await.expect("the guest says it in time")
}

/// A guest that counts, saved when it has said some digits; with all that it said until then.
async fn saved(qemu: &Qemu) -> (Place, String) {
    let place = Place::new(&Guest::new().say("begin:").count());
    let mut vm = qemu.start(saveable(&place)).await.unwrap();
    heard(&place.path("serial.log"), |said| said.contains("begin:0123")).await;
    vm.save(new_file(&place.path("state"))).await.unwrap();
    vm.kill();
    vm.wait().await;
    let said = place.said();
    (place, said)
}

fn spec_of(place: &Place, log: &str) -> VmSpec {
    VmSpec { serial_log: place.path(log), ..place.spec() }
}

#[tokio::test]
async fn a_saved_guest_goes_on_where_it_stopped_as_often_as_one_likes() {
    let qemu = Qemu::discover(None).unwrap();
    let (place, before) = saved(&qemu).await;
    let content = std::fs::read(place.path("memory")).unwrap();
    let changed = |place: &Place| {
        let metadata = std::fs::metadata(place.path("memory")).unwrap();
        (metadata.ctime(), metadata.ctime_nsec(), metadata.size())
    };
    let stamp = changed(&place);
    let last = before.chars().last().unwrap();
    let mut vms: Vec<Box<dyn Vm>> = Vec::new();
    for log in ["first", "second"] {
        vms.push(qemu.resume(spec_of(&place, log), snapshot(&place)).await.unwrap());
        let after = heard(&place.path(log), |said| said.len() > 12).await;
        // The digit on its way out when it was stopped may have been said already, or not.
        let first = after.chars().next().unwrap();
        let next = |digit: char| char::from_digit((digit.to_digit(10).unwrap() + 1) % 10, 10);
        assert!(Some(first) == next(last) || first == last, "{before:?} then {after:?}");
        assert!(!after.contains("begin"), "{after:?}");
    }
    drop(vms);
    assert_eq!(std::fs::read(place.path("memory")).unwrap(), content, "the file never changes");
    assert_eq!(changed(&place), stamp);
}

#[tokio::test]
async fn a_damaged_or_foreign_state_is_an_error_and_leaves_nothing() {
    let qemu = Qemu::discover(None).unwrap();
    let (place, _) = saved(&qemu).await;
    let state = std::fs::read(place.path("state")).unwrap();
    let half = &state[..state.len() / 2];
    let garbage = vec![0x5a; 4096];
    for (what, bytes) in [("truncated", half), ("empty", &[][..]), ("garbage", &garbage[..])] {
        place.put("state", bytes);
        let error = qemu.resume(spec_of(&place, "log"), snapshot(&place)).await.unwrap_err();
        assert!(
            matches!(error, StartError::Ended { .. } | StartError::Control { .. }),
            "{what}: {error:?}"
        );
    }
    place.put("state", &state);
    let other = VmSpec { memory_mib: 128, ..spec_of(&place, "log") };
    assert!(qemu.resume(other, snapshot(&place)).await.is_err(), "another size of memory");
    let other = VmSpec { ports: vec!["other".to_owned()], ..spec_of(&place, "log") };
    assert!(qemu.resume(other, snapshot(&place)).await.is_err(), "other devices");
    qemu.resume(spec_of(&place, "log"), snapshot(&place)).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_saved_says_so() {
    let qemu = Qemu::discover(None).unwrap();
    let place = Place::new(&Guest::new().hang());
    let mut vm = qemu.start(place.spec()).await.unwrap();
    let refused = vm.save(new_file(&place.path("state"))).await.unwrap_err();
    assert!(matches!(refused, SaveError::Memory), "{refused:?}");
    drop(vm);

    let mut vm = qemu.start(saveable(&place)).await.unwrap();
    let full: OwnedFd = File::options().write(true).open("/dev/full").unwrap().into();
    let refused = vm.save(full).await.unwrap_err();
    assert!(matches!(refused, SaveError::Write { .. }), "{refused:?}");
}

#[tokio::test]
async fn a_resumed_vm_has_no_memory_of_its_own_choice() {
    let qemu = Qemu::discover(None).unwrap();
    let place = Place::new(&Guest::new().hang());
    let mut memory = File::from(new_file(&place.path("memory")));
    memory.rewind().unwrap();
    let snapshot =
        Snapshot { memory: new_file(&place.path("m")), state: new_file(&place.path("s")) };
    let spec = VmSpec { memory: Memory::File(memory.into()), ..place.spec() };
    assert!(matches!(qemu.resume(spec, snapshot).await, Err(StartError::Spec { .. })));
}
