//! The stream of events that `dfs events` shows: what a desktop or a script wants to know as it happens.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::path_text;
use crate::base::{BlockId, DeviceId, VolumeId};

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in seconds since the Unix epoch.
    pub time: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened. The names are those of the stream, and stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// How it is now: first of all, and after something was lost.
    State(Box<Now>),
    /// The tree of this device compared with those of others is another one.
    Tree {
        /// How.
        state: Accord,
        /// The snapshot that the folder is at.
        snapshot: Option<BlockId>,
    },
    /// What changed here was committed.
    Committed(Step),
    /// What others did was brought here.
    Applied(Step),
    /// A conflict copy came to be, here or elsewhere.
    Conflict {
        /// Where it is in the volume.
        #[serde(with = "path_text")]
        path: PathBuf,
    },
    /// There is a connection to another device.
    Connected {
        /// The device.
        device: DeviceId,
    },
    /// There is none any more.
    Disconnected {
        /// The device.
        device: DeviceId,
    },
    /// Something lacks copies on other devices.
    CopiesMissing {
        /// So many bytes.
        lacking_bytes: u64,
    },
    /// Everything has its copies.
    CopiesComplete,
    /// The tree cannot be made the same as those of others now; it is tried again.
    Failed {
        /// Why.
        why: String,
    },
    /// It can again.
    Recovered,
    /// Something about the group or this device's part in it that a person should know; as in `dfs status`.
    Warning {
        /// A sentence.
        text: String,
    },
    /// Whoever listens was too slow: these are not told any more.
    Lost {
        /// So many events.
        count: u64,
    },
    /// The daemon ends; nothing follows.
    End,
}

/// From one snapshot to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Where the folder is now.
    pub snapshot: BlockId,
    /// Names at which something else is, or something with other attributes; none: that could not be found out.
    pub changes: Option<u64>,
    /// The first of them, in the volume.
    #[serde(with = "path_text::list")]
    pub paths: Vec<PathBuf>,
}

/// How it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// The volume.
    pub volume: VolumeId,
    /// This device.
    pub device: DeviceId,
    /// The mount; none with `dfs serve`.
    #[serde(with = "path_text::option")]
    pub mountpoint: Option<PathBuf>,
    /// The tree compared with those of others; none where nothing is committed or taken in.
    pub tree: Option<Accord>,
    /// The snapshot that the folder is at.
    pub snapshot: Option<BlockId>,
    /// Conflict copies in it, where that is known.
    pub conflicts: Option<u64>,
    /// Why something that others did is not here yet.
    pub waiting: Option<String>,
    /// Devices that there is a connection to.
    pub connected: Vec<DeviceId>,
    /// Bytes that lack copies on other devices; none without a network.
    pub lacking_bytes: Option<u64>,
    /// What a person should know, a sentence each.
    pub warnings: Vec<String>,
}

/// This device's tree compared with those of others, as far as they are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accord {
    /// What is known elsewhere is here, and all that are connected have what is here.
    InSync,
    /// Something here is not committed, or a device that is connected has not got it.
    Ahead,
    /// Something that others did is not here.
    Behind,
    /// Both.
    Apart,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_events_stay() {
        let device = DeviceId([1; 32]);
        let snapshot = BlockId([2; 32]);
        let step = Step {
            snapshot,
            changes: Some(1),
            paths: vec!["a/b".into()],
        };
        let now = Now {
            volume: VolumeId([3; 16]),
            device,
            mountpoint: None,
            tree: Some(Accord::InSync),
            snapshot: None,
            conflicts: Some(0),
            waiting: None,
            connected: vec![device],
            lacking_bytes: Some(0),
            warnings: Vec::new(),
        };
        let all = [
            (What::State(Box::new(now)), "state"),
            (
                What::Tree {
                    state: Accord::Behind,
                    snapshot: None,
                },
                "tree",
            ),
            (What::Committed(step.clone()), "committed"),
            (What::Applied(step), "applied"),
            (What::Conflict { path: "x".into() }, "conflict"),
            (What::Connected { device }, "connected"),
            (What::Disconnected { device }, "disconnected"),
            (What::CopiesMissing { lacking_bytes: 1 }, "copies_missing"),
            (What::CopiesComplete, "copies_complete"),
            (What::Failed { why: "y".into() }, "failed"),
            (What::Recovered, "recovered"),
            (What::Warning { text: "z".into() }, "warning"),
            (What::Lost { count: 1 }, "lost"),
            (What::End, "end"),
        ];
        for (what, name) in all {
            let event = Event { time: 7, what };
            let value = serde_json::to_value(&event).unwrap();
            assert_eq!((&value["event"], &value["time"]), (&name.into(), &7.into()));
            assert_eq!(serde_json::from_value::<Event>(value).unwrap(), event);
        }
    }

    #[test]
    fn the_form_on_the_wire() {
        let event = Event {
            time: 1,
            what: What::Applied(Step {
                snapshot: BlockId([0xab; 32]),
                changes: Some(2),
                paths: vec!["a".into(), "b".into()],
            }),
        };
        let id = "ab".repeat(32);
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            format!(r#"{{"time":1,"event":"applied","snapshot":"{id}","changes":2,"paths":["a","b"]}}"#)
        );
    }
}
