use hutch_policy::settings::UpstreamProxy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

fn place(text: &str) -> Authority {
    Authority::parse(text).unwrap()
}

fn upstreams(proxy: Option<UpstreamProxy>) -> Result<Upstreams, UpstreamsError> {
    let settings = NetworkSettings { upstream_proxy: proxy, ..NetworkSettings::default() };
    Upstreams::new(&settings, Arc::new(RootCertStore::empty()))
}

fn proxy(url: &str, except: &[&str]) -> UpstreamProxy {
    UpstreamProxy {
        url: url.to_owned(),
        except: except.iter().map(|text| (*text).to_owned()).collect(),
    }
}

/// Goes through the proxy, says something, and gives what the proxy's side did and what came back.
async fn through(upstreams: &Upstreams, to: &str) -> Result<Vec<u8>, String> {
    match upstreams.dial(&Way::Proxy, &place(to)).await {
        Ok(mut dialed) => {
            dialed.io.write_all(b"hi").await.unwrap();
            dialed.io.shutdown().await.unwrap();
            let mut answer = Vec::new();
            dialed.io.read_to_end(&mut answer).await.unwrap();
            Ok(answer)
        }
        Err(Unreachable::Failed { sentence, .. }) => Err(sentence),
        Err(Unreachable::Refused(verdict)) => panic!("{verdict:?}"),
    }
}

/// A server of one connection: reads exactly what is expected, answers, and so on; then it echoes.
async fn script(steps: Vec<(Vec<u8>, Vec<u8>)>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for (expected, answer) in steps {
            let mut got = vec![0; expected.len()];
            stream.read_exact(&mut got).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&expected));
            stream.write_all(&answer).await.unwrap();
        }
        let (mut reader, mut writer) = stream.split();
        tokio::io::copy(&mut reader, &mut writer).await.ok();
        writer.shutdown().await.ok();
    });
    (address, task)
}

#[tokio::test]
async fn an_http_proxy_is_asked_by_name_with_its_login_and_early_bytes_are_kept() {
    let asked = "CONNECT far.test:443 HTTP/1.1\r\nHost: far.test:443\r\n\
                 Proxy-Authorization: Basic dXNlcjpwYSBzcw==\r\n\r\n";
    let (address, task) =
        script(vec![(asked.into(), b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nearly ".to_vec())]).await;
    let upstreams =
        upstreams(Some(proxy(&format!("http://user:pa%20ss@{address}/"), &[]))).unwrap();
    assert_eq!(through(&upstreams, "far.test:443").await.unwrap(), b"early hi");
    task.await.unwrap();
}

#[tokio::test]
async fn a_proxy_that_refuses_is_one_sentence_without_what_it_said() {
    for (answer, sentence) in [
        ("HTTP/1.1 407 x\r\n\r\n", "the host's proxy wants another user or password"),
        (
            "HTTP/1.1 503 secret\r\n\r\n",
            "the host's proxy refused to connect to far.test:443 with status 503",
        ),
        ("SSH-2.0-x\r\n\r\n", "the host's proxy does not answer properly"),
    ] {
        let asked = "CONNECT far.test:443 HTTP/1.1\r\nHost: far.test:443\r\n\r\n";
        let (address, _task) = script(vec![(asked.into(), answer.into())]).await;
        let upstreams = upstreams(Some(proxy(&address.to_string(), &[]))).unwrap();
        assert_eq!(through(&upstreams, "far.test:443").await.unwrap_err(), sentence);
    }
}

#[tokio::test]
async fn a_socks_proxy_is_asked_by_name_and_with_a_login() {
    let name = b"\x05\x01\x00\x03\x08far.test\x01\xbb".to_vec();
    let done = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50".to_vec();
    let (address, task) =
        script(vec![(vec![5, 1, 0], vec![5, 0]), (name.clone(), done.clone())]).await;
    let plain = upstreams(Some(proxy(&format!("socks5://{address}"), &[]))).unwrap();
    assert_eq!(through(&plain, "far.test:443").await.unwrap(), b"hi");
    task.await.unwrap();

    let (address, task) = script(vec![
        (vec![5, 1, 2], vec![5, 2]),
        (b"\x01\x01u\x02pw".to_vec(), vec![1, 0]),
        (b"\x05\x01\x00\x01\x01\x02\x03\x04\x00\x50".to_vec(), done),
    ])
    .await;
    let login = upstreams(Some(proxy(&format!("socks5://u:pw@{address}"), &[]))).unwrap();
    assert_eq!(through(&login, "1.2.3.4:80").await.unwrap(), b"hi");
    task.await.unwrap();

    let refused = vec![(vec![5, 1, 0], vec![5, 0]), (name, b"\x05\x02\x00\x01".to_vec())];
    let (address, _task) = script(refused).await;
    let refusing = upstreams(Some(proxy(&format!("socks5://{address}"), &[]))).unwrap();
    let sentence = through(&refusing, "far.test:443").await.unwrap_err();
    assert_eq!(sentence, "the host's proxy refused to connect to far.test:443");
}

#[test]
fn some_places_are_reached_without_the_proxy() {
    let except =
        ["internal.test", ".corp.test", "10.0.0.0/8", "192.0.2.7", "one.test:8443", "what ever"];
    let upstreams = upstreams(Some(proxy("http://proxy.test:3128", &except))).unwrap();
    let carries = |text: &str| upstreams.proxy.as_ref().unwrap().carries(&place(text));
    for direct in [
        "internal.test:443",
        "a.internal.test:80",
        "corp.test:80",
        "x.corp.test:80",
        "10.9.8.7:80",
        "192.0.2.7:1",
        "one.test:8443",
        "localhost:80",
        "127.0.0.1:80",
        "[::1]:80",
    ] {
        assert!(!carries(direct), "{direct}");
    }
    for proxied in ["notinternal.test:443", "11.0.0.1:80", "one.test:443", "far.test:80"] {
        assert!(carries(proxied), "{proxied}");
    }
    let all = self::upstreams(Some(proxy("http://proxy.test", &["*"]))).unwrap();
    assert!(!all.proxy.as_ref().unwrap().carries(&place("far.test:80")));
}

#[test]
fn what_is_no_proxy_is_an_error_that_does_not_show_it() {
    for url in [
        "ftp://u:geheim@x.test",
        "http://u:geheim%zz@x.test",
        "http://u:geheim@",
        "http://u:geheim@x:0",
    ] {
        let error = upstreams(Some(proxy(url, &[]))).unwrap_err();
        assert!(!error.to_string().contains("geheim"), "{error}");
    }
}

#[tokio::test]
async fn the_users_machine_is_loopback_whatever_the_resolver_says() {
    let found = addresses(&place("localhost:80").rewritten()).await.unwrap();
    assert!(found.iter().all(|address| address.ip().is_loopback()) && found.len() == 2);
    let found = addresses(&place("host.docker.internal:80")).await.unwrap();
    assert!(found.iter().all(|address| address.ip().is_loopback()));
}

#[tokio::test]
async fn the_first_address_that_answers_is_taken() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let addresses: Vec<SocketAddr> = ["[::1]", "127.0.0.2", "127.0.0.1"]
        .map(|host| format!("{host}:{port}").parse().unwrap())
        .to_vec();
    let stream = race(&addresses, &place("x.test:80")).await.unwrap();
    assert_eq!(stream.peer_addr().unwrap(), addresses[2]);
    drop(listener);
    let Err(Unreachable::Failed { sentence, late }) = race(&addresses, &place("x.test:80")).await
    else {
        panic!("nobody listens")
    };
    assert_eq!(sentence, "x.test:80 cannot be reached: it refuses connections");
    assert!(!late);
}

#[test]
fn families_take_turns() {
    let order = |texts: &[&str]| {
        let all: Vec<SocketAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
        interleaved(&all).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        order(&["[::1]:1", "[::2]:1", "1.1.1.1:1", "[::3]:1", "2.2.2.2:1"]),
        ["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]
    );
    assert!(order(&[]).is_empty());
}

#[test]
fn a_roots_file_without_a_certificate_is_an_error() {
    for pem in ["nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let settings =
            NetworkSettings { extra_roots_pem: pem.to_owned(), ..NetworkSettings::default() };
        assert!(Upstreams::new(&settings, Arc::new(RootCertStore::empty())).is_err());
    }
}
