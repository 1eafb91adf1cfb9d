//! Commands on sandboxes that do not run.

use super::world::World;

#[test]
fn ls_lists_in_each_form() {
    let world = World::new();
    world.sandbox("shell-app", &world.project("app"));
    world.sandbox("other", &world.project("a b\n\u{1b}[2J"));
    world.broken_sandbox("broken");
    insta::assert_snapshot!("ls", world.hutch(&["ls"]).seen());
    assert_eq!(world.hutch(&["ls", "-q"]).stdout, "broken\nother\nshell-app\n");
    assert_eq!(world.hutch(&["list", "--quiet"]).stdout, "broken\nother\nshell-app\n");

    let json = |run: super::world::Run| {
        serde_json::from_str::<serde_json::Value>(&run.stdout).expect("JSON")
    };
    let ours = json(world.hutch(&["ls", "--json"]));
    assert_eq!(ours["format_version"], 1);
    let app = &ours["sandboxes"][2];
    assert_eq!(
        (&app["name"], &app["agent"], &app["status"]),
        (&"shell-app".into(), &"shell".into(), &"stopped".into())
    );
    assert_eq!(app["workspaces"], serde_json::json!(["WORLD/work/app"]));
    assert_eq!(app.get("socket_path"), None);
    assert!(ours["sandboxes"][0]["error"].as_str().is_some_and(|error| error.contains("damaged")));
    let docker = json(world.docker_sandbox(&["ls", "--json"]));
    assert_eq!(docker["vms"][2]["name"], "shell-app");
    assert_eq!(docker["vms"][2]["sandbox_count"], 0);
    let table = world.docker_sandbox(&["ls"]).stdout;
    assert!(table.starts_with("VM ID          NAME        STATUS    WORKSPACE"), "{table}");
}

#[test]
fn long_cells_are_shortened_unless_told_otherwise() {
    let world = World::new();
    let long = "directory-with-a-long-name-".repeat(4);
    world.sandbox("box", &world.project(&long));
    assert!(!world.hutch(&["ls"]).stdout.contains(&long));
    assert!(world.hutch(&["ls", "--no-trunc"]).stdout.contains(&long));
}

#[test]
fn inspect_shows_an_array() {
    let world = World::new();
    let record = world.sandbox("one", &world.project("one"));
    world.sandbox("two", &world.project("two"));
    let run = world.hutch(&["inspect", "one", "two", "three"]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("there is no sandbox named `three`"));
    let array: serde_json::Value = serde_json::from_str(&run.stdout).expect("JSON");
    assert_eq!(array.as_array().map(Vec::len), Some(2));
    let one = &array[0];
    assert_eq!(one["id"], record.id.as_str());
    assert_eq!(one["status"], "stopped");
    assert_eq!(one["template"], "shell");
    assert_eq!(one["labels"]["colour"], "red");
    assert_eq!(one["workspaces"][0]["path"], "WORLD/work/one");
    assert_eq!(one["workspaces"][0]["missing"], false);
    let created = one["created_at"].as_str().expect("text");
    let fraction = created.split('.').nth(1).expect("nanoseconds");
    assert_eq!(fraction.len(), "000000000Z".len(), "{created}");
}

#[test]
fn stop_and_rm_print_names_and_go_on_after_a_failure() {
    let world = World::new();
    world.sandbox("one", &world.project("one"));
    world.sandbox("two", &world.project("two"));
    let stop = world.hutch(&["stop", "one", "nothing", "two"]);
    assert_eq!((stop.code, stop.stdout.as_str()), (1, "one\ntwo\n"));
    assert_eq!(
        stop.stderr,
        "error: there is no sandbox named `nothing`\nhint: see what there is: hutch ls\n"
    );
    let rm = world.hutch(&["rm", "one", "../../x", "two"]);
    assert_eq!((rm.code, rm.stdout.as_str()), (1, "one\ntwo\n"));
    assert_eq!(world.hutch(&["ls", "-q"]).stdout, "");
    assert!(world.path("work/one").is_dir(), "a workspace is its owner's");
    assert_eq!(world.hutch(&["rm", "one"]).code, 1);
}

#[test]
fn what_a_killed_keeper_left_goes_with_its_sandbox() {
    let world = World::new();
    let id = world.sandbox("one", &world.project("one")).id;
    let other = world.sandbox("two", &world.project("two")).id;
    let runtime = world.path("run/hutch");
    let leftovers =
        |id: &str| [format!("{id}.sock"), format!("{id}.vm")].map(|name| runtime.join(name));
    for id in [id.as_str(), other.as_str()] {
        let [socket, scratch] = leftovers(id);
        drop(std::os::unix::net::UnixListener::bind(socket).expect("it is free"));
        std::fs::create_dir(scratch).expect("it is free");
    }
    assert_eq!(world.hutch(&["rm", "one"]).code, 0);
    assert!(leftovers(id.as_str()).iter().all(|path| !path.exists()));
    assert!(leftovers(other.as_str()).iter().all(|path| path.exists()));
    assert_eq!(world.hutch(&["reset", "-f"]).code, 0);
    assert_eq!(std::fs::read_dir(runtime).map(Iterator::count).ok(), Some(0));
}

#[test]
fn broken_sandboxes_can_be_removed() {
    let world = World::new();
    world.broken_sandbox("broken");
    insta::assert_snapshot!(
        "exec_in_a_broken_sandbox",
        world.hutch(&["exec", "broken", "true"]).seen()
    );
    let rm = world.hutch(&["rm", "broken"]);
    assert_eq!((rm.code, rm.stdout.as_str()), (0, "broken\n"), "{}", rm.stderr);
    // What is no sandbox at all: a file, and a directory with a name that none can have.
    let sandboxes = world.path("home/.local/state/hutch/sandboxes");
    std::fs::File::create(sandboxes.join("file")).expect("it is writable");
    std::fs::create_dir(sandboxes.join("not a name")).expect("it is writable");
    assert_eq!(world.hutch(&["rm", "file", "not a name"]).stdout, "file\nnot a name\n");
    assert_eq!(world.hutch(&["ls", "-q"]).stdout, "");
}

#[test]
fn reset_asks_and_takes_no_for_an_answer() {
    let world = World::new();
    world.sandbox("one", &world.project("one"));
    let hutch = std::path::Path::new(env!("CARGO_BIN_EXE_hutch"));
    for answer in ["n\n", "\n", "", "yesterday\n"] {
        let run = world.run(world.command(hutch).arg("reset"), answer.as_bytes());
        assert_eq!(run.code, 1, "{answer:?}");
    }
    insta::assert_snapshot!(
        "reset_declined",
        world.run(world.command(hutch).arg("reset"), b"n\n").seen()
    );
    assert_eq!(world.hutch(&["ls", "-q"]).stdout, "one\n");
    insta::assert_snapshot!(
        "reset_accepted",
        world.run(world.command(hutch).arg("reset"), b"y\n").seen()
    );
    assert_eq!(world.hutch(&["ls", "-q"]).stdout, "");
}

#[test]
fn reset_removes_what_is_ours_and_nothing_else() {
    let world = World::new();
    let project = world.project("one");
    world.sandbox("one", &project);
    world.broken_sandbox("broken");
    let state = world.path("home/.local/state/hutch");
    std::fs::create_dir_all(state.join("images/kernel")).expect("it is writable");
    std::os::unix::fs::symlink(&project, state.join("images/link")).expect("it is writable");
    std::fs::File::create(project.join("precious")).expect("it is writable");
    let run = world.hutch(&["reset", "--force"]);
    assert_eq!(
        (run.code, run.stdout.as_str(), run.stderr.as_str()),
        (0, "All VMs reset successfully\n", "")
    );
    assert_eq!(std::fs::read_dir(state.join("images")).map(Iterator::count).ok(), Some(0));
    assert!(project.join("precious").exists());

    // Images elsewhere may be shared.
    let shared = world.path("shared");
    std::fs::create_dir_all(shared.join("kernel")).expect("it is writable");
    let hutch = std::path::Path::new(env!("CARGO_BIN_EXE_hutch"));
    let run =
        world.run(world.command(hutch).env("HUTCH_IMAGES", &shared).args(["reset", "-f"]), b"");
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(shared.join("kernel").exists());
}

#[test]
fn inspect_of_one_that_runs_does_not_show_what_would_be_its_end() {
    let world = World::new();
    let record = world.sandbox("one", &world.project("one"));
    let store = world.store();
    let end = hutch_store::LastEnd {
        format_version: hutch_store::record::FORMAT_VERSION,
        at: record.created_at,
        clean: false,
        reason: "it was killed".to_owned(),
        console: Vec::new(),
    };
    store.write_last_end(&record.name, &end).expect("the world is writable");
    let last_end = || {
        let run = world.hutch(&["inspect", "one"]);
        let array: serde_json::Value = serde_json::from_str(&run.stdout).expect("JSON");
        (array[0]["status"].clone(), array[0]["last_end"]["reason"].clone())
    };
    assert_eq!(last_end(), ("stopped".into(), "it was killed".into()));
    let _lock = store.lock(&record.name, std::time::Duration::ZERO).expect("nobody holds it");
    assert_eq!(last_end(), ("running".into(), serde_json::Value::Null));
}

#[test]
fn a_second_sandbox_for_the_same_workspace_is_refused_before_any_image_is_made() {
    let world = World::new();
    let project = world.project("app");
    world.sandbox("shell-app", &project);
    let run = world.hutch(&["create", "shell", &project.display().to_string()]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("is for this agent and workspace already"), "{}", run.stderr);
    let images = std::fs::read_dir(world.path("home/.local/state/hutch/images"));
    assert_eq!(images.expect("the store makes it").count(), 0);
}
