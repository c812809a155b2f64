//! `umount.dfs`: everything is in `dfs::cli::umount_helper`.

use std::process::ExitCode;

fn main() -> ExitCode {
    dfs::cli::umount_helper::main()
}
