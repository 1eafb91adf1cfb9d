use super::*;

fn machine() -> Machine {
    Machine {
        boot_id: "boot".to_owned(),
        kernel: "6.12".to_owned(),
        program: "/usr/bin/qemu".to_owned(),
        version: "7.2".to_owned(),
    }
}

fn unusable() -> AcceleratorState {
    AcceleratorState::Unusable { reason: "it hung".to_owned() }
}

fn kept(verdict: AcceleratorState) -> Cached {
    Cached { format_version: FORMAT_VERSION, machine: machine(), at: 1000, verdict }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

#[test]
fn hardware_is_used_where_it_works() {
    for request in [AcceleratorRequest::Auto, AcceleratorRequest::Kvm] {
        let choice = decide(request, AcceleratorState::Usable).unwrap();
        assert_eq!(choice, Choice { accelerator: Accelerator::Kvm, notice: None });
    }
}

#[test]
fn without_hardware_emulation_is_used_and_said_once() {
    for state in [AcceleratorState::Absent, AcceleratorState::NoPermission, unusable()] {
        let choice = decide(AcceleratorRequest::Auto, state).unwrap();
        assert_eq!(choice, Choice { accelerator: Accelerator::Tcg, notice: Some(EMULATING) });
    }
    let asked_for = decide(AcceleratorRequest::Tcg, unusable()).unwrap();
    assert_eq!(asked_for.notice, None);
}

#[test]
fn hardware_asked_for_and_not_there_is_an_error_that_says_why() {
    let error = |state| decide(AcceleratorRequest::Kvm, state).unwrap_err().to_string();
    assert!(error(AcceleratorState::Absent).contains("/dev/kvm is missing"));
    assert!(
        error(AcceleratorState::NoPermission).contains("kvm group")
            || error(AcceleratorState::NoPermission).contains("-aG kvm")
    );
    assert!(error(unusable()).ends_with("it hung"));
}

#[test]
fn a_verdict_holds_for_its_machine_alone() {
    let holds = |machine: &Machine| kept(AcceleratorState::Usable).holds(machine, at(5_000_000));
    assert_eq!(holds(&machine()), Some(AcceleratorState::Usable));
    assert_eq!(holds(&Machine { boot_id: "next".to_owned(), ..machine() }), None);
    assert_eq!(holds(&Machine { kernel: "6.13".to_owned(), ..machine() }), None);
    assert_eq!(holds(&Machine { version: "10.0".to_owned(), ..machine() }), None);
    assert_eq!(holds(&Machine { program: "/opt/qemu".to_owned(), ..machine() }), None);
}

#[test]
fn a_bad_verdict_is_tried_again_after_an_hour_and_a_clock_set_back_ends_it() {
    assert_eq!(kept(unusable()).holds(&machine(), at(1000 + 3599)), Some(unusable()));
    assert_eq!(kept(unusable()).holds(&machine(), at(1000 + 3600)), None);
    assert_eq!(kept(unusable()).holds(&machine(), at(999)), None);
}

#[test]
fn the_file_survives_a_round_trip_and_damage_is_as_good_as_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("accelerator.json");
    assert!(Cached::read(&path).is_none());
    kept(unusable()).write(&path);
    let content = std::fs::read(&path).unwrap();
    assert_eq!(Cached::read(&path).unwrap().holds(&machine(), at(1000)), Some(unusable()));

    for damaged in [&content[..content.len() / 2], b"", b"\0\0\0", b"{\"format_version\":2}"] {
        hutch_store::atomic::write(&path, damaged).unwrap();
        assert!(Cached::read(&path).is_none());
    }
    // A place that cannot be written costs only the memory of the verdict.
    kept(unusable()).write(Path::new("/nonexistent/accelerator.json"));
}

/// Whatever this machine is, the answer comes in time, the second one from the file, and no process stays.
#[tokio::test]
async fn this_machine_is_judged_in_time_and_the_second_time_from_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("accelerator.json");
    let qemu = Qemu::discover(None).unwrap();
    let started = std::time::Instant::now();
    let first = probe(&qemu, &path).await;
    assert!(started.elapsed() < Duration::from_secs(30));
    let tried = matches!(first, AcceleratorState::Usable | AcceleratorState::Unusable { .. });
    assert_eq!(Cached::read(&path).is_some(), tried, "{first:?}");
    assert_eq!(probe(&qemu, &path).await, first);
    if tried {
        // Proves that the second answer came from the file: a changed file gives a changed answer.
        let other = AcceleratorState::Unusable { reason: "from the file".to_owned() };
        Cached {
            format_version: FORMAT_VERSION,
            machine: Machine::of(&qemu),
            at: seconds(SystemTime::now()),
            verdict: other.clone(),
        }
        .write(&path);
        assert_eq!(probe(&qemu, &path).await, other);
    }
}
