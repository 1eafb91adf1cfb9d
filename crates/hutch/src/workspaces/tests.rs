use std::os::unix::fs::symlink;

use super::*;

struct World {
    root: tempfile::TempDir,
    layout: Layout,
}

impl World {
    fn new() -> Self {
        // Not directly in the place of temporary files, which nobody may have as a workspace.
        let root = tempfile::tempdir().unwrap();
        let base = std::fs::canonicalize(root.path()).unwrap();
        let layout = Layout {
            state: base.join("home/.local/state/hutch"),
            runtime: base.join("run"),
            config: base.join("home/.config/hutch"),
            images: base.join("home/.local/state/hutch/images"),
        };
        Self { root, layout }
    }

    fn path(&self, below: &str) -> PathBuf {
        std::fs::canonicalize(self.root.path()).unwrap().join(below)
    }

    fn directory(&self, below: &str) -> PathBuf {
        let path = self.path(below);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn file(&self, below: &str) -> PathBuf {
        let path = self.path(below);
        std::fs::File::create(&path).unwrap();
        path
    }

    fn resolve(&self, arguments: &[String]) -> Result<Vec<(String, bool)>, String> {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        resolve(&arguments, &self.layout)
            .map(|all| {
                let pair = |w: Workspace| (w.path.as_path().display().to_string(), w.read_only);
                all.into_iter().map(pair).collect()
            })
            .map_err(|failure| failure.to_string())
    }

    fn refused(&self, path: &Path) -> String {
        self.resolve(&[path.display().to_string()]).unwrap_err()
    }
}

#[test]
fn links_are_resolved_and_endings_mean_read_only() {
    let world = World::new();
    let project = world.directory("project").display().to_string();
    let docs = world.directory("docs: new").display().to_string();
    symlink(&project, world.path("link")).unwrap();
    let link = world.path("link/.").display().to_string();
    assert_eq!(
        world.resolve(&[link, format!("{docs}:ro")]),
        Ok(vec![(project.clone(), false), (docs.clone(), true)])
    );
    assert_eq!(world.resolve(&[format!("{docs}:readonly")]), Ok(vec![(docs, true)]));
    assert_eq!(
        world.resolve(&[project.clone(), format!("{project}:ro")]),
        Err(format!("{project} is given twice"))
    );
}

#[test]
fn a_path_that_really_ends_in_ro_is_taken_as_it_is() {
    let world = World::new();
    let odd = world.directory("odd:ro").display().to_string();
    assert_eq!(world.resolve(std::slice::from_ref(&odd)), Ok(vec![(odd.clone(), false)]));
    assert_eq!(world.resolve(&[format!("{odd}:ro")]), Ok(vec![(odd.clone(), true)]));
    let plain = world.directory("odd").display().to_string();
    assert_eq!(world.resolve(&[odd]), Ok(vec![(plain, true)]));
}

#[test]
fn a_file_is_only_protected_inside_a_workspace() {
    let world = World::new();
    let project = world.directory("project").display().to_string();
    let file = world.file("project/secret").display().to_string();
    let other = world.file("other").display().to_string();
    assert_eq!(
        world.resolve(&[project.clone(), format!("{file}:ro")]),
        Ok(vec![(project.clone(), false), (file.clone(), true)])
    );
    assert_eq!(world.resolve(&[project.clone(), file.clone()]), Err(format!("{file} is a file")));
    assert_eq!(world.resolve(&[project, format!("{other}:ro")]), Err(format!("{other} is a file")));
    assert_eq!(
        world.resolve(std::slice::from_ref(&file)),
        Err(format!("{file} is not a directory"))
    );
}

#[test]
fn places_that_make_no_sense_are_refused() {
    let world = World::new();
    let state = world.directory("home/.local/state/hutch/sandboxes/x");
    let home = world.path("home");
    assert_eq!(
        world.refused(Path::new("/")),
        "the workspace cannot be `/`: the sandbox has a root of its own"
    );
    assert_eq!(
        world.refused(Path::new("/proc/self")).split(':').next(),
        Some(&*format!("the workspace cannot be /proc/{}", std::process::id()))
    );
    assert_eq!(
        world.refused(Path::new("/etc")),
        "the workspace cannot be /etc: it would hide the sandbox's own /etc"
    );
    assert_eq!(
        world.refused(Path::new("/usr")),
        "the workspace cannot be /usr: it would hide the sandbox's own /usr"
    );
    assert!(world.refused(&state).contains("hutch keeps its state in"));
    assert!(world.refused(&home).contains("hutch keeps its state in"));
    assert!(world.refused(&world.path("nowhere")).contains("nowhere does not exist"));
}

#[test]
fn state_that_does_not_exist_yet_is_protected_too() {
    let world = World::new();
    let home = world.directory("home");
    assert!(!world.layout.state.exists());
    assert!(world.refused(&home).contains("hutch keeps its state in"));
    let project = world.directory("home/project").display().to_string();
    assert!(world.resolve(&[project]).is_ok());
}

#[test]
fn a_workspace_that_vanished_is_told() {
    let world = World::new();
    let project = world.directory("project");
    let workspaces = resolve(&[project.clone().into()], &world.layout).unwrap();
    assert!(still_there(&workspaces, "shell-project").is_ok());
    std::fs::remove_dir(&project).unwrap();
    let failure = still_there(&workspaces, "shell-project").unwrap_err();
    assert_eq!(
        failure.to_string(),
        format!(
            "the workspace {} of the sandbox `shell-project` is not there any more",
            project.display()
        )
    );
}
