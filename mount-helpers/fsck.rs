//! `fsck.dfs`: everything is in `dfs::cli::fsck`.

use std::process::ExitCode;

fn main() -> ExitCode {
    dfs::cli::fsck::main()
}
