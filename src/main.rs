//! The `dfs` command: everything is in `dfs::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    dfs::cli::main()
}
