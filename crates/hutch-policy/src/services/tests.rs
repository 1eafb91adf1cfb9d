use std::collections::BTreeMap;

use super::*;
use crate::settings::OAuth;

fn names(services: &[Service]) -> Vec<&str> {
    services.iter().map(|service| service.name.as_str()).collect()
}

fn place(text: &str) -> (Host, Port) {
    let authority = Authority::parse_or(text, Port::HTTPS).unwrap();
    (authority.host, authority.port)
}

/// A service that a user could have written.
fn own() -> Service {
    Service {
        name: "my-gateway".to_owned(),
        hosts: vec!["llm.corp.example".to_owned(), "llm.corp.example:8443".to_owned()],
        header: "x-gateway-key".to_owned(),
        format: "Key %s".to_owned(),
        variables: vec!["GATEWAY_KEY".to_owned()],
        placeholder_variables: vec!["GATEWAY_KEY".to_owned()],
        placeholder: "proxy-managed".to_owned(),
        replaces: vec!["authorization".to_owned()],
        git_basic: false,
        oauth: None,
    }
}

#[test]
fn every_built_in_service_is_valid_and_found_by_name() {
    assert_eq!(
        names(&all()),
        [
            "anthropic",
            "openai",
            "github",
            "copilot",
            "google",
            "groq",
            "xai",
            "openrouter",
            "mistral",
            "nebius",
            "cursor",
            "droid"
        ]
    );
    for built_in in all() {
        validate(&built_in).unwrap();
        assert_eq!(service(&built_in.name), Some(built_in));
    }
    assert_eq!(service("aws"), None);
    assert_eq!(NOT_INJECTED[0].0, "aws");
    assert_eq!(service("nonsense"), None);
}

#[test]
fn rows_are_those_of_the_reference() {
    let table = [
        ("anthropic", "x-api-key", "%s", "api.anthropic.com"),
        ("openai", "authorization", "Bearer %s", "api.openai.com"),
        ("github", "authorization", "Bearer %s", "github.com"),
        ("copilot", "authorization", "Bearer %s", "api.githubcopilot.com"),
        ("google", "x-goog-api-key", "%s", "generativelanguage.googleapis.com"),
        ("groq", "authorization", "Bearer %s", "api.groq.com"),
        ("xai", "authorization", "Bearer %s", "api.x.ai"),
        ("openrouter", "authorization", "Bearer %s", "openrouter.ai"),
        ("mistral", "authorization", "Bearer %s", "api.mistral.ai"),
        ("nebius", "authorization", "Bearer %s", "api.studio.nebius.com"),
        ("cursor", "authorization", "Bearer %s", "api2.cursor.sh"),
        ("droid", "authorization", "Bearer %s", "api.factory.ai"),
    ];
    for (name, header, format, host) in table {
        let service = service(name).unwrap();
        assert_eq!((service.header.as_str(), service.format.as_str()), (header, format), "{name}");
        assert!(service.hosts.iter().any(|entry| entry == host), "{name}");
        assert!(!service.replaces.iter().any(|other| other == header), "{name}");
        assert!(
            service.header == "authorization"
                || service.replaces.iter().any(|other| other == "authorization")
        );
        assert_eq!(service.git_basic, name == "github");
    }
    let oauth = service("openai").unwrap().oauth.unwrap();
    assert_eq!(
        (oauth.token_host.as_str(), oauth.token_path.as_str()),
        ("auth.openai.com", "/oauth/token")
    );
    assert_eq!(oauth.resource_hosts, ["chatgpt.com"]);
    assert_eq!(oauth.access_sentinel, "oai-oat01-proxy-managed");
    let oauth = service("anthropic").unwrap().oauth.unwrap();
    assert_eq!(oauth.token_host, "platform.claude.com");
    assert_eq!(oauth.refresh_sentinel, "sk-ant-ort01-proxy-managed");
    // What tools of GitHub take for a token: `gho_` and 36 more.
    assert_eq!(service("github").unwrap().placeholder.len(), 40);
}

#[test]
fn a_host_gets_the_key_of_its_own_service_at_its_own_port() {
    let table = ServiceTable::new(with_custom(all(), vec![own()])).unwrap();
    let cases = [
        ("api.anthropic.com", vec!["anthropic"]),
        ("API.anthropic.com.", vec!["anthropic"]),
        ("api.anthropic.com:80", vec![]),
        ("api.anthropic.com:8443", vec![]),
        ("evil.api.anthropic.com", vec![]),
        ("anthropic.com", vec![]),
        ("platform.claude.com", vec![]),
        ("api.openai.com", vec!["openai"]),
        ("github.com", vec!["github"]),
        ("api.githubcopilot.com", vec!["copilot"]),
        ("llm.corp.example", vec!["my-gateway"]),
        ("llm.corp.example:8443", vec!["my-gateway"]),
        ("llm.corp.example:8444", vec![]),
        ("127.0.0.1", vec![]),
    ];
    for (text, expected) in cases {
        let (host, port) = place(text);
        let found: Vec<&str> =
            table.matching(&host, port).into_iter().map(|service| service.name.as_str()).collect();
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn token_endpoints_are_terminated_but_given_no_key() {
    let table = ServiceTable::new(all()).unwrap();
    let (host, port) = place("auth.openai.com");
    assert!(table.matching(&host, port).is_empty());
    assert!(table.terminates(&host, port));
    let at: Vec<(&str, Role)> =
        table.at(&host, port).map(|(service, role)| (service.name.as_str(), role)).collect();
    assert_eq!(at, [("openai", Role::Token)]);
    let (host, port) = place("chatgpt.com");
    let roles: Vec<Role> = table.at(&host, port).map(|(_, role)| role).collect();
    assert_eq!(roles, [Role::Resource]);
    let (host, port) = place("api2.cursor.sh");
    let roles: Vec<Role> = table.at(&host, port).map(|(_, role)| role).collect();
    assert_eq!(roles, [Role::Api, Role::Token]);
    let (host, port) = place("example.com");
    assert!(!table.terminates(&host, port));
}

#[test]
fn terminated_places_are_all_of_them_once() {
    let table =
        ServiceTable::new(with_custom(vec![service("openai").unwrap()], vec![own()])).unwrap();
    let places: Vec<String> = table.terminated().iter().map(ToString::to_string).collect();
    let expected = BTreeSet::from([
        "api.openai.com:443",
        "openai.com:443",
        "auth.openai.com:443",
        "chatgpt.com:443",
        "llm.corp.example:443",
        "llm.corp.example:8443",
    ]);
    assert_eq!(places.iter().map(String::as_str).collect::<BTreeSet<_>>(), expected);
    assert_eq!(places.len(), expected.len());
    assert!(ServiceTable::new(Vec::new()).unwrap().terminated().is_empty());
}

#[test]
fn two_services_at_one_host_stand_in_the_order_of_the_list() {
    let mut second = own();
    second.name = "second".to_owned();
    let table = ServiceTable::new(vec![own(), second]).unwrap();
    let (host, port) = place("llm.corp.example");
    assert_eq!(
        table.matching(&host, port).iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
        ["my-gateway", "second"]
    );
    assert_eq!(table.named("second").unwrap().name, "second");
}

#[test]
fn a_users_service_replaces_the_built_in_one_of_its_name() {
    let openai = Service { name: "openai".to_owned(), ..own() };
    let merged = with_custom(all(), vec![openai.clone(), own()]);
    assert_eq!(merged.len(), all().len() + 1);
    assert_eq!(merged.iter().find(|service| service.name == "openai"), Some(&openai));
}

#[test]
fn mistakes_in_a_service_are_told() {
    type Change = fn(&mut Service);
    let oauth = |token_host: &str, token_path: &str| OAuth {
        token_host: token_host.to_owned(),
        token_path: token_path.to_owned(),
        resource_hosts: Vec::new(),
        access_sentinel: "access".to_owned(),
        refresh_sentinel: "refresh".to_owned(),
    };
    let mut good = own();
    good.oauth = Some(oauth("auth.corp.example:444", "/token"));
    validate(&good).unwrap();
    let table: BTreeMap<&str, Vec<Change>> = BTreeMap::from([
        (
            "name",
            vec![
                (|s| s.name.clear()) as Change,
                |s| s.name = "Upper".to_owned(),
                |s| s.name = "a/b".to_owned(),
                |s| s.name = "a".repeat(65),
            ],
        ),
        (
            "service \"my-gateway\": ",
            vec![
                (|s| s.hosts = vec!["*.corp.example".to_owned()]) as Change,
                |s| s.hosts = vec!["https://corp.example".to_owned()],
                |s| s.hosts = vec!["a b".to_owned()],
                |s| s.hosts = vec!["corp.example:0".to_owned()],
                |s| s.oauth.as_mut().unwrap().token_host = "a b".to_owned(),
                |s| s.oauth.as_mut().unwrap().resource_hosts = vec!["*".to_owned()],
            ],
        ),
        ("`hosts`", vec![(|s| s.hosts.clear()) as Change]),
        (
            "header",
            vec![
                (|s| s.header = "X-Key".to_owned()) as Change,
                |s| s.header.clear(),
                |s| s.header = "x key".to_owned(),
                |s| s.header = "x-key\r\nhost".to_owned(),
                |s| s.header = "host".to_owned(),
                |s| s.header = "transfer-encoding".to_owned(),
                |s| s.replaces = vec!["content-length".to_owned()],
            ],
        ),
        (
            "format",
            vec![
                (|s| s.format = "Bearer".to_owned()) as Change,
                |s| s.format = "%s %s".to_owned(),
                |s| s.format = "%s\r\nx: y".to_owned(),
                |s| s.format = "ü%s".to_owned(),
            ],
        ),
        (
            "variable",
            vec![
                (|s| s.variables = vec!["A=B".to_owned()]) as Change,
                |s| s.variables = vec![String::new()],
                |s| s.variables = vec!["1A".to_owned()],
                |s| s.placeholder_variables = vec!["PATH".to_owned()],
                |s| s.placeholder_variables = vec!["LD_PRELOAD".to_owned()],
                |s| s.placeholder_variables = vec!["https_proxy".to_owned()],
                |s| s.placeholder_variables = vec!["A\n".to_owned()],
            ],
        ),
        (
            "stand for a credential",
            vec![
                (|s| s.placeholder.clear()) as Change,
                |s| s.placeholder = "a b".to_owned(),
                |s| s.placeholder = "a\n".to_owned(),
                |s| s.oauth.as_mut().unwrap().access_sentinel.clear(),
            ],
        ),
        (
            "path",
            vec![
                (|s| s.oauth.as_mut().unwrap().token_path = "token".to_owned()) as Change,
                |s| s.oauth.as_mut().unwrap().token_path = "/token?x".to_owned(),
                |s| s.oauth.as_mut().unwrap().token_path = "/to ken".to_owned(),
            ],
        ),
    ]);
    for (word, changes) in table {
        for (index, change) in changes.into_iter().enumerate() {
            let mut service = good.clone();
            change(&mut service);
            let error = validate(&service).expect_err(&format!("{word} {index}")).to_string();
            assert!(error.contains(word) && !error.contains('\n'), "{word} {index}: {error}");
            assert!(ServiceTable::new(vec![service]).is_err());
        }
    }
}
