//! iceoryx2's zero-copy publish-subscribe, there and back between two processes: a peer of the queues.
//!
//! One publisher, one subscriber, no history, the port that is not shared by threads: its cheapest form.

use std::fmt::Debug;
use std::fs;
use std::hint::spin_loop;
use std::path::Path;

use crossproc_tests::wait_for;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::port::update_connections::UpdateConnections;
use iceoryx2::prelude::*;
use iceoryx2::service::port_factory::publish_subscribe;
use serde::{Deserialize, Serialize};

type Service<T> = publish_subscribe::PortFactory<ipc::Service, T, ()>;

/// Where it keeps its files, so that nothing is left of them, whatever becomes of the processes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Files {
    folder: String,
    prefix: String,
    is_owner: bool,
}

const MEMORY: &str = "/dev/shm";

impl Files {
    /// Files of nobody else.
    pub fn new() -> Self {
        let prefix = format!("crossproc_bench_{}_", std::process::id());
        let folder = std::env::temp_dir().join(&prefix).to_str().expect("a path in UTF-8").to_owned();
        fs::create_dir_all(&folder).expect("a temporary directory");
        Self { folder, prefix, is_owner: true }
    }

    /// The same, for another process: to be removed by the first one.
    pub fn lent(&self) -> Self {
        Self { folder: self.folder.clone(), prefix: self.prefix.clone(), is_owner: false }
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        config.global.set_root_path(&self.folder.as_str().try_into().expect("a path that it accepts"));
        config.global.prefix = self.prefix.as_str().try_into().expect("a name that it accepts");
        config
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if !self.is_owner {
            return;
        }
        // Nothing can be done about what can not be removed.
        let _ = fs::remove_dir_all(&self.folder);
        for entry in fs::read_dir(MEMORY).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(&self.prefix)) {
                let _ = fs::remove_file(Path::new(MEMORY).join(entry.file_name()));
            }
        }
    }
}

/// One of the two processes of a ping-pong.
#[derive(Debug)]
pub struct End<T: ZeroCopySend + Debug + 'static> {
    publisher: Publisher<ipc::Service, T, ()>,
    subscriber: Subscriber<ipc::Service, T, ()>,
    services: [Service<T>; 2],
    _node: Node<ipc::Service>,
}

impl<T: ZeroCopySend + Debug + Copy + 'static> End<T> {
    /// The one that begins, or the other one. Both have to say [`connected`](Self::connected) before they send.
    pub fn new(files: &Files, begins: bool) -> Self {
        set_log_level(LogLevel::Error);
        let node = NodeBuilder::new()
            .config(&files.config())
            .signal_handling_mode(SignalHandlingMode::Disabled)
            .create::<ipc::Service>()
            .expect("a node");
        let service = |name: &str| -> Service<T> {
            node.service_builder(&name.try_into().expect("a name"))
                .publish_subscribe::<T>()
                .max_publishers(1)
                .max_subscribers(1)
                .history_size(0)
                .subscriber_max_buffer_size(1)
                .subscriber_max_borrowed_samples(1)
                .open_or_create()
                .expect("a service")
        };
        let size = size_of::<T>();
        let services = [service(&format!("there {size}")), service(&format!("back {size}"))];
        let [out, into] = if begins { [0, 1] } else { [1, 0] }.map(|at: usize| &services[at]);
        let publisher = out.publisher_builder().max_loaned_samples(1).create().expect("a publisher");
        let subscriber = into.subscriber_builder().create().expect("a subscriber");
        Self { publisher, subscriber, services, _node: node }
    }

    /// Waits for the other one.
    pub fn connected(&self) {
        wait_for("the other process to subscribe", || {
            self.services.iter().all(|service| service.dynamic_config().number_of_subscribers() == 1)
        });
        self.publisher.update_connections().expect("a connection");
    }

    /// Sends, written in place.
    #[inline]
    pub fn send(&self, value: T) {
        let sample = self.publisher.loan_uninit().expect("a sample").write_payload(value);
        assert_eq!(sample.send().expect("room for it"), 1, "there is one subscriber");
    }

    /// Receives, spinning; reads in place.
    #[inline]
    pub fn receive<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        loop {
            if let Some(sample) = self.subscriber.receive().expect("a connection") {
                return read(sample.payload());
            }
            spin_loop();
        }
    }
}
