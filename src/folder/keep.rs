//! Which snapshots are kept: `keep` under `[history]` in `dfs.toml`. Pure. Called by `config`; `sync` goes by it.

/// Most rules of one setting.
const RULES_MAX: usize = 16;

/// Which snapshots are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// All.
    All,
    /// Those that a rule wants, and the newest; without a rule the newest alone.
    Rules(Vec<Rule>),
}

/// The snapshots that were current at regular moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Seconds between two moments: whole multiples since the Unix epoch.
    pub every_secs: u64,
    /// How far back, in seconds.
    pub within_secs: u64,
}

impl Default for Keep {
    /// One for each hour of a day, each day of 30, each week of a year.
    fn default() -> Self {
        let rule = |every_secs, within_secs| Rule {
            every_secs,
            within_secs,
        };
        Self::Rules(vec![
            rule(HOUR, DAY),
            rule(DAY, 30 * DAY),
            rule(7 * DAY, 365 * DAY),
        ])
    }
}

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// Reads `all`, `none`, or rules such as `1h:24h 1d:30d 1w:1y`. Units: min, h, d, w (7 days), y (365 days).
pub fn parse(text: &str) -> Option<Keep> {
    match text.trim() {
        "all" => return Some(Keep::All),
        "none" => return Some(Keep::Rules(Vec::new())),
        _ => {}
    }
    let rules: Option<Vec<Rule>> = text.split_whitespace().map(rule).collect();
    rules
        .filter(|rules| (1..=RULES_MAX).contains(&rules.len()))
        .map(Keep::Rules)
}

fn rule(text: &str) -> Option<Rule> {
    let (every, within) = text.split_once(':')?;
    let rule = Rule {
        every_secs: span(every)?,
        within_secs: span(within)?,
    };
    (rule.every_secs <= rule.within_secs).then_some(rule)
}

/// One minute to a thousand years.
fn span(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match &text[digits..] {
        "min" => 60,
        "h" => HOUR,
        "d" => DAY,
        "w" => 7 * DAY,
        "y" => 365 * DAY,
        _ => return None,
    };
    let secs = number.checked_mul(unit)?;
    (60..=365_000 * DAY).contains(&secs).then_some(secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_nonsense_is_not() {
        assert_eq!(parse("1h:24h 1d:30d 1w:1y"), Some(Keep::default()));
        assert_eq!(parse(" all "), Some(Keep::All));
        assert_eq!(parse("none"), Some(Keep::Rules(Vec::new())));
        let rule = Rule {
            every_secs: 600,
            within_secs: 7200,
        };
        assert_eq!(parse("10min:2h"), Some(Keep::Rules(vec![rule])));
        let many = "1h:1d ".repeat(RULES_MAX + 1);
        for wrong in [
            "",
            "1h",
            "1h:",
            "0h:1d",
            "2d:1d",
            "1s:1h",
            "1h:1d,1d:1y",
            "1x:1y",
            "1h:1001y",
            "-1h:1d",
            &many,
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert_eq!(parse("99999999999999999y:99999999999999999y"), None);
    }
}
