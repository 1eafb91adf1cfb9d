//! The stand-in for the internet is what its tests believe it to be.

use std::path::Path;

use hutch_testkit::Internet;
use hutch_testkit::internet::{SERVER, SERVER_6};

const FETCH: &str = "\
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile=sys.argv[1])
try:
    with urllib.request.urlopen(sys.argv[2], context=context, timeout=10) as answer:
        print(answer.status, answer.read().decode(), end='')
except Exception as error:
    print(type(error).__name__, error)
";

fn internet() -> Internet {
    Internet::of(Path::new(env!("CARGO_BIN_EXE_internet")))
}

#[track_caller]
fn fetch(internet: &Internet, url: &str) -> String {
    let python = internet.program(Path::new("/usr/bin/python3")).args(["-c", FETCH]);
    python.args([&internet.ca_file()]).args([url]).run().success().text()
}

#[test]
fn names_servers_and_certificates() {
    let internet = internet();
    internet.serve("files.test", "/some/file.json", "{}");
    assert_eq!(fetch(&internet, "http://any.test/"), "200 hello from any.test");
    assert_eq!(fetch(&internet, "https://api.example.com/x?y"), "200 hello from api.example.com");
    assert_eq!(fetch(&internet, "https://v6.test/"), "200 hello from v6.test");
    assert_eq!(fetch(&internet, "https://files.test/some/f%69le.json"), "200 {}");
    assert!(fetch(&internet, "https://files.test/../../ca.pem").contains("hello"));
    for (url, error) in [
        ("http://none.test/", "Name or service"),
        ("https://any.test:9443/", "certificate verify failed"),
        ("https://any.test:9444/", "certificate is not valid for"),
    ] {
        assert!(fetch(&internet, url).contains(error), "{url}");
    }
    let report = internet.report();
    assert_eq!(report.of("api.example.com")[0].path, "/x?y");
    assert_eq!(report.of("api.example.com")[0].connection.sni.as_deref(), Some("api.example.com"));
    assert_eq!(report.of("v6.test")[0].connection.server, format!("[{SERVER_6}]:443"));
    assert!(report.queries.contains(&"none.test".to_owned()));
    internet.forget();
    assert_eq!(internet.report(), hutch_testkit::internet::Report::default());
}

#[test]
fn a_name_can_change_its_address_between_questions() {
    let internet = internet();
    internet.name("rebind.test", &[&[SERVER], &["10.0.0.5"]]);
    for server in [SERVER, "10.0.0.5", "10.0.0.5"] {
        fetch(&internet, "http://rebind.test/");
        let report = internet.report();
        assert_eq!(report.connections[0].server, format!("{server}:80"));
        internet.forget();
    }
}
