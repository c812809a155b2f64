//! What `dfs.toml` may say.

use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/s/dfs.toml"), text.as_bytes())
}

#[test]
fn the_template_is_valid_with_and_without_its_comment_signs() {
    assert_eq!(parse(TEMPLATE), Ok(Config::default()));
    let shown: String = TEMPLATE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(key) if key.contains(" = ") => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    assert!(shown.contains("\nlisten = "));
    let open = parse(&TEMPLATE.replace(PUBLIC.0, PUBLIC.1)).unwrap();
    assert_eq!(open.replication.public, Some(u64::MAX));
    assert_eq!(
        parse(&shown),
        Ok(Config::default()),
        "the shown values are the defaults"
    );
}

#[test]
fn what_is_brought_ahead() {
    let set = |text: &str| parse(&format!("[sync]\nprefetch = {text}\n")).map(|config| config.sync.prefetch);
    assert!(set("\"none\"").unwrap().is_none());
    assert_eq!(set("\"all\"").unwrap().patterns(), ["*"]);
    assert_eq!(
        set("[\"Photos/2026\", \"!*.tmp\"]").unwrap().patterns(),
        ["Photos/2026", "!*.tmp"]
    );
    for (wrong, part) in [
        ("true", "a list of patterns"),
        ("\"\"", "Photos/2026"),
        ("\"[a\"", "line 2"),
    ] {
        let error = set(wrong).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("prefetch: "), "{error}");
    }
}

#[test]
fn limits_are_bytes_per_second() {
    let limits = |text: &str| parse(&format!("[network]\n{text}\n")).map(|config| config.network);
    let set = limits("upload = \"2MB\"\ndownload = 16384").unwrap();
    assert_eq!((set.upload, set.download), (2_000_000, 16_384));
    for wrong in [
        "upload = \"fast\"",
        "download = 1",
        "upload = -1",
        "upload = \"2TiB\"",
    ] {
        assert!(limits(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn what_is_offered_to_others() {
    let offer = |text: &str| parse(&format!("[replication]\n{text}\n")).map(|config| config.replication);
    let set = offer("quota = \"50GB\"\nzone = \"attic\"\nreplicas = 3").unwrap();
    assert_eq!(
        (set.quota, set.zone.as_deref(), set.replicas),
        (Some(50_000_000_000), Some("attic"), 3)
    );
    assert_eq!(offer("quota = 0").unwrap().quota, Some(0));
    let public = |text: &str| offer(&format!("public = {text}")).unwrap().public;
    assert_eq!(
        (public("\"auto\""), public("\"none\""), public("\"20GB\"")),
        (None, Some(0), Some(20_000_000_000))
    );
    assert_eq!(public("\"all\""), Some(u64::MAX));
    let groups = offer("redundancy = \"16+8\"").unwrap().redundancy;
    assert_eq!(groups, Some(Redundancy { data: 16, parity: 8 }));
    assert_eq!(offer("redundancy = \"none\"").unwrap().redundancy, None);
    for wrong in [
        "quota = \"much\"",
        "zone = \"\"",
        "replicas = 17",
        "reserve = -1",
        "public = true",
        "allowance = \"lots\"",
        "copies = 2",
        "redundancy = 2",
        "redundancy = \"4\"",
        "redundancy = \"1+1\"",
        "redundancy = \"17+2\"",
        "redundancy = \"4+0\"",
        "redundancy = \"4+9\"",
        "redundancy = \"4+ 2\"",
        "redundancy = \"+4+2\"",
    ] {
        assert!(offer(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn an_error_names_file_line_and_key() {
    for (text, parts) in [
        (
            "[store]\ncache_size = \"much\"",
            ["line 2", "cache_size", "10GiB"],
        ),
        ("[store]\ncache_size = 5", ["line 2", "cache_size", "16MiB"]),
        ("[network]\n\ntimeout = 0", ["line 3", "timeout", "3600"]),
        (
            "[network]\nlisten = [\"8080\"]",
            ["line 2", "listen", "0.0.0.0:8080"],
        ),
        (
            "[network]\npeers = [\"x:0\"]",
            ["line 2", "peers", "host.example"],
        ),
        (
            "[metrics]\nlisten = \"0.0.0.0:9464\"",
            ["line 2", "listen", "password"],
        ),
        ("[volume]\nsync_interval = 0", ["line 2", "sync_interval", "3600"]),
        ("[volume]\nlevel = 20", ["line 2", "level", "unknown field"]),
        ("[volume", ["line 1", "/s/dfs.toml", "table"]),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.starts_with("/s/dfs.toml: line "), "{error}");
        for part in parts {
            assert!(error.contains(part), "{error} should name {part}");
        }
    }
    assert!(matches!(
        parse(&"#".repeat(CONFIG_MAX + 1)),
        Err(ConfigError::TooLong(_))
    ));
}

#[test]
fn sizes() {
    assert_eq!(parse_size("10GiB"), Some(10 << 30));
    assert_eq!(parse_size("64 k"), Some(64 << 10));
    assert_eq!(parse_size("2TB"), Some(2_000_000_000_000));
    assert_eq!(parse_size("7"), Some(7));
    for bad in ["", "GiB", "-1", "1.5G", "99999999999T", "1 XB"] {
        assert_eq!(parse_size(bad), None, "{bad}");
    }
    let sized = parse("[store]\ncache_size = 33554432\n[volume]\nwrite_budget = \"1GiB\"").unwrap();
    assert_eq!(
        (sized.store.cache_size, sized.volume.write_budget),
        (32 << 20, 1 << 30)
    );
}

proptest! {
    #[test]
    fn any_text_is_an_error_or_a_config(text in "[a-z_\\[\\]=\"0-9\n# .]{0,120}") {
        let _ = parse(&text);
    }
}
