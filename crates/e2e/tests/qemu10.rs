//! The same sandbox with QEMU 10 and the libraries of Debian 13.

use std::fs;

use hutch_testkit::{Account, Invocation, TestEnvironment};

/// Makes `/usr` in a mount namespace of its own one where Debian 13's QEMU lies over the machine's, then runs the rest
/// of the arguments as an ordinary user. `$1` = the other `/usr`, `$2:$3` = the user.
const IN_DEBIAN_13: &str = r#"
set -e
mount -t overlay overlay -o lowerdir="$1:/usr" /usr
uid=$2 gid=$3
shift 3
if [ "$(cat /proc/self/setgroups)" = allow ]; then
    exec setpriv --reuid "$uid" --regid "$gid" --clear-groups "$@"
fi
exec unshare --user --map-user "$uid" --map-group "$gid" "$@"
"#;

fn in_debian_13(environment: &TestEnvironment, arguments: &[&str]) -> Invocation {
    let own = Account::own();
    let mut namespace = vec!["--mount"];
    if own.uid != 0 {
        namespace.extend(["--user", "--map-root-user"]);
    }
    let account = environment.account();
    environment
        .program_as(own, "unshare")
        .args(namespace)
        .args(["sh", "-c", IN_DEBIAN_13, "sh"])
        .args([environment.stage().qemu_10()])
        .args([account.uid.to_string(), account.gid.to_string()])
        .args(arguments)
}

#[test]
fn a_sandbox_boots_runs_and_stops_with_qemu_10() {
    let environment = TestEnvironment::new();
    let program =
        if cfg!(target_arch = "aarch64") { "qemu-system-aarch64" } else { "qemu-system-x86_64" };
    let version = in_debian_13(&environment, &[program, "--version"]).run().success().text();
    assert!(version.contains("version 10."), "{version}");

    let sandbox = environment.create("ten");
    let hutch = environment.stage().programs().join("hutch");
    let hutch = hutch.to_string_lossy();
    let script = "echo from inside > file; uname -r";
    in_debian_13(&environment, &[&hutch, "exec", "ten", "sh", "-c", script]).run().success();
    assert_eq!(
        fs::read_to_string(sandbox.workspace().join("file")).expect("it is here"),
        "from inside\n"
    );
    // What runs is what we think: the library of the process is the one of that QEMU.
    let vmm = environment.process("qemu-system").pid;
    let maps = fs::read_to_string(format!("/proc/{vmm}/maps")).expect("it runs");
    assert!(maps.contains("libc.so.6"), "{maps}");
    sandbox.exec(["true"]).run().success();
    sandbox.stop();
    environment.is_quiet();
    // The same disk starts with the machine's own QEMU.
    sandbox.shell("cat file").run().success().says("from inside");
}
