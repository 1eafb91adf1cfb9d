//! A keeper that is played: it holds the sandbox's lock, listens where a keeper would, and answers as the test wants.

use std::sync::{Arc, Mutex, PoisonError};

use hutch_api::{API_VERSION, Open, Phase, Request, Response, Status};
use hutch_store::record::FORMAT_VERSION;
use hutch_store::{HostPath, KeeperRecord, Lock, SandboxRecord};
use hutch_sys::process::ProcessIdentity;
use hutch_wire::{Connection, Limits, Role, message};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;

use super::world::World;

/// No request is longer.
const REQUEST_MAX: u32 = 1024 * 1024;

/// While it lives, the sandbox runs as far as anybody can see.
pub(crate) struct PlayedKeeper {
    _lock: Lock,
    _runtime: tokio::runtime::Runtime,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl PlayedKeeper {
    /// Answers `WaitReady` by itself and everything else with what `answer` gives.
    pub(crate) fn start(
        world: &World,
        record: &SandboxRecord,
        answer: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        let store = world.store();
        let lock =
            store.lock(&record.name, std::time::Duration::ZERO).expect("nobody else runs it");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a thread can be made");
        let socket = store.layout().socket(&record.id);
        let listener = {
            let _within = runtime.enter();
            UnixListener::bind(&socket).expect("the socket is free")
        };
        let own = ProcessIdentity::own().expect("this process exists");
        let keeper = KeeperRecord {
            format_version: FORMAT_VERSION,
            pid: own.pid,
            start_time: own.start_time,
            socket: HostPath::new(socket).expect("it is absolute"),
        };
        store.write_keeper(&record.name, &keeper).expect("the world is writable");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (kept, answer) = (Arc::clone(&asked), Arc::new(answer));
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (kept, answer) = (Arc::clone(&kept), Arc::clone(&answer));
                tokio::spawn(async move {
                    let Ok((_connection, mut incoming)) =
                        Connection::establish(stream, Role::Server, Limits::default()).await
                    else {
                        return;
                    };
                    while let Some(open) = incoming.next().await {
                        let is_call =
                            postcard::from_bytes::<Open>(open.payload()) == Ok(Open::Call);
                        assert!(is_call, "only calls are played");
                        let mut stream = open.accept();
                        let Ok(request) = message::read(&mut stream, REQUEST_MAX).await else {
                            continue;
                        };
                        let response = match request {
                            Request::WaitReady => ready(),
                            request => {
                                let response = answer(&request);
                                kept.lock().unwrap_or_else(PoisonError::into_inner).push(request);
                                response
                            }
                        };
                        message::write(&mut stream, &response).await.expect("it listens");
                        stream.shutdown().await.expect("it listens");
                    }
                });
            }
        });
        Self { _lock: lock, _runtime: runtime, asked }
    }

    /// What was asked so far, and forgets it.
    pub(crate) fn asked(&self) -> Vec<Request> {
        std::mem::take(&mut self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn ready() -> Response {
    Response::Status(Status {
        api_version: API_VERSION,
        phase: Phase::Ready,
        sessions: 0,
        accelerator: "tcg".to_owned(),
        keeper_pid: std::process::id(),
        vmm_pid: None,
        workspace_pid: None,
        proxy_pid: None,
        resumed: false,
        ready_ms: Some(1),
        unanswered_pings: 0,
    })
}
