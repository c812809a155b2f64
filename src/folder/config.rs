//! `dfs.toml` in the state directory: what the owner may set, with bounds. Every key has a default, so an empty file is valid.
//!
//! A wrong key, type or value is refused with file, line and key. Pure: `state` reads the file, `daemon` uses the values.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::keep::Keep;
use super::prefetch::Prefetch;
use crate::base::limits::{FETCH_TIMEOUT_SECS, REPLICAS_MAX};

/// Longest `dfs.toml`, in bytes.
pub const CONFIG_MAX: usize = 64 << 10;

/// Says that dfs is to choose.
const AUTO: &str = "auto";

/// Says that there is no bound of its own.
const ALL: &str = "all";

/// Says that there is to be none.
const NONE: &str = "none";

/// Most addresses one list may name.
pub const ADDRESSES_MAX: usize = 64;

/// What `dfs init` writes: every key with its default, commented out.
pub const TEMPLATE: &str = r#"# Settings of this device for one volume. A key that is absent has the value shown.

[store]
# Bytes of blocks kept here before the least recently used are evicted; blocks held nowhere else never are. 0: no bound.
# cache_size = "0"

[network]
# enabled = true
# listen = ["0.0.0.0:8080", "[::]:8080"]
# Members to try first, as "host:port" or "/ip4/ADDRESS/tcp/PORT".
# peers = []
# Find members on the local network.
# mdns = true
# Ask the router to forward the port.
# upnp = true
# Seconds that a read waits for blocks that only others have.
# timeout = 30
# Bytes per second sent to and received from members beyond the local network, such as "2MB". 0: no limit.
# upload = "0"
# download = "0"
# Files that other members can find by the distributed hash table; beyond that, the newest.
# announce_budget = 16384

[metrics]
# Address of this computer at which Prometheus finds the page /metrics, such as "127.0.0.1:9464"; "off": nowhere.
# listen = "off"

[volume]
# Memory for data not yet sealed.
# write_budget = "64MiB"
# Seconds between background syncs.
# sync_interval = 5

[sync]
# Commit what changes in the folder, and keep it the same on all devices of the volume.
# enabled = true
# Content of what other devices change that is brought here before anybody reads it: "none", "all", or patterns as in .gitignore, such as
# ["Photos/2026", "*.pdf", "!old"]. Nothing else is evicted for it.
# prefetch = "none"

[replication]
# Copies of each block on other computers.
# replicas = 2
# Instead, such as "4+2": blocks are grouped by four, with two more of parity, and each of the six goes to another computer.
# redundancy = "none"
# Bytes kept here for other members, such as "50GB"; "auto": a quarter of the free space, "0": nothing.
# quota = "auto"
# Bytes of the quota for guests, strangers who join an open group, and whether blocks are kept by guests: "none", "all", or a size;
# "auto": all on a guest's own device, else none.
# public = "auto"
# Bytes kept for each guest beyond what it keeps for this device.
# allowance = "256MiB"
# Free space that other members may not use.
# reserve = "1GiB"
# What fails together with this device, such as "attic"; "auto": this computer.
# zone = "auto"

[history]
# Snapshots that are kept: one for each hour of the last 24 hours, one for each day of 30 days, one for each week of a year, and all of the last
# hour; "all", or "none" but the newest.
# keep = "1h:24h 1d:30d 1w:1y"
"#;

/// The line of [`TEMPLATE`] that is another one in an open group, and that one.
pub const PUBLIC: (&str, &str) = ("# public = \"auto\"", "public = \"all\"");

/// Why `dfs.toml` was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Longer than [`CONFIG_MAX`].
    #[error("{0}: the file is longer than {CONFIG_MAX} bytes; shorten it")]
    TooLong(PathBuf),
    /// Not UTF-8.
    #[error("{0}: the file is not UTF-8 text")]
    NotText(PathBuf),
    /// A line that cannot be used.
    #[error("{path}: line {line}: {key}{reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Line, counted from one.
        line: usize,
        /// The key on that line and a colon, or nothing.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[store]`
    pub store: StoreConfig,
    /// `[network]`
    pub network: NetworkConfig,
    /// `[metrics]`
    pub metrics: MetricsConfig,
    /// `[volume]`
    pub volume: VolumeConfig,
    /// `[sync]`
    pub sync: SyncConfig,
    /// `[replication]`
    pub replication: ReplicationConfig,
    /// `[history]`
    pub history: HistoryConfig,
}

/// `[history]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HistoryConfig {
    /// Which snapshots are kept.
    #[serde(deserialize_with = "keep")]
    pub keep: Keep,
}

/// `[sync]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SyncConfig {
    /// Whether the tree is committed and exchanged with other devices.
    pub enabled: bool,
    /// Which content is brought here before it is read.
    #[serde(deserialize_with = "prefetch")]
    pub prefetch: Prefetch,
}

impl Default for SyncConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            prefetch: Prefetch::default(),
        }
    }
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Bytes held before eviction; zero: no bound.
    #[serde(deserialize_with = "cache_size")]
    pub cache_size: u64,
}

/// `[network]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Whether there is a node at all.
    pub enabled: bool,
    /// Addresses to listen on.
    #[serde(deserialize_with = "listen")]
    pub listen: Vec<SocketAddr>,
    /// Members to try first, `host:port` or a multiaddr.
    #[serde(deserialize_with = "peers")]
    pub peers: Vec<String>,
    /// Whether members are looked for on the local network.
    pub mdns: bool,
    /// Whether the router is asked to forward the port.
    pub upnp: bool,
    /// How long a read waits for blocks that only others have.
    #[serde(deserialize_with = "timeout")]
    pub timeout: Duration,
    /// Bytes of blocks sent per second beyond the local network; zero: no limit.
    #[serde(deserialize_with = "rate")]
    pub upload: u64,
    /// So of blocks received.
    #[serde(deserialize_with = "rate")]
    pub download: u64,
    /// Most files that are kept announced in the DHT; zero: none.
    #[serde(deserialize_with = "announce_budget")]
    pub announce_budget: usize,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: vec![
                SocketAddr::from(([0, 0, 0, 0], 8080)),
                SocketAddr::from(([0u16; 8], 8080)),
            ],
            peers: Vec::new(),
            mdns: true,
            upnp: true,
            timeout: Duration::from_secs(FETCH_TIMEOUT_SECS),
            upload: 0,
            download: 0,
            announce_budget: 16_384,
        }
    }
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Where the page for Prometheus is; `None`: nowhere.
    #[serde(deserialize_with = "metrics")]
    pub listen: Option<SocketAddr>,
}

/// `[volume]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VolumeConfig {
    /// Memory for data not yet sealed, in bytes.
    #[serde(deserialize_with = "write_budget")]
    pub write_budget: u64,
    /// Time between background syncs.
    #[serde(deserialize_with = "sync_interval")]
    pub sync_interval: Duration,
}

impl Default for VolumeConfig {
    fn default() -> Self {
        Self {
            write_budget: 64 << 20,
            sync_interval: Duration::from_secs(5),
        }
    }
}

/// `[replication]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicationConfig {
    /// Copies of each block on other computers.
    #[serde(deserialize_with = "replicas")]
    pub replicas: u8,
    /// Erasure coding instead.
    #[serde(deserialize_with = "redundancy")]
    pub redundancy: Option<Redundancy>,
    /// Bytes kept for other members; `None`: a share of the free space.
    #[serde(deserialize_with = "quota")]
    pub quota: Option<u64>,
    /// Bytes of the quota for guests; zero: none is kept anything for or relied on; `None`: as the role of this device says.
    #[serde(deserialize_with = "public")]
    pub public: Option<u64>,
    /// Bytes kept for each guest beyond what it keeps for this device.
    #[serde(deserialize_with = "allowance")]
    pub allowance: u64,
    /// Free space that other members may not use, in bytes.
    #[serde(deserialize_with = "reserve")]
    pub reserve: u64,
    /// What fails together with this device; `None`: this computer.
    #[serde(deserialize_with = "zone")]
    pub zone: Option<String>,
}

/// `redundancy = "4+2"`: how many blocks form a group, and how many of its shards may be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redundancy {
    /// Blocks of a group, 2 to 16.
    pub data: u8,
    /// Parity shards, 1 to 8.
    pub parity: u8,
}

impl Default for ReplicationConfig {
    fn default() -> Self {
        Self {
            replicas: 2,
            redundancy: None,
            quota: None,
            public: None,
            allowance: 256 << 20,
            reserve: 1 << 30,
            zone: None,
        }
    }
}

impl Config {
    /// Reads the bytes of the file at `path` (which is only named in errors).
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() > CONFIG_MAX {
            return Err(ConfigError::TooLong(path.to_owned()));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| ConfigError::NotText(path.to_owned()))?;
        toml::from_str(text).map_err(|e| {
            let at = e.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count();
            let source = text.lines().nth(line).unwrap_or_default();
            let key = source
                .split_once('=')
                .map(|(key, _)| format!("{}: ", key.trim()))
                .unwrap_or_default();
            ConfigError::Line {
                path: path.to_owned(),
                line: line + 1,
                key,
                reason: e.message().replace('\n', " "),
            }
        })
    }
}

/// Reads a number of bytes: `1048576`, `64KiB`, `10GiB`, `2TB`. Units: KiB MiB GiB TiB, kB MB GB TB, and K M G T for the former.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(u64),
    Text(String),
}

fn size<'de, D: Deserializer<'de>>(d: D, min: u64, max: u64, what: &str) -> Result<u64, D::Error> {
    let bytes = match Size::deserialize(d) {
        Ok(Size::Bytes(bytes)) => Some(bytes),
        Ok(Size::Text(text)) => parse_size(&text),
        Err(_) => None,
    };
    bytes
        .filter(|bytes| (min..=max).contains(bytes))
        .ok_or_else(|| D::Error::custom(what))
}

fn cache_size<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let what = "expected a size such as \"10GiB\": 0 (no bound), or 16MiB to 1024TiB";
    size(d, 0, 1 << 50, what).and_then(|bytes| match bytes {
        0 | 0x100_0000.. => Ok(bytes),
        _ => Err(D::Error::custom(what)),
    })
}

fn rate<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let what = "expected bytes per second such as \"2MB\": 0 (no limit), or 16KiB to 1TiB";
    size(d, 0, 1 << 40, what).and_then(|bytes| match bytes {
        0 | 0x4000.. => Ok(bytes),
        _ => Err(D::Error::custom(what)),
    })
}

fn write_budget<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    size(
        d,
        16 << 20,
        1 << 40,
        "expected a size such as \"64MiB\", from 16MiB to 1TiB",
    )
}

fn replicas<'de, D: Deserializer<'de>>(d: D) -> Result<u8, D::Error> {
    whole(d, 0, i64::from(REPLICAS_MAX)).map(|number| number as u8)
}

fn redundancy<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Redundancy>, D::Error> {
    let what = "expected \"none\" or blocks and parity such as \"4+2\", from 2+1 to 16+8";
    let text = String::deserialize(d).map_err(|_| D::Error::custom(what))?;
    if text == NONE {
        return Ok(None);
    }
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse::<u8>().ok(),
        false => None,
    };
    let both = text
        .split_once('+')
        .and_then(|(data, parity)| Some((number(data)?, number(parity)?)));
    match both {
        Some((data @ 2..=16, parity @ 1..=8)) => Ok(Some(Redundancy { data, parity })),
        _ => Err(D::Error::custom(what)),
    }
}

fn quota<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let what = "expected \"auto\" or a size such as \"50GB\", from 0 to 1024TiB";
    let bytes = match Size::deserialize(d) {
        Ok(Size::Text(text)) if text == AUTO => return Ok(None),
        Ok(Size::Text(text)) => parse_size(&text),
        Ok(Size::Bytes(bytes)) => Some(bytes),
        Err(_) => None,
    };
    let bytes = bytes.filter(|bytes| *bytes <= 1 << 50);
    bytes.map(Some).ok_or_else(|| D::Error::custom(what))
}

fn public<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let what = "expected \"auto\", \"none\", \"all\", or a size such as \"20GB\", to 1024TiB";
    let bytes = match Size::deserialize(d) {
        Ok(Size::Text(text)) => match text.as_str() {
            AUTO => return Ok(None),
            ALL => return Ok(Some(u64::MAX)),
            NONE => Some(0),
            size => parse_size(size),
        },
        Ok(Size::Bytes(bytes)) => Some(bytes),
        Err(_) => None,
    };
    let bytes = bytes.filter(|bytes| *bytes <= 1 << 50);
    bytes.map(Some).ok_or_else(|| D::Error::custom(what))
}

fn allowance<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    size(
        d,
        0,
        1 << 50,
        "expected a size such as \"256MiB\", from 0 to 1024TiB",
    )
}

fn reserve<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    size(
        d,
        0,
        1 << 50,
        "expected a size such as \"1GiB\", from 0 to 1024TiB",
    )
}

fn zone<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    let what = "expected a name of 1 to 64 bytes, such as \"attic\"";
    let name = String::deserialize(d).map_err(|_| D::Error::custom(what))?;
    match (1..=64).contains(&name.len()) && !name.contains(char::is_control) {
        true => Ok((name != AUTO).then_some(name)),
        false => Err(D::Error::custom(what)),
    }
}

fn keep<'de, D: Deserializer<'de>>(d: D) -> Result<Keep, D::Error> {
    let what = "expected \"all\", \"none\", or steps and how far back they reach, such as \"1h:24h 1d:30d 1w:1y\" (min, h, d, w, y)";
    let text = String::deserialize(d).map_err(|_| D::Error::custom(what))?;
    super::keep::parse(&text).ok_or_else(|| D::Error::custom(what))
}

fn prefetch<'de, D: Deserializer<'de>>(d: D) -> Result<Prefetch, D::Error> {
    let what = "expected \"none\", \"all\", a pattern such as \"*.pdf\", or a list of patterns";
    let setting = super::prefetch::Setting::deserialize(d).map_err(|_| D::Error::custom(what))?;
    super::prefetch::parse(setting).map_err(D::Error::custom)
}

fn whole<'de, D: Deserializer<'de>>(d: D, min: i64, max: i64) -> Result<i64, D::Error> {
    let expected = || D::Error::custom(format!("expected a whole number from {min} to {max}"));
    match i64::deserialize(d) {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(expected()),
    }
}

fn announce_budget<'de, D: Deserializer<'de>>(d: D) -> Result<usize, D::Error> {
    whole(d, 0, 131_072).map(|number| number as usize)
}

fn timeout<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    whole(d, 1, 3600).map(|secs| Duration::from_secs(secs.unsigned_abs()))
}

fn sync_interval<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    whole(d, 1, 3600).map(|secs| Duration::from_secs(secs.unsigned_abs()))
}

fn listen<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<SocketAddr>, D::Error> {
    let what = "expected at most 64 addresses such as \"0.0.0.0:8080\" or \"[::]:8080\"";
    let texts = <Vec<String>>::deserialize(d).map_err(|_| D::Error::custom(what))?;
    let parsed: Option<Vec<SocketAddr>> = texts.iter().map(|text| text.parse().ok()).collect();
    parsed
        .filter(|list| list.len() <= ADDRESSES_MAX)
        .ok_or_else(|| D::Error::custom(what))
}

fn metrics<'de, D: Deserializer<'de>>(d: D) -> Result<Option<SocketAddr>, D::Error> {
    let what = "expected \"off\" or an address of this computer such as \"127.0.0.1:9464\": the page has no password";
    let text = String::deserialize(d).map_err(|_| D::Error::custom(what))?;
    if text == "off" {
        return Ok(None);
    }
    let address: Option<SocketAddr> = text.parse().ok();
    let local = address.filter(|address| address.ip().is_loopback());
    local.map(Some).ok_or_else(|| D::Error::custom(what))
}

fn peers<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    let what = "expected at most 64 addresses such as \"host.example:8080\"";
    let texts = <Vec<String>>::deserialize(d).map_err(|_| D::Error::custom(what))?;
    let is_address = |text: &String| {
        if text.starts_with('/') {
            return text.len() <= 256 && !text.contains(char::is_whitespace);
        }
        text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && host.len() <= 253 && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
    };
    if texts.len() > ADDRESSES_MAX || !texts.iter().all(is_address) {
        return Err(D::Error::custom(what));
    }
    Ok(texts)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
