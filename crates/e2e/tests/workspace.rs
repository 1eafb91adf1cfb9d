//! The host's directory inside: semantics, ownership, changes seen on the other side.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use hutch_testkit::{Conversation, TestEnvironment, TestSandbox, eventually, stage};

const SOON: Duration = Duration::from_secs(60);
const SEMANTICS: &str = include_str!("guest/semantics.py");
const STEPS: &str = include_str!("guest/steps.py");

#[test]
fn files_behave_as_programs_expect() {
    let environment = TestEnvironment::new();
    // First on the host: what fails there is a fault of the checks.
    let host = environment.project("host");
    let checked =
        environment.program("python3").args(["-c", SEMANTICS]).directory(&host).run().success();
    let verdict = checked.text();
    assert!(verdict.ends_with(" 0 failed") && verdict.lines().count() == 1, "{checked:?}");

    let sandbox = environment.boot("semantics");
    sandbox.exec(["python3", "-c", SEMANTICS]).limit(SOON * 3).run().success().says(&verdict);
}

#[test]
fn ownership_and_modes_cross_as_promised() {
    let environment = TestEnvironment::new();
    let sandbox = environment.create("owners");
    let at = |name: &str| sandbox.workspace().join(name);
    environment.write(&at("from-host"), "host");
    sandbox
        .shell("stat -c '%u:%g %U' from-host .")
        .run()
        .success()
        .says("1000:1000 agent\n1000:1000 agent");
    sandbox.shell("echo guest > from-guest; mkdir -m 750 directory; ln -s from-host link; chmod 640 from-guest").run().success();
    sandbox.root_shell("echo root > from-root").run().success();
    let owner = environment.account();
    for name in ["from-guest", "directory", "link", "from-root"] {
        let status = fs::symlink_metadata(at(name)).expect(name);
        assert_eq!((status.uid(), status.gid()), (owner.uid, owner.gid), "owner of {name}");
    }
    assert_eq!(
        fs::metadata(at("from-guest")).expect("it is here").permissions().mode() & 0o7777,
        0o640
    );
    assert_eq!(
        fs::metadata(at("directory")).expect("it is here").permissions().mode() & 0o7777,
        0o750
    );
    assert_eq!(fs::read_link(at("link")).expect("it is a link"), Path::new("from-host"));

    // A change of owner in the guest is remembered and shown back, also after a restart; the host's owner stays.
    sandbox
        .shell("sudo chown 1234:4321 from-guest && stat -c '%u:%g' from-guest")
        .run()
        .success()
        .says("1234:4321");
    sandbox.stop();
    sandbox.shell("stat -c '%u:%g' from-guest").run().success().says("1234:4321");
    assert_eq!(fs::metadata(at("from-guest")).expect("it is here").uid(), owner.uid);
    // No file becomes set-user-id for the host's user.
    sandbox.root_shell("cp /bin/true suid && chown root suid && chmod 4755 suid").run().success();
    assert_eq!(fs::metadata(at("suid")).expect("it is here").permissions().mode() & 0o6000, 0);
}

#[test]
fn host_changes_are_seen_at_once_and_watchers_fire() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("watch");
    let workspace = sandbox.workspace();
    environment.make_directory(&workspace.join("directory"));
    let mut guest = side(&sandbox);
    // Warm every cache: what is stale now would be seen as stale.
    guest.ask("look .");
    guest.ask("look directory");
    guest.ask("look file");

    let mut delays: Vec<Duration> = (0..60)
        .map(|round| {
            let content = format!("content {round}");
            environment.write(&workspace.join("file"), &content);
            let changed = Instant::now();
            eventually("the change is seen", SOON, || {
                let size = guest.ask("look file");
                let seen = sandbox_content(&size, content.len());
                seen.then(|| changed.elapsed())
            })
        })
        .collect();
    delays.sort();
    let (usual, worst) = (delays[delays.len() * 9 / 10], delays[delays.len() - 1]);
    assert!(usual < Duration::from_millis(100), "9 of 10 within {usual:?}, all within {worst:?}");

    // Each kind of change wakes a watcher that has never looked at the file.
    let new = workspace.join("directory/new");
    let moved = workspace.join("directory/moved");
    let account = environment.account();
    let changes: [(&str, &dyn Fn()); 4] = [
        ("new", &(|| environment.write(&new, "x"))),
        ("new", &(|| environment.write(&new, "changed"))),
        ("new", &(|| account.act(|| fs::rename(&new, &moved).expect("it can be renamed")))),
        ("moved", &(|| account.act(|| fs::remove_file(&moved).expect("it can be removed")))),
    ];
    for (name, change) in changes {
        assert_eq!(guest.ask(&format!("wait directory {name}")), "watching");
        change();
        let heard = guest.hear();
        assert_eq!(heard, format!("\"{name}\""));
    }
    guest.end();
}

/// Whether an answer to `look` is a file of this size with its whole content there.
fn sandbox_content(answer: &str, size: usize) -> bool {
    let answer: serde_json::Value = serde_json::from_str(answer).expect("JSON");
    answer[0] == "file" && answer[2] == size
}

#[test]
fn changes_of_either_side_are_seen_by_the_other_step_by_step() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("steps");
    let (mut host, mut guest) = (host_side(&environment, sandbox.workspace()), side(&sandbox));
    for seed in 0..400 {
        let (actor, witness, name) = if seed % 2 == 0 {
            (&mut host, &mut guest, "host")
        } else {
            (&mut guest, &mut host, "guest")
        };
        let touched: Vec<String> =
            serde_json::from_str(&actor.ask(&format!("change {seed}"))).expect("paths");
        for path in touched {
            let question = format!("look {path}");
            let mut expected = actor.ask(&question);
            let mut seen = String::new();
            // The other side catches up; its answer is then the same, to the byte.
            let deadline = Instant::now() + Duration::from_secs(5);
            while seen != expected {
                assert!(
                    Instant::now() < deadline,
                    "step {seed} by the {name}, {path}: {expected} there, {seen} here"
                );
                seen = witness.ask(&question);
                expected = actor.ask(&question);
            }
        }
    }
    assert_eq!(host.ask("tree"), guest.ask("tree"));
    host.end();
    guest.end();
}

#[test]
fn thousands_of_steps_on_both_sides_at_once_end_with_identical_trees() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("race");
    let (mut host, mut guest) = (host_side(&environment, sandbox.workspace()), side(&sandbox));
    for round in 0..8 {
        host.say(&format!("steps {} 400", 2 * round));
        guest.say(&format!("steps {} 400", 2 * round + 1));
        let succeeded = [host.hear(), guest.hear()];
        assert!(
            succeeded.iter().all(|count| count.parse::<u32>().is_ok_and(|count| count > 20)),
            "{succeeded:?}"
        );
        let mut trees = [String::new(), String::from("-")];
        let deadline = Instant::now() + Duration::from_secs(5);
        while trees[0] != trees[1] {
            assert!(
                Instant::now() < deadline,
                "round {round}:\nhost  {}\nguest {}",
                trees[0],
                trees[1]
            );
            trees = [host.ask("tree"), guest.ask("tree")];
        }
    }
    host.end();
    guest.end();
}

#[test]
fn git_works_on_a_real_repository() {
    let environment = TestEnvironment::new();
    let project = environment.path("work/repository");
    clone_this_repository(&environment, &project);
    let sandbox = environment.create_on("git", &project);
    sandbox.shell("git status --porcelain").run().success().says("");
    sandbox
        .shell("git config user.name Agent; git config user.email agent@example.com; echo line >> README.md; git commit -qam 'change from inside'; git log -1 --format=%s")
        .run()
        .success()
        .says("change from inside");
    let git = |arguments: &[&str]| {
        environment.program("git").args(arguments).directory(&project).run().success()
    };
    git(&["status", "--porcelain"]).says("");
    git(&["log", "-1", "--format=%s"]).says("change from inside");
    git(&["fsck", "--full"]);
    // And the other way round, with both sides' index caches warm.
    environment.write(&project.join("README.md"), "from outside\n");
    sandbox.shell("git status --porcelain").run().success().says(" M README.md");
    git(&["checkout", "-q", "README.md"]);
    sandbox.shell("git status --porcelain").run().success().says("");
    sandbox
        .shell("git clone -q . ../repository/target/clone && git -C target/clone fsck && git gc -q")
        .run()
        .success();
    git(&["fsck", "--full"]);
    assert_eq!(foreign_files(&environment, &project), [""; 0]);
}

#[test]
fn projects_of_every_kind_can_be_made_and_built() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("build");
    let workspace = sandbox.workspace();
    environment.write(
        &workspace.join("main.c"),
        "#include <stdio.h>\nint main(void) { puts(\"built\"); }\n",
    );
    environment.write(&workspace.join("Makefile"), "main: main.c\n\tcc -O1 -o $@ $<\n");
    sandbox.shell("make -s && ./main").limit(SOON * 2).run().success().says("built");
    sandbox.shell("make").run().success().says("make: 'main' is up to date.");
    // A change on the host is newer for make, too.
    environment.write(
        &workspace.join("main.c"),
        "#include <stdio.h>\nint main(void) { puts(\"again\"); }\n",
    );
    sandbox.shell("make -s && ./main").limit(SOON * 2).run().success().says("again");

    sandbox
        .shell("python3 -m venv environment && environment/bin/python -c 'print(6 * 7)'")
        .limit(SOON * 3)
        .run()
        .success()
        .says("42");
    sandbox.shell("mkdir package && cd package && npm init -y >/dev/null && node -p 'require(\"./package.json\").name'").limit(SOON * 3).run().success().says("package");
    assert!(
        workspace.join("environment/pyvenv.cfg").exists()
            && workspace.join("package/package.json").exists()
    );
    assert_eq!(foreign_files(&environment, workspace), [""; 0]);
}

#[test]
fn read_only_parts_stay_as_they_are() {
    let environment = TestEnvironment::new();
    let project = environment.project("mixed");
    environment.make_directory(&project.join("vendor"));
    environment.write(&project.join("vendor/library"), "fixed");
    environment.write(&project.join("secret"), "fixed");
    let reference = environment.project("reference");
    environment.write(&reference.join("page"), "fixed");
    environment
        .hutch(["create", "-q", "--name", "mixed", "shell"])
        .args([&project])
        .args([
            format!("{}:ro", project.join("vendor").display()),
            format!("{}:ro", project.join("secret").display()),
        ])
        .args([format!("{}:ro", reference.display())])
        .run()
        .success();
    let script = format!(
        "exec 2>/dev/null; r={}; echo y > free && echo free; \
         for f in vendor/library secret $r/page; do cat $f; \
         echo x >> $f && echo written; echo x > $f && echo written; rm -f $f && echo removed; mv $f $f.x && echo moved; \
         chmod 777 $f && echo changed; touch $f && echo touched; ln $f linked && echo linked && rm -f linked; sudo sh -c \"echo x > $f\" && echo written; done; \
         echo x > vendor/new && echo made; mkdir $r/new && echo made; mv vendor v && echo moved; rm -rf vendor && echo removed; echo end",
        reference.display()
    );
    environment
        .hutch(["exec", "mixed", "sh", "-c", &script])
        .run()
        .success()
        .says("free\nfixedfixedfixedend");
    for file in [project.join("vendor/library"), project.join("secret"), reference.join("page")] {
        assert_eq!(fs::read_to_string(&file).expect("it is here"), "fixed", "{}", file.display());
    }
    // The host may still change them, and the guest sees it.
    environment.write(&project.join("vendor/library"), "newer");
    environment.hutch(["exec", "mixed", "cat", "vendor/library"]).run().success().says("newer");
    // Not even a remount in a privileged session opens them: the host refuses, not the mount.
    let remount = format!(
        "mount -o remount,rw {r} 2>/dev/null; mount -o remount,rw,bind {r} 2>/dev/null; echo x > {r}/page && echo written; echo end",
        r = reference.display()
    );
    environment
        .hutch(["exec", "--privileged", "-u", "root", "mixed", "sh", "-c", &remount])
        .run()
        .success()
        .says("end");
    assert_eq!(fs::read_to_string(reference.join("page")).expect("it is here"), "fixed");
}

#[test]
fn a_directory_of_a_hundred_thousand_entries() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("huge");
    let huge = sandbox.workspace().join("huge");
    environment.make_directory(&huge);
    environment.account().act(|| {
        for number in 0..100_000 {
            fs::File::create(huge.join(format!("entry-{number:06}"))).expect("a file can be made");
        }
    });
    sandbox
        .shell("ls -U huge | sort > /tmp/seen; wc -l < /tmp/seen; uniq /tmp/seen | wc -l; tail -1 /tmp/seen")
        .limit(SOON * 2)
        .run()
        .success()
        .says("100000\n100000\nentry-099999");
    // A request each, from inside: a part of them. The rest goes at once outside, which is more than inotify holds.
    sandbox.shell("rm huge/entry-00[01]*").limit(SOON * 2).run().success();
    assert_eq!(fs::read_dir(&huge).expect("it is there").count(), 98_000);
    environment.account().act(|| fs::remove_dir_all(&huge).expect("it can be removed"));
    eventually("it is gone inside", SOON, || {
        (sandbox.shell("ls").run().success().text() == "").then_some(())
    });
}

#[test]
fn paths_of_every_kind_are_workspaces() {
    let environment = TestEnvironment::new();
    for name in ["with space", "ünïcødé 漢字", "quote'\"$x", "-dash", ".hidden", "comma,colon;x"]
    {
        let project = environment.project(name);
        environment.write(&project.join("file"), name);
        let run = environment
            .hutch(["run", "-q", "shell"])
            .args([project.join(".")])
            .args(["--", "-c", "pwd; cat file"])
            .run()
            .success();
        run.says(&format!("{}\n{name}", project.display()));
        environment.hutch(["reset", "--force"]).run().success();
    }
}

#[test]
fn only_the_workspace_is_there() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("only");
    let around = environment.path("work");
    environment.write(&around.join("private"), "not for the sandbox");
    // Parents exist as empty directories.
    sandbox.exec([Path::new("ls"), Path::new("-A"), &around]).run().success().says("only");
    sandbox
        .exec([Path::new("ls"), Path::new("-A"), environment.root()])
        .run()
        .success()
        .says("work");
    sandbox
        .shell("ls ~/workspace/ >/dev/null && readlink ~/workspace")
        .run()
        .success()
        .says(&sandbox.workspace().to_string_lossy());
}

fn side(sandbox: &TestSandbox<'_>) -> Conversation {
    sandbox.exec_with(["-i"], ["python3", "-u", "-c", STEPS]).converse()
}

fn host_side(environment: &TestEnvironment, workspace: &Path) -> Conversation {
    environment.program("python3").args(["-u", "-c", STEPS]).directory(workspace).converse()
}

/// A clone of this repository that belongs to the environment's user.
fn clone_this_repository(environment: &TestEnvironment, to: &Path) {
    use hutch_testkit::{Account, Invocation};
    // As ourselves: the repository may be where no other user can go.
    let own = Account::own();
    Invocation::new("git", own)
        .args(["-c", "safe.directory=*", "clone", "-q", "--no-local"])
        .args([stage::repository().as_path(), to])
        .run()
        .success();
    if environment.account() != own {
        let owner = format!("{}:{}", environment.account().uid, environment.account().gid);
        Invocation::new("chown", own).args(["-R", &owner]).args([to]).run().success();
    }
}

/// Files below a directory that do not belong to the environment's user.
fn foreign_files(environment: &TestEnvironment, directory: &Path) -> Vec<String> {
    hutch_testkit::environment::files(directory)
        .into_iter()
        .filter(|file| {
            fs::symlink_metadata(file).is_ok_and(|status| status.uid() != environment.account().uid)
        })
        .map(|file| file.display().to_string())
        .collect()
}
