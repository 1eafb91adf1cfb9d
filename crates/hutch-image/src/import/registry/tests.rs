use super::*;

#[test]
fn challenges_are_read_as_servers_write_them() {
    let bearer = |realm: &str, service: Option<&str>| {
        Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
    };
    for (header, challenge) in [
        ("Basic realm=\"x\"", Some(Challenge::Basic)),
        ("basic", Some(Challenge::Basic)),
        (
            "Bearer realm=\"https://auth.test/token\",service=\"registry.test\",scope=\"a,b\"",
            bearer("https://auth.test/token", Some("registry.test")),
        ),
        ("bearer service=s , realm=https://a.test", bearer("https://a.test", Some("s"))),
        ("Bearer service=\"s\"", None),
        ("Digest realm=\"x\"", None),
        ("", None),
        ("Bearer realm=\"unended", bearer("unended", None)),
    ] {
        assert_eq!(Challenge::parse(header), challenge, "{header}");
    }
}

#[test]
fn mirrors_come_first_and_only_this_machine_needs_no_tls() {
    let mut options = RegistryOptions::default();
    options.mirrors.insert("docker.io".to_owned(), vec!["http://m.test/".to_owned()]);
    assert_eq!(bases(&options, "docker.io"), ["http://m.test", "https://registry-1.docker.io"]);
    assert_eq!(bases(&options, "r.test:5000"), ["https://r.test:5000"]);
    assert_eq!(bases(&options, "localhost:1"), ["https://localhost:1", "http://localhost:1"]);
    assert_eq!(bases(&options, "127.0.0.1"), ["https://127.0.0.1", "http://127.0.0.1"]);
}

#[test]
fn the_proxy_of_the_environment_is_used_where_it_says_so() {
    let network = [("HTTPS_PROXY", "http://p.test:1"), ("no_proxy", "a.test, .b.test")];
    let network = network.map(|(name, value)| (name.into(), value.into())).to_vec();
    let options = RegistryOptions { network, ..RegistryOptions::default() };
    for (host, used) in
        [("c.test", true), ("a.test:5000", false), ("x.b.test", false), ("aa.test", true)]
    {
        assert_eq!(proxy(&options, host).is_some(), used, "{host}");
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "files of the test's own")]
fn logins_are_those_of_docker() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.json");
    // `user:pass`
    let text = r#"{"auths":{"r.test:5000":{"auth":"dXNlcjpwYXNz"},"https://index.docker.io/v1/":{"auth":"dXNlcjpwYXNz"},
        "broken.test":{"auth":"??"}},"credHelpers":{"h.test":"fake","evil.test":"../../bin/sh"}}"#;
    std::fs::write(&config, text).unwrap();
    let helper = directory.path().join("docker-credential-fake");
    let script = "#!/bin/sh\nread server; echo \"{\\\"Username\\\":\\\"of $server\\\",\\\"Secret\\\":\\\"s\\\"}\"\n";
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", directory.path().display());
    let options = RegistryOptions {
        docker_config: Some(config),
        helpers: vec![("PATH".into(), path.into())],
        ..RegistryOptions::default()
    };
    let agent = ureq::Agent::new_with_defaults();
    let header = |host: &str| {
        let login = Login::new(&options, host);
        assert!(!format!("{login:?}").contains("pass"), "{login:?}");
        login
            .answer(&agent, "https://r.test", &Challenge::Basic, "a")
            .map(|secret| secret.shown_to_the_registry().to_owned())
    };
    assert_eq!(header("r.test:5000").unwrap(), "Basic dXNlcjpwYXNz");
    assert_eq!(header("docker.io").unwrap(), "Basic dXNlcjpwYXNz");
    // `of h.test:s`
    assert_eq!(header("h.test").unwrap(), "Basic b2YgaC50ZXN0OnM=");
    for host in ["other.test", "broken.test", "evil.test"] {
        assert!(header(host).unwrap_err().contains("docker login"), "{host}");
    }
}

#[test]
fn a_password_is_not_sent_without_tls() {
    let login = Login::new(&RegistryOptions::default(), "r.test");
    let challenge = Challenge::Bearer { realm: "http://evil.test/token".to_owned(), service: None };
    let agent = ureq::Agent::new_with_defaults();
    let error = login.answer(&agent, "https://r.test", &challenge, "a").unwrap_err();
    assert!(error.contains("without TLS"), "{error}");
}
