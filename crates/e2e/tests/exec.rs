//! Sessions: streams, status, terminals, signals, and that nothing leaks.

use std::thread;
use std::time::Duration;

use hutch_testkit::{Terminal, TestEnvironment, eventually};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn streams_are_separate_and_binary_clean() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("streams");

    let mixed = sandbox.shell("echo out; echo err >&2; exit 7").run().code(7);
    assert_eq!((mixed.stdout.as_slice(), mixed.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));

    let bytes: Vec<u8> =
        (0..1_000_000_u32).flat_map(|number| (number % 65_521).to_be_bytes()).collect();
    let echoed = sandbox.exec_with(["-i"], ["cat"]).stdin(bytes.clone()).run().success();
    assert!(echoed.stdout == bytes, "{} bytes came back of {}", echoed.stdout.len(), bytes.len());

    // The end of standard input reaches the program while its output goes on.
    let counted = sandbox
        .exec_with(["-i"], ["sh", "-c", "wc -c; sleep 0.3; echo after"])
        .stdin("12345")
        .run();
    counted.success().says("5\nafter");

    // Without -i nothing is attached: the program sees the end at once, and what is piped in is dropped.
    sandbox.exec(["wc", "-c"]).stdin("12345").run().success().says("0");

    // A program that does not read its input does not hang us.
    sandbox.exec_with(["-i"], ["true"]).stdin(vec![0; 4 << 20]).run().success();

    // Closed output ends the writer instead of blocking it.
    sandbox.shell("yes | head -c 10000000 | wc -c").run().success().says("10000000");
}

#[test]
fn a_slow_reader_of_one_session_does_not_stall_another() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("slow");
    // Its output is never read by anyone: `tail -f` on a pipe that we do not drain.
    let mut stalled = environment
        .program("sh")
        .args([
            "-c",
            "\"$0\" exec slow sh -c 'yes' | sh -c 'read line; echo started >&2; exec sleep 60'",
        ])
        .args([environment.stage().programs().join("hutch")])
        .terminal(24, 80);
    stalled.shows("started");
    for _ in 0..5 {
        sandbox.exec(["echo", "quick"]).limit(SOON).run().success().says("quick");
    }
    stalled.types("\x03");
}

#[test]
fn status_of_every_kind_of_end() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("status");
    for code in [0, 1, 42, 255] {
        sandbox.shell(&format!("exit {code}")).run().code(code);
    }
    sandbox.shell("kill -TERM $$").run().code(128 + 15);
    sandbox.shell("kill -KILL $$").run().code(128 + 9);
    sandbox.exec(["no-such-program"]).run().code(127).complains("no-such-program");
    sandbox.exec(["/etc/passwd"]).run().code(126).complains("/etc/passwd");
    sandbox
        .exec_with(["-w", "/no/such/place"], ["true"])
        .run()
        .code(126)
        .complains("/no/such/place");
    sandbox.exec_with(["-u", "nobody-here"], ["true"]).run().code(126).complains("nobody-here");
}

#[test]
fn environment_user_and_directory_are_as_asked() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("options");
    let file = environment.path("work/variables");
    environment.write(&file, "# a comment\nFROM_FILE=one two\nCOLOUR=red\n\n");
    let file = file.to_str().expect("a path of ours is text");
    let shown = sandbox
        .exec_with(
            ["--env-file", file, "-e", "COLOUR=blue", "-e", "EMPTY="],
            ["sh", "-c", "echo $FROM_FILE/$COLOUR/${EMPTY-unset}"],
        )
        .run()
        .success();
    shown.says("one two/blue/");
    // A name alone takes the value of the calling command.
    sandbox
        .exec_with(["-e", "CALLER"], ["sh", "-c", "echo $CALLER"])
        .variable("CALLER", "here")
        .run()
        .success()
        .says("here");
    // Nothing else of the caller's environment comes along.
    sandbox.shell("echo ${SECRET-none}").variable("SECRET", "leak").run().success().says("none");

    sandbox
        .exec_with(["-u", "root"], ["sh", "-c", "id -un; echo $HOME; pwd"])
        .run()
        .success()
        .says(&format!("root\n/root\n{}", sandbox.workspace().display()));
    sandbox.exec_with(["-u", "0:0"], ["id", "-u"]).run().success().says("0");
    sandbox
        .exec_with(["-u", "4242:4343"], ["sh", "-c", "id -u; id -g"])
        .run()
        .success()
        .says("4242\n4343");
    sandbox.exec_with(["-w", "/usr/lib"], ["pwd"]).run().success().says("/usr/lib");
    sandbox.exec(["pwd"]).run().success().says(&sandbox.workspace().to_string_lossy());
    // Arguments are passed as they are, not through a shell.
    sandbox
        .exec(["printf", "%s|", "a b", "$HOME", "*", "", "ä\n"])
        .run()
        .success()
        .says("a b|$HOME|*||ä\n|");
}

#[test]
fn privileged_has_all_capabilities_and_plain_root_has_not() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("capable");
    let capabilities = "awk '/^CapEff/ { print $2 }' /proc/self/status";
    let plain = sandbox.root_shell(capabilities).run().success().text();
    let privileged = sandbox
        .exec_with(["--privileged", "-u", "root"], ["sh", "-c", capabilities])
        .run()
        .success()
        .text();
    let bits = |text: &str| u64::from_str_radix(text, 16).expect("a mask").count_ones();
    assert!(bits(&privileged) > bits(&plain), "privileged {privileged}, plain {plain}");
    assert!(bits(&privileged) >= 38, "privileged {privileged}");
}

#[test]
fn a_terminal_has_size_signals_and_job_control() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("terminal");
    let mut terminal = sandbox.exec_with(["-it"], ["bash", "--norc"]).terminal(33, 101);
    terminal.until("the prompt is there", SOON, |screen| screen.contents().contains("bash-"));
    assert!(!terminal.is_cooked(), "the outer terminal is raw during a session");
    terminal.types("stty size; tty\r");
    terminal.shows("33 101");
    terminal.shows("/dev/pts/");
    terminal.resize(20, 70);
    terminal.types("clear; stty size\r");
    terminal.shows("20 70");

    // Ctrl-C ends the foreground process, not the shell.
    terminal.types("clear; sleep 1000; echo ended-$?\r");
    eventually("it sleeps", SOON, || {
        sandbox.exec(["pgrep", "-x", "sleep"]).run().status.success().then_some(())
    });
    terminal.types("\x03");
    terminal.types("echo still-$((1+1))\r");
    terminal.shows("still-2");

    // Ctrl-Z stops it, fg resumes it.
    terminal.types("clear; sleep 1000\r");
    eventually("it sleeps", SOON, || {
        sandbox.exec(["pgrep", "-x", "sleep"]).run().status.success().then_some(())
    });
    terminal.types("\x1a");
    terminal.shows("Stopped");
    terminal.types("jobs\r");
    terminal
        .until("jobs are listed", SOON, |screen| screen.contents().matches("Stopped").count() >= 2);
    terminal.types("kill %1\r");

    // A full-screen program draws on the whole screen and restores it.
    terminal.types("clear; vi -u NONE greeting\r");
    terminal.until("vi is there", SOON, |screen| empty_lines(screen) > 5);
    terminal.types("ihello from vi\x1b:wq\r");
    terminal.until("vi is gone", SOON, |screen| empty_lines(screen) == 0);
    terminal.types("exit 5\r");
    terminal.ends_with(5);
    let greeting =
        std::fs::read_to_string(sandbox.workspace().join("greeting")).expect("vi wrote it");
    assert_eq!(greeting, "hello from vi\n");
}

#[test]
fn the_terminal_is_restored_on_every_way_out() {
    let environment = TestEnvironment::new();
    environment.boot("restored");
    // An outer shell owns the terminal, as a person's does.
    let hutch = environment.stage().programs().join("hutch");
    let mut outer =
        environment.program("bash").args(["--norc", "-i"]).variable("H", &hutch).terminal(24, 80);
    let mut round = 0;
    let mut is_restored = |outer: &mut Terminal, how: &str| {
        round += 1;
        outer.types(format!("clear; stty -a | grep -c -w -e icanon; echo round-$(({round}+0))\r"));
        let expected = format!("1\nround-{round}");
        outer.until(&format!("the terminal is restored after {how}"), SOON, |screen| {
            screen.contents().contains(&expected)
        });
    };
    for (how, script) in [
        ("an exit", "sh -c 'exit 3'"),
        ("a signal", "sh -c 'kill -9 $$'"),
        ("a failure", "no-such-program"),
    ] {
        // What is typed before its end would go to the session.
        outer.types(format!("clear; $H exec -it restored {script}; echo over-$((40+2))\r"));
        outer.shows("over-42");
        is_restored(&mut outer, how);
    }
    outer.types("clear; $H exec -it restored sh -c 'echo ready-$((1+1)); sleep 1000'; echo over-$((40+2))\r");
    outer.shows("ready-2");
    environment.process("hutch-keeper").signal(Signal::KILL);
    outer.shows("over-42");
    is_restored(&mut outer, "the keeper's death");
    outer.types("exit 0\r");
    outer.ends_with(0);
}

#[test]
fn detach_keys_leave_the_session_running() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("detach");
    let mut terminal =
        sandbox.exec_with(["-it"], ["sh", "-c", "echo ready; exec sleep 1001"]).terminal(24, 80);
    terminal.shows("ready");
    terminal.types("\x10\x11");
    terminal.ends_with(0);
    sandbox.shell("pgrep -f 'sleep 1001'").run().success();

    let mut other = sandbox
        .exec_with(
            ["-it", "--detach-keys", "ctrl-a,x"],
            ["sh", "-c", "echo ready; exec sleep 1002"],
        )
        .terminal(24, 80);
    other.shows("ready");
    other.types("\x10\x11");
    other.types("\x01x");
    other.ends_with(0);
    sandbox.shell("pgrep -f 'sleep 1002'").run().success();
}

#[test]
fn a_detached_session_runs_on_its_own() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("background");
    sandbox
        .exec_with(["-d"], ["sh", "-c", "sleep 0.2; echo done > file; exec sleep 1000"])
        .limit(SOON)
        .run()
        .success();
    let file = sandbox.workspace().join("file");
    eventually("it writes", SOON, || {
        std::fs::read_to_string(&file).ok().filter(|text| text == "done\n")
    });
    sandbox.exec(["pgrep", "-x", "sleep"]).run().success();
}

#[test]
fn signals_are_forwarded() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("signals");
    for (signal, name, code) in [
        (Signal::TERM, "TERM", 41),
        (Signal::INT, "INT", 42),
        (Signal::HUP, "HUP", 43),
        (Signal::USR1, "USR1", 44),
    ] {
        let ready = sandbox.workspace().join(name);
        let running = sandbox
            .shell(&format!(
                "trap 'exit {code}' {name}; touch {name}; while :; do sleep 0.05; done"
            ))
            .start();
        eventually("it is ready", SOON, || ready.exists().then_some(()));
        running.signal(signal);
        running.wait(SOON).code(code);
    }
}

#[test]
fn a_client_that_dies_takes_its_processes_along() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("dying");
    let running = sandbox.shell("(sleep 1003 & sleep 1003 & wait) & touch ready; wait").start();
    let ready = sandbox.workspace().join("ready");
    eventually("it is ready", SOON, || ready.exists().then_some(()));
    running.signal(Signal::KILL);
    eventually("its processes are gone", SOON, || {
        sandbox.shell("pgrep -f 'sleep 100[3]'").run().status.code().filter(|code| *code == 1)
    });
}

#[test]
fn many_sessions_leak_nothing() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("many");
    let counts = || {
        let keeper = environment.process("hutch-keeper").pid;
        let open =
            std::fs::read_dir(format!("/proc/{keeper}/fd")).expect("the keeper runs").count();
        let inside = sandbox.root_shell("ps -e --no-headers | wc -l; ls /dev/pts | wc -l");
        let inside = inside.run().success().lines();
        let numbers = inside.iter().map(|number| number.parse().expect("a number"));
        [open].into_iter().chain(numbers).collect::<Vec<usize>>()
    };
    for _ in 0..5 {
        sandbox.exec(["true"]).run().success();
    }
    let before = counts();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..50 {
                    sandbox.shell(&format!("exit {round}")).run().code(round);
                }
            });
        }
    });
    // There may be less: at first the sessions before were still on their way out.
    eventually("nothing is more than before", SOON, || {
        counts().iter().zip(&before).all(|(now, before)| now <= before).then_some(())
    });
}

#[test]
fn thirty_sessions_at_once() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("crowd");
    let running: Vec<_> = (0..30)
        .map(|number| {
            sandbox
                .exec_with(["-i"], ["sh", "-c", "cat; echo $0", &number.to_string()])
                .stdin(format!("{number} "))
                .start()
        })
        .collect();
    for (number, session) in running.into_iter().enumerate() {
        session.wait(Duration::from_secs(120)).success().says(&format!("{number} {number}"));
    }
}

#[test]
fn exec_starts_a_stopped_sandbox() {
    let environment = TestEnvironment::new();
    let sandbox = environment.create("stopped");
    assert_eq!(sandbox.status(), "stopped");
    sandbox.exec(["echo", "hello"]).run().success().says("hello");
    assert_eq!(sandbox.status(), "running");
}

#[test]
fn usage_errors_say_what_to_do() {
    let environment = TestEnvironment::new();
    let sandbox = environment.create("named");
    environment.hutch(["exec", "nameb", "true"]).run().failure().complains("named");
    environment
        .hutch(["exec", "--no-such-flag", "named", "true"])
        .run()
        .failure()
        .complains("--no-such-flag");
    environment.hutch(["exec", "named"]).run().failure();
    assert_eq!(sandbox.status(), "stopped");
}

/// Lines that vi shows after the end of the file.
fn empty_lines(screen: &vt100::Screen) -> usize {
    screen.contents().lines().filter(|line| line.trim_end() == "~").count()
}
