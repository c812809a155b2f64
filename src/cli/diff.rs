//! `dfs diff`: what differs between two snapshots.

use std::path::PathBuf;
use std::time::Duration;

use super::environment::Environment;
use super::report::{Outcome, from_client, note, print, print_json, size};
use super::when;
use crate::control::client::{ask, unexpected};
use crate::control::{Answer, Became, PathDifference, PathKind, Request, When};

/// Longest silence of a daemon that reads old trees: blocks that only others have are waited for.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Show which paths differ between two snapshots: + created, - deleted, M changed, A attributes only, R moved.
///
/// A TIME is an age such as 2h or "3 days", a date with or without a time of day, or the beginning of a snapshot's id; it means the snapshot that
/// was current then.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A path in the folder or in the mount: it and what is below it are compared.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// The older one; by default the snapshot before the newer one.
    #[arg(long, value_name = "TIME", value_parser = when::parse_now)]
    from: Option<When>,
    /// The newer one; by default the newest.
    #[arg(long, value_name = "TIME", value_parser = when::parse_now)]
    to: Option<When>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(env: &Environment, args: Args) -> Outcome {
    let what = "cannot compare";
    let (socket, path) = when::running(env, &args.path, what)?;
    let request = Request::Diff {
        path,
        from: args.from,
        to: args.to,
    };
    let diff = match ask(&socket, &request, TIMEOUT, |_| ()) {
        Ok(Answer::Diff(diff)) => diff,
        Ok(other) => return Err(from_client(what, unexpected(&socket, &other))),
        Err(e) => return Err(from_client(what, e)),
    };
    if args.json {
        return print_json(&diff);
    }
    let from = diff
        .from
        .as_ref()
        .map_or_else(|| "the empty folder".into(), when::show);
    print(format_args!("from     {from}"));
    print(format_args!("to       {}", when::show(&diff.to)));
    for one in &diff.differences {
        print(line(one));
    }
    if diff.left_out > 0 {
        note(format_args!(
            "{} more paths: name a directory to see those in it",
            diff.left_out
        ));
    }
    Ok(())
}

fn line(one: &PathDifference) -> String {
    let sign = match one.change {
        Became::Created | Became::There => '+',
        Became::Deleted => '-',
        Became::Changed => 'M',
        Became::Attributes => 'A',
        Became::Moved => 'R',
    };
    let slash = if one.kind == PathKind::Directory { "/" } else { "" };
    let from = match &one.from {
        Some(from) => format!("{}{slash} -> ", from.display()),
        None => String::new(),
    };
    let sizes = match (one.before, one.after) {
        (Some(before), Some(after)) if before != after => format!("  {} -> {}", size(before), size(after)),
        (Some(bytes), _) | (None, Some(bytes)) => format!("  {}", size(bytes)),
        (None, None) => String::new(),
    };
    format!("{sign} {from}{}{slash}{sizes}", one.path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_every_path() {
        let mut one = PathDifference {
            path: "a/b".into(),
            change: Became::Changed,
            from: None,
            kind: PathKind::File,
            before: Some(1),
            after: Some(2048),
        };
        assert_eq!(line(&one), "M a/b  1 B -> 2.0 KiB");
        (one.change, one.before) = (Became::Created, None);
        assert_eq!(line(&one), "+ a/b  2.0 KiB");
        (one.change, one.from, one.kind, one.after) =
            (Became::Moved, Some("c".into()), PathKind::Directory, None);
        assert_eq!(line(&one), "R c/ -> a/b/");
    }
}
