//! Computers and what joins them: network namespaces on a cable, on a switch, or with one in the middle.
//!
//! Names carry the test's process id and a counter, so that runs beside each other never meet.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::command::Cmd;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Namespaces `a` (10.77.0.1) and `b` (10.77.0.2), each with one interface `eth0` to the other.
pub struct Cable {
    names: [String; 2],
}

/// One end of a cable.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    A,
    B,
}

impl Cable {
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let name = |end| format!("dfs-test-{}-{number}-{end}", std::process::id());
        let cable = Self {
            names: [name("a"), name("b")],
        };
        let [a, b] = &cable.names;
        for name in [a, b] {
            Cmd::new("ip").args(["netns", "add", name]).ok();
            Cmd::new("ip").args(["-n", name, "link", "set", "lo", "up"]).ok();
        }
        Cmd::new("ip")
            .args([
                "-n", a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b,
            ])
            .ok();
        for (name, address) in [(a, "10.77.0.1/24"), (b, "10.77.0.2/24")] {
            Cmd::new("ip")
                .args(["-n", name, "address", "add", address, "dev", "eth0"])
                .ok();
            Cmd::new("ip")
                .args(["-n", name, "link", "set", "eth0", "up"])
                .ok();
        }
        cable
    }

    /// The file that stands for the namespace.
    pub fn path(&self, end: End) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.names[end as usize])
    }

    /// Bytes that an end has received since the cable was laid.
    pub fn received(&self, end: End) -> u64 {
        let name = &self.names[end as usize];
        let json = Cmd::new("ip")
            .args(["-n", name, "-s", "-j", "link", "show", "eth0"])
            .ok();
        let links: serde_json::Value = serde_json::from_str(&json).unwrap();
        links[0]["stats64"]["rx"]["bytes"].as_u64().unwrap()
    }

    /// Pulls the plug, or puts it in again.
    pub fn plug(&self, connected: bool) {
        let state = if connected { "up" } else { "down" };
        Cmd::new("ip")
            .args(["-n", &self.names[0], "link", "set", "eth0", state])
            .ok();
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in &self.names {
            Cmd::new("ip").args(["netns", "del", name]).run();
        }
    }
}

/// Any number of namespaces, 10.78.0.1 and on, each with an interface `eth0` to a common bridge.
pub struct Switch {
    hub: String,
    names: Vec<String>,
}

impl Switch {
    pub fn new(computers: usize) -> Self {
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let name = |part: &str| format!("dfs-test-{}-{number}-{part}", std::process::id());
        let switch = Self {
            hub: name("hub"),
            names: (0..computers).map(|n| name(&n.to_string())).collect(),
        };
        let hub = &switch.hub;
        Cmd::new("ip").args(["netns", "add", hub]).ok();
        let ip = |namespace: &str, rest: &[&str]| Cmd::new("ip").args(["-n", namespace]).args(rest).ok();
        ip(hub, &["link", "add", "bridge", "type", "bridge"]);
        ip(hub, &["link", "set", "bridge", "up"]);
        for (n, name) in switch.names.iter().enumerate() {
            let (port, address) = (format!("port{n}"), format!("10.78.0.{}/24", n + 1));
            Cmd::new("ip").args(["netns", "add", name]).ok();
            ip(name, &["link", "set", "lo", "up"]);
            ip(
                name,
                &[
                    "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", hub,
                ],
            );
            ip(name, &["address", "add", &address, "dev", "eth0"]);
            ip(name, &["link", "set", "eth0", "up"]);
            ip(hub, &["link", "set", &port, "master", "bridge", "up"]);
        }
        switch
    }

    /// The file that stands for the namespace of a computer.
    pub fn path(&self, computer: usize) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.names[computer])
    }

    /// Pulls a computer's plug at the switch, or puts it in again.
    pub fn plug(&self, computer: usize, connected: bool) {
        let (port, state) = (format!("port{computer}"), if connected { "up" } else { "down" });
        ip(&self.hub, &["link", "set", &port, state]);
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for name in self.names.iter().chain([&self.hub]) {
            Cmd::new("ip").args(["netns", "del", name]).run();
        }
    }
}

/// Namespaces `a` (10.78.1.2) and `b` (10.78.2.2) which only reach `m` in the middle (10.78.1.1 and 10.78.2.1), until it routes.
pub struct Middle {
    names: [String; 3],
}

/// A computer of [`Middle`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    A,
    B,
    M,
}

impl Middle {
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let name = |place| format!("dfs-test-{}-{number}-{place}", std::process::id());
        let middle = Self {
            names: [name("a"), name("b"), name("m")],
        };
        for name in &middle.names {
            Cmd::new("ip").args(["netns", "add", name]).ok();
            ip(name, &["link", "set", "lo", "up"]);
        }
        let [a, b, m] = &middle.names;
        for (net, end) in [("1", a), ("2", b)] {
            let there = format!("eth{net}");
            ip(
                m,
                &[
                    "link", "add", &there, "type", "veth", "peer", "name", "eth0", "netns", end,
                ],
            );
            for (name, interface, host) in [(m, there.as_str(), "1"), (end, "eth0", "2")] {
                let address = format!("10.78.{net}.{host}/24");
                ip(name, &["address", "add", &address, "dev", interface]);
                ip(name, &["link", "set", interface, "up"]);
            }
        }
        middle
    }

    /// The file that stands for the namespace.
    pub fn path(&self, place: Place) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.names[place as usize])
    }

    /// Lets `a` and `b` reach each other from now on.
    pub fn route(&self) {
        let [a, b, m] = &self.names;
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        Cmd::new("ip")
            .args(["netns", "exec", m, "sh", "-c", forward])
            .ok();
        ip(a, &["route", "add", "10.78.2.0/24", "via", "10.78.1.1"]);
        ip(b, &["route", "add", "10.78.1.0/24", "via", "10.78.2.1"]);
    }
}

fn ip(name: &str, args: &[&str]) {
    Cmd::new("ip").args(["-n", name]).args(args).ok();
}

impl Drop for Middle {
    fn drop(&mut self) {
        for name in &self.names {
            Cmd::new("ip").args(["netns", "del", name]).run();
        }
    }
}
