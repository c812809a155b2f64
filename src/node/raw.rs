//! The yardstick: bytes over one bare libp2p stream of the very transport that nodes use, without our protocol.
//!
//! Called by the benchmark `node` only; a node never opens or accepts such a stream.

use std::net::SocketAddr;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::Swarm;
use libp2p::swarm::SwarmEvent;
use libp2p::swarm::dial_opts::DialOpts;

use crate::base::GroupId;
use crate::keys::DeviceKey;

use super::NodeError;
use super::admission::Admissions;
use super::behaviour::swarm;
use super::config::multiaddr;
use super::gate::{Gate, GateConfig, GateEvent, Opened, Protocol};
use super::local::keypair;

const PATIENCE: Duration = Duration::from_secs(600);
/// Bytes given to the stream at a time: an average block.
const PIECE: usize = 256 << 10;

fn failed(e: &dyn std::fmt::Display) -> NodeError {
    NodeError::Transport(e.to_string())
}

fn runtime() -> Result<tokio::runtime::Runtime, NodeError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| failed(&e))
}

fn bare(seed: u8) -> Result<Swarm<Gate>, NodeError> {
    let gate = GateConfig {
        group: GroupId([0; 32]),
        open: Protocol::Join,
        accept: vec![Protocol::Join],
        patience: PATIENCE,
        strangers_max: 4,
    };
    swarm(keypair(&DeviceKey::from_bytes(&[seed; 32]))?, PATIENCE, |_, _| {
        Ok(Gate::new(gate.clone(), Admissions::default()))
    })
}

/// Waits for the stream while the swarm runs.
async fn opened(swarm: &mut Swarm<Gate>) -> Result<Box<Opened>, NodeError> {
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(GateEvent::Stream(opened)) => return Ok(opened),
            SwarmEvent::OutgoingConnectionError { error, .. } => return Err(failed(&error)),
            _ => {}
        }
    }
}

/// Listens on `address`, tells where, and sends `len` bytes to whoever connects.
pub fn send(address: SocketAddr, len: u64, listening: &Sender<String>) -> Result<(), NodeError> {
    runtime()?.block_on(async {
        let mut swarm = bare(1)?;
        swarm
            .listen_on(multiaddr(&address.to_string())?)
            .map_err(|e| failed(&e))?;
        loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                let _ = listening.send(address.to_string());
                break;
            }
        }
        let mut stream = opened(&mut swarm).await?.stream;
        let run = tokio::spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        });
        let piece = vec![7; PIECE];
        let mut left = len;
        while left > 0 {
            let some = left.min(PIECE as u64);
            stream
                .write_all(&piece[..some as usize])
                .await
                .map_err(|e| failed(&e))?;
            left -= some;
        }
        stream.flush().await.map_err(|e| failed(&e))?;
        // Until the receiver has it all.
        let _ = stream.read(&mut [0]).await;
        run.abort();
        Ok(())
    })
}

/// Connects to `address` and receives `len` bytes; returns how long they took, from the first byte asked for to the last received.
pub fn receive(address: &str, len: u64) -> Result<Duration, NodeError> {
    let address = multiaddr(address)?;
    runtime()?.block_on(async {
        let mut swarm = bare(2)?;
        swarm
            .dial(DialOpts::unknown_peer_id().address(address).build())
            .map_err(|e| failed(&e))?;
        let mut stream = opened(&mut swarm).await?.stream;
        let run = tokio::spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        });
        // In a task, as the streams of a node are.
        let started = Instant::now();
        let received = tokio::spawn(async move {
            let mut piece = vec![0; PIECE];
            let mut left = len;
            while left > 0 {
                let some = left.min(PIECE as u64) as usize;
                stream.read_exact(&mut piece[..some]).await?;
                left -= some as u64;
            }
            let took = started.elapsed();
            stream.write_all(&[1]).await?;
            stream.close().await?;
            Ok::<_, std::io::Error>(took)
        });
        let took = received.await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
        run.abort();
        Ok(took)
    })
}
