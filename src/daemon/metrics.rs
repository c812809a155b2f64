//! What the daemon counts, for Prometheus: a page on a local address, when the owner asks for it.
//!
//! The figures are those of `dfs status`, under the names that <https://prometheus.io/docs/practices/naming/> asks for. There is no password,
//! so the address must be of this computer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::oneshot;

use crate::control::Status;

/// How a daemon is now; `None` when it cannot tell.
pub(super) type Look = Arc<dyn Fn() -> Option<Status> + Send + Sync>;

/// Connections served at a time.
const CONNECTIONS_MAX: usize = 8;

/// The thread that answers; ends when dropped.
#[derive(Debug)]
pub(super) struct Metrics {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Metrics {
    /// Answers at this address from now on.
    pub(super) fn start(listen: SocketAddr, look: Look) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind(listen))?;
        tracing::info!(address = %listener.local_addr()?, "metrics");
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("metrics".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = serve(listener, look) => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn serve(listener: tokio::net::TcpListener, look: Look) {
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                    return;
                };
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                };
                let look = Arc::clone(&look);
                tokio::task::spawn_local(async move {
                    let service = service_fn(|request| {
                        let answer = answer(&request, &look);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let mut http = hyper::server::conn::http1::Builder::new();
                    // Nobody holds a place by saying nothing.
                    http.timer(TokioTimer::new())
                        .header_read_timeout(std::time::Duration::from_secs(10))
                        .max_buf_size(16 << 10);
                    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                        tracing::debug!(%error, "a reader of the metrics went away");
                    }
                    drop(place);
                });
            }
        })
        .await;
}

fn answer<B>(request: &Request<B>, look: &Look) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match look().map(text) {
            Some(Ok(text)) => (
                StatusCode::OK,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                text,
            ),
            _ => (
                StatusCode::SERVICE_UNAVAILABLE,
                "text/plain",
                "the daemon cannot tell now\n".to_owned(),
            ),
        },
        _ => (
            StatusCode::NOT_FOUND,
            "text/plain",
            "only GET /metrics is here\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    if let Ok(kind) = kind.parse() {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    response
}

/// The page.
fn text(status: Status) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("dfs");
    registry.register_collector(Box::new(Figures(status)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Figures(Status);

/// A figure that grows, or one that goes up and down.
#[derive(Clone, Copy)]
enum Kind {
    Total,
    Now,
}

fn figure(
    encoder: &mut DescriptorEncoder<'_>,
    kind: Kind,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: u64,
) -> std::fmt::Result {
    match kind {
        Kind::Total => {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, unit, counter.metric_type())?)
        }
        Kind::Now => {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
        }
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        use Kind::{Now, Total};
        let Status {
            store,
            work,
            network,
            replication,
            stalls,
            warnings,
            ..
        } = &self.0;
        let bytes = Some(&Unit::Bytes);
        let mut say = |kind, name, help, unit, value| figure(&mut encoder, kind, name, help, unit, value);
        say(Now, "store_blocks", "Blocks on this device", None, store.blocks)?;
        say(Now, "store", "Blocks on this device", bytes, store.bytes)?;
        say(
            Now,
            "cache_limit",
            "Bound of the store, 0 for none",
            bytes,
            store.cache_size,
        )?;
        say(Total, "store_statements", "SQL statements", None, work.statements)?;
        say(Total, "store_commits", "Commits of the store", None, work.commits)?;
        say(Total, "sealed_chunks", "Chunks encrypted", None, work.sealed)?;
        say(Total, "sealed", "Blocks made", bytes, work.sealed_bytes)?;
        say(Total, "opened_chunks", "Chunks decrypted", None, work.opened)?;
        say(Total, "opened", "Blocks decrypted", bytes, work.opened_bytes)?;
        say(
            Now,
            "stalled_operations",
            "Operations without progress",
            None,
            stalls.len() as u64,
        )?;
        say(
            Now,
            "warnings",
            "What is wrong with the group",
            None,
            warnings.len() as u64,
        )?;
        if let Some(network) = network {
            let (here, known) = (network.connected as u64, network.known as u64);
            say(Now, "members_connected", "Members connected", None, here)?;
            say(Now, "members_known", "Members known", None, known)?;
        }
        let Some(replication) = replication else {
            return Ok(());
        };
        say(
            Now,
            "lacking",
            "Blocks with too few replicas",
            bytes,
            replication.lacking_bytes,
        )?;
        say(
            Now,
            "held",
            "Blocks kept for other members",
            bytes,
            replication.held_bytes,
        )?;
        say(
            Now,
            "queued_blocks",
            "Blocks that wait for replication",
            None,
            replication.queued_blocks,
        )?;
        say(
            Now,
            "queued",
            "Blocks that wait for replication",
            bytes,
            replication.queued_bytes,
        )?;
        let sending = replication.bytes_per_sec;
        say(Now, "sending_per_second", "What holders take", bytes, sending)?;
        let mut by_replicas = encoder.encode_descriptor(
            "replicated",
            "Blocks of the volume by their replicas",
            bytes,
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        for line in &replication.health {
            let labels = [
                ("replicas", line.replicas.to_string()),
                ("wanted", line.wanted.to_string()),
            ];
            let gauge = ConstGauge::new(i64::try_from(line.bytes).unwrap_or(i64::MAX));
            gauge.encode(by_replicas.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_the_figures_of_the_status() {
        let status = serde_json::json!({
            "pid": 1, "version": "1", "started": 0, "volume": "00".repeat(16), "group": null, "device": "00".repeat(32),
            "role": "admin", "folder": "/f", "state": "/s", "mountpoint": null, "read_only": false,
            "store": {"blocks": 3, "bytes": 4096, "dirty_bytes": 0, "cache_size": 0}, "network": null,
            "replication": {
                "health": [{"replicas": 1, "wanted": 2, "blocks": 3, "bytes": 4096}],
                "lacking_bytes": 4096, "held_bytes": 7
            }
        });
        let page = text(serde_json::from_value(status).unwrap()).unwrap();
        for line in [
            "dfs_store_bytes 4096",
            "dfs_replicated_bytes{replicas=\"1\",wanted=\"2\"} 4096",
            "dfs_held_bytes 7",
            "dfs_sealed_bytes_total 0",
            "# EOF",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in {page}");
        }
    }
}
