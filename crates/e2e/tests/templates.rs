//! Templates that were made elsewhere, and templates made of sandboxes.
//!
//! The image is small, and made of the host's own programs, so that no registry of the internet is needed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hutch_testkit::{
    Invocation, REGISTRY, REGISTRY_LOGIN, Registry, RegistryAccess, TestEnvironment,
};

/// The archive `image.tar` in the form of `docker save`, of two layers: the upper one takes a file away and hides what a
/// directory had.
const MAKE_IMAGE: &str = r#"
set -eu
cd "$0"
umask 022
mkdir -p lower/etc lower/data lower/hidden lower/home/agent lower/tmp lower/run upper/data upper/hidden
programs="bash sh cat ls id stat"
libraries=$(for program in $programs; do ldd /bin/$program; done | grep -o '/lib[^ ]*' | sed 's,^/,,' | sort -u)
echo 'root:x:0:0:root:/root:/bin/bash
agent:x:1000:1000::/home/agent:/bin/bash' > lower/etc/passwd
echo 'root:x:0:
agent:x:1000:' > lower/etc/group
echo kept > lower/data/kept
echo gone > lower/data/gone
echo old > lower/hidden/old
chmod 2755 lower/data
touch upper/data/.wh.gone upper/hidden/.wh..wh..opq
echo new > upper/hidden/new
chmod 2755 upper/data
tar -ch --owner=0 --group=0 -f lower.tar -C / $(printf 'bin/%s ' $programs) $libraries
tar -r --owner=0 --group=0 -f lower.tar -C lower etc data hidden tmp run
tar -r --owner=1000 --group=1000 -f lower.tar -C lower home/agent
tar -c --owner=0 --group=0 -f upper.tar -C upper data hidden
digest() { echo "sha256:$(sha256sum "$1" | cut -d ' ' -f 1)"; }
case $(uname -m) in aarch64) architecture=arm64 ;; *) architecture=amd64 ;; esac
cat > config.json <<END
{"architecture":"$architecture","os":"linux","config":{"User":"agent","Env":["PATH=/bin","OF_IMAGE=yes"]},
"rootfs":{"type":"layers","diff_ids":["$(digest lower.tar)","$(digest upper.tar)"]}}
END
echo '[{"Config":"config.json","RepoTags":["small:1"],"Layers":["lower.tar","upper.tar"]}]' > manifest.json
tar -cf image.tar manifest.json config.json lower.tar upper.tar
"#;

/// What the image is in a VM.
const LOOK: &str =
    "cat /data/* /hidden/*; ls /data /hidden; stat -c %a /data; id -un; echo $OF_IMAGE";
const SEEN: &str = "kept\nnew\n/data:\nkept\n\n/hidden:\nnew\n2755\nagent\nyes";

/// A program of 100 MB may be read, on an emulated processor.
const LONG: Duration = Duration::from_secs(170);

#[track_caller]
fn image(environment: &TestEnvironment) -> PathBuf {
    let directory = environment.project("image");
    environment.program("sh").args(["-c", MAKE_IMAGE]).args([&directory]).run().success();
    directory.join("image.tar")
}

/// The digest of a sandbox's template.
#[track_caller]
fn template_of(environment: &TestEnvironment, sandbox: &str) -> String {
    let inspected = environment.hutch(["inspect", sandbox]).run().success().json();
    let digest = inspected[0]["template_digest"].as_str();
    digest.expect("a sandbox stands on a template").to_owned()
}

fn create(environment: &TestEnvironment, name: &str, template: &str, pull: &str) -> Invocation {
    let project = environment.project(name);
    environment
        .hutch(["create", "-q", "--name", name, "-t", template, "--pull-template", pull, "shell"])
        .args([project])
}

#[test]
fn an_image_of_a_registry_with_a_login_boots_and_is_fetched_once() {
    let environment = TestEnvironment::with_internet().own_templates();
    let registry = Registry::start(&environment, RegistryAccess::Login);
    environment.configure(&format!(
        "[registries]\nca_files = [\"{}\"]\n",
        registry.certificate().display()
    ));
    let archive = image(&environment);
    let name = format!("{REGISTRY}/some/thing:1");
    push(&environment, &registry, &archive, &name);

    // Nothing is fetched where that is forbidden, nothing is given to who does not log in.
    create(&environment, "never", &name, "never")
        .run()
        .failure()
        .complains("is not on this machine");
    create(&environment, "stranger", &name, "missing").run().failure().complains("docker login");
    log_in(&environment);
    let project = environment.project("first");
    environment
        .hutch(["run", "--name", "first", "-t", &name, "shell"])
        .args([project.as_os_str()])
        .args(["--", "-c", LOOK])
        .limit(LONG)
        .run()
        .success()
        .says(SEEN);
    let listed = environment.hutch(["template", "inspect", &name]).run().success().json();
    assert_eq!(listed[0]["origin"], "registry", "{listed}");
    assert_eq!(listed[0]["layers"].as_array().map(Vec::len), Some(2), "{listed}");

    // It is asked again when it must be, and what it has is not fetched twice.
    create(&environment, "again", &name, "always").run().success();
    let _ended = registry.stop();
    for pull in ["missing", "never"] {
        let sandbox = format!("{pull}-alone");
        create(&environment, &sandbox, &name, pull).run().success();
        assert_eq!(template_of(&environment, &sandbox), template_of(&environment, "first"));
    }
    create(&environment, "cut-off", &name, "always").run().failure().complains(REGISTRY);
    let used = environment.hutch(["template", "rm", &name]).run().failure();
    assert!(used.talk().contains("is used by a sandbox"), "{used:?}");
}

#[track_caller]
fn push(environment: &TestEnvironment, registry: &Registry, archive: &Path, name: &str) {
    let certificates = registry.certificate().parent().expect("it is in a directory");
    let (user, password) = REGISTRY_LOGIN;
    environment
        .program("skopeo")
        .args(["--insecure-policy", "--tmpdir"])
        .args([environment.root()])
        .args(["copy", "-q", "--dest-creds", &format!("{user}:{password}"), "--dest-cert-dir"])
        .args([certificates])
        .args([format!("docker-archive:{}", archive.display()), format!("docker://{name}")])
        .limit(LONG)
        .run()
        .success();
}

/// As `docker login` writes it.
fn log_in(environment: &TestEnvironment) {
    let encoded = environment
        .program("base64")
        .stdin(format!("{}:{}", REGISTRY_LOGIN.0, REGISTRY_LOGIN.1))
        .run()
        .success()
        .text();
    environment.make_directory(&environment.path("home/.docker"));
    environment.write(
        &environment.path("home/.docker/config.json"),
        format!(r#"{{"auths":{{"{REGISTRY}":{{"auth":"{encoded}"}}}}}}"#),
    );
}

#[test]
fn an_archive_is_a_template_and_an_agent_that_it_lacks_is_named() {
    let environment = TestEnvironment::new().own_templates();
    let archive = image(&environment);
    environment.hutch(["template", "load", "-q"]).args([&archive]).run().success().says("small:1");
    let project = environment.project("loaded");
    // What is loaded is there under Docker's rules for names, and needs no registry.
    let lacking = environment
        .hutch(["run", "--name", "loaded", "-t", "small:1", "--pull-template", "never", "claude"])
        .args([&project])
        .limit(LONG)
        .run()
        .code(1);
    assert!(
        lacking.talk().contains(
            "agent binary \"claude\" not found in sandbox: verify this is the correct sandbox type"
        ),
        "{lacking:?}"
    );
    environment.hutch(["exec", "loaded", "bash", "-c", LOOK]).run().success().says(SEEN);
    // The same archive by its path is the same template.
    create(&environment, "by-path", &archive.to_string_lossy(), "missing").run().success();
    assert_eq!(template_of(&environment, "by-path"), template_of(&environment, "loaded"));

    // Docker's names of the templates that are built here.
    create(&environment, "plain", "shell", "never").run().success();
    for (name, flavor) in [("docker-name", "shell"), ("docker-tag", "claude-code")] {
        let reference = format!("docker/sandbox-templates:{flavor}");
        create(&environment, name, &reference, "never").run().success();
        let known = environment.hutch(["template", "inspect", &reference]).run().success().json();
        assert_eq!(known[0]["digest"], template_of(&environment, name).as_str());
        assert_eq!(known[0]["origin"], "recipe");
    }
    assert_eq!(template_of(&environment, "docker-name"), template_of(&environment, "plain"));
    let kept = environment.hutch(["system", "df", "--json"]).run().success().json();
    let kinds = kept["kinds"].as_array().expect("kinds are a list");
    let templates = kinds.iter().find(|kind| kind["kind"] == "Templates");
    let templates = templates.unwrap_or_else(|| panic!("templates in {kept}"));
    assert!(templates["count"].as_u64() > Some(1), "{kept}");
    assert!(templates["bytes"].as_u64() > Some(1 << 20), "{kept}");
}

/// What is done in a sandbox before it is saved. The kernel notes of a renamed directory only what it was called before.
const CHANGE: &str = r#"set -e
mkdir -p /opt/made/deep && echo content > /opt/made/deep/file && chmod 4711 /opt/made/deep/file
ln /opt/made/deep/file /opt/made/other && ln -s deep/file /opt/made/link
cp /bin/true /opt/made/capable && setcap cap_net_raw+ep /opt/made/capable
chown 1000:1000 /opt/made
rm /usr/share/common-licenses/GPL-2 && rm -r /usr/share/keyrings
mv /usr/share/bash-completion /usr/share/renamed
rm -r /usr/share/info && mkdir /usr/share/info && echo new > /usr/share/info/only
chmod 700 /usr/share/misc
echo log > /var/log/some.log; echo t > /tmp/temporary; echo r > /run/running
echo kept >> /home/agent/notes && chown agent: /home/agent/notes"#;

/// How it is found in a sandbox of the saved template.
const CHANGED: &str = r#"set -e
stat -c '%a %h %U' /opt/made/deep/file; cat /opt/made/link; getcap /opt/made/capable; stat -c %U /opt/made
test ! -e /usr/share/common-licenses/GPL-2; test -e /usr/share/common-licenses/GPL-3; test ! -e /usr/share/keyrings
test ! -e /usr/share/bash-completion; test -s /usr/share/renamed/bash_completion; ls /usr/share/info
stat -c %a /usr/share/misc; cat /home/agent/notes
test ! -e /var/log/some.log; test ! -e /tmp/temporary; test ! -e /run/running
hostname"#;

#[test]
fn a_saved_sandbox_is_a_template_for_others_and_for_docker() {
    let environment = TestEnvironment::with_internet().own_templates();
    let sandbox = environment.boot("work");
    environment.write(&sandbox.workspace().join("project-file"), "of the workspace");
    sandbox.root_shell(CHANGE).limit(LONG).run().success();
    let certificate = sandbox.root_shell("cat /usr/local/share/ca-certificates/proxy-ca.crt");
    let certificate = certificate.run().success().text();
    let archive = environment.path("work/saved.tar");
    environment
        .hutch(["save", "-q", "work", "registry.test/team/saved:v1", "-o"])
        .args([&archive])
        .limit(LONG)
        .run()
        .success()
        .says("registry.test/team/saved:v1");
    assert_eq!(sandbox.status(), "running");
    sandbox.stop();

    let inspected = environment
        .hutch(["template", "inspect", "registry.test/team/saved:v1"])
        .run()
        .success()
        .json();
    assert_eq!(inspected[0]["origin"], "sandbox", "{inspected}");
    create(&environment, "second", "registry.test/team/saved:v1", "never").run().success();
    environment
        .hutch(["exec", "-u", "root", "second", "sh", "-c", CHANGED])
        .limit(LONG)
        .run()
        .success()
        .says(
            "4711 2 root\ncontent\n/opt/made/capable cap_net_raw=ep\nagent\nonly\n700\nkept\nsecond",
        );

    // The layer alone: what is of this one sandbox is not in it.
    let layers = environment.path("work/layers");
    environment.make_directory(&layers);
    let unpack = "cd \"$0\"; tar -xf ../saved.tar && ls -S blobs/sha256 | while read -r blob; do tar -tf blobs/sha256/$blob >/dev/null 2>&1 && echo $blob; done | tail -1";
    let layer = environment.program("sh").args(["-c", unpack]).args([&layers]).run().success();
    let layer = layers.join("blobs/sha256").join(layer.text());
    let names = environment.program("tar").args(["-tf"]).args([&layer]).run().success().text();
    let workspace = sandbox.workspace().to_string_lossy().into_owned();
    for absent in [
        &workspace[1..],
        "project-file",
        "some.log",
        "temporary",
        "proxy-ca",
        "etc/hostname",
        "hutch",
    ] {
        assert!(!names.contains(absent), "{absent} in {names}");
    }
    for present in ["usr/share/common-licenses/.wh.GPL-2", "usr/share/info/.wh..wh..opq"] {
        assert!(names.lines().any(|name| name == present), "{present} in {names}");
    }
    let line = certificate.lines().nth(3).expect("a certificate has lines");
    let found = environment.program("grep").args(["-c", line]).args([&layer]).run();
    assert_eq!(found.text(), "0", "the proxy's certificate is in the layer");

    // Other programs read it in both forms, and so do we.
    for form in ["docker-archive", "oci-archive"] {
        environment
            .program("skopeo")
            .args(["--insecure-policy", "--tmpdir"])
            .args([environment.root()])
            .args(["inspect", "--config", &format!("{form}:{}", archive.display())])
            .limit(LONG)
            .run()
            .success();
    }
    environment
        .hutch(["template", "load", "-q"])
        .args([&archive])
        .args(["again:1"])
        .limit(LONG)
        .run()
        .success();
    let again = environment.hutch(["template", "inspect", "again:1"]).run().success().json();
    // The lowest layer has its contents in another order when it was built here.
    assert_eq!(again[0]["layers"][1], inspected[0]["layers"][1]);
}
