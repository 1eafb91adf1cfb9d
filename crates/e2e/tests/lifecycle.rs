//! Create, run, stop, remove, reset, idle stop; what is kept and what goes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::thread;
use std::time::Duration;

use hutch_testkit::environment::files;
use hutch_testkit::{TestEnvironment, eventually, traces};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn stop_and_run_keep_home_and_installed_files() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("kept");
    sandbox.shell("echo mine > ~/note && mkdir -p ~/.cache/x && ln -s note ~/link").run().success();
    sandbox
        .root_shell("printf '#!/bin/sh\\necho installed\\n' > /usr/local/bin/tool && chmod 755 /usr/local/bin/tool && rm /etc/motd && echo changed > /etc/issue && echo setting > /etc/opt/setting")
        .run()
        .success();
    sandbox.shell("nohup sleep 1000 >/dev/null 2>&1 &").run().success();
    sandbox.stop();
    assert_eq!(sandbox.status(), "stopped");
    environment.is_quiet();

    let run = environment.hutch(["run", "-q", "kept", "--", "-c", "cat ~/link; tool; cat /etc/issue /etc/opt/setting; ls /etc/motd 2>&1 >/dev/null | wc -l; pgrep -x sleep | wc -l"]).run().success();
    run.says("mine\ninstalled\nchanged\nsetting\n1\n0");
}

#[test]
fn a_package_installed_from_a_file_is_kept() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("package");
    // There is no network yet: the package is made in the sandbox and installed as `apt` would.
    let build = "mkdir -p p/DEBIAN p/usr/bin && \
        printf 'Package: greeting\\nVersion: 1\\nArchitecture: all\\nMaintainer: nobody <n@example.com>\\nDescription: x\\n' > p/DEBIAN/control && \
        printf '#!/bin/sh\\necho greetings\\n' > p/usr/bin/greeting && chmod 755 p/usr/bin/greeting && \
        dpkg-deb --root-owner-group -b p greeting.deb && sudo apt-get install -y ./greeting.deb";
    sandbox.shell(&format!("cd ~ && {build}")).run().success();
    sandbox.stop();
    sandbox
        .shell("greeting; dpkg-query -W -f '${Status}' greeting")
        .run()
        .success()
        .says("greetings\ninstall ok installed");
}

#[test]
fn what_was_synced_survives_and_the_power_goes_off_cleanly() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("clean");
    sandbox.shell("dd if=/dev/urandom of=$HOME/data bs=1M count=32 status=none && md5sum < ~/data > ~/sum").run().success();
    sandbox.stop();
    sandbox.shell("md5sum < ~/data | cmp - ~/sum").run().success();
    // A file system that was not unmounted says so at the next mount.
    let recovered = environment.logs().matches("recovery complete").count();
    assert_eq!(recovered, 0, "{}", environment.logs());
}

#[test]
fn the_same_agent_and_workspace_attach_again() {
    let environment = TestEnvironment::new();
    let project = environment.project("app");
    let run = |script: &str| {
        environment
            .hutch(["run", "-q", "shell"])
            .args([&project])
            .args(["--", "-c", script])
            .run()
            .success()
    };
    run("echo here > ~/mark");
    run("cat ~/mark").says("here");
    // From within the directory, and with a name for the directory that is not canonical.
    environment
        .hutch(["run", "-q", "shell", "--", "-c", "cat ~/mark"])
        .directory(&project)
        .run()
        .success()
        .says("here");
    environment
        .hutch(["run", "-q", "shell", "../app/.", "--", "-c", "cat ~/mark"])
        .directory(&project)
        .run()
        .success()
        .says("here");
    assert_eq!(names(&environment), ["shell-app"]);
}

#[test]
fn names_count_up_on_a_clash() {
    let environment = TestEnvironment::new();
    for place in ["one", "two", "three"] {
        let parent = environment.project(place);
        environment.make_directory(&parent.join("app"));
        environment.hutch(["create", "-q", "shell"]).args([parent.join("app")]).run().success();
    }
    assert_eq!(names(&environment), ["shell-app", "shell-app-2", "shell-app-3"]);
    // A second sandbox of one workspace needs a name of its own.
    let app = environment.path("work/one/app");
    environment.hutch(["create", "-q", "--name", "other", "shell"]).args([&app]).run().success();
    environment
        .hutch(["create", "-q", "--name", "other", "shell"])
        .args([&app])
        .run()
        .failure()
        .complains("other");
    environment
        .hutch(["create", "-q", "--name", "not/a name", "shell"])
        .args([&app])
        .run()
        .failure();
    assert_eq!(names(&environment).len(), 4);
}

#[test]
fn ls_and_inspect_tell_what_is_there() {
    let environment = TestEnvironment::new();
    environment.hutch(["ls", "-q"]).run().success().says("");
    let first = environment.create("first");
    let second = environment.boot("second");
    assert_eq!((first.status().as_str(), second.status().as_str()), ("stopped", "running"));
    let table = environment.hutch(["ls"]).run().success();
    let rows = table.lines();
    assert_eq!(rows.len(), 3, "{table:?}");
    assert!(
        rows[0].contains("NAME") && rows[0].contains("STATUS") && rows[0].contains("WORKSPACE"),
        "{table:?}"
    );
    assert_eq!(environment.hutch(["ls", "-q"]).run().success().lines().len(), 2);
    assert_eq!(environment.hutch(["list", "--quiet"]).run().success().lines().len(), 2);

    let both = environment.hutch(["inspect", "first", "second"]).run().success().json();
    assert_eq!(both.as_array().map(Vec::len), Some(2));
    for (entry, name, status) in [(&both[0], "first", "stopped"), (&both[1], "second", "running")] {
        assert_eq!(
            (entry["name"].as_str(), entry["status"].as_str()),
            (Some(name), Some(status)),
            "{entry}"
        );
        for key in ["id", "created_at", "template", "labels"] {
            assert!(!entry[key].is_null(), "{key} of {entry}");
        }
    }
    environment.hutch(["inspect", "frist"]).run().failure().complains("first");
}

#[test]
fn rm_leaves_nothing() {
    let environment = TestEnvironment::new();
    let kept = environment.create("kept");
    let sandbox = environment.boot("gone");
    sandbox
        .shell("echo precious > file; dd if=/dev/zero of=$HOME/big bs=1M count=20 status=none")
        .run()
        .success();
    environment.hutch(["rm", "gone"]).run().success().says("gone");
    environment.is_quiet();
    assert!(environment.sockets().is_empty(), "{:?}", environment.sockets());
    assert_eq!(names(&environment), ["kept"]);
    let left: Vec<_> = files(&environment.state())
        .into_iter()
        .filter(|file| file.to_string_lossy().contains("gone"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    // The workspace is the user's.
    assert_eq!(
        fs::read_to_string(environment.path("work/gone/file")).expect("it is here"),
        "precious\n"
    );
    environment.hutch(["rm", "gone"]).run().failure().complains("gone");
    environment.hutch(["rm", kept.name()]).run().success();
    assert_eq!(names(&environment), [""; 0]);
}

#[test]
fn reset_removes_everything_after_a_yes() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("one");
    environment.create("two");
    environment.hutch(["reset"]).stdin("n\n").run().failure();
    environment.hutch(["reset"]).run().failure();
    assert_eq!(names(&environment), ["one", "two"]);
    assert_eq!(sandbox.status(), "running");
    environment.hutch(["reset", "--force"]).run().success();
    assert_eq!(names(&environment), [""; 0]);
    environment.is_quiet();
    assert!(environment.path("work/one").is_dir());
}

#[test]
fn stop_is_idempotent_and_takes_several() {
    let environment = TestEnvironment::new();
    environment.boot("one");
    environment.create("two");
    let stopped = environment.hutch(["stop", "one", "two"]).run().success();
    assert_eq!(stopped.lines(), ["one", "two"]);
    environment.hutch(["stop", "one"]).run().success();
    environment.hutch(["stop", "none"]).run().failure();
    environment.is_quiet();
}

#[test]
fn an_idle_sandbox_stops_and_a_busy_one_does_not() {
    let environment = TestEnvironment::new().variable("HUTCH_IDLE_TIMEOUT", "4");
    let idle = environment.boot("idle");
    idle.becomes("stopped", SOON);
    environment.is_quiet();

    // A session that says nothing is activity, a detached process too.
    let session = idle.exec(["sleep", "12"]).start();
    session.wait(SOON).success();
    idle.exec_with(["-d"], ["sleep", "12"]).run().success();
    let started = std::time::Instant::now();
    idle.becomes("stopped", SOON);
    assert!(
        started.elapsed() > Duration::from_secs(11),
        "stopped after {:?} with a process running",
        started.elapsed()
    );
}

#[test]
fn several_workspaces_each_at_its_own_path() {
    let environment = TestEnvironment::new();
    let (main, extra, data) =
        (environment.project("main"), environment.project("extra"), environment.project("data"));
    environment.write(&data.join("file"), "fixed");
    environment
        .hutch(["create", "-q", "--name", "three", "shell"])
        .args([main.as_os_str(), extra.as_os_str(), format!("{}:ro", data.display()).as_ref()])
        .run()
        .success();
    let script = format!(
        "pwd; echo a > {e}/a; cat {d}/file; echo b > {d}/b || echo refused; ls {w}",
        e = extra.display(),
        d = data.display(),
        w = environment.path("work").display()
    );
    let run = environment.hutch(["exec", "three", "sh", "-c", &script]).run().success();
    run.says(&format!("{}\nfixedrefused\ndata\nextra\nmain", main.display()));
    assert!(extra.join("a").exists() && !data.join("b").exists());
}

#[test]
fn workspaces_that_make_no_sense_are_refused_with_a_hint() {
    let environment = TestEnvironment::new();
    for arguments in
        [["run", "shell", "/no/such/directory"], ["create", "shell", "/no/such/directory"]]
    {
        environment.hutch(arguments).run().failure().complains("/no/such/directory");
    }
    environment.hutch(["run", "no-such-agent"]).run().failure().complains("no-such-agent");
    environment.hutch(["run", "shel"]).run().failure().complains("shell");
    assert!(environment.processes().is_empty());
}

#[test]
fn the_disk_of_a_sandbox_is_sparse_and_gives_back() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("sparse");
    let disk = sandbox.directory().join("data.img");
    let used = || disk.metadata().expect("the disk is here").blocks() * 512;
    let nominal = disk.metadata().expect("the disk is here").len();
    assert!(nominal >= 60 << 30, "{nominal}");
    assert!(used() < 400 << 20, "{} used when new", used());
    sandbox
        .shell("dd if=/dev/urandom of=$HOME/big bs=1M count=200 status=none; sync")
        .run()
        .success();
    let full = used();
    sandbox.shell("rm ~/big; sync").run().success();
    sandbox.stop();
    eventually("space comes back", SOON, || (used() + (150 << 20) < full).then_some(()));
}

#[test]
fn a_parked_sandbox_holds_no_memory() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("parked");
    sandbox.stop();
    environment.is_quiet();
    assert!(traces::processes(environment.root()).is_empty());
}

#[test]
fn two_commands_at_once_on_one_sandbox() {
    let environment = TestEnvironment::new();
    let sandbox = environment.create("shared");
    // Both find it stopped, one starts it, both run.
    let running: Vec<_> =
        (0..4).map(|number| sandbox.exec(["echo", &number.to_string()]).start()).collect();
    for (number, run) in running.into_iter().enumerate() {
        run.wait(Duration::from_secs(120)).success().says(&number.to_string());
    }
    environment.process("hutch-keeper");
    // Stops at once are all answered.
    let stops: Vec<_> = (0..3).map(|_| environment.hutch(["stop", "shared"]).start()).collect();
    for stop in stops {
        stop.wait(Duration::from_secs(120)).success();
    }
    assert_eq!(sandbox.status(), "stopped");
    // A stop and an exec at once: each gets its turn, in either order, and nobody hangs.
    sandbox.start();
    let (stop, exec) =
        (environment.hutch(["stop", "shared"]).start(), sandbox.exec(["true"]).start());
    stop.wait(Duration::from_secs(120)).success();
    let exec = exec.wait(Duration::from_secs(120));
    assert!(exec.status.code().is_some(), "{exec:?}");
}

#[test]
fn eight_creates_at_once() {
    let environment = TestEnvironment::new();
    let project = environment.project("app");
    let creates: Vec<_> = (0..8)
        .map(|number| {
            environment
                .hutch(["create", "-q", "--name", &format!("s{number}"), "shell"])
                .args([&project])
                .start()
        })
        .collect();
    for create in creates {
        create.wait(Duration::from_secs(120)).success();
    }
    assert_eq!(names(&environment).len(), 8);
    // The same name eight times: one wins, seven are told.
    let outcomes: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    environment
                        .hutch(["create", "-q", "--name", "same", "shell"])
                        .args([&project])
                        .run()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("it ran")).collect()
    });
    let winners = outcomes.iter().filter(|outcome| outcome.status.success()).count();
    assert_eq!(winners, 1, "{outcomes:?}");
    // Without names: eight different ones.
    let parents: Vec<_> =
        (0..8).map(|number| environment.project(&format!("parent{number}"))).collect();
    let creates: Vec<_> = parents
        .iter()
        .map(|parent| {
            environment.make_directory(&parent.join("clash"));
            environment.hutch(["create", "-q", "shell"]).args([parent.join("clash")]).start()
        })
        .collect();
    for create in creates {
        create.wait(Duration::from_secs(120)).success();
    }
    assert_eq!(
        names(&environment).iter().filter(|name| name.starts_with("shell-clash")).count(),
        8
    );
}

#[test]
fn version_and_help_answer() {
    let environment = TestEnvironment::new();
    assert!(
        environment.hutch(["version"]).run().success().text().contains(env!("CARGO_PKG_VERSION"))
    );
    let help = environment.hutch(["--help"]).run().success().text();
    for command in ["run", "create", "exec", "ls", "inspect", "stop", "rm", "reset", "version"] {
        assert!(help.contains(command), "{command} in\n{help}");
        environment.hutch([command, "--help"]).run().success();
    }
    environment.hutch(["frobnicate"]).run().failure();
}

fn names(environment: &TestEnvironment) -> Vec<String> {
    let mut names = environment.hutch(["ls", "-q"]).run().success().lines();
    names.sort();
    names
}
