use super::*;
use crate::failure::Failure;
use crate::settings::{Environment, FileConfig, Settings};

fn parse(text: &str) -> Result<NetworkConfig, Wrong> {
    FileConfig::parse(text, &Agents::built_in()).map(|file| file.network)
}

fn wrong(text: &str) -> (String, String) {
    let (what, hint) = parse(text).unwrap_err();
    (what, hint.unwrap_or_default())
}

/// Settings in a home of their own, with this configuration file.
fn settings(home: &std::path::Path, variables: &[(&str, &str)], file: &str) -> Settings {
    let home = home.display().to_string();
    let all = [("HOME", home.as_str())].into_iter().chain(variables.iter().copied());
    let environment = all.collect::<Environment>();
    let layout = Settings::layout(&environment).unwrap();
    let file = FileConfig::parse(file, &Agents::built_in()).unwrap();
    Settings::resolve(
        environment,
        layout,
        Agents::built_in(),
        file,
        std::path::Path::new("/opt/bin/hutch"),
    )
    .unwrap()
}

const EXAMPLE: &str = r#"
[network]
inspect = "all"
upstream_proxy = "socks5://127.0.0.1:1080"
no_proxy = ["localhost", "10.0.0.0/8"]

[network.upstreams]
"API.Anthropic.com" = { address = "127.0.0.1:8443" }

[[network.services]]
name = "example"
hosts = ["API.example.com", "api.example.com:8443", "other.example:443"]
header = "X-Api-Key"
variables = ["EXAMPLE_KEY", "OTHER_KEY"]

[[network.services]]
name = "ours"
hosts = ["git.example.com"]
header = "Authorization"
variables = ["OURS"]
placeholder_variables = ["OURS_TOKEN"]
placeholder = "ours_placeholder"
replaces = ["Authorization", "X-Token"]
git_basic = true
agents = ["cagent", "shell"]
"#;

#[test]
fn the_example_is_read() {
    let config = parse(EXAMPLE).unwrap();
    assert_eq!(config.inspect, Some(Inspect::All));
    assert_eq!(config.upstream_proxy, ProxyChoice::Url("socks5://127.0.0.1:1080".to_owned()));
    assert_eq!(config.upstreams[0].host, "api.anthropic.com");
    assert_eq!(config.upstreams[0].address.port(), 8443);
    let first = &config.services[0].service;
    assert_eq!(first.hosts, ["api.example.com", "api.example.com:8443", "other.example"]);
    assert_eq!((first.header.as_str(), first.format.as_str()), ("x-api-key", "%s"));
    assert_eq!(first.placeholder_variables, ["EXAMPLE_KEY", "OTHER_KEY"]);
    assert_eq!(first.placeholder, "proxy-managed");
    let second = &config.services[1].service;
    assert_eq!((second.header.as_str(), second.format.as_str()), ("authorization", "Bearer %s"));
    assert_eq!(second.placeholder_variables, ["OURS_TOKEN"]);
    assert_eq!(second.replaces, ["x-token"]);
    assert!(second.git_basic);
    assert!(config.services[0].is_for("claude"));
    assert!(config.services[1].is_for("docker-agent") && !config.services[1].is_for("claude"));
}

#[test]
fn an_empty_file_says_nothing_about_the_network() {
    assert_eq!(parse("").unwrap(), NetworkConfig::default());
    assert_eq!(parse("[network]").unwrap(), NetworkConfig::default());
    let none = parse("[network]\nupstream_proxy = \"none\"").unwrap();
    assert_eq!(none.upstream_proxy, ProxyChoice::None);
}

#[test]
fn a_wrong_value_is_told_with_its_key() {
    for (text, says) in [
        ("network = 1", "`network` must be a table"),
        (
            "network.inspect = \"some\"",
            "`network.inspect`: it is `credentials` or `all`, not `some`",
        ),
        ("network.inspect = true", "`network.inspect` must be a string in quotes"),
        (
            "network.ca_files = \"/a\"",
            "`network.ca_files` must be a list of strings, like `[\"one\", \"two\"]`",
        ),
        (
            "network.ca_files = [\"a.pem\"]",
            "`network.ca_files` must be an absolute path, not `a.pem`",
        ),
        (
            "network.upstream_proxy = \"ftp://p\"",
            "`network.upstream_proxy`: `ftp` proxies are not supported: `http`, `https` and `socks5` are",
        ),
        (
            "network.upstreams.\"a.b\" = {}",
            "`network.upstreams.\"a.b\"` needs an `address`, like \"127.0.0.1:8443\"",
        ),
        (
            "network.upstreams.\"a.b\".address = \"localhost\"",
            "`network.upstreams.\"a.b\".address`: `localhost` is not an address and a port, like `127.0.0.1:8443`",
        ),
        (
            "network.upstreams.\"a.b\".address = \"127.0.0.1:0\"",
            "`network.upstreams.\"a.b\".address`: the port must not be 0",
        ),
        ("network.upstreams = 1", "`network.upstreams` must be a table"),
        (
            "network.upstreams.\"A.b\".address = \"[::1]:1\"\nnetwork.upstreams.\"a.B\".address = \"[::1]:1\"",
            "`network.upstreams.\"a.B\"`: the host is there twice",
        ),
    ] {
        assert_eq!(wrong(text).0, says, "{text}");
    }
}

#[test]
fn an_unknown_key_names_the_nearest_one_with_its_table() {
    let (what, hint) = wrong("network.inpsect = \"all\"");
    assert_eq!(what, "there is no setting `network.inpsect`");
    assert_eq!(hint, "did you mean `network.inspect`?");
    let (what, hint) = wrong("[[network.services]]\nname = \"a\"\nheaders = \"x\"");
    assert_eq!(what, "there is no setting `network.services[1].headers`");
    assert_eq!(hint, "did you mean `network.services[1].header`?");
    let (what, hint) = wrong("network.upstreams.\"a.b\".adress = \"127.0.0.1:1\"");
    assert_eq!(what, "there is no setting `network.upstreams.\"a.b\".adress`");
    assert_eq!(hint, "did you mean `network.upstreams.\"a.b\".address`?");
    assert_eq!(wrong("netwrok.x = 1").1, "did you mean `network`?");
}

#[test]
fn a_wrong_service_is_told_with_its_place() {
    let service = |lines: &str| {
        let whole =
            "[[network.services]]\nname = \"a\"\nhosts = [\"h.example\"]\nheader = \"x-key\"\n";
        wrong(&format!("{whole}[[network.services]]\n{lines}")).0
    };
    let rest = "hosts = [\"i.example\"]\nheader = \"x-key\"\n";
    for (lines, says) in [
        ("name = \"b\"", "`network.services[2]` needs `hosts`, like [\"api.example.com\"]"),
        ("hosts = [\"x\"]", "`network.services[2]` needs `name`, like \"example\""),
        (
            "name = \"b\"\nhosts = [\"x\"]",
            "`network.services[2]` needs `header`, like \"authorization\"",
        ),
        (
            &format!("name = \"B c\"\n{rest}"),
            "`network.services[2]`: \"B c\" is not a service's name: 1 to 64 lower-case letters, digits and `-` are",
        ),
        (
            &format!("name = \"a\"\n{rest}"),
            "`network.services[2].name`: there is another service `a`",
        ),
        (
            "name = \"b\"\nheader = \"Host\"\nhosts = [\"x.example\"]",
            "`network.services[2]`: service \"b\": \"host\" is not a header that a credential can be sent in",
        ),
        (
            "name = \"b\"\nheader = \"x key\"\nhosts = [\"x.example\"]",
            "`network.services[2]`: service \"b\": \"x key\" is not a header that a credential can be sent in",
        ),
        (
            &format!("name = \"b\"\nformat = \"Bearer\"\n{rest}"),
            "`network.services[2]`: service \"b\": the format \"Bearer\" must be printable and have `%s` once",
        ),
        (
            &format!("name = \"b\"\nvariables = [\"A-B\"]\n{rest}"),
            "`network.services[2]`: service \"b\": \"A-B\" is not a variable that can hold a credential",
        ),
        (
            &format!("name = \"b\"\nplaceholder = \"two\\nlines\"\n{rest}"),
            "`network.services[2]`: service \"b\": \"two\\nlines\" must be printable and without spaces to stand for a credential",
        ),
        (
            &format!("name = \"b\"\nagents = [\"cluade\"]\n{rest}"),
            "`network.services[2].agents`: there is no agent `cluade`",
        ),
        (
            &format!("name = \"b\"\ngit_basic = 1\n{rest}"),
            "`network.services[2].git_basic` must be true or false",
        ),
    ] {
        assert_eq!(service(lines), says, "{lines}");
    }
    assert!(
        service("name = \"b\"\nheader = \"x\"\nhosts = [\"*.example\"]")
            .starts_with("`network.services[2].hosts`: ")
    );
}

#[test]
fn files_of_certificates_are_read_when_a_sandbox_is_to_start() {
    let home = tempfile::tempdir().unwrap();
    let pem = home.path().join("ca.pem");
    let certificate = "-----BEGIN CERTIFICATE-----\nMAo=\n-----END CERTIFICATE-----\n";
    let key = "-----BEGIN PRIVATE KEY-----\nMAo=\n-----END PRIVATE KEY-----\n";
    hutch_store::atomic::write(&pem, format!("# ours\n{key}{certificate}").as_bytes()).unwrap();
    let agents = Agents::built_in();
    let shell = agents.find("shell").unwrap();
    let file = |path: &std::path::Path| {
        format!(
            "[network]\nca_files = [\"{0}\"]\nupstreams.\"a.b\" = {{ address = \"[::1]:1\", ca_file = \"{0}\" }}",
            path.display()
        )
    };
    let resolved = settings(home.path(), &[], &file(&pem)).network(shell).unwrap();
    assert_eq!(resolved.extra_roots_pem.trim(), certificate.trim());
    assert_eq!(resolved.upstreams[0].roots_pem.as_deref(), Some(certificate));
    assert!(!serde_json::to_string(&resolved).unwrap().contains("PRIVATE"));
    let says = |path: &std::path::Path| {
        settings(home.path(), &[], &file(path)).network(shell).unwrap_err().to_string()
    };
    let gone = home.path().join("gone.pem");
    let config = home.path().join(".config/hutch/config.toml");
    assert_eq!(
        says(&gone),
        format!(
            "{}: `network.ca_files`: {} cannot be read: No such file or directory (os error 2)",
            config.display(),
            gone.display()
        )
    );
    hutch_store::atomic::write(&gone, key.as_bytes()).unwrap();
    assert!(says(&gone).ends_with("holds no certificate in PEM form"), "{}", says(&gone));
}

#[test]
fn the_proxy_of_the_machine_is_that_of_the_file_before_that_of_the_environment() {
    let home = tempfile::tempdir().unwrap();
    let agents = Agents::built_in();
    let shell = agents.find("shell").unwrap();
    let proxy = |variables: &[(&str, &str)], file: &str| -> Result<_, Failure> {
        settings(home.path(), variables, file).network(shell).map(|network| network.upstream_proxy)
    };
    let variables = [("HTTPS_PROXY", "corp:3128"), ("NO_PROXY", "localhost,.corp")];
    let found = proxy(&variables, "").unwrap().unwrap();
    assert_eq!((found.url.as_str(), found.except.len()), ("http://corp:3128", 2));
    let found = proxy(&variables, "network.upstream_proxy = \"https://other\"").unwrap().unwrap();
    assert_eq!((found.url.as_str(), found.except.len()), ("https://other:443", 2));
    let found = proxy(&variables, "network.no_proxy = []").unwrap().unwrap();
    assert_eq!((found.url.as_str(), found.except.len()), ("http://corp:3128", 0));
    assert_eq!(proxy(&variables, "network.upstream_proxy = \"none\"").unwrap(), None);
    assert_eq!(proxy(&[], "").unwrap(), None);
    let failure = proxy(&[("https_proxy", "socks4://p")], "").unwrap_err();
    assert_eq!(
        failure.to_string(),
        "the variable https_proxy: `socks4` proxies are not supported: `http`, `https` and `socks5` are"
    );
    assert!(format!("{failure:?}").contains("leaves it out"));
}

#[test]
fn only_variables_that_services_name_are_told() {
    let home = tempfile::tempdir().unwrap();
    let variables = [
        ("EXAMPLE_KEY", "one"),
        ("OTHER_KEY", ""),
        ("OURS", "two"),
        ("UNRELATED_SECRET", "three"),
        ("OPENAI_API_KEY", "four"),
    ];
    let settings = settings(home.path(), &variables, EXAMPLE);
    let of = |word: &str| {
        let services = settings.services(Agents::built_in().find(word).unwrap());
        settings.credentials(&services)
    };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        of("shell"),
        [pair("EXAMPLE_KEY", "one"), pair("OPENAI_API_KEY", "four"), pair("OURS", "two")]
    );
    assert_eq!(of("claude"), [pair("EXAMPLE_KEY", "one")]);
}

#[test]
fn a_service_of_the_users_own_takes_the_place_of_a_built_in_one() {
    let home = tempfile::tempdir().unwrap();
    let file = "[[network.services]]\nname = \"openai\"\nhosts = [\"llm.corp.example\"]\nheader = \"x-key\"";
    let settings = settings(home.path(), &[], file);
    let codex = settings.services(Agents::built_in().find("codex").unwrap());
    assert_eq!(codex.len(), 1);
    assert_eq!(codex[0].hosts, ["llm.corp.example"]);
    assert_eq!(
        settings
            .services(Agents::built_in().find("shell").unwrap())
            .iter()
            .filter(|service| service.name == "openai")
            .count(),
        1
    );
    hutch_policy::services::ServiceTable::new(codex).unwrap();
}
