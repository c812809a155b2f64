//! `mount.dfs`: everything is in `dfs::cli::mount_helper`.

use std::process::ExitCode;

fn main() -> ExitCode {
    dfs::cli::mount_helper::main()
}
