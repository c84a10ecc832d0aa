//! Archives on a disk and behind a socket, and exports to them that are disturbed.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

/// Has each of these run with an archive in a directory that is not there yet, and with one behind a socket.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod directory {
            $(#[tokio::test]
            async fn $name() {
                let dir = tempfile::tempdir().unwrap();
                let place = rspp_archive::Place::Directory(dir.path().join("not/there/yet"));
                super::$name(&rspp_archive::ObjectArchive::open(&place).unwrap()).await;
            })*
        }
        mod object_store {
            $(#[tokio::test]
            async fn $name() {
                let server = crate::server::Server::start().await;
                super::$name(&server.archive()).await;
            })*
        }
    };
}

mod conformance;
mod export;
mod removal;
mod sealing;
mod server;
