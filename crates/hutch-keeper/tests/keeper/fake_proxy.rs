//! A proxy worker that is a task: hears everything, and says what a test wants it to say.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use hutch_keeper::{NetworkHost, NetworkStart, NetworkStarted, NetworkWorker};
use hutch_proxy::control::{CallerEnvironment, Reply, Request, Start};
use hutch_vmm::BoxFuture;
use hutch_wire::message::{self, MESSAGE_MAX};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

/// The certificate of a proxy that was not told to have another.
pub(crate) const CA: &str = "the first certificate\n";

/// What a fake proxy heard.
#[derive(Debug)]
pub(crate) enum Heard {
    Started(Box<Start>, PathBuf),
    Asked(Request),
    Credentials(CallerEnvironment),
}

type Answer = Box<dyn FnMut(&Request) -> Option<Reply> + Send>;

/// Starts fake proxies.
#[derive(Clone)]
pub(crate) struct FakeNetwork {
    /// Ends the proxy, for this reason.
    pub(crate) end: Arc<watch::Sender<Option<String>>>,
    pub(crate) hear: mpsc::UnboundedSender<Heard>,
    /// What it says to its start; nothing = it never says anything.
    pub(crate) ready: Arc<Mutex<Option<Reply>>>,
    /// What it says to a request; nothing = it closes its streams.
    pub(crate) answer: Arc<Mutex<Answer>>,
    pub(crate) refuse: bool,
}

impl fmt::Debug for FakeNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeNetwork")
    }
}

impl FakeNetwork {
    /// One that takes every policy, and what it hears.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Heard>) {
        let (hear, heard) = mpsc::unbounded_channel();
        let network = Self {
            end: Arc::new(watch::Sender::new(None)),
            hear,
            ready: Arc::new(Mutex::new(Some(Reply::Ready { ca_pem: CA.to_owned() }))),
            answer: Arc::new(Mutex::new(Box::new(|_| None))),
            refuse: false,
        };
        network.answers(|request| match request {
            Request::Configure(_) => Some(Reply::Configured { ca_pem: CA.to_owned(), cut: 0 }),
            _ => None,
        });
        (network, heard)
    }

    pub(crate) fn answers(&self, answer: impl FnMut(&Request) -> Option<Reply> + Send + 'static) {
        *self.answer.lock().unwrap() = Box::new(answer);
    }

    /// One that must not be started.
    pub(crate) fn none() -> Self {
        Self { refuse: true, ..Self::new().0 }
    }

    async fn control(self, mut stream: UnixStream, directory: PathBuf) {
        let start: Start = message::read(&mut stream, MESSAGE_MAX).await.unwrap();
        self.hear.send(Heard::Started(Box::new(start), directory)).unwrap();
        let ready = self.ready.lock().unwrap().clone();
        let Some(ready) = ready else { return std::future::pending().await };
        message::write(&mut stream, &ready).await.unwrap();
        while let Ok(request) = message::read::<Request, _>(&mut stream, MESSAGE_MAX).await {
            let answer = (self.answer.lock().unwrap())(&request);
            let _test_is_over = self.hear.send(Heard::Asked(request));
            let Some(answer) = answer else { return };
            message::write(&mut stream, &answer).await.unwrap();
        }
    }

    async fn credentials(self, mut stream: UnixStream) {
        while let Ok(environment) = message::read(&mut stream, MESSAGE_MAX).await {
            let _test_is_over = self.hear.send(Heard::Credentials(environment));
        }
    }
}

impl NetworkHost for FakeNetwork {
    fn start(&self, start: NetworkStart) -> BoxFuture<'_, Result<NetworkStarted, String>> {
        Box::pin(async move {
            if self.refuse {
                return Err("no proxies today".to_owned());
            }
            assert!(start.directory.is_dir());
            // The proxy of an earlier boot has ended by now.
            self.end.send_replace(None);
            let (control, workers_control) = UnixStream::pair().unwrap();
            let (credentials, brokers_credentials) = UnixStream::pair().unwrap();
            tokio::spawn(self.clone().control(workers_control, start.directory));
            tokio::spawn(self.clone().credentials(brokers_credentials));
            let end = Arc::clone(&self.end);
            tokio::spawn(async move {
                let mut port = start.port;
                let _gone = port.read(&mut [0]).await;
                end.send_if_modified(|now| {
                    now.get_or_insert_with(|| "the port ended".to_owned());
                    true
                });
            });
            let worker = Box::new(FakeProxy(Arc::clone(&self.end)));
            Ok(NetworkStarted { worker, control, credentials })
        })
    }
}

#[derive(Debug)]
struct FakeProxy(Arc<watch::Sender<Option<String>>>);

impl NetworkWorker for FakeProxy {
    fn pid(&self) -> u32 {
        4444
    }
    fn wait(&mut self) -> BoxFuture<'_, String> {
        Box::pin(async {
            let mut end = self.0.subscribe();
            end.wait_for(Option::is_some).await.unwrap().clone().unwrap()
        })
    }
    fn kill(&mut self) {
        self.0.send_replace(Some("killed".to_owned()));
    }
}
