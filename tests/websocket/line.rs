//! A runtime behind a socket.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::FutureExt;
use rspp_host::{Config, Pools, Program, Reception, Runtime};
use rspp_proto::{TenantId, abi::Signal, spec::PipelineSpec};
use rspp_tests::call::{Cast, bindings};
use rspp_timeline::Recorder;
use rspp_transport_api::Guard;
use rspp_websocket::{Config as Door, Server, listen};

pub(crate) struct Line {
    pub(crate) address: SocketAddr,
    pub(crate) server: Arc<Server>,
    pub(crate) runtime: Arc<Runtime>,
}

impl Line {
    pub(crate) async fn open(cast: &Cast) -> Self {
        let guard = Guard::Local {
            tenant: TenantId::new("local").unwrap(),
            password: None,
        };
        Self::guarded(cast, guard).await
    }

    /// Serves another pipeline.
    pub(crate) async fn of(cast: &Cast, pipeline: PipelineSpec) -> Self {
        let guard = Guard::Local {
            tenant: TenantId::new("local").unwrap(),
            password: None,
        };
        Self::serving(cast, guard, pipeline, Vec::new()).await
    }

    pub(crate) async fn guarded(cast: &Cast, guard: Guard) -> Self {
        Self::serving(cast, guard, PipelineSpec::simple(), Vec::new()).await
    }

    /// Has its sessions recorded, one with each of these.
    pub(crate) async fn recorded(cast: &Cast, recorders: Vec<Recorder>) -> Self {
        let guard = Guard::Local {
            tenant: TenantId::new("local").unwrap(),
            password: None,
        };
        Self::serving(cast, guard, PipelineSpec::simple(), recorders).await
    }

    async fn serving(
        cast: &Cast,
        guard: Guard,
        pipeline: PipelineSpec,
        recorders: Vec<Recorder>,
    ) -> Self {
        let mut config = Config::new(cast.providers(), Pools::new(2));
        // Whatever else this machine does at the moment.
        config.limits.overload.scheduler_late_ms = None;
        config.limits.overload.output_late_ms = None;
        let runtime = Arc::new(Runtime::start(config).await.unwrap());
        let program = Program {
            pipeline,
            policy: None,
            settings: bindings(),
        };
        let recorders = Mutex::new(recorders);
        let reception = Reception::new(Arc::clone(&runtime), program).recording(move |_begun| {
            let recorder = recorders.lock().unwrap().pop();
            let recorder = recorder.unwrap_or_else(Recorder::null);
            std::future::ready(Ok((recorder, None))).boxed()
        });
        let door = Door {
            guard,
            ..Door::default()
        };
        let server = Server::new(Arc::new(reception), door);
        let listener = listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let router = server.router();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            address,
            server,
            runtime,
        }
    }

    /// Stops; everything has to be over in time.
    pub(crate) async fn close(self) {
        assert!(
            self.server.drain(Duration::from_secs(10)).await,
            "calls end"
        );
        assert!(
            self.runtime.shut_down(Duration::from_secs(5)).await,
            "all stop"
        );
    }
}

/// Whether a signal tells how fast one part is beside another, which depends on what else the machine does.
pub(crate) fn is_of_pace(signal: Signal) -> bool {
    matches!(
        signal,
        Signal::Watermark | Signal::FlowXoff | Signal::FlowXon
    )
}
