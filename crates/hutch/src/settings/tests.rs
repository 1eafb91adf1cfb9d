use proptest::prelude::*;

use super::*;

fn resolve(environment: Environment, file: &str) -> Result<Settings, Failure> {
    let layout = Settings::layout(&environment)?;
    let file = FileConfig::parse(file, &Agents::built_in())
        .map_err(|(what, hint)| Failure::user(what).hint_if(hint))?;
    Settings::resolve(
        environment,
        layout,
        Agents::built_in(),
        file,
        Path::new("/opt/hutch/bin/hutch"),
    )
}

#[test]
fn flag_before_environment_before_file_before_default() {
    let home = ("HOME", "/home/u");
    let flags = MachineFlags { cpus: Some(CpuCount(3)), ..MachineFlags::default() };
    let none = MachineFlags::default();
    let settings = resolve(Environment::from([home, ("HUTCH_CPUS", "2")]), "cpus = 1").unwrap();
    assert_eq!(settings.machine(&flags).unwrap().cpus, 3);
    assert_eq!(settings.machine(&none).unwrap().cpus, 2);
    let settings = resolve(Environment::from([home]), "cpus = 1\nidle_timeout = \"5m\"").unwrap();
    assert_eq!(settings.machine(&none).unwrap().cpus, 1);
    assert_eq!(settings.idle_timeout.seconds(), 300);
    let settings = resolve(Environment::from([home, ("HUTCH_IDLE_TIMEOUT", "4")]), "").unwrap();
    assert_eq!(settings.idle_timeout.seconds(), 4);
    assert_eq!(settings.machine(&none).unwrap().disk_bytes, 64 << 30);
    assert!(settings.machine(&none).unwrap().memory_mib <= 4096);
}

#[test]
fn an_unknown_key_names_the_nearest_one() {
    let failure = resolve(Environment::from([("HOME", "/h")]), "memroy = \"4g\"").unwrap_err();
    assert_eq!(failure.to_string(), "there is no setting `memroy`");
    assert!(format!("{failure:?}").contains("did you mean `memory`?"));
    let failure =
        resolve(Environment::from([("HOME", "/h")]), "colour_of_the_sky = 1").unwrap_err();
    assert!(format!("{failure:?}").contains("the keys are accel, boot_timeout"));
}

#[test]
fn wrong_values_are_told_with_their_place() {
    let home = || Environment::from([("HOME", "/h")]);
    let says = |environment, file| resolve(environment, file).unwrap_err().to_string();
    assert_eq!(
        says(Environment::from([("HOME", "/h"), ("HUTCH_MEMORY", "much")]), ""),
        "the variable HUTCH_MEMORY: `much` is not a size: write a number with a unit, like `512m` or `4g`"
    );
    assert_eq!(
        says(home(), "accel = \"fast\""),
        "`accel`: `fast` is not an accelerator: `auto`, `kvm` or `tcg`"
    );
    assert_eq!(
        says(home(), "kernel = \"vmlinuz\""),
        "`kernel` must be an absolute path, not `vmlinuz`"
    );
    assert_eq!(says(home(), "memory = true"), "`memory` must be a number or a string");
    assert!(
        says(home(), "cpus = 1\nmemory = ").starts_with("line 2: "),
        "{}",
        says(home(), "cpus = 1\nmemory = ")
    );
}

#[test]
fn limits_hold() {
    let settings = resolve(Environment::from([("HOME", "/h")]), "").unwrap();
    for (flags, message) in [
        (
            MachineFlags { cpus: Some(CpuCount(0)), ..Default::default() },
            "a sandbox has 1 to 128 CPUs, not 0",
        ),
        (
            MachineFlags { memory: Some(ByteSize::mib(1)), ..Default::default() },
            "a sandbox has 256m to 1t of memory, not 1m",
        ),
        (
            MachineFlags { disk: Some(ByteSize::mib(1)), ..Default::default() },
            "a sandbox has a disk of 1g to 16t, not 1m",
        ),
    ] {
        assert_eq!(settings.machine(&flags).unwrap_err().to_string(), message);
    }
}

#[test]
fn variables_that_are_passed_on_are_those_that_are_set() {
    let environment = Environment::from([("TERM", "xterm"), ("COLORTERM", ""), ("HOME", "/h")]);
    assert_eq!(environment.some(OF_THE_TERMINAL), [("TERM".into(), "xterm".into())]);
    assert_eq!(environment.value("COLORTERM"), Some(OsStr::new("")));
}

proptest! {
    #[test]
    fn no_file_panics(text in "[a-z_=\" 0-9\\n.\\[\\]#]{0,200}") {
        let _parsed = FileConfig::parse(&text, &Agents::built_in());
    }
}

#[test]
fn a_runtime_directory_that_is_not_ours_is_not_used() {
    let own = tempfile::tempdir().unwrap();
    let file = own.path().join("file");
    std::fs::File::create(&file).unwrap();
    let gone = own.path().join("gone");
    let uid = rustix::process::geteuid().as_raw();
    let runtime = |path: &Path| {
        let path = path.display().to_string();
        let environment = Environment::from([("HOME", "/h"), ("XDG_RUNTIME_DIR", &path)]);
        Settings::layout(&environment).unwrap().runtime
    };
    assert_eq!(runtime(own.path()), own.path().join("hutch"));
    let private = PathBuf::from(format!("/tmp/hutch-{uid}"));
    assert_eq!(runtime(&gone), private);
    assert_eq!(runtime(&file), private);
    assert!(!is_runtime_dir(own.path(), uid + 1));
}

#[test]
fn the_keeper_is_told_who_the_user_is() {
    let flags = |environment: Environment| -> Vec<String> {
        let user = UserSettings::new(&environment);
        user.flags().map(|(flag, value)| format!("{flag}={}", value.display())).collect()
    };
    let all = Environment::from([("HOME", "/h"), ("SHELL", "/bin/zsh"), ("USER", "u")]);
    assert_eq!(
        UserSettings::new(&all).policy_of_docker().unwrap(),
        Path::new("/h/.sandboxd/proxy-config.json")
    );
    assert_eq!(flags(all), ["--home=/h", "--shell=/bin/zsh", "--user=u"]);
    assert!(flags(Environment::from([("SHELL", "zsh"), ("USER", ""), ("HOME", "h")])).is_empty());
}
