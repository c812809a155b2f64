//! What follows `-o`: read as mount(8) helpers do. Each option is honoured, or accepted because it speaks to mount(8) or systemd, or
//! refused by name (passed over with `-s`). The last of contradicting flags counts, as mount(8) combines fstab and command line;
//! contradicting values are refused. Pure. Called by `mount_helper` and `up`.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::daemon::Options;
use crate::folder::config::parse_size;
use crate::fuse::{Access, Atime, DEFAULT_TTL, MountFlags, MountRequest};

/// Longest time that an option may name: a year.
const SECONDS_MAX: f64 = 365.0 * 86_400.0;

/// Options that are not ours to act on: fstab's, systemd's, and what the kernel does for every mount anyway.
const ACCEPTED: [&str; 23] = [
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "nouser",
    "nousers",
    "noowner",
    "nogroup",
    "diratime",
    "nodiratime",
    "loud",
    "silent",
    "lazytime",
    "nolazytime",
    "iversion",
    "noiversion",
    "mand",
    "nomand",
    "symfollow",
    "nosymfollow",
    "default_permissions",
    "nostrictatime",
];

/// What mount(8) repeats from the kernel's list of mounts when it remounts.
const KERNELS: [&str; 5] = ["user_id", "group_id", "rootmode", "max_read", "fd"];

/// What `-o` said.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MountOptions {
    /// Flags for the kernel.
    pub flags: MountFlags,
    /// Who may enter; `None`: nothing was said.
    pub access: Option<Access>,
    /// Shown owner.
    pub uid: Option<u32>,
    /// Shown group.
    pub gid: Option<u32>,
    /// `state=`: the state directory.
    pub state: Option<PathBuf>,
    /// `timeout=`: how long a read waits for blocks that only others have.
    pub timeout: Option<Duration>,
    /// `cache_size=`, in bytes.
    pub cache_size: Option<u64>,
    /// `fsync=`: whether fsync waits for replicas.
    pub fsync_replicas: Option<bool>,
    /// `passphrase_file=`.
    pub passphrase_file: Option<PathBuf>,
    /// `listen=`, may be repeated.
    pub listen: Vec<SocketAddr>,
    /// `offline`: no network at all.
    pub offline: bool,
    /// `attr_timeout=`: how long the kernel believes names and attributes.
    pub ttl: Option<Duration>,
    /// `writeback`: the kernel collects writes.
    pub writeback: bool,
    /// `remount`: change the flags of the mount that is there.
    pub remount: bool,
}

/// Why an option is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Nobody knows it.
    #[error("unknown mount option {0:?} (-s passes over unknown ones)")]
    Unknown(String),
    /// Its value cannot be used.
    #[error("mount option {option}: {value:?} is not {expected}")]
    Value {
        /// The option.
        option: String,
        /// What was given.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
    /// Two options contradict each other.
    #[error("mount options {0} and {1} contradict each other")]
    Conflict(String, String),
}

impl MountOptions {
    /// Reads a list: options separated by commas, a backslash before a comma or a backslash that belongs to a value.
    pub fn read(&mut self, list: &OsStr, sloppy: bool) -> Result<(), OptionError> {
        for option in split(list.as_bytes()) {
            let (name, value) = match option.iter().position(|byte| *byte == b'=') {
                Some(at) => (&option[..at], Some(&option[at + 1..])),
                None => (&option[..], None),
            };
            let name = String::from_utf8_lossy(name).into_owned();
            match self.apply(&name, value) {
                Err(OptionError::Unknown(_)) if sloppy => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn apply(&mut self, name: &str, value: Option<&[u8]>) -> Result<(), OptionError> {
        let unknown = || {
            let value = value.map(|value| format!("={}", String::from_utf8_lossy(value)));
            Err(OptionError::Unknown(format!(
                "{name}{}",
                value.unwrap_or_default()
            )))
        };
        if name.is_empty() || name.starts_with("x-") || name.starts_with("X-") || name == "comment" {
            return Ok(());
        }
        match value {
            None => self.flag(name).map_or_else(unknown, Ok),
            // `user=NAME` is how mount(8) remembers who may unmount.
            Some(_) if name == "user" => self.flag(name).map_or_else(unknown, Ok),
            Some(_) if KERNELS.contains(&name) => Ok(()),
            Some(value) => self.value(name, value).unwrap_or_else(unknown),
        }
    }

    fn flag(&mut self, name: &str) -> Option<()> {
        let flags = &mut self.flags;
        match name {
            "ro" => flags.read_only = true,
            "rw" => flags.read_only = false,
            "suid" => flags.suid = true,
            "nosuid" => flags.suid = false,
            "dev" => flags.dev = true,
            "nodev" => flags.dev = false,
            "exec" => flags.noexec = false,
            "noexec" => flags.noexec = true,
            "noatime" => flags.atime = Atime::Never,
            "atime" | "relatime" => flags.atime = Atime::Relative,
            "norelatime" | "strictatime" => flags.atime = Atime::Strict,
            "sync" => flags.sync = true,
            "async" => flags.sync = false,
            "dirsync" => flags.dirsync = true,
            // As mount(5): what users mount is held shorter, unless a later option says otherwise.
            "user" | "users" => (flags.suid, flags.dev, flags.noexec) = (false, false, true),
            "owner" | "group" => (flags.suid, flags.dev) = (false, false),
            "allow_other" => self.access = Some(Access::Everyone),
            // mount(8) repeats the kernel's `allow_other`, which stands for both.
            "allow_root" if self.access != Some(Access::Everyone) => self.access = Some(Access::OwnerAndRoot),
            "allow_root" => {}
            "offline" => self.offline = true,
            "writeback" => self.writeback = true,
            "remount" => self.remount = true,
            _ => return ACCEPTED.contains(&name).then_some(()),
        }
        Some(())
    }

    /// `None`: no such option.
    fn value(&mut self, name: &str, value: &[u8]) -> Option<Result<(), OptionError>> {
        let expected = |expected| OptionError::Value {
            option: name.to_owned(),
            value: String::from_utf8_lossy(value).into_owned(),
            expected,
        };
        let text = std::str::from_utf8(value).ok();
        let path = (!value.is_empty()).then(|| PathBuf::from(OsString::from_vec(value.to_vec())));
        let path = path.ok_or_else(|| expected("a path"));
        let number = || {
            text.and_then(|text| text.parse::<u32>().ok())
                .ok_or_else(|| expected("a number"))
        };
        let time = || {
            text.and_then(parse_seconds)
                .ok_or_else(|| expected("a number of seconds"))
        };
        let size = || {
            text.and_then(parse_size)
                .ok_or_else(|| expected("a size such as 10GiB"))
        };
        let address = || {
            text.and_then(|text| text.parse().ok())
                .ok_or_else(|| expected("an address such as 0.0.0.0:8080"))
        };
        Some(match name {
            "uid" => number().and_then(|uid| once(name, &mut self.uid, uid)),
            "gid" => number().and_then(|gid| once(name, &mut self.gid, gid)),
            "state" => path.and_then(|path| once(name, &mut self.state, path)),
            "passphrase_file" => path.and_then(|path| once(name, &mut self.passphrase_file, path)),
            "timeout" => time().and_then(|time| once(name, &mut self.timeout, time)),
            "attr_timeout" => time().and_then(|time| once(name, &mut self.ttl, time)),
            "cache_size" => size().and_then(|size| once(name, &mut self.cache_size, size)),
            "fsync" => match text {
                Some("local") => once(name, &mut self.fsync_replicas, false),
                Some("replicas") => once(name, &mut self.fsync_replicas, true),
                _ => Err(expected("local or replicas")),
            },
            "listen" => address().map(|address| self.listen.push(address)),
            _ => return None,
        })
    }

    /// Contradictions that only the whole shows.
    pub fn check(&self) -> Result<(), OptionError> {
        let conflict = |one: &str, other: &str| Err(OptionError::Conflict(one.into(), other.into()));
        match self {
            Self {
                offline: true,
                listen,
                ..
            } if !listen.is_empty() => conflict("offline", "listen"),
            Self {
                writeback: true,
                flags: MountFlags { sync: true, .. },
                ..
            } => conflict("writeback", "sync"),
            Self {
                remount: true,
                state: Some(_),
                ..
            } => conflict("remount", "state"),
            _ => Ok(()),
        }
    }

    /// The mount to be made. A mount of root's whose files belong to somebody else is of use only when that one may enter.
    pub fn mount_request(&self, folder: &Path, mountpoint: &Path, is_root: bool) -> MountRequest {
        let for_others = is_root && self.uid.is_some_and(|uid| uid != 0);
        let default = if for_others {
            Access::Everyone
        } else {
            Access::Owner
        };
        MountRequest {
            flags: self.flags,
            access: self.access.unwrap_or(default),
            uid: self.uid,
            gid: self.gid,
            ttl: self.ttl.unwrap_or(DEFAULT_TTL),
            writeback: self.writeback,
            ..MountRequest::new(folder, mountpoint)
        }
    }

    /// What the daemon is told over its settings.
    pub fn daemon_options(&self) -> Options {
        Options {
            timeout: self.timeout,
            cache_size: self.cache_size,
            quota: None,
            public: false,
            fsync_replicas: self.fsync_replicas.unwrap_or(false),
            read_only: self.flags.read_only,
            no_network: self.offline,
            listen: (!self.listen.is_empty()).then(|| self.listen.clone()),
        }
    }
}

fn once<T: PartialEq>(name: &str, place: &mut Option<T>, value: T) -> Result<(), OptionError> {
    match place {
        Some(before) if *before != value => {
            Err(OptionError::Conflict(format!("{name}="), format!("{name}=")))
        }
        _ => {
            *place = Some(value);
            Ok(())
        }
    }
}

fn parse_seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.strip_suffix('s').unwrap_or(text).parse().ok()?;
    (0.0..=SECONDS_MAX)
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds))
}

fn split(list: &[u8]) -> Vec<Vec<u8>> {
    let mut options = vec![Vec::new()];
    let mut bytes = list.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let escaped = (byte == b'\\')
            .then(|| bytes.next_if(|next| matches!(next, b',' | b'\\')))
            .flatten();
        match (escaped, options.last_mut()) {
            (Some(escaped), Some(option)) => option.push(escaped),
            (None, _) if byte == b',' => options.push(Vec::new()),
            (None, Some(option)) => option.push(byte),
            (_, None) => {}
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(list: &str) -> Result<MountOptions, OptionError> {
        let mut options = MountOptions::default();
        options.read(OsStr::new(list), false)?;
        options.check().map(|()| options)
    }

    #[test]
    fn fstab_and_systemd_options_pass() {
        let list = "defaults,_netdev,nofail,noauto,x-systemd.automount,x-systemd.requires=a.service,X-mount.mkdir,comment=a b,rw,async,,";
        assert_eq!(read(list).unwrap(), MountOptions::default());
    }

    #[test]
    fn flags_are_honoured_and_the_last_counts() {
        let flags = read("ro,suid,dev,noexec,noatime,sync,dirsync").unwrap().flags;
        let expected = MountFlags {
            read_only: true,
            suid: true,
            dev: true,
            noexec: true,
            atime: Atime::Never,
            sync: true,
            dirsync: true,
        };
        assert_eq!(flags, expected);
        assert!(!read("ro,rw").unwrap().flags.read_only);
        assert!(read("rw,ro").unwrap().flags.read_only);
        assert!(!read("sync,async").unwrap().flags.sync);
    }

    #[test]
    fn what_users_mount_runs_no_programs_unless_said_after() {
        let flags = read("suid,dev,user").unwrap().flags;
        assert!(!flags.suid && !flags.dev && flags.noexec);
        assert!(!read("user=me,exec").unwrap().flags.noexec);
        let owner = read("suid,dev,owner").unwrap().flags;
        assert!(!owner.suid && !owner.dev && !owner.noexec);
    }

    #[test]
    fn our_own_options() {
        let list = "state=/s\\,t\\\\a,timeout=2.5,cache_size=10GiB,passphrase_file=/p,listen=0.0.0.0:1,listen=[::]:2,uid=5,gid=6,attr_timeout=0";
        let options = read(list).unwrap();
        assert_eq!(options.state.as_deref(), Some(Path::new("/s,t\\a")));
        assert_eq!(options.passphrase_file.as_deref(), Some(Path::new("/p")));
        assert_eq!((options.uid, options.gid), (Some(5), Some(6)));
        assert_eq!(options.ttl, Some(Duration::ZERO));
        let told = options.daemon_options();
        assert_eq!(told.timeout, Some(Duration::from_millis(2500)));
        assert_eq!(told.cache_size, Some(10 << 30));
        assert_eq!(told.listen.map(|listen| listen.len()), Some(2));
    }

    #[test]
    fn unknown_options_are_named_and_passed_over_only_with_s() {
        assert_eq!(
            read("ro,frobnicate").unwrap_err(),
            OptionError::Unknown("frobnicate".into())
        );
        assert_eq!(
            read("color=red").unwrap_err(),
            OptionError::Unknown("color=red".into())
        );
        // A flag with a value is not the flag.
        assert_eq!(read("ro=1").unwrap_err(), OptionError::Unknown("ro=1".into()));
        let mut options = MountOptions::default();
        options.read(OsStr::new("frobnicate,ro"), true).unwrap();
        assert!(options.flags.read_only);
        assert!(
            options.read(OsStr::new("uid=me"), true).is_err(),
            "a wrong value is no unknown option"
        );
    }

    #[test]
    fn wrong_values_and_contradictions() {
        for list in [
            "uid=-1",
            "gid=x",
            "timeout=soon",
            "fsync=never",
            "timeout=-1",
            "timeout=nan",
            "timeout=1e300",
            "cache_size=big",
            "state=",
            "listen=here",
        ] {
            let error = read(list).unwrap_err();
            assert!(matches!(error, OptionError::Value { .. }), "{list}: {error}");
        }
        for list in [
            "state=/a,state=/b",
            "offline,listen=0.0.0.0:1",
            "writeback,sync",
            "remount,state=/a",
            "uid=1,uid=2",
        ] {
            let error = read(list).unwrap_err();
            assert!(matches!(error, OptionError::Conflict(..)), "{list}: {error}");
        }
        assert!(read("uid=1,uid=1").is_ok());
    }

    #[test]
    fn who_may_enter() {
        let access = |list: &str, is_root| {
            read(list)
                .unwrap()
                .mount_request(Path::new("/f"), Path::new("/m"), is_root)
                .access
        };
        assert_eq!(access("", true), Access::Owner);
        assert_eq!(access("allow_other", false), Access::Everyone);
        assert_eq!(access("allow_root", true), Access::OwnerAndRoot);
        assert_eq!(access("allow_root,allow_other", true), Access::Everyone);
        assert_eq!(access("uid=1000", true), Access::Everyone);
        assert_eq!(access("uid=1000,allow_root", true), Access::OwnerAndRoot);
        assert_eq!(access("uid=1000", false), Access::Owner);
    }

    #[test]
    fn a_remount_takes_what_the_kernel_listed() {
        let options = read(
            "remount,ro,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other,max_read=1048576",
        );
        let options = options.unwrap();
        assert!(options.remount && options.flags.read_only);
    }

    proptest! {
        #[test]
        fn any_path_can_be_written_as_a_value(path in proptest::collection::vec(1u8..=255, 1..40)) {
            let mut list = b"ro,state=".to_vec();
            for byte in &path {
                if matches!(byte, b',' | b'\\') {
                    list.push(b'\\');
                }
                list.push(*byte);
            }
            list.extend_from_slice(b",noexec");
            let mut options = MountOptions::default();
            options.read(OsStr::from_bytes(&list), false).unwrap();
            prop_assert_eq!(options.state.unwrap().into_os_string().into_vec(), path);
            prop_assert!(options.flags.read_only && options.flags.noexec);
        }

        #[test]
        fn no_list_panics(list in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = MountOptions::default().read(OsStr::from_bytes(&list), true);
        }
    }
}
